//! The composition root: settings in, a running service out. The same for `serve`, `demo` and tests.
//!
//! Owns the order of start (lock, sockets, audit trail, jobs, server: early callers wait) and of stop (no new requests, jobs
//! stopped, connections drained).

pub mod one_job;
mod published;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::SharedClock;
use crate::extract::Account;
use crate::http::{self, AppState, Audit, HttpSettings};
use crate::jobs::{JobSettings, Jobs, JobsError};
use crate::zoom::{NoClient, ZoomSettings};

/// The setting that names the service's directory.
const DATA_DIR: &str = "DATA_DIR";
/// The lock file, in a directory that a process has to itself.
const LOCK: &str = "lock";
/// More open files and sockets than this are never needed.
const ENOUGH_DESCRIPTORS: u64 = 65_536;
/// The most connections to the address of the metrics; a collector needs one.
const METRICS_CONNECTIONS: usize = 32;
/// A running job has up to ten connections to its capture, each of two or three files, its archive, the files used to sort
/// that, and connections to Zoom.
const DESCRIPTORS_OF_A_JOB: usize = 128;
/// The table of jobs, the audit trail, listeners, the runtime's own.
const OTHER_DESCRIPTORS: usize = 64;

/// All the settings of a service.
#[derive(Debug, Clone)]
pub struct AppSettings {
    pub listen: SocketAddr,
    pub http: HttpSettings,
    pub jobs: JobSettings,
    pub zoom: ZoomSettings,
}

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("{setting} {} cannot be used: {error}", path.display())]
    Directory { setting: &'static str, path: PathBuf, error: io::Error },
    #[error("{setting} {} is in use by another process; wait until it ends, or choose another place", path.display())]
    Locked { setting: &'static str, path: PathBuf },
    #[error("{setting} {address} cannot be used: {error}; choose another address or port")]
    Listen { setting: &'static str, address: SocketAddr, error: io::Error },
    #[error(transparent)]
    Client(#[from] NoClient),
    #[error(transparent)]
    Jobs(#[from] JobsError),
}

/// A running service.
#[derive(Debug)]
pub struct App {
    pub address: SocketAddr,
    pub metrics_address: Option<SocketAddr>,
    jobs: Arc<Jobs>,
    stopping: CancellationToken,
    servers: TaskTracker,
    /// Held as long as the service runs: keeps a second process out.
    _lock: File,
}

impl App {
    pub async fn start(settings: AppSettings, clock: SharedClock) -> Result<Self, AppError> {
        crate::telemetry::metrics();
        let lock = lock(&settings.jobs.data_dir, DATA_DIR)?;
        let (listener, address) = bind(settings.listen, "LISTEN_ADDR").await?;
        let metrics = match settings.http.metrics_listen {
            Some(wanted) => Some(bind(wanted, "METRICS_ADDR").await?),
            None => None,
        };
        let data_dir = settings.jobs.data_dir.clone();
        let max_running = settings.jobs.max_running;
        let audit = Audit::open(&data_dir)
            .map_err(|error| unusable(DATA_DIR, &data_dir.join(http::AUDIT_FILE), error))?;
        let account = Account::new(settings.zoom, clock.clone())?;
        // Before jobs resume.
        let descriptors = raise_descriptors();
        let started = Jobs::start(settings.jobs, account.clone(), clock.clone()).await;
        let jobs = started.map_err(|error| match error {
            JobsError::Io(error) => unusable(DATA_DIR, &data_dir.join("jobs"), error),
            other => other.into(),
        })?;
        let stopping = CancellationToken::new();
        let http_settings = &settings.http;
        let servers = TaskTracker::new();
        let possible = for_connections(descriptors, http_settings.max_downloads, max_running);
        let allowed = http_settings.max_connections.min(possible);
        if allowed < http_settings.max_connections {
            tracing::warn!(
                max_connections = allowed,
                descriptors,
                "accepting fewer connections than MAX_CONNECTIONS: the limit of open files is too low"
            );
        }
        if descriptors < max_running * DESCRIPTORS_OF_A_JOB + OTHER_DESCRIPTORS {
            tracing::warn!(
                descriptors,
                max_running,
                "MAX_RUNNING_JOBS jobs may need more open files than this process may have"
            );
        }
        let state = AppState::new(
            jobs.clone(),
            account,
            audit,
            http_settings,
            allowed,
            clock.clone(),
            stopping.clone(),
        );
        let serve = |listener, router, allowed| {
            http::serve(
                listener,
                router,
                allowed,
                stopping.clone(),
                http_settings.shutdown_grace,
                clock.clone(),
            )
        };
        let metrics_address = metrics.as_ref().map(|(_, address)| *address);
        if let Some((listener, address)) = metrics {
            servers.spawn(serve(listener, http::metrics_router(state.clone()), METRICS_CONNECTIONS));
            tracing::info!(%address, "serving metrics");
        }
        servers.spawn(serve(listener, http::router(state, http_settings), allowed));
        servers.close();
        tracing::info!(%address, "listening");
        Ok(Self { address, metrics_address, jobs, stopping, servers, _lock: lock })
    }

    /// Stops in order: long polls and event streams end, jobs stop where they are, open connections get a moment to finish.
    pub async fn shut_down(self) {
        self.stopping.cancel();
        self.jobs.stop().await;
        self.servers.wait().await;
        self.jobs.close().await;
        tracing::info!("stopped");
    }
}

async fn bind(wanted: SocketAddr, setting: &'static str) -> Result<(TcpListener, SocketAddr), AppError> {
    let unusable = |error| AppError::Listen { setting, address: wanted, error };
    let listener = TcpListener::bind(wanted).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    Ok((listener, address))
}

/// How many of these descriptors are left for connections. A download needs another, for its archive, and a job several.
fn for_connections(descriptors: usize, downloads: usize, jobs: usize) -> usize {
    let others = METRICS_CONNECTIONS + OTHER_DESCRIPTORS + jobs * DESCRIPTORS_OF_A_JOB;
    let others = downloads.saturating_add(others);
    descriptors.saturating_sub(others).max(descriptors / 4)
}

/// Raises this process's limit of open files and sockets as far as it is allowed to; returns the limit.
fn raise_descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(ENOUGH_DESCRIPTORS).min(ENOUGH_DESCRIPTORS);
    let more = Rlimit { current: Some(wanted), maximum: limit.maximum };
    let has_fewer = limit.current.is_none_or(|current| current < wanted);
    let was_raised = has_fewer && setrlimit(Resource::Nofile, more).is_ok();
    let allowed = if was_raised { wanted } else { limit.current.unwrap_or(ENOUGH_DESCRIPTORS) };
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

/// Creates a directory and locks it for this process; errors name the `setting` that it comes from.
fn lock(directory: &Path, setting: &'static str) -> Result<File, AppError> {
    let path = directory.join(LOCK);
    let of_lock = |error| unusable(setting, &path, error);
    loop {
        // Private whatever the umask: chats are stored there.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => unusable(setting, directory, io::ErrorKind::NotADirectory.into()),
            _ => unusable(setting, directory, error),
        })?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(of_lock)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, &path).map_err(of_lock)? => return Ok(file),
            // The directory was moved or removed between opening and locking: create and lock a new one.
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(AppError::Locked { setting, path: directory.to_owned() });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(of_lock(error)),
        }
    }
}

/// Whether `path` still names this open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match path.metadata() {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn unusable(setting: &'static str, path: &Path, error: io::Error) -> AppError {
    AppError::Directory { setting, path: path.to_owned(), error }
}
