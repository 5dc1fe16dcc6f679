//! The one writer of a capture: takes changes from many tasks and commits them in groups.
//!
//! Once [`Writer::commit`] returns `Ok`, the change is on disk. A change is atomic.

use std::ops::Add;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::Date;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::apply::apply;
use super::listed::KnownSessions;
use super::pages;
use super::segments::Appender;
use super::settled::Settled;
use super::{
    CaptureError, Failed, Kind, ListId, Location, Meta, PageRef, PageToken, RangeId, Segment, UnitId,
    WindowId,
};
use crate::days::DateRange;

/// The most changes queued for the next commit; after that, senders wait.
const QUEUE: usize = 192;
/// The most changes in one commit.
const GROUP: usize = 192;

/// A session as listed.
#[derive(Debug, Clone)]
pub struct ListedSession {
    pub zoom_id: String,
    pub info: String,
}

/// Which chain a page belongs to, its number there, and its unknown members.
#[derive(Debug, Clone)]
pub struct PagePosition<Id> {
    pub chain: Id,
    pub seq: i64,
    pub unknown: Vec<(String, String)>,
}

/// What follows a page of a range.
#[derive(Debug, Clone)]
pub enum Then {
    Next(PageToken),
    /// Nothing: the whole range has been received.
    End,
    /// Neither a token nor the end: the range stays pending until another change ends it, or a later run begins its chain
    /// again.
    Unfinished,
}

/// A page of a range, parsed.
#[derive(Debug)]
pub struct MessagesPage {
    pub position: PagePosition<RangeId>,
    pub then: Then,
    /// The query that its next page token belongs to.
    pub query: String,
    /// Its items, by kind.
    pub segments: [Option<Segment>; 3],
    /// Items dropped because the previous page held them already.
    pub repeats: u64,
    /// 1 if its first message is newer than its last, -1 if it is older, else 0.
    pub direction: i64,
}

impl MessagesPage {
    pub fn new(position: PagePosition<RangeId>, then: Then, segments: [Option<Segment>; 3]) -> Self {
        Self { position, then, query: String::new(), segments, repeats: 0, direction: 0 }
    }
}

/// What is added back to a range from what was set aside: a stored page as it is, or some items of one.
#[derive(Debug)]
pub enum Restored {
    Page(PageRef),
    Items(Kind, Segment),
}

impl Restored {
    pub fn items(&self) -> u64 {
        match self {
            Self::Page(page) => page.items,
            Self::Items(_, segment) => u64::from(segment.items),
        }
    }

    fn segment(&self) -> Option<&Segment> {
        match self {
            Self::Page(_) => None,
            Self::Items(_, segment) => Some(segment),
        }
    }
}

/// One atomic change. Pages that it removes from a range are set aside.
#[derive(Debug)]
pub enum Change {
    /// Plans the windows, each with one list to fetch.
    Plan {
        windows: Vec<DateRange>,
        meta: Vec<(Meta, String)>,
    },
    SetMeta(Vec<(Meta, String)>),
    /// A list page, with a unit and a range for each session new in that window. With a token of the next page, a later run may
    /// go on there; without one it begins the list again, until another change ends it.
    ListPage {
        page: PagePosition<ListId>,
        next: Option<PageToken>,
        sessions: Vec<ListedSession>,
    },
    /// All of the list has been received.
    EndList {
        list: ListId,
    },
    /// The list could not be fetched whole: it is replaced by shorter ones.
    CutList {
        list: ListId,
        parts: Vec<DateRange>,
    },
    FailList {
        list: ListId,
        failed: Failed,
    },
    /// A page of a range. The first page of a chain replaces all pages that the range has: what was received before the chain
    /// began again stays until then.
    MessagesPage(MessagesPage),
    /// A unit has been compared with what was set aside from it: `restored` is appended to its ranges, in order; they hold the
    /// rest already. Does nothing if any of the unit has been fetched since commit `as_of`, or is still pending.
    Compared {
        unit: UnitId,
        as_of: Option<i64>,
        restored: Vec<(RangeId, Restored)>,
    },
    /// Zoom knows nothing of this session in this range.
    RangeNotFound {
        range: RangeId,
    },
    FailRange {
        range: RangeId,
        failed: Failed,
    },
    /// The days of a range before `oldest` are out of reach: they become a failed range of their own. The range's pages are set
    /// aside.
    CutRange {
        range: RangeId,
        oldest: Date,
        failed: Failed,
    },
    /// A range is too long for one chain of pages, or could not be fetched whole: its pages are set aside and it is split into
    /// shorter ones, the first of which keeps its number.
    SplitRange {
        range: RangeId,
        parts: Vec<DateRange>,
        /// Its estimated number of pages: a hint for the session's other units, and a sign that it has yielded some.
        expected_pages: i64,
    },
    /// The sessions numbered `sessions.0` to `sessions.1` are fetched for these days where the window does not list them.
    ProbeDays {
        window: WindowId,
        days: DateRange,
        sessions: (i64, i64),
    },
    /// These ranges were found damaged: they are fetched again from their beginning.
    RefetchDamaged {
        ranges: Vec<RangeId>,
        found_at: Timestamp,
    },
    /// What failed is to be tried again.
    RetryFailed,
}

