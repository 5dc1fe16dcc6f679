//! Decides which chains of a run are split, from its pace and from what splitting has cost so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::progress::Progress;
use super::split::{self, Days, RunForecast, Seen, Split};
use crate::zoom::Lane;

#[derive(Debug)]
pub(super) struct Splitter {
    lane: Arc<Lane>,
    progress: Arc<Progress>,
    /// The number of chains being followed.
    chains: AtomicUsize,
    /// How many more requests could be in flight once no chain is left to start: long chains are split to use them.
    idle: AtomicUsize,
    /// Requests that splitting has cost.
    spent: AtomicU64,
}

impl Splitter {
    pub fn new(lane: Arc<Lane>, progress: Arc<Progress>) -> Self {
        Self {
            lane,
            progress,
            chains: AtomicUsize::default(),
            idle: AtomicUsize::default(),
            spent: AtomicU64::default(),
        }
    }

    /// Reports how many chains are being followed, and how many more requests could be in flight.
    pub fn update_load(&self, chains: usize, idle: usize) {
        self.chains.store(chains, Relaxed);
        self.idle.store(idle, Relaxed);
    }

    /// The time per page of a chain, and the estimated rest of the run; `Duration::MAX` before there is an estimate.
    pub fn forecast(&self) -> RunForecast {
        let rest_of_run = self.requests_to_come().map_or(Duration::MAX, |to_come| {
            Duration::from_secs_f64(to_come / self.lane.most_requests_per_second())
        });
        RunForecast { time_of_a_page: self.lane.time_of_a_page(), rest_of_run }
    }

    /// Decides whether to split a chain before its first page, judging by its session's pages in another window.
    pub fn before_start(&self, days: &Days, pages_elsewhere: i64) -> Option<Split> {
        let split = split::before_start(days, pages_elsewhere, self.forecast())?;
        self.try_charge(&split, &Seen::default()).then_some(split)
    }

    /// Decides whether to split a chain under way: if it turns out too long, or for idle callers.
    pub fn while_running(&self, days: &Days, seen: &Seen, forecast: RunForecast) -> Option<Split> {
        let idle = self.idle.load(Relaxed);
        let split = split::while_running(days, seen, forecast).or_else(|| {
            let chains = self.chains.load(Relaxed).max(1);
            let (mean, idle) = (self.requests_to_come()? / chains as f64, idle.div_ceil(chains));
            split::for_idle(days, seen, forecast, mean, idle)
        })?;
        if !self.try_charge(&split, seen) {
            return None;
        }
        self.idle.store(idle.saturating_sub(split.parts.len() - 1), Relaxed);
        Some(split)
    }

    /// Charges a split to the allowance for splitting; false, and nothing is charged, if that is too small.
    fn try_charge(&self, split: &Split, seen: &Seen) -> bool {
        let to_come = self.requests_to_come().unwrap_or_default();
        let requests = self.lane.traffic.requests.load(Relaxed) + to_come as u64;
        let costs = split.costs(seen);
        let spend = |spent| split::affordable(costs, split.worth, spent, requests).then_some(spent + costs);
        self.spent.fetch_update(Relaxed, Relaxed, spend).is_ok()
    }

    fn requests_to_come(&self) -> Option<f64> {
        self.progress.requests_to_come(&self.lane.traffic)
    }
}
