//! The files of sessions as the second pass will copy them: named, framed, hashed.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::ArchiveError;
use super::hash::{self, SessionHashes};
use super::layout;
use super::render::{self, Facts, SessionFrame, SessionInfo};
use super::scratch::{Content, Packed, Remembered};
use crate::capture::{PageRef, SegmentReader, SessionRow};

/// Heads of sessions are compressed at this level: they are so short that a higher one would cost more than it saves.
const HEAD_LEVEL: u32 = 1;

/// A session that is all there.
#[derive(Debug)]
pub struct WholeSession {
    pub session: SessionRow,
    /// What its files are named by.
    pub key: String,
    /// In the order of kinds.
    pub pages: Vec<PageRef>,
}

/// What is remembered of a session: its files, and its line in `sessions_summary.json`.
#[derive(Debug)]
pub struct SessionFiles {
    pub session: i64,
    pub key: String,
    pub line: String,
    pub entries: Vec<Remembered>,
}

/// What it takes to make them.
#[derive(Debug, Clone)]
pub struct Making {
    pub facts: Facts,
    pub segments: Arc<SegmentReader>,
    pub threads: usize,
    pub cancel: CancellationToken,
}

impl Making {
    /// Hashes the files of these sessions, a share of them on each thread, and tells all that has to be remembered of them.
    pub fn files_of(&self, sessions: &[WholeSession]) -> Result<Vec<SessionFiles>, ArchiveError> {
        let share = sessions.len().div_ceil(self.threads).max(1);
        std::thread::scope(|scope| {
            let shares: Vec<_> =
                sessions.chunks(share).map(|share| scope.spawn(|| self.files_of_share(share))).collect();
            let mut files = Vec::with_capacity(sessions.len());
            for share in shares {
                files.extend(share.join().map_err(|_| std::io::Error::other("a thread panicked"))??);
            }
            Ok(files)
        })
    }

    fn files_of_share(&self, sessions: &[WholeSession]) -> Result<Vec<SessionFiles>, ArchiveError> {
        let framed: Vec<(SessionFrame, &[PageRef])> = sessions
            .iter()
            .map(|WholeSession { session, pages, .. }| {
                let totals = totals_of(pages);
                (SessionFrame::new(&session.info, &session.zoom_id, &self.facts, totals), &pages[..])
            })
            .collect();
        let hashes = hash::sessions(&framed, &self.segments, self.threads, &self.cancel)?;
        let each = sessions.iter().zip(&framed).zip(&hashes);
        each.map(|((session, (frame, _)), hashes)| remembered(session, frame, hashes)).collect()
    }
}

fn remembered(
    WholeSession { session, key, pages }: &WholeSession,
    frame: &SessionFrame,
    hashes: &SessionHashes,
) -> Result<SessionFiles, ArchiveError> {
    let SessionRow { id, zoom_id, info, not_found } = session;
    let mut entries = Vec::with_capacity(2);
    for of_a_kind in pages.chunk_by(|one, next| one.kind == next.kind) {
        let kind = of_a_kind[0].kind;
        let content = Content::Items(of_a_kind.into());
        entries.push(Remembered::new(layout::items_entry(key, kind), &content, hashes.items[kind as usize])?);
    }
    let head = SessionInfo::read(info);
    let content = Content::Session { head: Packed::of(&frame.head, HEAD_LEVEL), pages: (&pages[..]).into() };
    entries.push(Remembered::new(layout::session_entry(key, &head.name), &content, Some(hashes.whole))?);
    let mut files: Vec<&str> = entries.iter().map(|entry| &entry.name[..]).collect();
    files.sort_unstable();
    let line = render::session_line(zoom_id, key, &head, &files, totals_of(pages), *not_found);
    Ok(SessionFiles { session: *id, key: key.clone(), line, entries })
}

/// Items by kind.
pub fn totals_of(pages: &[PageRef]) -> [u64; 3] {
    let mut totals = [0; 3];
    for page in pages {
        totals[page.kind as usize] += page.items;
    }
    totals
}
