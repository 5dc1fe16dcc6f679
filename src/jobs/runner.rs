//! Runs jobs: claims the oldest queued one while there is a free slot, extracts, assembles, records how it ended.
//!
//! A job interrupted by a shutdown or a crash stays `running` in the store and is resumed at the next start.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::directory;
use super::failure::{self, RunEnd};
use super::model::{Job, JobFailure, JobState};
use super::registry::Entered;
use super::service::{Jobs, count_end};
use super::store::StoreError;
use crate::archive::{self, ArchiveError, ArchiveFile, Form};
use crate::extract::{self, ExtractError, Meta, Progress, RunContext, RunSummary, Snapshot};

/// How often figures are published: twice a second, the most that the API promises.
const PUBLISH_EVERY: Duration = Duration::from_millis(500);
/// The delay before retrying after a store error.
const STORE_TROUBLE: Duration = Duration::from_secs(5);

/// Starts jobs until the service stops, then waits for them to stop.
pub(super) async fn run(jobs: Arc<Jobs>) {
    let mut running = JoinSet::new();
    'starting: while !jobs.stop.is_cancelled() {
        while running.len() < jobs.settings.max_running {
            let next = match jobs.take_interrupted(|_| true) {
                Some(job) => {
                    tracing::info!(job.id = %job.id, "resuming an interrupted job");
                    Ok(Some(job))
                }
                None => claim(&jobs).await,
            };
            match next {
                Ok(Some(job)) => {
                    let cancel = jobs.stop.child_token();
                    let entered = jobs.registry.enter(&job, cancel.clone());
                    // Everything logged within the span names its job.
                    let span = tracing::error_span!("job", job.id = %job.id);
                    running.spawn(run_one(jobs.clone(), job, cancel, entered).instrument(span));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the next job could not be claimed, retrying");
                    jobs.stop.run_until_cancelled(jobs.clock.sleep(STORE_TROUBLE)).await;
                    continue 'starting;
                }
            }
        }
        tokio::select! {
            Some(ended) = running.join_next() => report_panic(ended),
            () = jobs.wake_runner.notified() => {}
            () = jobs.stop.cancelled() => {}
        }
    }
    while let Some(ended) = running.join_next().await {
        report_panic(ended);
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job's task ended abnormally; the job resumes at the next start");
    }
}

