//! Jobs on accounts of all kinds: one at a time, several at once, killed, and beside another app of the same account.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zoom_chat_reports::archive::{AssembleInput, Begun, Form, assemble};
use zoom_chat_reports::clock::Clock;

use crate::floor;
use crate::processes::{Profile, Run, Service, Simulator, free_port, requests, round};

pub async fn ratios(profile: Profile) -> Value {
    Run::of(profile).await.ratios()
}

/// An unpaced job; then its archive is assembled again, on its own, and compared with a plain copy of the same bytes.
pub async fn unpaced(profile: Profile) -> Value {
    let run = Run::of(profile).await;
    let clock = run.service.clock.clone();
    let directory = run.directory();
    let received = run.job["progress"]["bytes_received"].as_f64().unwrap();
    let archive = archive_in(&directory);
    let started = clock.elapsed();
    copy_synced(&archive, &directory.join("copy"));
    let copied = (clock.elapsed() - started).as_secs_f64();
    std::fs::remove_file(directory.join("copy")).unwrap();
    let again = directory.join("again.zip");
    let input = AssembleInput { directory, form: Form::Zip, cancel: CancellationToken::new() };
    let started = clock.elapsed();
    let made = assemble(Begun::nothing(input)).await.unwrap();
    let size = made.archive.as_ref().unwrap().size;
    made.publish(again, |_| None).await.unwrap();
    let assembled = (clock.elapsed() - started).as_secs_f64();
    // Counts each item twice: it is in two of the files, and both are hashed in full.
    let mut zip = zip::ZipArchive::new(File::open(archive).unwrap()).unwrap();
    let json: u64 = (0..zip.len()).map(|entry| zip.by_index_raw(entry).unwrap().size()).sum();
    let json = json as f64;
    let floor = received / 1e6 * floor::seconds_for_a_megabyte(run.simulator.profile.text_scale);
    let cpu = run.service.cpu_seconds();
    let mut all = run.ratios();
    all["cpu_over_floor"] = json!(round(cpu / floor));
    all["assembly_json_mb_per_s"] = json!(round(json / 1e6 / assembled));
    all["assembly_of_received_mb_per_s"] = json!(round(received / 1e6 / assembled));
    all["assembly_over_copy"] = json!(round(assembled / copied));
    all["archive_mb"] = json!(round(size as f64 / 1e6));
    all
}

/// The archive in a job's directory.
pub fn archive_in(directory: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "zip")).unwrap()
}

/// Copies byte by byte: some file systems would only note that two files are the same.
fn copy_synced(from: &Path, to: &Path) {
    let (mut from, mut to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read]).unwrap();
    }
    to.sync_all().unwrap();
}

/// Time, CPU, memory and disk as the account grows tenfold again and again.
pub async fn linear() -> Value {
    let mut all = serde_json::Map::new();
    for messages in [10_000, 100_000, 1_000_000, 10_000_000] {
        let profile = Profile { messages, sessions: (messages / 400) as u32, ..Profile::UNPACED };
        all.insert(messages.to_string(), ratios(profile).await);
    }
    Value::Object(all)
}

/// Two equal jobs at once, and a small one that arrives while both are running.
pub async fn sharing() -> Value {
    let simulator = Simulator::start(Profile { messages: 120_000, ..Profile::USUAL });
    let data = TempDir::new().unwrap();
    let service = Service::start(&simulator, data.path()).await;
    let one = service.submit(&simulator.everything()).await;
    let two = service.submit(&simulator.everything()).await;
    service.clock.sleep(Duration::from_secs(30)).await;
    let so_far = [requests(&service.job(&one).await), requests(&service.job(&two).await)];
    let day = simulator.days.1.to_string();
    let small = service.submit(&json!({ "from": day, "to": day })).await;
    let (small_job, small_wall) = service.finished(&small).await;
    json!({
        "share_of_first": round(so_far[0] / (so_far[0] + so_far[1])),
        "share_of_second": round(so_far[1] / (so_far[0] + so_far[1])),
        "small_job_requests": requests(&small_job), "small_job_wall_s": round(small_wall),
        "small_job_share_of_limit": round(requests(&small_job) / (60.0 * small_wall)),
    })
}

/// Four concurrent jobs: what each additional one costs in memory.
pub async fn many_jobs() -> Value {
    let simulator = Simulator::start(Profile { messages: 60_000, ..Profile::USUAL });
    let data = TempDir::new().unwrap();
    let service = Service::start(&simulator, data.path()).await;
    let mut resident = Vec::new();
    let mut jobs = Vec::new();
    let started = service.clock.elapsed();
    for _ in 0..4 {
        jobs.push(service.submit(&simulator.everything()).await);
        service.clock.sleep(Duration::from_secs(8)).await;
        resident.push(round(service.resident_mib()));
    }
    let mut sent = 0.0;
    for id in &jobs {
        sent += requests(&service.finished(id).await.0);
    }
    let wall = (service.clock.elapsed() - started).as_secs_f64();
    json!({
        "resident_mib_with_1_2_3_4_jobs": resident, "peak_rss_mib": round(service.peak_mib()),
        "efficiency": round(sent / (60.0 * wall)),
    })
}

