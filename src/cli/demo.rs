//! `demo`: a simulated account, the real service, and one job over HTTP, whose archive is checked. No credentials needed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use jiff::civil::Date;
use secrecy::SecretString;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::{WHOLE, WrongUse, grouped, say};
use crate::app::{App, AppSettings};
use crate::clock::{SharedClock, SystemClock};
use crate::config;
use crate::files::{is_there, unless_absent};
use crate::http::HttpSettings;
use crate::jobs::JobSettings;
use crate::shutdown;
use crate::sim::{Dataset, ItemKind, ItemOptions, SimSettings, Simulator};
use crate::zoom::ZoomSettings;
use crate::zoom::auth::Credentials;

/// The rate limit of the simulated account in requests a second, that of a Business plan.
const LIMIT: u32 = 60;

/// The default name of the demo's archive.
const ARCHIVE: &str = "zoom-chat-reports-demo.zip";
/// No demo's archive is larger.
const MOST: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Keep the service and the simulator running until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where the service listens; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = config::address)]
    listen_addr: SocketAddr,
    /// Where to save the archive; an existing file is replaced only if it is an earlier demo's, under the default name
    #[arg(long, value_name = "FILE", default_value = ARCHIVE)]
    archive: PathBuf,
}

pub(super) async fn run(args: &DemoArgs) -> anyhow::Result<u8> {
    if !args.listen_addr.ip().is_loopback() {
        return Err(WrongUse("--listen-addr must be on loopback: the demo has no API keys".to_owned()).into());
    }
    if args.archive.is_dir() {
        return Err(WrongUse("--archive must name a file, not a directory".to_owned()).into());
    }
    let is_usual = args.archive.strip_prefix(".").unwrap_or(&args.archive) == Path::new(ARCHIVE);
    if is_there(&args.archive) && !(is_usual && is_of_a_demo(&args.archive)) {
        let there = args.archive.display();
        return Err(WrongUse(format!(
            "--archive: {there} already exists; choose another file, or move this one away"
        ))
        .into());
    }
    let clock = SystemClock::shared();
    let mut unfinished = Unfinished::create(&args.archive, &clock)?;
    let stop = shutdown::on_signal(clock.clone())?;
    let simulator = Simulator::start(SimSettings {
        sessions: 120,
        messages: 25_000,
        months: 2,
        qps: LIMIT,
        latency: Duration::from_millis(60),
        latency_jitter: Duration::from_millis(40),
        ..SimSettings::default()
    })
    .await?;
    let data_dir = std::env::temp_dir().join(format!("zoom-chat-reports-demo-{}", clock.uuid()));
    let shown = serve(args, &mut unfinished, &simulator, &data_dir, &clock, &stop).await;
    simulator.shutdown().await;
    let removed = unless_absent(std::fs::remove_dir_all(&data_dir));
    shown?;
    removed.map_err(|error| anyhow::anyhow!("{} could not be removed: {error}", data_dir.display()))?;
    Ok(WHOLE)
}

/// Whether a file is no larger than a demo's archive and contains a name that our archives contain.
fn is_of_a_demo(path: &Path) -> bool {
    let name = b"_metadata/extraction_summary.json";
    let is_small = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= MOST);
    is_small && std::fs::read(path).is_ok_and(|file| file.windows(name.len()).any(|part| part == name))
}

/// Starts the service and demonstrates it; the service has stopped when this returns.
async fn serve(
    args: &DemoArgs,
    unfinished: &mut Unfinished,
    simulator: &Simulator,
    data_dir: &Path,
    clock: &SharedClock,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let app = App::start(settings(args, simulator, data_dir), clock.clone()).await?;
    let base = format!("http://{}", app.address);
    say(format_args!("simulated Zoom account: {} ({LIMIT} requests/s)", simulator.api_base_url()));
    say(format_args!("service:                {base}"));
    let shown = tokio::select! {
        shown = show(&base, simulator, args, unfinished, clock) => shown,
        () = stop.cancelled() => Err(anyhow::anyhow!("stopped")),
    };
    if shown.is_ok() && args.keep {
        say("\nthe service keeps running; press Ctrl-C to stop it");
        stop.cancelled().await;
    }
    app.shut_down().await;
    shown
}

fn settings(args: &DemoArgs, simulator: &Simulator, data_dir: &Path) -> AppSettings {
    let sim = SimSettings::default();
    let credentials = Credentials {
        account_id: sim.account_id,
        client_id: sim.client_id,
        client_secret: SecretString::from(sim.client_secret),
    };
    let usual = ZoomSettings::new(simulator.api_base_url(), simulator.oauth_base_url(), credentials);
    AppSettings {
        listen: args.listen_addr,
        http: HttpSettings::default(),
        jobs: JobSettings::in_directory(data_dir.to_owned()),
        zoom: ZoomSettings { limit: Some(f64::from(LIMIT)), ..usual },
    }
}

