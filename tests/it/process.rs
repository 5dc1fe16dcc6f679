//! The real binary, as an operator runs it: started, killed, stopped, its log kept.

use std::fs::File;
use std::net::TcpListener;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use zoom_chat_reports::clock::{Clock, SystemClock};
use zoom_chat_reports::sim::{SimSettings, Simulator};

use crate::caller::Caller;

pub const BINARY: &str = env!("CARGO_BIN_EXE_zoom-chat-reports");

/// A free port below the ephemeral range, from a block of 100 chosen by process id so that test processes do not collide.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 200) as u16 * 100;
    let mut ports = (0..100).map(|_| first + TAKEN.fetch_add(1, Ordering::Relaxed) % 100);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// A command that does not inherit the settings of whoever runs the tests.
fn command(program: &str) -> Command {
    let of_the_system = ["PATH", "HOME", "TMPDIR"].into_iter();
    let mut command = Command::new(program);
    command.env_clear();
    command.envs(of_the_system.filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
}

pub fn binary() -> Command {
    command(BINARY)
}

/// The settings for using a simulator, at this rate.
fn account(sim: &Simulator, rate_limit: &str) -> [(&'static str, String); 7] {
    let defaults = SimSettings::default();
    [
        ("ZOOM_ACCOUNT_ID", defaults.account_id),
        ("ZOOM_CLIENT_ID", defaults.client_id),
        ("ZOOM_CLIENT_SECRET", defaults.client_secret),
        ("ZOOM_API_BASE_URL", sim.api_base_url()),
        ("ZOOM_OAUTH_BASE_URL", sim.oauth_base_url()),
        ("ZOOM_RATE_LIMIT", rate_limit.to_owned()),
        ("RETRY_BASE", "5ms".to_owned()),
    ]
}

/// The binary, set up to use a simulator without a rate limit.
pub fn connected(sim: &Simulator, directory: &Path) -> Command {
    let mut command = binary();
    command.current_dir(directory).envs(account(sim, "0"));
    command
}

/// Runs the command, for two minutes at most; returns its exit code, stdout and stderr.
pub async fn run(mut command: Command) -> (i32, String, String) {
    ended(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).await
}

/// Waits for the end, for two minutes at most; returns the same.
pub async fn ended(child: Child) -> (i32, String, String) {
    let pid = Pid::from_child(&child);
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let Ok(output) = tokio::time::timeout(Duration::from_secs(120), ended).await else {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("it did not end within two minutes");
    };
    let output: Output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// How to start the service.
#[derive(Clone)]
pub struct Setup {
    pub data: PathBuf,
    pub log: PathBuf,
    pub port: u16,
    pub env: Vec<(String, String)>,
    /// The words that precede the binary on the command line.
    pub wrapper: Vec<String>,
}

impl Setup {
    pub fn new(sim: &Simulator, directory: &Path) -> Self {
        Self {
            data: directory.join("data"),
            log: directory.join("log"),
            port: free_port(),
            env: account(sim, "400").map(|(name, value)| (name.to_owned(), value)).into(),
            wrapper: Vec::new(),
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the service without waiting until it is ready.
    pub fn spawn(&self) -> Service {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        self.spawn_logging_to(log.into())
    }

    pub fn spawn_logging_to(&self, log: Stdio) -> Service {
        let mut words: Vec<&str> = self.wrapper.iter().map(String::as_str).collect();
        words.extend([BINARY, "serve"]);
        let child = command(words[0])
            .args(&words[1..])
            // A directory without the repository's `.env`.
            .current_dir(self.data.parent().unwrap())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("DATA_DIR", &self.data)
            .env("LISTEN_ADDR", format!("127.0.0.1:{}", self.port))
            .stdout(Stdio::null())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Service {
            child,
            clock: SystemClock::new(),
            caller: Caller::new(format!("http://127.0.0.1:{}", self.port)),
        }
    }

    pub async fn start(&self) -> Service {
        self.ready(self.spawn()).await
    }

    pub async fn ready(&self, mut service: Service) -> Service {
        for _ in 0..2_000 {
            let ready = service.client.get(service.url("/readyz")).send().await;
            if ready.is_ok_and(|answer| answer.status() == 200) {
                return service;
            }
            if let Some(status) = service.child.try_wait().unwrap() {
                panic!("the service ended with {status}: {}", self.log());
            }
            service.clock.sleep(Duration::from_millis(15)).await;
        }
        panic!("the service did not become ready: {}", self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

pub struct Service {
    pub child: Child,
    pub clock: SystemClock,
    caller: Caller,
}

impl Drop for Service {
    fn drop(&mut self) {
        // SIGKILL, whatever it is doing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Deref for Service {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl Service {
    pub fn send_sigterm(&self) {
        signal(&self.child, Signal::TERM);
    }

    /// Asks for an orderly stop and waits for it.
    pub async fn terminate(self) -> ExitStatus {
        // Twice, like `timeout`, which signals both the process and its group.
        for _ in 0..2 {
            self.send_sigterm();
        }
        self.exited().await
    }

    pub async fn exited(mut self) -> ExitStatus {
        for _ in 0..600 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
        panic!("it did not stop within 30 s");
    }
}
