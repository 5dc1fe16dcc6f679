//! The real app on a temporary directory, a simulator beside it, and a reader that shares no code with the writer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::ToSpan;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqlSafeStr, SqliteConnection};
use tempfile::TempDir;
use zoom_chat_reports::app::{App, AppSettings};
use zoom_chat_reports::clock::{ManualClock, SharedClock, SystemClock};
use zoom_chat_reports::http::HttpSettings;
use zoom_chat_reports::jobs::JobSettings;
use zoom_chat_reports::sim::{
    Dataset, FaultAnswer, ItemKind, ItemOptions, Match, ScriptedFault, SimSettings, Simulator,
};
use zoom_chat_reports::zoom::ZoomSettings;
use zoom_chat_reports::zoom::auth::Credentials;
use zoom_chat_reports::zoom::retry::RetryPolicy;

use crate::caller::Caller;

/// The day on which tests play unless they say otherwise: neither midnight nor the calendar makes a difference to them.
pub const TODAY: Date = jiff::civil::date(2026, 11, 24);

/// A clock that shows this time of that day.
pub fn clock_at(time: &str) -> Arc<ManualClock> {
    ManualClock::starting_at(format!("{TODAY}T{time}Z").parse().unwrap())
}

/// A simulator and the service in front of it.
pub struct World {
    pub sim: Simulator,
    pub settings: AppSettings,
    pub directory: TempDir,
    pub clock: SharedClock,
    caller: Caller,
    app: Option<App>,
}

impl Deref for World {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// Fast enough for tests, still the real policy: short delays, all attempts.
fn settings(sim: &Simulator, directory: &TempDir) -> AppSettings {
    let account = SimSettings::default();
    let credentials = Credentials {
        account_id: account.account_id,
        client_id: account.client_id,
        client_secret: account.client_secret.into(),
    };
    let usual = ZoomSettings::new(sim.api_base_url(), sim.oauth_base_url(), credentials);
    AppSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        http: HttpSettings::default(),
        jobs: JobSettings::in_directory(directory.path().join("data")),
        zoom: ZoomSettings {
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(5),
            max_answer_bytes: 16 << 20,
            retry: RetryPolicy {
                base: Duration::from_millis(5),
                cap: Duration::from_millis(100),
                ..usual.retry
            },
            ..usual
        },
    }
}

impl World {
    pub async fn new(sim: SimSettings) -> Self {
        Self::with(sim, |_| {}).await
    }

    pub async fn with(sim: SimSettings, adjust: impl FnOnce(&mut AppSettings)) -> Self {
        let noon = sim.today.unwrap_or(TODAY).at(12, 0, 0, 0).to_zoned(TimeZone::UTC).unwrap();
        Self::with_clock(sim, ManualClock::starting_at(noon.timestamp()), adjust).await
    }

    pub async fn with_clock(
        sim: SimSettings,
        clock: SharedClock,
        adjust: impl FnOnce(&mut AppSettings),
    ) -> Self {
        let today = sim.today.or(Some(TODAY));
        let sim = Simulator::start(SimSettings { today, ..sim }).await.unwrap();
        let directory = TempDir::new().unwrap();
        let mut settings = settings(&sim, &directory);
        adjust(&mut settings);
        let app = App::start(settings.clone(), clock.clone()).await.unwrap();
        let caller = Caller::new(format!("http://{}", app.address));
        Self { sim, settings, directory, clock, caller, app: Some(app) }
    }

    /// Stops the service and starts it again on the same data.
    pub async fn restart(&mut self) {
        self.stop().await;
        let app = App::start(self.settings.clone(), self.clock.clone()).await.unwrap();
        self.caller.base = format!("http://{}", app.address);
        self.app = Some(app);
    }

    pub async fn stop(&mut self) {
        if let Some(app) = self.app.take() {
            app.shut_down().await;
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.app.as_ref().unwrap().address
    }

    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.app.as_ref().unwrap().metrics_address
    }

    pub fn directory_of(&self, id: &str) -> PathBuf {
        self.settings.jobs.data_dir.join("jobs").join(id)
    }

    /// A request for all of the simulator's days.
    pub fn everything(&self) -> Value {
        everything(&self.sim)
    }

