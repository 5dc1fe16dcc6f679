//! The durable table of jobs: `state.db` in the data directory.
//!
//! Owns the only SQL about jobs. Every change of state is a compare-and-set on the state before, so that two callers
//! cannot both win. What a job received is not here but in its capture.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row};

use super::model::{Job, JobId, JobState};
use crate::extract::{ExtractRequest, Waiting};
use crate::sqlite;

/// The table's file.
pub const FILE_NAME: &str = "state.db";
/// There while a new table does not hold all that can be rebuilt yet.
const MENDING: &str = "state.db.mending";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the table of jobs could not be used: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the table of jobs is damaged: {0}")]
    Damaged(String),
    #[error("the table of jobs holds a record that cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// Which jobs to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListFilter {
    pub state: Option<JobState>,
    /// Only jobs older than the one with this number.
    pub before: Option<i64>,
    pub limit: usize,
}

/// What an idempotency key led to.
#[derive(Debug)]
pub enum Inserted {
    New,
    /// The same key and request came before.
    Same(Box<Job>),
    /// The key came before with another request.
    Conflict,
}

#[derive(Debug, Clone)]
pub struct JobStore {
    pool: SqlitePool,
}

/// What became of opening the table.
#[derive(Debug)]
pub enum Opened {
    Sound(JobStore),
    /// There was none, or one that was not [`whole`](JobStore::whole) yet.
    New(JobStore),
    /// The one that was there is damaged: it was set aside, and its readable records are in the new one.
    Replaced {
        store: JobStore,
        salvaged: usize,
        set_aside: PathBuf,
    },
}

impl StoreError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Database(error) if sqlite::is_disk_full(error))
    }

    fn is_damage(&self) -> bool {
        match self {
            Self::Database(error) => sqlite::is_damage(error),
            Self::Damaged(_) => true,
            Self::Unreadable(_) => false,
        }
    }
}

impl JobStore {
    pub async fn open(directory: &Path, now: Timestamp) -> Result<Opened, StoreError> {
        let path = directory.join(FILE_NAME);
        let mending = directory.join(MENDING);
        let begin_mending = || {
            File::create(&mending).and_then(|_| File::open(directory)?.sync_all()).map_err(sqlx::Error::Io)
        };
        if !path.exists() {
            begin_mending()?;
            return Ok(Opened::New(Self::connect(&path).await?));
        }
        match Self::connect_checked(&path).await {
            Ok(store) if mending.exists() => Ok(Opened::New(store)),
            Ok(store) => Ok(Opened::Sound(store)),
            Err(error) if error.is_damage() => {
                begin_mending()?;
                let set_aside = directory.join(format!("{FILE_NAME}.damaged-{}", now.as_second()));
                let (records, pause) = salvage(&path).await;
                std::fs::rename(&path, &set_aside).map_err(sqlx::Error::Io)?;
                for suffix in ["-wal", "-shm"] {
                    // Belongs to the damaged file; absent more often than not.
                    let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
                    let _ = std::fs::rename(of(&path), of(&set_aside));
                }
                let store = Self::connect(&path).await?;
                for (job, scope) in &records {
                    store.insert(job, scope.as_deref()).await?;
                }
                if let Some(pause) = pause {
                    store.set_pause(&pause).await?;
                }
                Ok(Opened::Replaced { store, salvaged: records.len(), set_aside })
            }
            Err(error) => Err(error),
        }
    }

    /// Everything that a new table can know is in it.
    pub fn whole(directory: &Path) -> Result<(), StoreError> {
        match std::fs::remove_file(directory.join(MENDING)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(sqlx::Error::Io(error).into()),
            _ => Ok(()),
        }
    }

