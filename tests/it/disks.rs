//! Disks that are full, read-only, torn or pulled away: a clear state and message, nothing half-written, others go on.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;
use zoom_chat_reports::capture::Location;
use zoom_chat_reports::sim::{FaultAnswer, ItemOptions, Match, ScriptedFault, SimSettings, Simulator};

use crate::harness::{Missing, World, assert_whole};
use crate::process::{Service, Setup, is_final};

fn account() -> SimSettings {
    SimSettings {
        sessions: 60,
        messages: 24_000,
        latency: Duration::from_millis(3),
        ..SimSettings::default()
    }
}

fn everything(sim: &Simulator) -> Value {
    let data = sim.dataset();
    json!({ "from": data.first_day().to_string(), "to": data.last_day().to_string() })
}

/// To start the service in a mount namespace of its own, after these commands. `None` where the machine allows none, and
/// whoever runs the tests has said that he knows.
fn with_mounts(setup: &Setup, commands: &str) -> Option<Setup> {
    let namespace = ["unshare", "--user", "--map-root-user", "--mount"];
    let allowed = Command::new(namespace[0]).args(&namespace[1..]).arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        assert!(
            std::env::var_os("ALLOW_NO_MOUNTS").is_some(),
            "this machine allows no mount namespaces; ALLOW_NO_MOUNTS=1 leaves out what needs them"
        );
        return None;
    }
    std::fs::create_dir_all(&setup.data).unwrap();
    let script = format!("{commands} && exec \"$@\"");
    let wrapper = namespace.into_iter().chain(["sh", "-c", &script, "sh"]).map(str::to_owned).collect();
    Some(Setup { wrapper, ..setup.clone() })
}

/// A disk of its own for the service: a small tmpfs in a mount namespace. `None` where the machine allows none.
struct SmallDisk {
    service: Service,
    /// The disk as seen from here.
    path: PathBuf,
}

impl SmallDisk {
    async fn start(setup: &Setup, mebibytes: u32) -> Option<Self> {
        let mount = format!("mount -t tmpfs -o size={mebibytes}m tmpfs '{}'", setup.data.display());
        let service = with_mounts(setup, &mount)?.start().await;
        let inside = setup.data.strip_prefix("/").unwrap();
        let path = Path::new("/proc").join(service.child.id().to_string()).join("root").join(inside);
        Some(Self { service, path })
    }

