//! When the table of jobs was damaged or gone: what it lost is rebuilt from the captures, which know their own requests.

use std::path::Path;

use super::mending::{self, Opened};
use super::model::{Job, JobError, JobId, JobState};
use super::service::{JobsError, job_directories};
use super::store::JobStore;
use crate::clock::Clock;
use crate::extract::{self, Captured, ExtractError, Snapshot};

/// Opens the table, mending what a damaged or missing file has lost.
pub(super) async fn open(data_dir: &Path, clock: &dyn Clock) -> Result<JobStore, JobsError> {
    let (store, salvaged) = match mending::open(data_dir, clock.now()).await? {
        Opened::Sound(store) => return Ok(store),
        Opened::Incomplete(store) => (store, 0),
        Opened::Replaced { store, salvaged, set_aside } => {
            tracing::error!(
                set_aside = %set_aside.display(), salvaged,
                "the table of jobs is damaged; it was set aside and what could be read of it was kept"
            );
            (store, salvaged)
        }
    };
    let mut rebuilt = 0_u32;
    for (id, directory) in job_directories(data_dir)? {
        if store.get(id).await?.is_some() {
            continue;
        }
        match rebuild(id, &directory, clock).await {
            Ok(Some(job)) => {
                store.insert(&job, None).await?;
                rebuilt += 1;
            }
            Ok(None) => {}
            // Whatever else is in the way may be gone at the next start, which rebuilds the rest.
            Err(error) if !matches!(&error, ExtractError::Capture(inner) if inner.is_damaged()) => {
                return Err(JobsError::Unrecovered { directory, error });
            }
            Err(error) => {
                // Not a job's name any more, so the sweep leaves it to a person.
                let set_aside = directory.with_extension("damaged");
                std::fs::rename(&directory, &set_aside)?;
                tracing::error!(
                    %error, job.id = %id, set_aside = %set_aside.display(),
                    "a capture without a record cannot be read; it was set aside"
                );
            }
        }
    }
    mending::finish(data_dir)?;
    if rebuilt > 0 {
        tracing::warn!(salvaged, rebuilt, "jobs were rebuilt from their captures");
    }
    Ok(store)
}

/// A record made of what a capture tells. One that holds everything is queued: its archive is made again, without a
/// request to Zoom. One that does not waits for somebody to say `retry`.
/// Nothing when the directory holds no capture, or one that has not begun.
async fn rebuild(id: JobId, directory: &Path, clock: &dyn Clock) -> Result<Option<Job>, ExtractError> {
    let Some(captured) = extract::captured(directory).await? else { return Ok(None) };
    let Captured { request, started_at, requester, complete } = captured;
    let started_at = started_at.unwrap_or_else(|| clock.now());
    let error = (!complete).then(|| JobError {
        code: "record-lost".to_owned(),
        detail: "the table of jobs was damaged and this job's record was lost; what it captured is there"
            .to_owned(),
        help: Some("retry goes on where it stopped".to_owned()),
    });
    Ok(Some(Job {
        id,
        state: if complete { JobState::Queued } else { JobState::Failed },
        request,
        requester,
        created_at: started_at,
        started_at: Some(started_at),
        finished_at: (!complete).then(|| clock.now()),
        // Kept until somebody has looked at it.
        expires_at: None,
        progress: Snapshot::default(),
        failures_total: 0,
        error,
        archive: None,
        cancel_requested: false,
        retry_failed: false,
    }))
}
