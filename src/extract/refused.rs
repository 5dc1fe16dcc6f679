//! What a refusal of a session's days means: that every session is refused, that only this one is, or that there is nothing
//! there.
//!
//! Finds out by sending comparable requests. What it learns of Zoom's reach is kept (`reach`).

use super::reach::learn_whether_reach_begins_later;
use super::reconcile;
use super::shared::{ExtractError, Shared, run_effort};
use super::windows;
use crate::capture::{PendingRange, UnitPages};
use crate::days::DateRange;
use crate::zoom::lane::{Effort, Urgency};
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
    if is_first_page
        && failure.is_refused_by_zoom()
        && learn_whether_reach_begins_later(shared, range).await?
    {
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

/// Whether `failure` concerns its own call alone, perhaps because of a firewall: any of these other calls is answered. All are
/// tried, as some of them may be refused for reasons of their own.
pub(super) async fn any_other_is_answered(
    shared: &Shared,
    failure: &Failure,
    others: impl Iterator<Item = Call>,
) -> Result<bool, ExtractError> {
    if failure.kind == FailureKind::Unreachable {
        return Ok(false);
    }
    for other in others {
        if is_answer(&ask(shared, &other, run_effort(Urgency::Everything)).await?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether only this session is refused, and another one is answered.
async fn only_this_session_is_refused(
    shared: &Shared,
    range: &PendingRange,
    failure: &Failure,
) -> Result<bool, ExtractError> {
    let (oldest, choice) = (shared.reach.oldest(), shared.context.request.item_choice());
    let but = range.session_id.clone();
    let others = shared.with_reader(async move |stored| stored.comparable_sessions(&but, oldest).await);
    let others = others.await?.into_iter();
    let first_page = |(session_id, days): (String, DateRange)| {
        Some(Call::messages(&session_id, days.since(oldest)?, choice))
    };
    any_other_is_answered(shared, failure, others.filter_map(first_page)).await
}

/// Whether "not found" means that these days are empty, not that the session has vanished after yielding pages. For part
/// of a window it is ambiguous: the days count as empty only if Zoom still answers for days that have yielded pages or, if none
/// have, for the whole window. Only Zoom's own "not found" counts: a gateway may send one for an id that it cannot parse.
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
    let unit = unit_pages(shared, range).await?;
    let other = unit.other.and_then(|days| days.since(oldest));
    let has_pages = unit.own || other.is_some();
    let Some(days) = other.or_else(|| unit.window.since(oldest)) else { return Ok(false) };
    if days == range.chain.days {
        return Ok(!has_pages);
    }
    let answer = first_page(shared, &range.session_id, days).await?;
    Ok(answer.map_or_else(|failure| !has_pages && failure.is_not_found_by_zoom(), |()| true))
}

/// Whether a single page of the range may be at fault: one page can cause such a failure, and the session has yielded others in
/// this window. The other days can then be fetched without it.
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
    let unit = unit_pages(shared, range).await?;
    Ok(unit.own || unit.other.is_some())
}

async fn unit_pages(shared: &Shared, range: &PendingRange) -> Result<UnitPages, ExtractError> {
    let id = range.chain.id;
    shared.with_reader(async move |reader| reader.unit_pages(id).await).await
}

/// Asks for the first page of a session in these days.
async fn first_page(shared: &Shared, session_id: &str, days: DateRange) -> Asked {
    let choice = shared.context.request.item_choice();
    ask(shared, &Call::messages(session_id, days, choice), run_effort(Urgency::Everything)).await
}

/// What came of a call; or why the run cannot go on.
type Asked = Result<Result<(), Failure>, ExtractError>;

/// Sends a call only to see whether it is answered. An outage that is too long to wait out ends the run.
pub(super) async fn ask(shared: &Shared, call: &Call, effort: Effort) -> Asked {
    match shared.context.lane.fetch(call, effort, call.any_answer()).await {
        Err(failure) if failure.kind == FailureKind::Unreachable => Err(ExtractError::Account(failure)),
        answer => Ok(answer),
    }
}
