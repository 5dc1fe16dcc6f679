//! Threads that read large answers, which would hold up those that serve sockets: always the same few, since each keeps a
//! compressor and memory of what it has read. The pool that all blocking work shares would go round all of its threads.

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinError;

#[derive(Debug)]
pub(super) struct Readers(Option<Runtime>);

impl Readers {
    pub(super) fn new(threads: usize) -> Self {
        let runtime =
            Builder::new_current_thread().max_blocking_threads(threads).thread_name("reader").build();
        Self(Some(runtime.expect("a runtime without drivers asks nothing of the system")))
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        self.0.as_ref().expect("it is there until it is dropped").spawn_blocking(read).await
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for its threads is not allowed where tasks run.
            runtime.shutdown_background();
        }
    }
}
