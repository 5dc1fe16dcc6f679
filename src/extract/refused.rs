//! What a refusal of a session's days means: that every session is refused, that only this one is, or that there is nothing
//! there.
//!
//! Finds out by sending comparable requests. What to do about it is decided elsewhere.

use jiff::civil::Date;

use super::reach::reach_begins_later;
use super::reconcile;
use super::shared::{ExtractError, Shared, run_effort};
use super::windows;
use crate::capture::PendingRange;
use crate::days::DateRange;
use crate::zoom::lane::Urgency;
use crate::zoom::{Call, Failure, FailureKind};

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
    if is_first_page && failure.is_refused_by_zoom() && reach_begins_later(shared, range).await? {
        return Ok(Verdict::BeginAgain);
    }
    if failure.kind.concerns_the_account() && !only_this_session_is_refused(shared, range, failure).await? {
        return Ok(Verdict::WholeRun);
    }
    Ok(Verdict::Failed)
}

pub(super) fn is_answer(asked: &Result<(), Failure>) -> bool {
    asked.as_ref().map_or_else(Failure::is_not_found_by_zoom, |()| true)
}

/// Whether only this session is refused, perhaps by a firewall: another one is answered. Several are asked for, as there may be
/// others that are refused for reasons of their own.
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
    let others = shared.with_reader(async move |stored| stored.comparable_sessions(&but, oldest).await);
    for (session_id, days) in others.await? {
        let Some(days) = days.since(oldest) else { continue };
        match first_page(shared, &session_id, days).await {
            Err(failure) if failure.kind == FailureKind::Unreachable => return Ok(false),
            answer if is_answer(&answer) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
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
    let id = range.chain.id;
    let (days, has_pages) =
        shared.with_reader(async move |stored| stored.other_days(id, oldest).await).await?;
    let Some(days) = days.since(oldest) else { return Ok(false) };
    if days == range.chain.days {
        return Ok(!has_pages);
    }
    let others = first_page(shared, &range.session_id, days).await;
    Ok(others.map_or_else(|ended| !has_pages && ended.is_not_found_by_zoom(), |()| true))
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
    let (_, has_pages) =
        shared.with_reader(async move |stored| stored.other_days(id, Date::MIN).await).await?;
    Ok(has_pages)
}

/// Asks for the first page of a session in these days.
async fn first_page(shared: &Shared, session_id: &str, days: DateRange) -> Result<(), Failure> {
    let choice = shared.context.request.item_choice();
    ask(shared, &Call::messages(session_id, days, choice)).await
}

/// Sends a call only to see whether it is answered.
pub(super) async fn ask(shared: &Shared, call: &Call) -> Result<(), Failure> {
    shared.context.lane.fetch(call, run_effort(Urgency::Everything), call.any_answer()).await
}
