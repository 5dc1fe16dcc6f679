//! How much a job keeps in flight: with a limit, enough to use it fully; without one, enough to keep the processors busy.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::lane::Lane;

/// Without pacing the processors are the limit; two of them read about this many pages a second.
const UNPACED: f64 = 1_500.0;
/// Without pacing, about this many bytes of answers must be in flight to keep the processors busy.
const UNPACED_BYTES: u64 = 768 << 10;
/// Without pacing, this many chains are followed for each request in flight: while some wait for their commit others send, and
/// commits are larger. More would only take memory.
const UNPACED_CHAINS: usize = 3;
/// How many chains to follow for each request a second: many, so that long ones are found early; but each must get its turn
/// long before its page token expires (15 minutes). With one turn in four (`turns`) it waits for 32 s at the full pace, and
/// for eleven minutes at the slowest (`budget`).
const CHAINS: f64 = 8.0;
/// However high the limit is, no more chains than this.
const MOST_CHAINS: f64 = 512.0;
/// The assumed latency before the first answer.
const FIRST_GUESS: Duration = Duration::from_millis(100);

/// How long an answer takes, smoothed, in microseconds.
#[derive(Debug)]
pub(super) struct Latency(AtomicU64);

impl Default for Latency {
    fn default() -> Self {
        Self(AtomicU64::new(FIRST_GUESS.as_micros() as u64))
    }
}

impl Latency {
    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Relaxed))
    }

    pub(super) fn took(&self, elapsed: Duration) {
        let old = self.0.load(Relaxed);
        // It does not matter if one of two concurrent updates is lost.
        self.0.store((old * 15 + elapsed.as_micros() as u64) / 16, Relaxed);
    }
}

impl Lane {
    /// How many requests in flight it takes to use the budget fully: the rate times the latency, doubled because answers come
    /// unevenly. Without a limit, as many as keep the processors busy.
    pub fn target_in_flight(&self) -> usize {
        let useful = match self.account.budget.limit() {
            Some(limit) => (limit * self.latency.get().as_secs_f64() * 2.0).ceil() as usize + 2,
            None => ((UNPACED_BYTES / self.traffic.mean_answer()) as usize).max(4),
        };
        useful.min(self.account.settings.in_flight)
    }

    /// How many chains of pages to follow at the same time. With a limit, more than can be in flight at once, so that chains
    /// found to be long can be preferred to the others. Without one, enough to fill commits.
    pub fn target_chains(&self) -> usize {
        match self.account.budget.limit() {
            Some(_) => {
                let jobs = self.account.lanes.load(Relaxed).max(1) as f64;
                let chains = (self.most_requests_per_second() / jobs * CHAINS).min(MOST_CHAINS);
                self.target_in_flight().max(chains as usize)
            }
            None => self.target_in_flight() * UNPACED_CHAINS,
        }
    }

    /// What the limit and the latency allow.
    pub fn most_requests_per_second(&self) -> f64 {
        let in_flight = self.account.settings.in_flight as f64;
        let limit = self.account.budget.limit().unwrap_or(UNPACED);
        limit.min(in_flight / self.latency.get().as_secs_f64().max(0.001))
    }

    /// Whether the limit is this job's bottleneck, so that a caller with an answer can wait for `pause` before its next request
    /// at no cost: enough others are in line meanwhile.
    pub fn has_time_for(&self, pause: Duration) -> bool {
        let twice = pause.as_secs_f64() * 2.0;
        self.account.budget.limit().is_some_and(|limit| self.turns.waiting() as f64 >= limit * twice)
    }

    /// How long a chain in progress takes for each page. Without a limit, it takes turns with the others and is not preferred.
    pub fn time_of_a_page(&self) -> Duration {
        let in_turn = self.target_in_flight() as f64 / UNPACED;
        match self.account.budget.limit() {
            Some(_) => self.latency.get(),
            None => self.latency.get().max(Duration::from_secs_f64(in_turn)),
        }
    }
}
