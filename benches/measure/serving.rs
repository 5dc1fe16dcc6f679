//! The service as its users see it: status under load, downloads, start-up with many old jobs, everything at once, a soak test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;
use zoom_chat_reports::clock::{Clock, SystemClock};

use crate::jobs::archive_in;
use crate::processes::{Process, Profile, Run, Service, Simulator, free_port, quantile, requests, round};

/// Sends status requests at a steady rate for some seconds; returns their latencies in milliseconds, sorted, and the rate
/// achieved. Latency counts from when a request was due, so one sent late because the previous answer was late takes longer.
async fn poll(service: &Arc<Service>, id: &str, rate: u64, seconds: u64) -> (Vec<f64>, f64) {
    let lanes = 40;
    let started = service.clock.elapsed();
    let tasks: Vec<_> = (0..lanes)
        .map(|lane| {
            let (service, url) = (service.clone(), service.url(&format!("/v1/jobs/{id}")));
            tokio::spawn(async move {
                let gap = lanes * 1_000_000 / rate;
                let start = service.clock.elapsed();
                let mut times = Vec::new();
                for turn in 0..seconds * rate / lanes {
                    let due = start + Duration::from_micros(turn * gap + lane * gap / lanes);
                    service.clock.sleep(due.saturating_sub(service.clock.elapsed())).await;
                    service.client.get(&url).send().await.unwrap().bytes().await.unwrap();
                    times.push((service.clock.elapsed() - due).as_secs_f64() * 1000.0);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times.sort_by(f64::total_cmp);
    let held = times.len() as f64 / (service.clock.elapsed() - started).as_secs_f64();
    (times, round(held))
}

/// 2,000 and 5,000 status requests a second while two jobs run.
pub async fn polling() -> Value {
    let simulator = Simulator::start(Profile { messages: 400_000, ..Profile::USUAL });
    let data = TempDir::new().unwrap();
    let service = Arc::new(Service::start(&simulator, data.path()).await);
    let jobs = [service.submit(&simulator.everything()).await, service.submit(&simulator.everything()).await];
    let mut all = serde_json::Map::new();
    for rate in [2_000, 5_000] {
        service.clock.sleep(Duration::from_secs(3)).await;
        let started = service.clock.elapsed();
        let before = requests(&service.job(&jobs[0]).await) + requests(&service.job(&jobs[1]).await);
        let (times, held) = poll(&service, &jobs[0], rate, 20).await;
        let after = requests(&service.job(&jobs[0]).await) + requests(&service.job(&jobs[1]).await);
        let wall = (service.clock.elapsed() - started).as_secs_f64();
        all.insert(
            format!("at_{rate}"),
            json!({
                "held_per_s": held, "p50_ms": quantile(&times, 0.5), "p99_ms": quantile(&times, 0.99),
                "jobs_share_of_limit": round((after - before) / (60.0 * wall)),
            }),
        );
    }
    Value::Object(all)
}

/// The time from process start to `ready`, with 0 to 10,000 old jobs, each with its record and its files.
pub async fn ready() -> Value {
    let mut all = serde_json::Map::new();
    for old in [0_u32, 1_000, 10_000] {
        let run = Run::of(Profile { messages: 500, sessions: 5, months: 1, ..Profile::UNPACED }).await;
        let Run { service, simulator, data, .. } = run;
        drop(service);
        let mut connection =
            SqliteConnectOptions::new().filename(data.path().join("state.db")).connect().await.unwrap();
        sqlx::query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
             INSERT INTO jobs (id, state, job)
             SELECT printf('0199f8d0-0000-7000-8000-%012d', i), state,
                    replace(job, id, printf('0199f8d0-0000-7000-8000-%012d', i)) FROM jobs, n WHERE ? > 0",
        )
        .bind(old)
        .bind(old)
        .execute(&mut connection)
        .await
        .unwrap();
        connection.close().await.unwrap();
        let directories = data.path().join("jobs");
        let original = std::fs::read_dir(&directories).unwrap().next().unwrap().unwrap().path();
        let files: Vec<_> = std::fs::read_dir(original)
            .unwrap()
            .map(|file| file.unwrap())
            .map(|file| (file.path(), file.file_name()))
            .collect();
        for number in 1..=old {
            let copy = directories.join(format!("0199f8d0-0000-7000-8000-{number:012}"));
            std::fs::create_dir(&copy).unwrap();
            for (file, name) in &files {
                std::fs::hard_link(file, copy.join(name)).unwrap();
            }
        }
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(Service::start(&simulator, data.path()).await.ready_ms);
        }
        times.sort_by(f64::total_cmp);
        all.insert(format!("{old}_jobs_ms"), json!(quantile(&times, 0.5)));
    }
    Value::Object(all)
}

/// Megabytes per second that `parallel` clients get in total when each downloads a file of this size, over plain sockets from
/// either of the servers compared.
fn download(address: &str, path: &str, parallel: usize, size: usize) -> f64 {
    let clock = SystemClock::new();
    let clients: Vec<_> = (0..parallel)
        .map(|_| {
            let (address, path) = (address.to_owned(), path.to_owned());
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
                let mut chunk = vec![0; 256 << 10];
                let mut total = 0_usize;
                loop {
                    match stream.read(&mut chunk).unwrap() {
                        0 => return total,
                        count => total += count,
                    }
                }
            })
        })
        .collect();
    let total: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(total > parallel * size, "with heads: {total} bytes");
    total as f64 / 1e6 / clock.elapsed().as_secs_f64()
}

/// `python -m http.server` with a longer queue: its own refuses connections when more than five arrive at once.
const PYTHON: &str = "
import functools, http.server, sys
server = http.server.ThreadingHTTPServer
server.request_queue_size = 128
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[2])
server(('127.0.0.1', int(sys.argv[1])), handler).serve_forever()
";

