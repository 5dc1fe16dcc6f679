//! Fetches one range page by page, committing each page before it requests the next.
//!
//! Owns the edge cases of a chain: an expired page token, a repeated item, a session that is gone, days that have left Zoom's
//! reach, a chain that turns out too long.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::digest::{digest, digest_of_content};
use super::paging::Paging;
use super::progress::Outlook;
use super::reconcile;
use super::refused::{Verdict, verdict};
use super::shared::{COMMIT_INTERVAL, ExtractError, LONG_COMMIT_INTERVAL, Shared, run_effort};
use super::split::{self, RunForecast, Seen};
use crate::capture::{
    Chain, Change, Effect, Failed, MessagesPage, PagePosition, PageToken, PendingRange, Segment, Then,
};
use crate::days::DateRange;
use crate::zoom::lane::Urgency;
use crate::zoom::wire::{MESSAGES, Page, sent_at};
use crate::zoom::{Call, Failure, FailureKind};

/// Deflate levels of stored pages: `DENSE` if the processors have time to spare, else `FAST`, which takes half the time but
/// makes pages a third larger.
pub(super) const DENSE: u32 = 6;
const FAST: u32 = 1;

/// A digest of each item of a page, by kind, to compare the items of the next page with.
type Digests = [HashSet<u128>; 3];

/// A page of messages, read and compressed.
#[derive(Debug)]
struct ReadPage {
    segments: [Option<Segment>; 3],
    digests: Digests,
    repeats: u64,
    /// The digest of its first item that the previous page did not have.
    recognised_by: Option<u128>,
    next: Option<String>,
    unknown: Vec<(String, String)>,
    /// Set if the page does not cover all the days requested.
    leaves_out: Option<Failure>,
    /// When its first and last messages were sent.
    ends: Option<(i64, i64)>,
}

fn read_page(body: &Bytes, days: DateRange, previous: &Digests, level: u32) -> Result<ReadPage, String> {
    let page = Page::read(body, MESSAGES)?;
    let mut digests: Digests = Default::default();
    let mut segments: [Option<Segment>; 3] = Default::default();
    let (mut repeats, mut recognised_by) = (0, None);
    for (kind, items) in page.arrays.iter().enumerate() {
        let own: Vec<u128> = items.iter().map(|item| digest(item.get())).collect();
        let fresh = items.iter().zip(&own).filter(|(_, digest)| !previous[kind].contains(digest));
        let fresh: Vec<&str> = fresh.map(|(item, _)| item.get()).collect();
        repeats += (items.len() - fresh.len()) as u64;
        recognised_by = recognised_by.or_else(|| fresh.first().map(|item| digest_of_content(item)));
        digests[kind] = own.into_iter().collect();
        segments[kind] = Segment::of_items(&fresh, level);
    }
    let ends =
        [page.arrays[0].first(), page.arrays[0].last()].map(|item| item.and_then(|item| sent_at(item)));
    let leaves_out = page.leaves_out(days);
    Ok(ReadPage {
        segments,
        digests,
        repeats,
        recognised_by,
        next: page.next_page_token,
        unknown: page.unknown,
        leaves_out,
        ends: ends[0].zip(ends[1]),
    })
}

/// Follows a range's chain until it ends, fails or turns out too long. Returns the ranges to fetch in its place, if any. Only
/// what concerns the whole run is an error.
pub(super) async fn follow(shared: &Shared, range: PendingRange) -> Result<Vec<PendingRange>, ExtractError> {
    let oldest = shared.reach.oldest();
    let Some(rest) = range.chain.days.since(oldest) else {
        fail(shared, &range, shared.out_of_reach()).await?;
        return Ok(Vec::new());
    };
    let mut following = Following::resume(shared, range).await?;
    if following.token.is_none() && rest != following.range.chain.days {
        following.drop_lost_days(rest).await?;
    }
    let range = &following.range;
    let days = split::Days::new(range.chain.days, range.last_sent, shared.now());
    if range.chain.pages == 0
        && let Some(split) = shared.splitter.before_start(&days, range.pages_elsewhere)
    {
        return following.split(split.parts, split.expected_pages).await;
    }
    let mut outlook = shared.context.progress.outlook();
    loop {
        match following.next().await? {
            Step::More => {
                let Some(seen) = following.observed else { continue };
                let forecast = following.forecast(&days, &seen, &mut outlook);
                // Days that have left Zoom's reach may still come on this chain, but not on a new one.
                if !shared.has_lost_days_of(following.range.chain.days)
                    && let Some(split) = shared.splitter.while_running(&days, &seen, forecast)
                {
                    return following.split(split.parts, split.expected_pages).await;
                }
            }
            Step::End => return Ok(Vec::new()),
            Step::LeftReach => return Ok(following.once_more()),
            Step::Failed(failure) => return following.give_up(&failure).await,
        }
    }
}

/// What became of one request of a chain.
enum Step {
    More,
    End,
    /// Its first days left Zoom's reach while the request was in flight.
    LeftReach,
    Failed(Failure),
}

