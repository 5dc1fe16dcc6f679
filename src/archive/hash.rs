//! SHA-256 of every file and of the archive itself, computed in parallel with the writing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::files::{ArchivedSession, Holds, Part, Parts, SessionFile};
use super::sink::{Entry, Text};
use super::{ArchiveError, ensure_not_cancelled, join};
use crate::capture::{CaptureError, PageRef, PrefetchedSegments};

/// Pages go from one thread to another in batches of up to this many bytes: handing over each by itself would cost more than
/// some are worth.
const BATCH: u64 = 64 << 10;
/// A share up to this size is inflated by the thread that hashes it: other threads would hardly get started.
const SMALL: u64 = 16 * BATCH;
/// Batches per inflating thread: one is filled while another waits to be hashed.
const BATCHES: usize = 2;

pub type Sha256Digest = [u8; 32];

/// Returns a file's SHA-256 in lower-case hex.
pub fn sha256_of(mut file: File, cancel: &CancellationToken) -> Result<String, ArchiveError> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        ensure_not_cancelled(cancel)?;
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

/// An entry whose text is also hashed.
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
    /// The number of bytes written so far.
    pub size: u64,
    buffer: Vec<u8>,
    full: Sender<Vec<u8>>,
    /// Buffers that have been hashed.
    empty: Receiver<Vec<u8>>,
    hashing: JoinHandle<Sha256Digest>,
}

impl<W: Write> HashingWriter<W> {
    /// The number of bytes that are written, and handed over to be hashed, at a time.
    const AT_A_TIME: usize = 64 << 10;

    pub fn new(inner: W) -> Self {
        let (full, to_hash) = mpsc::channel::<Vec<u8>>();
        let (hashed, empty) = mpsc::channel();
        for _ in 0..2 {
            hashed.send(Vec::with_capacity(Self::AT_A_TIME)).expect("its other end is here");
        }
        let hashing = std::thread::spawn(move || {
            let mut hash = Sha256::new();
            for mut buffer in to_hash {
                hash.update(&buffer);
                buffer.clear();
                // Fails once everything has been written: nobody needs it any more.
                let _ = hashed.send(buffer);
            }
            hash.finalize().into()
        });
        Self { inner, size: 0, buffer: Vec::with_capacity(Self::AT_A_TIME), full, empty, hashing }
    }

    fn pass_on(&mut self) -> io::Result<()> {
        self.inner.write_all(&self.buffer)?;
        let next = self.empty.recv().map_err(io::Error::other)?;
        self.full.send(std::mem::replace(&mut self.buffer, next)).map_err(io::Error::other)
    }

    /// Returns the writer, and the hash of everything written to it.
    pub fn finish(mut self) -> io::Result<(W, Sha256Digest)> {
        self.pass_on()?;
        drop(self.full);
        let digest = self.hashing.join().map_err(|_| io::Error::other("hashing panicked"))?;
        Ok((self.inner, digest))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == Self::AT_A_TIME {
            self.pass_on()?;
        }
        let fitting = bytes.len().min(Self::AT_A_TIME - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..fitting]);
        self.size += fitting as u64;
        Ok(fitting)
    }

    /// Does nothing: everything is written by [`finish`](Self::finish).
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Some pages, inflated one after the other.
#[derive(Debug, Default)]
struct Batch {
    raw: Vec<u8>,
    /// Where each page ends.
    ends: Vec<usize>,
}

type Inflated = Result<Batch, CaptureError>;

/// Hashes the files of these sessions, a share of them on each thread.
pub fn sessions(
    sessions: &[ArchivedSession],
    stored: &PrefetchedSegments,
    cancel: &CancellationToken,
    threads: usize,
) -> Result<Vec<Vec<Sha256Digest>>, ArchiveError> {
    let size = sessions.len().div_ceil(threads).max(1);
    // Inflating threads per share, so that there are about `threads` in all.
    let each = (threads / sessions.len().div_ceil(size).max(1)).max(1);
    let share = move |of: &[ArchivedSession]| {
        if raw_len(of) > SMALL {
            inflating_ahead(of, stored, cancel, each)
        } else {
            in_turns(of, stored, cancel)
        }
    };
    std::thread::scope(|scope| {
        let mut shares = sessions.chunks(size);
        let own = shares.next().unwrap_or_default();
        let others: Vec<_> = shares.map(|of| scope.spawn(move || share(of))).collect();
        let mut hashed = share(own)?;
        for other in others {
            hashed.extend(join(other)?);
        }
        Ok(hashed)
    })
}

fn raw_len(sessions: &[ArchivedSession]) -> u64 {
    sessions.iter().fold(0, |sum, session| sum.saturating_add(session.raw_len(Holds::Everything)))
}

/// Inflates each segment once, for the hashes of both files that contain it.
fn in_turns(
    sessions: &[ArchivedSession],
    stored: &PrefetchedSegments,
    cancel: &CancellationToken,
) -> Result<Vec<Vec<Sha256Digest>>, ArchiveError> {
    let (mut packed, mut raw) = (Vec::new(), Vec::new());
    let hash = |each: &ArchivedSession| {
        session(each, cancel, |page, take| {
            raw.clear();
            page.inflate_to(stored.packed(page, &mut packed)?, &mut raw)?;
            take(&raw);
            Ok(())
        })
    };
    sessions.iter().map(hash).collect()
}