async fn claim(jobs: &Jobs) -> Result<Option<Job>, StoreError> {
    while let Some(queued) = jobs.store.oldest(JobState::Queued, 1).await?.pop() {
        let started_at = queued.started_at.or_else(|| Some(jobs.clock.now()));
        let job = Job { state: JobState::Running, started_at, ..queued.clone() };
        if jobs.store.replace(&queued, &job).await? {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

async fn run_one(jobs: Arc<Jobs>, mut job: Job, cancel: CancellationToken, entered: Entered) {
    let started = jobs.clock.elapsed();
    if is_cancelled(&jobs, &job).await {
        cancel.cancel();
    }
    let lane = Arc::new(jobs.account.lane());
    let progress = Arc::new(Progress::default());
    let claimed = job.clone();
    let figures = || {
        let now = progress.snapshot(&lane.traffic, lane.stalled(), jobs.clock.elapsed());
        // Until the capture has been read, the figures of an earlier run are the best known.
        if now.counts.windows_total == 0 {
            Snapshot { waiting: now.waiting, ..claimed.progress.clone() }
        } else {
            now
        }
    };
    let directory = jobs.directory(job.id);
    let context = RunContext {
        request: job.request.clone(),
        facts: facts(&job),
        directory: directory.clone(),
        retry_failed: job.retry_failed,
        lane: lane.clone(),
        progress: progress.clone(),
        settings: jobs.settings.extract,
        clock: jobs.clock.clone(),
        cancel: cancel.clone(),
        all_listed: CancellationToken::new(),
    };
    let publish = || entered.publish(Job { progress: figures(), ..job.clone() });
    let end = publishing(&jobs, publish, Box::pin(work(&jobs, context, &claimed))).await;
    job.progress = figures();
    let elapsed_ms = jobs.clock.elapsed().saturating_sub(started).as_millis() as u64;
    if matches!(end, Err(RunEnd::Interrupted)) && jobs.stop.is_cancelled() {
        tracing::info!(elapsed_ms, "job interrupted; it resumes at the next start");
    } else {
        fill_in_outcome(&jobs, &mut job, end, &directory);
        // Listed while the job is ours: once its end is recorded another run may publish an archive.
        let superseded = directory::superseded_archives(&directory, &job);
        if record_end(&jobs, &entered, &claimed, &job).await {
            count_end(&job);
            log_end(&job, elapsed_ms);
            drop(entered);
            let removed = async { directory::remove_each(superseded?).await };
            if let Err(error) = removed.await {
                tracing::warn!(%error, "earlier archives could not be removed; the next start tries again");
            }
        }
    }
}

/// Does the work, and publishes the job's figures meanwhile. A job that panics must not stay `running` for ever.
async fn publishing(
    jobs: &Jobs,
    publish: impl Fn(),
    work: impl Future<Output = Result<Made, RunEnd>>,
) -> Result<Made, RunEnd> {
    let work = AssertUnwindSafe(work).catch_unwind();
    tokio::pin!(work);
    loop {
        tokio::select! {
            end = &mut work => return end.unwrap_or_else(|_| Err(ExtractError::Panicked.into())),
            () = jobs.clock.sleep(PUBLISH_EVERY) => publish(),
        }
    }
}

/// Whether a claimed job was cancelled, perhaps before it entered the registry, when it could not be signalled.
async fn is_cancelled(jobs: &Jobs, claimed: &Job) -> bool {
    loop {
        match jobs.store.get(claimed.id).await {
            Ok(stored) => return stored.as_ref().unwrap_or(claimed).cancel_requested,
            // Not handled here: the job goes on with the record that was claimed.
            Err(StoreError::Unreadable(_)) => return claimed.cancel_requested,
            Err(error) => {
                tracing::error!(%error, "a job's record could not be read, retrying");
                if jobs.stop.run_until_cancelled(jobs.clock.sleep(STORE_TROUBLE)).await.is_none() {
                    return claimed.cancel_requested;
                }
            }
        }
    }
}

/// Fills in the outcome of a job that has ended.
fn fill_in_outcome(jobs: &Jobs, job: &mut Job, end: Result<Made, RunEnd>, directory: &Path) {
    match end {
        Ok(Made { archive, kept, summary: RunSummary { counts, extent, .. } }) => {
            let is_whole = counts.failures == 0;
            job.state = if is_whole { JobState::Completed } else { JobState::CompletedWithFailures };
            job.archive = Some(archive);
            job.earlier_archives = kept;
            job.archived = extent;
            job.progress.percent = Some(100.0);
        }
        Err(RunEnd::Failed(error)) => {
            job.state = JobState::Failed;
            job.error = Some(error);
        }
        Err(RunEnd::Interrupted) => job.state = JobState::Cancelled,
    }
    // This may be the archive of an earlier run, and its file may be gone.
    job.archive = job.archive.take().filter(|archive| directory::has_archive(directory, archive));
    // Reset only now: after a crash before this line the job retries once more, which loses nothing.
    (job.retry_failed, job.cancel_requested) = (false, false);
    (job.progress.requests_per_second, job.progress.eta_seconds) = (None, None);
    (job.progress.waiting, job.progress.retrying) = (None, 0);
    jobs.finish(job);
}

fn log_end(job: &Job, elapsed_ms: u64) {
    tracing::info!(
        state = job.state.as_str(),
        sessions = job.progress.counts.sessions_total,
        messages = job.progress.counts.messages,
        requests = job.progress.traffic.requests,
        retries = job.progress.traffic.retries,
        rate_limited = job.progress.traffic.rate_limited,
        failures = job.progress.counts.failures,
        elapsed_ms,
        error = job.error.as_ref().map(|error| error.code.as_str()),
        "job ended"
    );
    if let Some(JobFailure { code, detail, .. }) = &job.error {
        tracing::error!(code, detail, "job failed");
    }
}

/// Records how a job ended. False if its record is gone or changed, or if the service stopped first, in which case the job
/// resumes at the next start.
async fn record_end(jobs: &Jobs, entered: &Entered, claimed: &Job, job: &Job) -> bool {
    loop {
        match jobs.store.replace(claimed, job).await {
            Ok(true) => return true,
            Ok(false) => {
                tracing::error!("the record of a job that has ended is gone or was changed meanwhile");
                return false;
            }
            Err(error) => {
                tracing::error!(%error, "the end of a job could not be recorded, retrying");
                // Published all the same: the job has ended. A restart would resume it, which loses nothing.
                entered.publish(job.clone());
                let slept = jobs.stop.run_until_cancelled(jobs.clock.sleep(STORE_TROUBLE)).await;
                if slept.is_none() {
                    return false;
                }
            }
        }
    }
}

fn facts(job: &Job) -> Vec<(Meta, String)> {
    let mut facts =
        vec![(Meta::JobId, job.id.to_string()), (Meta::Version, env!("CARGO_PKG_VERSION").to_owned())];
    if let Some(requester) = &job.requester {
        facts.push((Meta::Requester, requester.clone()));
    }
    facts
}

/// The result of a successful run.
struct Made {
    archive: ArchiveFile,
    /// Files of earlier archives that may hold what this one does not.
    kept: Vec<String>,
    summary: RunSummary,
}

/// Extracts and assembles.
async fn work(jobs: &Jobs, context: RunContext, job: &Job) -> Result<Made, RunEnd> {
    let directory = context.directory.clone();
    directory::make(&directory).await.map_err(|error| failure::no_directory(&error))?;
    let cancel = context.cancel.clone();
    let input = archive::AssembleInput { directory: directory.clone(), form: Form::Zip, cancel };
    let all_listed = context.all_listed_if_paced();
    let (summary, begun) = archive::alongside(extract::run(context), input, all_listed, &jobs.clock).await?;
    let assembled = archive::assemble(begun).await?;
    let archive = assembled.archive.clone().expect("a zip has a size and a hash");
    let name = directory::archive_name(&archive);
    let mut kept = job.earlier_archives.clone();
    // What a damaged capture has lost may be out of Zoom's reach by now.
    if !summary.extent.covers(&job.archived) {
        kept = directory::archives(&directory).map_err(ArchiveError::Io)?;
        kept.retain(|earlier| *earlier != name);
        if !kept.is_empty() {
            tracing::warn!(?kept, "earlier archives may hold more than the new one and are kept beside it");
        }
    }
    // Any file of this name holds the same bytes, or should. Until it is updated, the record refers to the previous archive.
    assembled.publish(directory.join(name), |_| None).await?;
    Ok(Made { archive, kept, summary })
}
