//! The file beside the index: every segment once, in order of arrival, never modified. Segments are synced before the index
//! refers to them; anything after the last of those is left over from an unfinished commit, and dropped.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{CaptureError, PageRef};
use crate::files::{blocking, free_space, is_unreadable};

/// Bytes kept free: even on a nearly full disk the service must be able to record how a job ended, or that one was deleted.
const KEEP_FREE: u64 = 4 << 20;
/// The size of the write buffer: smaller segments are written together.
const WRITE_BUFFER: usize = 64 << 10;

/// Segments of at most this many bytes in total are read ahead.
const READ_AHEAD_MAX: u64 = 2 << 20;
/// A gap between two of them is read as well if it is no longer than this, nor than the second: a further read costs as much.
const GAP: u64 = 2 << 10;

/// The writer's side of the file.
#[derive(Debug)]
pub(super) struct Appender {
    file: Arc<File>,
    /// The index refers to everything before this offset.
    end: u64,
}

impl Appender {
    /// Opens the file and drops what no commit refers to.
    pub(super) fn open(path: &Path, end: u64) -> Result<Self, CaptureError> {
        let file =
            File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
        // Never extends the file: what the index says beyond its end is damage.
        let end = end.min(file.metadata()?.len());
        file.set_len(end)?;
        // A new file is durable only once its directory has been synced.
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(Self { file: Arc::new(file), end })
    }

    /// Fails unless there is room for this many more bytes.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), CaptureError> {
        if free_space(&self.file)? < bytes + KEEP_FREE { Err(CaptureError::DiskFull) } else { Ok(()) }
    }

    /// Writes and syncs; returns the offset of the bytes. They count only once [`keep`](Self::keep) is called.
    pub(super) async fn append(&self, segments: Vec<Bytes>) -> Result<u64, CaptureError> {
        let (file, from) = (self.file.clone(), self.end);
        let write = move || {
            let mut file = &*file;
            file.seek(SeekFrom::Start(from))?;
            let mut out = BufWriter::with_capacity(WRITE_BUFFER, file);
            segments.iter().try_for_each(|segment| out.write_all(segment))?;
            out.flush()?;
            file.sync_data()
        };
        blocking(write).await?;
        Ok(from)
    }

    /// Records that the index refers to this many more bytes.
    pub(super) fn keep(&mut self, bytes: u64) {
        self.end += bytes;
    }
}

/// A segment that is longer than this according to the index is checked against the file's size before a buffer is allocated:
/// the index may be damaged.
const MAX_UNCHECKED_LEN: u64 = 4 << 20;

/// A reader's side of the file.
#[derive(Debug)]
pub struct SegmentReader {
    /// `None` if the file does not exist.
    file: Option<File>,
}

