//! What errors about files mean, and how much room there is.

use std::fs::File;
use std::io;

/// What is not there need not be moved or removed.
pub fn unless_absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The disk, or what its user may have of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes that may still be written to the disk that holds this file or directory.
pub fn free_space(on: &File) -> io::Result<u64> {
    let stat = rustix::fs::fstatvfs(on)?;
    Ok(stat.f_bavail * stat.f_frsize)
}
