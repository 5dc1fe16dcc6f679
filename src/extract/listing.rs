//! Lists the sessions of every window, page by page; windows that cannot be listed whole are cut.
//!
//! Each list page is committed with the units it brings before the next is requested. Days that cannot be listed even singly
//! are reported, and sessions known from other windows are fetched for them anyway.

use std::collections::HashSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::digest::digest;
use super::paging::Paging;
use super::refused::{any_other_is_answered, ask};
use super::shared::{COMMIT_INTERVAL, ExtractError, Shared, run_effort};
use super::windows;
use crate::capture::{
    CaptureError, Chain, Change, ListId, ListedSession, PagePosition, PageToken, Reader, WindowId,
};
use crate::days::DateRange;
use crate::zoom::lane::{Effort, Urgency};
use crate::zoom::wire::{Page, SESSIONS, SessionHead};
use crate::zoom::{Call, Failure, FailureKind};

/// The maximum number of attempts at listing only part of a window, usually after the whole has failed.
const ATTEMPTS_FOR_A_PART: u32 = 3;
/// A list of several pages may shift while it is read: a session with a new message moves to another place. It is reread until
/// that brings nothing new, in at most this many passes.
const MAX_PASSES: u32 = 5;
/// The number of sessions probed in one change for days that could not be listed; bounded, as pages wait for its commit.
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
    // A chat may have had another name in some months: one selected in any month is fetched for all. Its days that have left
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
        shared.context.progress.window_settled();
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
    // The days of the window still in reach: only a list of fewer days is a partial one.
    let whole = whole.since(oldest).unwrap_or(days);
    let at_most = (days != whole).then_some(ATTEMPTS_FOR_A_PART);
    let effort = Effort { at_most, ..run_effort(Urgency::Everything) };
    match ListReader::new(shared, list, whole, effort).read().await? {
        // What has left Zoom's reach meanwhile is cut off when the list is begun again.
        ListEnd::LeftReach => Ok(()),
        ListEnd::Complete => {
            shared.commit(Change::EndList { list: list.id }).await?;
            Ok(())
        }
        ListEnd::Failed(failure)
            if failure.kind.concerns_the_account()
                && !only_this_list_is_refused(shared, list.window, &failure).await? =>
        {
            Err(ExtractError::Account(failure))
        }
        ListEnd::Failed(failure) => give_up(shared, list, &failure).await,
    }
}

/// Whether only the lists of this window are refused, and that of another one is answered.
async fn only_this_list_is_refused(
    shared: &Shared,
    window: WindowId,
    failure: &Failure,
) -> Result<bool, ExtractError> {
    let oldest = shared.reach.oldest();
    let windows = shared.with_reader(async |reader| reader.windows().await).await?;
    let others = windows.into_iter().filter(|(other, _)| *other != window);
    let others = others.filter_map(|(_, days)| Some(Call::sessions(days.since(oldest)?)));
    any_other_is_answered(shared, failure, others).await
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
        Self {
            token: Some(token.clone()),
            seq: pages,
            paging: Paging::resumed_with(token),
            ..Self::default()
        }
    }

    /// Whether no further pass is needed after its last page.
    fn suffices(&self, passes: u32) -> bool {
        self.seq == 0 || self.found_nothing_new || passes == MAX_PASSES
    }
}

/// How the reading of a list ended.
enum ListEnd {
    Complete,
    /// Its first days left Zoom's reach while it was read.
    LeftReach,
    Failed(Failure),
}

/// Reads a list: follows the chain of its pages to the end, and again until a pass brings nothing new.
struct ListReader<'a> {
    shared: &'a Shared,
    list: &'a Chain<ListId>,
    /// The part of the list's window still in Zoom's reach.
    whole: DateRange,
    effort: Effort,
    pass: Pass,
    passes: u32,
    /// Whether any of its pages has been received.
    has_shown: bool,
    /// The digests of pages read: one that comes again unchanged need not be stored again.
    read: HashSet<u128>,
}

impl<'a> ListReader<'a> {
    fn new(shared: &'a Shared, list: &'a Chain<ListId>, whole: DateRange, effort: Effort) -> Self {
        Self {
            shared,
            list,
            whole,
            effort,
            pass: Pass::from(shared.resumable_token(list), list.pages),
            passes: 1,
            has_shown: list.pages > 0,
            read: HashSet::new(),
        }
    }

    async fn read(mut self) -> Result<ListEnd, ExtractError> {
        let days = self.list.days;
        loop {
            let call = Call::sessions(days).with_page_token(self.pass.token.clone());
            let next = match self.shared.fetch(&call, self.effort, move |body| read_page(&body, days)).await {
                Ok(page) => self.take(page).await?,
                Err(failure) => self.after(failure).await?,
            };
            if let ControlFlow::Break(end) = next {
                return Ok(end);
            }
        }
    }

