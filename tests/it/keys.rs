//! Who may call, and from where.

use serde_json::{Value, json};
use zoom_chat_reports::http::{ApiKeys, Rights};
use zoom_chat_reports::sim::SimSettings;

use crate::harness::World;

pub fn account() -> SimSettings {
    SimSettings { sessions: 20, messages: 2_000, ..SimSettings::default() }
}

pub const KEY: &str = "operations-0123456789";

pub const VIEWER: &str = "viewer-9876543210abc";

pub async fn guarded() -> World {
    World::with(account(), |settings| {
        let mut keys = ApiKeys::parse(&format!("ops:{KEY}"), Rights::All).unwrap();
        keys.add(ApiKeys::parse(&format!("viewer:{VIEWER}"), Rights::ReadOnly).unwrap()).unwrap();
        settings.http.api_keys = keys;
    })
    .await
}

/// Sends a request with this key; a new job is to extract everything.
pub async fn call(
    world: &World,
    method: reqwest::Method,
    path: String,
    key: &str,
) -> reqwest::Result<reqwest::Response> {
    let body = if path == "/v1/jobs" { world.everything() } else { Value::Null };
    world.client.request(method, world.url(&path)).bearer_auth(key).json(&body).send().await
}

/// Submits a job that extracts everything, with the full key, and waits until it completes.
pub async fn complete_job(world: &World) -> String {
    let created = call(world, reqwest::Method::POST, "/v1/jobs".to_owned(), KEY).await.unwrap();
    assert_eq!(created.status(), 202);
    let id = created.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    completed(world, &id).await;
    id
}

/// Waits until a job completes, with the read-only key.
pub async fn completed(world: &World, id: &str) {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_key_looks_and_downloads_and_changes_nothing() {
    let world = guarded().await;
    let call = |method, path, key| call(&world, method, path, key);
    let id = complete_job(&world).await;
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
    // Each proxy appends what it knows.
    let long = format!("{}, 192.0.2.77", "9".repeat(1_000));
    for (key, forwarded) in [(KEY, "198.51.100.7, 10.0.0.1"), (VIEWER, &long[..])] {
        assert_eq!(list(key, forwarded).await.unwrap().status(), 200);
    }
    let trail = std::fs::read_to_string(world.settings.jobs.data_dir.join("audit.jsonl")).unwrap();
    let lines = trail.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<_> = lines.map(|line| (line["from"].clone(), line["forwarded_for"].clone())).collect();
    let expected = ["198.51.100.7, 10.0.0.1", &long[long.len() - 256..]];
    assert_eq!(told, expected.map(|forwarded| (json!("127.0.0.1"), json!(forwarded))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_neither_a_web_page_nor_a_proxy_reaches_the_service() {
    let world = World::new(account()).await;
    let with =
        |name: &'static str, value: &str| world.client.get(world.url("/v1/jobs")).header(name, value).send();
    // DNS rebinding: a name that its owner has pointed at 127.0.0.1.
    let rebound = with("host", "rebound.example:8080").await.unwrap();
    assert_eq!(rebound.status(), 403);
    assert_eq!(rebound.json::<Value>().await.unwrap()["code"], "not-this-machine");
    assert_eq!(with("origin", "https://page.example").await.unwrap().status(), 403);
    for name in ["x-forwarded-for", "forwarded"] {
        assert_eq!(with(name, "192.0.2.7").await.unwrap().status(), 403, "{name}");
    }
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
