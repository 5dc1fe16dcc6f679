//! The durable table of jobs: `state.db` in the data directory.
//!
//! Owns the only SQL about jobs. Every change of state is a compare-and-set on the state before, so that two callers
//! cannot both win. What a job received is not here but in its capture.

use std::path::Path;
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};

use super::model::{Job, JobId, JobState};
use crate::extract::{ExtractRequest, Waiting};

/// The table's file.
pub const FILE_NAME: &str = "state.db";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the table of jobs could not be used: {0}")]
    Database(#[from] sqlx::Error),
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

impl JobStore {
    pub async fn open(directory: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(directory.join(FILE_NAME))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30))
            .pragma("cache_size", "-1000");
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::raw_sql(
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
        .await?;
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
        rows.iter().map(|row| Ok((row.try_get("number")?, read(row)?))).collect()
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
        rows.iter().map(read).collect()
    }

    /// Writes a job back if it is still in the state it was read in. False when somebody else was faster.
    pub async fn replace(&self, expected: JobState, job: &Job) -> Result<bool, StoreError> {
        debug_assert!(
            expected == job.state || expected.may_become(job.state),
            "{expected:?} -> {:?}",
            job.state
        );
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

fn read(row: &SqliteRow) -> Result<Job, StoreError> {
    let text: String = row.try_get("job")?;
    Ok(serde_json::from_str(&text)?)
}
