//! How far back Zoom answers: by the calendar, and as learned from its answers; and what became of days that have left its
//! reach.

use std::sync::Mutex;

use jiff::ToSpan;
use jiff::civil::Date;

use super::refused::{ask, is_answer};
use super::shared::{ExtractError, Shared};
use super::windows;
use crate::capture::{Change, Failed, Meta, PendingRange};
use crate::clock::SharedClock;
use crate::days::DateRange;
use crate::sync::lock;
use crate::zoom::{Call, Failure, FailureKind};

/// Zoom's reach may begin up to this many days later than we compute: how long six months are is not documented to the day.
const UNSURE_REACH: i64 = 6;

#[derive(Debug)]
pub(super) struct Reach {
    clock: SharedClock,
    /// The oldest day that Zoom was found to answer for, if that is later than six months ago.
    told: Mutex<Date>,
    /// Held by the one chain that is finding out; others wait for it.
    learning: tokio::sync::Mutex<()>,
}

impl Reach {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, told: Mutex::new(Date::MIN), learning: tokio::sync::Mutex::default() }
    }

    /// The oldest day that Zoom still answers for.
    pub fn oldest(&self) -> Date {
        let told = *lock(&self.told);
        self.by_the_calendar().max(told)
    }

    /// Remembers that Zoom answers from this day on.
    pub fn begins(&self, day: Date) {
        *lock(&self.told) = day;
    }

    fn by_the_calendar(&self) -> Date {
        windows::oldest_reachable(self.clock.today())
    }
}

impl Shared {
    /// Whether the first of these days have left Zoom's reach: how Zoom answers then is not known.
    pub fn has_lost_days_of(&self, days: DateRange) -> bool {
        days.from < self.reach.oldest()
    }

    /// Whether a request for these days failed because the first of them have left Zoom's reach meanwhile.
    pub fn has_left_reach(&self, failure: &Failure, days: DateRange) -> bool {
        failure.kind.concerns_the_request() && self.has_lost_days_of(days)
    }

    /// The failure to store for days that Zoom no longer answers for.
    pub fn out_of_reach(&self) -> Failed {
        let oldest = self.reach.oldest();
        let message = format!(
            "these days passed out of the six months Zoom reports on before they were fetched (it now reports from {oldest})"
        );
        self.failed(&Failure::without_answer(FailureKind::OutOfReach, message))
    }
}

/// Believes what an earlier run found out, that Zoom answers from this day on, unless Zoom answers for the day before.
pub(super) async fn recall(shared: &Shared, day: Date) {
    let before = Call::sessions(DateRange::day(day.saturating_sub(1.day())));
    if !is_answer(&ask(shared, &before).await) {
        shared.reach.begins(day);
    }
}

/// Whether a range was refused because Zoom's reach begins some days later than we computed. Listing single days tells, as that
/// depends on no session; the result is remembered.
pub(super) async fn reach_begins_later(shared: &Shared, range: &PendingRange) -> Result<bool, ExtractError> {
    let from = range.chain.days.from;
    let _one_at_a_time = shared.reach.learning.lock().await;
    if from < shared.reach.oldest() {
        // Another chain has found out meanwhile.
        return Ok(true);
    }
    let last = shared.reach.by_the_calendar().saturating_add(UNSURE_REACH.days());
    for day in from.series(1.day()).take_while(|day| *day <= last) {
        let listed = ask(shared, &Call::sessions(DateRange::day(day))).await;
        match listed {
            Err(refused) if refused.is_refused_by_zoom() => {}
            listed if is_answer(&listed) && day > from => {
                tracing::warn!(%day, "Zoom's reports begin later than six months ago");
                shared.reach.begins(day);
                // For later runs: the days before it would be refused one by one.
                shared.commit(Change::SetMeta(vec![(Meta::ReachBegins, day.to_string())])).await?;
                return Ok(true);
            }
            _ => return Ok(false),
        }
    }
    Ok(false)
}
