//! Capture to archive, in two passes: the first names and hashes every file, the second copies the stored segments.
//!
//! Two, because the hashes stand in a file that sorts before the files they are of. Runs on a thread of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use tokio_util::sync::CancellationToken;

use super::ahead::Begun;
use super::directory::{DirectoryEntry, DirectorySink};
use super::hash::{self, Hashing, SessionHashes};
use super::render::{self, AFTER_ITEMS, BEFORE_ITEMS, Facts, SessionFrame, SessionInfo};
use super::scratch::{Content, Document, Named, Scratch};
use super::write_behind::WriteBehind;
use super::zip::{ZipEntry, ZipSink};
use super::{ArchiveError, ArchiveFile, layout};
use crate::capture::{CaptureError, Kind, Location, PageRef, Reader, SEPARATOR, SessionRow, pack};

/// Text up to this size goes in uncompressed: it is mostly ids and brackets.
const GLUE_MOST: usize = 160;
/// Sessions or entries taken from the database at a time.
const AT_A_TIME: i64 = 250;
/// Documents are compressed at this level.
const TEXT_LEVEL: u32 = 6;
/// Assembly leaves at least this much of the disk free.
const KEEP_FREE: u64 = 16 << 20;

/// Where to read from and where to work.
#[derive(Debug, Clone)]
pub struct AssembleInput {
    /// The job's directory: the capture is in it, and temporary files are made in it.
    pub directory: PathBuf,
    pub cancel: CancellationToken,
}

/// Makes the zip at `target`: written beside it under a temporary name, synced, renamed.
pub async fn assemble_zip(
    input: AssembleInput,
    begun: Begun,
    target: PathBuf,
) -> Result<ArchiveFile, ArchiveError> {
    on_own_thread(move || async move {
        let temporary = target.with_extension("zip.tmp");
        let made = write_zip(input, begun, &temporary).await;
        if made.is_err() {
            // Best effort: a sweep at start removes what could not be removed now.
            let _ = std::fs::remove_file(&temporary);
        }
        let made = made?;
        std::fs::rename(&temporary, &target)?;
        sync_parent(&target)?;
        Ok(made)
    })
    .await
}

/// Makes the same files in the directory `target`.
pub async fn assemble_directory(
    input: AssembleInput,
    begun: Begun,
    target: PathBuf,
) -> Result<(), ArchiveError> {
    on_own_thread(move || async move {
        let output = input.directory.join("output");
        let assembly = Assembly::go_on(input, begun).await?;
        let mut sink = DirectorySink::new(&output)?;
        assembly.pour(&mut sink).await?;
        sink.publish(&target)
    })
    .await
}

async fn write_zip(
    input: AssembleInput,
    begun: Begun,
    temporary: &Path,
) -> Result<ArchiveFile, ArchiveError> {
    let directory = input.directory.join("directory.tmp");
    let assembly = Assembly::go_on(input, begun).await?;
    let working = File::options().read(true).write(true).create(true).truncate(true).open(&directory)?;
    // Unlinked while open is fine on every Unix; nothing of it is wanted again.
    std::fs::remove_file(directory)?;
    let mut sink =
        ZipSink::new(WriteBehind::new(File::create(temporary)?), working, assembly.facts.started());
    assembly.pour(&mut sink).await?;
    let (file, made) = sink.finish()?;
    file.finish()?;
    Ok(made)
}

/// A rename is durable once its directory is.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
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

/// Where entries go, one after the other.
trait Sink {
    type Entry<'a>: Entry
    where
        Self: 'a;

    fn begin(&mut self, name: &str) -> Result<Self::Entry<'_>, ArchiveError>;
}

impl<W: std::io::Write> Sink for ZipSink<W> {
    type Entry<'a>
        = ZipEntry<'a, W>
    where
        W: 'a;

    fn begin(&mut self, name: &str) -> Result<ZipEntry<'_, W>, ArchiveError> {
        self.entry(name)
    }
}

impl Sink for DirectorySink {
    type Entry<'a> = DirectoryEntry;

