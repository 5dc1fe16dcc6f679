//! Copies the captured pages of sessions into their files, without compressing them again.

use tokio_util::sync::CancellationToken;

use super::files::{ArchivedSession, Part, SessionFile};
use super::sink::{Entry, Sink};
use super::zip::Located;
use super::{ArchiveError, ensure_not_cancelled};
use crate::capture::PrefetchedSegments;

/// Writes the files of these sessions, one after another. Returns, by session, what the sink returned for each file.
pub fn sessions(
    sessions: &[ArchivedSession],
    stored: &PrefetchedSegments,
    cancel: &CancellationToken,
    sink: &mut dyn Sink,
) -> Result<Vec<Vec<Located>>, ArchiveError> {
    let mut packed = Vec::new();
    let mut write = |part: Part<'_>, entry: &mut dyn Entry| match part {
        Part::Text(text) => entry.text(text.as_bytes()),
        Part::Page(page) => {
            ensure_not_cancelled(cancel)?;
            entry.piece(stored.packed(page, &mut packed)?, page.raw_len, page.crc32)
        }
    };
    let mut file = |session: &ArchivedSession, file: &SessionFile| {
        let mut fill =
            |entry: &mut dyn Entry| session.parts(file.holds).try_for_each(|part| write(part, entry));
        sink.entry(&file.name, session.raw_len(file.holds), &mut fill)
    };
    sessions.iter().map(|session| session.files.iter().map(|each| file(session, each)).collect()).collect()
}
