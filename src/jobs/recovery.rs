//! Reconciles the table of jobs with the disk at start. The captures are the truth: each knows its own request, so a job
//! missing from the table is rebuilt. Only what was deleted, has expired or has no data is removed.

use std::io;
use std::path::Path;

use super::directory::{self, DELETED};
use super::error::JobsError;
use super::model::{Job, JobFailure, JobId, JobState};
use super::repair;
use super::store::JobStore;
use crate::archive::{ArchiveError, TEMPORARY};
use crate::clock::Clock;
use crate::extract::{self, Captured};
use crate::files::{free_name, unless_absent};

/// Opens the table, repairing it if it is damaged, and rebuilds what it has lost.
pub(super) async fn open(data_dir: &Path, clock: &dyn Clock) -> Result<JobStore, JobsError> {
    let store = repair::open(data_dir, clock.now()).await?;
    let known = store.ids_with_files().await?;
    let mut rebuilt = 0_u32;
    let directories = directory::all(data_dir)?;
    let names = directory::names_of_each(&directories);
    for ((id, directory), names) in directories.into_iter().zip(names) {
        let in_order = if known.contains(&id.to_string()) {
            remove_leftovers(&store, id, &directory, names).await.map(|()| false)
        } else {
            rebuild_or_remove(&store, id, &directory, clock).await
        };
        match in_order {
            Ok(was_rebuilt) => rebuilt += u32::from(was_rebuilt),
            // The directory takes up space, but must not hold anything else up.
            Err(error) => tracing::error!(
                %error, directory = %directory.display(),
                "a job's directory could not be cleaned up or recovered; retrying at the next start"
            ),
        }
    }
    if rebuilt > 0 {
        tracing::warn!(rebuilt, "jobs that the table had lost were rebuilt from their captures");
    }
    Ok(store)
}

/// Removes what an unfinished archive, an abandoned deletion or a run killed at its very end left behind.
async fn remove_leftovers(
    store: &JobStore,
    id: JobId,
    directory: &Path,
    names: io::Result<Vec<String>>,
) -> Result<(), JobsError> {
    let names = names?;
    for name in names.iter().filter(|name| [TEMPORARY, DELETED].contains(&name.as_str())) {
        unless_absent(std::fs::remove_file(directory.join(name)))?;
    }
    if names.iter().filter(|name| directory::is_archive(name)).count() > 1
        && let Some(job) = store.get(id).await?
    {
        directory::remove_each(directory::superseded_archives(directory, &job)?).await?;
    }
    Ok(())
}

/// Handles a directory that belongs to no known job with files. True if its job was rebuilt.
async fn rebuild_or_remove(
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
            Ok(None) => directory::has_recoverable_files(directory)?.then(|| "it has no capture".to_owned()),
            Err(error) if error.is_damaged_capture() => Some(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        if let Some(reason) = lost {
            // The new name is not a job id, so it is left for a person to look at.
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

/// Updates a job's figures from its capture: the record of an interrupted job dates from when its run began. An unreadable
/// capture is detected when the job resumes.
pub(super) async fn refresh_figures(job: &mut Job, directory: &Path) {
    if let Ok(Some(progress)) = extract::figures_in(directory).await {
        job.progress = progress;
    }
}

/// Rebuilds a record from a capture. If the capture is complete, the job is queued: its archive is made again, without a
/// request to Zoom. If not, the job waits for somebody to `retry` it.
/// `None` if the directory holds no capture, or one that has not begun.
async fn rebuild(id: JobId, directory: &Path, clock: &dyn Clock) -> Result<Option<Job>, ArchiveError> {
    let Some(captured) = extract::captured(directory).await? else { return Ok(None) };
    let Captured { request, started_at, requester, complete, .. } = captured;
    let started_at = started_at.unwrap_or_else(|| clock.now());
    let mut job = Job::new(id, request, requester, started_at);
    job.started_at = Some(started_at);
    refresh_figures(&mut job, directory).await;
    if !complete {
        job.state = JobState::Failed;
        // It gets no expiry time: it is kept until somebody has looked at it.
        job.finished_at = Some(clock.now());
        job.error = Some(JobFailure {
            code: "record-lost".to_owned(),
            detail:
                "the table of jobs was damaged and this job's record was lost; its capture is still there"
                    .to_owned(),
            help: Some("retry resumes where it stopped".to_owned()),
        });
    }
    Ok(Some(job))
}
