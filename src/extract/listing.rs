//! Lists the sessions of every window, page by page; windows that cannot be listed whole are cut.
//!
//! Each list page is committed with the units it brings before the next is requested. Days that cannot be listed even singly
//! are reported, and sessions known from other windows are asked for them anyway.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::digest::digest;
use super::paging::Paging;
use super::shared::{COMMIT_INTERVAL, ExtractError, Shared, run_effort};
use super::windows;
use crate::capture::{
    CaptureError, Chain, Change, ListId, ListedSession, PagePosition, PageToken, Reader, Then, WindowId,
};
use crate::days::DateRange;
use crate::zoom::lane::{Effort, FetchError, Urgency};
use crate::zoom::wire::{Page, SESSIONS, SessionHead};
use crate::zoom::{Call, Failure, FailureKind};

/// The maximum number of attempts at listing only part of a window, usually after the whole has failed.
const ATTEMPTS_FOR_A_PART: u32 = 3;
/// A list of several pages may shift while it is read: a session with a new message moves to another place. It is reread until
/// that brings nothing new, in at most this many passes.
const MAX_PASSES: u32 = 5;
/// The number of sessions asked, in one change, for days that could not be listed; bounded, as pages wait for its commit.
const PROBED_AT_A_TIME: i64 = 10_000;

/// Lists every window not listed yet: windows concurrently, the pages of each sequentially.
pub(super) async fn list_all(shared: &Shared) -> Result<(), ExtractError> {
    let windows = shared.with_reader(async |reader| reader.windows().await).await?;
    try_join_all(windows.iter().map(|(window, days)| list_window(shared, *window, *days))).await?;
    let out_of_reach = FailureKind::OutOfReach.code();
    let look = shared.with_reader(async move |reader: &mut Reader| {
        Ok::<_, CaptureError>((reader.last_session().await?, reader.days_not_listed(out_of_reach).await?))
    });
    let (last, days_not_listed) = look.await?;
    let oldest = shared.reach.oldest();
    // Days that have left Zoom's reach are already reported by their failed list.
    let reachable =
        days_not_listed.into_iter().filter_map(|(window, days)| Some((window, days.since(oldest)?)));
    // A chat may have had another name in some months: one selected in any month is asked for in all. Its days that have left
    // Zoom's reach since they were listed are recorded as missing.
    let by_name = shared.context.request.sessions.selects_by_name();
    for (window, days) in if by_name { windows } else { reachable.collect() } {
        for first in (1..=last).step_by(PROBED_AT_A_TIME as usize) {
            let sessions = (first, first + PROBED_AT_A_TIME - 1);
            shared.commit(Change::ProbeDays { window, days, sessions }).await?;
        }
    }
    Ok(())
}

async fn list_window(shared: &Shared, window: WindowId, whole: DateRange) -> Result<(), ExtractError> {
    let started = shared.context.clock.elapsed();
    let pending = async || shared.with_reader(async move |reader| reader.pending_lists(window).await).await;
    let mut lists = pending().await?;
    let had_work = !lists.is_empty();
    while let Some(list) = lists.first() {
        list_chain(shared, list, whole).await?;
        lists = pending().await?;
    }
    if had_work {
        shared.context.progress.windows_listed.add(1);
        shared.found.notify_one();
        let units = shared.with_reader(async move |reader| reader.units_listed(window).await).await?;
        let elapsed_ms = shared.context.clock.elapsed().saturating_sub(started).as_millis() as u64;
        tracing::info!(window = %whole, sessions = units, elapsed_ms, "window listed");
    }
    Ok(())
}

/// A parsed list page.
#[derive(Debug)]
struct ListPage {
    sessions: Vec<(SessionHead, String)>,
    next: Option<String>,
    unknown: Vec<(String, String)>,
    leaves_out: Option<Failure>,
}

