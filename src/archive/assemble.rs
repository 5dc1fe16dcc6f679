//! Capture to archive, session by session in the order in which they became complete: what the capture holds of each is
//! copied into its files, and hashed beside that. Summaries and hashes of the files come last, and the archive's directory,
//! which is sorted. Runs on a thread of its own.
//!
//! In that order, and not in that of names, because whatever becomes complete later stands later: what is there can be
//! written while the rest is still being fetched, and the same capture gives the same bytes, however much was.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::ahead::Begun;
use super::files::{Holds, SessionFile, WholeSession};
use super::hash::{Hasher, Hashing, SessionHashes};
use super::render::{self, AFTER_ITEMS, BEFORE_ITEMS, Facts, SessionInfo};
use super::scratch::{Names, Scratch};
use super::sink::{self, Entry, Sink, Target, Text};
use super::zip::Located;
use super::{ArchiveError, ArchiveFile, layout};
use crate::capture::{Kind, Location, PageRef, Place, Reader, SEPARATOR};

/// Sessions taken from the database at a time.
const AT_A_TIME: i64 = 250;
/// And so many pages at most, if that is more than one session: where each is has to be remembered meanwhile.
const PAGES_AT_A_TIME: i64 = 10_000;
/// Assembly leaves at least this much of the disk free.
const KEEP_FREE: u64 = 16 << 20;
/// What a session takes beside its messages: heads, names, lines.
const ROOM_FOR_A_SESSION: u64 = 3 << 10;

/// Where to read from, where to work, and what is made.
#[derive(Debug, Clone)]
pub struct AssembleInput {
    /// The job's directory: the capture is in it, and temporary files are made in it.
    pub directory: PathBuf,
    pub target: Target,
    pub cancel: CancellationToken,
}

/// Makes the archive, or what is left to be made of it. A zip is told of.
pub async fn assemble(input: AssembleInput, begun: Begun) -> Result<Option<ArchiveFile>, ArchiveError> {
    on_own_thread(move || async move {
        let mut assembly = match begun.0 {
            Some(assembly) => assembly,
            None => Assembly::begin(input).await?,
        };
        assembly.add_all().await?;
        assembly.finish().await
    })
    .await
}

/// Inflating and hashing would hold up the threads that serve sockets.
pub(super) async fn on_own_thread<T, F, W>(work: W) -> Result<T, ArchiveError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ArchiveError>>,
    W: FnOnce() -> F + Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work()))
        .await
        .map_err(|error| ArchiveError::Io(std::io::Error::other(error)))?
}

/// An archive that is being made.
#[derive(Debug)]
pub(super) struct Assembly {
    input: AssembleInput,
    reader: Reader,
    scratch: Scratch,
    sink: Box<dyn Sink>,
    facts: Facts,
    /// Of the last session that is in it.
    last: Place,
    /// Bytes of all segments that are in it.
    copied: u64,
}

impl Assembly {
    /// All sessions must be known.
    pub(super) async fn begin(input: AssembleInput) -> Result<Self, ArchiveError> {
        let mut reader = Location::in_directory(&input.directory).open_reader().await?;
        let facts = Facts::read(&mut reader).await?;
        let mut names = Names::create(&input.directory)?;
        let mut after = 0;
        loop {
            let sessions = reader.session_infos(after, AT_A_TIME).await?;
            let Some(last) = sessions.last() else { break };
            after = last.0;
            for (session, zoom_id, info) in &sessions {
                names.add(*session, zoom_id, &SessionInfo::read(info).name)?;
            }
        }
        let scratch = names.settle()?;
        let sink = sink::open(input.target.clone(), facts.started())?;
        Ok(Self { input, reader, scratch, sink, facts, last: Place::default(), copied: 0 })
    }

    /// Adds the sessions of which everything is there, until told to stop. Nothing else of the job will need the room
    /// that is left, unless as much comes again as there is.
    pub(super) async fn add_complete(&mut self, stop: &CancellationToken) -> Result<(), ArchiveError> {
        self.check_room(self.reader.segments().size()?)?;
        self.add_sessions(false, 1, stop).await
    }

