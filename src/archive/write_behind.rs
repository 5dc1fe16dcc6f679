//! A file that is synced in the background while it is being written, so that little is left to sync at the end; until it is
//! published it has a temporary name.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use super::sink::{BackupPath, Unpublished};
use crate::files::is_there;

/// A sync starts whenever this many more bytes have been written.
const SYNC_EVERY: usize = 32 << 20;

#[derive(Debug)]
pub struct WriteBehind {
    file: Arc<File>,
    unsynced: usize,
    wake: SyncSender<()>,
    /// The system reports a failed sync only once, so the result of this thread must be checked.
    syncing: JoinHandle<io::Result<()>>,
    place: Unpublished,
}

impl WriteBehind {
    /// Creates a file that is removed unless it is published.
    pub fn create(place: PathBuf) -> io::Result<Self> {
        let place = Unpublished(place);
        // Readable by its owner only.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&place.0)?;
        let file = Arc::new(file);
        let (wake, woken) = mpsc::sync_channel(1);
        let same = file.clone();
        let syncing = std::thread::spawn(move || woken.iter().try_for_each(|()| same.sync_data()));
        Ok(Self { file, unsynced: 0, wake, syncing, place })
    }

    /// Syncs the file: when this returns, everything written is on disk.
    pub fn finish(self) -> io::Result<Unpublished> {
        drop(self.wake);
        self.syncing.join().map_err(|_| io::Error::other("a sync panicked"))??;
        self.file.sync_all()?;
        Ok(self.place)
    }
}

/// Moves a file into place.
pub fn publish(file: &Path, target: &Path, keep: &BackupPath<'_>) -> io::Result<()> {
    let kept = if is_there(target) { keep(target) } else { None };
    if let Some(kept) = &kept {
        std::fs::rename(target, kept)?;
    }
    if let Err(error) = std::fs::rename(file, target) {
        // Best effort: better back in its place than under another name.
        let _ = kept.map(|kept| std::fs::rename(kept, target));
        return Err(error);
    }
    sync_parent(target)
}

/// A rename is durable only once its directory has been synced.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl Write for WriteBehind {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = (&*self.file).write(buffer)?;
        self.unsynced += written;
        // One sync may be running and one waiting; if both are, a later write asks again.
        if self.unsynced >= SYNC_EVERY && self.wake.try_send(()).is_ok() {
            self.unsynced = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_in_its_place_once_it_is_published_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let [temporary, target] = ["temporary", "target"].map(|name| directory.path().join(name));
        let begun = |text: &[u8]| {
            let mut file = WriteBehind::create(temporary.clone()).unwrap();
            file.write_all(text).unwrap();
            assert!(temporary.exists());
            file
        };
        drop(begun(b"dropped"));
        drop(begun(b"dropped when it is whole").finish().unwrap());
        assert!(!temporary.exists() && !target.exists());
        let kept = directory.path().join("kept");
        for (text, is_kept) in [("first", true), ("second", true), ("third", false)] {
            let keep = |_: &Path| is_kept.then(|| kept.clone());
            let finished = begun(text.as_bytes()).finish().unwrap();
            publish(&finished.0, &target, &keep).unwrap();
            assert!(!temporary.exists() && std::fs::read(&target).unwrap() == text.as_bytes());
        }
        assert_eq!(std::fs::read(&kept).unwrap(), b"first");
    }
}
