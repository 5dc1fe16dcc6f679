//! How far a run has got: figures that many tasks update and anyone may read.
//!
//! Owns the figures and the estimate based on them. Knows no user interface; reporters take a [`Snapshot`].

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::{Counts, Effect};
use crate::sync::lock;
use crate::zoom::{Stalled, Traffic, Waiting};

/// A subtraction may overtake the addition that it belongs to: less than nothing reads as nothing.
fn unsigned(figure: i64) -> u64 {
    figure.max(0).cast_unsigned()
}

/// Live figures of one run. They start from what the capture already holds.
#[derive(Debug, Default)]
pub struct Progress {
    counts: Mutex<Counts<i64>>,
    to_come: Mutex<ToCome>,
    /// Traffic of earlier runs of the same job, which a restart must not forget.
    earlier: Mutex<TrafficTotals>,
    rate: Mutex<Rate>,
}

/// The number of chains whose length can be estimated, and the pages still expected of all of them.
#[derive(Debug, Clone, Copy, Default)]
struct ToCome {
    chains: u64,
    pages: u64,
}

/// Totals of a job's traffic with Zoom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficTotals {
    pub requests: u64,
    pub retries: u64,
    pub rate_limited: u64,
    pub bytes_received: u64,
}

/// A smoothed request rate.
#[derive(Debug, Default)]
struct Rate {
    at: Option<Duration>,
    requests: u64,
    per_second: Option<f64>,
}

/// All figures at one moment, as shown by the API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    #[serde(flatten)]
    pub counts: Counts,
    pub traffic: TrafficTotals,
    /// Over about the last ten seconds; null before there is a measurement.
    pub requests_per_second: Option<f64>,
    /// 0 to 100; null while nothing is known of the size.
    pub percent: Option<f64>,
    pub eta_seconds: Option<u64>,
    pub waiting: Option<Waiting>,
    /// Requests waiting for their next attempt, if they are most of what is left to do; else 0.
    #[serde(default)]
    pub retrying: u64,
}

impl Progress {
    /// Sets the figures to what the capture holds.
    pub fn set_to(&self, counts: &Counts) {
        *lock(&self.counts) = counts.map(u64::cast_signed);
    }

    /// Adds the effect of a change to the figures.
    pub fn count(&self, effect: &Effect) {
        let mut counts = lock(&self.counts);
        counts.sessions_total += effect.new_sessions.cast_signed();
        counts.units_total += effect.new_units.cast_signed();
        counts.sessions_done += effect.settled.sessions_done;
        counts.units_done += effect.settled.units_done;
        counts.units_failed += effect.settled.units_failed;
        counts.failures += effect.failures.cast_signed();
        let [messages, edited, deleted] = effect.items.0;
        counts.messages += messages;
        counts.edited_messages += edited;
        counts.deleted_messages += deleted;
    }

    /// Counts one more window of which no list is left to fetch: each was read, or given up.
    pub fn window_settled(&self) {
        lock(&self.counts).windows_listed += 1;
    }

    fn counts(&self) -> Counts {
        lock(&self.counts).map(unsigned)
    }

    /// Sets the totals of earlier runs, which this run adds to.
    pub fn resume_from(&self, earlier: TrafficTotals) {
        *lock(&self.earlier) = earlier;
    }

    pub fn totals(&self, traffic: &Traffic) -> TrafficTotals {
        let earlier = *lock(&self.earlier);
        TrafficTotals {
            requests: earlier.requests + traffic.requests.load(Relaxed),
            retries: earlier.retries + traffic.retries.load(Relaxed),
            rate_limited: earlier.rate_limited + traffic.rate_limited.load(Relaxed),
            bytes_received: earlier.bytes_received + traffic.bytes.load(Relaxed),
        }
    }

    /// The number of requests still to come: those expected of the chains under way and, for each unit not yet begun, the
    /// average of the others.
    pub fn requests_to_come(&self, traffic: &Traffic) -> Option<f64> {
        let (counts, to_come) = (self.counts(), *lock(&self.to_come));
        let under_way = to_come.pages as f64;
        let begun = units_settled(&counts) + to_come.chains as f64;
        if begun == 0.0 {
            return None;
        }
        let requests_a_unit = (self.totals(traffic).requests as f64 + under_way) / begun;
        let not_begun = (expected_units(&counts)? - begun).max(0.0);
        Some(under_way + not_begun * requests_a_unit)
    }

