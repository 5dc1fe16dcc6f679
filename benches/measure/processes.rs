//! The two processes under measurement: the simulator and the service, both the real binary.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use jiff::civil::Date;
use serde_json::{Value, json};
use tempfile::TempDir;
use zoom_chat_reports::clock::{Clock, SystemClock};
use zoom_chat_reports::days::DateRange;
use zoom_chat_reports::extract::windows;
use zoom_chat_reports::sim::{Dataset, ItemOptions, SimSettings};

const BINARY: &str = env!("CARGO_BIN_EXE_zoom-chat-reports");

/// An account, and how Zoom treats it.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub sessions: u32,
    pub messages: u64,
    pub months: u32,
    pub heaviest_share: f64,
    /// How many times longer than usual messages are.
    pub text_scale: u32,
    /// Requests per second, for simulator and service alike; 0 means no limit.
    pub limit: u32,
    pub latency_ms: u64,
    pub jitter_ms: u64,
    pub faults: &'static str,
}

impl Profile {
    pub const USUAL: Self = Self {
        sessions: 500,
        messages: 200_000,
        months: 6,
        heaviest_share: 0.15,
        text_scale: 1,
        limit: 60,
        latency_ms: 150,
        jitter_ms: 100,
        faults: "none",
    };
    /// No limit, no latency: CPU-bound.
    pub const UNPACED: Self = Self { limit: 0, latency_ms: 0, jitter_ms: 0, ..Self::USUAL };
}

/// A process that is killed when it is dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Simulator {
    process: Process,
    output: BufReader<std::process::ChildStdout>,
    pub profile: Profile,
    pub base: String,
    pub days: (Date, Date),
}

impl Simulator {
    pub fn start(profile: Profile) -> Self {
        let arguments = [
            ("--port", "0".to_owned()),
            ("--sessions", profile.sessions.to_string()),
            ("--messages", profile.messages.to_string()),
            ("--months", profile.months.to_string()),
            ("--heaviest-share", profile.heaviest_share.to_string()),
            ("--text-scale", profile.text_scale.to_string()),
            ("--qps", profile.limit.to_string()),
            ("--latency-ms", profile.latency_ms.to_string()),
            ("--jitter-ms", profile.jitter_ms.to_string()),
            ("--faults", profile.faults.to_owned()),
        ];
        let mut child = Command::new(BINARY)
            .arg("simulate")
            .args(arguments.iter().flat_map(|(name, value)| [*name, value]))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (mut base, mut days) = (String::new(), None);
        while days.is_none() {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "the simulator did not start");
            if let Some(url) = line.trim().strip_prefix("export ZOOM_OAUTH_BASE_URL=") {
                url.clone_into(&mut base);
            }
            if let Some(range) = line.trim().strip_prefix("# messages from ") {
                days =
                    range.split_once(" to ").map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()));
            }
        }
        Self { process: Process(child), output, profile, base, days: days.unwrap() }
    }

    /// Stops it and returns its statistics.
    pub fn stop(mut self) -> Value {
        let pid = self.process.0.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub fn everything(&self) -> Value {
        json!({ "from": self.days.0.to_string(), "to": self.days.1.to_string() })
    }

    /// The fewest requests that fetch all of its days. Computed for the date at its start, as the day may have changed since.
    pub fn least_requests(&self) -> f64 {
        let Profile { sessions, messages, months, heaviest_share, text_scale, .. } = self.profile;
        let settings =
            SimSettings { sessions, messages, months, heaviest_share, text_scale, ..SimSettings::default() };
        let data = Dataset::new(&settings, self.days.1.tomorrow().unwrap());
        let whole = DateRange { from: self.days.0, to: self.days.1 };
        let windows = windows::plan(whole);
        let least = |window: &DateRange| data.least_requests(window.from, window.to, ItemOptions::default());
        windows.iter().map(least).sum::<u64>() as f64
    }
}

pub struct Service {
    pub process: Process,
    pub base: String,
    pub client: reqwest::Client,
    pub clock: Arc<SystemClock>,
    /// Milliseconds from the start of the process to the first `ready`.
    pub ready_ms: f64,
}

impl Service {
    pub async fn start(simulator: &Simulator, data: &Path) -> Self {
        Self::start_with(simulator, data, free_port(), &[]).await
    }

