//! One run of one job: plan or resume the capture, list and fetch concurrently, store the totals.
//!
//! Owns every task it starts: when [`run`] returns, none is left. On cancellation it stops with everything received so far in
//! the capture; called again on the same capture, it resumes where it stopped.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::earlier::{self, check_earlier};
use super::feed::Feed;
use super::shared::{ExtractError, LONG_COMMIT_INTERVAL, RunContext, Shared};
use super::{listing, ranges, reach, reconcile, windows};
use crate::capture::{CaptureError, Change, Counts, Location, Meta, PendingRange, RangeId, Reader};

/// The result of a run.
#[derive(Debug)]
pub struct RunSummary {
    /// What the capture holds.
    pub counts: Counts,
    pub extent: Extent,
    /// When the capture was begun, if its last day was not over then.
    pub captured_until: Option<Timestamp>,
    /// What this run found damaged, and fetched again.
    pub damage: Damage,
}

/// How much of an earlier run's capture is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    None,
    /// Messages of these ranges.
    Parts(Vec<RangeId>),
    /// The index: without it nothing can be used.
    All,
}

/// How much a capture holds and since when it has been sound, for comparison with the one an archive was made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Nothing has been lost from it since then.
    sound_since: Option<Timestamp>,
    /// The number of messages, edited messages and deleted messages.
    items: u64,
}

impl Extent {
    /// Whether it holds everything `other` did, as far as can be told: at least as many items, and no damage in between.
    /// Damaged items may have left Zoom's reach before they were refetched.
    pub fn covers(&self, other: &Self) -> bool {
        self.sound_since.is_some() && self.sound_since == other.sound_since && self.items >= other.items
    }
}

/// Runs until everything is fetched or failed for good, or until cancelled.
pub async fn run(context: RunContext) -> Result<RunSummary, ExtractError> {
    let location = Location::in_directory(&context.directory);
    let damage = check_earlier(&location, context.retry_failed, &context.cancel).await?;
    if context.cancel.is_cancelled() {
        return Err(ExtractError::Cancelled);
    }
    let writer = location.open_writer().await?;
    let mut reader = match location.open_reader().await {
        Ok(reader) => reader,
        Err(error) => {
            writer.close().await;
            return Err(error.into());
        }
    };
    let shared = Arc::new(Shared::new(context, location, writer));
    let result = shared.clone().work(&mut reader, &damage).await;
    // Stored even when the run failed or was cancelled: a later run adds to them.
    let left = shared.store_totals().await;
    let summary = summary(&mut reader, damage).await;
    if let Ok(RunSummary { counts, .. }) = &summary {
        shared.context.progress.set_to(counts);
    }
    reader.close().await;
    Arc::into_inner(shared).expect("every task of the run has been awaited").close().await;
    result?;
    left?;
    Ok(summary?)
}

async fn summary(reader: &mut Reader, damage: Damage) -> Result<RunSummary, CaptureError> {
    let counts = reader.counts().await?;
    let sound_since = match reader.meta(Meta::DamagedAt).await? {
        // If it cannot be read, this extent covers no other: better to keep one archive too many.
        Some(damaged_at) => damaged_at.parse().ok(),
        None => reader.time(Meta::StartedAt).await?,
    };
    let extent = Extent { sound_since, items: counts.items().iter().sum() };
    let captured_until = reader.time(Meta::CapturedUntil).await?;
    Ok(RunSummary { counts, extent, captured_until, damage })
}

impl Shared {
    async fn work(self: Arc<Self>, reader: &mut Reader, damage: &Damage) -> Result<(), ExtractError> {
        self.prepare(reader, damage).await?;
        // Even if one half of the work panics, the bookkeeping must not go on for ever.
        let _stopped = self.stop.clone().drop_guard();
        let bookkeeping = tokio::spawn(self.clone().store_totals_periodically().in_current_span());
        let listing = async {
            let listed = self.stop.run_until_cancelled(listing::list_all(&self)).await;
            let listed = listed.unwrap_or(Err(ExtractError::Cancelled));
            if listed.is_ok() {
                self.context.all_listed.cancel();
                self.found.notify_one();
            } else {
                self.stop.cancel();
            }
            listed
        };
        let (listed, fetched) = tokio::join!(listing, self.fetch_all(reader));
        self.stop.cancel();
        // Only now, as either half may begin another.
        self.wait_for_reads().await;
        bookkeeping.await.map_err(|_| ExtractError::Panicked)?;
        match listed {
            // The cause is what the other half failed with.
            Err(ExtractError::Cancelled) | Ok(()) => fetched.and(listed),
            Err(cause) => Err(cause),
        }
    }

