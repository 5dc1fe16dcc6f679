//! The file beside the index: every segment once, in the order of arrival, never changed. What the index refers to is
//! synced before the index says so; what comes after that is left from a commit that never was, and overwritten.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{CaptureError, PageRef};
use crate::files::{blocking, free_space, is_unreadable};

/// Left free: on a disk that is nearly full the service must still be able to write down how a job ended, or that one is deleted.
const KEEP_FREE: u64 = 4 << 20;
/// Written at a time, of segments that are smaller.
const AT_A_TIME: usize = 64 << 10;

/// Segments of no more bytes in all are read at once.
const READ_AT_ONCE: u64 = 2 << 20;
/// A gap between two of them is read as well if it is not longer, nor longer than the second: a trip to the system costs as much.
const GAP: u64 = 2 << 10;

/// The writer's end of the file.
#[derive(Debug)]
pub(super) struct Appender {
    file: Arc<File>,
    /// Everything before it is referred to.
    end: u64,
}

impl Appender {
    /// Opens the file and drops what no commit refers to.
    pub(super) fn open(path: &Path, end: u64) -> Result<Self, CaptureError> {
        let file =
            File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
        // Never longer than it is: what the index says beyond that is damage.
        let end = end.min(file.metadata()?.len());
        file.set_len(end)?;
        // A file is durable once its directory is.
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(Self { file: Arc::new(file), end })
    }

    /// An error unless there is room for so many bytes more.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), CaptureError> {
        if free_space(&self.file)? < bytes + KEEP_FREE { Err(CaptureError::DiskFull) } else { Ok(()) }
    }

    /// Writes and syncs; returns where the bytes begin. They count only once [`keep`](Self::keep) is called.
    pub(super) async fn append(&self, segments: Vec<Bytes>) -> Result<u64, CaptureError> {
        let (file, from) = (self.file.clone(), self.end);
        let write = move || {
            let mut file = &*file;
            file.seek(SeekFrom::Start(from))?;
            let mut out = BufWriter::with_capacity(AT_A_TIME, file);
            segments.iter().try_for_each(|segment| out.write_all(segment))?;
            out.flush()?;
            file.sync_data()
        };
        blocking(write).await?;
        Ok(from)
    }

    /// So many more bytes are referred to.
    pub(super) fn keep(&mut self, bytes: u64) {
        self.end += bytes;
    }
}

/// A segment that is said to be longer is checked against the file's size before there is room made for it: the index may be
/// damaged.
const UNCHECKED_LENGTH: u64 = 4 << 20;

/// A reader's end of the file.
#[derive(Debug)]
pub struct SegmentReader {
    /// Absent before the first page.
    file: Option<File>,
}

impl SegmentReader {
    pub(super) fn open(path: &Path) -> Result<Self, CaptureError> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { file: None }),
            opened => Ok(Self { file: Some(opened?) }),
        }
    }

    /// Bytes of all segments: about what each of the two copies in an archive takes.
    pub fn size(&self) -> Result<u64, CaptureError> {
        Ok(self.file.as_ref().map_or(Ok(0), |file| file.metadata().map(|data| data.len()))?)
    }

    /// Fills the buffer with one segment, compressed as it is stored.
    fn read(&self, page: &PageRef, buffer: &mut Vec<u8>) -> Result<(), CaptureError> {
        let damaged = |what: &str| CaptureError::Damaged(what.to_owned());
        let file = self.file.as_ref().ok_or_else(|| damaged("the file of segments is gone"))?;
        let end = page.offset.checked_add(page.length).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| damaged("a segment cannot be where the index says"))?;
        if page.length > UNCHECKED_LENGTH && end > self.size()? {
            return Err(damaged("a segment cannot be as long as the index says"));
        }
        buffer.resize(page.length as usize, 0);
        match file.read_exact_at(buffer, page.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged("the file of segments ends too soon"))
            }
            // What the disk cannot read any more is as lost as what it reads wrongly: a retry fetches it again.
            Err(error) if is_unreadable(&error) => Err(damaged("the disk cannot read a segment any more")),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(()),
        }
    }

    /// One segment, inflated and checked.
    pub fn inflated(&self, page: &PageRef) -> Result<Vec<u8>, CaptureError> {
        let mut packed = Vec::new();
        self.read(page, &mut packed)?;
        super::inflate(&packed, page.raw_len, page.crc32)
    }

    /// The segments of these pages, of which some will be needed more than once. If they are small they are read at once.
    pub fn read_ahead<'a>(self: &Arc<Self>, pages: impl Iterator<Item = &'a PageRef>) -> Stored {
        let mut places: Vec<Range<u64>> =
            pages.map(|page| page.offset..page.offset.saturating_add(page.length)).collect();
        let bytes = places.iter().fold(0_u64, |sum, place| sum.saturating_add(place.end - place.start));
        if bytes > READ_AT_ONCE {
            return Stored { segments: self.clone(), stretches: Vec::new() };
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
            // What cannot be read is told when it is read by itself.
            self.file.as_ref()?.read_exact_at(&mut bytes, start).ok()?;
            Some((start, bytes))
        };
        Stored { segments: self.clone(), stretches: stretches.into_iter().filter_map(read).collect() }
    }
}

/// The segments of some pages.
#[derive(Debug)]
pub struct Stored {
    segments: Arc<SegmentReader>,
    /// What has been read of them already, with where it begins.
    stretches: Vec<(u64, Vec<u8>)>,
}

impl Stored {
    /// One segment, compressed as it is stored; in the buffer, if it had to be read.
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
