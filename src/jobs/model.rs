//! What a job is, and which states may follow which.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::archive::ArchiveFile;
use crate::clock::Clock;
use crate::extract::{Extent, ExtractRequest, Snapshot};

/// A job's id: a UUID of version 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobId(pub Uuid);

impl JobId {
    pub fn new(clock: &dyn Clock) -> Self {
        Self(clock.uuid())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Completed,
    CompletedWithFailures,
    Failed,
    Cancelled,
    Expired,
}

impl JobState {
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::CompletedWithFailures,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The states in which a job ends, before it expires.
    pub const ENDS: [Self; 4] = [Self::Completed, Self::CompletedWithFailures, Self::Failed, Self::Cancelled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::CompletedWithFailures => "completed_with_failures",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether the job no longer changes by itself, except that it expires.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// Whether its last run made an archive.
    pub fn made_archive(self) -> bool {
        matches!(self, Self::Completed | Self::CompletedWithFailures)
    }

    /// The allowed transitions; any other is a bug or a conflict.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => matches!(next, Self::Running | Self::Cancelled),
            Self::Running => {
                matches!(next, Self::Completed | Self::CompletedWithFailures | Self::Failed | Self::Cancelled)
            }
            // A completed job is queued again only if its archive is lost or altered.
            Self::Completed | Self::CompletedWithFailures | Self::Failed | Self::Cancelled => {
                matches!(next, Self::Queued | Self::Expired)
            }
            Self::Expired => false,
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFailure {
    /// Stable and kebab-case.
    pub code: String,
    pub detail: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// A job as stored and as shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub state: JobState,
    pub request: ExtractRequest,
    /// The name of the requester's API key; never the key itself.
    pub requester: Option<String>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub progress: Snapshot,
    pub error: Option<JobFailure>,
    pub archive: Option<ArchiveFile>,
    /// The extent of the capture from which the archive was made.
    #[serde(default)]
    pub archived: Extent,
    /// File names of earlier archives that may hold what the current one does not.
    #[serde(default)]
    pub earlier_archives: Vec<String>,
    /// A user asked to cancel it while it was running.
    pub cancel_requested: bool,
    /// The next run retries what failed.
    pub retry_failed: bool,
}

impl Job {
    /// A new, queued job.
    pub fn new(id: JobId, request: ExtractRequest, requester: Option<String>, created_at: Timestamp) -> Self {
        Self {
            id,
            state: JobState::Queued,
            request,
            requester,
            created_at,
            started_at: None,
            finished_at: None,
            expires_at: None,
            progress: Snapshot::default(),
            error: None,
            archive: None,
            archived: Extent::default(),
            earlier_archives: Vec::new(),
            cancel_requested: false,
            retry_failed: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_each_other_as_documented() {
        let mut table = String::new();
        for from in JobState::ALL {
            let next: Vec<_> =
                JobState::ALL.into_iter().filter(|to| from.may_become(*to)).map(JobState::as_str).collect();
            table.push_str(&format!("{} -> {}\n", from.as_str(), next.join(", ")));
            assert_eq!(JobState::parse(from.as_str()), Some(from));
        }
        insta::assert_snapshot!(table, @r"
        queued -> running, cancelled
        running -> completed, completed_with_failures, failed, cancelled
        completed -> queued, expired
        completed_with_failures -> queued, expired
        failed -> queued, expired
        cancelled -> queued, expired
        expired -> 
        ");
    }
}
