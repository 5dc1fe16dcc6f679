//! Following one range: page after page to the last, each committed before the next is asked for.
//!
//! Owns what happens at the seams of a chain: a page token that is too old, a repeated item, a session that is gone,
//! days that left Zoom's reach.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::listing::{MAX_RESTARTS, token_trouble};
use super::run::{ExtractError, Shared, note, out_of_reach};
use super::windows;
use crate::capture::{Change, FailureNote, PageOf, PageToken, PendingRange, Segment};
use crate::zoom::client::Ended;
use crate::zoom::wire::{MESSAGES, Page};
use crate::zoom::{Call, Failure, FailureKind};

/// SHA-256 of each item of a page, by kind: what the next page's items are compared with.
type Digests = [HashSet<[u8; 32]>; 3];

/// A messages page, read and compressed.
#[derive(Debug)]
struct MessagesPage {
    segments: [Option<Segment>; 3],
    digests: Digests,
    repeats: u64,
    next: Option<String>,
    unknown: Vec<(String, String)>,
}

fn read_page(body: &Bytes, previous: &Digests, level: u32) -> Result<MessagesPage, String> {
    let page = Page::read(body, MESSAGES)?;
    let mut digests: Digests = Default::default();
    let mut segments: [Option<Segment>; 3] = Default::default();
    let mut repeats = 0;
    for (kind, items) in page.arrays.iter().enumerate() {
        let fresh: Vec<&str> = items
            .iter()
            .map(|item| item.get())
            .filter(|item| {
                let digest: [u8; 32] = Sha256::digest(item.as_bytes()).into();
                digests[kind].insert(digest);
                let repeated = previous[kind].contains(&digest);
                repeats += u64::from(repeated);
                !repeated
            })
            .collect();
        segments[kind] = Segment::of_items(fresh.into_iter(), level);
    }
    Ok(MessagesPage { segments, digests, repeats, unknown: page.unknown, next: page.next_page_token })
}

/// Follows the chain of a range to its end, whatever that is. Only what concerns the whole run is an error.
pub(super) async fn follow(shared: &Shared, mut range: PendingRange) -> Result<(), ExtractError> {
    let context = &shared.context;
    let oldest = windows::oldest_reachable(context.clock.today());
    if range.chain.to < oldest {
        return fail(shared, &range, out_of_reach(oldest)).await;
    }
    if range.chain.from < oldest {
        let (failure, at) = (out_of_reach(oldest), shared.now());
        let cut = Change::CutRange { range: range.chain.id, reachable_from: oldest, failure, at };
        shared.writer.commit(cut).await?;
        (range.chain.from, range.chain.pages, range.chain.resume) = (oldest, 0, None);
    }
    let mut chain = Pages::take_up(shared, &range).await?;
    loop {
        let call = chain.call(&range, shared);
        let previous = chain.previous.clone();
        let level = context.settings.compression_level;
        let attempts = context.settings.max_attempts;
        let page = context.lane.fetch(&call, attempts, move |body| read_page(&body, &previous, level)).await;
        let page = match page {
            Ok(page) => page,
            Err(Ended::Restart) if chain.restarts < MAX_RESTARTS => {
                chain.restart(shared, &range).await?;
                continue;
            }
            Err(Ended::Restart) => {
                let failure = token_trouble(FailureKind::Rejected, chain.restarts);
                return fail(shared, &range, note(&failure)).await;
            }
            Err(Ended::Failed(failure)) => return ended(shared, &range, &chain, failure).await,
        };
        if page.next.as_ref().is_some_and(|next| !chain.seen.insert(next.clone())) {
            return fail(shared, &range, note(&token_trouble(FailureKind::PageTokenLoop, 1))).await;
        }
        chain.commit(shared, &range, &call, page).await?;
        if chain.token.is_none() {
            shared.context.progress.units_done.fetch_add(1, Relaxed);
            return Ok(());
        }
    }
}

/// A failed call: gone is not failed, some failures concern the whole account, the rest is this range's own.
async fn ended(
    shared: &Shared,
    range: &PendingRange,
    chain: &Pages,
    failure: Failure,
) -> Result<(), ExtractError> {
    if failure.kind == FailureKind::NotFound && chain.seq == 0 {
        shared.writer.commit(Change::RangeNotFound { range: range.chain.id }).await?;
        shared.context.progress.units_done.fetch_add(1, Relaxed);
        return Ok(());
    }
    if failure.kind.concerns_the_account() {
        return Err(ExtractError::Account(failure));
    }
    fail(shared, range, note(&failure)).await
}

