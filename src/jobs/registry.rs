//! Live state: running jobs with their latest figures, and a signal for every change of a job that somebody follows.
//!
//! In memory only. A job that is not here is in the store, and changes only through the service.

use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::model::{Job, JobId};
use crate::sync::lock;

/// A job with its latest figures.
type Latest = Arc<Mutex<Job>>;

#[derive(Debug)]
struct Live {
    latest: Latest,
    cancel: CancellationToken,
}

/// A run's entry in the registry. Dropping it removes the entry, unless a newer run of the job has replaced it, and makes
/// followers look in the store.
#[derive(Debug)]
pub struct Entered {
    id: JobId,
    latest: Latest,
    registry: Arc<Registry>,
}

impl Entered {
    /// Publishes new figures of the job.
    pub fn publish(&self, job: Job) {
        let mut latest = lock(&self.latest);
        if *latest != job {
            *latest = job;
            drop(latest);
            self.registry.announce(self.id);
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.registry.live.remove_if(&self.id, |_, live| Arc::ptr_eq(&live.latest, &self.latest));
        self.registry.announce(self.id);
    }
}

#[derive(Debug, Default)]
pub struct Registry {
    live: DashMap<JobId, Live>,
    /// Counts the changes of each followed job.
    changes: DashMap<JobId, watch::Sender<u64>>,
}

impl Registry {
    pub fn enter(self: &Arc<Self>, job: &Job, cancel: CancellationToken) -> Entered {
        let latest = Arc::new(Mutex::new(job.clone()));
        self.live.insert(job.id, Live { latest: latest.clone(), cancel });
        self.announce(job.id);
        Entered { id: job.id, latest, registry: self.clone() }
    }

    /// Tells the followers of this job to look in the store, or here.
    pub fn announce(&self, id: JobId) {
        if let Some(changes) = self.changes.get(&id) {
            changes.send_modify(|count| *count += 1);
        }
    }

    pub fn latest(&self, id: JobId) -> Option<Job> {
        let latest = self.live.get(&id)?.latest.clone();
        let job = lock(&latest);
        Some(job.clone())
    }

    /// Starts following a job.
    pub fn follow(self: &Arc<Self>, id: JobId) -> Follower {
        let changes = self.changes.entry(id).or_default().subscribe();
        Follower { id, changes, registry: self.clone() }
    }

    pub fn cancel(&self, id: JobId) {
        if let Some(live) = self.live.get(&id) {
            live.cancel.cancel();
        }
    }

    pub fn running(&self) -> usize {
        self.live.len()
    }
}

/// Follows one job through its life, whether it runs or not.
#[derive(Debug)]
pub struct Follower {
    id: JobId,
    changes: watch::Receiver<u64>,
    registry: Arc<Registry>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Drops its own receiver first, so that the last follower finds no receiver left.
        self.changes = watch::channel(0).1;
        self.registry.changes.remove_if(&self.id, |_, changes| changes.receiver_count() == 0);
    }
}

impl Follower {
    /// Returns when the job may have changed since the last call.
    pub async fn changed(&mut self) {
        // Never closed: the registry holds the sender as long as anybody follows.
        let _ = self.changes.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use futures_util::FutureExt;

    #[test]
    fn followers_are_told_of_their_own_job_and_leave_nothing_behind() {
        let clock = SystemClock::new();
        let registry = Arc::new(Registry::default());
        let [one, other] = [(); 2].map(|()| JobId::new(&clock));
        let (mut first, mut second) = (registry.follow(one), registry.follow(one));
        let mut of_other = registry.follow(other);
        registry.announce(one);
        for follower in [&mut first, &mut second] {
            assert!(follower.changed().now_or_never().is_some());
            assert!(follower.changed().now_or_never().is_none(), "once");
        }
        assert!(of_other.changed().now_or_never().is_none());
        drop(first);
        registry.announce(one);
        assert!(second.changed().now_or_never().is_some(), "the others still follow");
        drop((second, of_other));
        assert!(registry.changes.is_empty());
    }
}
