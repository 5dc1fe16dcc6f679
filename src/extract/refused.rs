//! What a refusal of a session's days means: that every session is refused, that only this one is, or that there is nothing
//! there.
//!
//! Finds out by sending comparable requests. What to do about it is decided elsewhere.

use jiff::ToSpan;
use jiff::civil::Date;

use super::reconcile;
use super::shared::{ExtractError, Shared, run_effort};
use super::windows;
use crate::capture::{CaptureError, PendingRange, Reader};
use crate::days::DateRange;
use crate::zoom::lane::Urgency;
use crate::zoom::{Call, Failure, FailureKind};

/// Zoom's reach may begin up to this many days later than we compute: how long six months are is not documented to the day.
const UNSURE_REACH: i64 = 6;

/// What the refusal of a range means.
pub(super) enum Verdict {
    /// A single page may be at fault: in shorter ranges the other days can be fetched.
    Cut(Vec<DateRange>),
    /// There is nothing in these days.
    Nothing,
    /// Its first days left Zoom's reach earlier than we computed: they are cut off when the chain restarts.
    BeginAgain,
    /// Every session is refused.
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
    if failure.kind.concerns_the_account() && !only_this_session_is_refused(shared, range, failure).await? {
        return Ok(Verdict::WholeRun);
    }
    Ok(Verdict::Failed)
}

/// Whether a range was refused because Zoom's reach begins some days later than we computed. Listing single days tells, as that
/// depends on no session; the result is remembered.
async fn reach_begins_later(shared: &Shared, range: &PendingRange) -> bool {
    let DateRange { from, to } = range.chain.days;
    let _one_at_a_time = shared.reach.learn().await;
    if from < shared.reach.oldest() {
        // Another chain has found out meanwhile.
        return true;
    }
    let last = to.min(shared.reach.by_the_calendar().saturating_add(UNSURE_REACH.days()));
    for day in from.series(1.day()).take_while(|day| *day <= last) {
        let call = Call::ListSessions { days: DateRange::day(day), page_token: None };
        let listed = ask(shared, call).await;
        match listed {
            Err(refused) if refused.is_refused_by_zoom() => {}
            listed if is_answer(&listed) && day > from => {
                tracing::warn!(%day, "Zoom's reports begin later than six months ago");
                shared.reach.begins(day);
                return true;
            }
            _ => return false,
        }
    }
    false
}

fn is_answer(asked: &Result<(), Failure>) -> bool {
    asked.as_ref().map_or_else(Failure::is_not_found_by_zoom, |()| true)
}

/// Whether only this session is refused, perhaps by a firewall: another one is answered.
async fn only_this_session_is_refused(
    shared: &Shared,
    range: &PendingRange,
    failure: &Failure,
) -> Result<bool, ExtractError> {
    if failure.kind == FailureKind::Unreachable {
        return Ok(false);
    }
    let oldest = shared.reach.oldest();
    let but = range.session_id.clone();
    let another =
        shared.with_reader(async move |stored| stored.comparable_session(&but, oldest).await).await?;
    let reachable = another.and_then(|(session_id, days)| Some((session_id, days.since(oldest)?)));
    let Some((session_id, days)) = reachable else { return Ok(false) };
    Ok(is_answer(&first_page(shared, &session_id, days).await))
}

/// Whether "not found" means that these days are empty, not that the session has vanished after yielding pages. For part
/// of a window it is ambiguous: the days count as empty only if Zoom still answers for days that have yielded pages or, if none
/// have, for the whole window. Only Zoom's own word counts: a gateway may reject an id that it cannot parse.
async fn holds_nothing(
    shared: &Shared,
    range: &PendingRange,
    failure: &Failure,
) -> Result<bool, ExtractError> {
    if !failure.is_not_found_by_zoom() {
        return Ok(false);
    }
    // Pages received for these days show that they are not empty.
    if range.chain.pages > 0 || reconcile::has_shown(shared, range).await? {
        return Ok(false);
    }
    let oldest = shared.reach.oldest();
    let (id, window) = (range.chain.id, range.chain.window);
    let look = shared.with_reader(async move |stored: &mut Reader| {
        Ok::<_, CaptureError>((stored.days_with_pages(id, oldest).await?, stored.window(window).await?))
    });
    let (days_with_pages, window) = look.await?;
    let own = range.chain.days;
    let Some(days) = days_with_pages.unwrap_or(window).since(oldest) else { return Ok(false) };
    if own == days {
        return Ok(days_with_pages.is_none());
    }
    let others = first_page(shared, &range.session_id, days).await;
    Ok(others.map_or_else(|ended| days_with_pages.is_none() && ended.is_not_found_by_zoom(), |()| true))
}

/// Whether a single page of the range, or something on it, may be at fault: the session has yielded others in its window. The
/// rest of the days can then be fetched without it.
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
    let days_with_pages =
        shared.with_reader(async move |stored| stored.days_with_pages(id, Date::MIN).await).await?;
    Ok(days_with_pages.is_some())
}

/// Asks for the first page of a session in these days.
async fn first_page(shared: &Shared, session_id: &str, days: DateRange) -> Result<(), Failure> {
    let choice = shared.context.request.item_choice();
    ask(shared, Call::Messages { session_id: session_id.into(), days, page_token: None, choice }).await
}

/// Sends a call only to see whether it is answered.
async fn ask(shared: &Shared, call: Call) -> Result<(), Failure> {
    shared.context.lane.fetch(&call, run_effort(Urgency::Everything), call.any_answer()).await
}
