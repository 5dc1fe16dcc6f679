//! What those need who keep SQLite's files: whose they are, whether they are sound, and what its error codes mean.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::SqliteExecutor;

use crate::files::suffixed;

/// Makes the file if there is none, for its owner only; what SQLite puts beside it is as private. One that is there is not even
/// opened: closing it would give up the locks that this process has on it.
pub fn make_private(path: &Path) -> io::Result<()> {
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The files of a database: after the first, its log and what belongs to that; absent more often than not.
pub fn files_of(database: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| suffixed(database, suffix))
}

/// SQLITE_FULL, and SQLITE_IOERR_SHMSIZE: what a full disk looks like to the index of the write-ahead log.
pub fn is_disk_full(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(13 | 4_874))
}

/// SQLITE_CORRUPT and SQLITE_NOTADB with their extended forms.
pub fn is_damage(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| [11, 26].contains(&(code & 0xff)))
}

/// What a torn write or a bad disk did to a database, if anything.
pub async fn damage_to(database: impl SqliteExecutor<'_>) -> Result<Option<String>, sqlx::Error> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(database).await?;
    Ok((verdict != "ok").then_some(verdict))
}

fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}
