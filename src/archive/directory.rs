//! The directory sink: the same files as in the zip, laid out on disk.
//!
//! Files are written into a staging directory; the finished tree is moved into place at the end, so that readers never see
//! anything half-written.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::ArchiveError;
use super::scratch::Entries;
use super::sink::{Assembled, BackupPath, Entry, Fill, Sink, Text, Unpublished};
use super::zip::Located;
use crate::capture::inflate;
use crate::files::{is_there, unless_absent};

/// The top-level folders of an archive. The first describes the others, so it is moved into place last and away first.
pub const FOLDERS: [&str; 3] = ["_metadata", "messages", "sessions"];

#[derive(Debug)]
pub struct DirectorySink {
    staging: Unpublished,
    /// Opened before anything is written: a sync reports the write errors since then.
    disk: File,
}

impl DirectorySink {
    /// Creates an empty staging directory.
    pub fn new(staging: PathBuf) -> Result<Self, ArchiveError> {
        unless_absent(fs::remove_dir_all(&staging))?;
        for folder in FOLDERS {
            // Only the owner may read chats, whatever directory they end up in.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(staging.join(folder))?;
        }
        let disk = File::open(&staging)?;
        Ok(Self { staging: Unpublished(staging), disk })
    }
}

impl Sink for DirectorySink {
    fn entry(&mut self, name: &str, _: u64, fill: &mut Fill<'_>) -> Result<Located, ArchiveError> {
        let mut file = BufWriter::new(File::create_new(self.staging.0.join(name))?);
        fill(&mut file)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(Located::default())
    }

    fn finish(self: Box<Self>, _: Entries) -> Result<Assembled, ArchiveError> {
        sync(&self.disk, &self.staging.0)?;
        Ok(Assembled { archive: None, place: self.staging })
    }
}

/// Moves a finished tree into place.
pub fn publish(staging: &Path, target: &Path, keep: &BackupPath<'_>) -> std::io::Result<()> {
    // What is replaced is moved here before it is removed.
    let old = staging.with_extension("old");
    // In case an earlier publication was interrupted.
    put_back(&old, target)?;
    unless_absent(fs::remove_dir_all(&old))?;
    fs::create_dir_all(&old)?;
    let mut moved = Vec::new();
    let mut move_to = |from: PathBuf, to: PathBuf| {
        fs::rename(&from, &to)?;
        moved.push((from, to));
        Ok(())
    };
    let mut move_all = || {
        for folder in FOLDERS.iter().filter(|folder| is_there(&target.join(folder))) {
            let place = target.join(folder);
            let to = keep(&place).unwrap_or_else(|| old.join(folder));
            to.parent().map_or(Ok(()), fs::create_dir_all)?;
            move_to(place, to)?;
        }
        FOLDERS.iter().rev().try_for_each(|folder| move_to(staging.join(folder), target.join(folder)))
    };
    if let Err(error) = move_all() {
        // Best effort: move back what has been moved already.
        for (from, to) in moved.iter().rev() {
            let _ = fs::rename(to, from);
        }
        return Err(error);
    }
    File::open(target)?.sync_all()?;
    // Everything is in place. Best effort, as for the staging directory: the next publication starts by removing it.
    let _ = fs::remove_dir_all(&old);
    Ok(())
}

/// Moves old folders back where they are missing, unless new ones have begun to take their places: those are complete, and
/// about to be replaced anyway.
fn put_back(old: &Path, target: &Path) -> std::io::Result<()> {
    let places = FOLDERS.map(|folder| (old.join(folder), target.join(folder)));
    if places.iter().any(|(old, place)| is_there(old) && is_there(place)) {
        return Ok(());
    }
    let mut missing = places.iter().filter(|(old, place)| is_there(old) && !is_there(place));
    missing.try_for_each(|(old, place)| fs::rename(old, place))
}

/// Syncs everything in these folders; on Linux the whole disk at once: syncing each file would take longer than all the rest.
#[cfg_attr(target_os = "linux", expect(unused_variables, reason = "the whole disk is synced at once"))]
fn sync(disk: &File, staging: &Path) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(disk)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything is back where it was, including what was to be kept under another name.
    #[test]
    fn a_publication_that_fails_half_way_is_undone() {
        let home = tempfile::tempdir().unwrap();
        let [target, kept] = ["target", "kept"].map(|name| home.path().join(name));
        for folder in FOLDERS {
            fs::create_dir_all(target.join(folder)).unwrap();
            fs::write(target.join(folder).join("old"), "old").unwrap();
        }
        for missing in FOLDERS {
            let sink = DirectorySink::new(home.path().join("staging")).unwrap();
            fs::remove_dir(sink.staging.0.join(missing)).unwrap();
            let keep = |place: &Path| place.ends_with("messages").then(|| kept.clone());
            publish(&sink.staging.0, &target, &keep).unwrap_err();
            assert!(FOLDERS.iter().all(|folder| target.join(folder).join("old").exists()), "{missing}");
            assert!(!kept.exists());
        }
        let sink = DirectorySink::new(home.path().join("staging")).unwrap();
        publish(&sink.staging.0, &target, &|_: &Path| None).unwrap();
        assert!(FOLDERS.iter().all(|folder| fs::read_dir(target.join(folder)).unwrap().next().is_none()));
    }

    /// A publication is killed after each possible number of its six moves; the next one then fails as early as it can.
    #[test]
    fn what_is_told_of_an_archive_never_stands_beside_another() {
        for moves in 0..=6 {
            let home = tempfile::tempdir().unwrap();
            let [target, staging, old] =
                ["target", "staging", "staging.old"].map(|name| home.path().join(name));
            for (place, text) in [(&target, "old"), (&staging, "new")] {
                for folder in FOLDERS {
                    fs::create_dir_all(place.join(folder)).unwrap();
                    fs::write(place.join(folder).join("it"), text).unwrap();
                }
            }
            fs::create_dir(&old).unwrap();
            let away = FOLDERS.iter().map(|folder| (target.join(folder), old.join(folder)));
            let there = FOLDERS.iter().rev().map(|folder| (staging.join(folder), target.join(folder)));
            for (from, to) in away.chain(there).take(moves) {
                fs::rename(from, to).unwrap();
            }
            let sink = DirectorySink::new(staging.clone()).unwrap();
            fs::remove_dir(staging.join("sessions")).unwrap();
            publish(&sink.staging.0, &target, &|_: &Path| None).unwrap_err();
            let read = |folder: &str| fs::read_to_string(target.join(folder).join("it")).ok();
            let [told, messages, sessions] = FOLDERS.map(read);
            let is_of_another = told.is_some() && (told != messages || told != sessions);
            assert!(!is_of_another, "{moves}: {told:?} {messages:?} {sessions:?}");
        }
    }
}