    /// Plans a new capture, or resumes an existing one, in which damaged parts are to be refetched.
    async fn prepare(&self, reader: &mut Reader, damage: &Damage) -> Result<(), ExtractError> {
        // Before anything can fail: the totals stored at the end add to this.
        self.context.progress.resume_from(earlier::traffic_in(reader).await?);
        let account = self.context.lane.account();
        let (mark, begun_with) = (account.fingerprint(), reader.meta(Meta::Account).await?);
        let answered = earlier::answered_in(reader, self.context.request.item_choice()).await?;
        let is_of_others = begun_with.as_ref().is_some_and(|begun_with| *begun_with != mark);
        // A capture that has received nothing belongs to no account: the earlier id may have been mistyped.
        if is_of_others && !answered.is_empty() {
            return Err(ExtractError::OtherAccount);
        }
        for call in &answered {
            account.remember(call);
        }
        if let Some(day) = reader.meta(Meta::ReachBegins).await?.and_then(|day| day.parse().ok())
            // It asks Zoom, which may take as long as a pause of the account.
            && self.stop.run_until_cancelled(reach::recall(self, day)).await.is_none()
        {
            return Err(ExtractError::Cancelled);
        }
        if reader.meta(Meta::Request).await?.is_none() {
            let request = &self.context.request;
            let now = self.context.clock.now();
            let mut meta = self.context.facts.clone();
            meta.push((Meta::Request, serde_json::to_string(request).expect("a request is plain data")));
            meta.push((Meta::StartedAt, now.to_string()));
            meta.push((Meta::Account, mark));
            if request.to >= self.context.clock.today() {
                // Everything sent before this instant is requested after it.
                meta.push((Meta::CapturedUntil, now.to_string()));
            }
            let windows = windows::plan(request.range());
            self.commit(Change::Plan { windows, meta }).await?;
        } else if begun_with.as_ref() != Some(&mark) {
            // Nothing has been received from the other account.
            self.commit(Change::SetMeta(vec![(Meta::Account, mark)])).await?;
        }
        if let Damage::Parts(ranges) = damage {
            self.commit(Change::RefetchDamaged { ranges: ranges.clone(), found_at: self.now() }).await?;
        }
        if self.context.retry_failed {
            self.commit(Change::RetryFailed).await?;
        }
        // Comparisons left over by a crash: what goes into the archive early must not change afterwards.
        Box::pin(reconcile::compare_all(self)).await?;
        self.context.progress.set_to(&reader.counts().await?);
        Ok(())
    }

    /// Fetches every range; when it returns, no chain is under way any more.
    async fn fetch_all(self: &Arc<Self>, reader: &mut Reader) -> Result<(), ExtractError> {
        let mut chains = JoinSet::new();
        let fetched = self.keep_fetching(reader, &mut chains).await;
        if fetched.is_err() {
            self.stop.cancel();
        }
        while chains.join_next().await.is_some() {}
        fetched
    }

    /// Keeps as many chains going as are useful, oldest window first, until there is nothing left to find.
    async fn keep_fetching(
        self: &Arc<Self>,
        reader: &mut Reader,
        chains: &mut JoinSet<Option<Result<Vec<PendingRange>, ExtractError>>>,
    ) -> Result<(), ExtractError> {
        let (mut feed, mut fetched_since) = (Feed::default(), true);
        loop {
            // Checked before reading the capture: whatever is listed after this triggers `found` again.
            let all_listed = self.context.all_listed.is_cancelled();
            let mut exhausted = false;
            let most = self.context.lane.target_chains();
            while chains.len() < most && !self.stop.is_cancelled() {
                let Some(range) = feed.next(reader).await? else {
                    exhausted = true;
                    break;
                };
                fetched_since = true;
                let shared = self.clone();
                let chain =
                    async move { shared.stop.run_until_cancelled(ranges::follow(&shared, range)).await };
                chains.spawn(chain.in_current_span());
            }
            let nothing_else = exhausted && all_listed;
            if nothing_else && chains.is_empty() {
                if !reader.has_pending().await? && reader.unit_to_compare().await?.is_none() {
                    return Ok(());
                }
                if !std::mem::take(&mut fetched_since) {
                    let unreachable = "something is pending that no chain can fetch".to_owned();
                    return Err(CaptureError::Damaged(unreachable).into());
                }
                // Again, as ranges with low ids that were waiting for a list have been passed over.
                Box::pin(reconcile::compare_all(self)).await?;
                feed = Feed::default();
                continue;
            }
            let useful = self.context.lane.target_in_flight();
            let idle = if nothing_else { useful.saturating_sub(chains.len()) } else { 0 };
            self.splitter.update_load(chains.len(), idle);
            tokio::select! {
                Some(ended) = chains.join_next() => match ended {
                    Ok(Some(followed)) => feed.put_first(followed?),
                    Ok(None) => return Err(ExtractError::Cancelled),
                    Err(_) => return Err(ExtractError::Panicked),
                },
                () = self.found.notified() => {}
                () = self.stop.cancelled() => return Err(ExtractError::Cancelled),
            }
        }
    }

    /// Stores, every two seconds or so, the traffic so far, which only this process knows.
    async fn store_totals_periodically(self: Arc<Self>) {
        let pause = async || {
            self.context.clock.sleep(Duration::from_secs(2)).await;
            self.wait_for_commit_tick(LONG_COMMIT_INTERVAL).await;
        };
        while self.stop.run_until_cancelled(pause()).await.is_some() {
            if let Err(error) = self.store_totals().await {
                tracing::warn!(%error, "progress figures could not be saved");
            }
        }
    }
}
