//! Why a job could not be stored, changed or shown.

use super::model::JobState;
use super::store::StoreError;
use crate::archive::ArchiveError;
use crate::files::is_full;

#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    #[error("there is no such job")]
    NotFound,
    #[error("the idempotency key was used before with another request")]
    IdempotencyConflict,
    #[error("the queue is full (queued: {queued}, see MAX_QUEUED_JOBS); try again later")]
    QueueFull { queued: u64 },
    #[error("a job in state {} cannot be {action}", state.as_str())]
    WrongState { state: JobState, action: &'static str },
    #[error("the job is complete and its archive is intact: there is nothing to retry")]
    NothingToRetry,
    #[error("the job has ended, but its result could not be saved yet; saving is retried every few seconds")]
    EndNotRecorded,
    #[error("the archive is not ready")]
    ArchiveNotReady { state: JobState },
    #[error("another archive is being checked against its hash; try again later")]
    HashCheckRunning,
    #[error("the archive file is missing or was altered")]
    ArchiveLost,
    #[error("the capture, which knows what is missing, is gone")]
    CaptureGone,
    #[error("the archive is gone")]
    ArchiveGone,
    #[error("the job is deleted, but some of its files could not be removed: {0}")]
    FilesLeft(std::io::Error),
    #[error("the data directory is gone; restart the service once it is back")]
    DataDirectoryGone,
    #[error("the data directory cannot be read: {0}")]
    DataDirectoryUnreadable(std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl JobsError {
    pub fn is_damaged_capture(&self) -> bool {
        match self {
            Self::CaptureGone => true,
            Self::Archive(error) => error.is_damaged_capture(),
            _ => false,
        }
    }

    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Store(error) => error.is_disk_full(),
            Self::Archive(error) => error.is_disk_full(),
            Self::Io(error) => is_full(error),
            _ => false,
        }
    }
}
