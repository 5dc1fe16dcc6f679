//! What is live: running jobs with their latest figures, and a signal for every change of any job.
//!
//! In memory only. A job that is not here is in the store, and changes only through the service.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::model::{Job, JobId};

#[derive(Debug, Clone)]
struct Live {
    latest: watch::Sender<Arc<Job>>,
    cancel: CancellationToken,
}

/// A run's place in the registry, until it is dropped: then the job no longer runs, unless it has been taken up again, and whoever
/// watches it looks into the store.
#[derive(Debug)]
pub struct Entered {
    id: JobId,
    latest: watch::Receiver<Arc<Job>>,
    registry: Arc<Registry>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let is_own = |live: &Live| live.latest.subscribe().same_channel(&self.latest);
        self.registry.live.remove_if(&self.id, |_, live| is_own(live));
        self.registry.announce();
    }
}

#[derive(Debug)]
pub struct Registry {
    live: DashMap<JobId, Live>,
    /// Counts changes of state of any job.
    changes: watch::Sender<u64>,
}

impl Registry {
    pub fn new() -> Self {
        Self { live: DashMap::new(), changes: watch::Sender::new(0) }
    }

    pub fn enter(self: &Arc<Self>, job: &Job, cancel: CancellationToken) -> Entered {
        let (latest, entered) = watch::channel(Arc::new(job.clone()));
        self.live.insert(job.id, Live { latest, cancel });
        self.announce();
        Entered { id: job.id, latest: entered, registry: self.clone() }
    }

    /// Publishes new figures of a running job.
    pub fn publish(&self, job: Job) {
        if let Some(live) = self.live.get(&job.id) {
            live.latest.send_if_modified(|latest| {
                let changed = **latest != job;
                if changed {
                    *latest = Arc::new(job);
                }
                changed
            });
        }
    }

    pub fn announce(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn latest(&self, id: JobId) -> Option<Arc<Job>> {
        self.live.get(&id).map(|live| live.latest.borrow().clone())
    }

    /// The figures of a running job; `None` when it is not running.
    fn watch(&self, id: JobId) -> Option<watch::Receiver<Arc<Job>>> {
        self.live.get(&id).map(|live| live.latest.subscribe())
    }

    /// Follows one job from now on.
    pub fn follow(self: &Arc<Self>, id: JobId) -> Follower {
        let changes = self.changes.subscribe();
        Follower { id, changes, live: self.watch(id), registry: self.clone() }
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
    live: Option<watch::Receiver<Arc<Job>>>,
    registry: Arc<Registry>,
}

impl Follower {
    /// Returns when the job may have changed since the last call.
    pub async fn changed(&mut self) {
        let figures = async {
            match &mut self.live {
                Some(live) => live.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            still_live = figures => if !still_live { self.live = None },
            // The sender lives in the registry, which is held here.
            _ = self.changes.changed() => {}
        }
        if self.live.is_none() {
            self.live = self.registry.watch(self.id);
        }
    }
}
