//! Where a capture is on disk: opening it for writing and for reading, checking it, moving a damaged one away.
//!
//! Owns the schema and its versions.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use tokio_util::sync::CancellationToken;

use super::listed::KnownSessions;
use super::segments::{Appender, SegmentReader};
use super::writer::Store;
use super::{CaptureError, RangeId, Reader, Writer};
use crate::files::{blocking, is_there, numbered, suffixed, unless_absent};
use crate::sqlite;

/// The name of a job's capture file in its directory.
const FILE_NAME: &str = "capture.db";
const SEGMENTS: &str = "capture.segments";
/// During a check, SQLite asks whether to go on after every so many instructions, a moment's work.
const STEPS: i32 = 10_000;
/// Appended to the file names of a damaged capture that has been moved away.
const DAMAGED: &str = ".damaged";

/// Bumped when the schema changes; a capture of an unknown version is refused, never guessed at.
pub(super) const SCHEMA_VERSION: i64 = 7;

/// A capture's place on disk.
#[derive(Debug, Clone)]
pub struct Location {
    path: PathBuf,
}

impl Location {
    /// The capture of the job whose files are in `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(FILE_NAME) }
    }

    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Whether there is an index, or messages whose index is lost.
    pub fn is_begun(&self) -> bool {
        self.exists() || self.has_messages()
    }

    /// Removes it. Nothing else may have it open.
    pub fn remove(&self) -> std::io::Result<()> {
        let files = sqlite::files_of(&self.path).into_iter().rev().chain([self.segments()]);
        files.into_iter().try_for_each(|file| unless_absent(std::fs::remove_file(file)))
    }

    fn has_messages(&self) -> bool {
        std::fs::metadata(self.segments()).is_ok_and(|segments| segments.len() > 0)
    }

    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens for writing, creating the schema if needed. There must be only one writer at a time.
    pub async fn open_writer(&self) -> Result<Writer, CaptureError> {
        Ok(Writer::start(self.clone(), self.open_store().await?))
    }

    /// A connection to the index, and the version of its tables: 0 if it has none yet.
    async fn connect(&self) -> Result<(SqliteConnection, i64), CaptureError> {
        let mut connection = self.options().connect().await?;
        match sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await? {
            known @ (0 | SCHEMA_VERSION) => Ok((connection, known)),
            found => Err(CaptureError::OtherVersion { found }),
        }
    }

    pub(super) async fn open_store(&self) -> Result<Store, CaptureError> {
        sqlite::make_private(&self.path)?;
        let (mut connection, version) = self.connect().await?;
        if version == 0 {
            make_tables(&mut connection).await?;
        }
        let end: i64 = sqlx::query_scalar(
            "SELECT CAST(max(coalesce((SELECT max(offset + length) FROM pages), 0),
                             coalesce((SELECT max(offset + length) FROM set_aside), 0)) AS INTEGER)",
        )
        .fetch_one(&mut connection)
        .await?;
        let path = self.segments();
        let segments = blocking(move || Appender::open(&path, end as u64)).await?;
        let commits = sqlx::query_scalar(
            "SELECT coalesce(max(last_commit), 0) FROM units WHERE last_commit IS NOT NULL",
        )
        .fetch_one(&mut connection)
        .await?;
        let known = KnownSessions::new(self.path.with_file_name("known.tmp"));
        Ok(Store { connection, segments, known, commits })
    }

    /// Opens a reader, calls `read` with it and closes it whatever the outcome: a reader that is merely dropped is closed later,
    /// and may then remove the write-ahead log of another capture that has taken its place.
    pub async fn with_reader<T, E: From<CaptureError>>(
        &self,
        read: impl AsyncFnOnce(&mut Reader) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut reader = self.open_reader().await?;
        let seen = read(&mut reader).await;
        reader.close().await;
        seen
    }

    /// The same for a capture that has a plan; `None` if it has none, or does not exist.
    pub async fn with_planned_reader<T, E: From<CaptureError>>(
        &self,
        read: impl AsyncFnOnce(&mut Reader) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        if !self.exists() {
            return Ok(None);
        }
        self.with_reader(
            async |reader| if reader.has_plan().await? { read(reader).await.map(Some) } else { Ok(None) },
        )
        .await
    }

    /// The same, but fails if there are messages without a plan.
    pub async fn with_sound_planned_reader<T>(
        &self,
        read: impl AsyncFnOnce(&mut Reader) -> Result<T, CaptureError>,
    ) -> Result<Option<T>, CaptureError> {
        match self.with_planned_reader(read).await? {
            None if self.has_messages() => {
                Err(CaptureError::Damaged("there are messages but no index of them".to_owned()))
            }
            seen => Ok(seen),
        }
    }

    /// Opens for reading; any number of readers may be open beside the writer.
    pub async fn open_reader(&self) -> Result<Reader, CaptureError> {
        let segments = SegmentReader::open(&self.segments())?;
        Ok(Reader::new(self.connect().await?.0, segments))
    }

    fn segments(&self) -> PathBuf {
        self.path.with_file_name(SEGMENTS)
    }

    /// Checks the whole index for what a torn write or a bad disk did to it, including dangling references. Segments have their
    /// own checksums, which are verified when they are used. Fails once cancelled.
    pub async fn check(&self, cancel: &CancellationToken) -> Result<(), CaptureError> {
        if self.exists() {
            // Without settings, which would have to read the file and could fail: a connection dropped on failure is closed
            // later, and then removes the log by its name, even if that belongs to another capture by then.
            let mut connection = SqliteConnectOptions::new().filename(&self.path).connect().await?;
            let cancel = cancel.clone();
            connection.lock_handle().await?.set_progress_handler(STEPS, move || !cancel.is_cancelled());
            let damage = damage_to(&mut connection).await;
            connection.close().await?;
            if let Some(damage) = damage? {
                return Err(CaptureError::Damaged(damage));
            }
        }
        self.with_sound_planned_reader(async |_| Ok(())).await.map(drop)
    }

    /// Reads everything that an archive is made of, and returns the ranges with a damaged segment; fails if the index cannot be
    /// read. Stops early once cancelled.
    pub async fn damaged_ranges(&self, cancel: &CancellationToken) -> Result<Vec<RangeId>, CaptureError> {
        let (location, cancel, runtime) = (self.clone(), cancel.clone(), tokio::runtime::Handle::current());
        blocking(move || {
            runtime.block_on(location.with_reader(async |reader| reader.damaged_ranges(&cancel).await))
        })
        .await
    }

    /// Moves a damaged capture out of the way and keeps it for inspection, beside earlier ones.
    pub fn move_damaged_away(&self) -> std::io::Result<()> {
        let segments = self.segments();
        let aside = |path: &Path, suffix: &str| suffixed(path, &format!("{DAMAGED}{suffix}"));
        let names = numbered(|suffix| (aside(&self.path, suffix), aside(&segments, suffix)));
        let is_free = |(index, segments): &(PathBuf, PathBuf)| !is_there(index) && !is_there(segments);
        let (index_aside, segments_aside) = names.into_iter().find(is_free).expect("names never run out");
        unless_absent(std::fs::rename(&segments, segments_aside))?;
        // The index last: while it is there, the rest is not taken for a new capture and overwritten.
        let files = sqlite::files_of(&self.path).into_iter().zip(sqlite::files_of(&index_aside));
        files.rev().try_for_each(|(from, to)| unless_absent(std::fs::rename(from, to)))
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .journal_mode(SqliteJournalMode::Wal)
            // A page is reported as stored only once it would survive a power failure.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30))
            // A commit rewrites whole pages of the index for a few changed bytes each: with small pages it writes less.
            .page_size(1_024)
            // Checkpoints are rare, so that a page that changes often is copied from the log into the index once. The log grows
            // to 128 MB.
            .pragma("wal_autocheckpoint", "128000")
            .pragma("cache_size", "-2000")
            // Temporary data of statements would otherwise go to /tmp, which may be small or read-only. There is little of it:
            // no statement sorts or materialises what grows with the account.
            .pragma("temp_store", "memory")
            .pragma("journal_size_limit", "16777216")
            .disable_statement_logging()
    }
}

