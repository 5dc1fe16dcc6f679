//! The durable table of jobs: `state.db` in the data directory.
//!
//! Owns the only SQL about jobs. Every change of state is a compare-and-set on the previous state, so that two callers cannot
//! both win. A job's received data is in its capture, not here.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row};

use super::model::{Job, JobId, JobState};
use crate::extract::Waiting;
use crate::sqlite;

/// The table's file.
pub const FILE_NAME: &str = "state.db";
/// A page of jobs ends once its records exceed this many bytes.
const MOST_LISTED: i64 = 2 << 20;

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

/// Some jobs, newest first.
#[derive(Debug)]
pub struct Listed {
    pub jobs: Vec<Job>,
    /// The value of `before` for the next page; `None` on the last page.
    pub next: Option<i64>,
}

/// A pause that Zoom has imposed on an account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountPause {
    /// A hash that identifies the account.
    pub account: String,
    pub waiting: Waiting,
}

#[derive(Debug, Clone)]
pub struct JobStore {
    pool: SqlitePool,
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        sqlx::Error::Io(error).into()
    }
}

impl StoreError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Database(error) if sqlite::is_disk_full(error))
    }

    pub fn is_damage(&self) -> bool {
        match self {
            Self::Database(error) => sqlite::is_damage(error),
            Self::Damaged(_) => true,
            Self::Unreadable(_) => false,
        }
    }
}

impl JobStore {
    /// Opens an existing table, if it is intact.
    pub async fn connect_checked(path: &Path) -> Result<Self, StoreError> {
        let store = Self::connect(path).await?;
        let error = match store.damage().await {
            Ok(None) => return Ok(store),
            Ok(Some(damage)) => StoreError::Damaged(damage),
            Err(error) => error.into(),
        };
        // Before anybody renames the file: closing the last connection removes the log by its name.
        store.close().await;
        Err(error)
    }

    /// Describes what is wrong with the table, if anything. While a job's state is not that of its record, no change to it would
    /// succeed.
    async fn damage(&self) -> Result<Option<String>, sqlx::Error> {
        if let Some(damage) = sqlite::damage_to(&self.pool).await? {
            return Ok(Some(damage));
        }
        let other = sqlx::query_scalar(
            "SELECT id FROM jobs WHERE iif(json_valid(job), job ->> 'state', state) <> state LIMIT 1",
        );
        let id: Option<String> = other.fetch_optional(&self.pool).await?;
        Ok(id.map(|id| format!("the state of job {id} is not that of its record")))
    }

    /// Opens a table, or creates it.
    pub async fn connect(path: &Path) -> Result<Self, StoreError> {
        sqlite::make_private(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
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
                 idempotency_scope TEXT,
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

    /// Stores a new job. False if another has its idempotency scope.
    pub async fn insert(&self, job: &Job, idempotency_scope: Option<&str>) -> Result<bool, StoreError> {
        let inserted = sqlx::query(
            "INSERT INTO jobs (id, state, idempotency_scope, job) VALUES (?, ?, ?, ?)
             ON CONFLICT (idempotency_scope) WHERE idempotency_scope IS NOT NULL DO NOTHING",
        )
        .bind(job.id.to_string())
        .bind(job.state.as_str())
        .bind(idempotency_scope)
        .bind(serde_json::to_string(job)?)
        .execute(&self.pool)
        .await?;
        Ok(inserted.rows_affected() == 1)
    }

    /// The job that was stored with this idempotency scope.
    pub async fn known(&self, scope: &str) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query("SELECT job FROM jobs WHERE idempotency_scope = ?")
            .bind(scope)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(read).transpose()
    }

    pub async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query("SELECT job FROM jobs WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(read).transpose()
    }

    pub async fn state(&self, id: JobId) -> Result<Option<JobState>, StoreError> {
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM jobs WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let known = |state: String| {
            JobState::parse(&state).ok_or_else(|| StoreError::Damaged(format!("a job is {state}")))
        };
        state.map(known).transpose()
    }

    /// Lists jobs newest first, fewer than asked for if their records are large. Unreadable records are skipped and hide no
    /// others.
    pub async fn list(&self, filter: ListFilter) -> Result<Listed, StoreError> {
        let (state, before) = (filter.state.map(JobState::as_str), filter.before.unwrap_or(i64::MAX));
        // One row beyond the limit shows whether there are more.
        let sizes: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT number, octet_length(job) FROM jobs WHERE (?1 IS NULL OR state = ?1) AND number < ?2
             ORDER BY number DESC LIMIT ?3",
        )
        .bind(state)
        .bind(before)
        .bind(filter.limit as i64 + 1)
        .fetch_all(&self.pool)
        .await?;
        let mut listed = 0;
        let has_room = |(_, size): &&(i64, i64)| {
            let before = listed;
            listed += size;
            before <= MOST_LISTED
        };
        let page = sizes.iter().take(filter.limit).take_while(has_room).count();
        let Some((last, _)) = sizes[..page].last() else {
            return Ok(Listed { jobs: Vec::new(), next: None });
        };
        let rows = sqlx::query(
            "SELECT id, job FROM jobs WHERE (?1 IS NULL OR state = ?1) AND number < ?2 AND number >= ?3
             ORDER BY number DESC",
        )
        .bind(state)
        .bind(before)
        .bind(last)
        .fetch_all(&self.pool)
        .await?;
        let next = (page < sizes.len()).then_some(*last);
        Ok(Listed { jobs: rows.iter().filter_map(readable).collect(), next })
    }

