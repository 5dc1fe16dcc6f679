//! External merge sort: reads records in key order when memory cannot hold all of them. Stretches that fit are sorted and
//! spilled to a file, compressed block by block, and merged as they are read.

use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::capture::{inflate_to, pack};

/// Records are grouped into blocks of at least this many bytes. While merging, one block of each run is in memory.
const BLOCK: usize = 8 << 10;
/// The compression level: what is spilled is mostly repetitive text and hashes.
const LEVEL: u32 = 1;

/// A file that several sorters share. It is unlinked at once, and is gone when the last of them is dropped.
#[derive(Debug)]
pub struct Spill {
    file: File,
    end: AtomicU64,
}

impl Spill {
    pub fn create(path: &Path) -> io::Result<Arc<Self>> {
        let file =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // Every Unix allows this while the file is open.
        std::fs::remove_file(path)?;
        Ok(Arc::new(Self { file, end: AtomicU64::new(0) }))
    }

    fn append(&self, bytes: &[u8]) -> io::Result<Range<u64>> {
        let from = self.end.fetch_add(bytes.len() as u64, Relaxed);
        self.file.write_all_at(bytes, from)?;
        Ok(from..from + bytes.len() as u64)
    }
}

/// Takes records in any order.
#[derive(Debug)]
pub struct Sorter {
    spill: Arc<Spill>,
    /// The most bytes held in memory before they are sorted and spilled.
    most: usize,
    bytes: Vec<u8>,
    records: Vec<Record>,
    sorted: Vec<Range<u64>>,
}

/// Where a record is in the bytes: its key, directly followed by its value.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    key: usize,
    value: usize,
    end: usize,
}

impl Sorter {
    pub fn new(spill: Arc<Spill>, most: usize) -> Self {
        Self { spill, most, bytes: Vec::new(), records: Vec::new(), sorted: Vec::new() }
    }

    pub fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let held = self.bytes.len() + self.records.len() * size_of::<Record>();
        if held + key.len() + value.len() > self.most {
            self.spill()?;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.records.push(Record { key: start, value: start + key.len(), end: self.bytes.len() });
        Ok(())
    }

    /// Returns all records so far, in key order.
    pub fn merged(&mut self) -> io::Result<Merged> {
        self.spill()?;
        let mut runs = BinaryHeap::with_capacity(self.sorted.len());
        for place in &self.sorted {
            let (spill, rest) = (self.spill.clone(), place.clone());
            let mut run = SortedRun { spill, rest, block: Vec::new(), first: Record::default() };
            if run.advance()? {
                runs.push(run);
            }
        }
        Ok(Merged { runs, begun: false })
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let bytes = &self.bytes;
        self.records.sort_unstable_by_key(|record| &bytes[record.key..record.value]);
        let (mut block, mut blocks) = (Vec::with_capacity(2 * BLOCK), Vec::new());
        for Record { key, value, end } in self.records.drain(..) {
            for length in [value - key, end - value] {
                block.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_le_bytes());
            }
            block.extend_from_slice(&bytes[key..end]);
            if block.len() >= BLOCK {
                push_block(&mut blocks, &block);
                block.clear();
            }
        }
        if !block.is_empty() {
            push_block(&mut blocks, &block);
        }
        self.sorted.push(self.spill.append(&blocks)?);
        self.bytes.clear();
        Ok(())
    }
}

/// The header of a block: its compressed length, its raw length, and the CRC-32 of its raw bytes.
const HEADER: usize = 3 * 4;

fn push_block(blocks: &mut Vec<u8>, raw: &[u8]) {
    let packed = pack(raw, LEVEL);
    for number in [packed.len() as u32, raw.len() as u32, crc32fast::hash(raw)] {
        blocks.extend_from_slice(&number.to_le_bytes());
    }
    blocks.extend_from_slice(&packed);
}

fn numbers<const N: usize>(bytes: &[u8]) -> [u32; N] {
    std::array::from_fn(|nth| {
        let number = bytes[nth * 4..].first_chunk().expect("each has four bytes");
        u32::from_le_bytes(*number)
    })
}

