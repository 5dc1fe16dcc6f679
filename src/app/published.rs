//! Puts what `extract` made where the user wants it. Earlier output of `extract` is replaced if the new output covers as much;
//! anything else found there is kept under another name.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::one_job::Output;
use crate::archive::{ArchiveError, Assembled};
use crate::extract::{Extent, ExtractRequest};
use crate::files::{blocking, unless_absent};

/// A mark, left just before files are moved into place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    pub request: ExtractRequest,
    /// What may be in place: while old output is being replaced, both the old and the new.
    made: Vec<Made>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Made {
    extent: Extent,
    items: Vec<Identity>,
}

/// Identifies a file or a folder: still the same after a rename, but different after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    /// For a folder: a hash that stays the same as long as none of its files is changed.
    #[serde(default)]
    hash_of_files: u64,
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let data = path.symlink_metadata()?;
        let (device, inode, modified) = (data.dev(), data.ino(), (data.mtime(), data.mtime_nsec()));
        let hash_of_files = if data.is_dir() { hash_of_files(path)? } else { 0 };
        Ok(Self { device, inode, modified, hash_of_files })
    }
}

/// Hashes a folder's files, in whatever order the system lists them.
fn hash_of_files(folder: &Path) -> io::Result<u64> {
    let mut all = 0_u64;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        let mut one = SipHasher13::new();
        (entry.file_name(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()).hash(&mut one);
        all = all.wrapping_add(one.finish());
    }
    Ok(all)
}

impl Mark {
    /// Its name in the capture's directory.
    const FILE_NAME: &str = "publishing";

    pub fn is_in(directory: &Path) -> bool {
        Self::path(directory).exists()
    }

    pub fn path(directory: &Path) -> PathBuf {
        directory.join(Self::FILE_NAME)
    }

    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(Self::path(directory)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) => unless_absent(Err(error)).map(|()| None),
        }
    }

    /// Writes the mark atomically and durably.
    fn leave(&self, directory: &Path) -> io::Result<()> {
        let mark = Self::path(directory);
        let new = mark.with_extension("new");
        let mut file = File::create(&new)?;
        serde_json::to_writer(&mut file, self)?;
        file.sync_all()?;
        std::fs::rename(&new, &mark)?;
        File::open(directory)?.sync_all()
    }

    /// Whether what is at `path` was made here and may be replaced by something of the extent `by`.
    fn may_be_replaced(&self, path: &Path, by: &Extent) -> bool {
        let Ok(there) = Identity::of(path) else { return false };
        let made = self.made.iter().find(|made| made.items.contains(&there));
        made.is_some_and(|made| by.covers(&made.extent))
    }
}

/// Publishes what was made from a capture, and updates the mark.
pub(super) async fn put_in_place(
    assembled: Assembled,
    request: ExtractRequest,
    extent: Extent,
    output: Output,
) -> Result<(), ArchiveError> {
    let directory = &output.working_directory();
    let items = assembled.items();
    let identities = move || items.iter().map(|item| Identity::of(item)).collect::<io::Result<_>>();
    let items = blocking(identities).await?;
    let new = Made { extent, items };
    let before = Mark::read(directory)?.map(|mark| mark.made).unwrap_or_default();
    let made = before.into_iter().chain([new.clone()]).collect();
    let either = Mark { request: request.clone(), made };
    either.leave(directory)?;
    let target = output.path().to_owned();
    let keep = move |path: &Path| (!either.may_be_replaced(path, &extent)).then(|| output.kept_as(path));
    assembled.publish(target, keep).await?;
    Ok(Mark { request, made: vec![new] }.leave(directory)?)
}
