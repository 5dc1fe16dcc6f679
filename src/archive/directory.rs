//! The directory sink: the same files as in the zip, laid out on disk.
//!
//! Files are written into a staging directory; the finished tree is moved into place at the end, so that nothing
//! half-written stands where a reader looks.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::ArchiveError;
use super::scratch::Entries;
use super::sink::{Assembled, Entry, Fill, Sink, Text, Whole};
use super::zip::Located;
use crate::capture::inflate;
use crate::files::{is_there, unless_absent};

/// The top-level folders of an archive. The first says what is in the others: it comes last and goes first.
pub const FOLDERS: [&str; 3] = ["_metadata", "messages", "sessions"];

#[derive(Debug)]
pub struct DirectorySink {
    staging: Staging,
    target: PathBuf,
}

/// A directory that does not stay.
#[derive(Debug)]
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: the next one begins with removing what could not be removed now.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl DirectorySink {
    /// Starts an empty staging directory for what will be in `target`.
    pub fn new(target: PathBuf, staging: PathBuf) -> Result<Self, ArchiveError> {
        unless_absent(fs::remove_dir_all(&staging))?;
        for folder in FOLDERS {
            // Chats are for their owner only, whatever the directory is that they end in.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(staging.join(folder))?;
        }
        Ok(Self { staging: Staging(staging), target })
    }
}

impl Sink for DirectorySink {
    fn entry(&mut self, name: &str, fill: &mut Fill<'_>) -> Result<Option<Located>, ArchiveError> {
        let mut file = BufWriter::new(File::create_new(self.staging.0.join(name))?);
        fill(&mut file)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(None)
    }

    fn finish(self: Box<Self>, _: Entries) -> Result<Assembled, ArchiveError> {
        sync(&self.staging.0)?;
        Ok(Assembled { archive: None, whole: self })
    }
}

impl Whole for DirectorySink {
    /// Moves the finished tree into its place; what an earlier run left of these folders is replaced.
    fn publish(self: Box<Self>, keep: Option<&Path>) -> std::io::Result<()> {
        let Self { staging: Staging(staging), target } = &*self;
        let not_kept = staging.with_extension("old");
        unless_absent(fs::remove_dir_all(&not_kept))?;
        fs::create_dir_all(&not_kept)?;
        let old = keep.unwrap_or(&not_kept);
        fs::create_dir_all(old)?;
        for folder in FOLDERS.into_iter().filter(|folder| is_there(&target.join(folder))) {
            let is_kept = is_there(&old.join(folder));
            fs::rename(target.join(folder), if is_kept { &not_kept } else { old }.join(folder))?;
        }
        for folder in FOLDERS.into_iter().rev() {
            fs::rename(staging.join(folder), target.join(folder))?;
        }
        for changed in [old, target] {
            File::open(changed)?.sync_all()?;
        }
        // Everything is in its place. Best effort, as of the staging directory: the next one begins with removing it.
        let _ = fs::remove_dir_all(&not_kept);
        Ok(())
    }
}

/// Brings everything in these folders to the disk. A sync for each file would take longer than all the rest.
fn sync(staging: &Path) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(File::open(staging)?)?;
    #[cfg(not(target_os = "linux"))]
    for folder in FOLDERS {
        for file in fs::read_dir(staging.join(folder))? {
            File::open(file?.path())?.sync_all()?;
        }
        File::open(staging.join(folder))?.sync_all()?;
    }
    Ok(())
}

impl Text for BufWriter<File> {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        Ok(self.write_all(raw)?)
    }
}

impl Entry for BufWriter<File> {
    fn piece(&mut self, packed: &[u8], raw_len: u64, crc32: u32) -> Result<(), ArchiveError> {
        self.text(&inflate(packed, raw_len, crc32)?)
    }
}
