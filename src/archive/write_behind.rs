//! A file that is brought to the disk while more of it is being made, so that little is left to wait for at the end.

use std::fs::File;
use std::io::{self, Write};
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
}

impl WriteBehind {
    pub fn new(file: File) -> Self {
        let file = Arc::new(file);
        let (wake, woken) = mpsc::sync_channel(1);
        let same = file.clone();
        let syncing = std::thread::spawn(move || woken.iter().try_for_each(|()| same.sync_data()));
        Self { file, unsynced: 0, wake, syncing }
    }

    /// Everything written is on the disk when it returns.
    pub fn finish(self) -> io::Result<()> {
        drop(self.wake);
        self.syncing.join().map_err(|_| io::Error::other("a sync panicked"))??;
        self.file.sync_all()
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
