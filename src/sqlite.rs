//! Helpers for modules that keep SQLite files: who may read them, whether they are intact, and what error codes mean.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::SqliteExecutor;

use crate::files::suffixed;

/// Creates the file, accessible only to its owner, if there is none; the files that SQLite puts beside it are as private. An
/// existing file is not even opened: closing it would release the locks that this process holds on it.
pub fn make_private(path: &Path) -> io::Result<()> {
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The files of a database: the main file, its write-ahead log and the log's index; the latter two are usually absent.
pub fn files_of(database: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| suffixed(database, suffix))
}

/// Whether this is SQLITE_FULL, or SQLITE_IOERR_SHMSIZE, which the write-ahead log's index reports when the disk is full.
pub fn is_disk_full(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(13 | 4_874))
}

/// Whether this is SQLITE_CORRUPT or SQLITE_NOTADB, including their extended forms.
pub fn is_damage(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| [11, 26].contains(&(code & 0xff)))
}

/// Describes the damage that a torn write or a bad disk did to a database, if any.
pub async fn damage_to(database: impl SqliteExecutor<'_>) -> Result<Option<String>, sqlx::Error> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(database).await?;
    Ok((verdict != "ok").then_some(verdict))
}

fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}
