//! What the tasks of a run share: the way to Zoom, the capture's writer and readers, the figures.
//!
//! Owns when pages are committed, and how a run's errors and failures are reported.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::reach::Reach;
use super::request::ExtractRequest;
use super::splitter::Splitter;
use crate::capture::{
    CaptureError, Chain, Change, Effect, Failed, FailureNote, Location, Meta, PageToken, Reader, Writer,
};
use crate::clock::SharedClock;
use crate::files::blocking;
use crate::zoom::lane::{Effort, Urgency};
use crate::zoom::{Call, Failure, Lane};

/// The interval at which pages are committed, if there is time to wait: a commit writes about as much for a few pages as for
/// one.
pub(super) const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// The same for commits that nothing waits for, such as the last page of a chain: every twentieth beat.
pub(super) const LONG_COMMIT_INTERVAL: Duration = COMMIT_INTERVAL.saturating_mul(20);

/// The maximum number of concurrent reads of the capture.
const READERS: usize = 4;

/// How long Zoom's page tokens are trusted.
#[derive(Debug, Clone, Copy)]
pub struct ExtractSettings {
    /// A page token older than this is not used after a restart (Zoom's tokens live 15 minutes).
    pub page_token_life: Duration,
}

impl Default for ExtractSettings {
    fn default() -> Self {
        Self { page_token_life: Duration::from_secs(14 * 60) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("cancelled")]
    Cancelled,
    /// Every further call would fail the same way.
    #[error("{0}")]
    Account(Failure),
    #[error("the data captured so far is of another Zoom account")]
    OtherAccount,
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("a task of the run panicked")]
    Panicked,
}

/// Everything a run needs.
#[derive(Debug)]
pub struct RunContext {
    pub request: ExtractRequest,
    /// Facts about the job for the archive to report (id, requester, version).
    pub facts: Vec<(Meta, String)>,
    /// The job's directory; its capture is there, or will be.
    pub directory: PathBuf,
    /// Whether to retry what failed for good in an earlier run.
    pub retry_failed: bool,
    pub lane: Arc<Lane>,
    pub progress: Arc<Progress>,
    pub settings: ExtractSettings,
    pub clock: SharedClock,
    pub cancel: CancellationToken,
    /// Cancelled by the run when no more sessions and units will be found.
    pub all_listed: CancellationToken,
}

impl RunContext {
    /// The signal to begin the archive early; `None` without a rate limit, when that would make nothing faster.
    pub fn all_listed_if_paced(&self) -> Option<CancellationToken> {
        self.lane.account().is_paced().then(|| self.all_listed.clone())
    }
}

/// What the tasks of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    pub context: RunContext,
    pub location: Location,
    writer: Writer,
    /// Notified when listing has found new ranges or has ended.
    pub found: Notify,
    pub splitter: Splitter,
    pub reach: Reach,
    /// Cancelled from outside, or when a part of the run fails, so that the others end as well.
    pub stop: CancellationToken,
    /// Limits how many tasks read the capture at once, each through a connection of its own.
    readers: Arc<Semaphore>,
    /// Limits how many of the chains that pauses have broken off again and again are read at once.
    few: OnceLock<Arc<Semaphore>>,
}

impl Shared {
    pub fn new(context: RunContext, location: Location, writer: Writer) -> Self {
        let splitter = Splitter::new(context.lane.clone(), context.progress.clone());
        let reach = Reach::new(context.clock.clone());
        let (stop, found) = (context.cancel.child_token(), Notify::new());
        let (readers, few) = (Arc::new(Semaphore::new(READERS)), OnceLock::new());
        Self { context, location, writer, found, splitter, reach, stop, readers, few }
    }

    /// Commits what is still queued for the capture and closes it.
    pub async fn close(self) {
        self.writer.close().await;
    }