    /// The ids of jobs that have files, or may have some.
    pub async fn ids_with_files(&self) -> Result<HashSet<String>, StoreError> {
        // In one row: there may be thousands.
        let ids: String =
            sqlx::query_scalar("SELECT json_group_array(id) FROM jobs WHERE state <> 'expired'")
                .fetch_one(&self.pool)
                .await?;
        Ok(serde_json::from_str(&ids).expect("SQLite makes valid JSON"))
    }

    /// How many jobs are queued.
    pub async fn queued(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE state = ?")
            .bind(JobState::Queued.as_str())
            .fetch_one(&self.pool)
            .await?;
        Ok(count as u64)
    }

    /// The oldest readable jobs in a state, at most `most`.
    pub async fn oldest(&self, state: JobState, most: usize) -> Result<Vec<Job>, StoreError> {
        let statement = "SELECT id, job FROM jobs WHERE state = ? ORDER BY number";
        let mut rows = sqlx::query(statement).bind(state.as_str()).fetch(&self.pool);
        let mut jobs = Vec::new();
        while jobs.len() < most
            && let Some(row) = rows.try_next().await?
        {
            jobs.extend(readable(&row));
        }
        Ok(jobs)
    }

    /// Replaces a job if its stored state and end time are still those of `read`. False if somebody else was faster.
    pub async fn replace(&self, read: &Job, job: &Job) -> Result<bool, StoreError> {
        let before = read.state;
        assert!(before == job.state || before.may_become(job.state), "{before:?} -> {:?}", job.state);
        let changed = sqlx::query(
            "UPDATE jobs SET state = ?, job = ? WHERE id = ? AND state = ? AND job ->> 'finished_at' IS ?",
        )
        .bind(job.state.as_str())
        .bind(serde_json::to_string(job)?)
        .bind(job.id.to_string())
        .bind(before.as_str())
        .bind(read.finished_at.map(|at| at.to_string()))
        .execute(&self.pool)
        .await?;
        Ok(changed.rows_affected() == 1)
    }

    /// Requests the cancellation of a running job, and changes nothing else in its record. False if it is not running.
    pub async fn ask_to_stop(&self, id: JobId) -> Result<bool, StoreError> {
        let asked = sqlx::query(
            "UPDATE jobs SET job = json_set(job, '$.cancel_requested', json('true')) WHERE id = ? AND state = 'running'",
        )
        .bind(id.to_string())
        .execute(&self.pool)
        .await?;
        Ok(asked.rows_affected() == 1)
    }

