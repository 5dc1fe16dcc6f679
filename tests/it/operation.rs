//! What the README promises to whoever operates the service: lines of the log, names of metrics.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use zoom_chat_reports::sim::{Match, SimSettings, Simulator};

use crate::harness::{always, everything, fault, status, with_headers};
use crate::process::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_the_metrics_are_as_the_readme_says() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let sim = SimSettings { sessions: 10, messages: 300, ..SimSettings::default() };
    let sim = Simulator::start(sim).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let service = setup.start().await;
    let is_waiting = |job: &Value| job["progress"]["waiting_until"].is_string();
    let ends_after = async |id: &str, action: &str| {
        let answer = service.post(&format!("/v1/jobs/{id}/{action}"), &Value::Null).await;
        assert_eq!(answer.status(), 202, "{action}");
        service.finished(id).await["state"].clone()
    };
    // An outage, given up and taken up again.
    sim.script(always(Match::List, status(503, "")));
    let id = service.submit(&everything(&sim)).await;
    service.wait_until(&id, is_waiting).await;
    assert_eq!(ends_after(&id, "cancel").await, "cancelled");
    sim.clear_script();
    assert_eq!(ends_after(&id, "retry").await, "completed");
    // A pause.
    sim.script(fault(Match::List, 0, 1, with_headers(429, &[("retry-after", "3600")], "")));
    let paused = service.submit(&everything(&sim)).await;
    service.wait_until(&paused, is_waiting).await;
    let metrics = service.get("/metrics").await.text().await.unwrap();
    assert_eq!(ends_after(&paused, "cancel").await, "cancelled");

    let named: BTreeSet<&str> = readme.split('`').filter(|word| word.starts_with("zcr_")).collect();
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    assert_eq!(types.collect::<BTreeSet<_>>(), named);
    for figure in [
        "zcr_waiting 1",
        "zcr_jobs_running 1",
        "zcr_zoom_rate_limited_total 1",
        "zcr_jobs_ended_total{state=\"cancelled\"} 1",
        "zcr_jobs_ended_total{state=\"completed\"} 1",
    ] {
        assert!(metrics.contains(figure), "{figure} in {metrics}");
    }
    let log = setup.log();
    // The log of a service is JSON unless it goes to a terminal.
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |words: &str, id: &str| {
        let told = |line: &&Value| line["message"].as_str().is_some_and(|message| message.starts_with(words));
        lines.iter().find(|line| told(line) && line.to_string().contains(id))
    };
    for (words, id) in [
        ("job queued", &id[..]),
        ("window listed", &id),
        ("job ended", &id),
        ("job queued again", &id),
        ("Zoom does not answer", ""),
        ("Zoom answers again", ""),
    ] {
        assert!(readme.contains(&format!("`{words}`")), "{words}");
        assert!(find(words, id).is_some(), "{words} in {log}");
    }
    assert!(find("job ended", &id).unwrap()["requests"].is_u64(), "with its figures");
    let waits = |line: &Value| line["message"].as_str().is_some_and(|message| message.ends_with("waiting"));
    assert!(lines.iter().any(waits), "{log}");
}