    async fn connect_checked(path: &Path) -> Result<Self, StoreError> {
        let store = Self::connect(path).await?;
        let checked: Result<String, _> =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&store.pool).await;
        let error = match checked {
            Ok(verdict) if verdict == "ok" => return Ok(store),
            Ok(verdict) => StoreError::Damaged(verdict),
            Err(error) => error.into(),
        };
        // Before anybody renames the file: who closes the last connection removes the log by its name.
        store.close().await;
        Err(error)
    }

    async fn connect(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30))
            // Nothing goes to /tmp, which may be read-only.
            .pragma("temp_store", "memory")
            .pragma("cache_size", "-1000")
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        let made = sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS jobs (
                 number INTEGER PRIMARY KEY AUTOINCREMENT,
                 id TEXT NOT NULL UNIQUE,
                 state TEXT NOT NULL,
                 finished_at TEXT,
                 idempotency_scope TEXT,
                 request TEXT NOT NULL,
                 job TEXT NOT NULL
             ) STRICT;
             CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_idempotency ON jobs(idempotency_scope)
                 WHERE idempotency_scope IS NOT NULL;
             CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs(state, number);
             -- The pause that Zoom has put upon the account, if any.
             CREATE TABLE IF NOT EXISTS account_pause (only INTEGER PRIMARY KEY CHECK (only = 1), pause TEXT NOT NULL)
                 STRICT;",
        )
        .execute(&pool)
        .await;
        if let Err(error) = made {
            pool.close().await;
            return Err(error.into());
        }
        Ok(Self { pool })
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Stores a new job, unless its idempotency scope is known already.
    pub async fn insert(&self, job: &Job, idempotency_scope: Option<&str>) -> Result<Inserted, StoreError> {
        let request = serde_json::to_string(&job.request)?;
        let inserted = sqlx::query(
            "INSERT INTO jobs (id, state, idempotency_scope, request, job) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (idempotency_scope) WHERE idempotency_scope IS NOT NULL DO NOTHING",
        )
        .bind(job.id.to_string())
        .bind(job.state.as_str())
        .bind(idempotency_scope)
        .bind(&request)
        .bind(serde_json::to_string(job)?)
        .execute(&self.pool)
        .await?;
        if inserted.rows_affected() == 1 {
            return Ok(Inserted::New);
        }
        // Somebody was faster with the same key.
        let known = match idempotency_scope {
            Some(scope) => self.known(scope, &job.request).await?,
            None => None,
        };
        Ok(known.unwrap_or(Inserted::Conflict))
    }

    /// What an idempotency scope led to before, if it was used.
    pub async fn known(&self, scope: &str, request: &ExtractRequest) -> Result<Option<Inserted>, StoreError> {
        let row = sqlx::query("SELECT job, request FROM jobs WHERE idempotency_scope = ?")
            .bind(scope)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let same = row.try_get::<String, _>("request")? == serde_json::to_string(request)?;
        Ok(Some(if same { Inserted::Same(Box::new(read(&row)?)) } else { Inserted::Conflict }))
    }

    pub async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query("SELECT job FROM jobs WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Newest first, with their numbers.
    pub async fn list(&self, filter: ListFilter) -> Result<Vec<(i64, Job)>, StoreError> {
        let rows = sqlx::query(
            "SELECT number, job FROM jobs WHERE (?1 IS NULL OR state = ?1) AND number < ?2
             ORDER BY number DESC LIMIT ?3",
        )
        .bind(filter.state.map(JobState::as_str))
        .bind(filter.before.unwrap_or(i64::MAX))
        .bind(filter.limit as i64)
        .fetch_all(&self.pool)
        .await?;
        Ok(readable(&rows, |row| Ok((row.try_get("number")?, read(row)?))))
    }

    /// The ids of jobs that have files, or may have some.
    pub async fn ids_with_files(&self) -> Result<HashSet<String>, StoreError> {
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT id FROM jobs WHERE state <> 'expired'").fetch_all(&self.pool).await?;
        Ok(ids.into_iter().collect())
    }

    pub async fn count(&self, state: JobState) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE state = ?")
            .bind(state.as_str())
            .fetch_one(&self.pool)
            .await?;
        Ok(count as u64)
    }

    /// The oldest jobs in a state.
    pub async fn oldest(&self, state: JobState, most: usize) -> Result<Vec<Job>, StoreError> {
        let rows = sqlx::query("SELECT job FROM jobs WHERE state = ? ORDER BY number LIMIT ?")
            .bind(state.as_str())
            .bind(most as i64)
            .fetch_all(&self.pool)
            .await?;
        Ok(readable(&rows, read))
    }

    /// Writes a job back if it is still in the state it was read in. False when somebody else was faster.
    pub async fn replace(&self, expected: JobState, job: &Job) -> Result<bool, StoreError> {
        assert!(expected == job.state || expected.may_become(job.state), "{expected:?} -> {:?}", job.state);
        let changed =
            sqlx::query("UPDATE jobs SET state = ?, finished_at = ?, job = ? WHERE id = ? AND state = ?")
                .bind(job.state.as_str())
                .bind(job.finished_at.map(|at| at.to_string()))
                .bind(serde_json::to_string(job)?)
                .bind(job.id.to_string())
                .bind(expected.as_str())
                .execute(&self.pool)
                .await?;
        Ok(changed.rows_affected() == 1)
    }

    /// The pause that was in force when it was last written down; it may be over.
    pub async fn pause(&self) -> Result<Option<Waiting>, StoreError> {
        let text: Option<String> =
            sqlx::query_scalar("SELECT pause FROM account_pause").fetch_optional(&self.pool).await?;
        Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
    }

    pub async fn set_pause(&self, pause: &Waiting) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO account_pause (only, pause) VALUES (1, ?)")
            .bind(serde_json::to_string(pause)?)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Removes a job that is in the given state.
    pub async fn remove(&self, id: JobId, expected: JobState) -> Result<bool, StoreError> {
        let removed = sqlx::query("DELETE FROM jobs WHERE id = ? AND state = ?")
            .bind(id.to_string())
            .bind(expected.as_str())
            .execute(&self.pool)
            .await?;
        Ok(removed.rows_affected() == 1)
    }
}

