//! The end of jobs: files go when the retention is over, the record stays; what no record knows is swept at start.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::model::JobState;
use super::service::{Jobs, JobsError, job_directories, remove_files};
use super::store::ListFilter;
use crate::archive::TEMPORARY;
use crate::files::unless_absent;

/// How often finished jobs are looked at.
const EVERY: Duration = Duration::from_secs(60);

pub(super) async fn run(jobs: Arc<Jobs>) {
    let (started, started_at) = (jobs.clock.elapsed(), jobs.clock.now());
    loop {
        // The wall clock may be set forward by mistake. What it said at the start and the time that has really passed
        // since must agree before anything is removed.
        let passed = SignedDuration::try_from(jobs.clock.elapsed() - started).unwrap_or(SignedDuration::MAX);
        let steady = started_at.checked_add(passed).unwrap_or(Timestamp::MAX);
        if let Err(error) = expire(&jobs, steady.min(jobs.clock.now())).await {
            tracing::error!(%error, "finished jobs could not be expired");
        }
        if jobs.stop.run_until_cancelled(jobs.clock.sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

/// Takes the files of jobs whose time is over. The state changes first: an expired job without files is the promise,
/// a completed one without files would be a lie.
async fn expire(jobs: &Jobs, now: Timestamp) -> Result<(), JobsError> {
    for state in JobState::ENDS {
        let mut before = None;
        loop {
            let page = jobs.store.list(ListFilter { state: Some(state), before, limit: 200 }).await?;
            for mut job in page.jobs {
                if job.expires_at.is_none_or(|expires| expires > now) {
                    continue;
                }
                job.state = JobState::Expired;
                job.archive = None;
                if jobs.store.expire(state, &job).await? {
                    match remove_files(jobs.directory(job.id)).await {
                        Ok(()) => tracing::info!(job.id = %job.id, "job expired, its files are removed"),
                        Err(error) => tracing::error!(
                            %error, job.id = %job.id, "job expired, its files could not be removed; the next start tries again"
                        ),
                    }
                    jobs.registry.announce();
                }
            }
            before = page.next;
            if before.is_none() {
                break;
            }
        }
    }
    Ok(())
}

/// At start: directories that no living record knows, and what is left of an archive that was cut short.
pub(super) async fn sweep(jobs: &Jobs) -> Result<(), JobsError> {
    let known = jobs.store.ids_with_files().await?;
    for (id, directory) in job_directories(&jobs.settings.data_dir)? {
        let removed = if known.contains(&id.to_string()) {
            unless_absent(std::fs::remove_file(directory.join(TEMPORARY)))
        } else {
            tracing::info!(directory = %id, "removing the files of a job that is gone");
            unless_absent(std::fs::remove_dir_all(&directory))
        };
        if let Err(error) = removed {
            // It takes room, and holds nothing else up.
            tracing::error!(%error, directory = %directory.display(), "could not be cleaned up; the next start tries again");
        }
    }
    Ok(())
}