    /// Adds all sessions; nothing more may come.
    async fn add_all(&mut self) -> Result<(), ArchiveError> {
        self.check_room(0)?;
        let threads = available_parallelism().map_or(1, usize::from);
        self.add_sessions(true, threads, &CancellationToken::new()).await?;
        Ok(self.scratch.check_whole()?)
    }

    /// Sessions that are not in it yet.
    #[cfg(test)]
    pub(super) fn missing(&self) -> u64 {
        self.scratch.missing()
    }

    fn check_room(&self, beside: u64) -> Result<(), ArchiveError> {
        let to_copy = self.reader.segments().size()?.saturating_sub(self.copied);
        let needed = to_copy * 2 + self.scratch.missing() * ROOM_FOR_A_SESSION + beside + KEEP_FREE;
        let stat = rustix::fs::statvfs(&self.input.directory).map_err(std::io::Error::from)?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < needed {
            return Err(ArchiveError::NoRoom { needed, free, path: self.input.directory.clone() });
        }
        Ok(())
    }

    async fn add_sessions(
        &mut self,
        also_incomplete: bool,
        threads: usize,
        stop: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        let (segments, cancel) = (self.reader.segments().clone(), self.input.cancel.clone());
        let hasher = Hasher { segments, threads, cancel };
        let mut next = self.sessions_after(self.last, also_incomplete).await?;
        while let Some((last, sessions)) = next
            && !stop.is_cancelled()
        {
            let sessions = Arc::new(sessions);
            let hashing = {
                let (hasher, sessions) = (hasher.clone(), sessions.clone());
                tokio::task::spawn_blocking(move || hasher.sessions(&sessions))
            };
            // While these are hashed they are copied, and the next are read.
            let copying = async {
                let copied =
                    sessions.iter().map(|session| self.copy(session)).collect::<Result<Vec<_>, _>>()?;
                Ok::<_, ArchiveError>((copied, self.sessions_after(last, also_incomplete).await?))
            };
            let (hashed, copied) = tokio::join!(hashing, copying);
            let (hashed, (copied, after)) = (hashed.map_err(std::io::Error::other)??, copied?);
            for ((session, files), (hashes, line)) in sessions.iter().zip(copied).zip(hashed) {
                self.note(session, &files, &hashes, &line)?;
            }
            (self.last, next) = (last, after);
        }
        Ok(())
    }

    /// Some sessions after this place, and the place of the last of them.
    async fn sessions_after(
        &mut self,
        after: Place,
        also_incomplete: bool,
    ) -> Result<Option<(Place, Vec<WholeSession>)>, ArchiveError> {
        let places = self.reader.sessions_after(after, also_incomplete, AT_A_TIME, PAGES_AT_A_TIME).await?;
        let Some(last) = places.last() else { return Ok(None) };
        let sessions = self.reader.with_pages(&places).await?;
        let whole = |(row, pages)| WholeSession::new(row, pages, &self.facts, &self.scratch);
        Ok(Some((*last, sessions.into_iter().map(whole).collect())))
    }

    /// Writes the files of a session.
    fn copy(&mut self, session: &WholeSession) -> Result<Vec<(SessionFile, Option<Located>)>, ArchiveError> {
        let source = Source { reader: &self.reader, cancel: &self.input.cancel };
        let files = session.files().into_iter().map(|file| {
            let located = self.sink.entry(&file.name, &mut |entry| match file.holds {
                Holds::Everything => source.write_session(session, entry),
                Holds::Items(kind) => source.write_file_of_items(session.pages_of(kind), entry),
            })?;
            Ok((file, located))
        });
        let files = files.collect();
        self.copied += session.pages.iter().map(PageRef::packed_len).sum::<u64>();
        files
    }

    fn note(
        &mut self,
        session: &WholeSession,
        files: &[(SessionFile, Option<Located>)],
        hashes: &SessionHashes,
        line: &str,
    ) -> Result<(), ArchiveError> {
        for (file, located) in files {
            self.scratch.add_entry(&file.name, hashes.of(file.holds), *located)?;
        }
        self.scratch.add_line(&session.key, line)
    }