fn read_page(body: &Bytes, days: DateRange) -> Result<ListPage, String> {
    let page = Page::read(body, SESSIONS)?;
    let leaves_out = page.leaves_out(days);
    let [sessions] = &page.arrays;
    Ok(ListPage {
        sessions: sessions
            .iter()
            .map(|info| Ok((SessionHead::read(info)?, info.get().to_owned())))
            .collect::<Result<_, String>>()?,
        unknown: page.unknown,
        next: page.next_page_token,
        leaves_out,
    })
}

async fn list_chain(shared: &Shared, list: &Chain<ListId>, whole: DateRange) -> Result<(), ExtractError> {
    let days = list.days;
    let oldest = shared.reach.oldest();
    let out_of_reach = match days.split_at(oldest) {
        (None, _) => None,
        (Some(lost), Some(rest)) => Some(Change::CutList { list: list.id, parts: vec![lost, rest] }),
        (Some(_), None) => Some(Change::FailList { list: list.id, failed: shared.out_of_reach() }),
    };
    if let Some(change) = out_of_reach {
        shared.commit(change).await?;
        return Ok(());
    }
    let at_most = (days != whole).then_some(ATTEMPTS_FOR_A_PART);
    match follow(shared, list, whole, Effort { at_most, ..run_effort(Urgency::Everything) }).await? {
        Ok(()) => Ok(()),
        Err(failure) if failure.kind.concerns_the_account() => Err(ExtractError::Account(failure)),
        Err(failure) => give_up(shared, list, days, &failure).await,
    }
}

/// One pass over a list, from its first page or from where an earlier run stopped.
#[derive(Default)]
struct Pass {
    token: Option<String>,
    seq: i64,
    paging: Paging,
    /// The ids of the sessions on the previous page.
    previous: HashSet<String>,
    /// It repeats an earlier pass and has brought nothing new so far.
    found_nothing_new: bool,
}

impl Pass {
    fn from(resume: Option<&PageToken>, pages: i64) -> Self {
        let Some(PageToken { token, .. }) = resume else { return Self::default() };
        Self { token: Some(token.clone()), seq: pages, paging: Paging::taken_up(token), ..Self::default() }
    }

    /// Whether no further pass is needed after its last page.
    fn suffices(&self, passes: u32) -> bool {
        self.seq == 0 || self.found_nothing_new || passes == MAX_PASSES
    }
}