    fn fill(&self, leave_mebibytes: u64) {
        let stat = Command::new("df").args(["--output=avail", "-B1"]).arg(&self.path).output().unwrap();
        let free: u64 =
            String::from_utf8(stat.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap();
        let file = File::create(self.path.join("filler")).unwrap();
        let chunk = vec![0_u8; 1 << 20];
        for index in 0..(free >> 20).saturating_sub(leave_mebibytes) {
            // A tmpfs has a little less room than it says.
            if file.write_all_at(&chunk, index << 20).is_err() {
                file.set_len((index - leave_mebibytes) << 20).unwrap();
                return;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path.join("filler")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_the_job_clearly_and_with_room_it_goes_on() {
    // Room for a part of the capture; then for the capture and not for the archive.
    for (leave, within) in [(6, "capture"), (14, "archive")] {
        let sim = Simulator::start(account()).await.unwrap();
        let directory = TempDir::new().unwrap();
        let setup = Setup::new(&sim, directory.path());
        let Some(disk) = SmallDisk::start(&setup, 96).await else { return };
        disk.fill(leave);
        let service = &disk.service;
        let id = service.submit(&everything(&sim)).await;
        let job = service.finished(&id).await;
        assert_eq!(
            (job["state"].as_str(), job["error"]["code"].as_str()),
            (Some("failed"), Some("disk-full")),
            "{within}: {job:#}"
        );
        assert!(job["error"]["help"].as_str().unwrap().contains("make room"));
        let own = disk.path.join("jobs").join(&id);
        assert!(!own.join("archive.zip").exists() && !own.join("archive.zip.tmp").exists(), "{within}");
        // The service itself is well, and says what is wrong when it cannot take more.
        assert_eq!(service.client.get(service.url("/healthz")).send().await.unwrap().status(), 200);
        assert_eq!(service.client.get(service.url("/v1/jobs")).send().await.unwrap().status(), 200);
        // What is left is for its own records: the failure is written down, another try is taken, another job is deleted.
        let retry = format!("/v1/jobs/{id}/retry");
        let other = service.submit(&everything(&sim)).await;
        assert_eq!(service.finished(&other).await["error"]["code"], "disk-full");
        let deleted = service.client.delete(service.url(&format!("/v1/jobs/{other}"))).send().await.unwrap();
        assert_eq!(deleted.status(), 204);
        assert_eq!(service.post(&retry, &Value::Null).await.status(), 202);
        assert_eq!(service.finished(&id).await["error"]["code"], "disk-full");
        let ready =
            async || service.client.get(service.url("/readyz")).send().await.unwrap().status().as_u16();
        assert_eq!(ready().await, 200, "it takes jobs");
        // And when somebody else takes the rest:
        disk.fill(0);
        assert_eq!(ready().await, 503);
        disk.make_room();
        assert_eq!(ready().await, 200);
        assert_eq!(service.post(&retry, &Value::Null).await.status(), 202);
        let before = sim.stats().requests;
        let job = service.wait_until(&id, |job| job["state"] == "completed").await;
        let data = sim.dataset();
        let days = (data.first_day(), data.last_day());
        let archive = service.archive(&id).await;
        assert_whole(&archive, data, days, ItemOptions::default(), &Missing::default());
        if within == "archive" {
            assert_eq!(sim.stats().requests, before, "nothing is fetched again: {job:#}");
        }
    }
}

/// As in a container with a read-only root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_written_goes_to_the_data_directory() {
    // Full list pages: SQLite puts more aside for those than it keeps in memory by itself.
    let account = SimSettings { sessions: 3_000, messages: 9_000, ..SimSettings::default() };
    let sim = Simulator::start(account).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path()).with("ZOOM_RATE_LIMIT", "0");
    let mounts = format!(
        "for place in /tmp /var/tmp; do mount --bind $place $place || exit; done && mount --bind '{data}' '{data}' &&
         mount -o remount,bind,ro /tmp && mount -o remount,bind,ro /var/tmp && cd /proc",
        data = setup.data.display()
    );
    let Some(setup) = with_mounts(&setup, &mounts) else { return };
    let service = setup.start().await;
    let id = service.submit(&everything(&sim)).await;
    let job = service.finished(&id).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let days = (sim.dataset().first_day(), sim.dataset().last_day());
    let archive = service.archive(&id).await;
    assert_whole(&archive, sim.dataset(), days, ItemOptions::default(), &Missing::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_data_directory_stops_the_start_and_is_named() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    std::fs::create_dir_all(&setup.data).unwrap();
    let data = setup.data.display();
    let read_only = format!("mount --bind '{data}' '{data}' && mount -o remount,bind,ro '{data}'");
    let Some(setup) = with_mounts(&setup, &read_only) else { return };
    let status = setup.spawn().child.wait().unwrap();
    let log = setup.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("DATA_DIR") && log.contains("Read-only file system"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_files_are_removed_under_its_feet_fails_and_others_go_on() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let service = setup.start().await;
    let (lost, other) = (service.submit(&everything(&sim)).await, service.submit(&everything(&sim)).await);
    service.wait_until(&lost, |job| job["progress"]["messages"].as_u64().unwrap() > 500).await;
    std::fs::remove_dir_all(setup.data.join("jobs").join(&lost)).unwrap();
    let job = service.finished(&lost).await;
    assert_eq!(job["state"], "failed", "{job:#}");
    assert!(job["error"]["help"].is_string(), "{job:#}");
    assert_eq!(service.finished(&other).await["state"], "completed");
    // The same job, from nothing.
    assert_eq!(service.post(&format!("/v1/jobs/{lost}/retry"), &Value::Null).await.status(), 202);
    assert_eq!(service.finished(&lost).await["state"], "completed");
    assert_eq!(service.archive(&lost).await.comparable(), service.archive(&other).await.comparable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_data_directory_the_service_says_so_and_promises_nothing() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let service = setup.start().await;
    let id = service.submit(&everything(&sim)).await;
    service.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 500).await;
    std::fs::remove_dir_all(&setup.data).unwrap();
    let ready = service.client.get(service.url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("data directory is gone"));
    let promise = service.post("/v1/jobs", &everything(&sim)).await;
    assert_eq!(promise.status(), 503, "nothing would be left of it");
    let job = service.finished(&id).await;
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(service.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await.status(), 503);
    assert!(!setup.data.join("jobs").exists(), "it does not come back half");
}

/// Overwrites a part of a file.
fn spoil(file: &Path, from: u64, bytes: usize) {
    let mut file = File::options().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(&vec![0x5a; bytes]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_capture_fails_its_own_job_only_and_retry_begins_anew() {
    let mut world = World::with(account(), |settings| settings.zoom.limit = Some(200.0)).await;
    // Neither ends before it is stopped.
    let (matches, answer) = (Match::Session(0), FaultAnswer::Hang);
    world.sim.script(ScriptedFault { matches, after: 0, times: u32::MAX, answer });
    let (torn, sound) = (world.submit(&world.everything()).await, world.submit(&world.everything()).await);
    for id in [&torn, &sound] {
        world.wait_until(id, |job| job["progress"]["messages"].as_u64().unwrap() > 6_000).await;
    }
    world.stop().await;
    world.sim.clear_script();
    let capture = world.settings.jobs.data_dir.join("jobs").join(&torn).join("capture.db");
    spoil(&capture, 8_192, 40_000);
    // Something that looks like a job's directory and cannot be removed as one holds nothing up.
    std::fs::write(world.settings.jobs.data_dir.join("jobs/018f2f5e-7c1a-7000-8000-000000000000"), "")
        .unwrap();
    world.restart().await;
    let job = world.finished(&torn).await;
    assert_eq!(
        (job["state"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("capture-damaged")),
        "{job:#}"
    );
    let failures = world.get(&format!("/v1/jobs/{torn}/failures")).await;
    assert_eq!(failures.status(), 409);
    assert_eq!(failures.json::<Value>().await.unwrap()["code"], "capture-damaged");
    assert_eq!(world.finished(&sound).await["state"], "completed");
    assert_eq!(world.post(&format!("/v1/jobs/{torn}/retry"), &Value::Null).await.status(), 202);
    assert_eq!(world.finished(&torn).await["state"], "completed");
    assert_eq!(world.archive(&torn).await.comparable(), world.archive(&sound).await.comparable());
    assert!(capture.with_extension("db.damaged").exists(), "kept for whoever wants to look");
}

/// A crash or a full disk may come before the plan is written down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_never_got_its_plan_is_planned_by_a_retry() {
    let mut world = World::new(SimSettings { sessions: 5, messages: 100, ..account() }).await;
    world.settings.zoom.credentials.client_id = "nobody".to_owned();
    world.restart().await;
    let ids = [world.submit(&world.everything()).await, world.submit(&world.everything()).await];
    for id in &ids {
        assert_eq!(world.finished(id).await["error"]["code"], "credentials");
    }
    world.stop().await;
    let [empty, planless] = ids.clone().map(|id| world.settings.jobs.data_dir.join("jobs").join(id));
    for directory in [&empty, &planless] {
        for file in ["capture.db", "capture.db-wal", "capture.db-shm"] {
            let _ = std::fs::remove_file(directory.join(file));
        }
    }
    File::create(empty.join("capture.db")).unwrap();
    Location::in_directory(&planless).open_writer().await.unwrap().close().await;
    world.settings.zoom.credentials.client_id = "sim-client".to_owned();
    world.restart().await;
    for id in &ids {
        assert_eq!(world.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await.status(), 202);
        assert_eq!(world.finished(id).await["state"], "completed");
    }
}

/// What the index says may be wrong without its being torn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_values_in_a_capture_are_found_and_retry_mends_them() {
    for wrong in ["kind = 7", "length = 35184372088832", "offset = -1", "offset = 9223372036854775807"] {
        let world = World::new(SimSettings { sessions: 5, messages: 400, ..account() }).await;
        let (job, expected) = world.run(&world.everything()).await;
        let id = job["id"].as_str().unwrap();
        let directory = world.settings.jobs.data_dir.join("jobs").join(id);
        let options = SqliteConnectOptions::new().filename(directory.join("capture.db"));
        let mut capture = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        let statement = format!("UPDATE pages SET {wrong} WHERE range = 1 AND seq = 0 AND kind = 0");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut capture).await.unwrap();
        capture.close().await.unwrap();
        std::fs::remove_file(directory.join("archive.zip")).unwrap();
        assert_eq!(world.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await.status(), 202);
        let job = world.finished(id).await;
        assert_eq!(job["state"], "completed", "{wrong}: {job:#}");
        assert_eq!(world.archive(id).await.comparable(), expected.comparable(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_not_what_was_stored_are_found_and_only_they_are_fetched_again() {
    let mut world = World::with(account(), |settings| settings.zoom.limit = Some(200.0)).await;
    let (job, expected) = world.run(&world.everything()).await;
    let whole = job["progress"]["requests"].as_u64().unwrap();
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 12_000).await;
    world.stop().await;
    let directory = world.settings.jobs.data_dir.join("jobs").join(&id);
    spoil(&directory.join("capture.segments"), 200_000, 10);
    world.restart().await;
    let job = world.finished(&id).await;
    assert_eq!(
        (job["state"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("capture-damaged")),
        "{job:#}"
    );
    assert!(!directory.join("archive.zip").exists() && !directory.join("archive.zip.tmp").exists());
    let before = world.sim.stats().requests;
    assert_eq!(world.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await.status(), 202);
    assert_eq!(world.finished(&id).await["state"], "completed");
    assert_eq!(world.archive(&id).await.comparable(), expected.comparable());
    let again = world.sim.stats().requests - before;
    assert!(again > 0 && again < whole / 2, "one chain of pages, not everything: {again} of {whole}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_table_of_jobs_is_mended_from_what_is_left_of_it_and_from_the_captures() {
    for damage in ["overwritten", "torn", "removed", "emptied", "without rows"] {
        let mut world = World::with(account(), |settings| settings.zoom.limit = Some(200.0)).await;
        let done = world.submit(&world.everything()).await;
        world.finished(&done).await;
        let expected = world.archive(&done).await;
        let interrupted = world.submit(&world.everything()).await;
        world.wait_until(&interrupted, |job| job["progress"]["messages"].as_u64().unwrap() > 6_000).await;
        world.stop().await;
        let table = world.settings.jobs.data_dir.join("state.db");
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", table.display()));
        }
        match damage {
            "overwritten" => spoil(&table, 0, 64),
            "torn" => spoil(&table, 12_288, 4_096),
            "emptied" => File::create(&table).map(drop).unwrap(),
            "without rows" => forget(&table, "%").await,
            _ => std::fs::remove_file(&table).unwrap(),
        }
        world.restart().await;
        let asked = world.sim.stats().requests;
        let job = world.finished(&done).await;
        assert_eq!(job["state"], "completed", "{damage}: {job:#}");
        assert_eq!(world.archive(&done).await.comparable(), expected.comparable(), "{damage}");
        let job = world.wait_until(&interrupted, is_final).await;
        if job["error"]["code"] == "record-lost" {
            assert_eq!(
                world.sim.stats().requests,
                asked,
                "{damage}: Zoom is asked only when somebody says so"
            );
            assert_eq!(
                world.post(&format!("/v1/jobs/{interrupted}/retry"), &Value::Null).await.status(),
                202
            );
        }
        assert_eq!(world.finished(&interrupted).await["state"], "completed", "{damage}");
        assert_eq!(world.archive(&interrupted).await.comparable(), expected.comparable(), "{damage}");
    }
}

/// Removes the records of jobs with such ids.
async fn forget(table: &Path, like: &str) {
    let options = SqliteConnectOptions::new().filename(table);
    let mut table = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("DELETE FROM jobs WHERE id LIKE ?").bind(like).execute(&mut table).await.unwrap();
    table.close().await.unwrap();
}

/// A crash may come at any point of a deletion. What nobody deleted comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_job_without_a_record_go_only_if_it_was_being_deleted() {
    let mut world = World::new(SimSettings { sessions: 5, messages: 100, ..account() }).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(world.submit(&world.everything()).await);
        world.finished(ids.last().unwrap()).await;
    }
    let [forgotten, bare, half_deleted, asked_for] = &ids[..] else { unreachable!() };
    let data = world.settings.jobs.data_dir.clone();
    let directory = |id: &str| data.join("jobs").join(id);
    world.stop().await;
    for id in [forgotten, bare, half_deleted] {
        forget(&data.join("state.db"), id).await;
    }
    for file in ["capture.db", "capture.segments"] {
        std::fs::remove_file(directory(bare).join(file)).unwrap();
    }
    for id in [half_deleted, asked_for] {
        File::create(directory(id).join("deleted")).unwrap();
    }
    world.restart().await;
    assert_eq!(world.finished(forgotten).await["state"], "completed");
    assert!(directory(&format!("{bare}.damaged")).join("archive.zip").exists());
    assert!(!directory(half_deleted).exists());
    for id in [bare, half_deleted] {
        assert_eq!(world.get(&format!("/v1/jobs/{id}")).await.status(), 404);
    }
    assert_eq!(world.archive(asked_for).await.comparable(), world.archive(forgotten).await.comparable());
    assert!(!directory(asked_for).join("deleted").exists(), "it was not deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_nobody_can_read_any_more_is_left_for_a_person() {
    let mut world = World::new(account()).await;
    let done = world.submit(&world.everything()).await;
    world.finished(&done).await;
    world.stop().await;
    let data = world.settings.jobs.data_dir.clone();
    std::fs::remove_file(data.join("state.db")).unwrap();
    spoil(&data.join("jobs").join(&done).join("capture.db"), 0, 4_096);
    for start in 0..2 {
        world.restart().await;
        assert_eq!(world.get(&format!("/v1/jobs/{done}")).await.status(), 404);
        let left = data.join("jobs").join(format!("{done}.damaged"));
        assert!(left.join("archive.zip").exists() && left.join("capture.segments").exists(), "start {start}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_hides_no_other_and_a_trouble_is_found_in_the_log_by_its_request() {
    let sim = Simulator::start(SimSettings { sessions: 5, messages: 100, ..account() }).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let mut service = setup.start().await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(service.submit(&everything(&sim)).await);
        service.finished(jobs.last().unwrap()).await;
    }
    let mut table = sqlx::SqliteConnection::connect_with(
        &SqliteConnectOptions::new().filename(setup.data.join("state.db")),
    )
    .await
    .unwrap();
    sqlx::query("UPDATE jobs SET job = '{\"of\":\"another version\"}' WHERE id = ?")
        .bind(&jobs[1])
        .execute(&mut table)
        .await
        .unwrap();
    for start in 0..2 {
        if start > 0 {
            assert!(service.terminate().await.success());
            service = setup.start().await;
        }
        let answer = service.client.get(service.url(&format!("/v1/jobs/{}", jobs[1]))).send().await.unwrap();
        assert_eq!(answer.status(), 500);
        let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let log = setup.log();
        let line = log.lines().find(|line| line.contains(&request) && line.contains("cannot be read"));
        assert!(line.is_some(), "{request}: {log}");
        let about_a_job = log.lines().find(|line| line.contains("window listed") && line.contains(&jobs[0]));
        assert!(about_a_job.is_some(), "what a job does is found by its id: {log}");
        let page: Value =
            service.client.get(service.url("/v1/jobs")).send().await.unwrap().json().await.unwrap();
        let listed: Vec<_> = page["items"].as_array().unwrap().iter().map(|job| &job["id"]).collect();
        let mut others: Vec<_> = jobs.iter().filter(|id| **id != jobs[1]).collect();
        others.reverse();
        assert_eq!(listed, others, "newest first");
        jobs.push(service.submit(&everything(&sim)).await);
        assert_eq!(service.finished(jobs.last().unwrap()).await["state"], "completed");
    }
    let its_files = setup.data.join("jobs").join(&jobs[1]);
    assert!(its_files.join("archive.zip").exists(), "its files stay");
    let deleted = service.client.delete(service.url(&format!("/v1/jobs/{}", jobs[1]))).send().await.unwrap();
    assert_eq!((deleted.status().as_u16(), its_files.exists()), (204, false));
}

/// What a user takes away can be made again without asking Zoom again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_got_lost_is_made_again_by_a_retry() {
    let world = World::new(account()).await;
    let id = world.submit(&world.everything()).await;
    world.finished(&id).await;
    let expected = world.archive(&id).await;
    let path = format!("/v1/jobs/{id}/archive");
    let retry = async || world.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await;
    assert_eq!(retry().await.status(), 409, "nothing is missing");
    let job_directory = world.settings.jobs.data_dir.join("jobs").join(&id);
    let file = job_directory.join("archive.zip");
    for damage in ["removed", "cut short", "everything removed"] {
        match damage {
            "removed" => std::fs::remove_file(&file).unwrap(),
            "cut short" => File::options().write(true).open(&file).unwrap().set_len(1_000).unwrap(),
            _ => std::fs::remove_dir_all(&job_directory).unwrap(),
        }
        for answer in [world.client.head(world.url(&path)), world.client.get(world.url(&path))] {
            assert_eq!(answer.send().await.unwrap().status(), 409, "{damage}");
        }
        let told: Value = world.get(&path).await.json().await.unwrap();
        assert_eq!(told["code"], "archive-lost", "{told}");
        let asked = world.sim.stats().requests;
        assert_eq!(retry().await.status(), 202, "{damage}");
        assert_eq!(world.finished(&id).await["state"], "completed", "{damage}");
        assert_eq!(world.archive(&id).await.comparable(), expected.comparable(), "{damage}");
        let again = world.sim.stats().requests - asked;
        assert_eq!(again > 0, damage == "everything removed", "{damage}: {again}");
    }
}
