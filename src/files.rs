//! Helpers for files: blocking work, what I/O errors mean, free space, names that are not taken, and contents of directories.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Runs work that waits for the disk or keeps a CPU busy on the blocking pool, where no sockets are served.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Treats an absent file as success: it need not be moved or removed.
pub fn unless_absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether anything has this name, even a dangling symlink.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whether the disk, or the user's quota on it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the disk can no longer read its data (`EIO`).
pub fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Bytes that may still be written to the disk that holds this file or directory.
pub fn free_space(on: &File) -> io::Result<u64> {
    let stat = rustix::fs::fstatvfs(on)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// `name("")`, `name("-2")`, `name("-3")` and so on.
pub fn numbered<T>(name: impl Fn(&str) -> T) -> impl Iterator<Item = T> {
    (1_u64..).map(move |number| if number == 1 { name("") } else { name(&format!("-{number}")) })
}

/// The path with `suffix` appended to its file name.
pub fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The first of the [`numbered`] names that is not taken.
pub fn free_name(name: impl Fn(&str) -> PathBuf) -> PathBuf {
    numbered(name).find(|path| !is_there(path)).expect("names do not end")
}

/// Removes everything in a directory except the names that `stays` accepts. An entry that disappears meanwhile (as SQLite's
/// files do with its last connection) counts as removed. One that cannot be removed does not stop the others.
pub fn remove_all_but(directory: &Path, stays: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    let mut removed = Ok(());
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if !stays(&entry.file_name()) {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let done = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed = removed.and(unless_absent(done));
        }
    }
    removed
}

/// Removes a directory. The entry `last`, which identifies it, goes last, so that the remains of an interrupted removal can
/// still be recognised. Another process may be removing it as well.
pub fn remove_but_last(directory: &Path, last: &str) -> io::Result<()> {
    let removed = remove_all_but(directory, |name| name == last);
    unless_absent(removed.and_then(|()| fs::remove_dir_all(directory)))
}

/// Whether a directory has an entry whose name satisfies `is_it`.
pub fn has_entry(directory: &Path, is_it: impl Fn(&OsStr) -> bool) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        if is_it(&entry?.file_name()) {
            return Ok(true);
        }
    }
    Ok(false)
}
