//! The capture: everything one job has received, exactly as received. A SQLite file (`capture.db`) holds all but the messages;
//! a file beside it (`capture.segments`) holds those, compressed, each page once.
//!
//! Owns both files, the schema, its one writer and its readers. Whatever comes from Zoom is committed here before anything else
//! happens to it; everything a user takes away is derived from here. Knows nothing of HTTP, of Zoom's errors beyond their text,
//! or of archives.

mod apply;
mod error;
mod ids;
mod listed;
mod location;
mod pages;
mod reader;
mod segment;
mod segments;
mod sessions;
mod set_aside;
mod settled;
mod statements;
#[cfg(test)]
pub mod testing;
mod totals;
mod verify;
mod writer;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{Sqlite, Transaction};

use crate::days::DateRange;
pub use error::CaptureError;
pub use ids::{ListId, RangeId, UnitId, WindowId};
pub use location::{Location, is_damaged_copy};
pub use reader::{PageRef, Reader, UnitPages, UnitRange};
pub use segment::{FINAL_BLOCK, SEPARATOR, Segment, inflate, inflate_to, pack};
pub use segments::{PrefetchedSegments, SegmentReader};
pub use sessions::{Place, PlacedSession, SessionRow, WindowTotals};
pub use settled::Settled;
pub use totals::{Counts, FailureRow, NotFoundRow};
pub use writer::{Change, Effect, ListedSession, MessagesPage, PagePosition, Restored, Then, Writer};

type Tx<'a> = Transaction<'a, Sqlite>;

/// The three arrays of a messages page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Messages,
    Edited,
    Deleted,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Messages, Self::Edited, Self::Deleted];
}

/// Converts from the numbers used in the index.
impl TryFrom<i64> for Kind {
    type Error = CaptureError;

    fn try_from(number: i64) -> Result<Self, CaptureError> {
        let kind = usize::try_from(number).ok().and_then(|index| Self::ALL.get(index));
        kind.copied().ok_or_else(|| CaptureError::Damaged("a page of unknown kind".to_owned()))
    }
}

/// What the capture records about a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureNote {
    pub code: String,
    pub status: Option<u16>,
    pub zoom_code: Option<i64>,
    pub message: String,
    pub attempts: u32,
}

/// Why something failed for good, and when.
#[derive(Debug, Clone)]
pub struct Failed {
    pub note: FailureNote,
    pub at: Timestamp,
}

/// A page token and when it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken {
    pub token: String,
    pub at: Timestamp,
}

/// What a capture records about its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// The request, as JSON; without it there is no plan.
    Request,
    StartedAt,
    /// When damaged messages, to be fetched again, were last found in it.
    DamagedAt,
    /// When the job was planned; present only if its last day was not over.
    CapturedUntil,
    /// Totals of the traffic with Zoom, as JSON.
    Traffic,
    /// The version of the program.
    Version,
    JobId,
    /// The name of the key that asked for the job.
    Requester,
    /// Identifies the account whose chats it holds, without naming it.
    Account,
    /// The day from which Zoom was found to answer, if that is later than six months ago.
    ReachBegins,
}

impl Meta {
    fn key(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::StartedAt => "started_at",
            Self::DamagedAt => "damaged_at",
            Self::CapturedUntil => "captured_until",
            Self::Traffic => "traffic",
            Self::Version => "version",
            Self::JobId => "job_id",
            Self::Requester => "requester",
            Self::Account => "account",
            Self::ReachBegins => "reach_begins",
        }
    }
}

/// One chain of pages still to be followed: of a list or of a range.
#[derive(Debug, Clone)]
pub struct Chain<Id> {
    pub id: Id,
    pub window: WindowId,
    pub days: DateRange,
    pub pages: i64,
    pub resume: Option<PageToken>,
}

/// A range to fetch.
#[derive(Debug, Clone)]
pub struct PendingRange {
    pub chain: Chain<RangeId>,
    pub unit: UnitId,
    pub session_id: String,
    pub query: Option<String>,
    /// The most pages that the same session has, or is expected to have, in another window: a hint at how long this will be.
    pub pages_elsewhere: i64,
    /// When the last message of the session was sent, according to the session list.
    pub last_sent: Option<Timestamp>,
}
