//! Where entries go, one after the other: a zip or a directory.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::directory::DirectorySink;
use super::scratch::Entries;
use super::write_behind::WriteBehind;
use super::zip::{Located, ZipSink};
use super::{ArchiveError, ArchiveFile};

/// A zip in a job's directory that is not whole yet.
pub const TEMPORARY: &str = "archive.zip.tmp";

/// What an archive becomes.
#[derive(Debug, Clone)]
pub enum Target {
    /// This file; until it is whole it is [`TEMPORARY`] in the job's directory.
    Zip(PathBuf),
    /// These folders in this directory; until they are whole they are in `staging`.
    Directory { target: PathBuf, staging: PathBuf },
}

pub trait Sink: Debug + Send {
    /// Writes an entry. Tells what [`publish`](Self::publish) wants to know of it.
    fn entry(&mut self, name: &str, fill: &mut Fill<'_>) -> Result<Option<Located>, ArchiveError>;

    /// All entries have been written: puts the whole into its place. What it replaces gets the name `keep`, if there is one.
    fn publish(
        self: Box<Self>,
        entries: Entries,
        keep: Option<&Path>,
    ) -> Result<Option<ArchiveFile>, ArchiveError>;
}

/// Writes what is in an entry.
pub type Fill<'a> = dyn FnMut(&mut dyn Entry) -> Result<(), ArchiveError> + 'a;

/// Where text goes.
pub trait Text {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError>;
}

/// Where an entry's bytes go, stored segments among them.
pub trait Entry: Text {
    /// Appends a piece of deflate as it is; length and CRC are of what it inflates to.
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError>;
}

/// Every entry of a zip carries the time `modified`.
pub fn open(directory: &Path, target: Target, modified: Timestamp) -> Result<Box<dyn Sink>, ArchiveError> {
    Ok(match target {
        Target::Zip(target) => {
            Box::new(ZipSink::new(WriteBehind::create(directory.join(TEMPORARY), target)?, modified))
        }
        Target::Directory { target, staging } => Box::new(DirectorySink::new(target, staging)?),
    })
}