    /// The pause that was last stored; it may be over.
    pub async fn pause(&self) -> Result<Option<AccountPause>, StoreError> {
        let text: Option<String> =
            sqlx::query_scalar("SELECT pause FROM account_pause").fetch_optional(&self.pool).await?;
        let read = |text: String| serde_json::from_str(&text);
        let pause = text.map(read).transpose();
        // No loss: the next request to Zoom would reveal the pause again.
        Ok(pause.unwrap_or_else(|error| {
            tracing::error!(%error, "the account's stored pause cannot be read and is ignored");
            None
        }))
    }

    pub async fn set_pause(&self, pause: &AccountPause) -> Result<(), StoreError> {
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

/// Reads what a damaged table still yields: forwards from its beginning to the damage, and backwards from its end.
pub async fn salvage(path: &Path) -> (Vec<(Job, Option<String>)>, Option<AccountPause>) {
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
    // Before the file is renamed, as in `connect_checked`.
    let _ = connection.close().await;
    (records.into_values().collect(), pause)
}

/// Skips an unreadable record (another version wrote it, perhaps), so that it does not hide the others.
fn readable(row: &SqliteRow) -> Option<Job> {
    let passed_over = |error: &StoreError| {
        let id: String = row.try_get("id").unwrap_or_default();
        tracing::error!(%error, job.id = id, "a job's record cannot be read and is skipped; DELETE the job to remove it");
    };
    read(row).inspect_err(passed_over).ok()
}

fn read(row: &SqliteRow) -> Result<Job, StoreError> {
    let text: String = row.try_get("job")?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::job;
    use super::*;
    use jiff::Timestamp;
    use tempfile::TempDir;

    async fn new() -> (TempDir, JobStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = JobStore::connect(&directory.path().join(FILE_NAME)).await.unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_hides_no_other() {
        let (_directory, store) = new().await;
        let jobs = [job(JobState::Queued), job(JobState::Queued), job(JobState::Queued)];
        for job in &jobs {
            store.insert(job, None).await.unwrap();
        }
        let spoil = sqlx::query("UPDATE jobs SET job = '{}' WHERE number < 3 AND id <> ?");
        spoil.bind(jobs[0].id.to_string()).execute(&store.pool).await.unwrap();
        assert_eq!(store.oldest(JobState::Queued, 2).await.unwrap(), [jobs[0].clone(), jobs[2].clone()]);
        let (mut before, mut listed) = (None, Vec::new());
        for page in 0..3 {
            let some = store.list(ListFilter { before, limit: 1, ..ListFilter::default() }).await.unwrap();
            assert_eq!(some.next.is_some(), page < 2, "{page}");
            listed.extend(some.jobs);
            before = some.next;
        }
        assert_eq!(listed, [jobs[2].clone(), jobs[0].clone()]);
    }

    #[tokio::test]
    async fn a_job_that_was_run_again_does_not_expire_by_its_earlier_end() {
        let (_directory, store) = new().await;
        let read = job(JobState::Failed);
        store.insert(&read, None).await.unwrap();
        let expired = Job { state: JobState::Expired, ..read.clone() };
        let again = Job { finished_at: Some(Timestamp::MAX), ..read.clone() };
        assert!(store.replace(&read, &again).await.unwrap());
        assert!(!store.replace(&read, &expired).await.unwrap());
        let expired = Job { state: JobState::Expired, ..again.clone() };
        assert!(store.replace(&again, &expired).await.unwrap());
    }

    #[tokio::test]
    async fn a_pause_that_cannot_be_read_holds_nothing_up() {
        let (_directory, store) = new().await;
        let waiting = Waiting { until: Timestamp::MAX, reason: "daily".to_owned() };
        store.set_pause(&AccountPause { account: "a".to_owned(), waiting }).await.unwrap();
        assert_eq!(store.pause().await.unwrap().map(|pause| pause.waiting.until), Some(Timestamp::MAX));
        sqlx::query("UPDATE account_pause SET pause = '{'").execute(&store.pool).await.unwrap();
        assert!(store.pause().await.unwrap().is_none());
    }
}
