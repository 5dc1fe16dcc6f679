//! What a refusal of a session's days means: that everybody is refused, that the session alone is, or that there is nothing.
//!
//! Finds out by sending comparable requests. What is done about it is not decided here.

use jiff::ToSpan;
use jiff::civil::Date;

use super::reconcile;
use super::shared::{ExtractError, Shared, run_effort};
use super::windows;
use crate::capture::{CaptureError, PendingRange, Reader};
use crate::days::DateRange;
use crate::zoom::lane::{FetchError, Urgency};
use crate::zoom::{Call, Failure, FailureKind};

/// Zoom's reach may begin up to so many days later than we compute: how long six months are is not documented to the day.
const UNSURE_REACH: i64 = 6;

/// What the refusal of a range means.
pub(super) enum Verdict {
    /// It may be one page that cannot be had: the other days can be, in shorter ranges.
    Cut(Vec<DateRange>),
    /// There is nothing in these days.
    Nothing,
    /// Its first days had left Zoom's reach earlier than we thought: they are cut off when it begins again.
    BeginAgain,
    /// Everybody is refused.
    WholeRun,
    Failed,
}

pub(super) async fn verdict(
    shared: &Shared,
    range: &PendingRange,
    is_first_page: bool,
    failure: &Failure,
) -> Result<Verdict, ExtractError> {
    if let Some(parts) = windows::cut(range.chain.days)
        && may_be_one_page(shared, range, failure).await?
    {
        return Ok(Verdict::Cut(parts));
    }
    if failure.kind == FailureKind::NotFound && holds_nothing(shared, range, failure).await? {
        return Ok(Verdict::Nothing);
    }
    if is_first_page && failure.is_refused_by_zoom() && reach_begins_later(shared, range).await {
        return Ok(Verdict::BeginAgain);
    }
    if failure.kind.concerns_the_account() && !is_alone(shared, range, failure).await? {
        return Ok(Verdict::WholeRun);
    }
    Ok(Verdict::Failed)
}

/// Whether a range was refused because Zoom's reach begins some days later than ours. Which days are listed tells, as that
/// concerns no session; it is remembered.
async fn reach_begins_later(shared: &Shared, range: &PendingRange) -> bool {
    let DateRange { from, to } = range.chain.days;
    let learning = shared.reach.learn().await;
    if from < shared.reach.oldest() {
        // Another has found out meanwhile.
        return true;
    }
    let last = to.min(shared.reach.by_the_calendar().saturating_add(UNSURE_REACH.days()));
    for day in from.series(1.day()).take_while(|day| *day <= last) {
        let call = Call::ListSessions { days: DateRange::day(day), page_token: None };
        let listed = ask(shared, call).await;
        match listed {
            Err(FetchError::Failed(refused)) if refused.is_refused_by_zoom() => {}
            listed if is_answer(&listed) && day > from => {
                tracing::warn!(%day, "Zoom's reach begins later than six months ago");
                learning.is(day);
                return true;
            }
            _ => return false,
        }
    }
    false
}

fn is_answer(asked: &Result<(), FetchError>) -> bool {
    asked.as_ref().map_or_else(FetchError::is_not_found_by_zoom, |()| true)
}

/// Whether this was refused for one session only, by a firewall perhaps: another is answered.
async fn is_alone(shared: &Shared, range: &PendingRange, failure: &Failure) -> Result<bool, ExtractError> {
    if failure.kind == FailureKind::Unreachable {
        return Ok(false);
    }
    let oldest = shared.reach.oldest();
    let but = range.session_id.clone();
    let another = shared.with_reader(async move |stored| stored.another_session(&but, oldest).await).await?;
    let reachable = another.and_then(|(session_id, days)| Some((session_id, days.since(oldest)?)));
    let Some((session_id, days)) = reachable else { return Ok(false) };
    Ok(is_answer(&first_page(shared, &session_id, days).await))
}

/// Whether "not found" means that there is nothing in these days, not that the session is gone after it has shown pages.
/// Of a part of a window it is ambiguous: these days count as empty only if Zoom says so twice and days of the session that have
/// shown pages are still answered, or its whole window, if none have. Only Zoom's own word counts: a gateway may refuse what it
/// cannot read in an id.
async fn holds_nothing(
    shared: &Shared,
    range: &PendingRange,
    failure: &Failure,
) -> Result<bool, ExtractError> {
    if !failure.is_not_found_by_zoom() {
        return Ok(false);
    }
    // What was received of these days says that there is something.
    if range.chain.pages > 0 || reconcile::has_shown(shared, range).await? {
        return Ok(false);
    }
    let oldest = shared.reach.oldest();
    let (id, window) = (range.chain.id, range.chain.window);
    let look = shared.with_reader(async move |stored: &mut Reader| {
        Ok::<_, CaptureError>((stored.shown_in(id, oldest).await?, stored.window(window).await?))
    });
    let (shown_in, window) = look.await?;
    let own = range.chain.days;
    let Some(days) = shown_in.unwrap_or(window).since(oldest) else { return Ok(false) };
    if own == days {
        return Ok(shown_in.is_none());
    }
    let again = first_page(shared, &range.session_id, own).await;
    if !again.is_err_and(|ended| ended.is_not_found_by_zoom()) {
        return Ok(false);
    }
    let others = first_page(shared, &range.session_id, days).await;
    Ok(others.map_or_else(|ended| shown_in.is_none() && ended.is_not_found_by_zoom(), |()| true))
}

/// Whether it may be one page of the range that cannot be had, or what is on it: the session has shown others in its month. The
/// rest of the days can then be had without it.
async fn may_be_one_page(
    shared: &Shared,
    range: &PendingRange,
    failure: &Failure,
) -> Result<bool, ExtractError> {
    if !matches!(
        failure.kind,
        FailureKind::ServerError
            | FailureKind::Connection
            | FailureKind::UnreadableAnswer
            | FailureKind::AnswerTooLarge
    ) {
        return Ok(false);
    }
    let id = range.chain.id;
    let shown_in = shared.with_reader(async move |stored| stored.shown_in(id, Date::MIN).await).await?;
    Ok(shown_in.is_some())
}

/// The first page of a session in these days.
async fn first_page(shared: &Shared, session_id: &str, days: DateRange) -> Result<(), FetchError> {
    let choice = shared.context.request.item_choice();
    ask(shared, Call::Messages { session_id: session_id.into(), days, page_token: None, choice }).await
}

/// Only to see whether there is an answer.
async fn ask(shared: &Shared, call: Call) -> Result<(), FetchError> {
    shared.context.lane.fetch(&call, run_effort(Urgency::Everything), call.any_answer()).await
}