    /// The outlook of a new chain, still without an estimate.
    pub fn outlook(&self) -> Outlook<'_> {
        Outlook { progress: self, pages: None }
    }

    /// Takes the figures; `now` is monotonic and feeds the rate.
    pub fn snapshot(&self, traffic: &Traffic, stalled: Stalled, now: Duration) -> Snapshot {
        let Stalled { waiting, retrying } = stalled;
        let totals = self.totals(traffic);
        let sent = traffic.requests.load(Relaxed);
        let requests_per_second = lock(&self.rate).measure(now, sent);
        let counts = self.counts();
        let settled = units_settled(&counts);
        let share = expected_units(&counts)
            .map(|expected| if expected < 1.0 { 1.0 } else { (settled / expected).min(1.0) });
        let eta_seconds = match (self.requests_to_come(traffic), requests_per_second) {
            // Nobody knows how fast it will be after a pause, or how long a request must be retried.
            (Some(to_come), Some(rate)) if rate > 0.01 && waiting.is_none() && retrying == 0 => {
                Some((to_come / rate).ceil() as u64)
            }
            _ => None,
        };
        Snapshot {
            counts,
            traffic: totals,
            requests_per_second: requests_per_second.map(|rate| (rate * 10.0).round() / 10.0),
            percent: share.map(|share| (share * 1000.0).floor() / 10.0),
            eta_seconds,
            waiting,
            retrying,
        }
    }
}

fn units_settled(counts: &Counts) -> f64 {
    (counts.units_done + counts.units_failed) as f64
}

/// The units expected in all: until everything is listed, those seen so far, scaled up for the windows still to come. `None` if
/// there is nothing to scale yet.
fn expected_units(counts: &Counts) -> Option<f64> {
    let units = counts.units_total as f64;
    match (counts.windows_total, counts.windows_listed) {
        (0, _) | (_, 0) => None,
        (total, listed) => (units > 0.0 || listed == total).then(|| units * total as f64 / listed as f64),
    }
}

/// The pages still expected of one chain; withdrawn when the chain ends.
#[derive(Debug)]
pub struct Outlook<'a> {
    progress: &'a Progress,
    pages: Option<u64>,
}

impl Outlook<'_> {
    pub fn set(&mut self, pages: f64) {
        let mut to_come = lock(&self.progress.to_come);
        let pages = pages as u64;
        match self.pages.replace(pages) {
            Some(before) => to_come.pages -= before,
            None => to_come.chains += 1,
        }
        to_come.pages += pages;
    }
}

impl Drop for Outlook<'_> {
    fn drop(&mut self) {
        if let Some(pages) = self.pages {
            let mut to_come = lock(&self.progress.to_come);
            to_come.pages -= pages;
            to_come.chains -= 1;
        }
    }
}

impl Rate {
    /// An exponential moving average over about ten seconds.
    fn measure(&mut self, now: Duration, requests: u64) -> Option<f64> {
        let Some(at) = self.at else {
            *self = Self { at: Some(now), requests, per_second: None };
            return None;
        };
        let passed = now.saturating_sub(at).as_secs_f64();
        if passed < 0.25 {
            return self.per_second;
        }
        let current = (requests - self.requests) as f64 / passed;
        let weight = 1.0 - (-passed / 10.0).exp();
        let smoothed = self.per_second.map_or(current, |old| old + (current - old) * weight);
        *self = Self { at: Some(now), requests, per_second: Some(smoothed) };
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_come_is_what_chains_have_shown_and_the_like_for_what_has_not_begun() {
        let (progress, traffic) = (Progress::default(), Traffic::default());
        let to_come = || progress.requests_to_come(&traffic);
        assert_eq!(to_come(), None, "nothing is known");
        let counts = Counts {
            windows_total: 2,
            windows_listed: 1,
            units_total: 10,
            units_done: 3,
            ..Counts::default()
        };
        progress.set_to(&counts);
        traffic.requests.store(20, Relaxed);
        assert_eq!(to_come(), Some(17.0 * (20.0 / 3.0)), "the other window is taken to have as many units");
        let mut outlook = progress.outlook();
        assert_eq!(to_come(), Some(17.0 * (20.0 / 3.0)), "it has shown nothing yet");
        outlook.set(100.0);
        outlook.set(60.0);
        assert_eq!(to_come(), Some(60.0 + 16.0 * (80.0 / 4.0)));
        drop(outlook);
        assert_eq!(to_come(), Some(17.0 * (20.0 / 3.0)));
    }
}