    /// A request for the last three weeks (one window, whatever day it is), and these days.
    pub fn one_window(&self) -> (Value, (Date, Date)) {
        let to = self.sim.dataset().last_day();
        let from = to.checked_sub(20.days()).unwrap();
        (json!({ "from": from.to_string(), "to": to.to_string() }), (from, to))
    }

    /// A request for the last day, and that day.
    pub fn one_day(&self) -> (Value, Date) {
        let day = self.sim.dataset().last_day();
        (json!({ "from": day.to_string(), "to": day.to_string() }), day)
    }
}

pub const EXPIRED_PAGE_TOKEN: &str =
    r#"{"code":300,"message":"The next page token is either invalid or has expired."}"#;
pub const TOO_OLD: &str = r#"{"code":300,"message":"The date is more than six months ago."}"#;
pub const INVALID_TOKEN: &str = r#"{"code":124,"message":"Invalid access token."}"#;
pub const NO_PERMISSION: &str = r#"{"code":200,"message":"No permission."}"#;
pub const GONE: &str = r#"{"code":5301,"message":"gone"}"#;

/// Lets the first `after` matching requests pass and answers the next `times` of them.
pub fn fault(matches: Match, after: u32, times: u32, answer: FaultAnswer) -> ScriptedFault {
    ScriptedFault { matches, after, times, answer }
}

/// Answers every matching request.
pub fn always(matches: Match, answer: FaultAnswer) -> ScriptedFault {
    fault(matches, 0, u32::MAX, answer)
}

pub fn status(code: u16, body: &str) -> FaultAnswer {
    with_headers(code, &[], body)
}

pub fn with_headers(status: u16, headers: &[(&str, &str)], body: &str) -> FaultAnswer {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    FaultAnswer::Status { status, headers, body: body.to_owned() }
}

pub async fn open_sqlite(file: &Path) -> SqliteConnection {
    SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(file)).await.unwrap()
}

/// Runs statements on a SQLite file that nobody else has open.
pub async fn alter(file: &Path, statements: impl SqlSafeStr) {
    let mut database = open_sqlite(file).await;
    sqlx::raw_sql(statements).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

/// The archives in a job's directory.
pub fn archives_in(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).into_iter().flatten().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "zip")).collect()
}

/// Waits until `is_so` returns true, for half a minute at most.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = SystemClock::shared();
    for _ in 0..30_000 {
        if is_so() {
            return;
        }
        clock.sleep(Duration::from_millis(1)).await;
    }
    panic!("not so after half a minute: {what}");
}

/// Waits until a job's directory has `count` archives: replaced ones are removed only after the job has ended.
pub async fn archives_come_to(directory: &Path, count: usize) -> Vec<PathBuf> {
    eventually("there are so many archives", || archives_in(directory).len() == count).await;
    archives_in(directory)
}

/// The only archive in a job's directory.
pub fn archive_in(directory: &Path) -> PathBuf {
    let [archive] = &archives_in(directory)[..] else { panic!("one archive in {}", directory.display()) };
    archive.clone()
}

/// A request for all that the account holds.
pub fn everything(sim: &Simulator) -> Value {
    let data = sim.dataset();
    json!({ "from": data.first_day().to_string(), "to": data.last_day().to_string() })
}

/// Waits until `path` is gone: a job is marked as expired first, its files are removed right after.
pub async fn removed(path: &Path) {
    eventually(&format!("{} is gone", path.display()), || !path.exists()).await;
}

/// The messages of a session that were sent in these days, in their order.
pub fn sent(data: &Dataset, session: u32, from: Date, to: Date) -> Vec<String> {
    let items = data.items(session, from, to, ItemOptions::default());
    items.filter(|(kind, _)| *kind == ItemKind::Message).map(|(_, text)| text).collect()
}

/// An archive, opened by an independent reader.
#[derive(Debug, Clone)]
pub struct Archive {
    pub bytes: Vec<u8>,
    pub files: BTreeMap<String, Vec<u8>>,
    pub names: Vec<String>,
}