async fn fail(shared: &Shared, range: &PendingRange, failed: Failed) -> Result<(), ExtractError> {
    tracing::warn!(days = %range.chain.days, code = %failed.note.code, attempts = failed.note.attempts,
        "a session's days could not be fetched");
    settle(shared, Change::FailRange { range: range.chain.id, failed }).await
}

/// Commits a change that may complete a unit, which is then compared with what was set aside from it.
async fn settle(shared: &Shared, change: Change) -> Result<(), ExtractError> {
    for unit in shared.commit(change).await?.to_compare {
        Box::pin(reconcile::compare(shared, unit)).await?;
    }
    Ok(())
}

/// A range whose chain of pages is being followed, and how far that has got.
struct Following<'a> {
    shared: &'a Shared,
    range: PendingRange,
    token: Option<PageToken>,
    seq: i64,
    /// Raised if the run would end up waiting for the rest of the chain.
    urgency: Urgency,
    previous: Arc<Digests>,
    paging: Paging,
    /// Held, until the chain ends, once pauses have broken it off again and again.
    one_of_few: Option<OwnedSemaphorePermit>,
    /// The failure to end with, if a page of the chain did not cover all the days requested.
    leaves_out: Option<Failure>,
    /// `None` for a chain resumed midway: the days that its earlier pages span are unknown.
    observed: Option<Seen>,
}

impl<'a> Following<'a> {
    /// Resumes with the stored token if it is still young and belongs to the same query; otherwise starts again.
    async fn resume(shared: &'a Shared, range: PendingRange) -> Result<Self, ExtractError> {
        let mut following = Self {
            shared,
            range,
            token: None,
            seq: 0,
            urgency: Urgency::Usual,
            previous: Arc::default(),
            paging: Paging::default(),
            one_of_few: None,
            leaves_out: None,
            observed: Some(Seen::default()),
        };
        let range = &following.range;
        if range.chain.pages == 0 {
            return Ok(following);
        }
        let same_query = range.query.as_deref() == Some(following.call().query().as_str());
        let resume = shared.resumable_token(&range.chain).filter(|_| same_query).cloned();
        if let Some(token) = resume {
            let id = range.chain.id;
            let last_items = shared.with_reader(async move |stored| stored.last_items(id).await).await?;
            following.seq = range.chain.pages;
            following.previous = Arc::new(last_items.map(|items| reconcile::digests_of(&items)));
            following.observed = None;
            following.paging = Paging::resumed_with(&token.token);
            following.token = Some(token);
        }
        Ok(following)
    }

    fn call(&self) -> Call {
        let (range, choice) = (&self.range, self.shared.context.request.item_choice());
        let token = self.token.as_ref().map(|token| token.token.clone());
        Call::messages(&range.session_id, range.chain.days, choice).with_page_token(token)
    }

    /// Drops the first days of the range, which have left Zoom's reach.
    async fn drop_lost_days(&mut self, rest: DateRange) -> Result<(), ExtractError> {
        let failed = self.shared.out_of_reach();
        let change = Change::CutRange { range: self.range.chain.id, oldest: rest.from, failed };
        self.shared.commit(change).await?;
        (self.range.chain.days, self.range.chain.pages) = (rest, 0);
        Ok(())
    }

    /// Asks for the next page and commits it.
    async fn next(&mut self) -> Result<Step, ExtractError> {
        let (shared, context) = (self.shared, &self.shared.context);
        let call = self.call();
        let days = call.days;
        let (previous, account) = (self.previous.clone(), context.lane.account().clone());
        let read = move |body: Bytes| {
            read_page(&body, days, &previous, if account.processors_have_time() { DENSE } else { FAST })
        };
        let effort = run_effort(self.urgency);
        let page = match shared.fetch(&call, effort, read).await {
            Ok(page) => page,
            Err(failure) if shared.has_left_reach(&failure, days) => return Ok(Step::LeftReach),
            Err(failure) if failure.kind == FailureKind::PageTokenExpired => {
                let has_aged = self.token.as_ref().is_some_and(|token| shared.is_too_old(token));
                if !self.paging.begin_again(self.seq) {
                    return Ok(Step::Failed(failure));
                }
                self.restart();
                // Between two long pauses there may be time for any chain to end, but not for all at once.
                if has_aged && self.paging.broke_early() && self.one_of_few.is_none() {
                    self.one_of_few = Some(shared.one_of_few().await);
                    self.urgency = Urgency::Everything;
                }
                return Ok(Step::More);
            }
            Err(failure) => return Ok(Step::Failed(failure)),
        };
        let next = page.next.clone().map(|token| PageToken { token, at: shared.now() });
        let (is_first, is_last) = (self.token.is_none(), next.is_none());
        if let Some(observed) = &mut self.observed {
            observed.add(page.ends);
        }
        let trouble = self.paging.trouble_after(page.next.as_deref(), page.recognised_by);
        self.leaves_out = page.leaves_out.clone().or(self.leaves_out.take());
        let left_reach = is_first && shared.has_lost_days_of(days);
        let is_sound = trouble.is_none() && self.leaves_out.is_none() && !left_reach;
        // A later run may resume only after a sound page without repeats: otherwise it would go round a loop once more, not
        // recognise repeats of items dropped here, or not know that days were left out.
        let then = match &next {
            Some(token) if is_sound && page.repeats == 0 => Then::Next(token.clone()),
            None if is_sound => Then::End,
            _ => Then::Unfinished,
        };
        self.commit(page, then, call.query()).await?;
        self.token = next;
        let left_out = if is_last { self.leaves_out.take() } else { None };
        Ok(match trouble.or(left_out) {
            _ if left_reach => Step::LeftReach,
            Some(failure) => Step::Failed(failure),
            None if is_last => Step::End,
            None => Step::More,
        })
    }