    /// Adds what is of no session, and puts the archive into its place.
    async fn finish(mut self) -> Result<Option<ArchiveFile>, ArchiveError> {
        // What has happened meanwhile is told in the summary.
        self.facts = Facts::read(&mut self.reader).await?;
        let summary = render::summary(&self.facts, &mut self.reader).await?;
        let failures = render::failures(&mut self.reader).await?;
        let Self { mut scratch, mut sink, reader, .. } = self;
        for (name, text) in [(layout::SUMMARY, summary), (layout::FAILURES, failures)] {
            let located = sink.entry(name, &mut |entry| entry.text(text.as_bytes()))?;
            scratch.add_entry(name, Some(Sha256::digest(&text).into()), located)?;
        }
        let mut sha256 = None;
        let located = sink.entry(layout::SESSIONS, &mut |entry| {
            let mut hashing = Hashing::new(entry);
            let mut lines = Lines::new(&mut hashing, b"[\n", SEPARATOR.as_bytes());
            scratch.lines(|line| lines.push(line))?;
            lines.finish(b"\n]\n")?;
            sha256 = Some(hashing.digest());
            Ok(())
        })?;
        scratch.add_entry(layout::SESSIONS, sha256, located)?;
        let located = sink.entry(layout::SUMS, &mut |entry| {
            let mut lines = Lines::new(entry, b"", b"\n");
            scratch.sums(|line| lines.push(line))?;
            lines.finish(b"\n")
        })?;
        scratch.add_entry(layout::SUMS, None, located)?;
        reader.close().await;
        sink.publish(scratch.entries()?)
    }
}

/// The stored messages, while nobody calls it off.
#[derive(Clone, Copy)]
struct Source<'a> {
    reader: &'a Reader,
    cancel: &'a CancellationToken,
}

impl Source<'_> {
    fn write_session(&self, session: &WholeSession, entry: &mut dyn Entry) -> Result<(), ArchiveError> {
        entry.text(session.frame.head.as_bytes())?;
        for kind in Kind::ALL {
            entry.text(render::between(kind).as_bytes())?;
            self.write_items(session.pages_of(kind), entry)?;
        }
        entry.text(session.frame.tail.as_bytes())
    }

    fn write_file_of_items(&self, pages: &[PageRef], entry: &mut dyn Entry) -> Result<(), ArchiveError> {
        entry.text(BEFORE_ITEMS)?;
        self.write_items(pages, entry)?;
        entry.text(AFTER_ITEMS)
    }

    fn write_items(&self, pages: &[PageRef], entry: &mut dyn Entry) -> Result<(), ArchiveError> {
        for (index, page) in pages.iter().enumerate() {
            if self.cancel.is_cancelled() {
                return Err(ArchiveError::Cancelled);
            }
            if index > 0 {
                entry.text(SEPARATOR.as_bytes())?;
            }
            entry.piece(&self.reader.segments().packed(page)?, page.raw_len, page.crc32)?;
        }
        Ok(())
    }
}

/// Many short lines as one entry, compressed some at a time.
struct Lines<'a, T: Text + ?Sized> {
    entry: &'a mut T,
    buffer: Vec<u8>,
    separator: &'static [u8],
    first: bool,
    written: Result<(), ArchiveError>,
}

impl<'a, T: Text + ?Sized> Lines<'a, T> {
    const AT_A_TIME: usize = 128 << 10;

    fn new(entry: &'a mut T, before: &[u8], separator: &'static [u8]) -> Self {
        Self { entry, buffer: before.to_vec(), separator, first: true, written: Ok(()) }
    }

    fn push(&mut self, line: &str) {
        if !self.first {
            self.buffer.extend_from_slice(self.separator);
        }
        self.first = false;
        self.buffer.extend_from_slice(line.as_bytes());
        if self.buffer.len() >= Self::AT_A_TIME && self.written.is_ok() {
            self.written = self.entry.text(&self.buffer);
            self.buffer.clear();
        }
    }

    fn finish(mut self, after: &[u8]) -> Result<(), ArchiveError> {
        self.written?;
        self.buffer.extend_from_slice(after);
        self.entry.text(&self.buffer)
    }
}
