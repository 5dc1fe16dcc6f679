//! The operations on jobs for callers: create, get, follow, cancel, retry, delete.
//!
//! Persists before it announces. Knows nothing of HTTP; errors are in terms of jobs.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directory;
use super::error::JobsError;
use super::model::{Job, JobId, JobState};
use super::registry::{Follower, Registry};
use super::results::ResultLimits;
use super::store::{AccountPause, JobStore, ListFilter, Listed, StoreError};
use super::{recovery, retention, runner};
use crate::clock::SharedClock;
use crate::extract::{Account, ExtractRequest, ExtractSettings};
use crate::files::free_space;
use crate::sync::lock;

/// The free space needed to record a new job.
const ROOM_FOR_A_JOB: u64 = 1 << 20;

/// How jobs are run and kept.
#[derive(Debug, Clone)]
pub struct JobSettings {
    pub data_dir: PathBuf,
    pub max_running: usize,
    pub max_queued: usize,
    /// How long a finished job keeps its files.
    pub retention: Duration,
    pub extract: ExtractSettings,
}

impl JobSettings {
    /// The usual settings.
    pub fn in_directory(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            max_running: 4,
            max_queued: 100,
            retention: Duration::from_secs(7 * 86_400),
            extract: ExtractSettings::default(),
        }
    }
}

/// All jobs of one data directory.
#[derive(Debug)]
pub struct Jobs {
    pub(super) settings: JobSettings,
    pub(super) store: JobStore,
    pub(super) registry: Arc<Registry>,
    pub(super) account: Arc<Account>,
    pub(super) clock: SharedClock,
    /// Jobs that an earlier process left running and that wait to be resumed.
    pub(super) interrupted: Mutex<VecDeque<Job>>,
    /// Deleted or expired jobs whose files are not removed yet.
    pending_removals: Mutex<HashSet<JobId>>,
    /// Wakes the runner when there may be something to start.
    pub(super) wake_runner: Notify,
    pub(super) stop: CancellationToken,
    pub(super) result_limits: ResultLimits,
    /// Held while a job is admitted to the queue.
    queueing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
}

impl Jobs {
    /// Opens the store, cleans up after a crash, resumes interrupted jobs and starts the background tasks.
    pub async fn start(
        settings: JobSettings,
        account: Arc<Account>,
        clock: SharedClock,
    ) -> Result<Arc<Self>, JobsError> {
        std::fs::create_dir_all(settings.data_dir.join("jobs"))?;
        let store = recovery::open(&settings.data_dir, &*clock).await?;
        let mut interrupted = store.oldest(JobState::Running, usize::MAX).await?;
        for job in &mut interrupted {
            let read = job.clone();
            recovery::refresh_figures(job, &directory::path_of(&settings.data_dir, job.id)).await;
            if let Err(error) = store.replace(&read, job).await {
                tracing::error!(%error, job.id = %job.id, "the figures of an interrupted job could not be saved");
            }
        }
        let jobs = Arc::new(Self {
            settings,
            store,
            registry: Arc::default(),
            account,
            clock,
            interrupted: Mutex::new(interrupted.into()),
            pending_removals: Mutex::default(),
            wake_runner: Notify::new(),
            stop: CancellationToken::new(),
            result_limits: ResultLimits::default(),
            queueing: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
        });
        for state in JobState::ENDS {
            ended_counter(state).increment(0);
        }
        if let Some(AccountPause { account, waiting }) = jobs.store.pause().await?
            && account == jobs.account.fingerprint()
        {
            jobs.account.budget().pause(waiting);
        }
        jobs.tasks.spawn(remember_pauses(jobs.clone()));
        jobs.tasks.spawn(runner::run(jobs.clone()));
        jobs.tasks.spawn(retention::run(jobs.clone()));
        Ok(jobs)
    }

