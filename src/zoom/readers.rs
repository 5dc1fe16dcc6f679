//! From the first byte of an answer to the page read from it: how many bytes are held meanwhile, which threads read, and
//! whether they keep up.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinError;

use crate::clock::SharedClock;
use crate::sync::lock;

/// All jobs together hold answers of at most about this many KiB at a time: one of unknown length (perhaps because it is
/// compressed) counts as average. At 60 typical pages a second, each may take two seconds to arrive.
const ROOM_KIB: u32 = 8 << 10;
/// Pages up to this size are read where they arrive, in half a millisecond or less: moving them to another thread costs
/// about as much. Larger ones would hold up the threads that serve sockets.
const READ_AT_ONCE: usize = 256 << 10;

/// A reader turns a body into what the caller wants, or says why it cannot.
pub type ReadResult<T> = Result<T, String>;

/// A few threads for large answers, always the same ones, since each keeps a compressor and buffers: on the shared blocking
/// pool, every thread would end up with its own. The runtime only provides the threads. `None` once it is being dropped.
#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Threads {
    fn new(most: usize) -> Self {
        let runtime = Builder::new_current_thread().max_blocking_threads(most).thread_name("reader").build();
        Self(Some(runtime.expect("a runtime without drivers asks nothing of the system")))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        self.0.as_ref().expect("it is there until it is dropped").spawn_blocking(work).await
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A runtime that is simply dropped waits for its threads, which panics where tasks run.
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
pub(super) struct Readers {
    /// In KiB: what does not fit is not yet read from the network.
    room: Semaphore,
    /// Pages being parsed and compressed at the same time: as many as there are processors. More would only take memory.
    reading: Semaphore,
    threads: Threads,
    waits: Waits,
    clock: SharedClock,
}

impl Readers {
    pub(super) fn new(clock: SharedClock) -> Self {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            room: Semaphore::new(ROOM_KIB as usize),
            reading: Semaphore::new(processors),
            threads: Threads::new(processors),
            waits: Waits::default(),
            clock,
        }
    }

    /// Waits until there is room for a body of about this many bytes. The permit must be held until the body has been read.
    pub(super) async fn room_for(&self, bytes: u64) -> SemaphorePermit<'_> {
        // A body larger than the whole room takes all of it.
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(ROOM_KIB).min(ROOM_KIB);
        self.room.acquire_many(kib).await.expect("the semaphore is never closed")
    }

    pub(super) async fn read<T, R>(&self, body: Bytes, read: R) -> ReadResult<T>
    where
        T: Send + 'static,
        R: FnOnce(Bytes) -> ReadResult<T> + Send + 'static,
    {
        let arrived = self.clock.elapsed();
        // Let the tasks that are due go first: if they take long, that shows overload just as an interrupted reader does.
        tokio::task::yield_now().await;
        let _reading = self.reading.acquire().await.expect("the semaphore is never closed");
        let (read, worked) = if body.len() <= READ_AT_ONCE {
            timed(move || read(body))
        } else {
            let read = self.threads.run(move || timed(move || read(body))).await;
            read.map_err(|_| "the reader gave up on this answer".to_owned())?
        };
        self.waits.note(self.clock.elapsed().saturating_sub(arrived).saturating_sub(worked), worked);
        read
    }

    /// Whether answers have lately waited for a processor for longer than it worked on them, because this process, or others on
    /// the machine, have too much to do.
    pub(super) fn are_behind(&self) -> bool {
        self.waits.are_long()
    }
}

/// What `work` returns, and the processor time that it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = processor_time();
    let done = work();
    (done, processor_time().saturating_sub(before))
}

/// The processor time of this thread so far.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// How long recent answers waited for a processor, and how long it worked on them, in seconds, as sums that decay with each
/// answer. Their ratio is 0.03 to 0.2 where there is little else to do, up to 0.6 with long messages, and 2 to 20 with twice as
/// many services as the processors can bear.
#[derive(Debug, Default)]
struct Waits(Mutex<[f64; 2]>);

impl Waits {
    /// The share of the sums kept at each further answer: an average over about 32.
    const KEPT: f64 = 1.0 - 1.0 / 32.0;

    fn note(&self, waited: Duration, worked: Duration) {
        let mut lately = lock(&self.0);
        for (sum, one) in lately.iter_mut().zip([waited, worked]) {
            *sum = *sum * Self::KEPT + one.as_secs_f64();
        }
    }

    fn are_long(&self) -> bool {
        let [waited, worked] = *lock(&self.0);
        waited > worked
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::SystemClock;

    /// Uses a millisecond of processor time, and returns how much it really was.
    fn work() -> Duration {
        let start = processor_time();
        loop {
            let so_far = processor_time() - start;
            if so_far >= Duration::from_millis(1) {
                return so_far;
            }
        }
    }

    #[tokio::test]
    async fn readers_are_behind_while_answers_wait_and_soon_after_not_any_more() {
        let readers = Arc::new(Readers::new(Arc::new(SystemClock::default())));
        assert!(!readers.are_behind());
        let mut many = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let readers = readers.clone();
            many.spawn(async move { readers.read(Bytes::new(), |_| Ok(work())).await });
        }
        while let Some(read) = many.join_next().await {
            read.unwrap().unwrap();
        }
        assert!(readers.are_behind());
        // Not read for real: others on the machine might hold these up as well.
        for _ in 0..1_000 {
            readers.waits.note(Duration::ZERO, Duration::from_millis(1));
        }
        assert!(!readers.are_behind());
    }

    #[tokio::test]
    async fn large_answers_are_read_on_threads_of_their_own() {
        let readers = Readers::new(Arc::new(SystemClock::default()));
        let thread = |_| Ok(std::thread::current().id());
        let small = readers.read(Bytes::from(vec![0; READ_AT_ONCE]), thread).await.unwrap();
        let large = readers.read(Bytes::from(vec![0; READ_AT_ONCE + 1]), thread).await.unwrap();
        assert_eq!(small, std::thread::current().id());
        assert_ne!(large, small);
        let panics =
            readers.read(Bytes::from(vec![0; READ_AT_ONCE + 1]), |_| -> ReadResult<()> { panic!("no") });
        assert!(panics.await.is_err());
    }
}