/// What a user would do with curl: submit, follow, download, check.
async fn show(
    base: &str,
    simulator: &Simulator,
    args: &DemoArgs,
    unfinished: &mut Unfinished,
    clock: &SharedClock,
) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build()?;
    let data = simulator.dataset();
    // The two months up to yesterday: more than one window, as a rule none of them a calendar month.
    let (from, to) = (data.first_day(), data.last_day());
    let body = json!({ "from": from.to_string(), "to": to.to_string(), "label": "demo" });
    say(format_args!("\nPOST /v1/jobs {body}"));
    let response = client.post(format!("{base}/v1/jobs")).json(&body).send().await?;
    let job: Value = response.error_for_status()?.json().await?;
    let id = job["id"].as_str().context("the answer has no id")?;
    let job = follow(&client, &format!("{base}/v1/jobs/{id}"), clock).await?;
    if job["state"] != "completed" {
        bail!("the job ended as {}: {}", job["state"], job["error"]["detail"]);
    }
    let hash = unfinished.download(&client, &format!("{base}/v1/jobs/{id}/archive")).await?;
    ensure!(job["archive"]["sha256"] == hash.as_str(), "the download's hash differs from the job's");
    let truth = items_of(data, (from, to));
    let figure = |name: &str| job["progress"][name].as_u64().unwrap_or(0);
    let got = [figure("messages"), figure("edited_messages"), figure("deleted_messages")];
    ensure!(got == truth, "the account holds {truth:?} items, the job counted {got:?}");
    let [messages, edited, deleted] = got.map(grouped);
    say(format_args!(
        "\nverified: the job counted {messages} messages, {edited} edited, {deleted} deleted, as many as the account holds; \
         the download has its archive's sha256 {hash}"
    ));
    let archive = args.archive.display();
    say(format_args!("archive:  {archive}"));
    say("\ntry next:");
    say(format_args!("  unzip -l {archive}"));
    say(format_args!("  unzip -p {archive} _metadata/extraction_summary.json"));
    if args.keep {
        say("  in another terminal or browser:");
        say(format_args!("  {base}/docs/"));
        say(format_args!("  curl {base}/v1/jobs/{id}"));
    } else {
        say("  zoom-chat-reports demo --keep     keeps the service running, with Swagger UI");
    }
    Ok(())
}

/// Prints a job's progress until the job has ended, and returns the job.
async fn follow(client: &reqwest::Client, url: &str, clock: &SharedClock) -> anyhow::Result<Value> {
    loop {
        clock.sleep(Duration::from_secs(1)).await;
        let job: Value = client.get(url).send().await?.error_for_status()?.json().await?;
        let (state, progress) = (job["state"].as_str().unwrap_or_default(), &job["progress"]);
        let rate = progress["requests_per_second"].as_f64();
        say(format_args!(
            "{state:<10} {:>5.1} %  windows {}/{}  sessions {}  messages {:>7}  {:>4} requests{}",
            progress["percent"].as_f64().unwrap_or(0.0),
            progress["windows_listed"],
            progress["windows_total"],
            progress["sessions_total"],
            grouped(progress["messages"].as_u64().unwrap_or(0)),
            progress["requests"].as_u64().unwrap_or(0),
            rate.map(|rate| format!(" at {rate:.1}/s")).unwrap_or_default()
        ));
        if !["queued", "running"].contains(&state) {
            return Ok(job);
        }
    }
}

/// How many messages, edited and deleted ones the account holds.
fn items_of(data: &Dataset, (from, to): (Date, Date)) -> [u64; 3] {
    let mut items = [0; 3];
    for session in 0..data.session_count() {
        for (kind, _) in data.items(session, from, to, ItemOptions::default()) {
            items[match kind {
                ItemKind::Message => 0,
                ItemKind::Edited => 1,
                ItemKind::Deleted => 2,
            }] += 1;
        }
    }
    items
}

/// Where the archive is until it is complete: a temporary file beside it, removed if the download fails.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    file: File,
    archive: PathBuf,
}

impl Unfinished {
    fn create(archive: &Path, clock: &SharedClock) -> Result<Self, WrongUse> {
        let path = PathBuf::from(format!("{}.{}.part", archive.display(), clock.uuid()));
        match std::fs::File::create_new(&path) {
            Ok(file) => Ok(Self { path, file: File::from_std(file), archive: archive.to_owned() }),
            Err(error) => {
                Err(WrongUse(format!("--archive: {} cannot be written: {error}", archive.display())))
            }
        }
    }

    /// Downloads the archive and moves it into place. Returns its hash.
    async fn download(&mut self, client: &reqwest::Client, url: &str) -> anyhow::Result<String> {
        let mut response = client.get(url).send().await?.error_for_status()?;
        let mut hash = Sha256::new();
        while let Some(chunk) = response.chunk().await? {
            hash.update(&chunk);
            self.file.write_all(&chunk).await?;
        }
        // Before `sync_all`, which does not report that the last write has failed.
        self.file.flush().await?;
        self.file.sync_all().await?;
        let renamed = tokio::fs::rename(&self.path, &self.archive).await;
        renamed.map_err(|error| anyhow::anyhow!("{} cannot be replaced: {error}", self.archive.display()))?;
        Ok(hex::encode(hash.finalize()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is gone already once it has been moved into place.
        let _ = std::fs::remove_file(&self.path);
    }
}