    /// Stops every job where it stands (it resumes at the next start) and waits for all tasks.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Closes the table of jobs; call it when nobody uses the table any more.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// Runs `work` to completion, whether or not anybody awaits it. Anything that changes a job must run this way: dropped
    /// half-way, it might leave a job that nobody starts, or one that waits for ever.
    pub fn run_to_completion<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(work)
    }

    pub async fn create(
        &self,
        request: ExtractRequest,
        requester: Option<String>,
        idempotency_key: Option<&str>,
    ) -> Result<Job, JobsError> {
        self.check_files()?;
        let one_at_a_time = self.queueing.lock().await;
        // A repeated request is answered even when the queue is full.
        if let Some(job) = self.known(&request, requester.as_deref(), idempotency_key).await? {
            return Ok(job);
        }
        let queued = self.store.queued().await?;
        if queued >= self.settings.max_queued as u64 {
            return Err(JobsError::QueueFull { queued });
        }
        let scope = scope(requester.as_deref(), idempotency_key);
        let job = Job::new(JobId::new(&*self.clock), request, requester, self.clock.now());
        if !self.store.insert(&job, scope.as_deref()).await? {
            return Err(JobsError::IdempotencyConflict);
        }
        drop(one_at_a_time);
        tracing::info!(job.id = %job.id, from = %job.request.from, to = %job.request.to, "job queued");
        self.registry.announce(job.id);
        self.wake_runner.notify_one();
        Ok(job)
    }

    /// The job that the same request created earlier with this idempotency key.
    pub async fn known(
        &self,
        request: &ExtractRequest,
        requester: Option<&str>,
        idempotency_key: Option<&str>,
    ) -> Result<Option<Job>, JobsError> {
        let Some(scope) = scope(requester, idempotency_key) else { return Ok(None) };
        match self.store.known(&scope).await? {
            Some(job) if job.request != *request => Err(JobsError::IdempotencyConflict),
            known => Ok(known.map(|job| self.with_live(job))),
        }
    }

    pub async fn get(&self, id: JobId) -> Result<Job, JobsError> {
        match self.registry.latest(id) {
            Some(live) => Ok(live),
            None => self.stored(id).await,
        }
    }

    pub async fn list(&self, filter: ListFilter) -> Result<Listed, JobsError> {
        let state = filter.state;
        let Listed { jobs, next } = self.store.list(filter).await?;
        // A job may have ended since, its end not yet recorded.
        let is_wanted = |job: &Job| state.is_none_or(|state| state == job.state);
        Ok(Listed { jobs: jobs.into_iter().map(|job| self.with_live(job)).filter(is_wanted).collect(), next })
    }

    fn with_live(&self, job: Job) -> Job {
        self.registry.latest(job.id).unwrap_or(job)
    }

    /// Starts following a job; call it before reading the job, so that no change in between is missed.
    pub fn follow(&self, id: JobId) -> Follower {
        self.registry.follow(id)
    }

    pub fn running(&self) -> usize {
        self.registry.running()
    }

    pub async fn queued(&self) -> Result<u64, JobsError> {
        Ok(self.store.queued().await?)
    }

    /// Stops a job; what it captured stays. Cancelling a cancelled job changes nothing.
    pub async fn cancel(&self, id: JobId) -> Result<Job, JobsError> {
        self.end_must_be_written(id).await?;
        loop {
            let read = self.stored(id).await?;
            let is_written = match read.state {
                JobState::Queued => self.end_at_once(&read).await?,
                JobState::Running => match self.take_interrupted(|job| job.id == id) {
                    Some(waiting) => {
                        self.end_at_once(&read).await.inspect_err(|_| self.requeue_interrupted(waiting))?
                    }
                    None => self.ask_to_stop(id).await?,
                },
                JobState::Cancelled => return Ok(read),
                state => return Err(JobsError::WrongState { state, action: "cancelled" }),
            };
            if is_written {
                tracing::info!(job.id = %id, "cancelling");
                self.registry.announce(id);
                return self.get(id).await;
            }
        }
    }

    /// Cancels a job that is not running. False if it has changed since it was read.
    async fn end_at_once(&self, read: &Job) -> Result<bool, JobsError> {
        let mut job = Job { state: JobState::Cancelled, ..read.clone() };
        self.finish(&mut job);
        let is_written = self.store.replace(read, &job).await?;
        if is_written {
            count_end(&job);
        }
        Ok(is_written)
    }

    /// Records the request before signalling the job: after a crash in between, the job still ends as `cancelled`.
    async fn ask_to_stop(&self, id: JobId) -> Result<bool, JobsError> {
        let is_written = self.store.ask_to_stop(id).await?;
        if is_written {
            self.registry.cancel(id);
        }
        Ok(is_written)
    }

    /// Queues a job again, to run what failed or is missing.
    pub async fn retry(&self, id: JobId) -> Result<Job, JobsError> {
        self.check_files()?;
        self.end_must_be_written(id).await?;
        loop {
            let read = self.stored(id).await?;
            let state = read.state;
            if !state.may_become(JobState::Queued) {
                return Err(JobsError::WrongState { state, action: "retried" });
            }
            if state == JobState::Completed && self.has_sound_archive(id).await? {
                return Err(JobsError::NothingToRetry);
            }
            let mut job = read.clone();
            if state == JobState::Completed {
                tracing::warn!(job.id = %id, "the job's archive is lost or altered");
                // The record must no longer refer to it.
                job.archive = None;
            }
            job.state = JobState::Queued;
            job.retry_failed = true;
            job.cancel_requested = false;
            job.error = None;
            (job.finished_at, job.expires_at) = (None, None);
            job.progress.percent = None;
            if self.store.replace(&read, &job).await? {
                tracing::info!(job.id = %id, "job queued again");
                self.registry.announce(id);
                self.wake_runner.notify_one();
                return Ok(job);
            }
        }
    }

    /// Removes a job and its files.
    pub async fn delete(&self, id: JobId) -> Result<(), JobsError> {
        self.check_files()?;
        self.end_must_be_written(id).await?;
        let directory = self.directory(id);
        // Decided by the state alone, so that an unreadable record can be removed as well. The state may change meanwhile.
        loop {
            let Some(state) = self.store.state(id).await? else {
                // Perhaps an earlier call could not remove its files.
                return if self.pending_removals().contains(&id) {
                    self.remove_directory(id).await.map_err(JobsError::FilesLeft)
                } else {
                    Err(JobsError::NotFound)
                };
            };
            if state == JobState::Running && self.runs_or_will(id).await? {
                directory::unmark_deleted(&directory).await?;
                return Err(JobsError::WrongState { state, action: "deleted; cancel it first" });
            }
            // Before the record goes: a directory with neither record nor mark is taken for a job that the table has lost.
            directory::mark_deleted(&directory).await?;
            match self.store.remove(id, state).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    directory::unmark_deleted(&directory).await?;
                    return Err(error.into());
                }
            }
        }
        // The record goes before the files: a record without files would be a lie.
        tracing::info!(job.id = %id, "job deleted");
        self.registry.announce(id);
        self.remove_directory(id).await.map_err(JobsError::FilesLeft)
    }

    /// Fails if a job has ended but is still recorded as running: changing it now would lose its result.
    async fn end_must_be_written(&self, id: JobId) -> Result<(), JobsError> {
        let has_ended = self.registry.latest(id).is_some_and(|live| live.state.is_final());
        if has_ended && self.store.state(id).await? == Some(JobState::Running) {
            return Err(JobsError::EndNotRecorded);
        }
        Ok(())
    }

    /// Removes the files of a deleted or expired job. If that fails, it is tried again later.
    pub(super) async fn remove_directory(&self, id: JobId) -> std::io::Result<()> {
        // Before it begins: whoever asks meanwhile must not be told that there is nothing.
        lock(&self.pending_removals).insert(id);
        directory::remove(self.directory(id)).await?;
        lock(&self.pending_removals).remove(&id);
        Ok(())
    }

    /// The deleted or expired jobs whose files are not removed yet.
    pub(super) fn pending_removals(&self) -> Vec<JobId> {
        lock(&self.pending_removals).iter().copied().collect()
    }

    /// Whether a job recorded as running is running or will be resumed. One with an unreadable record is not resumed.
    async fn runs_or_will(&self, id: JobId) -> Result<bool, JobsError> {
        match self.store.get(id).await {
            Err(StoreError::Unreadable(_)) => Ok(self.registry.latest(id).is_some()),
            read => Ok(read?.is_some()),
        }
    }

    /// Fails if somebody has removed the data directory, or the table in it, from under us.
    pub fn check_files(&self) -> Result<(), JobsError> {
        match self.settings.data_dir.join(super::store::FILE_NAME).try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(JobsError::DataDirectoryGone),
            Err(error) => Err(JobsError::DataDirectoryUnreadable(error)),
        }
    }

    /// Whether there is space to record another job. Captures leave more than that free.
    pub fn has_room(&self) -> Result<bool, JobsError> {
        let free = File::open(&self.settings.data_dir).and_then(|directory| free_space(&directory));
        Ok(free.map_err(JobsError::DataDirectoryUnreadable)? >= ROOM_FOR_A_JOB)
    }

    pub(super) fn directory(&self, id: JobId) -> PathBuf {
        directory::path_of(&self.settings.data_dir, id)
    }

    /// Sets when a job ended and when it expires.
    pub(super) fn finish(&self, job: &mut Job) {
        let now = self.clock.now();
        job.finished_at = Some(now);
        let retention =
            jiff::SignedDuration::try_from(self.settings.retention).unwrap_or(jiff::SignedDuration::MAX);
        job.expires_at = now.checked_add(retention).ok();
    }

    /// Puts an interrupted job back among those that wait to be resumed.
    fn requeue_interrupted(&self, job: Job) {
        lock(&self.interrupted).push_back(job);
        self.wake_runner.notify_one();
    }

    /// Takes the first wanted job out of those that wait to be resumed.
    pub(super) fn take_interrupted(&self, is_wanted: impl Fn(&Job) -> bool) -> Option<Job> {
        let mut interrupted = lock(&self.interrupted);
        interrupted.iter().position(is_wanted).and_then(|place| interrupted.remove(place))
    }

    pub(super) async fn stored(&self, id: JobId) -> Result<Job, JobsError> {
        self.store.get(id).await?.ok_or(JobsError::NotFound)
    }
}

pub(super) fn count_end(job: &Job) {
    ended_counter(job.state).increment(1);
}

fn ended_counter(state: JobState) -> metrics::Counter {
    metrics::counter!("zcr_jobs_ended_total", "state" => state.as_str())
}

/// The scope in which an idempotency key is unique: callers whose API keys have different names may use the same one for
/// different requests.
fn scope(requester: Option<&str>, idempotency_key: Option<&str>) -> Option<String> {
    idempotency_key.map(|key| format!("{}\n{key}", requester.unwrap_or_default()))
}

/// Stores the pause that Zoom's daily limit imposes, so that a restart does not send requests in vain.
async fn remember_pauses(jobs: Arc<Jobs>) {
    let mut pauses = jobs.account.budget().pauses();
    while let Some(Ok(())) = jobs.stop.run_until_cancelled(pauses.changed()).await {
        let pause = pauses.borrow_and_update().clone();
        let Some(waiting) = pause else { continue };
        let pause = AccountPause { account: jobs.account.fingerprint(), waiting };
        if let Err(error) = jobs.store.set_pause(&pause).await {
            tracing::warn!(%error, "the account's pause could not be saved");
        }
    }
}
