//! The archive: everything a capture holds, as files people and programs can read. A pure function of the capture.
//!
//! `layout` names entries, `render` makes the small documents, `files` describes the files of a session. `assemble` has them
//! written (`copy`) to a `sink`, a zip (`zip`) or a directory (`directory`), and hashed in parallel (`hash`); `lines` writes
//! the long lists line by line; `scratch` keeps names and hashes, sorted (`sort`). `ahead` starts while the rest is still being
//! fetched. Nothing here asks Zoom for anything, and the only times in an archive are the capture's own.

mod ahead;
mod assemble;
mod copy;
mod directory;
mod files;
mod hash;
mod layout;
mod lines;
mod render;
mod scratch;
mod sink;
mod sort;
mod write_behind;
mod zip;

use std::path::PathBuf;
use std::thread::ScopedJoinHandle;

pub use ahead::{Begun, alongside};
pub use assemble::{AssembleInput, assemble};
pub use directory::FOLDERS;
pub use hash::sha256_of;
pub use render::{FailureLine, failures_page};
pub use sink::{Assembled, Form, TEMPORARY};

use tokio_util::sync::CancellationToken;

use crate::capture::CaptureError;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("not enough free space: {} MB are needed and {} are free in {}", needed.div_ceil(1_000_000), free / 1_000_000, path.display())]
    NoRoom { needed: u64, free: u64, path: PathBuf },
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("the archive could not be written: {0}")]
    Io(#[from] std::io::Error),
    #[error("assembly was cancelled")]
    Cancelled,
}

impl ArchiveError {
    pub fn is_damaged_capture(&self) -> bool {
        matches!(self, Self::Capture(error) if error.is_damaged())
    }

    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Capture(error) => error.is_disk_full(),
            Self::Io(error) => crate::files::is_full(error),
            Self::Cancelled => false,
        }
    }
}

/// Returns an error once the job has been cancelled.
fn ensure_not_cancelled(cancel: &CancellationToken) -> Result<(), ArchiveError> {
    if cancel.is_cancelled() { Err(ArchiveError::Cancelled) } else { Ok(()) }
}

/// Joins a thread and returns its result; a panic becomes an error.
fn join<T>(thread: ScopedJoinHandle<'_, Result<T, ArchiveError>>) -> Result<T, ArchiveError> {
    thread.join().map_err(|_| std::io::Error::other("a thread panicked"))?
}

/// A finished archive.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ArchiveFile {
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}
