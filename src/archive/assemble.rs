//! Capture to archive, in two passes: the first names and hashes every file, the second copies the stored segments.
//!
//! Two, because the hashes stand in a file that sorts before the files they are of. Runs on a thread of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::ahead::Begun;
use super::directory::{DirectoryEntry, DirectorySink};
use super::files::{Making, WholeSession, totals_of};
use super::hash::Hashing;
use super::render::{self, AFTER_ITEMS, BEFORE_ITEMS, Facts, SessionInfo};
use super::scratch::{Content, Lined, Names, Packed, Scratch};
use super::write_behind::WriteBehind;
use super::zip::{ZipEntry, ZipSink};
use super::{ArchiveError, ArchiveFile, layout};
use crate::capture::{Kind, Location, PageRef, Reader, SEPARATOR, pack};

/// Text up to this size goes in uncompressed: it is mostly ids and brackets.
const GLUE_MOST: usize = 160;
/// Documents are compressed at this level: the longest of them holds mostly hashes, of which a higher one saves little.
const TEXT_LEVEL: u32 = 2;
/// Sessions taken from the database at a time.
const AT_A_TIME: i64 = 250;
/// And so many pages at most, if that is more than one session: where each is has to be remembered meanwhile.
const PAGES_AT_A_TIME: i64 = 10_000;
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
        let scratch = name_sessions(&mut reader, &input.directory).await?;
        Ok(Self { input, reader, scratch, facts })
    }

    /// Everything must be there.
    async fn go_on(input: AssembleInput, begun: Begun) -> Result<Self, ArchiveError> {
        let mut assembly = match begun.0 {
            Some(assembly) => assembly,
            None => Self::begin(input).await?,
        };
        assembly.facts = Facts::read(&mut assembly.reader).await?;
        assembly.check_room()?;
        Ok(assembly)
    }

    fn check_room(&self) -> Result<(), ArchiveError> {
        let needed = self.reader.segments().size()? * 2 + self.scratch.sessions() * 3_072;
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
        let mut entries = self.scratch.entries()?;
        while let Some((name, content)) = entries.next()? {
            self.check_cancelled()?;
            let mut entry = sink.begin(name)?;
            match content {
                Content::Session { head, pages } => self.write_session(&head, &pages, &mut entry)?,
                Content::Items(pages) => {
                    entry.text(BEFORE_ITEMS)?;
                    self.write_items(&pages, &mut entry)?;
                    entry.text(AFTER_ITEMS)?;
                }
                Content::Text(text) => entry.piece(&text.data, text.raw_len, text.crc32)?,
                Content::Lines(lines) => self.write_lines(lines, &mut entry)?,
            }
            entry.finish()?;
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
        self.scratch.check_whole()?;
        let summary = render::summary(&self.facts, &mut self.reader).await?;
        let failures = render::failures(&mut self.reader).await?;
        for (name, text) in [(layout::SUMMARY, summary), (layout::FAILURES, failures)] {
            let sha256 = Sha256::digest(&text).into();
            self.scratch.add(name, &Content::Text(Packed::of(&text, TEXT_LEVEL)), Some(sha256))?;
        }
        let mut hashing = Hashing::default();
        self.write_lines(Lined::Sessions, &mut hashing)?;
        self.scratch.add(layout::SESSIONS, &Content::Lines(Lined::Sessions), Some(hashing.digest()))?;
        self.scratch.add(layout::SUMS, &Content::Lines(Lined::Sums), None)
    }

    /// Hashes the files of sessions that are not hashed yet, of all or of those that are complete, until told to stop.
    pub(super) async fn hash_sessions(
        &mut self,
        only_complete: bool,
        threads: usize,
        stop: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        let mut after = 0;
        let making = Making {
            facts: self.facts.clone(),
            segments: self.reader.segments().clone(),
            threads,
            cancel: self.input.cancel.clone(),
        };
        let mut made = Vec::new();
        let mut read = self.whole_sessions(&mut after, only_complete).await?;
        while let Some(sessions) = read
            && !stop.is_cancelled()
        {
            self.check_cancelled()?;
            // While these are hashed, those before are put away and the next are read.
            let making = making.clone();
            let hashing = tokio::task::spawn_blocking(move || making.files_of(&sessions));
            let beside = async {
                self.scratch.add_sessions(&made)?;
                self.whole_sessions(&mut after, only_complete).await
            };
            let (files, next) = tokio::join!(hashing, beside);
            (made, read) = (files.map_err(std::io::Error::other)??, next?);
        }
        self.scratch.add_sessions(&made)
    }

    /// Those of some sessions after this one that are not hashed yet, perhaps of none; nothing after the last session.
    async fn whole_sessions(
        &mut self,
        after: &mut i64,
        only_complete: bool,
    ) -> Result<Option<Vec<WholeSession>>, ArchiveError> {
        let mut ids = self.reader.session_numbers(*after, only_complete, AT_A_TIME, PAGES_AT_A_TIME).await?;
        let Some(last) = ids.last() else { return Ok(None) };
        *after = *last;
        ids.retain(|id| !self.scratch.has(*id));
        if ids.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let whole = |(session, pages)| WholeSession { key: self.scratch.key(&session), pages, session };
        let sessions = self.reader.with_pages(&ids).await?.into_iter().map(whole).collect();
        Ok(Some(sessions))
    }

    fn write_lines(&mut self, of: Lined, entry: &mut impl Text) -> Result<(), ArchiveError> {
        match of {
            Lined::Sessions => {
                let mut lines = Lines::new(entry, b"[\n", SEPARATOR.as_bytes());
                self.scratch.lines(|line| lines.push(line))?;
                lines.finish(b"\n]\n")
            }
            Lined::Sums => {
                let mut lines = Lines::new(entry, b"", b"\n");
                self.scratch.sums(|line| lines.push(line))?;
                lines.finish(b"\n")
            }
        }
    }

    /// The pages come in the order of kinds.
    fn write_session(
        &self,
        head: &Packed<'_>,
        pages: &[PageRef],
        entry: &mut impl Entry,
    ) -> Result<(), ArchiveError> {
        entry.piece(&head.data, head.raw_len, head.crc32)?;
        let mut rest = pages;
        for kind in Kind::ALL {
            entry.text(render::between(kind).as_bytes())?;
            let (of_a_kind, others) = rest.split_at(rest.partition_point(|page| page.kind == kind));
            self.write_items(of_a_kind, entry)?;
            rest = others;
        }
        entry.text(render::session_tail(totals_of(pages)).as_bytes())
    }

    fn write_items(&self, pages: &[PageRef], entry: &mut impl Entry) -> Result<(), ArchiveError> {
        for (index, page) in pages.iter().enumerate() {
            self.check_cancelled()?;
            if index > 0 {
                entry.text(SEPARATOR.as_bytes())?;
            }
            entry.piece(&self.reader.segments().packed(page)?, page.raw_len, page.crc32)?;
        }
        Ok(())
    }
}

async fn name_sessions(reader: &mut Reader, directory: &Path) -> Result<Scratch, ArchiveError> {
    let mut names = Names::create(directory)?;
    let mut after = 0;
    loop {
        let sessions = reader.session_infos(after, AT_A_TIME).await?;
        let Some(last) = sessions.last() else { return names.settle() };
        after = last.0;
        for (session, zoom_id, info) in &sessions {
            names.add(*session, zoom_id, &SessionInfo::read(info).name)?;
        }
    }
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
