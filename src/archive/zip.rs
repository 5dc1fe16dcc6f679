//! The zip sink: entries made of ready-made deflate pieces; the whole archive is hashed while it is written.
//!
//! Owns the format (PKWARE's APPNOTE 6.3, zip64 where a size, an offset or the number of entries requires it). Entries come in
//! any order. What the central directory records about each is returned to the caller, who keeps it sorted on disk: for 400,000
//! entries it would take 80 MB of memory.

use std::io::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::hash::HashingWriter;
use super::scratch::Entries;
use super::sink::{Assembled, Entry, Fill, Sink, Text};
use super::write_behind::WriteBehind;
use super::{ArchiveError, ArchiveFile};
use crate::capture::{FINAL_BLOCK, pack};

/// A regular file, readable by all: without this mode, Info-ZIP warns about non-ASCII names at zip64 offsets.
const PERMISSIONS: u32 = 0o100_644;
const DEFLATE: u16 = 8;
/// Sizes and CRC-32 follow the entry's data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;
/// The version of the format: 2.0, and 4.5 for zip64.
const VERSION: u16 = 20;
const VERSION_ZIP64: u16 = 45;
const MADE_ON_UNIX: u16 = 3 << 8;
/// A field of 32 bits holds this in place of this value or any larger one, which goes into a zip64 field.
const ZIP32_MAX: u64 = u32::MAX as u64;
const MOST_ENTRIES: u64 = u16::MAX as u64;

/// Text up to this size goes in uncompressed: it is mostly ids and brackets, and a compressor would first clear 128 kB.
const STORED_MAX: usize = 1 << 10;
/// The compression level. Longer text is mostly hashes and ids: level 2 makes archives of tiny files 2 % smaller and takes 8 %
/// longer.
const LEVEL: u32 = 1;

/// When an entry was last modified, in DOS form (in steps of two seconds, without a time zone) and as a Unix timestamp.
#[derive(Debug, Clone, Copy)]
struct Modified {
    time: u16,
    date: u16,
    unix: u32,
}

impl Modified {
    /// The extra field "UT": only the time of the last modification.
    fn extra(self) -> Record {
        let mut extra = Record(Vec::with_capacity(Record::USUAL));
        extra.u16(0x5455).u16(5).bytes(&[1]).u32(self.unix);
        extra
    }
}

impl From<Timestamp> for Modified {
    fn from(timestamp: Timestamp) -> Self {
        let civil = timestamp.to_zoned(TimeZone::UTC).datetime();
        let part = |value: i8| u16::from(value.unsigned_abs());
        let year = (civil.year() - 1980).clamp(0, 127).unsigned_abs();
        Self {
            time: (part(civil.hour()) << 11) | (part(civil.minute()) << 5) | (part(civil.second()) / 2),
            date: (year << 9) | (part(civil.month()) << 5) | part(civil.day()),
            unix: u32::try_from(timestamp.as_second()).unwrap_or(0),
        }
    }
}

/// What the central directory records about an entry, apart from its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Located {
    crc: u32,
    packed_len: u64,
    raw_len: u64,
    offset: u64,
}

#[derive(Debug)]
pub struct ZipSink<W: Write> {
    out: HashingWriter<W>,
    modified: Modified,
}

/// The central directory, at the end of an archive.
#[derive(Debug)]
pub struct ZipDirectory<W: Write> {
    out: HashingWriter<W>,
    begins: u64,
    entries: u64,
    any_zip64: bool,
    modified: Modified,
}

impl<W: Write> ZipSink<W> {
    /// Every entry carries the time `modified`, which comes from the capture: the same capture gives the same bytes.
    pub fn new(writer: W, modified: Timestamp) -> Self {
        Self { out: HashingWriter::new(writer), modified: modified.into() }
    }

