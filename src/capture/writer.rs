//! The one writer of a capture: takes changes from many tasks and commits them in groups.
//!
//! Whoever awaits [`Writer::commit`] knows, when it returns, that its change is on disk. A change is atomic.

use jiff::Timestamp;
use jiff::civil::Date;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Sqlite, Transaction};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::bulk::{self, MessagesPage};
use super::listed::{self, KnownSessions};
use super::segments::Appender;
use super::{CaptureError, FailureNote, Location, PageToken, Segment};

/// Changes waiting for the next commit; more make their senders wait.
const QUEUE: usize = 192;
/// The most changes in one commit.
const GROUP: usize = 192;

/// A session as listed.
#[derive(Debug, Clone)]
pub struct ListedSession {
    pub zoom_id: String,
    pub info: String,
}

/// Which chain a page belongs to, its number there, and the token of the page after it.
#[derive(Debug, Clone)]
pub struct PageOf {
    pub chain: i64,
    pub seq: i64,
    pub next: Option<PageToken>,
    pub unknown: Vec<(String, String)>,
}

/// One atomic change.
#[derive(Debug)]
pub enum Change {
    /// Plans the windows, each with one list to fetch.
    Plan {
        windows: Vec<(Date, Date)>,
        meta: Vec<(&'static str, String)>,
    },
    SetMeta(Vec<(&'static str, String)>),
    /// A list page, with a unit and a range for each session new in that window.
    ListPage {
        page: PageOf,
        sessions: Vec<ListedSession>,
    },
    /// The list begins again; what it listed stays (it will be listed again).
    RestartList {
        list: i64,
    },
    /// The list could not be fetched whole: it is replaced by shorter ones.
    CutList {
        list: i64,
        parts: Vec<(Date, Date)>,
    },
    FailList {
        list: i64,
        failure: FailureNote,
        at: Timestamp,
    },
    /// A messages page. `query` is what its token belongs to.
    MessagesPage {
        page: PageOf,
        query: String,
        segments: [Option<Segment>; 3],
        repeats: u64,
    },
    /// Drops the pages of a range that begins again.
    RestartRange {
        range: i64,
    },
    /// Zoom knows nothing of this session in this range.
    RangeNotFound {
        range: i64,
    },
    FailRange {
        range: i64,
        failure: FailureNote,
        at: Timestamp,
    },
    /// The first days of a range are out of reach: they become a failed range of their own.
    CutRange {
        range: i64,
        reachable_from: Date,
        failure: FailureNote,
        at: Timestamp,
    },
    /// A range is too long for one chain of pages: its pages are dropped and it is cut into shorter ones, the first of
    /// which keeps its number.
    SplitRange {
        range: i64,
        parts: Vec<(Date, Date)>,
        /// How many pages its unit is taken to have: a hint for the session's other units.
        expected_pages: i64,
    },
    /// Sessions known from elsewhere are asked for days that could not be listed.
    ProbeDays {
        window: i64,
        from: Date,
        to: Date,
    },
    /// These ranges are fetched again from their beginning.
    RefetchRanges(Vec<i64>),
    /// What failed is to be tried again.
    RetryFailed,
}

/// What a change did, as far as anybody counts it. What pages of the same group did together is told to one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effect {
    pub new_sessions: u64,
    pub new_units: u64,
    /// Sessions that were done until this brought them another unit.
    pub reopened_sessions: u64,
    /// The numbers of new ranges; only of a split. None when the range was there no more.
    pub new_ranges: Vec<i64>,
    /// Units it brought to their end, well or not.
    pub units_done: u64,
    pub units_failed: u64,
    /// Sessions whose last unit that was, none of them failed.
    pub sessions_done: u64,
}

type Request = (Change, oneshot::Sender<Result<Effect, CaptureError>>);

/// The writer's handle.
#[derive(Debug)]
pub struct Writer {
    sender: mpsc::Sender<Request>,
    task: JoinHandle<()>,
}

impl Writer {
    pub(super) fn start(location: Location, store: Store) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { sender, task: tokio::spawn(run(location, store, receiver)) }
    }

    /// Returns once the change is durable, or with the reason why it was not made. Only then may it be there all the same, when
    /// the disk failed while it was being committed.
    pub async fn commit(&self, change: Change) -> Result<Effect, CaptureError> {
        let (sender, receiver) = oneshot::channel();
        self.sender.send((change, sender)).await.map_err(|_| CaptureError::WriterGone)?;
        receiver.await.map_err(|_| CaptureError::WriterGone)?
    }

    /// Finishes what is queued and closes the file.
    pub async fn close(self) {
        drop(self.sender);
        if self.task.await.is_err() {
            tracing::error!("the capture's writer panicked");
        }
    }
}

/// What is written to.
#[derive(Debug)]
pub(super) struct Store {
    pub connection: SqliteConnection,
    pub segments: Appender,
    pub known: KnownSessions,
    /// The number of the last commit.
    pub commits: i64,
}

async fn run(location: Location, store: Store, mut receiver: mpsc::Receiver<Request>) {
    let mut store = Some(store);
    let mut group = Vec::with_capacity(GROUP);
    while receiver.recv_many(&mut group, GROUP).await > 0 {
        gather(&mut receiver, &mut group).await;
        match commit(&location, &mut store, &group).await {
            Ok(effects) => {
                for ((_, reply), effect) in group.drain(..).zip(effects) {
                    // A caller that was cancelled no longer listens; its change is committed all the same.
                    let _ = reply.send(Ok(effect));
                }
            }
            Err(error) => {
                tracing::error!(%error, "changes could not be committed");
                // How far it came is for the files to tell, once they are opened again.
                close(store.take()).await;
                for (_, reply) in group.drain(..) {
                    let _ = reply.send(Err(match &error {
                        CaptureError::DiskFull => CaptureError::DiskFull,
                        CaptureError::Damaged(what) => CaptureError::Damaged(what.clone()),
                        other => CaptureError::Unwritable(other.to_string()),
                    }));
                }
            }
        }
    }
    close(store).await;
}

async fn close(store: Option<Store>) {
    let Some(Store { connection, .. }) = store else { return };
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the capture was not closed cleanly");
    }
}

