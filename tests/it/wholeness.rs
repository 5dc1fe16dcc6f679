//! Nothing lost, nothing duplicated, nothing altered, nothing outside the range.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use jiff::ToSpan;
use serde_json::{Value, json};
use zoom_chat_reports::sim::{FaultLevel, ItemOptions, SimSettings};

use crate::harness::{Missing, World, assert_all, assert_whole};

fn account(sessions: u32, messages: u64, faults: FaultLevel) -> SimSettings {
    SimSettings { sessions, messages, months: 6, faults, ..SimSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_months_from_mid_month_to_mid_month_come_out_whole() {
    let world = World::new(account(500, 200_000, FaultLevel::None)).await;
    let data = world.sim.dataset().clone();
    let (from, to) = (data.first_day().saturating_add(1.day()), data.last_day().saturating_sub(3.days()));
    let (job, archive) = world.run(&json!({ "from": from.to_string(), "to": to.to_string() })).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert_eq!(job["progress"]["sessions_done"], job["progress"]["sessions_total"]);
    assert_eq!(job["progress"]["percent"], 100.0);
    assert_all(&archive, &data, (from, to));
    let summary = archive.json("_metadata/extraction_summary.json");
    assert_eq!(summary["unknown_members"], serde_json::json!(["x_sim_note"]));
    let file = world.directory.path().join("a.zip");
    std::fs::write(&file, &archive.bytes).unwrap();
    let tested = Command::new("unzip").arg("-tq").arg(&file).output().unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
    let summed = Command::new("python3")
        .args(["-c", "import sys,zipfile; z=zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; print(len(z.namelist()))"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&summed.stdout).trim(), archive.names.len().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_holds_half_of_all_messages_is_split_and_whole_and_costs_few_requests_more() {
    let sim = SimSettings { heaviest_share: 0.5, ..account(300, 150_000, FaultLevel::None) };
    let world = World::new(SimSettings { latency: Duration::from_millis(5), ..sim }).await;
    let data = world.sim.dataset().clone();
    let (from, to) = (data.first_day(), data.last_day());
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert_all(&archive, &data, (from, to));
    let summary = archive.json("_metadata/extraction_summary.json");
    let least: u64 = summary["windows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|window| {
            let day = |name: &str| window[name].as_str().unwrap().parse().unwrap();
            data.least_requests(day("from"), day("to"), ItemOptions::default())
        })
        .sum();
    let sent = world.sim.stats().requests;
    assert!(sent > least, "it was split: {sent} of {least}");
    // What splits may cost (`ALLOWANCE` in `extract::split`), and a little, as costs are estimated.
    assert!(sent <= least + 64 + least / 40, "splitting is cheap: {sent} of {least}");
    assert_eq!(job["progress"]["units_done"], job["progress"]["units_total"]);
}

/// Months end on different days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_any_day_of_the_calendar_six_months_come_out_whole() {
    for day in ["2026-03-31", "2026-08-31", "2026-12-31", "2027-03-01", "2028-02-29"] {
        let today = Some(day.parse().unwrap());
        let world = World::new(SimSettings { today, ..account(20, 400, FaultLevel::None) }).await;
        let data = world.sim.dataset().clone();
        let (job, archive) = world.run(&world.everything()).await;
        assert_eq!(job["state"], "completed", "{day}: {job:#}");
        assert_all(&archive, &data, (data.first_day(), data.last_day()));
    }
}

/// Zoom does not document in which order it serves messages. In either order a split session comes out as if it had not been
/// split.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_split_keeps_the_order_of_its_messages_also_when_the_newest_come_first() {
    let sim = SimSettings {
        newest_first: true,
        heaviest_share: 0.8,
        months: 1,
        ..account(30, 40_000, FaultLevel::None)
    };
    let world = World::new(SimSettings { latency: Duration::from_millis(5), ..sim }).await;
    let data = world.sim.dataset().clone();
    let (body, (from, to)) = world.one_window();
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert_eq!(job["progress"]["windows_total"], 1);
    assert_all(&archive, &data, (from, to));
    let (sent, least) = (world.sim.stats().requests, data.least_requests(from, to, ItemOptions::default()));
    assert!(sent > least, "it was split: {sent} of {least}");
}

/// Zoom may answer "not found" where there is nothing, also for some parts of a split session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_without_messages_may_be_told_as_not_found() {
    // Newest first, so that a first page does not show on which day a session begins.
    let sim = SimSettings {
        empty_is_not_found: true,
        newest_first: true,
        months: 1,
        heaviest_share: 0.0,
        ..account(12, 40_000, FaultLevel::None)
    };
    let world = World::new(SimSettings { latency: Duration::from_millis(20), ..sim }).await;
    let data = world.sim.dataset().clone();
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed", "{:#?}", world.failures(job["id"].as_str().unwrap()).await);
    let days = (data.first_day(), data.last_day());
    assert_all(&archive, &data, days);
    let summary = archive.json("_metadata/extraction_summary.json");
    let stats = world.sim.stats();
    let not_found = stats.requests - stats.pages_served;
    let empty = summary["not_found"].as_array().unwrap().len() as u64;
    assert!(not_found > 2 * empty, "each twice, and parts of sessions as well: {not_found}, {empty}");
}

/// With a rate limit, pages are committed in groups, and files are hashed while others are still being fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paced_run_that_lasts_for_seconds_comes_out_whole() {
    let sim = SimSettings { latency: Duration::from_millis(20), ..account(200, 60_000, FaultLevel::None) };
    let world = World::with(sim, |settings| settings.zoom.limit = Some(300.0)).await;
    let data = world.sim.dataset().clone();
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let days = (data.first_day(), data.last_day());
    assert_all(&archive, &data, days);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn light_faults_lose_nothing() {
    let world = World::new(account(500, 200_000, FaultLevel::Light)).await;
    let data = world.sim.dataset().clone();
    let (from, to) = (data.first_day().saturating_add(4.days()), data.last_day());
    let (job, archive) = world.run(&json!({ "from": from.to_string(), "to": to.to_string() })).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert!(world.sim.stats().faults > 50, "there were faults: {:?}", world.sim.stats());
    assert_all(&archive, &data, (from, to));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nasty_account_ends_with_exactly_the_failures_it_must_have() {
    let world = World::new(account(200, 30_000, FaultLevel::Nasty)).await;
    let data = world.sim.dataset().clone();
    let (from, to) = (data.first_day(), data.last_day());
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let (failing, gone) = (data.always_failing_session().unwrap(), data.gone().unwrap());
    let (bad_from, bad_to) = data.unlistable_days().unwrap();
    let failures = world.failures(&id).await;
    assert_eq!(failures.len() as u64, job["failures_total"].as_u64().unwrap());

    let days_listed_bad: BTreeSet<String> = failures
        .iter()
        .filter(|line| line["what"] == "listing")
        .map(|line| line["from"].as_str().unwrap().to_owned())
        .collect();
    let bad_days: BTreeSet<String> =
        bad_from.series(1.day()).take_while(|day| *day <= bad_to).map(|day| day.to_string()).collect();
    assert_eq!(days_listed_bad, bad_days, "exactly the bad month's days are reported");
    let failing_id = data.session(failing).id;
    let of_sessions: Vec<_> = failures.iter().filter(|line| line["what"] == "session").collect();
    assert!(
        !of_sessions.is_empty()
            && of_sessions.iter().all(|failure| failure["session_id"] == failing_id.as_str()),
        "{of_sessions:#?}"
    );
    // The last attempt at some of its days may have met a random fault instead.
    let is_its_own = |failure: &&&Value| failure["code"] == "server-error" && failure["status"] == 500;
    assert!(of_sessions.iter().filter(is_its_own).count() * 2 > of_sessions.len(), "{of_sessions:#?}");

    // Sessions active only in the bad month cannot be known; all others are whole, even for the bad month's days.
    let known: BTreeSet<u32> = data
        .sessions_listed(from, bad_from.yesterday().unwrap())
        .chain(data.sessions_listed(bad_to.tomorrow().unwrap(), to))
        .collect();
    let unlisted = data.sessions_listed(from, to).filter(|index| !known.contains(index)).collect();
    let archive = world.archive(&id).await;
    let missing = Missing { empty: [failing, gone].into(), unlisted, lost_days: None };
    assert_whole(&archive, &data, (from, to), ItemOptions::default(), &missing);
    let summary = archive.json("_metadata/extraction_summary.json");
    let gone_id = data.session(gone).id;
    assert!(
        summary["not_found"].as_array().unwrap().iter().all(|line| line["session_id"] == gone_id.as_str())
    );
    assert!(!summary["not_found"].as_array().unwrap().is_empty());
    assert_eq!(archive.json("_metadata/failures.json").as_array().unwrap().len(), failures.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_can_be_selected_by_their_own_time_and_parts_left_out() {
    let world = World::new(account(60, 8_000, FaultLevel::None)).await;
    let data = world.sim.dataset().clone();
    let from = data.last_day().saturating_sub(40.days());
    let to = from.saturating_add(20.days());
    let body = |more: serde_json::Value| {
        let mut body = json!({ "from": from.to_string(), "to": to.to_string() });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (_, archive) = world.run(&body(json!({ "edits_by": "modification_time" }))).await;
    let options = ItemOptions { all_modifications: true, ..ItemOptions::default() };
    assert_whole(&archive, &data, (from, to), options, &Missing::default());
    let without = json!({ "include": { "edited": false, "deleted": false, "bot_messages": false, "reactions": false, "custom_emoji_reactions": false } });
    let (_, archive) = world.run(&body(without)).await;
    let options = ItemOptions {
        edited: false,
        deleted: false,
        bot_messages: false,
        reactions: false,
        custom_emoji_reactions: false,
        all_modifications: false,
    };
    assert_whole(&archive, &data, (from, to), options, &Missing::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_select_sessions_and_save_requests() {
    let world = World::new(account(80, 4_000, FaultLevel::None)).await;
    let data = world.sim.dataset().clone();
    let mut body = world.everything();
    let wanted = [data.session(0).id, data.session(2).id];
    body["sessions"] = json!({ "ids": [&wanted[0], &wanted[1], "nobody"] });
    let (job, archive) = world.run(&body).await;
    let not_selected = &archive.json("_metadata/extraction_summary.json")["not_selected"];
    assert_eq!(*not_selected, json!(["nobody"]));
    let summary = archive.json("_metadata/sessions_summary.json");
    let ids: BTreeSet<_> =
        summary.as_array().unwrap().iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, wanted.into());
    assert!(job["progress"]["units_total"].as_u64().unwrap() <= 14);
    let infos = (0..80).map(|session| serde_json::from_str::<Value>(&data.info_json(session)).unwrap());
    let channel = infos.map(|info| info["channel_id"].clone()).find(Value::is_string).unwrap();
    body["sessions"] = json!({ "channel_ids": ["nowhere", &channel] });
    let (_, archive) = world.run(&body).await;
    let not_selected = &archive.json("_metadata/extraction_summary.json")["not_selected"];
    assert_eq!(*not_selected, json!(["nowhere"]));
    let selected = archive.json("_metadata/sessions_summary.json");
    let mut selected = selected.as_array().unwrap().iter().map(|line| line["id"].as_str().unwrap());
    let in_channel = |id: &str| {
        let info =
            (0..80).find(|session| data.session(*session).id == id).map(|session| data.info_json(session));
        serde_json::from_str::<Value>(&info.unwrap()).unwrap()["channel_id"] == channel
    };
    assert!(selected.clone().count() > 0 && selected.all(in_channel));
    body["sessions"] = json!({ "types": ["1:1"] });
    let (_, archive) = world.run(&body).await;
    let summary = archive.json("_metadata/sessions_summary.json");
    let lines = summary.as_array().unwrap();
    assert!(!lines.is_empty() && lines.iter().all(|line| line["type"] == "1:1" && line["member_count"] == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_day_is_open_when_it_is_today_and_an_empty_account_is_whole() {
    let world = World::new(SimSettings { sessions: 0, messages: 0, ..SimSettings::default() }).await;
    let today = world.sim.dataset().last_day().tomorrow().unwrap();
    let (job, archive) = world
        .run(&json!({ "from": today.saturating_sub(3.days()).to_string(), "to": today.to_string() }))
        .await;
    assert_eq!(job["state"], "completed");
    let summary = archive.json("_metadata/extraction_summary.json");
    assert_eq!(summary["total_sessions"], 0);
    assert!(summary["captured_until"].is_string());
    assert_eq!(summary["windows"][0]["open"], true);
    assert_eq!(archive.json("_metadata/failures.json"), json!([]));
}
