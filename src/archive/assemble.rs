//! Capture to archive, in two passes: the first names and hashes every file, the second copies the stored segments.
//!
//! Two, because the hashes stand in a file that sorts before the files they are of. Runs on a thread of its own.

use std::fs::File;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::directory::{DirectoryEntry, DirectorySink};
use super::render::{self, Facts, FailureLine, SessionFrame, SessionInfo};
use super::scratch::{Content, Scratch};
use super::zip::{ZipEntry, ZipSink};
use super::{ArchiveError, ArchiveFile, layout};
use crate::capture::{Kind, Location, Reader, inflate, pack};

/// Between two messages: one message a line.
const SEPARATOR: &[u8] = b",\n";
/// Text up to this size goes in uncompressed: it is mostly ids and brackets.
const GLUE_MOST: usize = 160;
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
pub async fn assemble_zip(input: AssembleInput, target: PathBuf) -> Result<ArchiveFile, ArchiveError> {
    on_own_thread(move || async move {
        let temporary = target.with_extension("zip.tmp");
        let made = write_zip(&input, &temporary).await;
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
pub async fn assemble_directory(input: AssembleInput, target: PathBuf) -> Result<(), ArchiveError> {
    on_own_thread(move || async move {
        let assembly = Assembly::begin(&input).await?;
        let mut sink = DirectorySink::new(&input.directory.join("output"))?;
        assembly.pour(&mut sink).await?;
        sink.publish(&target)
    })
    .await
}

async fn write_zip(input: &AssembleInput, temporary: &Path) -> Result<ArchiveFile, ArchiveError> {
    let assembly = Assembly::begin(input).await?;
    let mut sink = ZipSink::new(File::create(temporary)?, assembly.facts.started());
    assembly.pour(&mut sink).await?;
    let (file, made) = sink.finish()?;
    file.sync_all()?;
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
async fn on_own_thread<T, F, W>(work: W) -> Result<T, ArchiveError>
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

/// Where an entry's bytes go.
trait Entry {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError>;
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError>;
    fn finish(self) -> Result<(), ArchiveError>;
}

impl<W: std::io::Write> Entry for ZipEntry<'_, W> {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        ZipEntry::piece(self, packed, raw_len, crc32)
    }

    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        if raw.len() <= GLUE_MOST {
            self.glue(raw)
        } else {
            ZipEntry::piece(self, &pack(raw, TEXT_LEVEL), raw.len() as u64, crc32fast::hash(raw))
        }
    }

    fn finish(self) -> Result<(), ArchiveError> {
        ZipEntry::finish(self)
    }
}

impl Entry for DirectoryEntry {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        DirectoryEntry::piece(self, packed, raw_len, crc32)
    }

    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        DirectoryEntry::text(self, raw)
    }

    fn finish(self) -> Result<(), ArchiveError> {
        DirectoryEntry::finish(self)
    }
}

/// Hashes what would be written.
#[derive(Default)]
struct Hashing(Sha256);

impl Entry for Hashing {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        self.0.update(inflate(packed, raw_len, crc32)?);
        Ok(())
    }

    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        self.0.update(raw);
        Ok(())
    }

    fn finish(self) -> Result<(), ArchiveError> {
        Ok(())
    }
}

impl Hashing {
    fn hex(self) -> String {
        hex::encode(self.0.finalize())
    }
}

/// Failures after the one numbered `after`, at most `most`, with the number of the last when there may be more.
pub async fn failures_page(
    directory: &Path,
    after: Option<i64>,
    most: usize,
) -> Result<(Vec<FailureLine>, Option<i64>), ArchiveError> {
    let mut reader = Location::in_directory(directory).open_reader().await?;
    // A job that has only just begun has a capture without a plan.
    let begun = reader.has_plan().await?;
    let rows =
        if begun { reader.failures(after.unwrap_or(i64::MIN), most as i64).await? } else { Vec::new() };
    reader.close().await;
    let next = if rows.len() == most { rows.last().map(|row| row.id) } else { None };
    Ok((rows.into_iter().map(FailureLine::from).collect(), next))
}

