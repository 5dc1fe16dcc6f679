//! The files of a session: how they are named, what stands in them.

use super::layout;
use super::render::{self, Facts, SessionFrame, SessionInfo};
use super::scratch::Scratch;
use crate::capture::{Kind, PageRef, SessionRow};

/// A session of which nothing more will come.
#[derive(Debug)]
pub struct WholeSession {
    row: SessionRow,
    info: SessionInfo,
    /// What its files are named by.
    pub key: String,
    pub files: Vec<SessionFile>,
    pub frame: SessionFrame,
    /// In the order of kinds.
    pub pages: Vec<PageRef>,
}

/// One of them.
#[derive(Debug)]
pub struct SessionFile {
    pub name: String,
    pub holds: Holds,
}

#[derive(Debug, Clone, Copy)]
pub enum Holds {
    /// All there is of the session.
    Everything,
    Items(Kind),
}

impl WholeSession {
    pub fn new(row: SessionRow, pages: Vec<PageRef>, facts: &Facts, scratch: &Scratch) -> Self {
        let frame = SessionFrame::new(&row.info, &row.zoom_id, facts, totals(&pages));
        let (info, key) = (SessionInfo::read(&row.info), scratch.key(&row));
        let of_a_kind = pages.chunk_by(|one, next| one.kind == next.kind).map(|pages| {
            let kind = pages[0].kind;
            SessionFile { name: layout::items_entry(&key, kind), holds: Holds::Items(kind) }
        });
        let name = layout::session_entry(&key, &info.name);
        let files = of_a_kind.chain([SessionFile { name, holds: Holds::Everything }]).collect();
        Self { row, info, key, files, frame, pages }
    }

    /// Its pages of a kind.
    pub fn pages_of(&self, kind: Kind) -> &[PageRef] {
        let from = self.pages.partition_point(|page| page.kind < kind);
        let to = self.pages.partition_point(|page| page.kind <= kind);
        &self.pages[from..to]
    }

    /// Bytes of its messages as they are stored.
    pub fn packed_len(&self) -> u64 {
        self.pages.iter().map(PageRef::packed_len).sum()
    }

    /// Its line in `sessions_summary.json`.
    pub fn line(&self) -> String {
        let mut names: Vec<&str> = self.files.iter().map(|file| &file.name[..]).collect();
        names.sort_unstable();
        let SessionRow { zoom_id, not_found, .. } = &self.row;
        render::session_line(zoom_id, &self.key, &self.info, &names, totals(&self.pages), *not_found)
    }
}

/// Items by kind.
fn totals(pages: &[PageRef]) -> [u64; 3] {
    let mut totals = [0; 3];
    for page in pages {
        totals[page.kind as usize] += page.items;
    }
    totals
}
