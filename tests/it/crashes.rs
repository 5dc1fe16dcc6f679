//! Killed with SIGKILL in every phase of a job's life: archives equal those of an undisturbed run, no job is stuck, no file is
//! left behind. `KILLS=200 cargo test --test it crashes` kills 200 times instead of 20.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use zoom_chat_reports::clock::Clock;
use zoom_chat_reports::sim::{Match, SimSettings, Simulator};

use crate::harness::{
    Archive, World, archive_in, archives_in, eventually, everything, fault, removed, status,
};
use crate::process::{Service, Setup};

fn account() -> SimSettings {
    SimSettings {
        sessions: 60,
        messages: 24_000,
        // One chat of some two hundred pages in one window: it is split.
        heaviest_share: 0.8,
        months: 1,
        latency: Duration::from_millis(5),
        latency_jitter: Duration::from_millis(3),
        ..SimSettings::default()
    }
}

/// Where the process is killed.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Starting,
    Listing,
    Fetching,
    Splitter,
    Assembling,
    Publishing,
    Cancelling,
    Retrying,
    Deleting,
    Expiring,
}

const PHASES: [Phase; 10] = [
    Phase::Starting,
    Phase::Listing,
    Phase::Fetching,
    Phase::Splitter,
    Phase::Assembling,
    Phase::Publishing,
    Phase::Cancelling,
    Phase::Retrying,
    Phase::Deleting,
    Phase::Expiring,
];

struct Experiment {
    sim: Simulator,
    setup: Setup,
    directory: TempDir,
    expected: Archive,
    everything: Value,
    /// A number that is different for each kill.
    turn: u64,
}

impl Experiment {
    /// A delay of up to `most` milliseconds, unevenly spread over the kills.
    fn somewhere(&self, most: u64) -> Duration {
        Duration::from_micros(self.turn * 7_919 % (most * 1_000))
    }

    /// Waits until Zoom has answered so many more pages: a job's own figures are published only twice a second.
    async fn pages(&self, count: u64) {
        let before = self.sim.stats().pages_served;
        eventually("pages are served", || self.sim.stats().pages_served >= before + count).await;
    }

    fn directory_of(&self, id: &str) -> PathBuf {
        self.setup.data.join("jobs").join(id)
    }

    /// Kills the service in a phase of a new job; returns the job.
    async fn kill_in(&self, phase: Phase, service: Service) -> String {
        let wait = |most| service.clock.sleep(self.somewhere(most));
        if let Phase::Retrying = phase {
            // Every request for the biggest chat but the first two fails, so that the retry has work to do.
            self.sim.script(fault(Match::Session(0), 2, u32::MAX, status(500, "")));
        }
        let id = service.submit(&self.everything).await;
        let url = service.url(&format!("/v1/jobs/{id}"));
        let request = |method: reqwest::Method, path: &str| {
            let call = service.client.request(method, format!("{url}{path}"));
            tokio::spawn(async move { call.send().await.map(|answer| answer.status()) })
        };
        match phase {
            Phase::Starting => wait(10).await,
            Phase::Listing => {
                service.wait_until(&id, |job| job["state"] == "running").await;
                wait(30).await;
            }
            Phase::Fetching => {
                self.pages(self.turn * 7_919 % 200).await;
                wait(20).await;
            }
            Phase::Splitter => {
                // When the biggest chat has shown some pages.
                self.pages(20).await;
                wait(40).await;
            }
            Phase::Assembling => {
                drop(service);
                // Without a rate limit, assembly begins only when everything has been fetched.
                let service = self.setup.clone().with("ZOOM_RATE_LIMIT", "0").spawn();
                let directory = self.directory_of(&id);
                let scratch = directory.join("archive.zip.tmp");
                // It may exist only very briefly.
                eventually("it is assembled", || scratch.exists() || !archives_in(&directory).is_empty())
                    .await;
                service.clock.sleep(self.somewhere(60)).await;
                drop(service);
                return id;
            }
            Phase::Publishing => {
                eventually("it is published", || !archives_in(&self.directory_of(&id)).is_empty()).await;
                wait(4).await;
            }
            Phase::Cancelling => {
                self.pages(10).await;
                let cancelled = request(reqwest::Method::POST, "/cancel");
                wait(6).await;
                drop(service);
                let _ = cancelled.await;
                return id;
            }
            Phase::Retrying => {
                assert_eq!(service.finished(&id).await["state"], "completed_with_failures");
                self.sim.clear_script();
                let retried = request(reqwest::Method::POST, "/retry");
                wait(40).await;
                drop(service);
                let _ = retried.await;
                return id;
            }
            Phase::Deleting => {
                service.finished(&id).await;
                let deleted = request(reqwest::Method::DELETE, "");
                wait(6).await;
                drop(service);
                let _ = deleted.await;
                return id;
            }
            Phase::Expiring => {
                drop(service);
                // The time of expiry is set when a job ends, and is checked right at the start.
                let short = self.setup.clone().with("RETENTION", "1ms");
                let service = short.start().await;
                service.finished(&id).await;
                drop(service);
                let service = short.spawn();
                service.clock.sleep(Duration::from_millis(20) + self.somewhere(60)).await;
                drop(service);
                return id;
            }
        }
        drop(service);
        id
    }