    /// Begins an entry of at least `at_least` bytes, which come as pieces of deflate.
    pub fn begin(&mut self, name: &str, at_least: u64) -> Result<ZipEntry<'_, W>, ArchiveError> {
        let length = u16::try_from(name.len()).map_err(std::io::Error::other)?;
        let offset = self.out.size;
        let mut extra = self.modified.extra();
        // Info-ZIP derives the length of a descriptor from the zip64 field in the directory, which is there if the offset is
        // that large as well, and without any extra field here even from another entry's.
        let is_zip64 = offset.max(at_least) >= ZIP32_MAX;
        let (version, unknown) = if is_zip64 { (VERSION_ZIP64, u32::MAX) } else { (VERSION, 0) };
        if is_zip64 {
            extra.u16(1).u16(16).u64(0).u64(0);
        }
        let mut header = Record::new(0x0403_4b50);
        header.u16(version).u16(flags_of(name)).u16(DEFLATE).u16(self.modified.time).u16(self.modified.date);
        // CRC-32 and both sizes are in the descriptor.
        header.u32(0).u32(unknown).u32(unknown).u16(length).u16(extra.0.len() as u16);
        header.bytes(name.as_bytes()).bytes(&extra.0);
        self.out.write_all(&header.0)?;
        let begins = self.out.size;
        Ok(ZipEntry { sink: self, is_zip64, offset, begins, crc: crc32fast::Hasher::new(), raw_len: 0 })
    }

    /// Begins the central directory; all entries must have been written.
    pub fn directory(self) -> ZipDirectory<W> {
        let Self { out, modified } = self;
        ZipDirectory { begins: out.size, out, entries: 0, any_zip64: false, modified }
    }
}

fn flags_of(name: &str) -> u16 {
    FLAG_DESCRIPTOR | if name.is_ascii() { 0 } else { FLAG_UTF8 }
}

impl<W: Write> ZipDirectory<W> {
    pub fn list(&mut self, name: &str, entry: Located) -> Result<(), ArchiveError> {
        let Located { crc, packed_len, raw_len, offset } = entry;
        let Modified { time, date, .. } = self.modified;
        let mut extra = self.modified.extra();
        let too_long: Vec<u64> =
            [raw_len, packed_len, offset].into_iter().filter(|value| *value >= ZIP32_MAX).collect();
        let version = if too_long.is_empty() { VERSION } else { VERSION_ZIP64 };
        if !too_long.is_empty() {
            extra.u16(1).u16(too_long.len() as u16 * 8);
            for value in too_long {
                extra.u64(value);
            }
            self.any_zip64 = true;
        }
        let mut record = Record::new(0x0201_4b50);
        record.u16(MADE_ON_UNIX | version).u16(version).u16(flags_of(name)).u16(DEFLATE);
        record.u16(time).u16(date).u32(crc);
        record.u32_at_most(packed_len).u32_at_most(raw_len).u16(name.len() as u16).u16(extra.0.len() as u16);
        // No comment; on the first disk; no internal attributes.
        record.u16(0).u16(0).u16(0).u32(PERMISSIONS << 16).u32_at_most(offset);
        record.bytes(name.as_bytes()).bytes(&extra.0);
        self.out.write_all(&record.0)?;
        self.entries += 1;
        Ok(())
    }

    /// Returns the file with its size and hash.
    pub fn finish(mut self) -> Result<(W, ArchiveFile), ArchiveError> {
        let (begins, ends) = (self.begins, self.out.size);
        let (length, entries) = (ends - begins, self.entries);
        if self.any_zip64 || entries >= MOST_ENTRIES || length >= ZIP32_MAX || begins >= ZIP32_MAX {
            let mut end = Record::new(0x0606_4b50);
            end.u64(44).u16(VERSION_ZIP64).u16(VERSION_ZIP64).u32(0).u32(0);
            end.u64(entries).u64(entries).u64(length).u64(begins);
            let mut locator = Record::new(0x0706_4b50);
            locator.u32(0).u64(ends).u32(1);
            self.out.write_all(&end.0)?;
            self.out.write_all(&locator.0)?;
        }
        let entries = entries.min(MOST_ENTRIES) as u16;
        let mut end = Record::new(0x0605_4b50);
        end.u32(0).u16(entries).u16(entries).u32_at_most(length).u32_at_most(begins).u16(0);
        self.out.write_all(&end.0)?;
        let size = self.out.size;
        let (file, sha256) = self.out.finish()?;
        Ok((file, ArchiveFile { size, sha256: hex::encode(sha256) }))
    }
}

#[derive(Debug)]
pub struct ZipEntry<'a, W: Write> {
    sink: &'a mut ZipSink<W>,
    is_zip64: bool,
    /// Where its header begins, and where its data does.
    offset: u64,
    begins: u64,
    crc: crc32fast::Hasher,
    raw_len: u64,
}