struct Assembly<'a> {
    input: &'a AssembleInput,
    reader: Reader,
    scratch: Scratch,
    facts: Facts,
}

impl<'a> Assembly<'a> {
    async fn begin(input: &'a AssembleInput) -> Result<Self, ArchiveError> {
        let mut reader = Location::in_directory(&input.directory).open_reader().await?;
        let facts = Facts::read(&mut reader).await?;
        let sessions = reader.counts().await?.sessions_total;
        let needed = reader.packed_bytes().await? * 2 + sessions * 2_048;
        let stat = rustix::fs::statvfs(&input.directory).map_err(std::io::Error::from)?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < needed + KEEP_FREE {
            return Err(ArchiveError::NoRoom {
                needed: needed + KEEP_FREE,
                free,
                path: input.directory.clone(),
            });
        }
        let scratch = Scratch::create(&input.directory).await?;
        Ok(Self { input, reader, scratch, facts })
    }

    /// Both passes: everything goes into the sink.
    async fn pour<S: Sink>(mut self, sink: &mut S) -> Result<(), ArchiveError> {
        self.hash_all().await?;
        let mut after = String::new();
        while let Some((name, content)) = self.entry_after(&after).await? {
            let mut entry = sink.begin(&name)?;
            self.write(content, &mut entry).await?;
            entry.finish()?;
            after = name;
        }
        self.reader.close().await;
        Ok(())
    }

    fn check_cancelled(&self) -> Result<(), ArchiveError> {
        if self.input.cancel.is_cancelled() { Err(ArchiveError::Cancelled) } else { Ok(()) }
    }

    /// Names and hashes every file.
    async fn hash_all(&mut self) -> Result<(), ArchiveError> {
        self.name_sessions().await?;
        let mut after = 0;
        loop {
            let sessions = self.reader.sessions(after, 100).await?;
            let Some(last) = sessions.last() else { break };
            after = last.id;
            for session in &sessions {
                self.check_cancelled()?;
                self.hash_session(session).await?;
            }
        }
        for (name, content) in [
            (layout::SUMMARY, Content::Summary),
            (layout::SESSIONS, Content::Sessions),
            (layout::FAILURES, Content::Failures),
        ] {
            let mut hashing = Hashing::default();
            self.write(content, &mut hashing).await?;
            self.scratch.add_entry(name, content, Some(&hashing.hex())).await?;
        }
        Ok(self.scratch.add_entry(layout::SUMS, Content::Sums, None).await?)
    }

    async fn name_sessions(&mut self) -> Result<(), ArchiveError> {
        let mut after = 0;
        loop {
            let sessions = self.reader.sessions(after, 500).await?;
            let Some(last) = sessions.last() else { break };
            after = last.id;
            for session in &sessions {
                let name = SessionInfo::read(&session.info).name;
                self.scratch.add_session(session.id, &layout::key(&session.zoom_id), &name).await?;
            }
        }
        for id in self.scratch.colliding().await? {
            let zoom_id = self.reader.session(id).await?.zoom_id;
            self.scratch.set_key(id, &layout::hashed_key(&zoom_id)).await?;
        }
        Ok(())
    }

