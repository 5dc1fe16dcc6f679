//! What the capture holds of sessions, copied into their files as it is stored.

use tokio_util::sync::CancellationToken;

use super::files::{Holds, SessionFile, WholeSession};
use super::render::{self, AFTER_ITEMS, BEFORE_ITEMS};
use super::sink::{Entry, Sink};
use super::zip::Located;
use super::{ArchiveError, check};
use crate::capture::{Kind, PageRef, SEPARATOR, SegmentReader};

/// Writes the files of these sessions, one after the other. Tells what the sink does of each.
pub fn sessions(
    sessions: &[WholeSession],
    segments: &SegmentReader,
    cancel: &CancellationToken,
    sink: &mut dyn Sink,
) -> Result<Vec<Vec<Option<Located>>>, ArchiveError> {
    let source = Source { segments, cancel };
    let mut write = |session: &WholeSession, file: &SessionFile| {
        sink.entry(&file.name, &mut |entry| match file.holds {
            Holds::Everything => source.session(session, entry),
            Holds::Items(kind) => source.file_of_items(session.pages_of(kind), entry),
        })
    };
    sessions.iter().map(|session| session.files.iter().map(|file| write(session, file)).collect()).collect()
}

/// The stored messages, while nobody calls it off.
#[derive(Clone, Copy)]
struct Source<'a> {
    segments: &'a SegmentReader,
    cancel: &'a CancellationToken,
}

impl Source<'_> {
    fn session(self, session: &WholeSession, entry: &mut dyn Entry) -> Result<(), ArchiveError> {
        entry.text(session.frame.head.as_bytes())?;
        for kind in Kind::ALL {
            entry.text(render::between(kind).as_bytes())?;
            self.items(session.pages_of(kind), entry)?;
        }
        entry.text(session.frame.tail.as_bytes())
    }

    fn file_of_items(self, pages: &[PageRef], entry: &mut dyn Entry) -> Result<(), ArchiveError> {
        entry.text(BEFORE_ITEMS)?;
        self.items(pages, entry)?;
        entry.text(AFTER_ITEMS)
    }

    fn items(self, pages: &[PageRef], entry: &mut dyn Entry) -> Result<(), ArchiveError> {
        for (index, page) in pages.iter().enumerate() {
            check(self.cancel)?;
            if index > 0 {
                entry.text(SEPARATOR.as_bytes())?;
            }
            entry.piece(&self.segments.packed(page)?, page.raw_len, page.crc32)?;
        }
        Ok(())
    }
}
