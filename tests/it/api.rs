//! The HTTP contract, exactly.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zoom_chat_reports::http::{ApiKeys, Rights};
use zoom_chat_reports::sim::{FaultAnswer, Match, SimSettings};

use crate::harness::{NO_PERMISSION, World, always, clock_at, removed, status};

fn account() -> SimSettings {
    SimSettings { sessions: 12, messages: 400, ..SimSettings::default() }
}

async fn problem(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.headers().contains_key("x-request-id"));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    for member in ["type", "title", "detail", "code"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {body}");
    }
    (status, body["code"].as_str().unwrap().to_owned())
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_error_is_a_problem_with_a_stable_code() {
    let world = World::new(account()).await;
    let post = |body: &'static str, kind: &'static str| {
        world.client.post(world.url("/v1/jobs")).header("content-type", kind).body(body).send()
    };
    let no_kind = world.client.post(world.url("/v1/jobs")).body("{}").send().await.unwrap();
    assert_eq!(problem(no_kind).await, is(415, "unsupported-media-type"));
    assert_eq!(problem(post("{}", "text/plain").await.unwrap()).await, is(415, "unsupported-media-type"));
    assert_eq!(problem(post("{", "application/json").await.unwrap()).await, is(400, "malformed-json"));
    assert_eq!(problem(post("{}", "application/json").await.unwrap()).await, is(422, "invalid-request"));
    let huge = world
        .client
        .post(world.url("/v1/jobs"))
        .header("content-type", "application/json")
        .body(" ".repeat((1 << 20) + 1))
        .send()
        .await
        .unwrap();
    assert_eq!(problem(huge).await, is(413, "body-too-large"));
    for path in ["/nowhere", "/docs/nowhere", "/docs/%ff"] {
        assert_eq!(problem(world.get(path).await).await, is(404, "not-found"), "{path}");
    }
    let job = world.submit(&world.everything()).await;
    for no_id in ["abc".to_owned(), format!("{{{job}}}"), format!("urn:uuid:{job}"), job.replace('-', "")] {
        let answer = world.get(&format!("/v1/jobs/{no_id}")).await;
        assert_eq!(problem(answer).await, is(404, "job-not-found"), "{no_id}");
    }
    assert_eq!(world.get(&format!("/v1/jobs/{}", job.to_uppercase())).await.status(), 200);
    let unknown = "/v1/jobs/0199f8d0-6f5e-7c3a-9d55-3f6e2b8a1c4d";
    assert_eq!(problem(world.get(unknown).await).await, is(404, "job-not-found"));
    for path in ["events", "failures", "archive"] {
        assert_eq!(problem(world.get(&format!("{unknown}/{path}")).await).await, is(404, "job-not-found"));
    }
    for path in ["cancel", "retry"] {
        let response = world.post(&format!("{unknown}/{path}"), &Value::Null).await;
        assert_eq!(problem(response).await, is(404, "job-not-found"));
    }
    let put = world.client.put(world.url("/v1/jobs")).send().await.unwrap();
    assert!(put.headers()["allow"].to_str().unwrap().contains("POST"));
    assert_eq!(problem(put).await, is(405, "method-not-allowed"));
    assert_eq!(problem(world.get("/v1/jobs?cursor=%2F").await).await, is(400, "invalid-request"));
    assert_eq!(problem(world.get("/v1/jobs?limit=x").await).await, is(400, "invalid-request"));
    assert_eq!(problem(world.get("/v1/jobs?state=lost").await).await, is(400, "invalid-request"));
    for (parameters, field, says) in [
        ("sate=failed", "sate", "is not a known parameter; known parameters: state, limit, cursor"),
        ("limit=1&limit=2", "limit", "occurs more than once"),
        ("state=%ff", "state", "must be one of queued"),
        ("", "label", "this request takes none"),
    ] {
        let asked = match parameters {
            "" => world.post("/v1/jobs?label=x", &world.everything()).await,
            _ => world.get(&format!("/v1/jobs?{parameters}")).await,
        };
        let told: Value = asked.json().await.unwrap();
        let error = &told["errors"][0];
        let message = error["message"].as_str().unwrap();
        assert!(error["field"] == field && message.contains(says) && !message.starts_with(field), "{told:#}");
    }
    for (method, path) in [("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")] {
        let url = world.url(&format!("{unknown}{path}?only=x"));
        let response = world.client.request(method.parse().unwrap(), url).send().await.unwrap();
        assert_eq!(problem(response).await, is(400, "invalid-request"), "{method} {path}");
    }
    let body = json!({ "from": "2020-01-01", "to": "2099-01-01" });
    let errors: Value = world.post("/v1/jobs", &body).await.json().await.unwrap();
    let fields: Vec<_> =
        errors["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["from", "to"]);
    assert!(errors["detail"].as_str().unwrap().contains("oldest possible date"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_created_once_for_an_idempotency_key() {
    let world = World::new(account()).await;
    let post = |label: &'static str| {
        let mut body = world.everything();
        body["label"] = json!(label);
        world.client.post(world.url("/v1/jobs")).header("idempotency-key", "k1").json(&body).send()
    };
    let first = post("a").await.unwrap();
    assert_eq!(first.status(), 202);
    let location = first.headers()["location"].to_str().unwrap().to_owned();
    let first: Value = first.json().await.unwrap();
    assert_eq!(location, format!("/v1/jobs/{}", first["id"].as_str().unwrap()));
    let again: Value = post("a").await.unwrap().json().await.unwrap();
    assert_eq!(first["id"], again["id"]);
    assert_eq!(problem(post("b").await.unwrap()).await, is(409, "idempotency-conflict"));
    world.finished(first["id"].as_str().unwrap()).await;
}

/// A key is its caller's own, and outlives the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_belongs_to_the_api_key_it_came_with() {
    let (one, other) = ("one-0123456789abcdef", "other-0123456789abcdef");
    let keys = ApiKeys::parse(&format!("one:{one},other:{other}"), Rights::All).unwrap();
    let mut world = World::with(account(), |settings| settings.http.api_keys = keys).await;
    let post = async |world: &World, key: &str| {
        let request =
            world.client.post(world.url("/v1/jobs")).bearer_auth(key).header("idempotency-key", "k");
        let job: Value = request.json(&world.everything()).send().await.unwrap().json().await.unwrap();
        job["id"].as_str().unwrap().to_owned()
    };
    let (first, second) = (post(&world, one).await, post(&world, other).await);
    assert_ne!(first, second);
    world.restart().await;
    assert_eq!([post(&world, one).await, post(&world, other).await], [first, second]);
}

/// The answer to a request sent shortly before midnight was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_gets_its_job_also_when_its_days_have_left_the_six_months() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), |_| {}).await;
    let body = json!({ "from": "2026-05-24", "to": "2026-05-30" });
    let post = |key: &'static str| {
        world.client.post(world.url("/v1/jobs")).header("idempotency-key", key).json(&body).send()
    };
    let first: Value = post("k").await.unwrap().json().await.unwrap();
    world.finished(first["id"].as_str().unwrap()).await;
    clock.advance(Duration::from_secs(12 * 3_600));
    let again = post("k").await.unwrap();
    assert_eq!(again.status(), 202);
    assert_eq!(again.json::<Value>().await.unwrap()["id"], first["id"]);
    assert_eq!(problem(post("another").await.unwrap()).await, is(422, "invalid-request"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_outside_the_document_is_refused() {
    let world = World::new(account()).await;
    let longest = "k".repeat(255);
    let too_long = "k".repeat(256);
    for (key, status) in
        [("", 400), ("a\tb", 400), ("schlüssel", 400), (&*too_long, 400), (&*longest, 202), ("a b", 202)]
    {
        let key = HeaderValue::from_bytes(key.as_bytes()).unwrap();
        let post = world.client.post(world.url("/v1/jobs")).header("idempotency-key", &key);
        let answer = post.json(&world.everything()).send().await.unwrap();
        assert_eq!(answer.status(), status, "{key:?}");
        if status == 400 {
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["errors"][0]["field"], "Idempotency-Key", "{key:?}");
        }
    }
    let two = world.client.post(world.url("/v1/jobs")).header("idempotency-key", "a");
    let two = two.header("idempotency-key", "b").json(&world.everything()).send().await.unwrap();
    assert_eq!(two.status(), 400, "nobody could tell which one is meant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_job_has_every_member_of_the_contract() {
    let world = World::new(account()).await;
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    for name in ["events", "failures", "archive", "cancel", "retry"] {
        assert_eq!(job["links"][name], format!("/v1/jobs/{id}/{name}"));
    }
    assert_eq!(job["links"]["self"], format!("/v1/jobs/{id}"));
    assert_eq!(job["archive"]["href"], job["links"]["archive"]);
    let members: Vec<_> = job.as_object().unwrap().keys().map(String::as_str).collect();
    insta::assert_json_snapshot!("job_members", members);
    let members: Vec<_> = job["progress"].as_object().unwrap().keys().map(String::as_str).collect();
    insta::assert_json_snapshot!("progress_members", members);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_page_newest_first_and_filter_by_state() {
    let world = World::new(account()).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.submit(&world.everything()).await);
    }
    for id in &ids {
        world.finished(id).await;
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page: Value = world.get(&format!("/v1/jobs?limit=2{cursor}")).await.json().await.unwrap();
        seen.extend(
            page["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
    let completed: Value = world.get("/v1/jobs?state=completed&limit=9999").await.json().await.unwrap();
    assert_eq!(completed["items"].as_array().unwrap().len(), 5);
    let failed: Value = world.get("/v1/jobs?state=failed").await.json().await.unwrap();
    assert_eq!(failed, json!({ "items": [], "next_cursor": null }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_downloads_whole_conditionally_and_by_range() {
    let world = World::new(account()).await;
    let (job, archive) = world.run(&world.everything()).await;
    let id = job["id"].as_str().unwrap();
    let url = world.url(&format!("/v1/jobs/{id}/archive"));
    let whole = world.client.get(&url).send().await.unwrap();
    let headers = whole.headers().clone();
    let etag = headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(etag, format!("\"{}\"", job["archive"]["sha256"].as_str().unwrap()));
    assert_eq!(headers["content-type"], "application/zip");
    assert_eq!(headers["accept-ranges"], "bytes");
    let digest = BASE64_STANDARD.encode(Sha256::digest(&archive.bytes));
    assert_eq!(headers["repr-digest"], format!("sha-256=:{digest}:"));
    let (from, to) = (world.sim.dataset().first_day(), world.sim.dataset().last_day());
    let name = format!("attachment; filename=\"zoom-chat-reports_{from}_{to}_{id}.zip\"");
    assert_eq!(headers["content-disposition"], name);
    assert_eq!(headers["content-length"].to_str().unwrap(), job["archive"]["size"].to_string());
    let head = world.client.head(&url).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-length"]),
        (200, &headers["content-length"])
    );
    let get = |name: &'static str, value: String| world.client.get(&url).header(name, value).send();
    for request in [world.client.get(&url), world.client.head(&url)] {
        let known = request.header("if-none-match", etag.clone()).send().await.unwrap();
        assert_eq!((known.status().as_u16(), known.headers().get("content-length")), (304, None));
    }
    assert_eq!(get("if-none-match", "\"other\"".to_owned()).await.unwrap().status(), 200);
    assert_eq!(get("if-match", etag.clone()).await.unwrap().status(), 200);
    let other = world.client.get(&url).header("if-match", "\"other\"").header("range", "bytes=10-19");
    assert_eq!(problem(other.send().await.unwrap()).await, is(412, "precondition-failed"));
    let weak = get("if-match", format!("W/{etag}")).await.unwrap();
    assert_eq!(weak.status(), 412, "it must be the same byte for byte");
    let part = get("range", "bytes=10-19".to_owned()).await.unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(
        part.headers()["content-range"].to_str().unwrap(),
        format!("bytes 10-19/{}", archive.bytes.len())
    );
    assert_eq!(&part.bytes().await.unwrap()[..], &archive.bytes[10..20]);
    let tail = get("range", "bytes=-7".to_owned()).await.unwrap();
    assert_eq!(&tail.bytes().await.unwrap()[..], &archive.bytes[archive.bytes.len() - 7..]);
    let beyond = get("range", format!("bytes={}-", archive.bytes.len())).await.unwrap();
    assert_eq!(
        beyond.headers()["content-range"].to_str().unwrap(),
        format!("bytes */{}", archive.bytes.len())
    );
    assert_eq!(problem(beyond).await, is(416, "range-not-satisfiable"));
    let ranged = |condition: String| {
        world.client.get(&url).header("range", "bytes=0-0").header("if-range", condition).send()
    };
    assert_eq!(ranged(etag).await.unwrap().status(), 206);
    assert_eq!(ranged("\"old\"".to_owned()).await.unwrap().status(), 200);
}

/// Whatever is sent while a new archive replaces the old one matches its ETag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_its_own_also_while_a_retry_replaces_it() {
    let world = World::new(account()).await;
    world.sim.script(always(Match::Session(0), status(500, "")));
    let id = world.submit(&world.everything()).await;
    world.finished(&id).await;
    let path = format!("/v1/jobs/{id}/archive");
    let retrying = async {
        for _ in 0..100 {
            world.retried(&id).await;
        }
        panic!("the archives are the same");
    };
    let downloading = async {
        let mut seen = BTreeSet::new();
        loop {
            let response = world.get(&path).await;
            assert_eq!(response.status(), 200);
            let etag = response.headers()["etag"].to_str().unwrap().to_owned();
            let body = response.bytes().await.unwrap();
            assert_eq!(etag, format!("\"{}\"", hex::encode(Sha256::digest(&body))));
            seen.insert(etag);
            if seen.len() > 4 {
                return;
            }
        }
    };
    tokio::select! {
        () = retrying => {}
        () = downloading => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_job_has_no_archive_and_cannot_be_deleted_and_a_deleted_one_is_gone() {
    // Requests that hang are given up soon.
    let world = World::with(account(), |settings| settings.zoom.idle_timeout = Duration::from_secs(1)).await;
    // Keeps the job from ending by itself.
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["state"] == "running").await;
    let early = world.get(&format!("/v1/jobs/{id}/archive")).await;
    assert!(early.headers().contains_key("retry-after"));
    assert_eq!(problem(early).await, is(409, "archive-not-ready"));
    let delete = || world.client.delete(world.url(&format!("/v1/jobs/{id}"))).send();
    assert_eq!(problem(delete().await.unwrap()).await, is(409, "wrong-state"));
    assert_eq!(
        problem(world.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await).await,
        is(409, "wrong-state")
    );
    world.sim.clear_script();
    assert_eq!(world.finished(&id).await["state"], "completed");
    for (action, why) in [("cancel", "in state completed cannot be cancelled"), ("retry", "nothing to retry")]
    {
        let refused = world.post(&format!("/v1/jobs/{id}/{action}"), &Value::Null).await;
        assert_eq!(refused.status(), 409);
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["code"], "wrong-state");
        assert!(refused["detail"].as_str().unwrap().contains(why), "{refused}");
    }
    assert_eq!(delete().await.unwrap().status(), 204);
    assert_eq!(problem(delete().await.unwrap()).await, is(404, "job-not-found"));
    assert_eq!(problem(world.get(&format!("/v1/jobs/{id}")).await).await, is(404, "job-not-found"));
    assert_eq!(
        std::fs::read_dir(world.settings.jobs.data_dir.join("jobs")).unwrap().count(),
        0,
        "its files are gone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_with_304_without_a_change_and_at_once_with_another_etag() {
    let world = World::new(account()).await;
    let id = world.submit(&world.everything()).await;
    world.finished(&id).await;
    let job = world.get(&format!("/v1/jobs/{id}")).await;
    let etag = job.headers()["etag"].clone();
    let wait = |etag: Option<reqwest::header::HeaderValue>| {
        let request = world.client.get(world.url(&format!("/v1/jobs/{id}?wait=300ms")));
        match etag {
            Some(etag) => request.header("if-none-match", etag).send(),
            None => request.send(),
        }
    };
    let unchanged = wait(Some(etag.clone())).await.unwrap();
    assert_eq!((unchanged.status().as_u16(), &unchanged.headers()["etag"]), (304, &etag));
    assert_eq!(wait(None).await.unwrap().status(), 200, "without a validator the wait ends with the job");
    assert_eq!(wait(Some("\"old\"".parse().unwrap())).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_of_a_change_at_once() {
    let world = World::with(account(), |settings| settings.jobs.max_running = 1).await;
    world.sim.set_qps(1);
    let running = world.submit(&world.everything()).await;
    let queued = world.submit(&world.everything()).await;
    let path = format!("/v1/jobs/{queued}");
    let etag = world.get(&path).await.headers()["etag"].clone();
    let wait = world.client.get(world.url(&format!("{path}?wait=60s"))).header("if-none-match", &etag).send();
    let cancel = async {
        tokio::task::yield_now().await;
        world.post(&format!("{path}/cancel"), &Value::Null).await
    };
    let (waited, _) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), wait), cancel);
    let waited = waited.expect("not at the end of the minute").unwrap();
    assert_ne!(waited.headers()["etag"], etag);
    assert_eq!(waited.json::<Value>().await.unwrap()["state"], "cancelled");
    world.cancel(&running).await;
}

/// The events of a stream, each with its job.
fn events_of(text: &str) -> Vec<(&str, Value)> {
    text.split("\n\n")
        .filter(|event| event.contains("event:"))
        .map(|event| {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            (field("event:"), serde_json::from_str(field("data:")).unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_begin_with_progress_and_end_with_a_final_state() {
    let world = World::new(SimSettings { latency: Duration::from_millis(100), ..account() }).await;
    let id = world.submit(&world.everything()).await;
    let stream = world.get(&format!("/v1/jobs/{id}/events")).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(stream.headers()["x-accel-buffering"], "no", "for nginx");
    let text = stream.text().await.unwrap();
    let events = events_of(&text);
    assert_eq!(events[0].0, "progress");
    let (last, job) = events.last().unwrap();
    assert_eq!((*last, job["state"].as_str()), ("state", Some("completed")));
    let after: String = world.get(&format!("/v1/jobs/{id}/events")).await.text().await.unwrap();
    let names: Vec<_> = events_of(&after).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["progress", "state"], "who comes late is told of the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_at_most_twice_a_second_and_tell_every_state() {
    let world = World::with(account(), |settings| {
        settings.jobs.max_running = 1;
        settings.zoom.limit = Some(4.0);
    })
    .await;
    // Keeps the other job waiting.
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let first = world.submit(&world.everything()).await;
    world.wait_until(&first, |job| job["state"] == "running").await;
    let id = world.submit(&world.one_window().0).await;
    let stream = world.get(&format!("/v1/jobs/{id}/events")).await;
    world.sim.clear_script();
    let began = world.clock.elapsed();
    world.cancel(&first).await;
    let text = stream.text().await.unwrap();
    let took = world.clock.elapsed() - began;
    let events = events_of(&text);
    let states =
        events.iter().filter(|(name, _)| *name == "state").map(|(_, job)| job["state"].as_str().unwrap());
    assert_eq!(states.collect::<Vec<_>>(), ["running", "completed"]);
    let progress = events.iter().filter(|(name, _)| *name == "progress").count();
    assert!(progress > 3, "it lasts for seconds: {progress}");
    // One comes at once.
    assert!(progress as u128 <= took.as_millis() / 500 + 2, "{progress} in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_asked_for_where_they_must_be() {
    let key = "night-job:0123456789abcdef";
    let world =
        World::with(account(), |settings| settings.http.api_keys = ApiKeys::parse(key, Rights::All).unwrap())
            .await;
    for path in ["/v1/jobs", "/metrics"] {
        let refused = world.get(path).await;
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        assert_eq!(problem(refused).await, is(401, "unauthorized"));
    }
    for path in ["/healthz", "/readyz", "/openapi.json", "/docs/"] {
        assert_eq!(world.get(path).await.status(), 200, "{path}");
    }
    let with_key = |key: &'static str| {
        world.client.post(world.url("/v1/jobs")).bearer_auth(key).json(&world.everything()).send()
    };
    assert_eq!(with_key("0123456789abcdeX").await.unwrap().status(), 401);
    let job: Value = with_key("0123456789abcdef").await.unwrap().json().await.unwrap();
    assert_eq!(job["requester"], "night-job");
    assert!(!job.to_string().contains("0123456789abcdef"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_many_times_at_once_takes_one_place_in_the_queue() {
    let world = World::with(account(), |settings| {
        (settings.jobs.max_running, settings.jobs.max_queued) = (1, 1);
    })
    .await;
    // Keeps the first job from ending by itself.
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let first = world.submit(&world.everything()).await;
    world.wait_until(&first, |job| job["state"] == "running").await;
    let body = world.everything();
    let calls = (0..8).map(|_| {
        let call = world.client.post(world.url("/v1/jobs")).header("idempotency-key", "once");
        call.json(&body).send()
    });
    let mut ids = BTreeSet::new();
    for answer in futures_util::future::join_all(calls).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 202);
        ids.insert(answer.headers()["location"].to_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_queued_jobs_are_refused_with_a_time_to_come_back() {
    let world = World::with(account(), |settings| {
        settings.jobs.max_running = 1;
        settings.jobs.max_queued = 2;
    })
    .await;
    // Keeps the first job from ending by itself.
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let first = world.submit(&world.everything()).await;
    world.wait_until(&first, |job| job["state"] == "running").await;
    let second = world.submit(&world.everything()).await;
    world.submit(&world.everything()).await;
    let refused = world.post("/v1/jobs", &world.everything()).await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(problem(refused).await, is(429, "queue-full"));
    let cancelled: Value =
        world.post(&format!("/v1/jobs/{second}/cancel"), &Value::Null).await.json().await.unwrap();
    assert_eq!(cancelled["state"], "cancelled", "a queued job is cancelled at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_when_the_retention_is_over_and_the_record_stays() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), |_| {}).await;
    let mut others = Vec::new();
    for (matches, answer, end) in [
        (Match::Session(0), FaultAnswer::Hang, "cancelled"),
        (Match::Session(0), status(500, ""), "completed_with_failures"),
        (Match::Messages, status(400, NO_PERMISSION), "failed"),
    ] {
        world.sim.script(always(matches, answer));
        let id = world.submit(&world.everything()).await;
        if end == "cancelled" {
            world.wait_until(&id, |job| job["progress"]["units_done"].as_u64() > Some(1)).await;
            world.cancel(&id).await;
        }
        assert_eq!(world.finished(&id).await["state"], end);
        world.sim.clear_script();
        others.push(id);
    }
    let (job, _) = world.run(&world.everything()).await;
    let id = job["id"].as_str().unwrap();
    assert!(job["expires_at"].as_str().unwrap().starts_with("2026-12-01T12:00"));
    clock.advance(Duration::from_secs(7 * 86_400 + 61));
    for other in &others {
        removed(&world.directory_of(other)).await;
        let expired = world.job(other).await;
        assert_eq!(expired["state"], "expired");
        let retried = world.post(&format!("/v1/jobs/{other}/retry"), &Value::Null).await;
        assert_eq!(problem(retried).await, is(409, "wrong-state"));
    }
    let expired = world.wait_until(id, |job| job["state"] == "expired").await;
    assert!(expired["archive"].is_null());
    assert_eq!(problem(world.get(&format!("/v1/jobs/{id}/archive")).await).await, is(410, "archive-gone"));
    let jobs = world.settings.jobs.data_dir.join("jobs");
    removed(&jobs.join(id)).await;
    assert_eq!(std::fs::read_dir(jobs).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_front_door_leads_to_the_documentation_and_metrics_are_there() {
    let world = World::new(account()).await;
    world.run(&world.everything()).await;
    let page = world.get("/").await;
    assert!(page.url().path().starts_with("/docs"), "{}", page.url());
    assert!(page.text().await.unwrap().contains("swagger-ui"));
    assert!(world.get("/docs").await.url().path().starts_with("/docs/"));
    let metrics = world.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("zcr_jobs_running 0"), "{metrics}");
    for name in ["zcr_http_responses_total", "zcr_zoom_requests_total", "zcr_waiting 0"] {
        assert!(metrics.contains(name), "{metrics}");
    }
    assert!(metrics.contains("zcr_jobs_ended_total{state=\"completed\"}"), "{metrics}");
    assert!(metrics.contains("# HELP zcr_jobs_running"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_the_document_can_be_tried_today() {
    let world = World::new(account()).await;
    let document: Value = world.get("/openapi.json").await.json().await.unwrap();
    let example = &document["components"]["schemas"]["JobRequest"]["example"];
    assert_eq!(world.post("/v1/jobs", example).await.status(), 202, "{example}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_of_the_callers_is_taken_if_it_looks_like_one() {
    let world = World::new(account()).await;
    for (sent, is_taken) in
        [("night-job/7", true), ("two words", false), ("", false), (&"x".repeat(129), false)]
    {
        let answer =
            world.client.get(world.url("/healthz")).header("x-request-id", sent).send().await.unwrap();
        assert_eq!(answer.headers()["x-request-id"] == sent, is_taken, "{sent}");
    }
}