async fn commit(
    location: &Location,
    store: &mut Option<Store>,
    group: &[Request],
) -> Result<Vec<Effect>, CaptureError> {
    let store = match store {
        Some(store) => store,
        None => store.insert(location.open_store().await?),
    };
    commit_group(store, group).await
}

/// Whoever is about to send a change sends it first: a commit costs about as much for many changes as for one.
async fn gather(receiver: &mut mpsc::Receiver<Request>, group: &mut Vec<Request>) {
    let mut before = 0;
    while before < group.len() && group.len() < GROUP {
        before = group.len();
        tokio::task::yield_now().await;
        while group.len() < GROUP
            && let Ok(request) = receiver.try_recv()
        {
            group.push(request);
        }
    }
}

async fn commit_group(store: &mut Store, group: &[Request]) -> Result<Vec<Effect>, CaptureError> {
    let Store { connection, segments, known, commits } = store;
    *commits += 1;
    let number = *commits;
    // Segments first, and synced: the index never refers to what may be lost.
    let bytes = bytes_of(group);
    let appended = bytes.len() as u64;
    let from = if bytes.is_empty() { 0 } else { segments.append(bytes).await? };
    if group.iter().any(|(change, _)| matches!(change, Change::ListPage { .. })) {
        known.make_ready(connection).await?;
    }
    let mut transaction = connection.begin().await?;
    let mut effects = Vec::with_capacity(group.len());
    let mut pages = Vec::new();
    for (change, _) in group {
        if let Change::MessagesPage { page, query, segments, repeats } = change {
            pages.push(MessagesPage { page, query, segments, repeats: *repeats });
            effects.push(Effect::default());
        } else {
            effects.push(apply(&mut transaction, number, change).await?);
        }
    }
    // A chain waits for its page before it does anything else, so the order within the group does not matter.
    if !pages.is_empty() {
        let together = bulk::messages_pages(&mut transaction, number, &pages, from).await?;
        let first = group.iter().position(|(change, _)| matches!(change, Change::MessagesPage { .. }));
        effects[first.expect("there are pages")] = together;
    }
    transaction.commit().await?;
    segments.keep(appended);
    Ok(effects)
}

/// The segments of a group, one after the other.
fn bytes_of(group: &[Request]) -> Vec<u8> {
    let pages = group.iter().filter_map(|(change, _)| match change {
        Change::MessagesPage { segments, .. } => Some(segments),
        _ => None,
    });
    let data: Vec<&[u8]> = pages.flatten().flatten().map(|segment| &segment.data[..]).collect();
    data.concat()
}

type Tx<'a> = Transaction<'a, Sqlite>;