/// A cursor over a sorted run; `first` is its first record that has not been consumed yet.
#[derive(Debug)]
struct SortedRun {
    spill: Arc<Spill>,
    /// Blocks that are still to be read.
    rest: Range<u64>,
    block: Vec<u8>,
    first: Record,
}

impl SortedRun {
    fn key(&self) -> &[u8] {
        &self.block[self.first.key..self.first.value]
    }

    fn value(&self) -> &[u8] {
        &self.block[self.first.value..self.first.end]
    }

    /// Advances to the next record; returns `false` if there is none.
    fn advance(&mut self) -> io::Result<bool> {
        let mut from = self.first.end;
        if from == self.block.len() {
            if self.rest.is_empty() {
                return Ok(false);
            }
            self.read_block()?;
            from = 0;
        }
        let [key, value] = numbers(&self.block[from..]).map(|length| length as usize);
        let key_from = from + 2 * 4;
        self.first = Record { key: key_from, value: key_from + key, end: key_from + key + value };
        Ok(true)
    }

    fn read_block(&mut self) -> io::Result<()> {
        let mut header = [0; HEADER];
        self.spill.file.read_exact_at(&mut header, self.rest.start)?;
        let [packed_len, raw_len, crc32] = numbers(&header);
        let mut packed = vec![0; packed_len as usize];
        self.spill.file.read_exact_at(&mut packed, self.rest.start + HEADER as u64)?;
        self.rest.start += (HEADER + packed.len()) as u64;
        self.block.clear();
        let inflated = inflate_to(&packed, u64::from(raw_len), crc32, &mut self.block);
        inflated.map_err(|_| io::Error::other("a temporary file was not read back as it was written"))
    }
}

/// Reversed, so that the top of a max-heap is the run with the least key.
impl Ord for SortedRun {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.key().cmp(self.key())
    }
}

impl PartialOrd for SortedRun {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for SortedRun {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for SortedRun {}

/// Reads records in the order of their keys.
#[derive(Debug)]
pub struct Merged {
    runs: BinaryHeap<SortedRun>,
    /// Whether the record at the top of the heap has been returned already.
    begun: bool,
}

impl Merged {
    /// The next record's key and value.
    pub fn next(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        if std::mem::replace(&mut self.begun, true)
            && let Some(mut read) = self.runs.peek_mut()
            && !read.advance()?
        {
            PeekMut::pop(read);
        }
        Ok(self.runs.peek().map(|run| (run.key(), run.value())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(mut merged: Merged) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some((key, value)) = merged.next().unwrap() {
            all.push((key.to_vec(), value.to_vec()));
        }
        all
    }

    proptest! {
        #[test]
        fn records_come_sorted_however_little_memory_there_is(
            records in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 0..6),
                proptest::collection::vec(any::<u8>(), 0..600),
                0..80,
            ).prop_map(|sorted| sorted.into_iter().collect::<Vec<_>>()),
            shuffled in any::<u64>(),
            most in 1_usize..40_000,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let spill = Spill::create(&directory.path().join("spill")).unwrap();
            let (mut one, mut other) = (Sorter::new(spill.clone(), most), Sorter::new(spill, most / 2));
            let mut pushed = records.clone();
            fastrand::Rng::with_seed(shuffled).shuffle(&mut pushed);
            for (key, value) in &pushed {
                one.push(key, value).unwrap();
                other.push(value, key).unwrap();
            }
            prop_assert_eq!(&read(one.merged().unwrap()), &records);
            one.push(&[0xff; 7], b"later than any other").unwrap();
            let again = read(one.merged().unwrap());
            prop_assert_eq!(&again[..records.len()], &records[..]);
            prop_assert_eq!(again.len(), records.len() + 1);
            let swapped = read(other.merged().unwrap());
            prop_assert!(swapped.is_sorted_by_key(|(key, _)| key.clone()) && swapped.len() == records.len());
        }
    }
}
