//! Expires jobs: their files are removed after the retention period, their records stay.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::error::JobsError;
use super::model::{Job, JobId, JobState};
use super::service::Jobs;
use super::store::ListFilter;

/// How often finished jobs are checked for expiry.
const EVERY: Duration = Duration::from_secs(60);

pub(super) async fn run(jobs: Arc<Jobs>) {
    let mut trusted = TrustedClock::at(jobs.clock.elapsed(), jobs.clock.now());
    loop {
        for id in jobs.pending_removals() {
            if jobs.stop.is_cancelled() {
                // The next start removes them.
                return;
            }
            remove_and_log(&jobs, id).await;
        }
        if let Err(error) = expire(&jobs, trusted.time(jobs.clock.elapsed(), jobs.clock.now())).await {
            tracing::error!(%error, "finished jobs could not be expired");
        }
        if jobs.stop.run_until_cancelled(jobs.clock.sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

/// A clock for removing files. The wall clock may be set forward by mistake, so it is believed only up to an earlier reading
/// plus the monotonic time since, or as far beyond that as it has been ahead for a whole day, as after the machine has slept:
/// the monotonic clock stands still meanwhile.
struct TrustedClock {
    since: Duration,
    at: Timestamp,
    /// Since when the wall clock has been ahead, and its smallest lead since then.
    ahead: Option<(Duration, SignedDuration)>,
}

impl TrustedClock {
    const TRUSTED_AFTER: Duration = Duration::from_secs(86_400);
    /// Smaller differences between the clocks are normal.
    const TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

    fn at(elapsed: Duration, wall: Timestamp) -> Self {
        Self { since: elapsed, at: wall, ahead: None }
    }

    fn time(&mut self, elapsed: Duration, wall: Timestamp) -> Timestamp {
        let passed = SignedDuration::try_from(elapsed.saturating_sub(self.since));
        let steady = self.at.checked_add(passed.unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX);
        let by = wall.duration_since(steady);
        if by <= Self::TOLERANCE {
            self.ahead = None;
            return steady.min(wall);
        }
        let (since, least) = self.ahead.map_or((elapsed, by), |(since, least)| (since, least.min(by)));
        self.ahead = Some((since, least));
        if elapsed.saturating_sub(since) < Self::TRUSTED_AFTER {
            return steady;
        }
        let caught_up = steady.checked_add(least).unwrap_or(Timestamp::MAX);
        *self = Self::at(elapsed, caught_up);
        caught_up
    }
}

/// Expires jobs whose time is up and removes their files; ends early if the service stops. The state changes first: nobody
/// expects files of an expired job, but a completed one without files would be a lie.
async fn expire(jobs: &Jobs, now: Timestamp) -> Result<(), JobsError> {
    for state in JobState::ENDS {
        let mut before = None;
        loop {
            let page = jobs.store.list(ListFilter { state: Some(state), before, limit: 200 }).await?;
            for job in page.jobs {
                if jobs.stop.is_cancelled() {
                    return Ok(());
                }
                if job.expires_at.is_none_or(|expires| expires > now) {
                    continue;
                }
                let expired = Job { state: JobState::Expired, archive: None, ..job.clone() };
                if jobs.store.replace(&job, &expired).await? {
                    tracing::info!(job.id = %job.id, "job expired");
                    jobs.registry.announce(job.id);
                    remove_and_log(jobs, job.id).await;
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

async fn remove_and_log(jobs: &Jobs, id: JobId) {
    match jobs.remove_directory(id).await {
        Ok(()) => tracing::info!(job.id = %id, "the job's files were removed"),
        Err(error) => {
            tracing::error!(%error, job.id = %id, "a job's files could not be removed; retrying in a minute");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_forward_is_believed_after_a_day() {
        let minutes =
            |count: i64| Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_mins(count)).unwrap();
        let mut trusted = TrustedClock::at(Duration::ZERO, minutes(0));
        let mut time = |passed: u64, shown: i64| trusted.time(Duration::from_mins(passed), minutes(shown));
        assert_eq!(time(10, 10), minutes(10));
        assert_eq!(time(20, 5), minutes(5), "set back");
        assert_eq!(time(30, 90_000), minutes(30), "set forward");
        assert_eq!(time(40, 40), minutes(40), "and put right");
        assert_eq!(time(45, 50), minutes(45), "it has slept for five minutes");
        for passed in [50, 1_000, 1_484] {
            assert_eq!(time(passed, passed.cast_signed() + 90_000), minutes(passed.cast_signed()));
        }
        assert_eq!(time(1_485, 91_485), minutes(1_490), "by so much it has been ahead for a day");
        assert_eq!(time(1_490, 91_490), minutes(1_495), "but not by more");
        assert_eq!(time(2_929, 92_929), minutes(2_934));
        assert_eq!(time(2_930, 92_930), minutes(92_930), "a day later");
    }

    #[test]
    fn a_machine_that_sleeps_every_night_is_at_most_a_day_behind() {
        let hours = |count: u64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(count.cast_signed());
        let mut trusted = TrustedClock::at(Duration::ZERO, hours(0));
        for awake in 0..60 * 16 {
            let wall = hours(awake / 16 * 24 + awake % 16);
            let behind = wall.duration_since(trusted.time(Duration::from_hours(awake), wall));
            assert!(behind <= SignedDuration::from_hours(24), "{awake}: {behind:?}");
        }
    }
}
