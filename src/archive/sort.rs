//! Records in the order of their keys, more of them than memory should hold: stretches that fit are sorted and wait in a
//! file, and are merged as they are read.

use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Read of each stretch at a time, and written of one.
const READ_AT_A_TIME: usize = 8 << 10;
const WRITTEN_AT_A_TIME: usize = 64 << 10;

/// A file that several sorters share. It has no name any more, and is gone when the last of them is.
#[derive(Debug)]
pub struct Spill {
    file: File,
    end: AtomicU64,
}

impl Spill {
    pub fn create(path: &Path) -> io::Result<Arc<Self>> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        // Fine while it is open on every Unix.
        std::fs::remove_file(path)?;
        Ok(Arc::new(Self { file, end: AtomicU64::new(0) }))
    }

    /// A place for so many bytes that are to be written.
    fn place(self: &Arc<Self>, length: u64) -> Section {
        let from = self.end.fetch_add(length, Relaxed);
        Section { spill: self.clone(), rest: from..from + length }
    }
}

/// Takes records in any order.
#[derive(Debug)]
pub struct Sorter {
    spill: Arc<Spill>,
    /// So many bytes are sorted in memory.
    most: usize,
    bytes: Vec<u8>,
    records: Vec<Record>,
    sorted: Vec<Range<u64>>,
}

/// Where a record is among the bytes: its key, and after it its value.
#[derive(Debug, Clone, Copy)]
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

    /// All records so far, sorted.
    pub fn merged(&mut self) -> io::Result<Merged> {
        self.spill()?;
        let mut stretches = BinaryHeap::with_capacity(self.sorted.len());
        for place in &self.sorted {
            let section = Section { spill: self.spill.clone(), rest: place.clone() };
            let rest = BufReader::with_capacity(READ_AT_A_TIME, section);
            let mut stretch = Stretch { key: Vec::new(), value: Vec::new(), rest };
            if stretch.advance()? {
                stretches.push(stretch);
            }
        }
        Ok(Merged { stretches, begun: false })
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let bytes = &self.bytes;
        self.records.sort_unstable_by_key(|record| &bytes[record.key..record.value]);
        let place = self.spill.place((bytes.len() + self.records.len() * 8) as u64);
        let written = place.rest.clone();
        let mut out = BufWriter::with_capacity(WRITTEN_AT_A_TIME, place);
        for Record { key, value, end } in self.records.drain(..) {
            for length in [value - key, end - value] {
                out.write_all(&u32::try_from(length).map_err(io::Error::other)?.to_le_bytes())?;
            }
            out.write_all(&bytes[key..end])?;
        }
        out.flush()?;
        self.sorted.push(written);
        self.bytes.clear();
        Ok(())
    }
}

/// A part of the file that is still to be read, or to be written.
#[derive(Debug)]
struct Section {
    spill: Arc<Spill>,
    rest: Range<u64>,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min((self.rest.end - self.rest.start) as usize);
        let read = self.spill.file.read_at(&mut buffer[..most], self.rest.start)?;
        self.rest.start += read as u64;
        Ok(read)
    }
}

impl Write for Section {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.spill.file.write_at(buffer, self.rest.start)?;
        self.rest.start += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sorted stretch with its first record that is not read yet.
#[derive(Debug)]
struct Stretch {
    key: Vec<u8>,
    value: Vec<u8>,
    rest: BufReader<Section>,
}

impl Stretch {
    /// Goes on to the next record, if there is one.
    fn advance(&mut self) -> io::Result<bool> {
        let section = self.rest.get_ref();
        if self.rest.buffer().is_empty() && section.rest.is_empty() {
            return Ok(false);
        }
        let mut lengths = [[0; 4]; 2];
        for length in &mut lengths {
            self.rest.read_exact(length)?;
        }
        let [key, value] = lengths.map(|length| u32::from_le_bytes(length) as usize);
        self.key.resize(key, 0);
        self.rest.read_exact(&mut self.key)?;
        self.value.resize(value, 0);
        self.rest.read_exact(&mut self.value)?;
        Ok(true)
    }
}

/// The greatest of a heap is the one with the least key.
impl Ord for Stretch {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.key.cmp(&self.key)
    }
}

impl PartialOrd for Stretch {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Stretch {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Stretch {}

/// Reads records in the order of their keys.
#[derive(Debug)]
pub struct Merged {
    stretches: BinaryHeap<Stretch>,
    /// The first of the heap has been read.
    begun: bool,
}

impl Merged {
    /// The next record's key and value.
    pub fn next(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        if std::mem::replace(&mut self.begun, true)
            && let Some(mut read) = self.stretches.peek_mut()
            && !read.advance()?
        {
            PeekMut::pop(read);
        }
        Ok(self.stretches.peek().map(|stretch| (&stretch.key[..], &stretch.value[..])))
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
                proptest::collection::vec(any::<u8>(), 0..60),
                0..80,
            ).prop_map(|sorted| sorted.into_iter().collect::<Vec<_>>()),
            shuffled in any::<u64>(),
            most in 1_usize..4_000,
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
