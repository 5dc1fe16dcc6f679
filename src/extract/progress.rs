//! How far a run has got: counters that many tasks update and anyone may read.
//!
//! Owns the figures and the estimate based on them. Knows no user interface; reporters take a [`Snapshot`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::{Counts, Effect};
use crate::sync::lock;
use crate::zoom::{Stalled, Traffic, Waiting};

/// A counter updated by many tasks. A subtraction may overtake the addition it belongs to: a value below zero reads as zero.
#[derive(Debug, Default)]
pub struct Figure(AtomicI64);

impl Figure {
    pub fn add(&self, count: u64) {
        self.change(count.cast_signed());
    }

    pub fn sub(&self, count: u64) {
        self.change(count.cast_signed().wrapping_neg());
    }

    pub fn change(&self, by: i64) {
        self.0.fetch_add(by, Relaxed);
    }

    pub fn set(&self, count: u64) {
        self.0.store(count.cast_signed(), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed).max(0).cast_unsigned()
    }
}

/// Live counters of one run. They start from what the capture already holds.
#[derive(Debug, Default)]
pub struct Progress {
    pub windows_total: Figure,
    pub windows_listed: Figure,
    pub sessions_total: Figure,
    pub sessions_done: Figure,
    pub units_total: Figure,
    pub units_done: Figure,
    pub units_failed: Figure,
    /// Ranges and lists that failed for good.
    pub failures: Figure,
    pub messages: Figure,
    pub edited_messages: Figure,
    pub deleted_messages: Figure,
    /// The number of chains whose length can be estimated, and the pages still expected of all of them.
    chains: Figure,
    pages_to_come: Figure,
    /// Traffic of earlier runs of the same job, which a restart must not forget.
    earlier: Mutex<TrafficTotals>,
    rate: Mutex<Rate>,
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
    pub windows_total: u64,
    pub windows_listed: u64,
    pub sessions_total: u64,
    pub sessions_done: u64,
    pub units_total: u64,
    pub units_done: u64,
    pub units_failed: u64,
    /// Ranges and listings that failed for good.
    pub failures: u64,
    pub messages: u64,
    pub edited_messages: u64,
    pub deleted_messages: u64,
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
    /// Sets the counters to what the capture holds.
    pub fn set_to(&self, counts: &Counts) {
        let [messages, edited, deleted] = counts.items;
        for (counter, value) in [
            (&self.windows_total, counts.windows_total),
            (&self.windows_listed, counts.windows_listed),
            (&self.sessions_total, counts.sessions_total),
            (&self.sessions_done, counts.sessions_done),
            (&self.units_total, counts.units_total),
            (&self.units_done, counts.units_done),
            (&self.units_failed, counts.units_failed),
            (&self.failures, counts.failures),
            (&self.messages, messages),
            (&self.edited_messages, edited),
            (&self.deleted_messages, deleted),
        ] {
            counter.set(value);
        }
    }

    /// Adds the effect of a change to the counters.
    pub fn count(&self, effect: &Effect) {
        self.sessions_total.add(effect.new_sessions);
        self.units_total.add(effect.new_units);
        self.sessions_done.change(effect.settled.sessions_done);
        self.units_done.change(effect.settled.units_done);
        self.units_failed.change(effect.settled.units_failed);
        self.failures.add(effect.failures);
        let figures = [&self.messages, &self.edited_messages, &self.deleted_messages];
        figures.into_iter().zip(effect.items.0).for_each(|(figure, items)| figure.change(items));
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

    fn units_settled(&self) -> f64 {
        (self.units_done.get() + self.units_failed.get()) as f64
    }

    /// The units expected in all: until everything is listed, those seen so far, scaled up for the windows still to come.
    /// `None` if there is nothing to scale yet.
    fn expected_units(&self) -> Option<f64> {
        let units = self.units_total.get() as f64;
        match (self.windows_total.get(), self.windows_listed.get()) {
            (0, _) | (_, 0) => None,
            (total, listed) => (units > 0.0 || listed == total).then(|| units * total as f64 / listed as f64),
        }
    }

    /// The number of requests still to come: those expected of the chains under way and, for each unit not yet begun, the
    /// average of the others.
    pub fn requests_to_come(&self, traffic: &Traffic) -> Option<f64> {
        let under_way = self.pages_to_come.get() as f64;
        let begun = self.units_settled() + self.chains.get() as f64;
        if begun == 0.0 {
            return None;
        }
        let requests_a_unit = (self.totals(traffic).requests as f64 + under_way) / begun;
        let not_begun = (self.expected_units()? - begun).max(0.0);
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
        let expected_units = self.expected_units();
        let settled = self.units_settled();
        let share =
            expected_units.map(|expected| if expected < 1.0 { 1.0 } else { (settled / expected).min(1.0) });
        let eta_seconds = match (self.requests_to_come(traffic), requests_per_second) {
            // Nobody knows how fast it will be after a pause, or how long a request must be retried.
            (Some(to_come), Some(rate)) if rate > 0.01 && waiting.is_none() && retrying == 0 => {
                Some((to_come / rate).ceil() as u64)
            }
            _ => None,
        };
        Snapshot {
            windows_total: self.windows_total.get(),
            windows_listed: self.windows_listed.get(),
            sessions_total: self.sessions_total.get(),
            sessions_done: self.sessions_done.get(),
            units_total: self.units_total.get(),
            units_done: self.units_done.get(),
            units_failed: self.units_failed.get(),
            failures: self.failures.get(),
            messages: self.messages.get(),
            edited_messages: self.edited_messages.get(),
            deleted_messages: self.deleted_messages.get(),
            traffic: totals,
            requests_per_second: requests_per_second.map(|rate| (rate * 10.0).round() / 10.0),
            percent: share.map(|share| (share * 1000.0).floor() / 10.0),
            eta_seconds,
            waiting,
            retrying,
        }
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
        let pages = pages as u64;
        self.progress.pages_to_come.add(pages);
        match self.pages.replace(pages) {
            Some(before) => self.progress.pages_to_come.sub(before),
            None => self.progress.chains.add(1),
        }
    }
}

impl Drop for Outlook<'_> {
    fn drop(&mut self) {
        if let Some(pages) = self.pages {
            self.progress.pages_to_come.sub(pages);
            self.progress.chains.sub(1);
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
        for (counter, value) in [
            (&progress.windows_total, 2),
            (&progress.windows_listed, 1),
            (&progress.units_total, 10),
            (&progress.units_done, 3),
        ] {
            counter.set(value);
        }
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