    /// Each segment is inflated once and feeds the hash of the session's file and that of its kind's file.
    async fn hash_session(&mut self, session: &crate::capture::SessionRow) -> Result<(), ArchiveError> {
        let key = self.scratch.key(session.id).await?;
        let info = SessionInfo::read(&session.info);
        let (totals, not_found) = self.reader.session_totals(session.id).await?;
        let frame = SessionFrame::new(&session.info, &session.zoom_id, &self.facts, totals);
        let mut whole = Sha256::new();
        let mut files = Vec::new();
        for kind in Kind::ALL {
            whole.update(frame.before[kind as usize].as_bytes());
            if totals[kind as usize] == 0 {
                continue;
            }
            let mut own = Sha256::new_with_prefix(b"[\n");
            let mut first = true;
            self.reader
                .pages(session.id, kind, |page| {
                    let raw = inflate(&page.data, page.raw_len, page.crc32)?;
                    for hash in [&mut whole, &mut own] {
                        if !first {
                            hash.update(SEPARATOR);
                        }
                        hash.update(&raw);
                    }
                    first = false;
                    Ok(())
                })
                .await?;
            own.update(b"\n]\n");
            let name = layout::items_entry(&key, kind);
            self.scratch
                .add_entry(&name, Content::Items(session.id, kind), Some(&Hashing(own).hex()))
                .await?;
            files.push(name);
        }
        whole.update(frame.after.as_bytes());
        let name = layout::session_entry(&key, &info.name);
        self.scratch.add_entry(&name, Content::Session(session.id), Some(&Hashing(whole).hex())).await?;
        files.push(name);
        files.sort();
        let line = render::session_line(&session.zoom_id, &key, &info, &files, totals, not_found);
        Ok(self.scratch.set_line(session.id, &line).await?)
    }

    async fn entry_after(&mut self, after: &str) -> Result<Option<(String, Content)>, ArchiveError> {
        self.check_cancelled()?;
        Ok(self.scratch.entries(after, 1).await?.pop())
    }

    async fn write(&mut self, content: Content, entry: &mut impl Entry) -> Result<(), ArchiveError> {
        match content {
            Content::Session(id) => self.write_session(id, entry).await,
            Content::Items(id, kind) => {
                entry.text(b"[\n")?;
                self.write_items(id, kind, entry).await?;
                entry.text(b"\n]\n")
            }
            Content::Summary => entry.text(render::summary(&self.facts, &mut self.reader).await?.as_bytes()),
            Content::Failures => entry.text(render::failures(&mut self.reader).await?.as_bytes()),
            Content::Sessions => {
                let mut lines = Lines::new(entry, b"[\n", SEPARATOR);
                self.scratch.lines(|line| lines.push(line)).await?;
                lines.finish(b"\n]\n")
            }
            Content::Sums => {
                let mut lines = Lines::new(entry, b"", b"\n");
                self.scratch.sums(|line| lines.push(line)).await?;
                lines.finish(b"\n")
            }
        }
    }

    async fn write_session(&mut self, id: i64, entry: &mut impl Entry) -> Result<(), ArchiveError> {
        let session = self.reader.session(id).await?;
        let (totals, _) = self.reader.session_totals(id).await?;
        let frame = SessionFrame::new(&session.info, &session.zoom_id, &self.facts, totals);
        for kind in Kind::ALL {
            entry.text(frame.before[kind as usize].as_bytes())?;
            if totals[kind as usize] > 0 {
                self.write_items(id, kind, entry).await?;
            }
        }
        entry.text(frame.after.as_bytes())
    }

    async fn write_items(&mut self, id: i64, kind: Kind, entry: &mut impl Entry) -> Result<(), ArchiveError> {
        let mut first = true;
        let mut written = Ok(());
        self.reader
            .pages(id, kind, |page| {
                if written.is_ok() {
                    let separator = if first { Ok(()) } else { entry.text(SEPARATOR) };
                    written = separator.and_then(|()| entry.piece(&page.data, page.raw_len, page.crc32));
                    first = false;
                }
                Ok(())
            })
            .await?;
        written
    }
}

/// Many short lines as one entry, compressed some at a time.
struct Lines<'a, E: Entry> {
    entry: &'a mut E,
    buffer: Vec<u8>,
    separator: &'static [u8],
    first: bool,
    written: Result<(), ArchiveError>,
}

impl<'a, E: Entry> Lines<'a, E> {
    const AT_A_TIME: usize = 128 << 10;

    fn new(entry: &'a mut E, before: &[u8], separator: &'static [u8]) -> Self {
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
