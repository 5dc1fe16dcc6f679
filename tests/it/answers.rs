//! Each answer Zoom may give, and what the service makes of it: the table of `docs/answers.md`, row by row.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::ToSpan;
use serde_json::json;
use zoom_chat_reports::sim::{FaultAnswer, ItemOptions, Match, SimSettings};

use crate::harness::{
    GONE, INVALID_TOKEN, Missing, NO_PERMISSION, World, always, assert_all, assert_whole, eventually, fault,
    status, with_headers,
};

/// How a job ends.
enum Ends {
    /// Completed, and everything is there.
    Whole,
    /// Completed with failures, all of this code.
    Failures(&'static str),
    /// The job itself failed with this code.
    Failed(&'static str),
    /// Completed; the session's items are these, byte for byte.
    Items(Vec<String>),
    /// Completed; the session is there but empty. Its id, if it is not the first; and whether it is marked as not found.
    Empty { id: Option<String>, not_found: bool },
    /// Completed, without any session.
    Nothing,
}

struct Row {
    /// As named in the document.
    name: &'static str,
    matches: Match,
    /// How many requests get this answer; `ALWAYS` for every one.
    times: u32,
    answer: FaultAnswer,
    ends: Ends,
}

const ALWAYS: u32 = u32::MAX;
/// Fewer than the attempts for one request.
const SOME: u32 = 5;

fn page(messages: &str) -> FaultAnswer {
    FaultAnswer::ReplaceBody(format!("{{\"next_page_token\":\"\",\"messages\":[{messages}]}}"))
}

/// Session 0 is answered with a page of exactly this one message, which must be kept byte for byte.
fn verbatim(name: &'static str, message: String) -> Row {
    Row {
        name,
        matches: Match::Session(0),
        times: ALWAYS,
        answer: page(&message),
        ends: Ends::Items(vec![message]),
    }
}

fn row(name: &'static str, matches: Match, times: u32, answer: FaultAnswer, ends: Ends) -> Row {
    Row { name, matches, times, answer, ends }
}

fn bomb() -> FaultAnswer {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..64 {
        packed.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    FaultAnswer::Bytes {
        headers: vec![("content-encoding".to_owned(), "gzip".to_owned())],
        body: packed.finish().unwrap(),
    }
}

fn rows() -> Vec<Row> {
    use Ends::{Failed, Failures, Whole};
    use Match::{List, Messages, Report, Session, WithPageToken};
    let html = "<html><h1>Bad gateway</h1></html>";
    let too_fast = r#"{"code":429,"message":"You have reached the maximum per-second rate limit for this API. Try again later."}"#;
    let bad_client = r#"{"reason":"Invalid client_id or client_secret","error":"invalid_client"}"#;
    let long_id = "x".repeat(10_000);
    vec![
        row(
            "a redirect",
            Session(0),
            ALWAYS,
            with_headers(302, &[("location", "http://127.0.0.1:1/")], ""),
            Failures("rejected"),
        ),
        row(
            "a redirect, for a while",
            Report,
            SOME,
            with_headers(307, &[("location", "/login")], html),
            Whole,
        ),
        row("400 without a code, for a while", Report, SOME, status(400, html), Whole),
        row("another 2xx", Session(0), ALWAYS, status(204, ""), Failures("rejected")),
        row(
            "400 code 300 to a page token",
            WithPageToken,
            3,
            status(400, r#"{"code":300,"message":"expired"}"#),
            Whole,
        ),
        row(
            "400 code 300 without a page token",
            Session(0),
            ALWAYS,
            status(400, r#"{"code":300,"message":"bad"}"#),
            Failures("rejected"),
        ),
        row("400 code 124", Report, 1, status(400, INVALID_TOKEN), Whole),
        row("400 code 200", Messages, ALWAYS, status(400, NO_PERMISSION), Failed("no-permission")),
        row(
            "400 code 104, 4700 or 4711",
            List,
            ALWAYS,
            status(400, r#"{"code":4711,"message":"Invalid access token, does not contain scopes"}"#),
            Failed("missing-scopes"),
        ),
        row("401", Report, 1, status(401, INVALID_TOKEN), Whole),
        row(
            "401 with errorCode",
            Report,
            1,
            status(401, r#"{"errorCode":401,"errorMessage":"Unauthorized"}"#),
            Whole,
        ),
        row("401 again and again", Report, ALWAYS, status(401, r#"{"code":124}"#), Failed("credentials")),
        row("403 without a code, for a while", Session(0), SOME, status(403, html), Whole),
        row(
            "403 without a code to one session for good",
            Session(0),
            ALWAYS,
            status(403, html),
            Failures("no-permission"),
        ),
        row(
            "404 to a first page",
            Session(0),
            ALWAYS,
            status(404, GONE),
            Ends::Empty { id: None, not_found: true },
        ),
        row("404 to a first page, once", Session(0), 1, status(404, GONE), Whole),
        row("404 without a code, for a while", Report, SOME, status(404, html), Whole),
        row(
            "404 without a code to one session for good",
            Session(0),
            ALWAYS,
            status(404, html),
            Failures("not-found"),
        ),
        row(
            "404 code 2300",
            Report,
            ALWAYS,
            status(404, r#"{"code":2300,"message":"This API endpoint is not recognized."}"#),
            Failed("unknown-endpoint"),
        ),
        row("404 in mid-chain", WithPageToken, ALWAYS, status(404, ""), Failures("not-found")),
        row("408 or 425, for a while", Session(0), SOME, status(408, ""), Whole),
        row("any other 4xx", Session(0), ALWAYS, status(418, ""), Failures("rejected")),
        row("429 a second", Report, SOME, status(429, too_fast), Whole),
        row(
            "429 with a body that cannot be read",
            Session(0),
            SOME * 2,
            with_headers(429, &[("content-encoding", "gzip")], "no gzip"),
            Whole,
        ),
        row("429 with Retry-After", Report, 2, with_headers(429, &[("retry-after", "1")], too_fast), Whole),
        row("5xx with JSON, for a while", Report, SOME, status(500, r#"{"code":500,"message":"x"}"#), Whole),
        row("5xx with HTML, for a while", Report, SOME, status(502, html), Whole),
        row("5xx with nothing, for a while", Report, SOME, status(503, ""), Whole),
        row("5xx to one session for good", Session(0), ALWAYS, status(500, ""), Failures("server-error")),
        row("no answer (reset), for a while", Report, SOME, FaultAnswer::Reset, Whole),
        row("no answer (silence), once", Report, 1, FaultAnswer::Hang, Whole),
        row("half an answer, for a while", Report, SOME, FaultAnswer::CutBody(300), Whole),
        row("an endless answer", Session(0), ALWAYS, FaultAnswer::Endless, Failures("answer-too-large")),
        row(
            "an answer larger than MAX_ANSWER_BYTES",
            Session(0),
            ALWAYS,
            page(&format!("\"{}\"", "x".repeat(3 << 20))),
            Failures("answer-too-large"),
        ),
        row("a compressed bomb", Session(0), ALWAYS, bomb(), Failures("answer-too-large")),
        row("HTML with status 200, for a while", Report, SOME, status(200, html), Whole),
        row(
            "HTML with status 200 for good",
            Session(0),
            ALWAYS,
            status(200, html),
            Failures("unreadable-answer"),
        ),
        row(
            "an error in disguise (200)",
            Session(0),
            ALWAYS,
            status(200, r#"{"code":500,"message":"x"}"#),
            Failures("unreadable-answer"),
        ),
        row(
            "JSON with a wrong content type",
            Session(0),
            ALWAYS,
            with_headers(200, &[("content-type", "text/plain")], r#"{"messages":[{"a":1}]}"#),
            Ends::Items(vec![r#"{"a":1}"#.to_owned()]),
        ),
        row(
            "invalid UTF-8",
            Session(0),
            ALWAYS,
            FaultAnswer::Bytes {
                headers: Vec::new(),
                body: b"{\"messages\":[{\"m\":\"\xff\xfe\"}]}".to_vec(),
            },
            Failures("unreadable-answer"),
        ),
        row(
            "arrays that are null or absent",
            Session(0),
            ALWAYS,
            FaultAnswer::ReplaceBody(r#"{"messages":null,"next_page_token":null}"#.to_owned()),
            Ends::Empty { id: None, not_found: false },
        ),
        row(
            "arrays of a wrong type",
            Session(0),
            ALWAYS,
            FaultAnswer::ReplaceBody(r#"{"messages":{"a":1}}"#.to_owned()),
            Failures("unreadable-answer"),
        ),
        row(
            "a page token that repeats",
            Session(0),
            ALWAYS,
            FaultAnswer::RepeatPageToken,
            Failures("page-token-loop"),
        ),
        row("pages that never end", Session(0), ALWAYS, FaultAnswer::EndlessPages, Failures("endless-pages")),
        row(
            "pages that go round in a circle",
            Session(0),
            ALWAYS,
            FaultAnswer::Circle,
            Failures("endless-pages"),
        ),
        row("a page of fewer days", Session(0), ALWAYS, FaultAnswer::FewerDays(5), Failures("days-left-out")),
        row("a list of fewer days, once", List, 1, FaultAnswer::FewerDays(5), Whole),
        row("a list that never ends, once", List, 202, FaultAnswer::EndlessPages, Whole),
        row("the token endpoint: 4xx, for a while", Match::Token, 2, status(401, bad_client), Whole),
        row("the token endpoint: 4xx", Match::Token, ALWAYS, status(400, bad_client), Failed("credentials")),
        row(
            "the token endpoint: a redirect",
            Match::Token,
            ALWAYS,
            with_headers(302, &[("location", "/login")], html),
            Failed("credentials"),
        ),
        row(
            "the token endpoint: 404 with a page of 100 kB",
            Match::Token,
            ALWAYS,
            status(404, &format!("<html>{}</html>", "x".repeat(100_000))),
            Failed("credentials"),
        ),
        row(
            "the token endpoint: 403 without a word, for a while",
            Match::Token,
            SOME,
            status(403, html),
            Whole,
        ),
        row("the token endpoint: silence, once", Match::Token, 1, FaultAnswer::Hang, Whole),
        verbatim("a lone surrogate", r#"{"id":"1","message":"\ud800"}"#.to_owned()),
        verbatim(
            "a number beyond 64 bits",
            r#"{"id":"1","timestamp":123456789012345678901234567890,"n":1e999,"m":1.50}"#.to_owned(),
        ),
        verbatim(
            "deeply nested JSON",
            format!("{{\"id\":\"1\",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)),
        ),
        verbatim("a message of 1 MB", format!("{{\"id\":\"1\",\"message\":\"{}\"}}", "m".repeat(1 << 20))),
        row(
            "a session id of 10 kB",
            List,
            1,
            FaultAnswer::ReplaceBody(format!(
                "{{\"sessions\":[{{\"id\":\"{long_id}\",\"type\":\"Group\",\"name\":\"n\"}}]}}"
            )),
            Ends::Empty { id: Some(long_id), not_found: true },
        ),
        row(
            "a session listed without messages",
            Session(0),
            ALWAYS,
            page(""),
            Ends::Empty { id: None, not_found: false },
        ),
        row(
            "a session without an id",
            List,
            ALWAYS,
            FaultAnswer::ReplaceBody(r#"{"sessions":[{"name":"n"}]}"#.to_owned()),
            Failures("unreadable-answer"),
        ),
        row("a list that answers 404", List, ALWAYS, status(404, GONE), Ends::Nothing),
        row(
            "a list that answers 404 without a code",
            List,
            ALWAYS,
            // A code that merely repeats the status counts as none.
            status(404, r#"{"code":404,"message":"Not found."}"#),
            Failures("not-found"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_leads_to_what_the_document_says() {
    for Row { name, matches, times, answer, ends } in rows() {
        let sim = SimSettings {
            sessions: 12,
            messages: 2_400,
            months: 1,
            hostile: false,
            ..SimSettings::default()
        };
        let world = World::with(sim, |settings| {
            settings.zoom.max_answer_bytes = 2 << 20;
            settings.zoom.idle_timeout = Duration::from_millis(700);
        })
        .await;
        world.sim.script(fault(matches, 0, times, answer));
        let data = world.sim.dataset().clone();
        let (body, days) = world.one_window();
        let job_id = world.submit(&body).await;
        let job = world.finished(&job_id).await;
        let state = job["state"].as_str().unwrap();
        assert!(world.sim.stats().faults > 0, "{name}: it was never answered so");
        match ends {
            Ends::Whole => {
                assert_eq!(state, "completed", "{name}: {job:#}");
                let archive = world.archive(&job_id).await;
                assert_all(&archive, &data, days);
            }
            Ends::Failures(code) => {
                assert_eq!(state, "completed_with_failures", "{name}: {job:#}");
                let failures = world.failures(&job_id).await;
                let codes: BTreeSet<&str> =
                    failures.iter().map(|line| line["code"].as_str().unwrap()).collect();
                assert_eq!(codes, BTreeSet::from([code]), "{name}");
                world.archive(&job_id).await.check_form();
            }
            Ends::Failed(code) => {
                assert_eq!((state, job["error"]["code"].as_str()), ("failed", Some(code)), "{name}: {job:#}");
                assert!(job["error"]["help"].is_string(), "{name}");
            }
            Ends::Items(expected) => {
                assert_eq!(state, "completed", "{name}: {job:#}");
                let archive = world.archive(&job_id).await;
                archive.check_form();
                let line = archive.line_of(&data.session(0).id).unwrap();
                let own = format!("messages/{}_messages.json", line["key"].as_str().unwrap());
                let text = String::from_utf8_lossy(&archive.files[&own]);
                assert!(text == format!("[\n{}\n]\n", expected.join(",\n")), "{name}: not byte for byte");
            }
            Ends::Empty { id, not_found } => {
                assert_eq!(state, "completed", "{name}: {job:#}");
                let archive = world.archive(&job_id).await;
                archive.check_form();
                let id = id.unwrap_or_else(|| data.session(0).id);
                let line = archive.line_of(&id).unwrap_or_else(|| panic!("{name}: it is not there"));
                let files = line["files"].as_array().unwrap();
                assert!(
                    files.len() == 1 && files[0].as_str().unwrap().starts_with("sessions/"),
                    "{name}: {line}"
                );
                assert_eq!(line["not_found"], not_found, "{name}: {line}");
                let told = archive.json("_metadata/extraction_summary.json");
                let told = told["not_found"].as_array().unwrap();
                assert_eq!(
                    told.iter().any(|line| line["session_id"] == id.as_str()),
                    not_found,
                    "{name}: {told:?}"
                );
            }
            Ends::Nothing => {
                assert_eq!(state, "completed", "{name}: {job:#}");
                let archive = world.archive(&job_id).await;
                archive.check_form();
                assert_eq!(archive.json("_metadata/sessions_summary.json"), json!([]), "{name}");
            }
        }
    }
}

/// What an answer for fewer days holds is kept, and the missing days are reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_fewer_days_are_kept_and_told_of() {
    let sim =
        SimSettings { sessions: 12, messages: 6_000, months: 1, hostile: false, ..SimSettings::default() };
    let world = World::new(sim).await;
    world.sim.script(always(Match::Messages, FaultAnswer::FewerDays(5)));
    let data = world.sim.dataset().clone();
    let (body, (from, to)) = world.one_window();
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = archive.json("_metadata/failures.json");
    assert_eq!(failures.as_array().unwrap().len(), data.sessions_listed(from, to).count());
    let failure = &failures[0];
    assert_eq!(failure["from"], from.to_string(), "{failure:#}");
    let since = from.checked_add(5.days()).unwrap();
    let message = format!("Zoom answered for {since} to {to} when it was asked for {from} to {to}");
    assert_eq!(failure["message"], message);
    let missing = Missing { lost_days: Some((from, since.yesterday().unwrap())), ..Missing::default() };
    assert_whole(&archive, &data, (from, to), ItemOptions::default(), &missing);
}

/// A message sent while the list is being read may move its session from a page not yet read to one already read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_moves_within_the_list_while_it_is_read_is_found() {
    let sim =
        SimSettings { sessions: 700, messages: 3_000, months: 1, hostile: false, ..SimSettings::default() };
    let world = World::new(sim).await;
    let data = world.sim.dataset().clone();
    let (body, (from, to)) = world.one_window();
    let listed: Vec<u32> = data.sessions_listed(from, to).collect();
    let pages = listed.len().div_ceil(300) as u64;
    let moving = listed[400];
    let moves = || {
        world.sim.script(fault(Match::List, 0, pages as u32, FaultAnswer::Without(moving)));
    };
    moves();
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert_all(&archive, &data, (from, to));
    assert_eq!(world.sim.stats().list_requests, pages * 3, "until nothing new is found");

    // Also when none of the sessions found so far are selected.
    moves();
    let mut body = body;
    body["sessions"] = json!({ "ids": [data.session(moving).id] });
    let (_, archive) = world.run(&body).await;
    let summary = archive.json("_metadata/sessions_summary.json");
    assert_eq!(summary[0]["id"], data.session(moving).id);
    assert_eq!(world.sim.stats().list_requests, pages * 6);
}

/// Whether the list is read once more depends on what its last page brought, even if the job is resumed at that point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_was_to_be_read_again_is_so_after_a_restart() {
    let sim =
        SimSettings { sessions: 700, messages: 3_000, months: 1, hostile: false, ..SimSettings::default() };
    let mut world = World::new(sim).await;
    let data = world.sim.dataset().clone();
    let (body, (from, to)) = world.one_window();
    let listed: Vec<u32> = data.sessions_listed(from, to).collect();
    let pages = listed.len().div_ceil(300) as u32;
    world.sim.script(fault(Match::List, 0, pages, FaultAnswer::Without(*listed.last().unwrap())));
    // The second pass finds it on its last page; the third is interrupted.
    world.sim.script(fault(Match::List, pages * 2, ALWAYS, FaultAnswer::Hang));
    let id = world.submit(&body).await;
    let third_pass = u64::from(pages) * 2 + 1;
    eventually("the third pass begins", || world.sim.stats().list_requests >= third_pass).await;
    world.sim.clear_script();
    world.restart().await;
    assert_eq!(world.finished(&id).await["state"], "completed");
    assert!(world.sim.stats().list_requests > third_pass, "{:?}", world.sim.stats());
    let archive = world.archive(&id).await;
    assert_all(&archive, &data, (from, to));
}

/// The same message on two pages, and a session listed twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_overlaps_is_kept_once() {
    let sim = SimSettings { sessions: 1, messages: 60, months: 1, hostile: false, ..SimSettings::default() };
    let world = World::new(sim).await;
    let data = world.sim.dataset().clone();
    let info = data.info_json(0);
    let twice = FaultAnswer::ReplaceBody(format!("{{\"sessions\":[{info},{info}]}}"));
    world.sim.script(fault(Match::List, 0, 1, twice));
    let pages = [
        r#"{"next_page_token":"2","messages":[{"id":"a"},{"id":"b"}]}"#,
        r#"{"next_page_token":"","messages":[{"id":"b"},{"id":"c"},{"id":"a"}]}"#,
    ];
    for answer in pages {
        world.sim.script(fault(Match::Session(0), 0, 1, FaultAnswer::ReplaceBody(answer.to_owned())));
    }
    let (job, archive) = world.run(&world.one_window().0).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let summary = archive.json("_metadata/sessions_summary.json");
    assert_eq!(summary.as_array().unwrap().len(), 1, "one session");
    let own = format!("messages/{}_messages.json", summary[0]["key"].as_str().unwrap());
    assert_eq!(
        archive.json(&own),
        json!([{"id":"a"},{"id":"b"},{"id":"c"}]),
        "byte-identical repeats of the page before"
    );
    assert_eq!(archive.json("_metadata/extraction_summary.json")["repeated_items_dropped"], 2);
}

/// Equal items on one page, or on pages further apart, are as many items.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_overlap_is_kept_however_equal() {
    let sim = SimSettings { sessions: 1, messages: 60, months: 1, hostile: false, ..SimSettings::default() };
    let world = World::new(sim).await;
    for answer in [
        r#"{"next_page_token":"2","messages":[{"id":"a"},{"id":"a"}]}"#,
        r#"{"next_page_token":"3","messages":[{"id":"b"}]}"#,
        r#"{"next_page_token":"","messages":[{"id":"a"}]}"#,
    ] {
        world.sim.script(fault(Match::Session(0), 0, 1, FaultAnswer::ReplaceBody(answer.to_owned())));
    }
    let (job, archive) = world.run(&world.one_window().0).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let summary = archive.json("_metadata/sessions_summary.json");
    let expected = ["a", "a", "b", "a"].map(|id| format!(r#"{{"id":"{id}"}}"#));
    assert_eq!(archive.messages_of(&summary[0]), expected);
    assert_eq!(archive.json("_metadata/extraction_summary.json")["repeated_items_dropped"], 0);
}

/// The document and the test name the same rows.
#[test]
fn the_document_has_a_row_for_each_test_and_a_test_for_each_row() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/answers.md");
    let text = std::fs::read_to_string(path).unwrap();
    let documented: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .filter(|cell| *cell != "Zoom answers" && !cell.starts_with('-'))
        .collect();
    let rows = rows();
    let mut tested: BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
    // Tested above, in `failures.rs`, and in `outages.rs`.
    tested.extend([
        "a message on two pages",
        "a session listed twice",
        "403 without a code to the list of one month for good",
        "429 to one session for good",
        "5xx to one page of a session for good",
        "429 a day",
        "nothing at all, for minutes",
        "the token endpoint: 5xx or no answer",
    ]);
    assert_eq!(documented, tested);
}
