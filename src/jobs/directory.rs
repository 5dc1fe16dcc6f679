//! The directories of jobs: what they and the files in them are called, and how they come and go.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::model::{Job, JobId};
use crate::archive::{ArchiveError, ArchiveFile, sha256_of};
use crate::extract::is_damaged_copy;
use crate::files::{blocking, has_entry, is_unreadable, remove_but_last, unless_absent};

/// How the names of archives begin. The rest tells them apart.
const ARCHIVE: &str = "archive-";
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

/// The name of an archive's file tells which it is: a new one does not take the place of one that a record tells of.
pub fn archive_name(archive: &ArchiveFile) -> String {
    format!("{ARCHIVE}{}.zip", archive.sha256.get(..16).unwrap_or(&archive.sha256))
}

/// Whether this archive is there, by its size.
pub fn has_archive(directory: &Path, archive: &ArchiveFile) -> bool {
    fs::metadata(directory.join(archive_name(archive))).is_ok_and(|file| file.len() == archive.size)
}

/// The names of all archives that are there.
pub fn archives(directory: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.extend(entry?.file_name().into_string().ok().filter(|name| name.starts_with(ARCHIVE)));
    }
    Ok(found)
}

/// Removes the archives that a job's record does not tell of: earlier ones, and those of runs that were killed before they were
/// written down.
pub async fn remove_other_archives(directory: &Path, job: &Job) -> io::Result<()> {
    let directory = directory.to_owned();
    let stay: Vec<_> =
        job.archive.iter().map(archive_name).chain(job.earlier_archives.iter().cloned()).collect();
    // Of a large one it takes a while.
    let remove = move || {
        let mut others = archives(&directory)?.into_iter().filter(|name| !stay.contains(name));
        others.try_for_each(|name| unless_absent(fs::remove_file(directory.join(name))))
    };
    blocking(remove).await
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

/// Whether there is an archive, or what had been set aside of a damaged capture.
pub fn holds_something(directory: &Path) -> io::Result<bool> {
    Ok(!archives(directory)?.is_empty() || has_entry(directory, is_damaged_copy)?)
}