    fn begin(&mut self, name: &str) -> Result<DirectoryEntry, ArchiveError> {
        self.entry(name)
    }
}

/// Where the text of an entry goes.
pub(super) trait Text {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError>;
}

/// Where an entry's bytes go, stored segments among them.
trait Entry: Text {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError>;
    fn finish(self) -> Result<(), ArchiveError>;
}

impl<W: std::io::Write> Text for ZipEntry<'_, W> {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        if raw.len() <= GLUE_MOST {
            self.glue(raw)
        } else {
            ZipEntry::piece(self, &pack(raw, TEXT_LEVEL), raw.len() as u64, crc32fast::hash(raw))
        }
    }
}

impl<W: std::io::Write> Entry for ZipEntry<'_, W> {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        ZipEntry::piece(self, packed, raw_len, crc32)
    }

    fn finish(self) -> Result<(), ArchiveError> {
        ZipEntry::finish(self)
    }
}

impl Text for DirectoryEntry {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        DirectoryEntry::text(self, raw)
    }
}

impl Entry for DirectoryEntry {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        DirectoryEntry::piece(self, packed, raw_len, crc32)
    }

    fn finish(self) -> Result<(), ArchiveError> {
        DirectoryEntry::finish(self)
    }
}

/// An archive that is being made.
#[derive(Debug)]
pub(super) struct Assembly {
    input: AssembleInput,
    reader: Reader,
    pub(super) scratch: Scratch,
    facts: Facts,
}

impl Assembly {
    /// All sessions must be known.
    pub(super) async fn begin(input: AssembleInput) -> Result<Self, ArchiveError> {
        let mut reader = Location::in_directory(&input.directory).open_reader().await?;
        let facts = Facts::read(&mut reader).await?;
        let scratch = Scratch::create(&input.directory).await?;
        let mut assembly = Self { input, reader, scratch, facts };
        assembly.name_sessions().await?;
        Ok(assembly)
    }

    /// Everything must be there.
    async fn go_on(input: AssembleInput, begun: Begun) -> Result<Self, ArchiveError> {
        let mut assembly = match begun.0 {
            Some(assembly) => assembly,
            None => Self::begin(input).await?,
        };
        assembly.facts = Facts::read(&mut assembly.reader).await?;
        assembly.check_room().await?;
        Ok(assembly)
    }

    async fn check_room(&mut self) -> Result<(), ArchiveError> {
        let sessions = self.reader.counts().await?.sessions_total;
        let needed = self.reader.packed_bytes().await? * 2 + sessions * 2_048;
        let stat = rustix::fs::statvfs(&self.input.directory).map_err(std::io::Error::from)?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < needed + KEEP_FREE {
            return Err(ArchiveError::NoRoom {
                needed: needed + KEEP_FREE,
                free,
                path: self.input.directory.clone(),
            });
        }
        Ok(())
    }

    /// Both passes: everything goes into the sink.
    async fn pour<S: Sink>(mut self, sink: &mut S) -> Result<(), ArchiveError> {
        self.hash_all().await?;
        let mut after = String::new();
        loop {
            let entries = self.scratch.entries(&after, AT_A_TIME).await?;
            let Some((last, _)) = entries.last() else { break };
            after.clone_from(last);
            let (whole, any) = Content::sessions_of(entries.iter().map(|(_, content)| *content));
            let sessions = self.reader.sessions_numbered(&whole).await?;
            let pages = self.reader.page_index(&any).await?;
            for (name, content) in entries {
                self.check_cancelled()?;
                let mut entry = sink.begin(&name)?;
                match content {
                    Content::Session(id) => {
                        let session = sessions.get(&id).ok_or_else(|| gone(id))?;
                        self.write_session(session, pages.of(id), &mut entry)?;
                    }
                    Content::Items(id, kind) => {
                        entry.text(BEFORE_ITEMS)?;
                        self.write_items(pages.of(id), kind, &mut entry)?;
                        entry.text(AFTER_ITEMS)?;
                    }
                    Content::Document(document) => self.write_document(document, &mut entry).await?,
                }
                entry.finish()?;
            }
        }
        self.reader.close().await;
        Ok(())
    }

