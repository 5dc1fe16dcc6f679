//! The zip sink: entries made of ready deflate pieces, hashed as a whole while written.

use std::io::{BufWriter, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rawzip::time::UtcDateTime;
use rawzip::{CompressionMethod, DataDescriptorOutput, ZipArchiveWriter};
use sha2::{Digest, Sha256};

use super::{ArchiveError, ArchiveFile};

/// A regular file, readable by all: without it Info-ZIP warns about non-ASCII names at zip64 offsets.
const PERMISSIONS: u32 = 0o100_644;
/// An empty final block: closes a stream of segments that each end on a byte boundary.
const FINAL_BLOCK: [u8; 2] = [0x03, 0x00];

/// Counts and hashes what goes to the file.
#[derive(Debug)]
struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[derive(Debug)]
pub struct ZipSink<W: Write> {
    zip: ZipArchiveWriter<HashingWriter<BufWriter<W>>>,
    modified: Option<UtcDateTime>,
}

impl<W: Write> ZipSink<W> {
    /// Every entry carries the time `modified`, which comes from the capture: the same capture gives the same bytes.
    pub fn new(writer: W, modified: Timestamp) -> Self {
        let inner = BufWriter::with_capacity(1 << 20, writer);
        let civil = modified.to_zoned(TimeZone::UTC).datetime();
        let part = |value: i8| value.unsigned_abs();
        let modified = UtcDateTime::from_components(
            civil.year().unsigned_abs(),
            part(civil.month()),
            part(civil.day()),
            part(civil.hour()),
            part(civil.minute()),
            part(civil.second()),
            0,
        );
        Self { zip: ZipArchiveWriter::new(HashingWriter { inner, hash: Sha256::new(), size: 0 }), modified }
    }

    /// Begins an entry whose bytes come as pieces of deflate.
    pub fn entry(&mut self, name: &str) -> Result<ZipEntry<'_, W>, ArchiveError> {
        let mut file = self
            .zip
            .new_file(name)
            .compression_method(CompressionMethod::DEFLATE)
            .unix_permissions(PERMISSIONS);
        if let Some(modified) = self.modified {
            file = file.last_modified(modified);
        }
        let (writer, _) = file.start()?;
        Ok(ZipEntry { writer, crc: crc32fast::Hasher::new(), raw_len: 0 })
    }

    /// Writes the directory and returns the file with its size and hash.
    pub fn finish(self) -> Result<(W, ArchiveFile), ArchiveError> {
        let HashingWriter { inner, hash, size } = self.zip.finish()?;
        let file = inner.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let sha256 = hex::encode(hash.finalize());
        Ok((file, ArchiveFile { size, sha256 }))
    }
}

#[derive(Debug)]
pub struct ZipEntry<'a, W: Write> {
    writer: rawzip::ZipEntryWriter<'a, HashingWriter<BufWriter<W>>>,
    crc: crc32fast::Hasher,
    raw_len: u64,
}

impl<W: Write> ZipEntry<'_, W> {
    /// Appends a piece of deflate as it is; length and CRC are of what it inflates to.
    pub fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        self.writer.write_all(packed)?;
        self.crc.combine(&crc32fast::Hasher::new_with_initial_len(crc32, raw_len));
        self.raw_len += raw_len;
        Ok(())
    }

    /// Appends a few bytes as stored blocks.
    pub fn glue(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        for chunk in raw.chunks(usize::from(u16::MAX)) {
            let length = chunk.len() as u16;
            self.writer.write_all(&[0])?;
            self.writer.write_all(&length.to_le_bytes())?;
            self.writer.write_all(&(!length).to_le_bytes())?;
            self.writer.write_all(chunk)?;
        }
        self.crc.update(raw);
        self.raw_len += raw.len() as u64;
        Ok(())
    }

    pub fn finish(mut self) -> Result<(), ArchiveError> {
        self.writer.write_all(&FINAL_BLOCK)?;
        self.writer.finish(DataDescriptorOutput::new(self.crc.finalize(), self.raw_len))?;
        Ok(())
    }
}