    /// Stores a page.
    async fn take(&mut self, page: ListPage) -> Result<ControlFlow<ListEnd>, ExtractError> {
        let (shared, pass) = (self.shared, &mut self.pass);
        let (is_first, is_last) = (pass.token.is_none(), page.next.is_none());
        let infos: String = page.sessions.iter().map(|(_, info)| &info[..]).collect();
        let is_new = self.read.insert(digest(&infos));
        let ids: HashSet<String> = page.sessions.iter().map(|(head, _)| head.id.clone()).collect();
        let first = page.sessions.first().filter(|_| !ids.is_subset(&pass.previous));
        let trouble =
            pass.paging.trouble_after(page.next.as_deref(), first.map(|(head, _)| digest(&head.id)));
        let trouble = trouble.or(page.leaves_out);
        let left_reach = is_first && shared.has_lost_days_of(self.list.days);
        pass.previous = ids;
        pass.token.clone_from(&page.next);
        // A page that was read before brings nothing new.
        if is_new || self.passes == 1 {
            shared.wait_for_commit_tick(COMMIT_INTERVAL).await;
            // After trouble a later run must not resume here, unaware of the trouble.
            let next = page.next.filter(|_| trouble.is_none());
            let next = next.map(|token| PageToken { token, at: shared.now() });
            let position = PagePosition { chain: self.list.id, seq: pass.seq, unknown: page.unknown };
            let brought = commit_page(shared, position, next, page.sessions).await?;
            pass.found_nothing_new &= brought == 0;
        }
        self.has_shown = true;
        if left_reach {
            return Ok(ControlFlow::Break(ListEnd::LeftReach));
        }
        if let Some(trouble) = trouble {
            return Ok(ControlFlow::Break(ListEnd::Failed(trouble)));
        }
        if !is_last {
            pass.seq += 1;
        } else if pass.suffices(self.passes) {
            return Ok(ControlFlow::Break(ListEnd::Complete));
        } else {
            tracing::debug!(days = %self.list.days, self.passes, "listing again: sessions may have moved meanwhile");
            self.pass = Pass { found_nothing_new: true, ..Pass::default() };
            self.passes += 1;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Decides what to do when a request brought no page.
    async fn after(&mut self, failure: Failure) -> Result<ControlFlow<ListEnd>, ExtractError> {
        if self.shared.has_left_reach(&failure, self.list.days) {
            return Ok(ControlFlow::Break(ListEnd::LeftReach));
        }
        if failure.kind == FailureKind::PageTokenExpired && self.pass.paging.begin_again(self.pass.seq) {
            let paging = std::mem::take(&mut self.pass.paging);
            self.pass = Pass { paging, found_nothing_new: self.passes > 1, ..Pass::default() };
            return Ok(ControlFlow::Continue(()));
        }
        // Zoom answers 404 for "nothing there".
        if failure.is_not_found_by_zoom() && !self.has_shown && self.has_nothing().await? {
            return Ok(ControlFlow::Break(ListEnd::Complete));
        }
        Ok(ControlFlow::Break(ListEnd::Failed(failure)))
    }

    /// Whether "not found" means that there are no sessions in these days: for part of a window, only if Zoom answers for the
    /// whole window or, while none of its lists has returned a page, does not find that either.
    async fn has_nothing(&self) -> Result<bool, ExtractError> {
        let (shared, whole, window) = (self.shared, self.whole, self.list.window);
        if self.list.days == whole {
            return Ok(true);
        }
        match ask(shared, &Call::sessions(whole), self.effort).await? {
            Err(failure) if failure.is_not_found_by_zoom() => {
                Ok(!shared.with_reader(async move |reader| reader.has_listed(window).await).await?)
            }
            answer => Ok(answer.is_ok()),
        }
    }
}

/// Commits a list page and returns how many sessions its window had not listed before.
async fn commit_page(
    shared: &Shared,
    page: PagePosition<ListId>,
    next: Option<PageToken>,
    sessions: Vec<(SessionHead, String)>,
) -> Result<u64, ExtractError> {
    let filter = &shared.context.request.sessions;
    let sessions: Vec<_> = sessions
        .into_iter()
        .filter(|(head, _)| filter.matches(head))
        .map(|(head, info)| ListedSession { zoom_id: head.id, info })
        .collect();
    let effect = shared.commit(Change::ListPage { page, next, sessions }).await?;
    shared.found.notify_one();
    Ok(effect.newly_listed)
}

/// Cuts a list that failed for good, down to single days; a failed single day is reported.
async fn give_up(shared: &Shared, list: &Chain<ListId>, failure: &Failure) -> Result<(), ExtractError> {
    let days = list.days;
    // After "not found", the parts would seem to be empty; 429s have nothing to do with the days.
    let is_cut = !matches!(failure.kind, FailureKind::NotFound | FailureKind::RateLimited);
    let parts = windows::cut(days).filter(|_| is_cut);
    let change = if let Some(parts) = parts {
        tracing::warn!(%days, code = %failure.kind.code(), "these days could not be listed as a whole, splitting them");
        Change::CutList { list: list.id, parts }
    } else {
        tracing::warn!(%days, code = %failure.kind.code(), "these days could not be listed");
        Change::FailList { list: list.id, failed: shared.failed(failure) }
    };
    shared.commit(change).await?;
    Ok(())
}