/// Serves a directory with nginx if it is installed, else with Python; `None` for Python if `sendfile` is to be on.
async fn reference(directory: &Path, sendfile: &str) -> Option<(&'static str, Process, String)> {
    let port = free_port();
    let nginx = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
    if !nginx && sendfile == "on" {
        return None;
    }
    let child = if nginx {
        let work = directory.display();
        let config = format!(
            "daemon off; worker_processes auto; pid {work}/nginx.pid; error_log stderr; user root;
             events {{ worker_connections 512; }}
             http {{ access_log off; sendfile {sendfile}; client_body_temp_path {work}/t1; proxy_temp_path {work}/t2;
                 fastcgi_temp_path {work}/t3; uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
                 server {{ listen 127.0.0.1:{port}; root {work}; }} }}"
        );
        std::fs::write(directory.join("nginx.conf"), config).unwrap();
        Command::new("nginx")
            .args(["-p", "/", "-c"])
            .arg(directory.join("nginx.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    } else {
        Command::new("python3")
            .args(["-c", PYTHON, &port.to_string()])
            .arg(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    SystemClock::new().sleep(Duration::from_millis(700)).await;
    Some((if nginx { "nginx" } else { "python" }, Process(child), format!("127.0.0.1:{port}")))
}

/// Downloads, one and fifty at a time, compared with another server of the same file.
pub async fn downloads() -> Value {
    let run = Run::of(Profile { messages: 400_000, sessions: 2_000, ..Profile::UNPACED }).await;
    let own = run.service.base.strip_prefix("http://").unwrap().to_owned();
    let path = format!("/v1/jobs/{}/archive", run.id);
    let size = run.job["archive"]["size"].as_u64().unwrap() as usize;
    let same = format!("/{}", archive_in(&run.directory()).file_name().unwrap().display());
    let mut all = json!({ "archive_mb": round(size as f64 / 1e6) });
    for parallel in [1, 50] {
        for sendfile in ["off", "on"] {
            let directory = run.directory();
            let Some((name, mut server, address)) = reference(&directory, sendfile).await else { continue };
            // Alternating, because the machine has other tenants.
            let (mut served, mut ratios) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                let own = download(&own, &path, parallel, size);
                served.push(own);
                ratios.push(own / download(&address, &same, parallel, size));
            }
            served.sort_by(f64::total_cmp);
            ratios.sort_by(f64::total_cmp);
            all[format!("own_mb_per_s_beside_sendfile_{sendfile}_{parallel}")] =
                json!(quantile(&served, 0.5));
            all[format!("over_{name}_sendfile_{sendfile}_{parallel}")] = json!(quantile(&ratios, 0.5));
            // SIGKILL would leave nginx's workers behind.
            kill_process(Pid::from_child(&server.0), Signal::TERM).unwrap();
            server.0.wait().unwrap();
        }
    }
    all
}

/// 1,000 event streams, 200 ranged downloads at a time, 2,000 status requests a second and 500 jobs submitted at once,
/// while two jobs run at their full budget.
pub async fn load() -> Value {
    let simulator = Simulator::start(Profile { messages: 700_000, ..Profile::USUAL });
    let data = TempDir::new().unwrap();
    let env = [("MAX_QUEUED_JOBS", "1000"), ("MAX_RUNNING_JOBS", "2")];
    let service = Arc::new(Service::start_with(&simulator, data.path(), free_port(), &env).await);
    let day = simulator.days.1.to_string();
    let small = service.submit(&json!({ "from": day, "to": day })).await;
    service.finished(&small).await;
    let size = service.job(&small).await["archive"]["size"].as_u64().unwrap();
    let jobs = [service.submit(&simulator.everything()).await, service.submit(&simulator.everything()).await];
    service.clock.sleep(Duration::from_secs(5)).await;
    let alone = service.resident_mib();
    let sum = async || requests(&service.job(&jobs[0]).await) + requests(&service.job(&jobs[1]).await);
    let (started, before) = (service.clock.elapsed(), sum().await);

    let mut streams = Vec::new();
    for _ in 0..1_000 {
        let url = service.url(&format!("/v1/jobs/{}/events", jobs[0]));
        streams.push(service.client.get(url).send().await.unwrap());
    }
    let opened = streams.iter().filter(|stream| stream.status() == 200).count();
    let listeners: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                let mut events = 0_usize;
                while let Ok(Some(chunk)) = stream.chunk().await {
                    events += chunk.windows(7).filter(|window| window == b"event: ").count();
                }
                events
            })
        })
        .collect();
    let submitted: Vec<_> = (0..500)
        .map(|_| {
            let call = service.client.post(service.url("/v1/jobs")).json(&json!({ "from": day, "to": day }));
            tokio::spawn(async move { call.send().await.unwrap().status() == 202 })
        })
        .collect();
    let downloads: Vec<_> = (0..200_u64)
        .map(|index| {
            let call = service
                .client
                .get(service.url(&format!("/v1/jobs/{small}/archive")))
                .header("range", format!("bytes={}-", index * size / 400));
            tokio::spawn(async move {
                let answer = call.send().await.unwrap();
                answer.status() == 206 && answer.bytes().await.is_ok()
            })
        })
        .collect();
    let (times, held) = poll(&service, &jobs[0], 2_000, 20).await;
    let (mut accepted, mut downloaded) = (0, 0);
    for task in submitted {
        accepted += usize::from(task.await.unwrap());
    }
    for task in downloads {
        downloaded += usize::from(task.await.unwrap());
    }
    let after = sum().await;
    let wall = (service.clock.elapsed() - started).as_secs_f64();
    let peak = service.peak_mib();
    let share = round((after - before) / (60.0 * wall));
    drop(service);
    let mut events = 0;
    for listener in listeners {
        events += listener.await.unwrap();
    }
    json!({
        "streams_opened": opened, "events_received": events, "jobs_accepted": accepted, "ranges_served": downloaded,
        "status_held_per_s": held, "status_p99_ms": quantile(&times, 0.99), "jobs_share_of_limit": share,
        "resident_mib_before": round(alone), "peak_rss_mib": round(peak),
    })
}

