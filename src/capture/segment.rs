//! Segments: the items of one page and kind as a piece of deflate that can be copied into a zip entry unchanged.
//!
//! A segment is raw deflate without a final block, ends on a byte boundary and refers to nothing before it, so that
//! concatenated segments, closed with an empty final block, form a valid stream.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, DecompressError, FlushCompress, FlushDecompress, Status};

use super::{CaptureError, Kind, PageRef};

/// Deflate expands to at most 1,032 times its size.
pub(super) const MAX_INFLATE_RATIO: u64 = 1_100;
/// An empty final block, which closes a stream of segments.
pub const FINAL_BLOCK: [u8; 2] = [0x03, 0x00];

/// Separates items, both within a segment and between segments.
pub const SEPARATOR: &str = ",\n";

/// The items of one page and kind, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub items: u32,
    pub raw_len: u64,
    pub crc32: u32,
    pub data: Bytes,
}

impl Segment {
    /// Joins and compresses items, each exactly as received.
    pub fn of_items(items: &[&str], level: u32) -> Option<Self> {
        let (first, others) = items.split_first()?;
        let separated = others.iter().flat_map(|item| [SEPARATOR, *item]);
        let parts = || std::iter::once(*first).chain(separated.clone()).map(str::as_bytes);
        let mut crc32 = crc32fast::Hasher::new();
        parts().for_each(|part| crc32.update(part));
        let raw_len = parts().map(<[u8]>::len).sum();
        let data = pack_parts(parts(), raw_len, level).into();
        Some(Self { items: items.len() as u32, raw_len: raw_len as u64, crc32: crc32.finalize(), data })
    }

    /// Returns its index entry, given that it is stored at `offset`.
    pub(crate) fn at(&self, offset: u64, kind: Kind) -> PageRef {
        let (raw_len, crc32, length) = (self.raw_len, self.crc32, self.data.len() as u64);
        PageRef { kind, items: u64::from(self.items), raw_len, crc32, offset, length }
    }
}

thread_local! {
    /// Initialising one costs as much as a small page, so each thread keeps its own.
    static COMPRESSOR: RefCell<Compress> = RefCell::new(Compress::new(Compression::fast(), false));
    static DECOMPRESSOR: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// Compresses `raw` into a piece of deflate as described above.
pub fn pack(raw: &[u8], level: u32) -> Vec<u8> {
    pack_parts(std::iter::once(raw), raw.len(), level)
}

/// Like [`pack`], for parts of `raw_len` bytes in total, as if they were concatenated.
fn pack_parts<'a>(parts: impl Iterator<Item = &'a [u8]>, raw_len: usize, level: u32) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|deflate| {
        deflate.reset();
        deflate.set_level(Compression::new(level)).expect("nothing has been compressed since the reset");
        let mut packed = Vec::with_capacity(raw_len / 3 + 64);
        for part in parts {
            pack_part(deflate, part, FlushCompress::None, &mut packed);
        }
        pack_part(deflate, &[], FlushCompress::Sync, &mut packed);
        packed
    })
}

fn pack_part(deflate: &mut Compress, part: &[u8], flush: FlushCompress, packed: &mut Vec<u8>) {
    let before = deflate.total_in();
    loop {
        let read = (deflate.total_in() - before) as usize;
        let status = deflate.compress_vec(&part[read..], packed, flush);
        status.expect("deflate accepts any input");
        // Once all input is taken and there is room left in the output, the flush is complete as well.
        if packed.len() < packed.capacity() && (deflate.total_in() - before) as usize == part.len() {
            return;
        }
        packed.reserve(packed.capacity().max(256));
    }
}

impl PageRef {
    /// Inflates its segment, appends it to `raw` and verifies it.
    pub fn inflate_to(&self, packed: &[u8], raw: &mut Vec<u8>) -> Result<(), CaptureError> {
        inflate_to(packed, self.raw_len, self.crc32, raw)
    }
}

/// Inflates what was packed and verifies it.
pub fn inflate(data: &[u8], raw_len: u64, crc32: u32) -> Result<Vec<u8>, CaptureError> {
    let mut raw = Vec::new();
    inflate_to(data, raw_len, crc32, &mut raw).map(|()| raw)
}

/// Inflates what was packed, appends it to `raw` and verifies its length and CRC-32.
pub fn inflate_to(data: &[u8], raw_len: u64, crc32: u32, raw: &mut Vec<u8>) -> Result<(), CaptureError> {
    if raw_len / MAX_INFLATE_RATIO > data.len() as u64 {
        return Err(CaptureError::Damaged("a segment cannot be as long as the index says".to_owned()));
    }
    let before = raw.len();
    // Room for one byte more than expected, so that excess output is detected.
    raw.reserve(raw_len as usize + 1);
    let is_sound = DECOMPRESSOR.with_borrow_mut(|inflate| {
        inflate.reset(false);
        inflate.decompress_vec(data, raw, FlushDecompress::Sync)?;
        // Something must be able to follow, or all that comes after it in the archive would be lost.
        let status = inflate.decompress_vec(&FINAL_BLOCK, raw, FlushDecompress::Sync)?;
        let both = (data.len() + FINAL_BLOCK.len()) as u64;
        Ok::<_, DecompressError>(status == Status::StreamEnd && inflate.total_in() == both)
    });
    let is_sound =
        is_sound.map_err(|error| CaptureError::Damaged(format!("a segment does not inflate: {error}")))?;
    let inflated = &raw[before..];
    if !is_sound || inflated.len() as u64 != raw_len || crc32fast::hash(inflated) != crc32 {
        return Err(CaptureError::Damaged("a segment differs from what was stored".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn joined_segments_inflate_to_the_joined_items(
            pages in proptest::collection::vec((proptest::collection::vec(".{0,400}", 1..20), 1u32..7), 1..6),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (page, level) in &pages {
                let segment = Segment::of_items(&page.iter().map(String::as_str).collect::<Vec<_>>(), *level).unwrap();
                let raw = page.join(",\n");
                prop_assert_eq!(inflate(&segment.data, segment.raw_len, segment.crc32).unwrap(), raw.as_bytes());
                expected.extend_from_slice(raw.as_bytes());
                stream.extend_from_slice(&segment.data);
            }
            stream.extend_from_slice(&FINAL_BLOCK);
            let mut joined = Vec::new();
            flate2::read::DeflateDecoder::new(&stream[..]).read_to_end(&mut joined).unwrap();
            prop_assert_eq!(joined, expected);
        }
    }

    #[test]
    fn a_damaged_segment_is_told_from_a_sound_one() {
        let segment = Segment::of_items(&["{\"a\":1}"; 50], 6).unwrap();
        let raw = inflate(&segment.data, segment.raw_len, segment.crc32).unwrap();
        for bit in 0..8 * segment.data.len() {
            let mut bad = segment.data.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            if inflate(&bad, segment.raw_len, segment.crc32).is_ok() {
                // Another may still follow.
                let stream = [&bad[..], &segment.data, &FINAL_BLOCK].concat();
                let mut joined = Vec::new();
                flate2::read::DeflateDecoder::new(&stream[..]).read_to_end(&mut joined).unwrap();
                assert!(joined == [&raw[..], &raw].concat(), "bit {bit}");
            }
        }
        for length in 0..segment.data.len() {
            assert!(inflate(&segment.data[..length], segment.raw_len, segment.crc32).is_err(), "{length}");
        }
    }
}