impl SegmentReader {
    pub(super) fn open(path: &Path) -> Result<Self, CaptureError> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { file: None }),
            opened => Ok(Self { file: Some(opened?) }),
        }
    }

    /// The size of all segments in bytes, including those that nothing refers to any more.
    pub fn size(&self) -> Result<u64, CaptureError> {
        Ok(self.file.as_ref().map_or(Ok(0), |file| file.metadata().map(|data| data.len()))?)
    }

    /// Reads one segment into the buffer, compressed as stored.
    fn read(&self, page: &PageRef, buffer: &mut Vec<u8>) -> Result<(), CaptureError> {
        let damaged = |what: &str| CaptureError::Damaged(what.to_owned());
        let file = self.file.as_ref().ok_or_else(|| damaged("the file of segments is gone"))?;
        let end = page.offset.checked_add(page.length).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| damaged("a segment cannot be where the index says"))?;
        if page.length > MAX_UNCHECKED_LEN && end > self.size()? {
            return Err(damaged("a segment cannot be as long as the index says"));
        }
        buffer.resize(page.length as usize, 0);
        match file.read_exact_at(buffer, page.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged("the file of segments ends too soon"))
            }
            // A segment that the disk can no longer read is as lost as one that it misreads: a retry fetches it again.
            Err(error) if is_unreadable(&error) => Err(damaged("the disk cannot read a segment any more")),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(()),
        }
    }

    /// Returns one segment, inflated and verified.
    pub fn inflated(&self, page: &PageRef) -> Result<Vec<u8>, CaptureError> {
        let mut packed = Vec::new();
        self.read(page, &mut packed)?;
        super::inflate(&packed, page.raw_len, page.crc32)
    }

    /// Returns the segments of these pages, some of which will be needed more than once. If they are small in total, reads them
    /// right away.
    pub fn read_ahead<'a>(self: &Arc<Self>, pages: impl Iterator<Item = &'a PageRef>) -> PrefetchedSegments {
        let mut places: Vec<Range<u64>> =
            pages.map(|page| page.offset..page.offset.saturating_add(page.length)).collect();
        let bytes = places.iter().fold(0_u64, |sum, place| sum.saturating_add(place.end - place.start));
        if bytes > READ_AHEAD_MAX {
            return PrefetchedSegments { segments: self.clone(), stretches: Vec::new() };
        }
        places.sort_unstable_by_key(|place| place.start);
        let mut stretches: Vec<Range<u64>> = Vec::new();
        for place in places {
            match stretches.last_mut() {
                Some(last) if place.start.saturating_sub(last.end) <= GAP.min(place.end - place.start) => {
                    last.end = last.end.max(place.end);
                }
                _ => stretches.push(place),
            }
        }
        let read = |Range { start, end }: Range<u64>| {
            let mut bytes = vec![0; (end - start) as usize];
            // A failure is reported when the segment is read by itself.
            self.file.as_ref()?.read_exact_at(&mut bytes, start).ok()?;
            Some((start, bytes))
        };
        PrefetchedSegments {
            segments: self.clone(),
            stretches: stretches.into_iter().filter_map(read).collect(),
        }
    }
}

/// The segments of some pages.
#[derive(Debug)]
pub struct PrefetchedSegments {
    segments: Arc<SegmentReader>,
    /// The stretches already read, each with its offset.
    stretches: Vec<(u64, Vec<u8>)>,
}

impl PrefetchedSegments {
    /// Returns one segment, compressed as stored; uses the buffer only if it was not read ahead.
    pub fn packed<'a>(&'a self, page: &PageRef, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], CaptureError> {
        let after = self.stretches.partition_point(|(start, _)| *start <= page.offset);
        if let Some((start, bytes)) = after.checked_sub(1).map(|before| &self.stretches[before])
            && let Some(from) = bytes.get((page.offset - start) as usize..)
            && let Some(segment) = from.get(..page.length as usize)
        {
            return Ok(segment);
        }
        self.segments.read(page, buffer)?;
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Kind;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_segment_is_the_same_whether_it_was_read_with_others_or_by_itself(
            places in proptest::collection::vec((0u64..60_000, 0u64..3_000), 0..20), far in any::<u64>(),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let bytes: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).take(60_000).collect();
            std::fs::write(file.path(), &bytes).unwrap();
            let segments = Arc::new(SegmentReader::open(file.path()).unwrap());
            let page = |(offset, length)| PageRef { kind: Kind::Messages, items: 1, raw_len: 0, crc32: 0, offset, length };
            // Beyond the end, as a damaged index may have it.
            let pages: Vec<PageRef> = places.into_iter().chain([(far, 100), (59_990, far % 50)]).map(page).collect();
            let stored = segments.read_ahead(pages.iter());
            for page in &pages {
                let there = usize::try_from(page.offset).ok().and_then(|from| {
                    bytes.get(from..from.checked_add(usize::try_from(page.length).ok()?)?)
                });
                let mut buffer = Vec::new();
                prop_assert_eq!(stored.packed(page, &mut buffer).ok(), there);
            }
        }
    }
}
