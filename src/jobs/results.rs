//! What a job has produced: its archive, and the list of what is missing from it.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::directory;
use super::error::JobsError;
use super::model::{Job, JobId, JobState};
use super::service::Jobs;
use crate::archive::{ArchiveFile, FailureLine, failures_page};
use crate::files::blocking;

/// The most captures opened for callers at the same time: each takes some file descriptors.
const READINGS: usize = 4;

/// Limits how much is read for callers at the same time.
#[derive(Debug)]
pub(super) struct ResultLimits {
    /// Archives read in full.
    hashing: Semaphore,
    /// Captures opened.
    reading: Arc<Semaphore>,
}

impl Default for ResultLimits {
    fn default() -> Self {
        Self { hashing: Semaphore::new(1), reading: Arc::new(Semaphore::new(READINGS)) }
    }
}

impl Jobs {
    /// What is missing and why, a page at a time.
    pub async fn failures(
        &self,
        id: JobId,
        after: Option<i64>,
        most: usize,
    ) -> Result<(Vec<FailureLine>, Option<i64>), JobsError> {
        let job = self.get(id).await?;
        if job.state == JobState::Expired {
            return Err(JobsError::ArchiveGone);
        }
        let directory = self.directory(id);
        let one_of_few =
            self.result_limits.reading.clone().acquire_owned().await.expect("the semaphore is never closed");
        // Runs to completion even if the caller hangs up: dropped half-way, it would close the capture only some time later.
        let page = self.run_to_completion(async move {
            let page = failures_page(&directory, after, most).await;
            drop(one_of_few);
            page
        });
        let page = page.await.map_err(std::io::Error::other)?;
        if let Ok(Some(page)) = page {
            return Ok(page);
        }
        // The job may have only just begun. Or its files are gone, and an empty page would claim that nothing is missing.
        let job = self.get(id).await?;
        if job.state == JobState::Expired {
            return Err(JobsError::ArchiveGone);
        }
        if page?.is_none() && job.state.is_final() && job.progress.counts.failures > 0 {
            return Err(JobsError::CaptureGone);
        }
        Ok((Vec::new(), None))
    }

    /// The job, its archive's expected size and hash, and the archive's open file, if there is one.
    pub async fn archive(&self, id: JobId) -> Result<(Job, ArchiveFile, File), JobsError> {
        loop {
            let job = self.stored_or_ended(id).await?;
            let state = job.state;
            if state == JobState::Expired {
                return Err(JobsError::ArchiveGone);
            }
            let archive = job.archive.clone().ok_or(JobsError::ArchiveNotReady { state })?;
            let path = self.directory(id).join(directory::archive_name(&archive));
            let named = path.clone();
            let open = move || {
                let file = File::open(path)?;
                let size = file.metadata()?.len();
                Ok::<_, std::io::Error>((file, size))
            };
            match blocking(open).await {
                Ok((file, size)) if size == archive.size => return Ok((job, archive, file)),
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let named = format!("{}: {error}", named.display());
                    return Err(std::io::Error::new(error.kind(), named).into());
                }
                _ => {}
            }
            // A new archive may have replaced it since the record was read.
            if self.stored_or_ended(id).await?.archive.as_ref() == Some(&archive) {
                // While the job runs, the archive is being made again.
                let is_final = state.is_final();
                return Err(if is_final {
                    JobsError::ArchiveLost
                } else {
                    JobsError::ArchiveNotReady { state }
                });
            }
        }
    }

    /// A job as recorded, or as it ended if its end could not be recorded yet.
    async fn stored_or_ended(&self, id: JobId) -> Result<Job, JobsError> {
        match self.registry.latest(id) {
            Some(ended) if ended.state.is_final() => Ok(ended),
            _ => self.stored(id).await,
        }
    }

    /// Whether the archive exists and is intact, byte for byte.
    pub(super) async fn has_sound_archive(&self, id: JobId) -> Result<bool, JobsError> {
        match self.archive(id).await {
            Ok((_, archive, file)) => {
                let _one_at_a_time =
                    self.result_limits.hashing.try_acquire().map_err(|_| JobsError::HashCheckRunning)?;
                Ok(directory::has_hash(file, archive.sha256, self.stop.clone()).await?)
            }
            Err(JobsError::ArchiveLost | JobsError::ArchiveNotReady { .. } | JobsError::ArchiveGone) => {
                Ok(false)
            }
            // The archive may exist all the same.
            Err(error) => Err(error),
        }
    }
}