    fn check_cancelled(&self) -> Result<(), ArchiveError> {
        if self.input.cancel.is_cancelled() { Err(ArchiveError::Cancelled) } else { Ok(()) }
    }

    /// Hashes every file that is not hashed yet.
    async fn hash_all(&mut self) -> Result<(), ArchiveError> {
        let threads = available_parallelism().map_or(1, usize::from);
        self.hash_sessions(false, threads, &CancellationToken::new()).await?;
        for (name, document) in [
            (layout::SUMMARY, Document::Summary),
            (layout::SESSIONS, Document::Sessions),
            (layout::FAILURES, Document::Failures),
        ] {
            let mut hashing = Hashing::default();
            self.write_document(document, &mut hashing).await?;
            let content = Content::Document(document);
            let entry = Named { name: name.to_owned(), content, sha256: Some(hashing.digest()) };
            self.scratch.add_entries(&[entry]).await?;
        }
        let content = Content::Document(Document::Sums);
        let sums = Named { name: layout::SUMS.to_owned(), content, sha256: None };
        Ok(self.scratch.add_entries(&[sums]).await?)
    }

    /// Hashes the files of sessions that are not hashed yet, of all or of those that are complete, until told to stop.
    /// Returns how many it looked at, and how many of them it hashed.
    pub(super) async fn hash_sessions(
        &mut self,
        only_complete: bool,
        threads: usize,
        stop: &CancellationToken,
    ) -> Result<(usize, usize), ArchiveError> {
        let (mut after, mut seen, mut hashed) = (0, 0, 0);
        while !stop.is_cancelled() {
            self.check_cancelled()?;
            let mut ids = self.reader.session_numbers(after, only_complete, AT_A_TIME).await?;
            let Some(last) = ids.last() else { break };
            after = *last;
            seen += ids.len();
            let added = self.scratch.added(&ids).await?;
            ids.retain(|id| !added.contains(id));
            hashed += ids.len();
            if !ids.is_empty() {
                self.hash_these(&ids, threads).await?;
            }
        }
        Ok((seen, hashed))
    }

    async fn hash_these(&mut self, ids: &[i64], threads: usize) -> Result<(), ArchiveError> {
        let sessions = self.reader.sessions_numbered(ids).await?;
        let keys = self.scratch.keys(ids).await?;
        let index = self.reader.page_index(ids).await?;
        let all_of = |id: &i64| Some((sessions.get(id)?, &keys.get(id)?[..], index.of(*id)));
        let sessions: Vec<(&SessionRow, &str, &[PageRef])> =
            ids.iter().map(|id| all_of(id).ok_or_else(|| gone(*id))).collect::<Result<_, _>>()?;
        let framed: Vec<(SessionFrame, &[PageRef])> =
            sessions.iter().map(|(session, _, pages)| (self.frame(session, pages), *pages)).collect();
        let hashes = hash::sessions(&framed, self.reader.segments(), threads, &self.input.cancel)?;
        let mut named = Vec::with_capacity(ids.len() * 2);
        let mut lines = Vec::with_capacity(ids.len());
        for ((session, key, pages), hashes) in sessions.into_iter().zip(hashes) {
            let (entries, line) = name_files(session, key, pages, hashes);
            named.extend(entries);
            lines.push((session.id, line));
        }
        self.scratch.add_entries(&named).await?;
        self.scratch.add_lines(&lines).await?;
        Ok(())
    }

