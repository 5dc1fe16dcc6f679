//! Many short lines as one entry: grouped into blocks, each of which is made while earlier ones are compressed.

use std::io;
use std::sync::mpsc;

use super::sink::Text;
use super::{ArchiveError, join};

/// Writes blocks of text that are made on a thread of their own while earlier ones are compressed.
pub fn write_pipelined(
    entry: &mut (impl Text + ?Sized),
    make: impl FnOnce(&mut Put<'_>) -> Result<(), ArchiveError> + Send,
) -> Result<(), ArchiveError> {
    std::thread::scope(|scope| {
        let (made, blocks) = mpsc::sync_channel::<Vec<u8>>(1);
        let making =
            scope.spawn(move || make(&mut |block| Ok(made.send(block).map_err(io::Error::other)?)));
        // A failed write drops the receiver, which stops the maker.
        let written = blocks.into_iter().try_for_each(|block| entry.text(&block));
        let made = join(making);
        written.and(made)
    })
}

/// Takes a block of text.
pub type Put<'a> = dyn FnMut(Vec<u8>) -> Result<(), ArchiveError> + 'a;

/// Groups many short lines into blocks.
pub struct Lines<'a, 'b> {
    put: &'a mut Put<'b>,
    block: Vec<u8>,
    separator: &'static [u8],
    first: bool,
}

impl<'a, 'b> Lines<'a, 'b> {
    const AT_A_TIME: usize = 128 << 10;

    pub fn new(put: &'a mut Put<'b>, before: &[u8], separator: &'static [u8]) -> Self {
        Self { put, block: before.to_vec(), separator, first: true }
    }

    pub fn push(&mut self, line: &str) -> Result<(), ArchiveError> {
        if !self.first {
            self.block.extend_from_slice(self.separator);
        }
        self.first = false;
        self.block.extend_from_slice(line.as_bytes());
        if self.block.len() >= Self::AT_A_TIME {
            let next = Vec::with_capacity(self.block.len());
            (self.put)(std::mem::replace(&mut self.block, next))?;
        }
        Ok(())
    }

    pub fn finish(mut self, after: &[u8]) -> Result<(), ArchiveError> {
        self.block.extend_from_slice(after);
        (self.put)(self.block)
    }
}