    /// Reads the capture on a blocking thread; only a few reads run concurrently.
    pub async fn with_reader<T, E>(
        &self,
        read: impl AsyncFnOnce(&mut Reader) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ExtractError>
    where
        T: Send + 'static,
        E: From<CaptureError> + Send + 'static,
        ExtractError: From<E>,
    {
        let one_of_few = self.readers.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (location, runtime) = (self.location.clone(), Handle::current());
        let look = move || {
            let seen = runtime.block_on(location.with_reader(read));
            drop(one_of_few);
            Ok::<_, CaptureError>(seen)
        };
        Ok(blocking(look).await??)
    }

    /// Waits until all reads have finished, including those of chains that were dropped.
    pub async fn wait_for_reads(&self) {
        let _all = self.readers.acquire_many(READERS as u32).await;
    }

    /// Waits until the caller is one of few that hold this, about as many as use the budget fully.
    pub async fn one_of_few(&self) -> OwnedSemaphorePermit {
        let few = self.few.get_or_init(|| Arc::new(Semaphore::new(self.context.lane.target_in_flight())));
        few.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Waits for the next beat of `longest` or, if that would hold things up, of [`COMMIT_INTERVAL`], or not at all: changes
    /// between two beats are committed together.
    pub async fn wait_for_commit_tick(&self, longest: Duration) {
        let RunContext { lane, clock, .. } = &self.context;
        if let Some(beat) = [longest, COMMIT_INTERVAL].into_iter().find(|beat| lane.has_time_for(*beat)) {
            let since_the_last = clock.elapsed().as_nanos() % beat.as_nanos();
            clock.sleep(beat - Duration::from_nanos(since_the_last as u64)).await;
        }
    }

    /// Sends a call of a chain. Zoom must say "not found" twice: one wrong answer must not lose a month.
    pub async fn fetch<T, R>(&self, call: &Call, effort: Effort, read: R) -> Result<T, Failure>
    where
        T: Send + 'static,
        R: Fn(Bytes) -> Result<T, String> + Clone + Send + 'static,
    {
        let lane = &self.context.lane;
        match lane.fetch(call, effort, read.clone()).await {
            Err(first) if first.is_not_found_by_zoom() => {
                let again = lane.fetch(call, effort, read).await;
                again.map_err(|again| Failure { attempts: first.attempts + again.attempts, ..again })
            }
            answered => answered,
        }
    }

    /// Returns once the change is on disk and counted.
    pub async fn commit(&self, change: Change) -> Result<Effect, CaptureError> {
        let effect = self.writer.commit(change).await?;
        self.context.progress.count(&effect);
        Ok(effect)
    }

    pub async fn store_totals(&self) -> Result<(), ExtractError> {
        let totals = self.context.progress.totals(&self.context.lane.traffic);
        let text = serde_json::to_string(&totals).expect("totals are numbers");
        self.commit(Change::SetMeta(vec![(Meta::Traffic, text)])).await?;
        Ok(())
    }

    /// The page token to resume a chain with, unless it is too old.
    pub fn resumable_token<'a, Id>(&self, chain: &'a Chain<Id>) -> Option<&'a PageToken> {
        chain.resume.as_ref().filter(|token| !self.is_too_old(token))
    }

    pub fn is_too_old(&self, token: &PageToken) -> bool {
        self.now().duration_since(token.at).unsigned_abs() >= self.context.settings.page_token_life
    }

    /// A failure in the form the capture stores.
    pub fn failed(&self, failure: &Failure) -> Failed {
        let note = FailureNote {
            code: failure.kind.code().to_owned(),
            status: failure.status,
            zoom_code: failure.zoom_code,
            message: failure.message.clone(),
            attempts: failure.attempts,
        };
        Failed { note, at: self.now() }
    }

    pub fn now(&self) -> Timestamp {
        self.context.clock.now()
    }
}

/// A run makes the usual number of attempts and sits out outages.
pub(super) fn run_effort(urgency: Urgency) -> Effort {
    Effort { at_most: None, waits_out_outages: true, urgency }
}