impl<W: Write> ZipEntry<'_, W> {
    /// Appends at most [`STORED_MAX`] bytes as a stored block.
    fn glue(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        let [low, high] = (raw.len() as u16).to_le_bytes();
        self.sink.out.write_all(&[0, low, high, !low, !high])?;
        self.sink.out.write_all(raw)?;
        self.crc.update(raw);
        self.raw_len = self.raw_len.saturating_add(raw.len() as u64);
        Ok(())
    }

    pub fn finish(self) -> Result<Located, ArchiveError> {
        let Self { sink, is_zip64, offset, begins, crc, raw_len } = self;
        sink.out.write_all(&FINAL_BLOCK)?;
        let (packed_len, crc) = (sink.out.size - begins, crc.finalize());
        let mut descriptor = Record::new(0x0807_4b50);
        descriptor.u32(crc);
        if is_zip64 || packed_len.max(raw_len) >= ZIP32_MAX {
            descriptor.u64(packed_len).u64(raw_len);
        } else {
            descriptor.u32_at_most(packed_len).u32_at_most(raw_len);
        }
        sink.out.write_all(&descriptor.0)?;
        Ok(Located { crc, packed_len, raw_len, offset })
    }
}

impl<W: Write> Text for ZipEntry<'_, W> {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        if raw.len() <= STORED_MAX {
            self.glue(raw)
        } else {
            self.piece(&pack(raw, LEVEL), raw.len() as u64, crc32fast::hash(raw))
        }
    }
}

impl<W: Write> Entry for ZipEntry<'_, W> {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        self.sink.out.write_all(packed)?;
        self.crc.combine(&crc32fast::Hasher::new_with_initial_len(crc32, raw_len));
        // Of a damaged index, the sum may be too large.
        self.raw_len = self.raw_len.saturating_add(raw_len);
        Ok(())
    }
}

impl Sink for ZipSink<WriteBehind> {
    fn entry(&mut self, name: &str, at_least: u64, fill: &mut Fill<'_>) -> Result<Located, ArchiveError> {
        let mut entry = self.begin(name, at_least)?;
        fill(&mut entry)?;
        entry.finish()
    }

    fn finish(self: Box<Self>, mut entries: Entries) -> Result<Assembled, ArchiveError> {
        let mut directory = self.directory();
        while let Some((name, (_, located))) = entries.next()? {
            directory.list(name, located)?;
        }
        let (file, made) = directory.finish()?;
        Ok(Assembled { archive: Some(made), place: file.finish()? })
    }
}

/// A record of the format: fields of little-endian numbers.
struct Record(Vec<u8>);

impl Record {
    /// Most fit into this many bytes, names included.
    const USUAL: usize = 192;

