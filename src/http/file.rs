//! Streams part of a file: from the page cache, without leaving the thread, if it is cached; otherwise from the disk, on the
//! blocking pool.

use std::fs::File;
use std::io;
use std::sync::Arc;

use axum::body::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;

use crate::files::blocking;

/// The size of one read: small enough to stay in the CPU cache on its way to the socket, and below the size at which glibc
/// makes a separate mapping (`main.rs`), which would more than halve the speed.
const CHUNK: usize = 64 << 10;

/// Streams `length` bytes from `from` on. `held` is dropped with the stream.
pub fn stream<T: Send + 'static>(
    file: File,
    from: u64,
    length: u64,
    held: T,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<T> {
    try_unfold((Arc::new(file), from, length, held), |(file, offset, left, held)| async move {
        if left == 0 {
            return Ok(None);
        }
        let want = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let chunk = if let Some(chunk) = read_cached(&file, offset, want) {
            chunk
        } else {
            let file = file.clone();
            blocking(move || read_waiting(&file, offset, want)).await?
        };
        let count = chunk.len() as u64;
        Ok(Some((chunk, (file, offset + count, left - count, held))))
    })
}

/// Reads what is available at once; `None` if it would have to wait for the disk, or cannot tell.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, offset: u64, want: usize) -> Option<Bytes> {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut buffer = vec![0; want];
    let count =
        preadv2(file, &mut [io::IoSliceMut::new(&mut buffer)], offset, ReadWriteFlags::NOWAIT).ok()?;
    buffer.truncate(count);
    (count > 0).then(|| buffer.into())
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: u64, _: usize) -> Option<Bytes> {
    None
}

fn read_waiting(file: &File, offset: u64, want: usize) -> io::Result<Bytes> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; want];
    match file.read_at(&mut buffer, offset)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            buffer.truncate(count);
            Ok(buffer.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static CONTENT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..800_000_u32).map(|index| (index.wrapping_mul(31) >> 3) as u8).collect());

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_byte_of_the_part_comes_once(from in 0u64..400_000, length in 0u64..400_000) {
            let path = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(path.path(), &*CONTENT).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = stream(File::open(path.path()).unwrap(), from, length, ());
            let chunks: Vec<Bytes> = runtime.block_on(read.try_collect()).unwrap();
            prop_assert_eq!(chunks.concat(), &CONTENT[from as usize..(from + length) as usize]);
        }
    }

    #[test]
    fn a_file_that_ends_too_soon_is_an_error_and_no_short_body() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), b"short").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = stream(File::open(path.path()).unwrap(), 0, 10, ());
        let chunks: io::Result<Vec<Bytes>> = runtime.block_on(read.try_collect());
        assert_eq!(chunks.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
