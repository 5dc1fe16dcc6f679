//! How far back Zoom answers: by the calendar, and as learned from its answers; and how days that have left its reach are
//! reported.

use std::sync::Mutex;

use jiff::ToSpan;
use jiff::civil::Date;

use super::refused::{ask, is_answer};
use super::shared::{ExtractError, Shared, run_effort};
use super::windows;
use crate::capture::{Change, Failed, Meta, PendingRange};
use crate::clock::SharedClock;
use crate::days::DateRange;
use crate::sync::lock;
use crate::zoom::lane::{Effort, Urgency};
use crate::zoom::{Call, Failure, FailureKind};

/// Zoom's reach may begin up to this many days later than we compute: how long six months are is not documented to the day.
const UNSURE_REACH: i64 = 6;
/// Few: checking whether what an earlier run learned still holds is not worth a long wait.
const ATTEMPTS_AT_A_LOOK: u32 = 3;

#[derive(Debug)]
pub(super) struct Reach {
    clock: SharedClock,
    /// The oldest day that Zoom was found to answer for, if that is later than six months ago.
    learned: Mutex<Date>,
    /// Held by the one chain that is finding out; others wait for it.
    learning: tokio::sync::Mutex<()>,
}

impl Reach {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, learned: Mutex::new(Date::MIN), learning: tokio::sync::Mutex::default() }
    }

    /// The oldest day that Zoom still answers for.
    pub fn oldest(&self) -> Date {
        let learned = *lock(&self.learned);
        self.by_the_calendar().max(learned)
    }

    /// Remembers that Zoom answers from this day on.
    fn learn(&self, day: Date) {
        *lock(&self.learned) = day;
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
            "these days left the six months that Zoom's reports cover before they were fetched (they now begin on {oldest})"
        );
        self.failed(&Failure::without_answer(FailureKind::OutOfReach, message))
    }
}

/// Adopts the first day of Zoom's reach as an earlier run learned it, unless Zoom now answers for the day before. Does not wait
/// out an outage: the job may have other things to do.
pub(super) async fn recall(shared: &Shared, day: Date) {
    if day <= shared.reach.by_the_calendar() {
        return;
    }
    let before = Call::sessions(DateRange::day(day.saturating_sub(1.day())));
    let look = Effort {
        at_most: Some(ATTEMPTS_AT_A_LOOK),
        waits_out_outages: false,
        ..run_effort(Urgency::Everything)
    };
    if !is_answer(&shared.context.lane.fetch(&before, look, before.any_answer()).await) {
        shared.reach.learn(day);
    }
}

/// Whether a range was refused because Zoom's reach begins some days later than we computed. Lists single days to find out, as
/// that depends on no session; remembers the result.
pub(super) async fn learn_whether_reach_begins_later(
    shared: &Shared,
    range: &PendingRange,
) -> Result<bool, ExtractError> {
    let from = range.chain.days.from;
    let _one_at_a_time = shared.reach.learning.lock().await;
    if from < shared.reach.oldest() {
        // Another chain has found out meanwhile.
        return Ok(true);
    }
    let last = shared.reach.by_the_calendar().saturating_add(UNSURE_REACH.days());
    for day in from.series(1.day()).take_while(|day| *day <= last) {
        match ask(shared, &Call::sessions(DateRange::day(day)), run_effort(Urgency::Everything)).await? {
            Err(refused) if refused.is_refused_by_zoom() => {}
            listed if is_answer(&listed) && day > from => {
                tracing::warn!(%day, "Zoom's reports begin later than six months ago");
                shared.reach.learn(day);
                // Stored so that later runs need not find this out again, day by day.
                shared.commit(Change::SetMeta(vec![(Meta::ReachBegins, day.to_string())])).await?;
                return Ok(true);
            }
            _ => return Ok(false),
        }
    }
    Ok(false)
}
