//! The account's rate limits: one for any second (sliding), one for a day.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Limits {
    /// When the requests of the last second were admitted.
    admitted: VecDeque<Instant>,
    /// All arrivals of the last second, for the statistics.
    arrivals: VecDeque<Instant>,
    day: i64,
    today: u64,
    pub(super) most_in_one_second: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Admitted { left: u32 },
    PerSecond,
    Daily,
}

const SECOND: Duration = Duration::from_secs(1);

impl Limits {
    /// Decides whether a request is admitted; a limit of 0 means unlimited. Refused requests do not count against the limit.
    pub(super) fn arrive(&mut self, now: Instant, day: i64, per_second: u32, per_day: u64) -> Verdict {
        for times in [&mut self.admitted, &mut self.arrivals] {
            while times.front().is_some_and(|at| now.duration_since(*at) >= SECOND) {
                times.pop_front();
            }
        }
        self.arrivals.push_back(now);
        self.most_in_one_second = self.most_in_one_second.max(self.arrivals.len() as u32);
        if day != self.day {
            (self.day, self.today) = (day, 0);
        }
        if per_day > 0 && self.today >= per_day {
            return Verdict::Daily;
        }
        if per_second > 0 && self.admitted.len() >= per_second as usize {
            return Verdict::PerSecond;
        }
        self.today += 1;
        if per_second > 0 {
            self.admitted.push_back(now);
        }
        Verdict::Admitted { left: per_second.saturating_sub(self.admitted.len() as u32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_admits_more_than_the_limit() {
        let start = super::super::calendar::now();
        let mut limits = Limits::default();
        let mut admitted = Vec::new();
        for step in 0..5_000 {
            let now = start + Duration::from_millis(step * 7);
            if let Verdict::Admitted { .. } = limits.arrive(now, 0, 20, 0) {
                admitted.push(now);
            }
        }
        for (index, at) in admitted.iter().enumerate() {
            let within =
                admitted[index..].iter().take_while(|later| later.duration_since(*at) < SECOND).count();
            assert!(within <= 20);
        }
        assert!(admitted.len() > 600, "refusals do not count: {}", admitted.len());
    }

    #[test]
    fn a_day_ends_and_begins_anew() {
        let now = super::super::calendar::now();
        let mut limits = Limits::default();
        let verdicts: Vec<_> =
            [0, 0, 0, 1].map(|day| limits.arrive(now, day, 0, 2) == Verdict::Daily).to_vec();
        assert_eq!(verdicts, [false, false, true, false]);
    }
}