    async fn name_sessions(&mut self) -> Result<(), ArchiveError> {
        let mut after = 0;
        loop {
            let sessions = self.reader.sessions(after, AT_A_TIME).await?;
            let Some(last) = sessions.last() else { break };
            after = last.id;
            let named: Vec<(i64, String, String)> = sessions
                .iter()
                .map(|session| {
                    let name = SessionInfo::read(&session.info).name;
                    (session.id, layout::key(&session.zoom_id), name)
                })
                .collect();
            self.scratch.add_sessions(&named).await?;
        }
        for id in self.scratch.colliding().await? {
            let found = self.reader.sessions_numbered(&[id]).await?;
            let session = found.get(&id).ok_or_else(|| gone(id))?;
            self.scratch.set_key(id, &layout::hashed_key(&session.zoom_id)).await?;
        }
        Ok(())
    }

    fn frame(&self, session: &SessionRow, pages: &[PageRef]) -> SessionFrame {
        SessionFrame::new(&session.info, &session.zoom_id, &self.facts, totals_of(pages))
    }

    async fn write_document(
        &mut self,
        document: Document,
        entry: &mut impl Text,
    ) -> Result<(), ArchiveError> {
        match document {
            Document::Summary => entry.text(render::summary(&self.facts, &mut self.reader).await?.as_bytes()),
            Document::Failures => entry.text(render::failures(&mut self.reader).await?.as_bytes()),
            Document::Sessions => {
                let mut lines = Lines::new(entry, b"[\n", SEPARATOR.as_bytes());
                self.scratch.lines(|line| lines.push(line)).await?;
                lines.finish(b"\n]\n")
            }
            Document::Sums => {
                let mut lines = Lines::new(entry, b"", b"\n");
                self.scratch.sums(|line| lines.push(line)).await?;
                lines.finish(b"\n")
            }
        }
    }

    fn write_session(
        &self,
        session: &SessionRow,
        pages: &[PageRef],
        entry: &mut impl Entry,
    ) -> Result<(), ArchiveError> {
        let frame = self.frame(session, pages);
        for kind in Kind::ALL {
            entry.text(frame.before[kind as usize].as_bytes())?;
            self.write_items(pages, kind, entry)?;
        }
        entry.text(frame.after.as_bytes())
    }

    fn write_items(&self, pages: &[PageRef], kind: Kind, entry: &mut impl Entry) -> Result<(), ArchiveError> {
        for (index, page) in pages.iter().filter(|page| page.kind == kind).enumerate() {
            self.check_cancelled()?;
            if index > 0 {
                entry.text(SEPARATOR.as_bytes())?;
            }
            entry.piece(&self.reader.segments().packed(page)?, page.raw_len, page.crc32)?;
        }
        Ok(())
    }
}

/// The files of a session, and its line in `sessions_summary.json`.
fn name_files(
    session: &SessionRow,
    key: &str,
    pages: &[PageRef],
    hashes: SessionHashes,
) -> (Vec<Named>, String) {
    let info = SessionInfo::read(&session.info);
    let mut named = Vec::new();
    for (kind, sha256) in Kind::ALL.into_iter().zip(hashes.items) {
        if sha256.is_some() {
            let content = Content::Items(session.id, kind);
            named.push(Named { name: layout::items_entry(key, kind), content, sha256 });
        }
    }
    let name = layout::session_entry(key, &info.name);
    named.push(Named { name, content: Content::Session(session.id), sha256: Some(hashes.whole) });
    let mut files: Vec<&str> = named.iter().map(|entry| &entry.name[..]).collect();
    files.sort_unstable();
    let line =
        render::session_line(&session.zoom_id, key, &info, &files, totals_of(pages), session.not_found);
    (named, line)
}

fn gone(session: i64) -> CaptureError {
    CaptureError::Damaged(format!("session {session} is gone"))
}

/// Items by kind.
fn totals_of(pages: &[PageRef]) -> [u64; 3] {
    let mut totals = [0; 3];
    for page in pages {
        totals[page.kind as usize] += page.items;
    }
    totals
}

/// Many short lines as one entry, compressed some at a time.
struct Lines<'a, T: Text> {
    entry: &'a mut T,
    buffer: Vec<u8>,
    separator: &'static [u8],
    first: bool,
    written: Result<(), ArchiveError>,
}

impl<'a, T: Text> Lines<'a, T> {
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