    pub async fn start_with(simulator: &Simulator, data: &Path, port: u16, env: &[(&str, &str)]) -> Self {
        // Built before the clock starts, because it reads the system's certificates.
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
        let clock = Arc::new(SystemClock::new());
        let child = Command::new(BINARY)
            .arg("serve")
            .envs([
                ("ZOOM_ACCOUNT_ID", "sim-account"),
                ("ZOOM_CLIENT_ID", "sim-client"),
                ("ZOOM_CLIENT_SECRET", "sim-secret"),
            ])
            .env("ZOOM_API_BASE_URL", format!("{}/v2", simulator.base))
            .env("ZOOM_OAUTH_BASE_URL", &simulator.base)
            .env("ZOOM_RATE_LIMIT", simulator.profile.limit.to_string())
            .env("DATA_DIR", data)
            .env("LISTEN_ADDR", format!("127.0.0.1:{port}"))
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut service = Self {
            process: Process(child),
            base: format!("http://127.0.0.1:{port}"),
            client,
            clock,
            ready_ms: 0.0,
        };
        for _ in 0..10_000 {
            let ready = service.client.get(service.url("/readyz")).send().await;
            if ready.is_ok_and(|answer| answer.status() == 200) {
                service.ready_ms = service.clock.elapsed().as_secs_f64() * 1_000.0;
                return service;
            }
            service.clock.sleep(Duration::from_millis(2)).await;
        }
        panic!("the service did not become ready");
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub async fn submit(&self, body: &Value) -> String {
        let answer = self.client.post(self.url("/v1/jobs")).json(body).send().await.unwrap();
        let job: Value = answer.json().await.unwrap();
        job["id"].as_str().unwrap_or_else(|| panic!("{job}")).to_owned()
    }

    pub async fn job(&self, id: &str) -> Value {
        self.client.get(self.url(&format!("/v1/jobs/{id}"))).send().await.unwrap().json().await.unwrap()
    }

    /// Waits for a job to end and returns it with the seconds that took.
    pub async fn finished(&self, id: &str) -> (Value, f64) {
        let started = self.clock.elapsed();
        loop {
            let job = self.job(id).await;
            if !["queued", "running"].contains(&job["state"].as_str().unwrap()) {
                return (job, (self.clock.elapsed() - started).as_secs_f64());
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.process.0.id())).unwrap()
    }

    fn status_mib(&self, name: &str) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
        kib / 1024.0
    }

    pub fn peak_mib(&self) -> f64 {
        self.status_mib("VmHWM:")
    }

    pub fn resident_mib(&self) -> f64 {
        self.status_mib("VmRSS:")
    }

    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.0.id())).unwrap().count()
    }

    pub fn cpu_seconds(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().map(|index| fields[*index].parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }

    /// Bytes that this process caused to be written to disk, without those of files deleted before they were written back.
    pub fn written_bytes(&self) -> f64 {
        let io = self.proc("io");
        let bytes = |name: &str| -> f64 {
            io.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
        };
        bytes("write_bytes:") - bytes("cancelled_write_bytes:")
    }
}

/// A free port below the ephemeral range, from a block of 100 chosen by process id so that test processes do not collide.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 200) as u16 * 100;
    let mut ports = (0..100).map(|_| first + TAKEN.fetch_add(1, Ordering::Relaxed) % 100);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

pub fn requests(job: &Value) -> f64 {
    job["progress"]["requests"].as_f64().unwrap()
}

pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    round(sorted[((sorted.len() - 1) as f64 * share) as usize])
}

/// A finished job and how long it took, with its service and simulator still up.
pub struct Run {
    pub job: Value,
    pub id: String,
    pub wall: f64,
    pub service: Service,
    pub simulator: Simulator,
    pub data: TempDir,
}

impl Run {
    /// Runs one job over everything, from submission to the finished archive.
    pub async fn of(profile: Profile) -> Self {
        let simulator = Simulator::start(profile);
        let data = TempDir::new().unwrap();
        let service = Service::start(&simulator, data.path()).await;
        let id = service.submit(&simulator.everything()).await;
        let (job, wall) = service.finished(&id).await;
        Self { job, id, wall, service, simulator, data }
    }

    pub fn directory(&self) -> PathBuf {
        self.data.path().join("jobs").join(&self.id)
    }

    /// All ratios of one job.
    pub fn ratios(self) -> Value {
        let sent = requests(&self.job);
        let received = self.job["progress"]["bytes_received"].as_f64().unwrap();
        let archive = self.job["archive"]["size"].as_f64().unwrap_or(f64::NAN);
        let (cpu, peak, written) =
            (self.service.cpu_seconds(), self.service.peak_mib(), self.service.written_bytes());
        let least = self.simulator.least_requests();
        // A bad answer makes another request necessary.
        let necessary = least + self.job["progress"]["retries"].as_f64().unwrap();
        let limit = f64::from(self.simulator.profile.limit);
        let Self { job, wall, service, simulator, .. } = self;
        drop(service);
        let stats = simulator.stop();
        let mut all = json!({
            "state": job["state"], "messages": job["progress"]["messages"], "wall_s": round(wall),
            "requests": sent, "requests_over_least": round(sent / least),
            "requests_over_necessary": round(sent / necessary),
            "faults": stats["faults"], "answers_429": stats["rate_limited"],
            "answers_429_share": stats["rate_limited"].as_f64().unwrap() / sent,
            "cpu_s_per_1000_pages": round(cpu / sent * 1_000.0), "json_mb_per_s": round(received / 1e6 / wall),
            "peak_rss_mib": round(peak), "written_per_archive_byte": round(written / archive),
            "archive_per_json_byte": round(archive / received),
        });
        if limit > 0.0 {
            all["efficiency"] = json!(round(sent / (limit * wall)));
            all["max_in_one_second"] = stats["max_in_one_second"].clone();
        }
        all
    }
}