async fn fail(shared: &Shared, range: &PendingRange, failure: FailureNote) -> Result<(), ExtractError> {
    tracing::warn!(from = %range.chain.from, to = %range.chain.to, code = %failure.code, attempts = failure.attempts,
        "a session's days could not be fetched");
    shared.writer.commit(Change::FailRange { range: range.chain.id, failure, at: shared.now() }).await?;
    shared.context.progress.units_failed.fetch_add(1, Relaxed);
    Ok(())
}

/// Where a chain of pages stands.
struct Pages {
    token: Option<String>,
    seq: i64,
    previous: Arc<Digests>,
    seen: HashSet<String>,
    restarts: u32,
    /// Items counted for this range, to be taken back when it begins again.
    counted: [u64; 3],
}

impl Pages {
    /// Goes on with a token that is still young and belongs to the same query; else begins again.
    async fn take_up(shared: &Shared, range: &PendingRange) -> Result<Self, ExtractError> {
        let mut pages = Self {
            token: None,
            seq: 0,
            previous: Arc::default(),
            seen: HashSet::new(),
            restarts: 0,
            counted: [0; 3],
        };
        if range.chain.pages == 0 {
            return Ok(pages);
        }
        let mut reader = shared.location.open_reader().await?;
        pages.counted = reader.range_items(range.chain.id).await?;
        let age = |token: &PageToken| shared.now().duration_since(token.at).unsigned_abs();
        let same_query = range.query.as_deref() == Some(pages.call(range, shared).query().as_str());
        match &range.chain.resume {
            Some(resume) if same_query && age(resume) < shared.context.settings.page_token_life => {
                let stored = reader.last_page(range.chain.id).await?;
                pages.previous = Arc::new(stored.map(|items| digests_of(&items)));
                pages.token = Some(resume.token.clone());
                pages.seen.insert(resume.token.clone());
                pages.seq = range.chain.pages;
            }
            _ => {
                pages.restart(shared, range).await?;
                pages.restarts = 0;
            }
        }
        reader.close().await;
        Ok(pages)
    }

    fn call(&self, range: &PendingRange, shared: &Shared) -> Call {
        Call::Messages {
            session_id: range.session_id.as_str().into(),
            from: range.chain.from,
            to: range.chain.to,
            page_token: self.token.clone(),
            choice: shared.context.request.item_choice(),
        }
    }

    async fn restart(&mut self, shared: &Shared, range: &PendingRange) -> Result<(), ExtractError> {
        shared.writer.commit(Change::RestartRange { range: range.chain.id }).await?;
        for (counter, counted) in counters(shared).iter().zip(self.counted) {
            counter.fetch_sub(counted, Relaxed);
        }
        self.counted = [0; 3];
        self.token = None;
        self.seq = 0;
        self.previous = Arc::default();
        self.seen.clear();
        self.restarts += 1;
        Ok(())
    }

    async fn commit(
        &mut self,
        shared: &Shared,
        range: &PendingRange,
        call: &Call,
        page: MessagesPage,
    ) -> Result<(), ExtractError> {
        let next = page.next.clone().map(|token| PageToken { token, at: shared.now() });
        let items =
            page.segments.each_ref().map(|segment| segment.as_ref().map_or(0, |some| u64::from(some.items)));
        let of = PageOf { chain: range.chain.id, seq: self.seq, next, unknown: page.unknown };
        if page.repeats > 0 {
            tracing::info!(repeats = page.repeats, "dropped items that the page before held already");
        }
        let change = Change::MessagesPage {
            page: of,
            query: call.query(),
            segments: page.segments,
            repeats: page.repeats,
        };
        shared.writer.commit(change).await?;
        for ((counter, counted), items) in counters(shared).iter().zip(&mut self.counted).zip(items) {
            counter.fetch_add(items, Relaxed);
            *counted += items;
        }
        self.token = page.next;
        self.seq += 1;
        self.previous = Arc::new(page.digests);
        Ok(())
    }
}

fn counters(shared: &Shared) -> [&std::sync::atomic::AtomicU64; 3] {
    let progress = &shared.context.progress;
    [&progress.messages, &progress.edited_messages, &progress.deleted_messages]
}

/// The digests of a stored page, whose items are joined as the segment joined them.
fn digests_of(items: &[u8]) -> HashSet<[u8; 32]> {
    if items.is_empty() {
        return HashSet::new();
    }
    let array = [b"[", items, b"]"].concat();
    let items: Vec<&serde_json::value::RawValue> = serde_json::from_slice(&array).unwrap_or_default();
    items.iter().map(|item| Sha256::digest(item.get().as_bytes()).into()).collect()
}
