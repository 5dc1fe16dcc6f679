//! Counts what was seen recently (callers, reads), in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use crate::sync::lock;

/// The most keys remembered at once; when it is reached, new keys are not counted.
const MAX_KEYS: usize = 10_000;
/// When the limit is reached, expired keys are removed at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Counts how often each key is seen within `life` of its first time.
#[derive(Debug)]
pub struct Recent<K> {
    life: Duration,
    seen: Mutex<Seen<K>>,
}

#[derive(Debug)]
struct Seen<K> {
    /// For each key, when it was first seen, and how often.
    since: HashMap<K, (Duration, u32)>,
    swept: Duration,
}

impl<K: Eq + Hash> Recent<K> {
    pub fn new(life: Duration) -> Self {
        Self { life, seen: Mutex::new(Seen { since: HashMap::new(), swept: Duration::ZERO }) }
    }

    /// Counts this key once more. Returns how much of its life is left and how often it has been seen; `None` if there is no
    /// room for it.
    pub fn count(&self, key: K, now: Duration) -> Option<(Duration, u32)> {
        let mut seen = lock(&self.seen);
        let seen = &mut *seen;
        let age = |since: Duration| now.saturating_sub(since);
        if seen.since.len() >= MAX_KEYS && !seen.since.contains_key(&key) {
            if age(seen.swept) >= SWEEP_EVERY {
                seen.swept = now;
                seen.since.retain(|_, (since, _)| age(*since) < self.life);
            }
            if seen.since.len() >= MAX_KEYS {
                return None;
            }
        }
        let entry = seen.since.entry(key).or_insert((now, 0));
        if age(entry.0) >= self.life {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
        Some((self.life.saturating_sub(age(entry.0)), entry.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_time_may_come_out_of_order() {
        let seconds = Duration::from_secs;
        let recent = Recent::new(seconds(60));
        let count = |key: usize, now| recent.count(key, seconds(now));
        assert_eq!(count(0, 10), Some((seconds(60), 1)));
        assert_eq!(count(0, 30), Some((seconds(40), 2)));
        assert_eq!(count(0, 9), Some((seconds(60), 3)), "another thread looked at the clock before");
        assert_eq!(count(0, 70), Some((seconds(60), 1)), "its life is over");
        for key in 1..MAX_KEYS {
            assert!(count(key, 80).is_some());
        }
        assert_eq!(count(MAX_KEYS, 80), None, "no room");
        assert!(count(0, 80).is_some(), "what is known stays known");
        assert!(count(MAX_KEYS, 141).is_some(), "the others are over");
    }
}