    /// Estimates from the pages seen how many are still to come, reports that to the run, and sets their urgency. Returns the
    /// run's forecast, with this chain included.
    fn forecast(&mut self, days: &split::Days, seen: &Seen, outlook: &mut Outlook) -> RunForecast {
        let shared = self.shared;
        let to_come = seen.pages_to_come(days).unwrap_or_default();
        outlook.set(to_come.min(seen.trusted(shared.context.lane.account().is_paced())));
        let forecast = shared.splitter.forecast();
        self.urgency = if self.one_of_few.is_some() {
            Urgency::Everything
        } else if forecast.would_delay_run(to_come) {
            Urgency::EndOfJob { calls_to_follow: to_come as u32 }
        } else {
            Urgency::Usual
        };
        forecast
    }

    /// Restarts the chain. Stored pages stay until the new first page replaces them, and so does the range's page count, which
    /// says that the session has had some.
    fn restart(&mut self) {
        self.observed = Some(Seen::default());
        self.leaves_out = None;
        self.token = None;
        self.seq = 0;
        self.previous = Arc::default();
    }

    async fn commit(&mut self, page: ReadPage, then: Then, query: String) -> Result<(), ExtractError> {
        let shared = self.shared;
        let position = PagePosition { chain: self.range.chain.id, seq: self.seq, unknown: page.unknown };
        if page.repeats > 0 {
            tracing::info!(repeats = page.repeats, "dropped items that the previous page already held");
        }
        if self.urgency == Urgency::Usual {
            let longest = if page.next.is_none() { LONG_COMMIT_INTERVAL } else { COMMIT_INTERVAL };
            shared.wait_for_commit_tick(longest).await;
        }
        let direction = split::direction(page.ends);
        let page_of_range =
            MessagesPage { position, then, query, segments: page.segments, repeats: page.repeats, direction };
        settle(shared, Change::MessagesPage(page_of_range)).await?;
        self.seq += 1;
        self.range.chain.pages = self.seq;
        // If this page has no items of a kind, the next may repeat those of an earlier page.
        let mut last = page.digests;
        for (own, before) in last.iter_mut().zip(self.previous.iter()).filter(|(own, _)| own.is_empty()) {
            own.clone_from(before);
        }
        self.previous = Arc::new(last);
        Ok(())
    }

    /// Deals with a chain that failed, and returns the ranges to fetch in its place. Only what concerns the whole run is an
    /// error.
    async fn give_up(self, failure: &Failure) -> Result<Vec<PendingRange>, ExtractError> {
        let Self { shared, range, .. } = &self;
        match verdict(shared, range, self.seq == 0, failure).await? {
            Verdict::Cut(parts) => {
                tracing::warn!(days = %range.chain.days, code = %failure.kind.code(),
                    "a session's days could not be fetched as a whole, splitting them");
                return self.split(parts, 0).await;
            }
            Verdict::BeginAgain => return Ok(self.once_more()),
            Verdict::WholeRun => return Err(ExtractError::Account(failure.clone())),
            Verdict::Nothing => settle(shared, Change::RangeNotFound { range: range.chain.id }).await?,
            Verdict::Failed => fail(shared, range, shared.failed(failure)).await?,
        }
        Ok(Vec::new())
    }

    /// The same range, to be followed from its beginning.
    fn once_more(self) -> Vec<PendingRange> {
        let Self { mut range, .. } = self;
        range.chain.resume = None;
        vec![range]
    }

    /// Splits the range; the first part keeps its id.
    async fn split(
        self,
        parts: Vec<DateRange>,
        expected_pages: i64,
    ) -> Result<Vec<PendingRange>, ExtractError> {
        let Self { shared, range, .. } = self;
        tracing::debug!(days = %range.chain.days, parts = parts.len(), "splitting a range");
        let split = Change::SplitRange { range: range.chain.id, parts: parts.clone(), expected_pages };
        let Effect { new_ranges, .. } = shared.commit(split).await?;
        let numbers = std::iter::once(range.chain.id).chain(new_ranges);
        let part = |(id, days)| {
            let chain = Chain { id, window: range.chain.window, days, pages: 0, resume: None };
            // No hint: planned at the right length, a part is not split again before its first pages.
            PendingRange { chain, query: None, pages_elsewhere: 0, ..range.clone() }
        };
        Ok(numbers.zip(parts).map(part).collect())
    }
}