/// The same, with the segments inflated on `inflaters` other threads, a little ahead of this one. These take turns at batches
/// of pages, so that even a giant session, alone in its round, keeps all of them busy.
fn inflating_ahead(
    sessions: &[ArchivedSession],
    stored: &PrefetchedSegments,
    cancel: &CancellationToken,
    inflaters: usize,
) -> Result<Vec<Vec<Sha256Digest>>, ArchiveError> {
    let pages: Vec<&PageRef> = sessions.iter().flat_map(|session| &session.pages).collect();
    let batches = in_batches(&pages);
    std::thread::scope(|scope| {
        let inflaters = inflaters.min(batches.len());
        let inflating = (0..inflaters).map(|nth| {
            let (full, inflated) = mpsc::channel();
            let (hashed, empty) = mpsc::channel();
            for _ in 0..BATCHES {
                hashed.send(Batch::default()).expect("its other end is here");
            }
            let own = batches.iter().skip(nth).step_by(inflaters);
            scope.spawn(move || inflate_all(own.copied(), stored, &empty, &full));
            (inflated, hashed)
        });
        let mut pages = Pages { inflating: inflating.collect(), turn: 0, batch: Batch::default(), passed: 0 };
        let hash = |each: &ArchivedSession| {
            session(each, cancel, |_, take| {
                take(pages.next()?);
                Ok(())
            })
        };
        sessions.iter().map(hash).collect()
    })
}

/// Inflates these batches; ends early when nobody receives any more: a page could not be read, or the job was cancelled.
fn inflate_all<'a>(
    batches: impl Iterator<Item = &'a [&'a PageRef]>,
    stored: &PrefetchedSegments,
    empty: &Receiver<Batch>,
    full: &Sender<Inflated>,
) {
    let mut packed = Vec::new();
    let mut inflate = |pages: &[&PageRef], mut batch: Batch| {
        batch.raw.clear();
        batch.ends.clear();
        for page in pages {
            page.inflate_to(stored.packed(page, &mut packed)?, &mut batch.raw)?;
            batch.ends.push(batch.raw.len());
        }
        Ok(batch)
    };
    for pages in batches {
        let Ok(batch) = empty.recv() else { return };
        if full.send(inflate(pages, batch)).is_err() {
            return;
        }
    }
}

/// Pages in order: batches come from the threads in turn, and each gets a used one back in exchange.
struct Pages {
    inflating: Vec<(Receiver<Inflated>, Sender<Batch>)>,
    /// The thread whose batch is next.
    turn: usize,
    batch: Batch,
    /// Pages of the batch that have been used.
    passed: usize,
}

impl Pages {
    fn next(&mut self) -> Result<&[u8], ArchiveError> {
        if self.passed == self.batch.ends.len() {
            let (inflated, empty) = &self.inflating[self.turn];
            let next = inflated.recv().map_err(io::Error::other)??;
            // May fail: that may have been the thread's last batch.
            let _ = empty.send(std::mem::replace(&mut self.batch, next));
            (self.turn, self.passed) = ((self.turn + 1) % self.inflating.len(), 0);
        }
        let from = self.passed.checked_sub(1).map_or(0, |before| self.batch.ends[before]);
        let to = self.batch.ends[self.passed];
        self.passed += 1;
        Ok(&self.batch.raw[from..to])
    }
}

/// Cuts pages into batches of at most `BATCH` bytes, or one page.
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

/// Returns the hashes of a session's files. `inflated` is called for each page in order and passes on its raw bytes.
fn session(
    session: &ArchivedSession,
    cancel: &CancellationToken,
    mut inflated: impl FnMut(&PageRef, &mut dyn FnMut(&[u8])) -> Result<(), ArchiveError>,
) -> Result<Vec<Sha256Digest>, ArchiveError> {
    let begin = |file: &SessionFile| {
        let parts = session.parts(file.holds);
        FileHash { holds: file.holds, parts, hash: Sha256::new() }
    };
    let mut files: Vec<_> = session.files.iter().map(begin).collect();
    for page in &session.pages {
        ensure_not_cancelled(cancel)?;
        inflated(page, &mut |raw| {
            for file in files.iter_mut().filter(|file| file.holds.includes(page.kind)) {
                file.text_up_to_a_page();
                file.hash.update(raw);
            }
        })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_pieces_of_any_size_is_written_and_hashed_as_a_whole() {
        const MOST: usize = HashingWriter::<Vec<u8>>::AT_A_TIME;
        let bytes: Vec<u8> = (0..5 * MOST + 7).map(|nth| (nth % 251) as u8).collect();
        for size in [999, MOST - 1, MOST, MOST + 1, bytes.len()] {
            let mut writer = HashingWriter::new(Vec::new());
            bytes.chunks(size).for_each(|piece| writer.write_all(piece).unwrap());
            let (written, digest) = writer.finish().unwrap();
            assert!(written == bytes && digest == *Sha256::digest(&bytes), "pieces of {size}");
        }
    }
}