/// `number` is the commit's.
async fn apply(tx: &mut Tx<'_>, number: i64, change: &Change) -> Result<Effect, CaptureError> {
    let mut effect = Effect::default();
    match change {
        Change::Plan { windows, meta } => {
            for (index, (from, to)) in windows.iter().enumerate() {
                sqlx::query("INSERT INTO windows (idx, first_day, last_day) VALUES (?, ?, ?)")
                    .bind(index as i64)
                    .bind(from.to_string())
                    .bind(to.to_string())
                    .execute(&mut **tx)
                    .await?;
                insert_list(tx, index as i64, (*from, *to)).await?;
            }
            set_meta(tx, meta).await?;
        }
        Change::SetMeta(meta) => set_meta(tx, meta).await?,
        Change::ListPage { page, sessions } => effect = listed::list_page(tx, page, sessions).await?,
        Change::RestartList { list } => {
            run_with_id(tx, "DELETE FROM unknown_members WHERE list = ?", *list).await?;
            run_with_id(
                tx,
                "UPDATE lists SET pages = 0, next_token = NULL, token_at = NULL WHERE id = ?",
                *list,
            )
            .await?;
        }
        Change::CutList { list, parts } => {
            let window: i64 = sqlx::query_scalar(
                "UPDATE lists SET state = 'cut', next_token = NULL WHERE id = ? RETURNING window",
            )
            .bind(list)
            .fetch_one(&mut **tx)
            .await?;
            for part in parts {
                insert_list(tx, window, *part).await?;
            }
        }
        Change::FailList { list, failure, at } => {
            fail(
                tx,
                "UPDATE lists SET state = 'failed', failure = ?, failed_at = ? WHERE id = ?",
                *list,
                failure,
                *at,
            )
            .await?;
        }
        Change::MessagesPage { .. } => unreachable!("pages of a group are written together"),
        Change::RestartRange { range } => restart_range(tx, *range).await?,
        Change::RangeNotFound { range } => {
            run_with_id(tx, "UPDATE ranges SET state = 'not_found' WHERE id = ?", *range).await?;
            effect = bulk::settle(tx, number, &[*range]).await?;
        }
        Change::FailRange { range, failure, at } => {
            fail(
                tx,
                "UPDATE ranges SET state = 'failed', failure = ?, failed_at = ? WHERE id = ?",
                *range,
                failure,
                *at,
            )
            .await?;
            effect = bulk::settle(tx, number, &[*range]).await?;
        }
        Change::CutRange { range, reachable_from, failure, at } => {
            let last_lost =
                reachable_from.yesterday().map_err(|error| CaptureError::Damaged(error.to_string()))?;
            sqlx::query(
                "INSERT INTO ranges (unit, window, first_day, last_day, state, failure, failed_at)
                 SELECT unit, window, first_day, ?, 'failed', ?, ? FROM ranges WHERE id = ?",
            )
            .bind(last_lost.to_string())
            .bind(note(failure))
            .bind(at.to_string())
            .bind(range)
            .execute(&mut **tx)
            .await?;
            sqlx::query("UPDATE ranges SET first_day = ? WHERE id = ?")
                .bind(reachable_from.to_string())
                .bind(range)
                .execute(&mut **tx)
                .await?;
            restart_range(tx, *range).await?;
        }
        Change::SplitRange { range, parts, expected_pages } => {
            let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM ranges WHERE id = ?)")
                .bind(range)
                .fetch_one(&mut **tx)
                .await?;
            if !there {
                // It has been replaced meanwhile.
                return Ok(effect);
            }
            restart_range(tx, *range).await?;
            sqlx::query(
                "UPDATE units SET expected_pages = max(expected_pages, ?)
                 WHERE id = (SELECT unit FROM ranges WHERE id = ?)",
            )
            .bind(expected_pages)
            .bind(range)
            .execute(&mut **tx)
            .await?;
            let mut parts = parts.iter();
            let Some(first) = parts.next() else { return Ok(effect) };
            for (from, to) in parts {
                let id = sqlx::query_scalar(
                    "INSERT INTO ranges (unit, window, first_day, last_day)
                     SELECT unit, window, ?, ? FROM ranges WHERE id = ? RETURNING id",
                )
                .bind(from.to_string())
                .bind(to.to_string())
                .bind(range)
                .fetch_one(&mut **tx)
                .await?;
                effect.new_ranges.push(id);
            }
            sqlx::query("UPDATE ranges SET first_day = ?, last_day = ? WHERE id = ?")
                .bind(first.0.to_string())
                .bind(first.1.to_string())
                .bind(range)
                .execute(&mut **tx)
                .await?;
        }
        Change::ProbeDays { window, from, to } => {
            let probed = sqlx::query(
                "INSERT INTO units (session, window, listed) SELECT id, ?, 0 FROM sessions WHERE true
                 ON CONFLICT (session, window) DO NOTHING",
            )
            .bind(window)
            .execute(&mut **tx)
            .await?;
            effect.new_units = probed.rows_affected();
            // Days it holds already are not asked for twice: a session listed beside them has a range over the whole window,
            // and they may have been probed before, in one range or in parts. Most have none of them, or all in one.
            for statement in [
                "INSERT INTO ranges (unit, window, first_day, last_day)
                 SELECT u.id, u.window, ?2, ?3 FROM units u WHERE u.window = ?1 AND u.listed = 0
                 AND NOT EXISTS (SELECT 1 FROM ranges r WHERE r.unit = u.id AND r.first_day <= ?3 AND r.last_day >= ?2)",
                "INSERT INTO ranges (unit, window, first_day, last_day)
                 WITH RECURSIVE days(day) AS
                     (SELECT ?2 UNION ALL SELECT date(day, '+1 day') FROM days WHERE day < ?3)
                 SELECT u.id, u.window, day, day FROM units u CROSS JOIN days
                 WHERE u.window = ?1 AND u.listed = 0
                 AND NOT EXISTS (SELECT 1 FROM ranges r WHERE r.unit = u.id AND r.first_day <= ?2 AND r.last_day >= ?3)
                 AND NOT EXISTS (SELECT 1 FROM ranges r WHERE r.unit = u.id AND r.first_day <= day AND r.last_day >= day)",
            ] {
                sqlx::query(statement)
                    .bind(window)
                    .bind(from.to_string())
                    .bind(to.to_string())
                    .execute(&mut **tx)
                    .await?;
            }
            // Units that were done may have got a range.
            sqlx::query(
                "UPDATE units SET state = 'pending' WHERE window = ? AND listed = 0 AND state <> 'pending'
                 AND EXISTS (SELECT 1 FROM ranges r WHERE r.unit = units.id AND r.state = 'pending')",
            )
            .bind(window)
            .execute(&mut **tx)
            .await?;
        }
        Change::RefetchRanges(ranges) => {
            for range in ranges {
                restart_range(tx, *range).await?;
                for statement in [
                    "UPDATE ranges SET state = 'pending', failure = NULL, failed_at = NULL WHERE id = ?",
                    "UPDATE units SET state = 'pending' WHERE id = (SELECT unit FROM ranges WHERE id = ?)",
                ] {
                    run_with_id(tx, statement, *range).await?;
                }
            }
        }
        Change::RetryFailed => {
            for statement in [
                "UPDATE units SET state = 'pending' WHERE id IN (SELECT unit FROM ranges WHERE state = 'failed')",
                "UPDATE ranges SET state = 'pending', failure = NULL, failed_at = NULL WHERE state = 'failed'",
                "UPDATE lists SET state = 'pending', failure = NULL, failed_at = NULL WHERE state = 'failed'",
            ] {
                sqlx::query(statement).execute(&mut **tx).await?;
            }
        }
    }
    Ok(effect)
}