impl Archive {
    pub fn read(bytes: Vec<u8>) -> Self {
        let mut zip = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
        let mut files = BTreeMap::new();
        let mut names = Vec::new();
        for index in 0..zip.len() {
            let mut file = zip.by_index(index).unwrap();
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            let name = file.name().unwrap().into_owned();
            names.push(name.clone());
            files.insert(name, content);
        }
        Self { bytes, files, names }
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.files[name]).unwrap()
    }

    /// The entry of a session in the summary of sessions.
    pub fn line_of(&self, id: &str) -> Option<Value> {
        let summary = self.json("_metadata/sessions_summary.json");
        summary.as_array().unwrap().iter().find(|line| line["id"] == id).cloned()
    }

    /// The messages of the session that has this entry in the summary of sessions.
    pub fn messages_of(&self, line: &Value) -> Vec<String> {
        let own = format!("messages/{}_messages.json", line["key"].as_str().unwrap());
        self.files.get(&own).map_or(Vec::new(), |file| raw_items(serde_json::from_slice(file).unwrap()))
    }

    /// Everything that must be the same in two runs over the same account.
    pub fn comparable(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        files.remove("_metadata/SHA256SUMS");
        let mut summary = self.json("_metadata/extraction_summary.json");
        for volatile in ["extraction_date", "captured_until", "requests", "retries", "rate_limited", "job_id"]
        {
            summary.as_object_mut().unwrap().remove(volatile);
        }
        files.insert("_metadata/extraction_summary.json".to_owned(), summary.to_string().into_bytes());
        let mut failures = self.json("_metadata/failures.json");
        for failure in failures.as_array_mut().unwrap() {
            for volatile in ["attempts", "failed_at"] {
                failure.as_object_mut().unwrap().remove(volatile);
            }
        }
        files.insert("_metadata/failures.json".to_owned(), failures.to_string().into_bytes());
        files
    }

    /// Checks that the archive matches its own checksums and that its names are safe and sorted.
    pub fn check_form(&self) {
        let sums = String::from_utf8(self.files["_metadata/SHA256SUMS"].clone()).unwrap();
        let mut summed = BTreeSet::new();
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let actual = hex::encode(Sha256::digest(&self.files[name]));
            assert_eq!(actual, sum, "{name}");
            summed.insert(name.to_owned());
        }
        let mut all: BTreeSet<String> = self.names.iter().cloned().collect();
        all.remove("_metadata/SHA256SUMS");
        assert_eq!(summed, all, "every file has its sum");
        assert!(self.names.is_sorted(), "entries are sorted");
        let folded: BTreeSet<String> = self.names.iter().map(|name| name.to_lowercase()).collect();
        assert_eq!(folded.len(), self.names.len(), "no two names meet on a disk that ignores case");
        for name in &self.names {
            assert!(name.len() <= 200 && !name.contains("..") && !name.starts_with('/'), "{name}");
            assert!(name.chars().all(|c| !c.is_control()), "{name:?}");
        }
    }
}

/// The items of one array, exactly as they stand.
pub fn raw_items(array: &RawValue) -> Vec<String> {
    let items: Vec<&RawValue> = serde_json::from_str(array.get()).unwrap();
    items.iter().map(|item| item.get().to_owned()).collect()
}

fn members(text: &[u8]) -> BTreeMap<String, Box<RawValue>> {
    serde_json::from_slice(text).unwrap()
}

