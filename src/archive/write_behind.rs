//! A file that is brought to the disk while more of it is being made, so that little is left to wait for at the end; until
//! it is whole it goes by another name.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

/// Synced whenever so much more has been written.
const STRETCH: usize = 32 << 20;

#[derive(Debug)]
pub struct WriteBehind {
    file: Arc<File>,
    unsynced: usize,
    wake: SyncSender<()>,
    /// A failed sync is told to one caller only, so this one must be heard.
    syncing: JoinHandle<io::Result<()>>,
    temporary: Temporary,
    target: PathBuf,
}

/// A file that is removed unless it got another name.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: a sweep at start removes what could not be removed now.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl WriteBehind {
    /// Begins what will be the file `target`.
    pub fn create(target: PathBuf) -> io::Result<Self> {
        let mut temporary = target.clone().into_os_string();
        temporary.push(".tmp");
        let temporary = Temporary(temporary.into());
        // For nobody else to read.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary.0)?;
        let file = Arc::new(file);
        let (wake, woken) = mpsc::sync_channel(1);
        let same = file.clone();
        let syncing = std::thread::spawn(move || woken.iter().try_for_each(|()| same.sync_data()));
        Ok(Self { file, unsynced: 0, wake, syncing, temporary, target })
    }

    /// When it returns everything written is on the disk, and in its place.
    pub fn publish(self) -> io::Result<()> {
        drop(self.wake);
        self.syncing.join().map_err(|_| io::Error::other("a sync panicked"))??;
        self.file.sync_all()?;
        std::fs::rename(&self.temporary.0, &self.target)?;
        sync_parent(&self.target)
    }
}

/// A rename is durable once its directory is.
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
        // While the last sync goes on, this one waits for the next write.
        if self.unsynced >= STRETCH && self.wake.try_send(()).is_ok() {
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
    fn two_archives_in_one_place_do_not_meet() {
        let directory = tempfile::tempdir().unwrap();
        let targets = ["chats.may", "chats.june", "chats"].map(|name| directory.path().join(name));
        let begun = targets.clone().map(|target| (WriteBehind::create(target.clone()).unwrap(), target));
        for (mut file, target) in begun {
            file.write_all(target.as_os_str().as_encoded_bytes()).unwrap();
            file.publish().unwrap();
        }
        for target in &targets {
            assert_eq!(std::fs::read(target).unwrap(), target.as_os_str().as_encoded_bytes());
        }
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            targets.len(),
            "nothing else is left"
        );
    }
}
