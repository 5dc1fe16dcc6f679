//! The end of jobs: files go when the retention is over, the record stays.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::model::{Job, JobState};
use super::service::{Jobs, JobsError, remove_files};
use super::store::ListFilter;

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
            for job in page.jobs {
                if job.expires_at.is_none_or(|expires| expires > now) {
                    continue;
                }
                let expired = Job { state: JobState::Expired, archive: None, ..job.clone() };
                if jobs.store.replace(&job, &expired).await? {
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
