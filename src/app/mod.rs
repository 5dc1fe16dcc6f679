//! The composition root: settings in, a running service out. The same for `serve`, `demo` and tests.
//!
//! Owns the order of start (lock, jobs, listener) and of stop (no new requests, jobs stopped, connections drained).

pub mod one_job;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::extract::Account;
use crate::http::{self, ApiKeys, AppState};
use crate::jobs::{JobSettings, Jobs, JobsError};
use crate::zoom::ZoomSettings;

/// How long open connections may take to end after the jobs have stopped.
const DRAIN: Duration = Duration::from_secs(10);

/// Everything a service needs to be told.
#[derive(Debug, Clone)]
pub struct AppSettings {
    pub listen: SocketAddr,
    pub api_keys: ApiKeys,
    pub jobs: JobSettings,
    pub zoom: ZoomSettings,
}

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("DATA_DIR {} cannot be used: {error}", path.display())]
    DataDir { path: PathBuf, error: io::Error },
    #[error("DATA_DIR {} is in use by another process", path.display())]
    Locked { path: PathBuf },
    #[error("LISTEN_ADDR {address} cannot be used: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("the HTTP client could not be made: {0}")]
    Client(#[from] reqwest::Error),
    #[error(transparent)]
    Jobs(#[from] JobsError),
}

/// A running service.
#[derive(Debug)]
pub struct App {
    pub address: SocketAddr,
    pub jobs: Arc<Jobs>,
    stopping: CancellationToken,
    server: JoinHandle<()>,
    /// Held as long as the service runs: keeps a second process out.
    _lock: File,
}

impl App {
    pub async fn start(settings: AppSettings, clock: SharedClock) -> Result<Self, AppError> {
        crate::telemetry::metrics();
        let lock = lock(&settings.jobs.data_dir)?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
        let (listener, address) =
            listener.map_err(|error| AppError::Listen { address: settings.listen, error })?;
        let account = Account::new(settings.zoom, clock.clone())?;
        let jobs = Jobs::start(settings.jobs, account.clone(), clock.clone()).await?;
        let stopping = CancellationToken::new();
        let state = AppState {
            jobs: jobs.clone(),
            account,
            api_keys: Arc::new(settings.api_keys),
            clock: clock.clone(),
            stopping: stopping.clone(),
        };
        let server = tokio::spawn(serve(listener, state, clock));
        tracing::info!(%address, "listening");
        Ok(Self { address, jobs, stopping, server, _lock: lock })
    }

    /// Stops in order: long answers end, jobs stop where they stand, open connections get a moment to finish.
    pub async fn shut_down(self) {
        self.stopping.cancel();
        self.jobs.shut_down().await;
        if self.server.await.is_err() {
            tracing::error!("the server ended abnormally");
        }
        tracing::info!("stopped");
    }
}

async fn serve(listener: TcpListener, state: AppState, clock: SharedClock) {
    let stopping = state.stopping.clone();
    let served =
        axum::serve(listener, http::router(state)).with_graceful_shutdown(stopping.clone().cancelled_owned());
    let too_long = async {
        stopping.cancelled().await;
        clock.sleep(DRAIN).await;
    };
    tokio::select! {
        ended = served.into_future() => if let Err(error) = ended {
            tracing::error!(%error, "the server stopped");
        },
        () = too_long => tracing::warn!("connections were still open after {}s", DRAIN.as_secs()),
    }
}

/// The account alone, for commands that need no service.
pub fn account(settings: ZoomSettings, clock: &SharedClock) -> Result<Arc<Account>, AppError> {
    Ok(Account::new(settings, clock.clone())?)
}

/// Makes the data directory and locks it for this process.
fn lock(data_dir: &Path) -> Result<File, AppError> {
    let unusable = |error| AppError::DataDir { path: data_dir.to_owned(), error };
    std::fs::create_dir_all(data_dir).map_err(unusable)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join("lock"))
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(AppError::Locked { path: data_dir.to_owned() }),
        Err(std::fs::TryLockError::Error(error)) => Err(unusable(error)),
    }
}
