//! What a refusal of a session's days means: nobody may have them any more, the session alone is refused, or there is nothing.
//!
//! It is found out by asking for the like of it. What is done about it is not decided here.

use jiff::ToSpan;
use jiff::civil::Date;

use super::ranges::days_of;
use super::run::{ExtractError, Shared, run_effort};
use super::windows::DateRange;
use crate::capture::PendingRange;
use crate::zoom::lane::Ended;
use crate::zoom::wire::{MESSAGES, Page};
use crate::zoom::{Call, Failure, FailureKind};

/// So many days later than ours Zoom's reach may begin: how long six months are is not documented to the day.
const UNSURE_REACH: i64 = 6;

/// Whether a range was refused because Zoom's reach begins some days later than ours: which days of it are answered tells, and
/// is remembered.
pub(super) async fn reach_begins_later(shared: &Shared, range: &PendingRange) -> bool {
    let DateRange { from, to } = days_of(range);
    let _one_at_a_time = shared.learning_reach.acquire().await.expect("the semaphore is never closed");
    let oldest = shared.oldest_reachable();
    if from < oldest {
        // Another has found out meanwhile.
        return true;
    }
    let last = to.min(oldest.saturating_add(UNSURE_REACH.days()));
    for day in from.series(1.day()).take_while(|day| *day <= last) {
        match first_page(shared, &range.session_id, day, day).await {
            Err(Ended::Failed(refused)) if refused.kind == FailureKind::Rejected => {}
            answered if is_answer(&answered) && day > from => {
                tracing::warn!(%day, "Zoom's reach begins later than six months ago");
                shared.remember_reach(day);
                return true;
            }
            _ => return false,
        }
    }
    false
}

fn is_answer(asked: &Result<(), Ended>) -> bool {
    match asked {
        Ok(()) => true,
        Err(Ended::Failed(failure)) => failure.kind == FailureKind::NotFound,
        Err(Ended::Restart) => false,
    }
}

/// Whether this was refused for one session only, by a firewall perhaps: another is answered.
pub(super) async fn is_alone(
    shared: &Shared,
    range: &PendingRange,
    failure: &Failure,
) -> Result<bool, ExtractError> {
    if failure.kind == FailureKind::Unreachable {
        return Ok(false);
    }
    let (one_of_few, mut reader) = shared.reader().await?;
    let another = reader.another_session(&range.session_id).await?;
    reader.close().await;
    drop(one_of_few);
    let Some((session_id, from, to)) = another else { return Ok(false) };
    let from = from.max(shared.oldest_reachable());
    Ok(is_answer(&first_page(shared, &session_id, from, to).await))
}

/// Whether "not found" means that there is nothing in these days, not that the session is gone after it has shown pages.
/// Of a part of its days it may mean either, so all the days of its window are asked for.
pub(super) async fn holds_nothing(shared: &Shared, range: &PendingRange) -> Result<bool, ExtractError> {
    let (one_of_few, mut reader) = shared.reader().await?;
    let shown_in = reader.shown_in(range.chain.id).await?;
    reader.close().await;
    drop(one_of_few);
    let Some((from, to)) = shown_in else { return Ok(true) };
    let from = from.max(shared.oldest_reachable());
    let is_a_part = (range.chain.from, range.chain.to) != (from, to);
    Ok(range.chain.pages == 0 && is_a_part && first_page(shared, &range.session_id, from, to).await.is_ok())
}

/// Asks for the first page of a session in these days only to see whether there is an answer.
async fn first_page(shared: &Shared, session_id: &str, from: Date, to: Date) -> Result<(), Ended> {
    let context = &shared.context;
    let choice = context.request.item_choice();
    let call = Call::Messages { session_id: session_id.into(), from, to, page_token: None, choice };
    let effort = run_effort(context.settings.max_attempts, Some(u32::MAX));
    context.lane.fetch(&call, effort, |body| Page::read(&body, MESSAGES).map(|_| ())).await
}
