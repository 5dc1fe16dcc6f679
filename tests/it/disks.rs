//! Disks that are full, read-only or removed: a clear state and message, nothing half-written, other jobs go on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use zoom_chat_reports::sim::{FaultAnswer, Match, SimSettings, Simulator};

use crate::harness::{always, archives_in, assert_all, everything};
use crate::process::{Service, Setup};

pub fn account() -> SimSettings {
    SimSettings {
        sessions: 60,
        messages: 24_000,
        latency: Duration::from_millis(3),
        ..SimSettings::default()
    }
}

/// A setup that runs these commands in a new mount namespace and then starts the service there. `None` if the machine allows no
/// such namespace and `ALLOW_NO_MOUNTS` is set.
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

/// A service with a disk of its own: a small tmpfs in a mount namespace.
struct SmallDisk {
    service: Service,
    /// The disk as seen from outside the namespace.
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
    // Room for a part of the capture; then for the capture but not for the archive.
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
        assert!(archives_in(&own).is_empty() && !own.join("archive.zip.tmp").exists(), "{within}");
        // The service itself is healthy.
        assert_eq!(service.get("/healthz").await.status(), 200);
        assert_eq!(service.get("/v1/jobs").await.status(), 200);
        // The remaining room is for its own records: the failure is recorded, a retry is accepted, another job is deleted.
        let other = service.submit(&everything(&sim)).await;
        assert_eq!(service.finished(&other).await["error"]["code"], "disk-full");
        let deleted = service.client.delete(service.url(&format!("/v1/jobs/{other}"))).send().await.unwrap();
        assert_eq!(deleted.status(), 204);
        service.retry(&id).await;
        assert_eq!(service.finished(&id).await["error"]["code"], "disk-full");
        let ready = async || service.get("/readyz").await.status().as_u16();
        assert_eq!(ready().await, 200, "it takes jobs");
        // And when something else uses up the rest, it says that it takes no more:
        disk.fill(0);
        assert_eq!(ready().await, 503);
        disk.make_room();
        assert_eq!(ready().await, 200);
        service.retry(&id).await;
        let before = sim.stats().requests;
        let job = service.wait_until(&id, |job| job["state"] == "completed").await;
        let data = sim.dataset();
        let days = (data.first_day(), data.last_day());
        let archive = service.archive(&id).await;
        assert_all(&archive, data, days);
        if within == "archive" {
            assert_eq!(sim.stats().requests, before, "nothing is fetched again: {job:#}");
        }
    }
}

/// As in a container with a read-only root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_written_goes_to_the_data_directory() {
    // Full list pages: SQLite needs more temporary space for those than it keeps in memory by default.
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
    assert_all(&archive, sim.dataset(), days);
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
    let status = setup.spawn().exited().await;
    let log = setup.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("DATA_DIR") && log.contains("Read-only file system"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_files_are_removed_under_its_feet_fails_and_others_go_on() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path()).with("IDLE_TIMEOUT", "1s");
    // Keeps jobs from ending by themselves.
    sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let service = setup.start().await;
    let (lost, other) = (service.submit(&everything(&sim)).await, service.submit(&everything(&sim)).await);
    service.wait_until(&lost, |job| job["progress"]["messages"].as_u64().unwrap() > 500).await;
    std::fs::remove_dir_all(setup.data.join("jobs").join(&lost)).unwrap();
    sim.clear_script();
    let job = service.finished(&lost).await;
    assert_eq!(job["state"], "failed", "{job:#}");
    assert!(job["error"]["help"].is_string(), "{job:#}");
    assert_eq!(service.finished(&other).await["state"], "completed");
    // The same job, from scratch.
    service.retry(&lost).await;
    assert_eq!(service.finished(&lost).await["state"], "completed");
    assert_eq!(service.archive(&lost).await.comparable(), service.archive(&other).await.comparable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_data_directory_the_service_says_so_and_promises_nothing() {
    let sim = Simulator::start(account()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path()).with("IDLE_TIMEOUT", "1s");
    // Keeps the job from ending by itself.
    sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let service = setup.start().await;
    let id = service.submit(&everything(&sim)).await;
    service.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 500).await;
    std::fs::remove_dir_all(&setup.data).unwrap();
    sim.clear_script();
    let ready = service.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("data directory is gone"));
    let promise = service.post("/v1/jobs", &everything(&sim)).await;
    assert_eq!(promise.status(), 503, "nothing would be left of it");
    let job = service.finished(&id).await;
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(service.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await.status(), 503);
    assert!(!setup.data.join("jobs").exists(), "it is not half re-created");
}
