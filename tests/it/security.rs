//! Who may do what, what is recorded of it, what never leaks, and what one caller cannot do to the others.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use zoom_chat_reports::http::{ApiKeys, Rights};
use zoom_chat_reports::sim::{FaultAnswer, FaultLevel, ItemOptions, Match, SimSettings, Simulator};

use crate::caller::is_final;
use crate::harness::{World, always, archive_in, clock_at, eventually, fault};
use crate::process::Setup;

fn account() -> SimSettings {
    SimSettings { sessions: 20, messages: 2_000, ..SimSettings::default() }
}

const KEY: &str = "operations-0123456789";
const VIEWER: &str = "viewer-9876543210abc";

async fn guarded() -> World {
    World::with(account(), |settings| {
        let mut keys = ApiKeys::parse(&format!("ops:{KEY}"), Rights::All).unwrap();
        keys.add(ApiKeys::parse(&format!("viewer:{VIEWER}"), Rights::ReadOnly).unwrap()).unwrap();
        settings.http.api_keys = keys;
    })
    .await
}

/// Anybody can send it: it is recorded, cut short, and believed by nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_says_about_the_caller_is_recorded_and_not_believed() {
    let world = guarded().await;
    let list = |key: &str, forwarded: &str| {
        let request = world.client.get(world.url("/v1/jobs")).bearer_auth(key);
        request.header("x-forwarded-for", forwarded).send()
    };
    // Wrong keys count for the address that sends them, whatever it says.
    for number in 0..=20 {
        let refused = list("guess-0123456789abc", &format!("192.0.2.{number}")).await.unwrap();
        assert_eq!(refused.status(), if number < 20 { 401 } else { 429 }, "{number}");
    }
    let long = "9".repeat(1_000);
    for (key, forwarded) in [(KEY, "198.51.100.7, 10.0.0.1"), (VIEWER, &long[..])] {
        assert_eq!(list(key, forwarded).await.unwrap().status(), 200);
    }
    let trail = std::fs::read_to_string(world.settings.jobs.data_dir.join("audit.jsonl")).unwrap();
    let lines = trail.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<_> = lines.map(|line| (line["from"].clone(), line["forwarded_for"].clone())).collect();
    let expected = ["198.51.100.7, 10.0.0.1", &long[..256]];
    assert_eq!(told, expected.map(|forwarded| (json!("127.0.0.1"), json!(forwarded))));
}

