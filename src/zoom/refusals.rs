//! Tells a call that is refused for its own reasons, though with 429, from calls that come too fast.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::retry::RetryPolicy;

/// So many 429s in a row are nothing unusual: the call is sent again at once.
const QUICK: u32 = 2;
/// A call that gets them for its own reasons waits up to this many times longer than after server errors: each slows all calls
/// down.
const PATIENCE: u32 = 10;
/// It fails after this many of those, which takes hours.
const MOST: u32 = 60;
/// A call that somebody waits for, or that can be done without, fails after this many, whatever the reason.
const FEW: u32 = 10;
/// After so many in a row, it takes another answer to show that others are still answered.
const STRETCH: u32 = 10;

/// How the calls of an account have fared so far.
#[derive(Debug, Default)]
pub struct Fortunes {
    /// Answers other than 429.
    answered: AtomicU64,
    /// How many rows of 429s have begun: any other outcome ends a call's row.
    refused: AtomicU64,
}

impl Fortunes {
    pub fn note_answer(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    fn so_far(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.refused.load(Relaxed))
    }
}

/// The 429s that a call has got, one after the other.
#[derive(Debug, Default)]
pub struct InARow {
    pub count: u32,
    /// Those that seem to be for the call's own reasons.
    own: u32,
    /// How calls had fared when it got the first of them.
    before: (u64, u64),
    /// How many had been answered when the current stretch of them began.
    answered_before: u64,
}

impl InARow {
    pub fn note(&mut self, fortunes: &Fortunes) {
        self.count += 1;
        if self.count == 1 {
            fortunes.refused.fetch_add(1, Relaxed);
            self.before = fortunes.so_far();
        }
        if self.begins_stretch() {
            (self.answered_before, _) = fortunes.so_far();
        }
        self.own += u32::from(self.are_its_own(fortunes));
    }

    /// Whether to find out if another call would be answered: perhaps none is left that would show it.
    pub fn need_comparison(&self) -> bool {
        self.count > 1 && self.begins_stretch()
    }

    fn begins_stretch(&self) -> bool {
        self.count % STRETCH == 1
    }

    /// Whether to give the call up; `is_patient` unless somebody waits for it, or it can be done without.
    pub fn are_too_many(&self, fortunes: &Fortunes, is_patient: bool) -> bool {
        if is_patient { self.own >= MOST && self.are_its_own(fortunes) } else { self.count >= FEW }
    }

    /// How long to wait before the call is sent again, if at all.
    pub fn delay(&self, fortunes: &Fortunes, usual: RetryPolicy, random: f64) -> Option<Duration> {
        let further = self.count.checked_sub(QUICK).filter(|further| *further > 0)?;
        let cap = if self.are_its_own(fortunes) { usual.cap * PATIENCE } else { usual.base * 2 };
        Some(RetryPolicy { cap, ..usual }.backoff(further, random))
    }

    /// Whether the call is refused for its own reasons: others are answered, and since its first refusal hardly any other has
    /// been refused.
    fn are_its_own(&self, fortunes: &Fortunes) -> bool {
        let (answered, refused) = fortunes.so_far();
        answered > self.answered_before && (refused - self.before.1) * 10 <= answered - self.before.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_refused_for_its_own_reasons_while_others_are_answered() {
        let fortunes = Fortunes::default();
        let (mut own, mut other) = (InARow::default(), InARow::default());
        own.note(&fortunes);
        own.note(&fortunes);
        assert!(!own.are_its_own(&fortunes), "nobody is answered");
        fortunes.note_answer();
        assert!(own.are_its_own(&fortunes));
        other.note(&fortunes);
        assert!(!own.are_its_own(&fortunes), "half of the others are refused");
        (0..9).for_each(|_| fortunes.note_answer());
        assert!(own.are_its_own(&fortunes) && other.are_its_own(&fortunes));
    }

    #[test]
    fn a_call_waits_long_and_fails_only_if_it_alone_is_refused() {
        let usual = RetryPolicy::default();
        for others_are_answered in [false, true] {
            let (fortunes, mut row) = (Fortunes::default(), InARow::default());
            let mut delays = Vec::new();
            // Nothing can be said of the first of each stretch.
            for _ in 0..MOST + MOST.div_ceil(STRETCH - 1) {
                assert!(!row.are_too_many(&fortunes, true));
                row.note(&fortunes);
                if others_are_answered {
                    fortunes.note_answer();
                }
                delays.push(row.delay(&fortunes, usual, 1.0));
                assert_eq!(row.need_comparison(), [11, 21, 31, 41, 51, 61].contains(&row.count));
            }
            assert_eq!(delays[..QUICK as usize], [None; QUICK as usize]);
            let longest = if others_are_answered { usual.cap * PATIENCE } else { usual.base * 2 };
            assert_eq!(delays.into_iter().max().unwrap(), Some(longest));
            assert_eq!(row.are_too_many(&fortunes, true), others_are_answered);
            assert!(row.are_too_many(&fortunes, false));
        }
    }

    #[test]
    fn refusals_while_all_were_refused_do_not_count_against_a_call() {
        let (fortunes, mut row) = (Fortunes::default(), InARow::default());
        for _ in 0..2 * MOST {
            row.note(&fortunes);
            // One answer says little about the time after it.
            if row.count == 2 {
                fortunes.note_answer();
            }
        }
        fortunes.note_answer();
        row.note(&fortunes);
        assert!(!row.are_too_many(&fortunes, true));
    }
}