    /// Checks that the job ends as it must after the restart and that nothing is left behind.
    async fn settle(&self, phase: Phase, id: &str, service: &Service) {
        let label = format!("kill {} while {phase:?}", self.turn);
        self.sim.clear_script();
        let answer = service.get(&format!("/v1/jobs/{id}")).await;
        if answer.status() == 404 {
            assert!(matches!(phase, Phase::Deleting), "{label}: the job is gone");
            assert!(!self.directory_of(id).exists(), "{label}: its files are not");
            return;
        }
        let mut job = service.finished(id).await;
        if let Phase::Expiring = phase {
            job = service.wait_until(id, |job| job["state"] == "expired").await;
        }
        let may_be_retried = matches!(phase, Phase::Cancelling | Phase::Retrying);
        if may_be_retried
            && ["cancelled", "completed_with_failures"].contains(&job["state"].as_str().unwrap())
        {
            assert_eq!(
                service.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await.status(),
                202,
                "{label}"
            );
            job = service.finished(id).await;
        }
        if job["state"] == "expired" {
            assert!(matches!(phase, Phase::Expiring), "{label}: expired");
            removed(&self.directory_of(id)).await;
        } else {
            assert_eq!(job["state"], "completed", "{label}: {job:#}");
            let archive = service.archive(id).await;
            archive.check_form();
            assert!(archive.comparable() == self.expected.comparable(), "{label}: another archive");
            let own = archive_in(&self.directory_of(id));
            let left: Vec<String> = std::fs::read_dir(self.directory_of(id))
                .unwrap()
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .filter(|name| !name.starts_with("capture.") && !own.ends_with(name))
                .collect();
            assert!(left.is_empty(), "{label}: {left:?}");
        }
        // Keeps disk usage low and later checks quick.
        service.client.delete(service.url(&format!("/v1/jobs/{id}"))).send().await.unwrap();
        assert!(!self.directory_of(id).exists(), "{label}: files after the deletion");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_every_phase_it_loses_nothing_and_leaves_nothing() {
    let kills: u64 = std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let sim = Simulator::start(account()).await.unwrap();
    let today = Some(sim.dataset().last_day().tomorrow().unwrap());
    let world = World::new(SimSettings { today, ..account() }).await;
    let (job, expected) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed");
    drop(world);
    let everything = everything(&sim);
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let mut experiment = Experiment { sim, setup, directory, expected, everything, turn: 0 };
    let mut service = experiment.setup.start().await;
    for turn in 1..=kills {
        experiment.turn = turn;
        let phase = PHASES[turn as usize % PHASES.len()];
        let id = experiment.kill_in(phase, service).await;
        service = experiment.setup.start().await;
        experiment.settle(phase, &id, &service).await;
    }
    drop(service);
    let left = std::fs::read_dir(experiment.setup.data.join("jobs")).unwrap().count();
    assert_eq!(left, 0, "no directory without a job in {}", experiment.directory.path().display());
    assert!(!experiment.setup.log().contains("panicked"), "nothing panicked");
}