/// Waits until a job completes, with the read-only key.
async fn completed(world: &World, id: &str) {
    let url = world.url(&format!("/v1/jobs/{id}?wait=5s"));
    for _ in 0..1_000 {
        let job: Value =
            world.client.get(&url).bearer_auth(VIEWER).send().await.unwrap().json().await.unwrap();
        if job["state"] == "completed" {
            return;
        }
    }
    panic!("it does not complete");
}

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
async fn a_read_only_key_looks_and_downloads_and_changes_nothing() {
    let world = guarded().await;
    let call = |method: reqwest::Method, path: String, key: &str| {
        let body = if path == "/v1/jobs" { world.everything() } else { Value::Null };
        world.client.request(method, world.url(&path)).bearer_auth(key).json(&body).send()
    };
    let created = call(reqwest::Method::POST, "/v1/jobs".to_owned(), KEY).await.unwrap();
    assert_eq!(created.status(), 202);
    let id = created.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    completed(&world, &id).await;
    for path in ["", "/failures", "/events", "/archive"] {
        let answer = call(reqwest::Method::GET, format!("/v1/jobs/{id}{path}"), VIEWER).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    for (method, path) in [
        (reqwest::Method::POST, "/v1/jobs".to_owned()),
        (reqwest::Method::POST, format!("/v1/jobs/{id}/cancel")),
        (reqwest::Method::POST, format!("/v1/jobs/{id}/retry")),
        (reqwest::Method::DELETE, format!("/v1/jobs/{id}")),
        (reqwest::Method::POST, "/v1/check".to_owned()),
    ] {
        let answer = call(method, path.clone(), VIEWER).await.unwrap();
        assert_eq!(answer.status(), 403, "{path}");
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], "read-only-key");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_keys_are_counted_and_a_right_one_is_always_let_in() {
    let world = guarded().await;
    let try_key = |key: &str| world.client.get(world.url("/v1/jobs")).bearer_auth(key).send();
    let mut statuses = Vec::new();
    for _ in 0..25 {
        statuses.push(try_key("guess-0123456789abc").await.unwrap().status().as_u16());
    }
    assert_eq!(statuses[..20], [401; 20]);
    assert_eq!(statuses[20..], [429; 5]);
    let refused = try_key("guess-0123456789abc").await.unwrap();
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "too-many-attempts");
    assert_eq!(try_key(KEY).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_a_web_page_cannot_reach_the_service() {
    let world = World::new(account()).await;
    let with =
        |name: &'static str, value: &str| world.client.get(world.url("/v1/jobs")).header(name, value).send();
    // DNS rebinding: a name that its owner has pointed at 127.0.0.1.
    let rebound = with("host", "rebound.example:8080").await.unwrap();
    assert_eq!(rebound.status(), 403);
    assert_eq!(rebound.json::<Value>().await.unwrap()["code"], "not-this-machine");
    assert_eq!(with("origin", "https://page.example").await.unwrap().status(), 403);
    assert_eq!(with("accept", "*/*").await.unwrap().status(), 200);
    // Nor can it fill the disk with refused requests.
    let path = format!("/v1/jobs/{}/cancel", "x".repeat(20_000));
    for _ in 0..50 {
        let refused =
            world.client.post(world.url(&path)).header("origin", "https://page.example").send().await;
        assert_eq!(refused.unwrap().status(), 403);
    }
    let trail = world.settings.jobs.data_dir.join("audit.jsonl");
    assert!(std::fs::metadata(&trail).unwrap().len() < 1_000);
    let strange = world.client.post(world.url(&path)).send().await.unwrap();
    assert_eq!(strange.status(), 404);
    let text = std::fs::read_to_string(&trail).unwrap();
    assert!(text.len() < 2_000 && text.lines().last().unwrap().contains("\"job\":null"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_may_call_unless_its_origin_is_configured() {
    let origin = "https://tools.example.org";
    for configured in [false, true] {
        let world = World::with(account(), |settings| {
            settings.http.api_keys = ApiKeys::parse(KEY, Rights::All).unwrap();
            if configured {
                settings.http.cors_origins = vec![origin.parse().unwrap()];
            }
        })
        .await;
        let preflight = world
            .client
            .request(reqwest::Method::OPTIONS, world.url("/v1/jobs"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .send()
            .await
            .unwrap();
        assert_eq!(preflight.status(), if configured { 200 } else { 405 }, "nothing else takes OPTIONS");
        let allowed =
            preflight.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!(allowed, configured.then_some(origin));
        let other = world
            .client
            .get(world.url("/v1/jobs"))
            .bearer_auth(KEY)
            .header("origin", "https://other.example")
            .send()
            .await
            .unwrap();
        assert!(other.headers().get("access-control-allow-origin").is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_carries_its_security_headers_and_the_documentation_a_strict_policy() {
    let world = World::new(account()).await;
    for path in ["/healthz", "/v1/jobs", "/nothing", "/docs/", "/openapi.json"] {
        let answer = world.get(path).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(answer.headers()[name], value, "{path}");
        }
        let policies: Vec<_> = answer.headers().get_all("content-security-policy").iter().collect();
        assert_eq!(policies.len(), 1, "{path}");
        let policy = policies[0].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}"
        );
        assert!(!policy.contains("script-src 'self' 'unsafe"), "{path}: {policy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_can_have_an_address_of_their_own() {
    let world = World::with(account(), |settings| {
        settings.http.api_keys = ApiKeys::parse(KEY, Rights::All).unwrap();
        settings.http.metrics_listen = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    let here = world.client.get(world.url("/metrics")).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(here.status(), 404);
    let document: Value = world.get("/openapi.json").await.json().await.unwrap();
    assert!(document["paths"]["/metrics"].is_null() && document["paths"]["/v1/jobs"].is_object());
    let metrics = world.metrics_address().unwrap();
    let there = world.client.get(format!("http://{metrics}/metrics")).send().await.unwrap();
    assert!(there.text().await.unwrap().contains("zcr_jobs_running"));
    let jobs = world.client.get(format!("http://{metrics}/v1/jobs")).send().await.unwrap();
    assert_eq!(jobs.status(), 404, "nothing else is offered there");
    let posted = world.client.post(format!("http://{metrics}/metrics")).send().await.unwrap();
    assert_eq!(posted.status(), 405);
    assert_eq!(posted.headers()["content-type"], "application/problem+json");
    assert!(posted.headers().contains_key("x-request-id"));
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
        let answer = raw(address, request.as_bytes(), patience);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_trail_tells_who_did_what_with_which_job() {
    let world = guarded().await;
    let send = |method: reqwest::Method, path: String, key: &str| {
        let body = if path == "/v1/jobs" { world.everything() } else { Value::Null };
        world.client.request(method, world.url(&path)).bearer_auth(key).json(&body).send()
    };
    let created = send(reqwest::Method::POST, "/v1/jobs".to_owned(), KEY).await.unwrap();
    let id = created.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    completed(&world, &id).await;
    for _ in 0..5 {
        send(reqwest::Method::GET, format!("/v1/jobs/{id}"), VIEWER).await.unwrap();
    }
    send(reqwest::Method::HEAD, format!("/v1/jobs/{id}/archive"), VIEWER).await.unwrap();
    // However the id is spelt.
    let escaped = format!("%{:02x}{}", id.as_bytes()[0], &id[1..]);
    for name in [id.clone(), escaped, id.to_uppercase()] {
        let answer = send(reqwest::Method::GET, format!("/v1/jobs/{name}/archive"), VIEWER).await.unwrap();
        assert_eq!(answer.status(), 200, "{name}");
    }
    send(reqwest::Method::POST, format!("/v1/jobs/{id}/cancel"), VIEWER).await.unwrap();
    send(reqwest::Method::POST, format!("/v1/jobs/{id}/cancel"), KEY).await.unwrap();
    send(reqwest::Method::DELETE, format!("/v1/jobs/{id}"), KEY).await.unwrap();
    send(reqwest::Method::DELETE, format!("/v1/jobs/{id}"), "guess-0123456789abc").await.unwrap();
    let text = std::fs::read_to_string(world.settings.jobs.data_dir.join("audit.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["job"], id.as_str(), "{line}");
            assert_eq!(line["from"], "127.0.0.1");
            assert!(line["at"].as_str().unwrap().ends_with('Z') && line["request_id"].is_string(), "{line}");
            (
                line["key"].as_str().unwrap(),
                line["action"].as_str().unwrap(),
                line["status"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("ops", "create", 202),
        ("viewer", "read", 200),
        ("viewer", "download", 200),
        ("viewer", "download", 200),
        ("viewer", "download", 200),
        ("viewer", "cancel", 403),
        ("ops", "cancel", 409),
        ("ops", "delete", 204),
    ];
    assert_eq!(told, expected, "polling is one read a minute; a wrong key is only logged");
    assert_eq!(mode_of(&world.settings.jobs.data_dir.join("audit.jsonl")), 0o600);
}

fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_is_for_its_owner_only() {
    let world = World::new(account()).await;
    let id = world.submit(&world.everything()).await;
    world.finished(&id).await;
    let data = &world.settings.jobs.data_dir;
    assert_eq!(mode_of(data), 0o700);
    // On its own as well, in case the data directory existed before with wider permissions.
    let job = world.directory_of(&id);
    assert_eq!(mode_of(&job), 0o700);
    let of_the_job = [archive_in(&job), job.join("capture.db"), job.join("capture.segments")];
    for file in of_the_job.iter().chain(&[data.join("state.db"), data.join("audit.jsonl")]) {
        assert_eq!(mode_of(file), 0o600, "{}", file.display());
    }
}

/// Searches everything that a nasty run says and leaves behind, except capture and archive, which are meant to hold chats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_chats_are_nowhere_but_in_capture_and_archive() {
    let sim =
        SimSettings { faults: FaultLevel::Nasty, messages: 4_000, sessions: 60, hostile: false, ..account() };
    let sim = Simulator::start(sim).await.unwrap();
    sim.script(fault(Match::Messages, 20, 1, FaultAnswer::ExpiredToken));
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path())
        .with("API_KEYS", &format!("ops:{KEY}"))
        .with("READ_ONLY_API_KEYS", &format!("viewer:{VIEWER}"))
        .with("RUST_LOG", "trace")
        .with("LOG_FORMAT", "json");
    let service = setup.start().await;
    let data = sim.dataset();
    let body =
        json!({ "from": data.first_day().to_string(), "to": data.last_day().to_string(), "label": "case 1" });
    let call = |method: reqwest::Method, path: String| {
        service.client.request(method, service.url(&path)).bearer_auth(KEY)
    };
    let created: Value = call(reqwest::Method::POST, "/v1/jobs".to_owned())
        .json(&body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    let of_viewer = service.client.post(service.url("/v1/jobs")).bearer_auth(VIEWER).json(&body);
    let refused = of_viewer.send().await.unwrap();
    assert_eq!(refused.status(), 403);
    let mut said = vec![refused.text().await.unwrap()];
    let mut state = "queued".to_owned();
    while ["queued", "running"].contains(&&state[..]) {
        let text = call(reqwest::Method::GET, format!("/v1/jobs/{id}?wait=2s"))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        state = serde_json::from_str::<Value>(&text).unwrap()["state"].as_str().unwrap().to_owned();
        said.push(text);
    }
    assert_eq!(state, "completed_with_failures");
    for path in ["/metrics".to_owned(), format!("/v1/jobs/{id}/failures"), "/v1/jobs".to_owned()] {
        said.push(call(reqwest::Method::GET, path).send().await.unwrap().text().await.unwrap());
    }
    said.push(
        call(reqwest::Method::POST, "/v1/check".to_owned()).send().await.unwrap().text().await.unwrap(),
    );
    let tokens = sim.access_tokens();
    assert!(tokens.len() > 1, "tokens were renewed on the way");
    assert!(service.terminate().await.success());

    let mut searched: Vec<(String, Vec<u8>)> = vec![("log".to_owned(), setup.log().into_bytes())];
    searched.extend(said.into_iter().map(|text| ("answer".to_owned(), text.into_bytes())));
    let mut directories = vec![setup.data.clone()];
    while let Some(directory) = directories.pop() {
        for path in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                directories.push(path);
            } else if !name.starts_with("capture.") && !name.starts_with("archive-") {
                searched.push((name, std::fs::read(path).unwrap()));
            }
        }
    }
    for name in ["state.db", "audit.jsonl"] {
        assert!(searched.iter().any(|(searched, _)| searched == name), "{name}");
    }
    let mut secrets: BTreeSet<String> = tokens.into_iter().collect();
    let SimSettings { client_id, client_secret, .. } = SimSettings::default();
    // Also in the form in which it is sent.
    let basic = BASE64_STANDARD.encode(format!("{client_id}:{client_secret}"));
    secrets.extend([KEY.to_owned(), VIEWER.to_owned(), client_secret, basic]);
    for index in data.sessions_listed(data.first_day(), data.last_day()).take(30) {
        let session = data.session(index);
        secrets.extend((session.name.len() > 12).then_some(session.name));
        for (_, text) in data.items(index, data.first_day(), data.last_day(), ItemOptions::default()).take(5)
        {
            let message: Value = serde_json::from_str(&text).unwrap();
            secrets.extend(message["message"].as_str().filter(|text| text.len() > 12).map(str::to_owned));
            secrets.extend(message["sender"].as_str().map(str::to_owned));
        }
    }
    // Also as escaped in JSON.
    let escaped: Vec<_> = secrets.iter().map(|secret| Value::from(&secret[..]).to_string()).collect();
    secrets.extend(escaped.iter().map(|secret| secret.trim_matches('"').to_owned()));
    assert!(secrets.len() > 50, "there is something to look for: {}", secrets.len());
    for (name, bytes) in &searched {
        let text = String::from_utf8_lossy(bytes);
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{secret:?} is in {name}");
        }
    }
}

/// When a caller hangs up before the answer comes, the request is still carried out in full, or never begun, and the trail
/// shows which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_began_and_did_not_wait_for_is_done_to_its_end() {
    const CALLS: usize = 40;
    let world = guarded().await;
    let body = world.everything().to_string();
    let request = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    for call in 0..CALLS {
        let mut caller = TcpStream::connect(world.address()).unwrap();
        caller.write_all(request.as_bytes()).unwrap();
        world.clock.sleep(Duration::from_micros(call as u64 * 50)).await;
    }
    let jobs = || async {
        let url = world.url("/v1/jobs?limit=200");
        let page: Value =
            world.client.get(&url).bearer_auth(VIEWER).send().await.unwrap().json().await.unwrap();
        page["items"].as_array().unwrap().clone()
    };
    let mut there = jobs().await;
    while !there.iter().all(is_final) {
        world.clock.sleep(Duration::from_millis(50)).await;
        there = jobs().await;
    }
    assert!(there.iter().all(|job| job["state"] == "completed"), "{there:#?}");
    assert!(there.len() > CALLS / 4, "{}", there.len());
    let trail = std::fs::read_to_string(world.settings.jobs.data_dir.join("audit.jsonl")).unwrap();
    assert_eq!(trail.lines().filter(|line| line.contains("\"create\"")).count(), there.len());
}
