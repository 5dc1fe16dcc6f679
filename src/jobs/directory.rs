//! Job directories: how they and their files are named, created and removed.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use tokio_util::sync::CancellationToken;

use super::model::{Job, JobId};
use crate::archive::{ArchiveError, ArchiveFile, sha256_of};
use crate::extract::is_damaged_copy;
use crate::files::{blocking, has_entry, is_unreadable, remove_but_last, unless_absent};

/// The prefix of archive file names; the rest tells them apart.
const ARCHIVE: &str = "archive-";
/// The marker file in the directory of a job that is being deleted.
pub const DELETED: &str = "deleted";

pub fn path_of(data_dir: &Path, id: JobId) -> PathBuf {
    data_dir.join("jobs").join(id.to_string())
}

/// The directories named after job ids, oldest job first. Anything else was set aside by `recovery` or put there by a person.
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

/// Marks a job's directory for deletion. A job that never ran has none, so there is nothing to mark.
pub async fn mark_deleted(directory: &Path) -> io::Result<()> {
    let directory = directory.to_owned();
    let mark = move || {
        File::create(directory.join(DELETED))?;
        File::open(&directory)?.sync_all()
    };
    blocking(move || unless_absent(mark())).await
}

/// Removes the mark: the job is not deleted after all.
pub async fn unmark_deleted(directory: &Path) -> io::Result<()> {
    unless_absent(tokio::fs::remove_file(directory.join(DELETED)).await)
}

/// Removes a job's directory, which takes a while if the capture has many gigabytes. The deletion mark goes last: what an
/// interrupted deletion leaves must still be recognisable as such.
pub async fn remove(directory: PathBuf) -> io::Result<()> {
    blocking(move || remove_but_last(&directory, DELETED)).await
}

/// Creates a job's directory, but not its parents: a data directory that was removed must not be half recreated.
pub async fn make(directory: &Path) -> io::Result<()> {
    let directory = directory.to_owned();
    let make = move || {
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match directory.parent() {
            // A new directory is durable only once its parent is synced; a crash may have come between the two.
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    blocking(make).await
}

/// The file name of an archive contains part of its hash: a new archive does not overwrite the one that a record refers to.
pub fn archive_name(archive: &ArchiveFile) -> String {
    format!("{ARCHIVE}{}.zip", archive.sha256.get(..16).unwrap_or(&archive.sha256))
}

/// Whether this archive's file exists and has the right size.
pub fn has_archive(directory: &Path, archive: &ArchiveFile) -> bool {
    fs::metadata(directory.join(archive_name(archive))).is_ok_and(|file| file.len() == archive.size)
}

/// The names of everything in a job's directory; names that are not valid UTF-8 are none of ours.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.extend(entry?.file_name().into_string());
    }
    Ok(found)
}

/// The same for each of these directories, of which there may be thousands.
pub fn names_of_each(directories: &[(JobId, PathBuf)]) -> Vec<io::Result<Vec<String>>> {
    let threads = available_parallelism().map_or(1, usize::from);
    let share = directories.len().div_ceil(threads).max(1);
    let list = |some: &[(JobId, PathBuf)]| -> Vec<_> { some.iter().map(|(_, path)| names(path)).collect() };
    std::thread::scope(|scope| {
        let shares: Vec<_> = directories.chunks(share).map(|some| scope.spawn(move || list(some))).collect();
        shares.into_iter().flat_map(|share| share.join().expect("listing does not panic")).collect()
    })
}

pub fn is_archive(name: &str) -> bool {
    name.starts_with(ARCHIVE)
}

/// The file names of all archives in a job's directory.
pub fn archives(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = names(directory)?;
    names.retain(|name| is_archive(name));
    Ok(names)
}

/// If the job's last run made an archive, the archives that its record does not refer to: those of earlier runs, and of runs
/// killed before they could record theirs. None if its own is gone: one of them may be all there is.
pub fn superseded_archives(directory: &Path, job: &Job) -> io::Result<Vec<PathBuf>> {
    if !job.state.made_archive() || !job.archive.as_ref().is_some_and(|own| has_archive(directory, own)) {
        return Ok(Vec::new());
    }
    let stay: Vec<_> =
        job.archive.iter().map(archive_name).chain(job.earlier_archives.iter().cloned()).collect();
    let all = archives(directory)?.into_iter();
    Ok(all.filter(|name| !stay.contains(name)).map(|name| directory.join(name)).collect())
}

/// Removes these files, which takes a while if they are large.
pub async fn remove_each(files: Vec<PathBuf>) -> io::Result<()> {
    blocking(move || files.iter().try_for_each(|file| unless_absent(fs::remove_file(file)))).await
}

/// Whether an open file has this hash; slow if the file is large. An unreadable file does not.
pub async fn has_hash(file: File, sha256: String, cancel: CancellationToken) -> Result<bool, ArchiveError> {
    let compare = move || match sha256_of(file, &cancel) {
        Err(ArchiveError::Io(error)) if is_unreadable(&error) => Ok(false),
        hashed => Ok(hashed? == sha256),
    };
    blocking(compare).await
}

/// Whether the directory holds an archive or the set-aside files of a damaged capture.
pub fn has_recoverable_files(directory: &Path) -> io::Result<bool> {
    Ok(!archives(directory)?.is_empty() || has_entry(directory, is_damaged_copy)?)
}