async fn restart_range(tx: &mut Tx<'_>, range: i64) -> Result<(), CaptureError> {
    for statement in [
        "DELETE FROM pages WHERE range = ?",
        "DELETE FROM unknown_members WHERE range = ?",
        "UPDATE ranges SET pages = 0, repeats = 0, next_token = NULL, token_at = NULL WHERE id = ?",
    ] {
        run_with_id(tx, statement, range).await?;
    }
    Ok(())
}

async fn run_with_id(tx: &mut Tx<'_>, statement: &'static str, id: i64) -> Result<(), CaptureError> {
    sqlx::query(statement).bind(id).execute(&mut **tx).await?;
    Ok(())
}

fn note(failure: &FailureNote) -> String {
    serde_json::to_string(failure).expect("a note is plain text and numbers")
}

async fn fail(
    tx: &mut Tx<'_>,
    statement: &'static str,
    id: i64,
    failure: &FailureNote,
    at: Timestamp,
) -> Result<(), CaptureError> {
    sqlx::query(statement).bind(note(failure)).bind(at.to_string()).bind(id).execute(&mut **tx).await?;
    Ok(())
}

async fn set_meta(tx: &mut Tx<'_>, meta: &[(&'static str, String)]) -> Result<(), CaptureError> {
    for (key, value) in meta {
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(key)
            .bind(value)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

async fn insert_list(tx: &mut Tx<'_>, window: i64, (from, to): (Date, Date)) -> Result<(), CaptureError> {
    sqlx::query("INSERT INTO lists (window, first_day, last_day) VALUES (?, ?, ?)")
        .bind(window)
        .bind(from.to_string())
        .bind(to.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
