//! At start: the table of jobs and what is on disk are brought together. The captures are the truth: they know their own
//! requests, so a job that the table does not know is rebuilt. Nothing goes but what somebody deleted, or what has expired.

use std::path::Path;

use super::directory::{self, DELETED};
use super::error::JobsError;
use super::mending::{self, Opened};
use super::model::{Job, JobFailure, JobId, JobState};
use super::store::JobStore;
use crate::archive::{ArchiveError, TEMPORARY};
use crate::clock::Clock;
use crate::extract::{self, Captured};
use crate::files::{free_name, unless_absent};

/// Opens the table, mending it if it is damaged, and rebuilds what it has lost.
pub(super) async fn open(data_dir: &Path, clock: &dyn Clock) -> Result<JobStore, JobsError> {
    let store = match mending::open(data_dir, clock.now()).await? {
        Opened::Sound(store) => store,
        Opened::Replaced { store, salvaged, set_aside } => {
            tracing::error!(
                set_aside = %set_aside.display(), salvaged,
                "the table of jobs is damaged; it was set aside and what could be read of it was kept"
            );
            store
        }
    };
    let known = store.ids_with_files().await?;
    let mut rebuilt = 0_u32;
    for (id, directory) in directory::all(data_dir)? {
        let in_order = if known.contains(&id.to_string()) {
            remove_leftovers(&directory).map(|()| false)
        } else {
            bring_back_or_remove(&store, id, &directory, clock).await
        };
        match in_order {
            Ok(was_rebuilt) => rebuilt += u32::from(was_rebuilt),
            // It takes room, and holds nothing else up.
            Err(error) => tracing::error!(
                %error, directory = %directory.display(),
                "could not be put in order; the next start tries again"
            ),
        }
    }
    if rebuilt > 0 {
        tracing::warn!(rebuilt, "jobs that the table had lost were rebuilt from their captures");
    }
    Ok(store)
}

/// What there is of an archive that was not finished, or of a deletion that came to nothing.
fn remove_leftovers(directory: &Path) -> Result<(), JobsError> {
    for name in [TEMPORARY, DELETED] {
        unless_absent(std::fs::remove_file(directory.join(name)))?;
    }
    Ok(())
}

/// What becomes of a directory that no job with files is known to have. True if its job is there again.
async fn bring_back_or_remove(
    store: &JobStore,
    id: JobId,
    directory: &Path,
    clock: &dyn Clock,
) -> Result<bool, JobsError> {
    let is_over = directory.join(DELETED).exists() || store.state(id).await? == Some(JobState::Expired);
    if !is_over {
        let lost = match rebuild(id, directory, clock).await {
            Ok(Some(job)) => {
                store.insert(&job, None).await?;
                return Ok(true);
            }
            Ok(None) => directory::holds_something(directory)?.then(|| "it has no capture".to_owned()),
            Err(error) if error.is_damaged_capture() => Some(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        if let Some(reason) = lost {
            // Not a job's name any more, so it is left to a person.
            let set_aside = free_name(|suffix| directory.with_extension(format!("damaged{suffix}")));
            std::fs::rename(directory, &set_aside)?;
            tracing::error!(
                reason, job.id = %id, set_aside = %set_aside.display(),
                "a job without a record cannot be rebuilt; it was set aside"
            );
            return Ok(false);
        }
    }
    tracing::info!(directory = %id, "removing the files of a job that is gone");
    directory::remove(directory.to_owned()).await?;
    Ok(false)
}

/// What a job has come to, its capture tells: the record of one that was interrupted is of the time when it began. A capture that
/// cannot be read is found when the job goes on.
pub(super) async fn recall(job: &mut Job, directory: &Path) {
    if let Ok(Some((progress, failures))) = extract::figures_in(directory).await {
        (job.progress, job.failures_total) = (progress, failures);
    }
}

/// A record made of what a capture tells. One that holds everything is queued: its archive is made again, without a
/// request to Zoom. One that does not waits for somebody to say `retry`.
/// Nothing when the directory holds no capture, or one that has not begun.
async fn rebuild(id: JobId, directory: &Path, clock: &dyn Clock) -> Result<Option<Job>, ArchiveError> {
    let Some(captured) = extract::captured(directory).await? else { return Ok(None) };
    let Captured { request, started_at, requester, complete, .. } = captured;
    let started_at = started_at.unwrap_or_else(|| clock.now());
    let mut job = Job::new(id, request, requester, started_at);
    job.started_at = Some(started_at);
    // They may hold what the capture does not.
    job.earlier_archives = directory::archives(directory)?;
    recall(&mut job, directory).await;
    if !complete {
        job.state = JobState::Failed;
        // It does not expire: kept until somebody has looked at it.
        job.finished_at = Some(clock.now());
        job.error = Some(JobFailure {
            code: "record-lost".to_owned(),
            detail: "the table of jobs was damaged and this job's record was lost; what it captured is there"
                .to_owned(),
            help: Some("retry goes on where it stopped".to_owned()),
        });
    }
    Ok(Some(job))
}
