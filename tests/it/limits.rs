//! What one caller cannot do to the others.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use zoom_chat_reports::sim::{FaultAnswer, Match, SimSettings};

use crate::harness::{World, always, clock_at, eventually};
use crate::keys::account;

/// Sends these bytes and returns what comes back until the other side closes or `patience` is over.
fn raw(address: SocketAddr, request: &[u8], patience: Duration) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    // The other side may close before all of it is sent.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_too_large_are_refused() {
    let world = World::new(account()).await;
    let address = world.address();
    let patience = Duration::from_secs(5);
    let many = "x: y\r\n".repeat(300);
    for (what, request) in [
        (
            "a long header",
            format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(64 << 10)),
        ),
        ("many headers", format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{many}\r\n")),
        ("a long path", format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(70 << 10))),
    ] {
        let answer = raw(address, request.as_bytes(), patience);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["431", "414", "400"].contains(&status), "{what}: {answer:.80}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_ids_name_no_job() {
    let world = World::new(account()).await;
    let ids = [
        "..%2f..%2fstate.db",
        "%2e%2e",
        "....//",
        "0199f8d0-6f5e-7c3a-9d55-3f6e2b8a1c4d%00",
        "a%0d%0ab",
        "%ff",
    ];
    for id in ids {
        let request =
            format!("GET /v1/jobs/{id}/archive HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = raw(world.address(), request.as_bytes(), Duration::from_secs(5));
        assert!(answer.starts_with("HTTP/1.1 404"), "{id}: {answer:.80}");
        assert!(answer.contains("application/problem+json"), "{id}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_do_not_keep_others_out() {
    let world = World::with(account(), |settings| settings.http.max_connections = 40).await;
    let address = world.address();
    // Ten times as many as there is room for, each with half a head and no intention of sending more.
    let slow: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: loc").unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        assert_eq!(client.get(world.url("/healthz")).send().await.unwrap().status(), 200);
    }
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_never_ends_is_given_up() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), |_| {}).await;
    let mut stream = TcpStream::connect(world.address()).unwrap();
    let head = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = Vec::new();
    // A space every five seconds, each within the body timeout.
    for _ in 0..50 {
        // It may have been given up just now.
        let _ = stream.write_all(b" ");
        clock.advance(Duration::from_secs(5));
        let _ = stream.read_to_end(&mut answer);
        if !answer.is_empty() {
            break;
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("took too long"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_leave_the_limit_to_jobs() {
    let world = World::new(account()).await;
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let (client, url) = (world.client.clone(), world.url("/v1/check"));
    let first = tokio::spawn(async move { client.post(url).send().await });
    eventually("the first check asks Zoom", || world.sim.stats().list_requests > 0).await;
    assert_eq!(world.post("/v1/check", &Value::Null).await.status(), 429);
    first.abort();
    world.sim.clear_script();
    for _ in 0..1_000 {
        if world.post("/v1/check", &Value::Null).await.status() == 200 {
            return;
        }
        world.clock.sleep(Duration::from_millis(5)).await;
    }
    panic!("its place comes back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_large_jobs_comes_in_small_pages() {
    let world = World::new(account()).await;
    let mut body = world.everything();
    let ids: Vec<String> = (0..1_000).map(|number| format!("{number:0>200}")).collect();
    body["sessions"] = json!({ "ids": ids, "channel_ids": ids });
    let mut all = BTreeSet::new();
    for _ in 0..12 {
        let id = world.submit(&body).await;
        world.cancel(&id).await;
        all.insert(id);
    }
    let (mut listed, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let page = world.get(&format!("/v1/jobs?limit=200{cursor}")).await.bytes().await.unwrap();
        assert!(page.len() < 4 << 20, "{}", page.len());
        let page: Value = serde_json::from_slice(&page).unwrap();
        let ids = page["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned());
        listed.extend(ids);
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(listed, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_streams_leave_half_of_the_connections_to_others() {
    let world = World::with(account(), |settings| settings.http.max_connections = 8).await;
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    let url = format!("/v1/jobs/{id}/events");
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(world.get(&url).await);
    }
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(world.get(&url).await.status(), 429);
    assert_eq!(world.get("/readyz").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_have_their_limit_and_give_their_places_back() {
    let world = World::with(account(), |settings| settings.http.max_event_streams = 3).await;
    // The streams of a job that has ended would end as well.
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    let url = format!("/v1/jobs/{id}/events");
    let streams = [world.get(&url).await, world.get(&url).await, world.get(&url).await];
    let refused = world.get(&url).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "too-many-at-once");
    drop(streams);
    let mut again = world.get(&url).await;
    for _ in 0..200 {
        if again.status() == 200 {
            break;
        }
        world.clock.sleep(Duration::from_millis(10)).await;
        again = world.get(&url).await;
    }
    assert_eq!(again.status(), 200, "places come back when streams end");
}

/// Each long poll holds a connection: some are left for callers that do not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_polls_have_their_limit_and_more_of_them_are_answered_at_once() {
    let world = World::with(account(), |settings| {
        settings.http.max_connections = 16;
        settings.jobs.max_running = 1;
    })
    .await;
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let running = world.submit(&world.everything()).await;
    world.wait_until(&running, |job| job["state"] == "running").await;
    // It does not change: it is queued behind the other.
    let id = world.submit(&world.everything()).await;
    let url = world.url(&format!("/v1/jobs/{id}?wait=60s"));
    let poll = || tokio::spawn(world.client.get(&url).send());
    // Up to a quarter of the connections may be long polls.
    let (answered, _, waiting) = futures_util::future::select_all((0..5).map(|_| poll())).await;
    assert_eq!(answered.unwrap().unwrap().status(), 200);
    world.clock.sleep(Duration::from_millis(200)).await;
    assert!(waiting.iter().all(|poll| !poll.is_finished()), "the others wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_have_their_limit_and_give_their_places_back() {
    let sim = SimSettings { messages: 60_000, ..account() };
    let world = World::with(sim, |settings| settings.http.max_downloads = 2).await;
    let (job, _) = world.run(&world.everything()).await;
    let url = format!("/v1/jobs/{}/archive", job["id"].as_str().unwrap());
    // More than socket buffers hold: as the clients do not read, the responses stay in progress.
    assert!(job["archive"]["size"].as_u64().unwrap() > 8 << 20, "{}", job["archive"]);
    let mut slow: Vec<_> = (0..2).map(|_| TcpStream::connect(world.address()).unwrap()).collect();
    for caller in &mut slow {
        write!(caller, "GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        caller.read_exact(&mut [0]).unwrap();
    }
    let refused = world.get(&url).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "too-many-at-once");
    let head = world.client.head(world.url(&url)).send().await.unwrap();
    assert_eq!(head.status(), 200, "it takes no place");
    drop(slow);
    for _ in 0..200 {
        if world.get(&url).await.status() == 200 {
            return;
        }
        world.clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("places come back when downloads end");
}