    fn new(signature: u32) -> Self {
        let mut record = Self(Vec::with_capacity(Self::USUAL));
        record.u32(signature);
        record
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Writes the value, or if it does not fit the number that means "see zip64".
    fn u32_at_most(&mut self, value: u64) -> &mut Self {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rawzip::extra_fields::ExtraFieldId;
    use rawzip::time::UtcDateTime;
    use rawzip::{CompressionMethod, DataDescriptorOutput, Header, ZipArchiveWriter};
    use sha2::{Digest, Sha256};
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    /// An entry's name, its content, and the length it is claimed to have.
    type Told<'a> = (&'a str, &'a [u8], u64);

    fn ours(offset: u64, entries: &[Told<'_>]) -> Vec<u8> {
        let modified = "2026-05-30T18:07:41Z".parse().unwrap();
        let mut sink = ZipSink::new(Vec::new(), modified);
        sink.out.size = offset;
        let mut located = Vec::new();
        for (name, raw, length) in entries {
            let mut entry = sink.begin(name, 0).unwrap();
            entry.piece(&pack(raw, 6), *length, crc32fast::hash(raw)).unwrap();
            located.push(entry.finish().unwrap());
        }
        let mut directory = sink.directory();
        for ((name, ..), entry) in entries.iter().zip(located) {
            directory.list(name, entry).unwrap();
        }
        let (bytes, made) = directory.finish().unwrap();
        assert_eq!(made.size, offset + bytes.len() as u64);
        assert_eq!(made.sha256, hex::encode(Sha256::digest(&bytes)));
        bytes
    }

    /// The same archive, made by another writer.
    fn theirs(offset: u64, entries: &[Told<'_>]) -> Vec<u8> {
        let mut zip = ZipArchiveWriter::builder().with_offset(offset).build(Vec::new());
        for (name, raw, length) in entries {
            let file = zip.new_file(name).compression_method(CompressionMethod::DEFLATE);
            let modified = UtcDateTime::from_components(2026, 5, 30, 18, 7, 41, 0).unwrap();
            let unix = [&[1][..], &1_780_164_461_u32.to_le_bytes()].concat();
            let file = file.extra_field(ExtraFieldId::EXTENDED_TIMESTAMP, &unix, Header::LOCAL).unwrap();
            let (mut writer, _) = file.unix_permissions(PERMISSIONS).last_modified(modified).start().unwrap();
            writer.write_all(&pack(raw, 6)).unwrap();
            writer.write_all(&FINAL_BLOCK).unwrap();
            writer.finish(DataDescriptorOutput::new(crc32fast::hash(raw), *length)).unwrap();
        }
        zip.finish().unwrap()
    }

    #[test]
    fn archives_are_the_same_bytes_as_those_of_another_writer() {
        let text = b"some text that repeats, that repeats, that repeats".as_slice();
        let usual: [Told<'_>; 3] = [("a/b.json", text, 50), ("größe 漢.json", b"x", 1), ("empty", b"", 0)];
        let (gigabytes, least) = (5 << 30, u64::from(u32::MAX));
        let long: [Told<'_>; 3] =
            [("long", text, gigabytes), ("longest", text, least - 1), ("b", text, least)];
        for (offset, entries) in [(0, &usual[..0]), (gigabytes, &usual[..0]), (0, &usual[..]), (0, &long[..])]
        {
            assert!(ours(offset, entries) == theirs(offset, entries), "{entries:?} at {offset}");
        }
    }

    /// The other writer is of no use here: not all readers agree on what it writes.
    #[test]
    fn entries_beyond_four_gigabytes_are_read_by_unzip_and_python() {
        let mut sink = ZipSink::new(Vec::new(), "2026-05-30T18:07:41Z".parse().unwrap());
        let (mut located, mut stretches, mut skipped) = (Vec::new(), Vec::new(), 0);
        for begins in [0, u64::from(u32::MAX) - 200, 5 << 30] {
            // As if the entries in between were there.
            skipped += begins - sink.out.size;
            sink.out.size = begins;
            stretches.push((begins, (begins - skipped) as usize));
            for place in ["a", "b", "größe 漢", "d"] {
                let name = format!("{begins}/{place}.json");
                let mut entry = sink.begin(&name, 0).unwrap();
                entry.text(name.as_bytes()).unwrap();
                let made = entry.finish().unwrap();
                // The installed unzip may not mind the length of descriptors.
                let (extra, descriptor) = if made.offset >= ZIP32_MAX { (9 + 20, 24) } else { (9, 16) };
                let around = (30 + name.len() + extra + descriptor) as u64;
                assert_eq!(sink.out.size, made.offset + around + made.packed_len, "{name}");
                located.push((name, made));
            }
        }
        let mut directory = sink.directory();
        for (name, entry) in &located {
            directory.list(name, *entry).unwrap();
        }
        let (bytes, _) = directory.finish().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        for (begins, from) in stretches {
            // The next stretch overwrites what belongs to it.
            file.as_file().write_all_at(&bytes[from..], begins).unwrap();
            file.as_file().set_len(begins + (bytes.len() - from) as u64).unwrap();
        }
        let test = |program: &str, options: &[&str]| {
            let tested = Command::new(program).args(options).arg(file.path()).output().unwrap();
            let said = [tested.stdout, tested.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            assert!(tested.status.success(), "{program}: {said:?}");
            said.concat()
        };
        assert!(test("unzip", &["-t"]).contains("No errors"));
        test("python3", &["-m", "zipfile", "-t"]);
    }

    /// For readers that do not look at the directory, in front of its data.
    #[test]
    fn an_entry_that_will_be_long_says_so_from_the_start() {
        let mut sink = ZipSink::new(Vec::new(), "2026-05-30T18:07:41Z".parse().unwrap());
        for (at_least, extra, descriptor) in [(ZIP32_MAX - 1, 9, 16), (ZIP32_MAX, 9 + 20, 24)] {
            let made = sink.begin("a", at_least).unwrap().finish().unwrap();
            assert_eq!(sink.out.size - made.offset, 30 + 1 + extra + made.packed_len + descriptor);
        }
    }

    #[test]
    fn many_entries_need_zip64_as_well() {
        for many in [65_534, 65_535, 65_536] {
            let names: Vec<String> = (0..many).map(|number| number.to_string()).collect();
            let entries: Vec<Told<'_>> = names.iter().map(|name| (&name[..], b"".as_slice(), 0)).collect();
            assert!(ours(0, &entries) == theirs(0, &entries), "{many}");
        }
    }
}
