//! SHA-256, beside the writing: of every file, and of the archive itself.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::files::{Holds, Part, Parts, SessionFile, WholeSession};
use super::sink::{Entry, Text};
use super::{ArchiveError, check, joined};
use crate::capture::{CaptureError, PageRef, SegmentReader};

/// Pages of so many bytes go from one thread to another at a time: handing each over by itself would cost more than some
/// are worth.
const BATCH: u64 = 64 << 10;
/// Batches inflated by one thread and waiting to be hashed.
const AHEAD: usize = 1;

pub type Sha256Digest = [u8; 32];

/// An entry whose text is hashed as well.
pub struct Hashing<'a> {
    entry: &'a mut dyn Entry,
    hash: Sha256,
}

impl<'a> Hashing<'a> {
    pub fn new(entry: &'a mut dyn Entry) -> Self {
        Self { entry, hash: Sha256::new() }
    }

    pub fn digest(self) -> Sha256Digest {
        self.hash.finalize().into()
    }
}

impl Text for Hashing<'_> {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        self.hash.update(raw);
        self.entry.text(raw)
    }
}

/// Hashes what is written, on a thread of its own and a little behind the writing.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    written: SyncSender<Vec<u8>>,
    hashing: JoinHandle<Sha256Digest>,
}

impl<W: Write> HashingWriter<W> {
    pub fn new(inner: W) -> Self {
        let (written, stretches) = mpsc::sync_channel::<Vec<u8>>(1);
        let hashing = std::thread::spawn(move || {
            let hash = stretches.iter().fold(Sha256::new(), Sha256::chain_update);
            hash.finalize().into()
        });
        Self { inner, written, hashing }
    }

    /// The hash of all that was written.
    pub fn finish(self) -> io::Result<(W, Sha256Digest)> {
        drop(self.written);
        let digest = self.hashing.join().map_err(|_| io::Error::other("hashing panicked"))?;
        Ok((self.inner, digest))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.written.send(buffer[..written].to_vec()).map_err(io::Error::other)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The hashes of a session's files, and its line of the summary.
pub type Hashed = (Vec<Sha256Digest>, String);

type Inflated = Result<Vec<Vec<u8>>, CaptureError>;

/// Hashes the files of these sessions, a share of them on each thread, and renders their lines of the summary.
pub fn sessions(
    sessions: &[WholeSession],
    segments: &SegmentReader,
    cancel: &CancellationToken,
    threads: usize,
) -> Result<Vec<Hashed>, ArchiveError> {
    let size = sessions.len().div_ceil(threads).max(1);
    // Threads that inflate for each share, so that there are about as many in all.
    let each = (threads / sessions.len().div_ceil(size).max(1)).max(1);
    std::thread::scope(|scope| {
        let shares = sessions.chunks(size).map(|of| scope.spawn(move || share(of, segments, cancel, each)));
        let shares: Vec<_> = shares.collect();
        let mut hashed = Vec::with_capacity(sessions.len());
        for share in shares {
            hashed.extend(joined(share)?);
        }
        Ok(hashed)
    })
}

/// Each segment is inflated once, on one of so many threads and a little ahead of this one, and feeds two hashes. That goes
/// batch by batch of pages, so that one giant session keeps all of them busy as well.
fn share(
    sessions: &[WholeSession],
    segments: &SegmentReader,
    cancel: &CancellationToken,
    threads: usize,
) -> Result<Vec<Hashed>, ArchiveError> {
    let pages: Vec<&PageRef> = sessions.iter().flat_map(|session| &session.pages).collect();
    let batches = in_batches(&pages);
    std::thread::scope(|scope| {
        let threads = threads.min(batches.len());
        let inflating = (0..threads).map(|nth| {
            let (sender, inflated) = mpsc::sync_channel::<Inflated>(AHEAD);
            let mut own = batches.iter().skip(nth).step_by(threads);
            let inflate = |batch: &[&PageRef]| batch.iter().map(|page| segments.inflated(page)).collect();
            // Nobody takes any more once one could not be read, or the job was cancelled.
            scope.spawn(move || own.try_for_each(|batch| sender.send(inflate(batch))));
            inflated
        });
        let inflating: Vec<Receiver<Inflated>> = inflating.collect();
        let mut in_turn = inflating.iter().cycle();
        let mut batch = Vec::new().into_iter();
        let mut next = || loop {
            check(cancel)?;
            if let Some(raw) = batch.next() {
                return Ok(raw);
            }
            let inflated = in_turn.next().expect("there is a thread as long as there are pages").recv();
            batch = inflated.map_err(io::Error::other)??.into_iter();
        };
        sessions.iter().map(|each| Ok((session(each, &mut next)?, each.line()))).collect()
    })
}

/// Cuts into stretches of at most so many bytes, or one page.
fn in_batches<'a>(mut pages: &'a [&'a PageRef]) -> Vec<&'a [&'a PageRef]> {
    let mut batches = Vec::new();
    while !pages.is_empty() {
        let mut bytes = 0;
        let fitting = pages.iter().take_while(|page| {
            bytes += page.raw_len;
            bytes <= BATCH
        });
        let (batch, rest) = pages.split_at(fitting.count().max(1));
        batches.push(batch);
        pages = rest;
    }
    batches
}

/// The hashes of a session's files; `next` yields its pages, inflated, in their order.
fn session(
    session: &WholeSession,
    next: &mut impl FnMut() -> Result<Vec<u8>, ArchiveError>,
) -> Result<Vec<Sha256Digest>, ArchiveError> {
    let begin = |file: &SessionFile| {
        let parts = session.parts(file.holds);
        FileHash { holds: file.holds, parts, hash: Sha256::new() }
    };
    let mut files: Vec<_> = session.files.iter().map(begin).collect();
    for page in &session.pages {
        let raw = next()?;
        for file in files.iter_mut().filter(|file| file.holds.includes(page.kind)) {
            file.text_up_to_a_page();
            file.hash.update(&raw);
        }
    }
    Ok(files.into_iter().map(FileHash::finish).collect())
}

/// A file that is hashed page by page, together with others.
struct FileHash<'a> {
    holds: Holds,
    parts: Parts<'a>,
    hash: Sha256,
}

impl FileHash<'_> {
    fn text_up_to_a_page(&mut self) {
        while let Some(Part::Text(text)) = self.parts.next() {
            self.hash.update(text);
        }
    }

    fn finish(mut self) -> Sha256Digest {
        self.text_up_to_a_page();
        self.hash.finalize().into()
    }
}
