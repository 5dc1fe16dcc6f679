//! What this project promises, measured: the real binary against the simulator in another process, as ratios.
//!
//! `cargo bench --bench measure` runs everything (about fifteen minutes); `-- NAME ...` runs some. Prints one line a
//! result and, at the end, all of them as JSON. Nothing here asserts: figures are for people to compare.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop loudly")]
#![expect(clippy::print_stdout, reason = "the figures are the result")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use zoom_chat_reports::clock::{Clock, SystemClock};

const BINARY: &str = env!("CARGO_BIN_EXE_zoom-chat-reports");

/// A process that is killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Simulator {
    process: Process,
    output: BufReader<std::process::ChildStdout>,
    base: String,
    days: (String, String),
}

impl Simulator {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["simulate", "--port", "0"])
            .args(arguments)
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
                days = range.split_once(" to ").map(|(from, to)| (from.to_owned(), to.to_owned()));
            }
        }
        Self { process: Process(child), output, base, days: days.unwrap() }
    }

    /// Ends it and returns its statistics.
    fn stop(mut self) -> Value {
        let pid = self.process.0.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn range(&self) -> Value {
        json!({ "from": self.days.0, "to": self.days.1 })
    }
}

struct Service {
    process: Process,
    base: String,
    client: reqwest::Client,
    clock: SystemClock,
}