impl Change {
    /// The segments it adds to the segment file, in this order.
    fn segments(&self) -> Vec<&Segment> {
        match self {
            Self::MessagesPage(MessagesPage { segments, .. }) => segments.iter().flatten().collect(),
            Self::Compared { restored, .. } => {
                restored.iter().filter_map(|(_, restored)| restored.segment()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What a change did, as far as it is counted. Messages pages committed together are counted together: the caller of the first
/// gets the effect of all of them, the others an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effect {
    pub new_sessions: u64,
    pub new_units: u64,
    /// Sessions that the window did not list before; some may have been probed in it. Only set by a list page.
    pub newly_listed: u64,
    /// The numbers of new ranges; only set by a split.
    pub new_ranges: Vec<RangeId>,
    /// Units that have been fetched completely and are to be compared with what was set aside from them.
    pub to_compare: Vec<UnitId>,
    pub settled: Settled,
    /// Ranges and lists that failed for good.
    pub failures: u64,
    /// Items stored minus items set aside.
    pub items: Items,
}

/// The change in the number of items, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Items(pub [i64; 3]);

impl Items {
    /// The sum over all kinds.
    pub fn total(self) -> i64 {
        self.0.into_iter().sum()
    }

    pub(super) fn count(&mut self, kind: Kind, items: i64) {
        self.0[kind as usize] = self.0[kind as usize].saturating_add(items);
    }
}

impl Add for Items {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for kind in Kind::ALL {
            self.count(kind, other.0[kind as usize]);
        }
        self
    }
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
        Self { sender, task: tokio::spawn(run(location, store, receiver).in_current_span()) }
    }

    /// Returns once the change is durable, or with the reason why it may not be: after an error the change may still be stored,
    /// if the disk failed during the commit.
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

/// What the writer writes to.
#[derive(Debug)]
pub(super) struct Store {
    pub connection: SqliteConnection,
    pub segments: Appender,
    pub known: KnownSessions,
    /// The number of the last commit; after opening, of the last one that any unit remembers.
    pub commits: i64,
}

async fn run(location: Location, store: Store, mut receiver: mpsc::Receiver<Request>) {
    let mut store = Some(store);
    let mut group = Vec::with_capacity(GROUP);
    while receiver.recv_many(&mut group, GROUP).await > 0 {
        fill_group(&mut receiver, &mut group).await;
        match commit(&location, &mut store, &group).await {
            Ok(effects) => {
                for ((_, reply), effect) in group.drain(..).zip(effects) {
                    // A caller that was cancelled no longer listens; its change is committed all the same.
                    let _ = reply.send(Ok(effect));
                }
            }
            Err(error) => {
                tracing::error!(%error, "changes could not be committed");
                // How far it got is read from the files when the next commit opens them.
                close(store.take()).await;
                for (_, reply) in group.drain(..) {
                    let _ = reply.send(Err(error.clone()));
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

/// Lets every task that is ready send its change before the commit, which costs about as much for many changes as for one.
async fn fill_group(receiver: &mut mpsc::Receiver<Request>, group: &mut Vec<Request>) {
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
    let data: Vec<Bytes> =
        group.iter().flat_map(|(change, _)| change.segments()).map(|segment| segment.data.clone()).collect();
    let appended = data.iter().map(|data| data.len() as u64).sum();
    segments.check_room(appended)?;
    let mut offset = if data.is_empty() { 0 } else { segments.append(data).await? };
    if group.iter().any(|(change, _)| matches!(change, Change::ListPage { .. })) {
        known.make_ready(connection).await?;
    }
    let mut transaction = connection.begin().await?;
    let mut effects = Vec::with_capacity(group.len());
    let mut pages = Vec::new();
    for (change, _) in group {
        effects.push(apply(&mut transaction, number, change, offset, &mut pages).await?);
        offset += change.segments().iter().map(|segment| segment.data.len() as u64).sum::<u64>();
    }
    // A chain awaits the commit of its page before it does anything else, so the order within the group does not matter.
    if let Some(first) = group.iter().position(|(change, _)| matches!(change, Change::MessagesPage(_))) {
        effects[first] = pages::messages_pages(&mut transaction, number, &pages).await?;
    }
    transaction.commit().await?;
    segments.keep(appended);
    Ok(effects)
}
