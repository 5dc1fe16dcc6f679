//! From the first byte of an answer to the page that was read from it: how many bytes are held meanwhile, and which threads
//! read.

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The answers of all jobs that are held at the same time have so many KiB at most. At 60 usual pages a second each may take
/// two seconds to arrive.
const ROOM_KIB: u32 = 8 << 10;
/// Pages up to this size are read where they arrive, in half a millisecond or less: moving them to another thread costs
/// about as much. Larger ones would hold up the threads that serve sockets.
const READ_AT_ONCE: usize = 256 << 10;

/// A reader turns a body into what the caller wants, or says why it cannot.
pub type ReadResult<T> = Result<T, String>;

#[derive(Debug)]
pub(super) struct Readers {
    /// In KiB: what does not fit stays with the network.
    room: Semaphore,
    /// Pages being parsed and compressed at the same time: as many as there are processors. More would only hold memory.
    reading: Semaphore,
    /// Threads for large answers: always the same few, since each keeps a compressor and memory of what it has read. The
    /// pool that all blocking work shares would go round all of its threads. There until it is dropped.
    threads: Option<Runtime>,
}

impl Readers {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let threads =
            Builder::new_current_thread().max_blocking_threads(processors).thread_name("reader").build();
        Self {
            room: Semaphore::new(ROOM_KIB as usize),
            reading: Semaphore::new(processors),
            threads: Some(threads.expect("a runtime without drivers asks nothing of the system")),
        }
    }

    /// Waits until there is room for a body of about so many bytes. The permit is to be held until the body is read.
    pub(super) async fn room_for(&self, bytes: u64) -> SemaphorePermit<'_> {
        // One that is too large for the room has it to itself.
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(ROOM_KIB).min(ROOM_KIB);
        self.room.acquire_many(kib).await.expect("the semaphore is never closed")
    }

    pub(super) async fn read<T, R>(&self, body: Bytes, read: R) -> ReadResult<T>
    where
        T: Send + 'static,
        R: FnOnce(Bytes) -> ReadResult<T> + Send + 'static,
    {
        let _reading = self.reading.acquire().await.expect("the semaphore is never closed");
        if body.len() <= READ_AT_ONCE {
            return read(body);
        }
        let threads = self.threads.as_ref().expect("they are there until they are dropped");
        let read = threads.spawn_blocking(move || read(body)).await;
        read.map_err(|_| "the reader gave up on this answer".to_owned())?
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            // Waiting for them is not allowed where tasks run.
            threads.shutdown_background();
        }
    }
}