/// Reads what can be read of a damaged table: from its beginning to the damage, and from its end back to it.
async fn salvage(path: &Path) -> (Vec<(Job, Option<String>)>, Option<Waiting>) {
    let mut records: BTreeMap<i64, (Job, Option<String>)> = BTreeMap::new();
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let Ok(mut connection) = options.connect().await else { return (Vec::new(), None) };
    for statement in [
        "SELECT number, job, idempotency_scope FROM jobs ORDER BY number",
        "SELECT number, job, idempotency_scope FROM jobs ORDER BY number DESC",
    ] {
        let mut rows = sqlx::query(statement).fetch(&mut connection);
        while let Ok(Some(row)) = rows.try_next().await {
            if let (Ok(number), Ok(job)) = (row.try_get("number"), read(&row)) {
                records.insert(number, (job, row.try_get("idempotency_scope").ok().flatten()));
            }
        }
    }
    let pause: Result<String, _> =
        sqlx::query_scalar("SELECT pause FROM account_pause").fetch_one(&mut connection).await;
    let pause = pause.ok().and_then(|text| serde_json::from_str(&text).ok());
    // Before the file is renamed, as above.
    let _ = connection.close().await;
    (records.into_values().collect(), pause)
}

/// One record that cannot be read (another version wrote it, perhaps) must not hide the others.
fn readable<T>(rows: &[SqliteRow], read: impl Fn(&SqliteRow) -> Result<T, StoreError>) -> Vec<T> {
    let read = |row| read(row).inspect_err(|error| tracing::error!(%error, "a job is passed over"));
    rows.iter().filter_map(|row| read(row).ok()).collect()
}

fn read(row: &SqliteRow) -> Result<Job, StoreError> {
    let text: String = row.try_get("job")?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_table_is_new_until_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let open = async || JobStore::open(directory.path(), Timestamp::UNIX_EPOCH).await.unwrap();
        for _ in 0..2 {
            assert!(matches!(open().await, Opened::New(_)), "nothing must be swept yet");
        }
        JobStore::whole(directory.path()).unwrap();
        assert!(matches!(open().await, Opened::Sound(_)));
    }
}