/// Follows the chain of list pages to its end, and again until a pass brings nothing new.
async fn follow(
    shared: &Shared,
    list: &Chain<ListId>,
    whole: DateRange,
    effort: Effort,
) -> Result<Result<(), Failure>, ExtractError> {
    let context = &shared.context;
    let days = list.days;
    let mut pass = Pass::from(shared.resumable_token(list), list.pages);
    let (mut passes, mut has_shown, mut was_not_found) = (1, list.pages > 0, false);
    // The digests of pages read: one that comes again unchanged need not be stored again.
    let mut read = HashSet::new();
    loop {
        let call = Call::ListSessions { days, page_token: pass.token.clone() };
        let page = match context.lane.fetch(&call, effort, move |body| read_page(&body, days)).await {
            Ok(page) => page,
            Err(FetchError::PageTokenExpired(failure) | FetchError::Failed(failure))
                if failure.kind.concerns_the_request() && shared.has_lost_days_of(days) =>
            {
                return Ok(Ok(()));
            }
            Err(FetchError::PageTokenExpired(_)) if pass.paging.may_begin_again(pass.seq) => {
                pass = Pass { paging: pass.paging, found_nothing_new: passes > 1, ..Pass::default() };
                continue;
            }
            // Zoom answers 404 for "nothing there". It must do so twice: otherwise one wrong answer could lose a month.
            Err(FetchError::Failed(failure)) if failure.is_not_found_by_zoom() && !has_shown => {
                if !std::mem::replace(&mut was_not_found, true) {
                    continue;
                }
                if !lists_nothing(shared, list, whole, effort).await? {
                    return Ok(Err(failure));
                }
                break;
            }
            Err(FetchError::PageTokenExpired(failure) | FetchError::Failed(failure)) => {
                return Ok(Err(failure));
            }
        };
        let is_new =
            read.insert(digest(&page.sessions.iter().map(|(_, info)| &info[..]).collect::<String>()));
        let ids: HashSet<String> = page.sessions.iter().map(|(head, _)| head.id.clone()).collect();
        let first = page.sessions.first().filter(|_| !ids.is_subset(&pass.previous));
        let trouble =
            pass.paging.trouble_after(page.next.as_deref(), first.map(|(head, _)| digest(&head.id)));
        let trouble = trouble.or(page.leaves_out.clone());
        let left_reach = pass.token.is_none() && shared.has_lost_days_of(days);
        pass.previous = ids;
        pass.token.clone_from(&page.next);
        // A page that was read before brings nothing new.
        if is_new || passes == 1 {
            shared.wait_for_commit_tick(COMMIT_INTERVAL).await;
            let next = page.next.map(|token| Then::Next(PageToken { token, at: shared.now() }));
            let then = next.unwrap_or(Then::Unfinished);
            let position = PagePosition { chain: list.id, seq: pass.seq, then, unknown: page.unknown };
            let brought = commit_page(shared, position, page.sessions).await?;
            pass.found_nothing_new &= brought == 0;
        }
        has_shown = true;
        if let Some(trouble) = trouble {
            return Ok(Err(trouble));
        }
        if left_reach {
            return Ok(Ok(()));
        }
        if pass.token.is_some() {
            pass.seq += 1;
        } else if pass.suffices(passes) {
            break;
        } else {
            tracing::debug!(%days, passes, "read again: it may have moved meanwhile");
            (pass, passes) = (Pass { found_nothing_new: true, ..Pass::default() }, passes + 1);
        }
    }
    shared.commit(Change::EndList { list: list.id }).await?;
    Ok(Ok(()))
}

/// Whether "not found" means that there are no sessions in these days: for part of a window that has listed some, only if the
/// whole window is still answered.
async fn lists_nothing(
    shared: &Shared,
    list: &Chain<ListId>,
    whole: DateRange,
    effort: Effort,
) -> Result<bool, ExtractError> {
    let window = list.window;
    if list.days == whole || !shared.with_reader(async move |reader| reader.has_listed(window).await).await? {
        return Ok(true);
    }
    let call = Call::ListSessions { days: whole, page_token: None };
    Ok(shared.context.lane.fetch(&call, effort, call.any_answer()).await.is_ok())
}

/// Commits a list page and returns how many sessions were new to its window.
async fn commit_page(
    shared: &Shared,
    page: PagePosition<ListId>,
    sessions: Vec<(SessionHead, String)>,
) -> Result<u64, ExtractError> {
    let filter = &shared.context.request.sessions;
    let sessions: Vec<_> = sessions
        .into_iter()
        .filter(|(head, _)| filter.matches(head))
        .map(|(head, info)| ListedSession { zoom_id: head.id, info })
        .collect();
    let effect = shared.commit(Change::ListPage { page, sessions }).await?;
    shared.found.notify_one();
    Ok(effect.new_units)
}

/// Cuts a list that failed for good, down to single days; a failed single day is reported.
async fn give_up(
    shared: &Shared,
    list: &Chain<ListId>,
    days: DateRange,
    failure: &Failure,
) -> Result<(), ExtractError> {
    // After "not found", the parts would seem to be empty.
    let parts = windows::cut(days).filter(|_| failure.kind != FailureKind::NotFound);
    let change = if let Some(parts) = parts {
        tracing::warn!(%days, code = %failure.kind.code(), "could not be listed whole, cutting");
        Change::CutList { list: list.id, parts }
    } else {
        tracing::warn!(%days, code = %failure.kind.code(), "could not be listed");
        Change::FailList { list: list.id, failed: shared.failed(failure) }
    };
    shared.commit(change).await?;
    Ok(())
}
