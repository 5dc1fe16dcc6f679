//! Where entries go, one after the other: a zip or a directory.

use std::fmt::Debug;
use std::path::PathBuf;

use jiff::Timestamp;

use super::directory::{DirectoryEntry, DirectorySink};
use super::scratch::Entries;
use super::write_behind::WriteBehind;
use super::zip::{Located, ZipEntry, ZipSink};
use super::{ArchiveError, ArchiveFile};
use crate::capture::pack;

/// Text up to this size goes in uncompressed: it is mostly ids and brackets.
const GLUE_MOST: usize = 160;
/// Longer text is compressed at a level that makes the most of it without taking long: up to this size it is not worth the
/// making of a code, above it holds mostly hashes, of which a higher level saves little.
const SHORT: usize = 4 << 10;
const SHORT_LEVEL: u32 = 1;
const LONG_LEVEL: u32 = 2;

/// What an archive becomes.
#[derive(Debug, Clone)]
pub enum Target {
    /// This file, written beside it under a temporary name, synced, renamed.
    Zip(PathBuf),
    /// These folders in this directory; until they are whole they are in `staging`.
    Directory { target: PathBuf, staging: PathBuf },
}

pub trait Sink: Debug + Send {
    /// Writes an entry. Tells what [`publish`](Self::publish) wants to know of it.
    fn entry(&mut self, name: &str, fill: &mut Fill<'_>) -> Result<Option<Located>, ArchiveError>;

    /// All entries have been written: puts the whole into its place.
    fn publish(self: Box<Self>, entries: Entries) -> Result<Option<ArchiveFile>, ArchiveError>;
}

/// Writes what is in an entry.
pub type Fill<'a> = dyn FnMut(&mut dyn Entry) -> Result<(), ArchiveError> + 'a;

/// Where text goes.
pub trait Text {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError>;
}

/// Where an entry's bytes go, stored segments among them.
pub trait Entry: Text {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError>;
}

/// Every entry of a zip carries the time `modified`.
pub fn open(target: Target, modified: Timestamp) -> Result<Box<dyn Sink>, ArchiveError> {
    Ok(match target {
        Target::Zip(target) => Box::new(ZipSink::new(WriteBehind::create(target)?, modified)),
        Target::Directory { target, staging } => Box::new(DirectorySink::new(target, staging)?),
    })
}

impl Sink for ZipSink<WriteBehind> {
    fn entry(&mut self, name: &str, fill: &mut Fill<'_>) -> Result<Option<Located>, ArchiveError> {
        let mut entry = self.begin(name)?;
        fill(&mut entry)?;
        Ok(Some(entry.finish()?))
    }

    fn publish(self: Box<Self>, mut entries: Entries) -> Result<Option<ArchiveFile>, ArchiveError> {
        let mut directory = self.directory();
        while let Some((name, (_, located))) = entries.next()? {
            directory.list(name, located.expect("every entry of a zip was located"))?;
        }
        let (file, made) = directory.finish()?;
        file.publish()?;
        Ok(Some(made))
    }
}

impl<W: std::io::Write> Text for ZipEntry<'_, W> {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        if raw.len() <= GLUE_MOST {
            self.glue(raw)
        } else {
            let level = if raw.len() <= SHORT { SHORT_LEVEL } else { LONG_LEVEL };
            self.piece(&pack(raw, level), raw.len() as u64, crc32fast::hash(raw))
        }
    }
}

impl<W: std::io::Write> Entry for ZipEntry<'_, W> {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        ZipEntry::piece(self, packed, raw_len, crc32)
    }
}

impl Sink for DirectorySink {
    fn entry(&mut self, name: &str, fill: &mut Fill<'_>) -> Result<Option<Located>, ArchiveError> {
        let mut entry = self.begin(name)?;
        fill(&mut entry)?;
        entry.finish()?;
        Ok(None)
    }

    fn publish(self: Box<Self>, _: Entries) -> Result<Option<ArchiveFile>, ArchiveError> {
        DirectorySink::publish(*self)?;
        Ok(None)
    }
}

impl Text for DirectoryEntry {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        DirectoryEntry::text(self, raw)
    }
}

impl Entry for DirectoryEntry {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        DirectoryEntry::piece(self, packed, raw_len, crc32)
    }
}