/// Thousands of small jobs with a short retention: memory, open files and disk afterwards.
pub async fn soak() -> Value {
    let simulator =
        Simulator::start(Profile { messages: 2_000, sessions: 20, months: 1, ..Profile::UNPACED });
    let data = TempDir::new().unwrap();
    let env = [("MAX_QUEUED_JOBS", "1000"), ("RETENTION", "1s")];
    let service = Service::start_with(&simulator, data.path(), free_port(), &env).await;
    let day = simulator.days.1.to_string();
    let mut points = Vec::new();
    let mut jobs = 0;
    for _ in 0..6 {
        for _ in 0..10 {
            let mut last = String::new();
            for _ in 0..100 {
                last = service.submit(&json!({ "from": day, "to": day })).await;
            }
            service.finished(&last).await;
            jobs += 100;
        }
        points.push(json!({
            "jobs": jobs, "resident_mib": round(service.resident_mib()), "open_files": service.open_files(),
        }));
    }
    // Retention runs once a minute.
    service.clock.sleep(Duration::from_secs(65)).await;
    let left = std::fs::read_dir(data.path().join("jobs")).unwrap().count();
    let bytes: u64 = ["state.db", "state.db-wal", "audit.jsonl"]
        .iter()
        .filter_map(|name| std::fs::metadata(data.path().join(name)).ok())
        .map(|file| file.len())
        .sum();
    json!({
        "points": points, "directories_left": left, "bytes_of_records_per_job": round(bytes as f64 / f64::from(jobs)),
        "resident_mib_at_the_end": round(service.resident_mib()), "open_files_at_the_end": service.open_files(),
    })
}
