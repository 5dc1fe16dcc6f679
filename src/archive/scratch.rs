//! What assembly has to remember between its two passes, on disk: names, keys and hashes of all entries, sorted.
//!
//! A throw-away SQLite file beside the capture, so that memory does not grow with the number of sessions.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, QueryBuilder, Row};

use super::hash::Sha256Digest;
use super::layout;
use crate::capture::{CaptureError, Kind};

/// What an entry is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Session(i64),
    Items(i64, Kind),
    Document(Document),
}

/// A file about the whole job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    Summary,
    Sessions,
    Failures,
    Sums,
}

impl Content {
    /// The sessions that some of it is the whole file of, and all the sessions it is of.
    pub fn sessions_of(contents: impl Iterator<Item = Self>) -> (Vec<i64>, Vec<i64>) {
        let (mut whole, mut any) = (Vec::new(), Vec::new());
        for content in contents {
            match content {
                Self::Session(id) => {
                    whole.push(id);
                    any.push(id);
                }
                Self::Items(id, _) => any.push(id),
                Self::Document(_) => {}
            }
        }
        (whole, any)
    }
}

/// A file of the archive.
#[derive(Debug)]
pub struct Named {
    pub name: String,
    pub content: Content,
    /// None for the file that holds the hashes of the others.
    pub sha256: Option<Sha256Digest>,
}

/// The same for two names that differ only in the case of letters; for others almost never, and then they only get keys
/// that are less plain.
fn folded(name: &str) -> i64 {
    let digest = Sha256::digest(name.to_lowercase());
    let first = digest.first_chunk().expect("a digest has 32 bytes");
    i64::from_le_bytes(*first)
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
            // All caches of the process together may hold so many pages, of whatever size: those of the capture are small.
            .page_size(1_024)
            .pragma("cache_size", "-8000")
            // Every order that is asked for is kept by an index from the beginning, so that nothing needs sorting.
            .pragma("temp_store", "memory")
            .connect()
            .await?;
        sqlx::raw_sql(
            "-- Keys are ASCII. An entry is told from others by a hash of its name in lower case.
             CREATE TABLE sessions (id INTEGER PRIMARY KEY, key TEXT NOT NULL COLLATE NOCASE, entry INTEGER NOT NULL)
                 STRICT;
             CREATE INDEX by_key ON sessions(key);
             CREATE INDEX by_entry ON sessions(entry);
             CREATE TABLE lines (session INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT;
             CREATE TABLE entries (name TEXT PRIMARY KEY, session INTEGER, content INTEGER NOT NULL, sha256 BLOB)
                 STRICT, WITHOUT ROWID;
             BEGIN",
        )
        .execute(&mut connection)
        .await?;
        Ok(Self { connection, path })
    }

    /// Sessions by number, with their keys and names.
    pub async fn add_sessions(&mut self, sessions: &[(i64, String, String)]) -> Result<(), CaptureError> {
        let mut insert = QueryBuilder::new("INSERT INTO sessions (id, key, entry) ");
        insert.push_values(sessions, |mut row, (id, key, name)| {
            row.push_bind(*id).push_bind(key).push_bind(folded(&layout::session_entry(key, name)));
        });
        insert.build().persistent(false).execute(&mut self.connection).await?;
        Ok(())
    }

    /// Sessions whose names would meet another's on a disk that ignores case.
    pub async fn colliding(&mut self) -> Result<Vec<i64>, CaptureError> {
        Ok(sqlx::query_scalar(
            "SELECT id FROM sessions
             WHERE key IN (SELECT key FROM sessions GROUP BY key HAVING count(*) > 1)
             OR entry IN (SELECT entry FROM sessions GROUP BY entry HAVING count(*) > 1)",
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

    pub async fn keys(&mut self, sessions: &[i64]) -> Result<HashMap<i64, String>, CaptureError> {
        let keys: Vec<(i64, String)> =
            sqlx::query_as("SELECT id, key FROM sessions WHERE id IN (SELECT value FROM json_each(?))")
                .bind(json!(sessions).to_string())
                .fetch_all(&mut self.connection)
                .await?;
        Ok(keys.into_iter().collect())
    }

    /// Those of these sessions whose files have been added.
    pub async fn added(&mut self, sessions: &[i64]) -> Result<HashSet<i64>, CaptureError> {
        let added: Vec<i64> =
            sqlx::query_scalar("SELECT session FROM lines WHERE session IN (SELECT value FROM json_each(?))")
                .bind(json!(sessions).to_string())
                .fetch_all(&mut self.connection)
                .await?;
        Ok(added.into_iter().collect())
    }

    /// The lines of sessions in `sessions_summary.json`.
    pub async fn add_lines(&mut self, lines: &[(i64, String)]) -> Result<(), CaptureError> {
        let mut insert = QueryBuilder::new("INSERT INTO lines (session, line) ");
        insert.push_values(lines, |mut row, (session, line)| {
            row.push_bind(*session).push_bind(line);
        });
        insert.build().persistent(false).execute(&mut self.connection).await?;
        Ok(())
    }

    /// Feeds the lines of `sessions_summary.json` in the order of keys.
    pub async fn lines(&mut self, mut each: impl FnMut(&str)) -> Result<(), CaptureError> {
        let mut rows = sqlx::query(
            "SELECT l.line FROM sessions s CROSS JOIN lines l ON l.session = s.id ORDER BY s.key",
        )
        .fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            each(row.try_get("line")?);
        }
        Ok(())
    }

    pub async fn add_entries(&mut self, entries: &[Named]) -> Result<(), CaptureError> {
        let mut insert = QueryBuilder::new("INSERT INTO entries (name, session, content, sha256) ");
        insert.push_values(entries, |mut row, entry| {
            let (session, code) = match entry.content {
                Content::Session(session) => (Some(session), 3),
                Content::Items(session, kind) => (Some(session), kind as i64),
                Content::Document(Document::Summary) => (None, 4),
                Content::Document(Document::Sessions) => (None, 5),
                Content::Document(Document::Failures) => (None, 6),
                Content::Document(Document::Sums) => (None, 7),
            };
            row.push_bind(&entry.name)
                .push_bind(session)
                .push_bind(code)
                .push_bind(entry.sha256.as_ref().map(<[u8; 32]>::as_slice));
        });
        insert.build().persistent(false).execute(&mut self.connection).await?;
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
                    4 => Content::Document(Document::Summary),
                    5 => Content::Document(Document::Sessions),
                    6 => Content::Document(Document::Failures),
                    7 => Content::Document(Document::Sums),
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
            "SELECT lower(hex(sha256)) || '  ' || name AS line FROM entries WHERE sha256 IS NOT NULL ORDER BY name",
        )
        .fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            each(row.try_get("line")?);
        }
        Ok(())
    }
}