/// A page with two messages from one hour of a day, and an edited one that is the same on every page. A single day is never
/// split.
pub fn page_of_hour(day: Date, hour: i64, next: &str) -> FaultAnswer {
    let begin = day.to_zoned(TimeZone::UTC).unwrap().timestamp().as_millisecond();
    let item = |minute: i64| format!(r#"{{"timestamp":{}}}"#, begin + minute * 60_000);
    let messages = [item(hour * 60), item(hour * 60 + 59)].join(",");
    FaultAnswer::ReplaceBody(format!(
        r#"{{"messages":[{messages}],"edited_messages":[{}],"next_page_token":"{next}"}}"#,
        item(0)
    ))
}

/// What may be missing, and of which sessions.
#[derive(Debug, Default)]
pub struct Missing {
    /// Sessions that are there but empty.
    pub empty: BTreeSet<u32>,
    /// Sessions that could not be listed.
    pub unlisted: BTreeSet<u32>,
    /// Days of which nothing could be fetched.
    pub lost_days: Option<(Date, Date)>,
}

/// Asserts that every item of the dataset is in the archive, as `assert_whole` does.
pub fn assert_all(archive: &Archive, data: &Dataset, days: (Date, Date)) {
    assert_whole(archive, data, days, ItemOptions::default(), &Missing::default());
}

/// Asserts that every item of the dataset that is not `missing` is in the archive exactly once, byte for byte and in order, and
/// nothing else is.
pub fn assert_whole(
    archive: &Archive,
    data: &Dataset,
    (from, to): (Date, Date),
    options: ItemOptions,
    missing: &Missing,
) {
    archive.check_form();
    let summary = archive.json("_metadata/sessions_summary.json");
    let mut by_id: BTreeMap<&str, &Value> =
        summary.as_array().unwrap().iter().map(|line| (line["id"].as_str().unwrap(), line)).collect();
    assert_eq!(by_id.len(), summary.as_array().unwrap().len(), "a session is listed once");
    let mut expected_files: BTreeSet<String> =
        ["SHA256SUMS", "extraction_summary.json", "failures.json", "sessions_summary.json"]
            .map(|name| format!("_metadata/{name}"))
            .into();
    let failures = archive.json("_metadata/failures.json");
    let failures = failures.as_array().unwrap();
    let mut totals = [0; 3];
    for index in data.sessions_listed(from, to).filter(|index| !missing.unlisted.contains(index)) {
        let session = data.session(index);
        let line = by_id.remove(session.id.as_str()).unwrap_or_else(|| panic!("session {index} is missing"));
        let has_failed = failures.iter().any(|failure| failure["session_id"] == session.id.as_str());
        assert_eq!(line["incomplete"], has_failed, "{line}");
        let key = line["key"].as_str().unwrap();
        let mut truth: [Vec<String>; 3] = Default::default();
        if !missing.empty.contains(&index) {
            // Lost days are the first ones, so what is left is one range.
            let from = missing.lost_days.map_or(from, |(_, last)| last.tomorrow().unwrap());
            for (kind, text) in data.items(index, from, to, options) {
                truth[kind as usize].push(text);
            }
        }
        let listed: BTreeSet<_> =
            line["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap().to_owned()).collect();
        let name = listed.iter().find(|file| file.starts_with("sessions/")).unwrap();
        let mut own_files = BTreeSet::from([name.clone()]);
        let [messages, edited, deleted] = truth.each_ref().map(Vec::len);
        let counts = json!({ "messages": messages, "edited_messages": edited, "deleted_messages": deleted });
        assert_eq!(line["counts"], counts, "session {index}");
        let file = members(&archive.files[name]);
        assert_eq!(
            file["session_info"].get(),
            data.info_json(index),
            "session {index}'s info, byte for byte"
        );
        let content = members(file["messages_data"].get().as_bytes());
        assert_eq!(serde_json::from_str::<String>(content["session_id"].get()).unwrap(), session.id);
        let arrays = [
            ("messages", "total_messages"),
            ("edited_messages", "total_edited"),
            ("deleted_messages", "total_deleted"),
        ];
        for (position, (array, total)) in arrays.into_iter().enumerate() {
            let items = raw_items(&content[array]);
            assert_eq!(items, truth[position], "{array} of session {index}");
            assert_eq!(content[total].get(), truth[position].len().to_string());
            let suffix = ["messages", "edited", "deleted"][position];
            let own = format!("messages/{key}_{suffix}.json");
            if items.is_empty() {
                assert!(!archive.files.contains_key(&own), "{own} has nothing in it");
            } else {
                let text = String::from_utf8(archive.files[&own].clone()).unwrap();
                assert_eq!(text, format!("[\n{}\n]\n", items.join(",\n")), "one message a line");
                own_files.insert(own);
            }
            totals[position] += truth[position].len() as u64;
        }
        assert_eq!(listed, own_files, "session {index}");
        expected_files.extend(own_files);
    }
    assert!(by_id.is_empty(), "sessions nobody asked for: {:?}", by_id.keys());
    assert_eq!(archive.names.iter().cloned().collect::<BTreeSet<_>>(), expected_files);
    let summary = archive.json("_metadata/extraction_summary.json");
    let told = ["total_messages", "total_edited_messages", "total_deleted_messages"]
        .map(|name| summary[name].as_u64().unwrap());
    assert_eq!(told, totals);
    let windows = summary["windows"].as_array().unwrap();
    let of_windows = ["messages", "edited_messages", "deleted_messages"]
        .map(|name| windows.iter().map(|window| window[name].as_u64().unwrap()).sum::<u64>());
    assert_eq!(of_windows, totals);
}