impl Service {
    async fn start(simulator: &Simulator, data: &Path, limit: &str, port: u16) -> Self {
        let child = Command::new(BINARY)
            .arg("serve")
            .envs([
                ("ZOOM_ACCOUNT_ID", "sim-account"),
                ("ZOOM_CLIENT_ID", "sim-client"),
                ("ZOOM_CLIENT_SECRET", "sim-secret"),
            ])
            .env("ZOOM_API_BASE_URL", format!("{}/v2", simulator.base))
            .env("ZOOM_OAUTH_BASE_URL", &simulator.base)
            .env("ZOOM_RATE_LIMIT", limit)
            .env("DATA_DIR", data)
            .env("LISTEN_ADDR", format!("127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        let service = Self {
            process: Process(child),
            base: format!("http://127.0.0.1:{port}"),
            client,
            clock: SystemClock::new(),
        };
        for _ in 0..400 {
            let ready = service.client.get(format!("{}/readyz", service.base)).send().await;
            if ready.is_ok_and(|answer| answer.status() == 200) {
                return service;
            }
            service.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("the service did not become ready");
    }

    async fn submit(&self, body: &Value) -> String {
        let answer = self.client.post(format!("{}/v1/jobs", self.base)).json(body).send().await.unwrap();
        let job: Value = answer.json().await.unwrap();
        job["id"].as_str().unwrap_or_else(|| panic!("{job}")).to_owned()
    }

    async fn job(&self, id: &str) -> Value {
        self.client.get(format!("{}/v1/jobs/{id}", self.base)).send().await.unwrap().json().await.unwrap()
    }

    /// Waits for the end of a job and returns it with the seconds that took.
    async fn finished(&self, id: &str) -> (Value, f64) {
        let started = self.clock.elapsed();
        loop {
            let job = self.job(id).await;
            if !["queued", "running"].contains(&job["state"].as_str().unwrap()) {
                return (job, (self.clock.elapsed() - started).as_secs_f64());
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    async fn archive(&self, id: &str) -> Vec<u8> {
        let answer = self.client.get(format!("{}/v1/jobs/{id}/archive", self.base)).send().await.unwrap();
        answer.bytes().await.unwrap().to_vec()
    }

    /// Peak resident memory in MiB, and processor seconds.
    fn costs(&self) -> (f64, f64) {
        let read =
            |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.process.0.id())).unwrap();
        let status = read("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: f64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().map(|index| fields[*index].parse::<f64>().unwrap()).sum();
        (kib / 1024.0, ticks / 100.0)
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn requests(job: &Value) -> f64 {
    job["progress"]["requests"].as_f64().unwrap()
}

/// requests / (limit x wall), from submission to the finished archive.
async fn efficiency(limit: u32, messages: &str) -> Value {
    let qps = limit.to_string();
    let simulator = Simulator::start(&[
        "--qps",
        &qps,
        "--latency-ms",
        "150",
        "--jitter-ms",
        "100",
        "--messages",
        messages,
        "--sessions",
        "500",
    ]);
    let data = TempDir::new().unwrap();
    let service = Service::start(&simulator, data.path(), &qps, free_port()).await;
    let id = service.submit(&simulator.range()).await;
    let (job, wall) = service.finished(&id).await;
    let (peak, cpu) = service.costs();
    drop(service);
    let stats = simulator.stop();
    json!({
        "limit": limit, "wall_s": round(wall), "state": job["state"], "messages": job["progress"]["messages"],
        "requests": requests(&job), "efficiency": round(requests(&job) / (f64::from(limit) * wall)),
        "answers_429": stats["rate_limited"], "max_in_one_second": stats["max_in_one_second"],
        "peak_rss_mib": round(peak), "cpu_s": round(cpu),
    })
}

/// Two equal jobs at once, and a small one that comes while both are running.
async fn sharing() -> Value {
    let simulator = Simulator::start(&[
        "--qps",
        "60",
        "--latency-ms",
        "150",
        "--jitter-ms",
        "100",
        "--messages",
        "120000",
    ]);
    let data = TempDir::new().unwrap();
    let service = Service::start(&simulator, data.path(), "60", free_port()).await;
    let one = service.submit(&simulator.range()).await;
    let two = service.submit(&simulator.range()).await;
    service.clock.sleep(Duration::from_secs(30)).await;
    let so_far = [requests(&service.job(&one).await), requests(&service.job(&two).await)];
    let day = &simulator.days.1;
    let small = service.submit(&json!({ "from": day, "to": day })).await;
    let (small_job, small_wall) = service.finished(&small).await;
    json!({
        "share_of_first": round(so_far[0] / (so_far[0] + so_far[1])),
        "share_of_second": round(so_far[1] / (so_far[0] + so_far[1])),
        "small_job_requests": requests(&small_job), "small_job_wall_s": round(small_wall),
        "small_job_share_of_limit": round(requests(&small_job) / (60.0 * small_wall)),
    })
}

/// Two million messages without a limit: memory, processor, disk.
async fn memory() -> Value {
    let simulator =
        Simulator::start(&["--qps", "0", "--latency-ms", "0", "--messages", "2000000", "--sessions", "5000"]);
    let data = TempDir::new().unwrap();
    let service = Service::start(&simulator, data.path(), "0", free_port()).await;
    let id = service.submit(&simulator.range()).await;
    let (job, wall) = service.finished(&id).await;
    let (peak, cpu) = service.costs();
    let received = job["progress"]["bytes_received"].as_f64().unwrap();
    json!({
        "state": job["state"], "messages": job["progress"]["messages"], "json_mb": round(received / 1e6),
        "wall_s": round(wall), "mb_per_s": round(received / 1e6 / wall), "peak_rss_mib": round(peak),
        "cpu_s_per_1000_pages": round(cpu / requests(&job) * 1000.0), "archive_mb": job["archive"]["size"].as_f64().unwrap() / 1e6,
    })
}

/// Ten kills at 60/s: the archive is that of an undisturbed run, and few requests are repeated.
async fn kills() -> Value {
    let arguments = [
        "--qps",
        "60",
        "--latency-ms",
        "150",
        "--jitter-ms",
        "100",
        "--messages",
        "250000",
        "--sessions",
        "500",
    ];
    let mut archives = Vec::new();
    let mut sent = Vec::new();
    for kills in [0_u64, 10] {
        let simulator = Simulator::start(&arguments);
        let data = TempDir::new().unwrap();
        let port = free_port();
        let mut service = Service::start(&simulator, data.path(), "60", port).await;
        let id = service.submit(&simulator.range()).await;
        for kill in 0..kills {
            service.clock.sleep(Duration::from_millis(2_500 + kill * 1_379 % 5_000)).await;
            drop(service);
            service = Service::start(&simulator, data.path(), "60", port).await;
        }
        let (job, _) = service.finished(&id).await;
        assert_eq!(job["state"], "completed");
        archives.push(service.archive(&id).await);
        drop(service);
        sent.push(simulator.stop()["requests"].as_f64().unwrap());
    }
    json!({
        "kills": 10, "requests_undisturbed": sent[0], "requests_with_kills": sent[1],
        "repeated_share": round(sent[1] / sent[0] - 1.0), "archives_equal": entries(&archives[0]) == entries(&archives[1]),
    })
}

/// An archive's entries without what two runs need not share.
fn entries(bytes: &[u8]) -> Map<String, Value> {
    use std::io::Read;
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let mut all = Map::new();
    for index in 0..zip.len() {
        let mut file = zip.by_index(index).unwrap();
        let name = file.name().unwrap().into_owned();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        if !name.ends_with("SHA256SUMS") && !name.ends_with("extraction_summary.json") {
            all.insert(name, Value::String(text));
        }
    }
    all
}

/// 2,000 status requests a second for twenty seconds while two jobs run.
async fn polling() -> Value {
    let simulator = Simulator::start(&["--qps", "60", "--latency-ms", "150", "--jitter-ms", "100"]);
    let data = TempDir::new().unwrap();
    let service = Arc::new(Service::start(&simulator, data.path(), "60", free_port()).await);
    let one = service.submit(&simulator.range()).await;
    let two = service.submit(&simulator.range()).await;
    service.clock.sleep(Duration::from_secs(5)).await;
    let before = requests(&service.job(&one).await) + requests(&service.job(&two).await);
    let started = service.clock.elapsed();
    let lanes: Vec<_> = (0..40_u64)
        .map(|lane| {
            let (service, one) = (service.clone(), one.clone());
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(1_000);
                let start = service.clock.elapsed();
                for turn in 0..1_000_u64 {
                    let due = start + Duration::from_micros(turn * 20_000 + lane * 500);
                    service.clock.sleep(due.saturating_sub(service.clock.elapsed())).await;
                    let asked = service.clock.elapsed();
                    service.job(&one).await;
                    times.push((service.clock.elapsed() - asked).as_secs_f64() * 1000.0);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for lane in lanes {
        times.extend(lane.await.unwrap());
    }
    let wall = (service.clock.elapsed() - started).as_secs_f64();
    let after = requests(&service.job(&one).await) + requests(&service.job(&two).await);
    times.sort_by(f64::total_cmp);
    let quantile = |share: f64| round(times[((times.len() - 1) as f64 * share) as usize]);
    json!({
        "status_requests_per_s": round(times.len() as f64 / wall), "p50_ms": quantile(0.5), "p99_ms": quantile(0.99),
        "max_ms": quantile(1.0), "jobs_share_of_limit": round((after - before) / (60.0 * wall)),
    })
}

fn main() {
    // Cargo passes `--bench`.
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut results = Map::new();
    for name in ["efficiency-20", "efficiency-60", "sharing", "memory", "kills", "polling"] {
        if !wanted.is_empty() && !wanted.iter().any(|one| one == name) {
            continue;
        }
        let result = runtime.block_on(async {
            match name {
                "efficiency-20" => efficiency(20, "200000").await,
                "efficiency-60" => efficiency(60, "700000").await,
                "sharing" => sharing().await,
                "memory" => memory().await,
                "kills" => kills().await,
                _ => polling().await,
            }
        });
        println!("{name}: {result}");
        results.insert(name.to_owned(), result);
    }
    println!("{:#}", Value::Object(results));
}
