//! What is recorded, what is left on disk, and what never leaks.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use zoom_chat_reports::sim::{FaultAnswer, FaultLevel, ItemOptions, Match, SimSettings, Simulator};

use crate::caller::is_final;
use crate::harness::{Archive, World, archive_in, fault};
use crate::keys::{KEY, VIEWER, account, call, complete_job, guarded};
use crate::process::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_trail_tells_who_did_what_with_which_job() {
    let world = guarded().await;
    let send = |method, path, key| call(&world, method, path, key);
    let id = complete_job(&world).await;
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

/// Also once it has left the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_names_its_job_and_the_key_that_asked_for_it() {
    let world = guarded().await;
    let id = complete_job(&world).await;
    let path = format!("/v1/jobs/{id}/archive");
    let archive = call(&world, reqwest::Method::GET, path, VIEWER).await.unwrap();
    let archive = Archive::read(archive.bytes().await.unwrap().to_vec());
    let summary = archive.json("_metadata/extraction_summary.json");
    assert_eq!((&summary["job_id"], &summary["requester"]), (&json!(id), &json!("ops")));
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
