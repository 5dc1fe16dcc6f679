//! Where entries go, one after the other: a zip or a directory.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::directory::{self, DirectorySink, FOLDERS};
use super::scratch::Entries;
use super::write_behind::{self, WriteBehind};
use super::zip::{Located, ZipSink};
use super::{ArchiveError, ArchiveFile};
use crate::files::blocking;

/// The name of a zip in a job's directory until it is published.
pub const TEMPORARY: &str = "archive.zip.tmp";
/// Likewise for a directory.
const STAGING: &str = "output";

/// The form of an archive, which is in the job's directory until it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One file.
    Zip,
    /// Folders with a file for each entry.
    Directory,
}

pub trait Sink: Debug + Send {
    /// Writes an entry of at least `at_least` bytes. Returns what [`finish`](Self::finish) needs to know about it: nothing for a
    /// file in a directory.
    fn entry(&mut self, name: &str, at_least: u64, fill: &mut Fill<'_>) -> Result<Located, ArchiveError>;

    /// Completes the archive once all entries have been written, and syncs it.
    fn finish(self: Box<Self>, entries: Entries) -> Result<Assembled, ArchiveError>;
}

/// A complete archive that is not published yet. Dropping it removes it.
#[derive(Debug)]
pub struct Assembled {
    /// Size and hash of a zip; `None` for a directory.
    pub archive: Option<ArchiveFile>,
    pub(super) place: Unpublished,
}

/// Where an archive is, or a part of one, until it is published. It is removed on drop unless it has been moved away.
#[derive(Debug)]
pub struct Unpublished(pub PathBuf);

impl Drop for Unpublished {
    fn drop(&mut self) {
        // Best effort: the next one overwrites it.
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir_all(&self.0));
    }
}

impl Assembled {
    /// The files or folders that it consists of, where they are now.
    pub fn items(&self) -> Vec<PathBuf> {
        match self.archive {
            Some(_) => vec![self.place.0.clone()],
            None => FOLDERS.map(|folder| self.place.0.join(folder)).into(),
        }
    }

    /// Moves it to the file `target`, or its folders into `target`, on the same disk. What is there already is moved where
    /// `keep` says, or replaced if it returns `None`.
    pub async fn publish(
        self,
        target: PathBuf,
        keep: impl Fn(&Path) -> Option<PathBuf> + Send + 'static,
    ) -> Result<(), ArchiveError> {
        let Self { archive, place } = self;
        let publish = move || match archive {
            Some(_) => write_behind::publish(&place.0, &target, &keep),
            None => directory::publish(&place.0, &target, &keep),
        };
        Ok(blocking(publish).await?)
    }
}

/// Says where to move what is at a path; `None` if it need not be kept.
pub type BackupPath<'a> = dyn Fn(&Path) -> Option<PathBuf> + 'a;

/// Writes the content of an entry.
pub type Fill<'a> = dyn FnMut(&mut dyn Entry) -> Result<(), ArchiveError> + 'a;

/// Where text goes.
pub trait Text {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError>;
}

/// Where an entry's bytes go, including stored segments.
pub trait Entry: Text {
    /// Appends a piece of deflate data; `raw_len` and `crc32` are those of what it inflates to.
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError>;
}

/// Opens a sink in `directory`. Every entry of a zip carries the time `modified`.
pub fn open(directory: &Path, form: Form, modified: Timestamp) -> Result<Box<dyn Sink>, ArchiveError> {
    Ok(match form {
        Form::Zip => Box::new(ZipSink::new(WriteBehind::create(directory.join(TEMPORARY))?, modified)),
        Form::Directory => Box::new(DirectorySink::new(directory.join(STAGING))?),
    })
}
