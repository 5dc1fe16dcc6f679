//! What assembly has to remember between its two passes, on disk: names, keys and hashes of all entries, sorted.
//!
//! A throw-away SQLite file beside the capture, so that memory does not grow with the number of sessions.

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Row};

use super::layout;
use crate::capture::{CaptureError, Kind};

/// What an entry is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Session(i64),
    Items(i64, Kind),
    Summary,
    Sessions,
    Failures,
    Sums,
}

#[derive(Debug)]
pub struct Scratch {
    connection: SqliteConnection,
    path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Unlinked while open is fine on every Unix; nothing of it is wanted again.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Scratch {
    pub async fn create(directory: &Path) -> Result<Self, CaptureError> {
        let path = directory.join("assemble.tmp");
        let _ = std::fs::remove_file(&path);
        let mut connection = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Off)
            .synchronous(SqliteSynchronous::Off)
            .pragma("cache_size", "-4000")
            .connect()
            .await?;
        sqlx::raw_sql(
            "CREATE TABLE sessions (id INTEGER PRIMARY KEY, key TEXT NOT NULL, folded_key TEXT NOT NULL,
                 folded_entry TEXT NOT NULL, line TEXT) STRICT;
             CREATE TABLE entries (name TEXT PRIMARY KEY, session INTEGER, content INTEGER NOT NULL, sha256 TEXT)
                 STRICT, WITHOUT ROWID;
             BEGIN",
        )
        .execute(&mut connection)
        .await?;
        Ok(Self { connection, path })
    }

    pub async fn add_session(&mut self, id: i64, key: &str, name: &str) -> Result<(), CaptureError> {
        sqlx::query("INSERT INTO sessions (id, key, folded_key, folded_entry) VALUES (?, ?, ?, ?)")
            .bind(id)
            .bind(key)
            .bind(key.to_lowercase())
            .bind(layout::session_entry(key, name).to_lowercase())
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Sessions whose names would meet another's on a disk that ignores case.
    pub async fn colliding(&mut self) -> Result<Vec<i64>, CaptureError> {
        sqlx::raw_sql(
            "CREATE INDEX by_key ON sessions(folded_key); CREATE INDEX by_entry ON sessions(folded_entry);",
        )
        .execute(&mut self.connection)
        .await?;
        Ok(sqlx::query_scalar(
            "SELECT id FROM sessions WHERE folded_key IN
                 (SELECT folded_key FROM sessions GROUP BY folded_key HAVING count(*) > 1)
             OR folded_entry IN (SELECT folded_entry FROM sessions GROUP BY folded_entry HAVING count(*) > 1)",
        )
        .fetch_all(&mut self.connection)
        .await?)
    }

    pub async fn set_key(&mut self, id: i64, key: &str) -> Result<(), CaptureError> {
        sqlx::query("UPDATE sessions SET key = ? WHERE id = ?")
            .bind(key)
            .bind(id)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    pub async fn key(&mut self, id: i64) -> Result<String, CaptureError> {
        Ok(sqlx::query_scalar("SELECT key FROM sessions WHERE id = ?")
            .bind(id)
            .fetch_one(&mut self.connection)
            .await?)
    }

    pub async fn set_line(&mut self, id: i64, line: &str) -> Result<(), CaptureError> {
        sqlx::query("UPDATE sessions SET line = ? WHERE id = ?")
            .bind(line)
            .bind(id)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Feeds the lines of `sessions_summary.json` in the order of keys.
    pub async fn lines(&mut self, mut each: impl FnMut(&str)) -> Result<(), CaptureError> {
        let mut rows = sqlx::query("SELECT line FROM sessions ORDER BY key").fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            each(row.try_get("line")?);
        }
        Ok(())
    }

    pub async fn add_entry(
        &mut self,
        name: &str,
        content: Content,
        sha256: Option<&str>,
    ) -> Result<(), CaptureError> {
        let (session, code) = match content {
            Content::Session(session) => (Some(session), 3),
            Content::Items(session, kind) => (Some(session), kind as i64),
            Content::Summary => (None, 4),
            Content::Sessions => (None, 5),
            Content::Failures => (None, 6),
            Content::Sums => (None, 7),
        };
        sqlx::query("INSERT INTO entries (name, session, content, sha256) VALUES (?, ?, ?, ?)")
            .bind(name)
            .bind(session)
            .bind(code)
            .bind(sha256)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Entries after `after` in the order of their names.
    pub async fn entries(&mut self, after: &str, most: i64) -> Result<Vec<(String, Content)>, CaptureError> {
        let rows =
            sqlx::query("SELECT name, session, content FROM entries WHERE name > ? ORDER BY name LIMIT ?")
                .bind(after)
                .bind(most)
                .fetch_all(&mut self.connection)
                .await?;
        rows.iter()
            .map(|row| {
                let session = row.try_get::<Option<i64>, _>("session")?.unwrap_or(0);
                let content = match row.try_get::<i64, _>("content")? {
                    3 => Content::Session(session),
                    4 => Content::Summary,
                    5 => Content::Sessions,
                    6 => Content::Failures,
                    7 => Content::Sums,
                    kind => Content::Items(
                        session,
                        Kind::from_index(kind)
                            .ok_or_else(|| CaptureError::Damaged("an unknown entry".to_owned()))?,
                    ),
                };
                Ok((row.try_get("name")?, content))
            })
            .collect()
    }

    /// Feeds the lines of `SHA256SUMS`.
    pub async fn sums(&mut self, mut each: impl FnMut(&str)) -> Result<(), CaptureError> {
        let mut rows = sqlx::query(
            "SELECT sha256 || '  ' || name AS line FROM entries WHERE sha256 IS NOT NULL ORDER BY name",
        )
        .fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            each(row.try_get("line")?);
        }
        Ok(())
    }
}