/// Whether a file belongs to a damaged capture that has been moved away.
pub fn is_damaged_copy(name: &OsStr) -> bool {
    name.to_string_lossy().contains(DAMAGED)
}

/// Creates all tables, or none.
async fn make_tables(connection: &mut SqliteConnection) -> Result<(), CaptureError> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *transaction).await?;
    let set_version = AssertSqlSafe(format!("PRAGMA user_version = {SCHEMA_VERSION}"));
    sqlx::raw_sql(set_version).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// What is wrong with an index, if anything.
async fn damage_to(connection: &mut SqliteConnection) -> Result<Option<String>, sqlx::Error> {
    if let Some(damage) = sqlite::damage_to(&mut *connection).await? {
        return Ok(Some(damage));
    }
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_optional(&mut *connection).await?;
    let table = dangling.map(|row| row.try_get::<String, _>(0)).transpose()?;
    Ok(table.map(|table| format!("a row of {table} refers to a row that is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{list, planned};
    use crate::days::DateRange;
    use jiff::civil::date;

    /// Damaged captures are moved away after the check, and others are made in their place.
    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn nobody_has_a_capture_open_once_it_has_been_checked() {
        let (directory, location, writer) =
            planned(&[DateRange::new(date(2026, 3, 1), date(2026, 3, 28))]).await;
        writer.commit(list(1, &["a", "b", "c"])).await.unwrap();
        writer.close().await;
        let sound = std::fs::read(location.path()).unwrap();
        let open = || {
            let files = std::fs::read_dir("/proc/self/fd").unwrap();
            files
                .filter_map(|file| file.unwrap().path().read_link().ok())
                .any(|file| file.starts_with(directory.path()))
        };
        let mut damaged = 0;
        for page in 0..sound.len() / 1_024 {
            let mut bytes = sound.clone();
            bytes[page * 1_024..][..1_024].fill(0xa5);
            std::fs::write(location.path(), &bytes).unwrap();
            let checked = location.check(&CancellationToken::new()).await;
            damaged += u32::from(checked.is_err_and(|error| error.is_damaged()));
            assert!(!open(), "page {page}");
        }
        assert!(damaged > 10);
    }

    #[tokio::test]
    async fn a_check_that_is_called_off_reads_no_further() {
        let (_directory, location, writer) =
            planned(&[DateRange::new(date(2026, 3, 1), date(2026, 3, 28))]).await;
        let ids: Vec<String> = (0..5_000).map(|id| id.to_string()).collect();
        writer.commit(list(1, &ids.iter().map(String::as_str).collect::<Vec<_>>())).await.unwrap();
        writer.close().await;
        let cancel = CancellationToken::new();
        location.check(&cancel).await.unwrap();
        cancel.cancel();
        let error = location.check(&cancel).await.unwrap_err();
        assert!(!error.is_damaged() && error.to_string().contains("interrupted"), "{error}");
    }

    #[tokio::test]
    async fn a_capture_of_another_version_is_refused_and_stays_as_it_is() {
        let (_directory, location, writer) =
            planned(&[DateRange::new(date(2026, 3, 1), date(2026, 3, 28))]).await;
        writer.close().await;
        for found in [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1] {
            let mut connection = location.options().connect().await.unwrap();
            let set_version = AssertSqlSafe(format!("PRAGMA user_version = {found}"));
            sqlx::raw_sql(set_version).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            let before = std::fs::read(location.path()).unwrap();
            let refused = [
                location.open_writer().await.err(),
                location.open_reader().await.err(),
                location.check(&CancellationToken::new()).await.err(),
            ];
            for refused in refused.map(Option::unwrap) {
                assert!(matches!(refused, CaptureError::OtherVersion { .. }), "{refused}");
            }
            assert!(std::fs::read(location.path()).unwrap() == before);
        }
    }
}