/// Twenty accounts at once, each with its own service and simulator: more than two CPUs can handle. Means over all.
pub async fn many_accounts() -> Value {
    let profile = Profile { messages: 150_000, ..Profile::USUAL };
    let runs = join_all((0..20).map(|_| Run::of(profile))).await;
    let all: Vec<Value> = runs.into_iter().map(Run::ratios).collect();
    let mean = |figure: &str| {
        let sum: f64 = all.iter().map(|one| one[figure].as_f64().unwrap()).sum();
        round(sum / all.len() as f64)
    };
    let figures = ["efficiency", "cpu_s_per_1000_pages", "archive_per_json_byte", "peak_rss_mib"];
    figures.into_iter().map(|figure| (figure, json!(mean(figure)))).collect()
}

/// Ten kills at 60/s: whether the archive equals that of an undisturbed run, and what share of requests is repeated.
pub async fn kills() -> Value {
    let profile = Profile { messages: 250_000, ..Profile::USUAL };
    let mut archives = Vec::new();
    let mut sent = Vec::new();
    for kills in [0_u64, 10] {
        let simulator = Simulator::start(profile);
        let data = TempDir::new().unwrap();
        let port = free_port();
        let mut service = Service::start_with(&simulator, data.path(), port, &[]).await;
        let id = service.submit(&simulator.everything()).await;
        for kill in 0..kills {
            service.clock.sleep(Duration::from_millis(2_500 + kill * 1_379 % 5_000)).await;
            drop(service);
            service = Service::start_with(&simulator, data.path(), port, &[]).await;
        }
        let (job, _) = service.finished(&id).await;
        assert_eq!(job["state"], "completed");
        archives.push(std::fs::read(archive_in(&data.path().join("jobs").join(&id))).unwrap());
        drop(service);
        sent.push(simulator.stop()["requests"].as_f64().unwrap());
    }
    json!({
        "kills": 10, "requests_undisturbed": sent[0], "requests_with_kills": sent[1],
        "repeated_share": round(sent[1] / sent[0] - 1.0),
        "archives_equal": entries(&archives[0]) == entries(&archives[1]),
    })
}

/// An archive's entries, except those that may differ between two runs.
fn entries(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let mut all = BTreeMap::new();
    for index in 0..zip.len() {
        let mut file = zip.by_index(index).unwrap();
        let name = file.name().unwrap().into_owned();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        if !name.ends_with("SHA256SUMS") && !name.ends_with("extraction_summary.json") {
            all.insert(name, content);
        }
    }
    all
}

/// Another app of the account takes half the budget for half a minute, then stops.
pub async fn neighbour() -> Value {
    let simulator = Simulator::start(Profile { messages: 700_000, ..Profile::USUAL });
    let data = TempDir::new().unwrap();
    let service = Service::start(&simulator, data.path()).await;
    let id = service.submit(&simulator.everything()).await;
    let token: Value = service
        .client
        .post(format!("{}/oauth/token", simulator.base))
        .basic_auth("sim-client", Some("sim-secret"))
        .form(&[("grant_type", "account_credentials"), ("account_id", "sim-account")])
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let url = format!(
        "{}/v2/report/chat/sessions?from={}&to={}&page_size=1",
        simulator.base, simulator.days.1, simulator.days.1
    );
    let token = token["access_token"].as_str().unwrap().to_owned();
    // The service's requests and 429s in each second since `began`.
    let mut seconds = Vec::new();
    let began = service.clock.elapsed();
    let mut others = JoinSet::new();
    let (mut last, mut last_refused) = (0.0, 0.0);
    for second in 0..110_u64 {
        let job = service.job(&id).await;
        let (sent, refused) = (requests(&job), job["progress"]["rate_limited"].as_f64().unwrap());
        seconds.push((sent - last, refused - last_refused));
        (last, last_refused) = (sent, refused);
        for turn in (0..30_u64).filter(|_| (30..60).contains(&second)) {
            let call = service.client.get(&url).bearer_auth(&token);
            let wait = service.clock.sleep(Duration::from_millis(turn * 33));
            others.spawn(async move {
                wait.await;
                call.send().await.unwrap();
            });
        }
        let due = began + Duration::from_secs(second + 1);
        service.clock.sleep(due.saturating_sub(service.clock.elapsed())).await;
    }
    others.join_all().await;
    let mean = |from: usize, to: usize| {
        seconds[from..to].iter().map(|(sent, _)| sent).sum::<f64>() / (to - from) as f64
    };
    let refused: f64 = seconds[31..61].iter().map(|(_, refused)| refused).sum();
    let sent: f64 = seconds[31..61].iter().map(|(sent, _)| sent).sum();
    let recovered =
        (61..110).find(|second| seconds[*second].0 >= 57.0).map_or(-1, |second| second as i64 - 61);
    json!({
        "rate_before": round(mean(10, 30)), "rate_beside_half": round(mean(41, 61)),
        "refused_share_beside": round(refused / sent), "seconds_to_recover": recovered,
        "rate_after": round(mean(95, 110)),
    })
}
