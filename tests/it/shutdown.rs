//! Shutdown is prompt in every phase; what was under way finishes, or goes on after the restart.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use zoom_chat_reports::clock::{Clock, SystemClock};
use zoom_chat_reports::sim::{Match, SimSettings, Simulator};

use crate::caller::is_final;
use crate::harness::{archives_in, eventually, everything, fault, with_headers};
use crate::process::{Service, Setup};

fn account() -> SimSettings {
    SimSettings {
        sessions: 60,
        messages: 24_000,
        latency: Duration::from_millis(5),
        ..SimSettings::default()
    }
}

/// Stops the service and returns how long that took.
async fn stopped(service: Service) -> Duration {
    let clock = SystemClock::new();
    let status = service.terminate().await;
    assert!(status.success(), "{status}");
    clock.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_soon_in_every_phase_and_the_job_ends_as_if_nothing_had_been() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let service = setup.start().await;
    let id = service.submit(&everything(&sim)).await;
    service.finished(&id).await;
    let expected = service.archive(&id).await;
    let mut service = Some(service);
    for phase in ["listing", "fetching", "assembling", "repeating", "in an outage", "at the daily limit"] {
        let mut running = service.take().unwrap();
        let messages = |least: u64| {
            move |job: &Value| job["progress"]["messages"].as_u64().unwrap() > least || is_final(job)
        };
        let waiting = |job: &Value| job["progress"]["waiting_until"].is_string();
        let id = match phase {
            "listing" => {
                let id = running.submit(&everything(&sim)).await;
                running.wait_until(&id, |job| job["state"] == "running").await;
                id
            }
            "fetching" => {
                let id = running.submit(&everything(&sim)).await;
                running.wait_until(&id, messages(5_000)).await;
                id
            }
            "assembling" => {
                // Without a rate limit, assembly begins only when everything has been fetched.
                assert!(running.terminate().await.success());
                running = setup.clone().with("ZOOM_RATE_LIMIT", "0").start().await;
                let id = running.submit(&everything(&sim)).await;
                let directory = setup.data.join("jobs").join(&id);
                let scratch = directory.join("archive.zip.tmp");
                // It may exist only very briefly.
                eventually("it is assembled", || scratch.exists() || !archives_in(&directory).is_empty())
                    .await;
                id
            }
            "repeating" => {
                sim.script(fault(Match::Messages, 9, 1, with_headers(503, &[("retry-after", "600")], "")));
                let id = running.submit(&everything(&sim)).await;
                running.wait_until(&id, |job| job["progress"]["retries"] == 1).await;
                id
            }
            "in an outage" => {
                // Slowly, so that it does not end before.
                sim.set_qps(60);
                let id = running.submit(&everything(&sim)).await;
                running.wait_until(&id, messages(3_000)).await;
                sim.set_down(true);
                running.wait_until(&id, waiting).await;
                id
            }
            _ => {
                sim.set_daily_limit(sim.stats().requests + 40);
                let id = running.submit(&everything(&sim)).await;
                running.wait_until(&id, waiting).await;
                id
            }
        };
        // Whoever follows the job does not hold it up.
        let _events = running.get(&format!("/v1/jobs/{id}/events")).await;
        let took = stopped(running).await;
        assert!(took < Duration::from_secs(5), "{phase}: {took:?}");
        sim.set_down(false);
        sim.set_qps(0);
        sim.set_daily_limit(0);
        sim.clear_script();
        if phase == "at the daily limit" {
            // The job waits for midnight, and would go on waiting after the restart.
            break;
        }
        let again = setup.start().await;
        let job = again.finished(&id).await;
        assert_eq!(job["state"], "completed", "{phase}: {job:#}");
        assert!(again.archive(&id).await.comparable() == expected.comparable(), "{phase}");
        service = Some(again);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_process_at_once() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let service = setup.start().await;
    // A request whose body does not come is waited for.
    let mut caller = TcpStream::connect(service.base.strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
        content-length: 9\r\nexpect: 100-continue\r\n\r\n";
    caller.write_all(head.as_bytes()).unwrap();
    caller.read_exact(&mut [0; 12]).unwrap();
    service.send_sigterm();
    eventually("it is stopping", || setup.log().contains("a second signal ends")).await;
    // Sooner it would pass for an echo of the first.
    service.clock.sleep(Duration::from_secs(1)).await;
    service.send_sigterm();
    assert_eq!(service.exited().await.code(), Some(130));
}

/// Begins a download and reads only a little of it.
fn begin_download(service: &Service, id: &str) -> (TcpStream, Vec<u8>) {
    let address = service.base.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request =
        format!("GET /v1/jobs/{id}/archive HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut first = vec![0; 4_096];
    let read = stream.read(&mut first).unwrap();
    first.truncate(read);
    (stream, first)
}

/// The part of the body received so far.
fn body_of(answer: &[u8]) -> &[u8] {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    &answer[end + 4..]
}

/// The process that reads the log may go away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_holds_nothing_up() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let mut service = setup.ready(setup.spawn_logging_to(Stdio::piped())).await;
    drop(service.child.stderr.take());
    let id = service.submit(&everything(&sim)).await;
    assert_eq!(service.finished(&id).await["state"], "completed");
    stopped(service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_under_way_end_or_are_continued_by_range_after_the_restart() {
    let sim = Simulator::start(SimSettings { messages: 60_000, latency: Duration::ZERO, ..account() })
        .await
        .unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path()).with("ZOOM_RATE_LIMIT", "0").with("SHUTDOWN_GRACE", "6s");
    let mut service = setup.start().await;
    let id = service.submit(&everything(&sim)).await;
    service.finished(&id).await;
    let whole = service.archive(&id).await.bytes;
    assert!(whole.len() > 12 << 20, "more than sockets hold: {}", whole.len());
    let (mut reader, mut read) = begin_download(&service, &id);
    let (mut idler, mut idle) = begin_download(&service, &id);
    let reading = std::thread::spawn(move || {
        // Slowly, so that the signal comes in the middle.
        let mut chunk = vec![0; 1 << 20];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) | Err(_) => return read,
                Ok(count) => read.extend_from_slice(&chunk[..count]),
            }
            std::thread::park_timeout(Duration::from_millis(30));
        }
    });
    let address = service.base.strip_prefix("http://").unwrap().to_owned();
    service.send_sigterm();
    while TcpStream::connect(&address).is_ok() {
        service.clock.sleep(Duration::from_millis(5)).await;
    }
    assert!(service.child.try_wait().unwrap().is_none(), "new connections are refused, downloads go on");
    assert!(service.exited().await.success());
    assert!(body_of(&reading.join().unwrap()) == whole, "who reads gets the whole of it");
    let _ = idler.read_to_end(&mut idle);
    let part = body_of(&idle).to_vec();
    assert!(part.len() < whole.len() && whole.starts_with(&part), "who does not is cut off");
    let service = setup.start().await;
    let url = service.url(&format!("/v1/jobs/{id}/archive"));
    let etag = service.client.head(&url).send().await.unwrap().headers()["etag"].clone();
    let rest = service
        .client
        .get(&url)
        .header("range", format!("bytes={}-", part.len()))
        .header("if-range", etag)
        .send()
        .await
        .unwrap();
    assert_eq!(rest.status(), 206);
    assert!([part, rest.bytes().await.unwrap().to_vec()].concat() == whole);
}
