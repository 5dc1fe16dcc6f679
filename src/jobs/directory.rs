//! The directories of jobs: what they and the files in them are called, and how they come and go.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::model::JobId;
use crate::archive::{ArchiveError, ArchiveFile, sha256_of};
use crate::extract::is_damaged_copy;
use crate::files::{blocking, free_name, has_entry, is_unreadable, remove_but_last, unless_absent};

/// The archive.
pub const ARCHIVE_NAME: &str = "archive.zip";
/// How the names of earlier archives begin that may hold more: what a damaged capture has lost may be out of Zoom's reach by now.
const EARLIER_ARCHIVE: &str = "archive.before";
/// In the directory of a job that is being deleted.
pub const DELETED: &str = "deleted";

pub fn path_of(data_dir: &Path, id: JobId) -> PathBuf {
    data_dir.join("jobs").join(id.to_string())
}

/// The directories that have a job's id for a name, oldest job first. Anything else there somebody put there, or `recovery`
/// set aside.
pub fn all(data_dir: &Path) -> io::Result<Vec<(JobId, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir.join("jobs"))? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok().filter(|id: &JobId| id.to_string() == name));
        found.extend(id.map(|id| (id, entry.path())));
    }
    found.sort_unstable_by_key(|(id, _)| id.0);
    Ok(found)
}

/// A job that never ran has no directory, and nothing to be marked.
pub async fn mark_deleted(directory: &Path) -> io::Result<()> {
    let directory = directory.to_owned();
    let mark = move || {
        File::create(directory.join(DELETED))?;
        File::open(&directory)?.sync_all()
    };
    blocking(move || unless_absent(mark())).await
}

/// It is not deleted after all.
pub async fn unmark_deleted(directory: &Path) -> io::Result<()> {
    unless_absent(tokio::fs::remove_file(directory.join(DELETED)).await)
}

/// A capture of many gigabytes takes a while to go. The mark of a deletion goes last: what is left of one that was cut short
/// must still tell that it was meant.
pub async fn remove(directory: PathBuf) -> io::Result<()> {
    blocking(move || remove_but_last(&directory, DELETED)).await
}

/// Makes a job's directory. Not its parents: a data directory that was removed must not come back half.
pub async fn make(directory: &Path) -> io::Result<()> {
    let directory = directory.to_owned();
    let make = move || {
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match directory.parent() {
            // A directory is durable once its own is; a crash may have come between.
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    blocking(make).await
}

/// Whether this archive is there. After a crash the file may be newer than its record, so sizes are compared.
pub fn has_archive(directory: &Path, archive: &ArchiveFile) -> bool {
    fs::metadata(directory.join(ARCHIVE_NAME)).is_ok_and(|file| file.len() == archive.size)
}

/// Whether an open file is this archive, byte for byte: that of a large one takes a while. What the disk cannot read is not.
pub async fn is_it(
    file: File,
    archive: ArchiveFile,
    cancel: CancellationToken,
) -> Result<bool, ArchiveError> {
    let compare = move || {
        if file.metadata()?.len() != archive.size {
            return Ok(false);
        }
        match sha256_of(file, &cancel) {
            Err(ArchiveError::Io(error)) if is_unreadable(&error) => Ok(false),
            hashed => Ok(hashed? == archive.sha256),
        }
    };
    blocking(compare).await
}

/// A name for the archive that is there, when another is to take its place and may hold less.
pub fn name_to_keep(directory: &Path) -> PathBuf {
    let kept = free_name(|suffix| directory.join(format!("{EARLIER_ARCHIVE}{suffix}.zip")));
    tracing::warn!(kept = %kept.display(), "the archive before may hold more, and is kept");
    kept
}

/// Whether there is an archive, or what had been set aside of a damaged capture.
pub fn holds_something(directory: &Path) -> io::Result<bool> {
    let is_archive = |name: &str| name == ARCHIVE_NAME || name.starts_with(EARLIER_ARCHIVE);
    has_entry(directory, |name| is_damaged_copy(name) || is_archive(&name.to_string_lossy()))
}
