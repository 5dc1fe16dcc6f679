//! Where entries go, one after the other: a zip or a directory.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::directory::DirectorySink;
use super::scratch::Entries;
use super::write_behind::WriteBehind;
use super::zip::{Located, ZipSink};
use super::{ArchiveError, ArchiveFile};
use crate::files::blocking;

/// A zip in a job's directory that is not published yet.
pub const TEMPORARY: &str = "archive.zip.tmp";
/// The same of a directory.
const STAGING: &str = "output";

/// What an archive becomes. Until it is published it is in the job's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One file.
    Zip,
    /// Folders with a file for each entry.
    Directory,
}

pub trait Sink: Debug + Send {
    /// Writes an entry. Tells what [`finish`](Self::finish) wants to know of it; of a file in a directory that is nothing.
    fn entry(&mut self, name: &str, fill: &mut Fill<'_>) -> Result<Located, ArchiveError>;

    /// All entries have been written: brings the whole to the disk.
    fn finish(self: Box<Self>, entries: Entries) -> Result<Assembled, ArchiveError>;
}

/// An archive that is whole, and not in its place yet. It goes when it is dropped.
#[derive(Debug)]
pub struct Assembled {
    /// Size and hash of a zip; of a directory there are none.
    pub archive: Option<ArchiveFile>,
    pub(super) files: Box<dyn Publish>,
}

impl Assembled {
    /// The files or folders that it consists of, where they are now.
    pub fn items(&self) -> Vec<PathBuf> {
        self.files.items()
    }

    /// Makes it the file `target`, or the folders in it, on the same disk. What stands there goes where `keep` says, or if that
    /// says nothing is replaced.
    pub async fn publish(
        self,
        target: PathBuf,
        keep: impl Fn(&Path) -> Option<PathBuf> + Send + 'static,
    ) -> Result<(), ArchiveError> {
        let Self { files, .. } = self;
        Ok(blocking(move || files.publish(&target, &keep)).await?)
    }
}

/// Says where what stands in a place goes, if it is kept.
pub type BackupPath<'a> = dyn Fn(&Path) -> Option<PathBuf> + 'a;

/// What can be put into its place by renaming.
pub trait Publish: Debug + Send {
    fn items(&self) -> Vec<PathBuf>;

    fn publish(self: Box<Self>, target: &Path, keep: &BackupPath<'_>) -> io::Result<()>;
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
pub fn open(directory: &Path, form: Form, modified: Timestamp) -> Result<Box<dyn Sink>, ArchiveError> {
    Ok(match form {
        Form::Zip => Box::new(ZipSink::new(WriteBehind::create(directory.join(TEMPORARY))?, modified)),
        Form::Directory => Box::new(DirectorySink::new(directory.join(STAGING))?),
    })
}
