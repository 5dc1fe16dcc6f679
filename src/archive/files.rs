//! The files of a session: their names and what they contain.

use std::iter;

use super::layout;
use super::render::{self, AFTER_ITEMS, BEFORE_ITEMS, Facts, SessionFrame, SessionInfo, SessionLine};
use super::scratch::Keys;
use crate::capture::{Kind, PageRef, SEPARATOR, SessionRow};

/// A session for which nothing more will be fetched.
#[derive(Debug)]
pub struct ArchivedSession {
    /// The key that its files are named by.
    pub key: String,
    pub files: Vec<SessionFile>,
    /// Its line in `sessions_summary.json`.
    pub line: String,
    frame: SessionFrame,
    /// Ordered by kind.
    pub pages: Vec<PageRef>,
}

/// One of a session's files.
#[derive(Debug)]
pub struct SessionFile {
    pub name: String,
    pub holds: Holds,
}

#[derive(Debug, Clone, Copy)]
pub enum Holds {
    /// The whole session.
    Everything,
    Items(Kind),
}

/// What a file consists of.
#[derive(Debug)]
pub enum Part<'a> {
    Text(&'a str),
    /// The items of a page, as they are stored.
    Page(&'a PageRef),
}

pub type Parts<'a> = Box<dyn Iterator<Item = Part<'a>> + 'a>;

impl Holds {
    /// Whether such a file contains the items of this kind.
    pub fn includes(self, kind: Kind) -> bool {
        match self {
            Self::Everything => true,
            Self::Items(own) => own == kind,
        }
    }
}

impl ArchivedSession {
    pub fn new(row: &SessionRow, pages: Vec<PageRef>, facts: &Facts, keys: &Keys) -> Self {
        let SessionRow { zoom_id: id, info, not_found, incomplete, .. } = row;
        let (key, totals) = (keys.of(row), totals(&pages));
        let frame = SessionFrame::new(info, id, facts, totals);
        let info = SessionInfo::read(info);
        let of_a_kind = pages.chunk_by(|one, next| one.kind == next.kind).map(|pages| {
            let kind = pages[0].kind;
            SessionFile { name: layout::items_entry(&key, kind), holds: Holds::Items(kind) }
        });
        let name = layout::session_entry(&key, &info.name);
        let files: Vec<_> = of_a_kind.chain([SessionFile { name, holds: Holds::Everything }]).collect();
        let mut names: Vec<&str> = files.iter().map(|file| &file.name[..]).collect();
        names.sort_unstable();
        let line = SessionLine {
            id,
            info: &info,
            key: &key,
            files: &names,
            counts: totals.into(),
            not_found: *not_found,
            incomplete: *incomplete,
        };
        let line = serde_json::to_string(&line).expect("a line is plain data");
        Self { key, files, line, frame, pages }
    }

    /// Returns the parts of the file that holds this, from the first byte to the last.
    pub fn parts(&self, holds: Holds) -> Parts<'_> {
        let text = |text| iter::once(Part::Text(text));
        match holds {
            Holds::Items(kind) => {
                Box::new(text(BEFORE_ITEMS).chain(self.items(kind)).chain(text(AFTER_ITEMS)))
            }
            Holds::Everything => {
                let arrays = Kind::ALL.into_iter();
                let arrays = arrays.flat_map(move |kind| {
                    render::between(kind).map(Part::Text).into_iter().chain(self.items(kind))
                });
                Box::new(text(&self.frame.head).chain(arrays).chain(text(&self.frame.tail)))
            }
        }
    }

    fn items(&self, kind: Kind) -> impl Iterator<Item = Part<'_>> {
        let pages = self.pages.iter().filter(move |page| page.kind == kind).enumerate();
        pages.flat_map(|(index, page)| {
            let separator = (index > 0).then_some(Part::Text(SEPARATOR));
            separator.into_iter().chain([Part::Page(page)])
        })
    }

    /// The size in bytes of the items that such a file contains; of a damaged index, perhaps too large.
    pub fn raw_len(&self, holds: Holds) -> u64 {
        let held = self.pages.iter().filter(|page| holds.includes(page.kind));
        held.fold(0, |sum, page| u64::saturating_add(sum, page.raw_len))
    }

    /// The size of its messages in bytes, as they are stored.
    pub fn packed_len(&self) -> u64 {
        self.pages.iter().map(PageRef::packed_len).sum()
    }
}

/// The number of items of each kind.
fn totals(pages: &[PageRef]) -> [u64; 3] {
    let mut totals = [0; 3];
    for page in pages {
        let sum = &mut totals[page.kind as usize];
        *sum = u64::saturating_add(*sum, page.items);
    }
    totals
}
