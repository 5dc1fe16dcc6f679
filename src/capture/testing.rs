//! Fixtures for tests of captures.

use tempfile::TempDir;

use crate::days::DateRange;

use super::{
    Change, Failed, FailureNote, ListId, ListedSession, Location, MessagesPage, PagePosition, RangeId, Then,
    Writer,
};

/// A new capture with these windows planned: the ids of their lists are 1, 2 and so on.
pub(crate) async fn planned(windows: &[DateRange]) -> (TempDir, Location, Writer) {
    let directory = tempfile::tempdir().unwrap();
    let location = Location::in_directory(directory.path());
    let writer = location.open_writer().await.unwrap();
    writer.commit(Change::Plan { windows: windows.to_vec(), meta: Vec::new() }).await.unwrap();
    (directory, location, writer)
}

/// The only page of a list.
pub(crate) fn list(list: i64, ids: &[&str]) -> Change {
    let session = |id: &&str| ListedSession { zoom_id: (*id).to_owned(), info: "{}".to_owned() };
    Change::ListPage {
        page: position(ListId(list), 0),
        next: None,
        sessions: ids.iter().map(session).collect(),
    }
}

/// The only page of a range that holds nothing.
pub(crate) fn empty_page(range: i64) -> Change {
    Change::MessagesPage(MessagesPage::new(position(RangeId(range), 0), Then::End, Default::default()))
}

pub(crate) fn position<Id>(chain: Id, seq: i64) -> PagePosition<Id> {
    PagePosition { chain, seq, unknown: Vec::new() }
}

pub(crate) fn failed() -> Failed {
    let note = FailureNote {
        code: "server-error".to_owned(),
        status: Some(500),
        zoom_code: None,
        message: "it fell".to_owned(),
        attempts: 8,
    };
    Failed { note, at: "2026-05-30T19:00:00Z".parse().unwrap() }
}
