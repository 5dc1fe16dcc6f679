//! What is requested again (a chain that restarts, a chat that is split, days that are not found): what was received before is
//! kept, each message once, and a first "not found" is not taken for empty.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::ToSpan;
use serde_json::{Value, json};
use zoom_chat_reports::app::AppSettings;
use zoom_chat_reports::capture::{Change, Location, RangeId};
use zoom_chat_reports::days::DateRange;
use zoom_chat_reports::sim::{FaultAnswer, Match, ScriptedFault, SimSettings};

use crate::failures::{account, whole_despite};
use crate::harness::{
    EXPIRED_PAGE_TOKEN, GONE, World, always, assert_all, fault, page_of_hour, sent, status,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_loop_of_pages_all_are_kept_and_retry_doubles_none() {
    let world = World::new(SimSettings { sessions: 1, messages: 200, months: 1, ..account() }).await;
    let (body, day) = world.one_day();
    let mut id = String::new();
    // The third page repeats the token of the second, also on the first retry; on the second retry all is well.
    for (retry, after_the_third) in ["b", "b", ""].into_iter().enumerate() {
        for (hour, next) in ["a", "b", after_the_third].into_iter().enumerate() {
            let page = page_of_hour(day, hour as i64, next);
            world.sim.script(fault(Match::Session(0), 0, 1, page));
        }
        if retry > 0 {
            world.retry(&id).await;
        } else {
            id = world.submit(&body).await;
        }
        let job = world.finished(&id).await;
        let codes: Vec<Value> =
            world.failures(&id).await.iter().map(|failure| failure["code"].clone()).collect();
        let expected: &[&str] = if after_the_third.is_empty() { &[] } else { &["page-token-loop"] };
        assert_eq!(codes, expected, "{retry}");
        let items = [&job["progress"]["messages"], &job["progress"]["edited_messages"]];
        assert_eq!(items, [6, 1], "{retry}: also those of the page that closes the loop");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_gone_in_mid_chain_is_a_failure_and_what_came_before_is_kept() {
    let forget_tokens = |settings: &mut AppSettings| settings.jobs.extract.page_token_life = Duration::ZERO;
    let world = World::with(account(), forget_tokens).await;
    world.sim.script(fault(Match::Session(0), 2, u32::MAX, status(404, GONE)));
    let id = world.submit(&world.everything()).await;
    let mut kept = None;
    // Each retry restarts its chains, and finds nothing there any more.
    for retry in 0..3 {
        let job = if retry > 0 { world.retried(&id).await } else { world.finished(&id).await };
        assert_eq!(job["state"], "completed_with_failures", "{retry}");
        let failures = world.failures(&id).await;
        assert!(
            !failures.is_empty()
                && failures
                    .iter()
                    .all(|failure| failure["code"] == "not-found" && failure["zoom_code"] == 5301)
        );
        let captured = failures.iter().map(|failure| failure["messages_captured"].as_u64().unwrap());
        let captured: u64 = captured.sum();
        assert!(captured >= 100, "{failures:?}");
        assert_eq!(*kept.get_or_insert(captured), captured, "{retry}");
        let summary = world.archive(&id).await.json("_metadata/extraction_summary.json");
        assert_eq!(summary["total_messages"], job["progress"]["messages"], "{retry}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_gone_when_its_chain_begins_again_is_a_failure_and_what_came_before_is_kept() {
    let world = World::new(SimSettings { months: 1, ..account() }).await;
    world.sim.script(fault(Match::Session(0), 1, 1, status(400, EXPIRED_PAGE_TOKEN)));
    world.sim.script(fault(Match::Session(0), 2, u32::MAX, status(404, GONE)));
    let id = world.submit(&world.one_window().0).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures");
    let failures = world.failures(&id).await;
    let told: Vec<_> =
        failures.iter().map(|failure| (&failure["code"], &failure["messages_captured"])).collect();
    assert_eq!(told, [(&json!("not-found"), &json!(100))]);
}

/// Session 0 is gone after its chain has restarted or it has been split: what came before is kept all the same, each message
/// once; if the session comes back, a retry makes it whole.
async fn whatever_came_is_kept(sim: SimSettings, faults: Vec<ScriptedFault>, came: usize) -> Vec<Value> {
    let world = World::new(sim).await;
    for fault in faults {
        world.sim.script(fault);
    }
    let (body, (from, to)) = world.one_window();
    let id = world.submit(&body).await;
    let data = world.sim.dataset().clone();
    let name = data.session(0).id;
    let sent = sent(&data, 0, from, to);
    let mut failures = Vec::new();
    for retry in 0..2 {
        let job = if retry > 0 { world.retried(&id).await } else { world.finished(&id).await };
        assert_eq!(job["state"], "completed_with_failures", "{job:#}");
        failures = world.failures(&id).await;
        assert!(
            !failures.is_empty() && failures.iter().all(|failure| failure["code"] == "not-found"),
            "{failures:?}"
        );
        let archive = world.archive(&id).await;
        let held = archive.messages_of(&archive.line_of(&name).unwrap());
        assert!(held.len() >= came && held.starts_with(&sent[..came]), "{} of {came}", held.len());
        assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "each once");
        assert!(held.iter().all(|text| sent.contains(text)));
        let captured = failures.iter().map(|failure| failure["messages_captured"].as_u64().unwrap());
        assert_eq!(captured.sum::<u64>(), held.len() as u64);
        let total = &archive.json("_metadata/extraction_summary.json")["total_messages"];
        assert_eq!(*total, job["progress"]["messages"], "{retry}");
    }
    world.sim.clear_script();
    assert_eq!(world.retried(&id).await["state"], "completed");
    let archive = world.archive(&id).await;
    assert_eq!(archive.json("_metadata/extraction_summary.json")["items_missing_when_read_again"], 0);
    assert_all(&archive, &data, (from, to));
    failures
}

/// Session 0 is answered with empty pages after its chain has restarted or it has been split.
async fn whatever_came_stays(sim: SimSettings, mut faults: Vec<ScriptedFault>, came: usize) {
    let world = World::new(sim).await;
    let empty = FaultAnswer::ReplaceBody(r#"{"messages":[],"next_page_token":""}"#.to_owned());
    faults.push(fault(Match::Session(0), came as u32 / 100 + faults.len() as u32, u32::MAX, empty));
    for fault in faults {
        world.sim.script(fault);
    }
    let (body, (from, to)) = world.one_window();
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let data = world.sim.dataset();
    let line = archive.line_of(&data.session(0).id).unwrap();
    assert_eq!(archive.messages_of(&line), sent(data, 0, from, to)[..came]);
    let summary = archive.json("_metadata/extraction_summary.json");
    assert_eq!(summary["total_messages"], job["progress"]["messages"]);
    assert!(summary["items_missing_when_read_again"].as_u64() >= Some(came as u64), "it was read again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_chain_had_before_it_began_again_is_kept_when_it_then_brings_less() {
    let sim = SimSettings { messages: 4_000, months: 1, ..account() };
    whatever_came_stays(sim, vec![fault(Match::Session(0), 3, 1, status(400, EXPIRED_PAGE_TOKEN))], 300)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_had_before_it_was_split_is_kept_when_its_parts_bring_less() {
    let sim = SimSettings { messages: 24_000, sessions: 1, months: 1, ..account() };
    whatever_came_stays(SimSettings { latency: Duration::from_millis(100), ..sim }, Vec::new(), 100).await;
}

/// Each time, the chain gets only its first page before it has to restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_before_a_chain_began_again_is_there_once_and_as_it_is_now() {
    let world = World::new(SimSettings { sessions: 1, messages: 10, months: 1, ..account() }).await;
    let message = |id: &str, text: &str| json!({ "id": id, "message": text });
    let messages =
        |texts: &[(&str, &str)]| texts.iter().map(|(id, text)| message(id, text)).collect::<Value>();
    let of = |kind: &str, items: &[(&str, &str)]| json!({ kind: messages(items), "next_page_token": "none of its" });
    let mut readings = [
        of("messages", &[("a", "old"), ("b", "b"), ("c", "c"), ("d", "old"), ("e", "old"), ("f", "f")]),
        of("messages", &[("e", "newer")]),
        of("deleted_messages", &[("f", "f")]),
        of("messages", &[("a", "new")]),
    ];
    let last = readings.last_mut().unwrap();
    last["edited_messages"] = messages(&[("d", "edited")]);
    last["deleted_messages"] = messages(&[("b", "b")]);
    last["next_page_token"] = json!("");
    // After each page but the last, the chain requests the next with that token, which Zoom refuses.
    for (nth, body) in (0..).step_by(2).zip(&readings) {
        world.sim.script(fault(Match::Session(0), nth, 1, FaultAnswer::ReplaceBody(body.to_string())));
    }
    let (job, archive) = world.run(&world.one_window().0).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert_eq!(archive.json("_metadata/extraction_summary.json")["items_missing_when_read_again"], 4);
    let summary = archive.json("_metadata/sessions_summary.json");
    let expected = [("a", "new"), ("c", "c"), ("d", "old"), ("e", "newer")];
    assert_eq!(archive.messages_of(&summary[0]), expected.map(|(id, text)| message(id, text).to_string()));
    let items = [
        &job["progress"]["messages"],
        &job["progress"]["edited_messages"],
        &job["progress"]["deleted_messages"],
    ];
    assert_eq!(items, [4, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_chain_had_before_it_began_again_is_kept_when_it_then_fails() {
    let faults = vec![
        fault(Match::Session(0), 3, 1, status(400, EXPIRED_PAGE_TOKEN)),
        fault(Match::Session(0), 5, u32::MAX, status(404, GONE)),
    ];
    let sim = SimSettings { messages: 4_000, months: 1, ..account() };
    whatever_came_is_kept(sim, faults, 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_had_before_it_was_split_is_kept_when_it_then_fails() {
    // Nothing else is left to do, so it is split once its first page has shown how long it is.
    let gone = fault(Match::Session(0), 1, u32::MAX, status(404, GONE));
    let sim = SimSettings { messages: 24_000, sessions: 1, months: 1, ..account() };
    let sim = SimSettings { latency: Duration::from_millis(100), ..sim };
    let failures = whatever_came_is_kept(sim, vec![gone], 100).await;
    assert!(failures.len() > 1, "it was split: {failures:?}");
}

/// A 404 can also mean "nothing there". It is not trusted at once: a second request may find it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_session_that_is_not_found_once_is_not_taken_for_empty() {
    let sim = SimSettings { messages: 24_000, sessions: 1, months: 1, ..account() };
    let sim = SimSettings { latency: Duration::from_millis(100), ..sim };
    for after in 1..4 {
        let world = World::new(sim.clone()).await;
        world.sim.script(fault(Match::Session(0), after, 1, status(404, GONE)));
        let (body, days) = world.one_window();
        let (job, archive) = world.run(&body).await;
        assert_eq!(job["state"], "completed", "{after}: {job:#}");
        assert_eq!(world.sim.stats().faults, 1);
        let data = world.sim.dataset().clone();
        assert_all(&archive, &data, days);
    }
}

/// The same when a session was split before any of its pages arrived, and the first part requested is not found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_part_of_a_session_that_is_not_found_is_not_taken_for_empty() {
    let sim = SimSettings { messages: 2_000, sessions: 1, months: 1, ..account() };
    let mut world = World::with(sim, |settings| settings.zoom.in_flight = 1).await;
    world.sim.script(always(Match::Messages, FaultAnswer::Hang));
    let (body, (from, to)) = world.one_window();
    let id = world.submit(&body).await;
    world.wait_until(&id, |job| job["progress"]["units_total"] == 1).await;
    world.stop().await;
    let directory = world.directory_of(&id);
    let writer = Location::in_directory(&directory).open_writer().await.unwrap();
    let middle = from.checked_add(10.days()).unwrap();
    let parts = vec![DateRange::new(from, middle), DateRange::new(middle.tomorrow().unwrap(), to)];
    writer.commit(Change::SplitRange { range: RangeId(1), parts, expected_pages: 0 }).await.unwrap();
    writer.close().await;
    world.sim.clear_script();
    let before = world.sim.stats().faults;
    world.sim.script(fault(Match::Messages, 0, 1, status(404, GONE)));
    world.restart().await;
    assert_eq!(world.finished(&id).await["state"], "completed");
    assert!(world.sim.stats().faults > before, "it was not found");
    let (archive, data) = (world.archive(&id).await, world.sim.dataset().clone());
    assert_all(&archive, &data, (from, to));
}

/// A list that has returned sessions and is then read in parts: a part that is not found is not an empty one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_list_that_is_not_found_is_not_taken_for_empty() {
    let world = World::new(SimSettings { sessions: 700, messages: 2_000, months: 1, ..account() }).await;
    let data = world.sim.dataset().clone();
    let (body, (from, to)) = world.one_window();
    assert!(data.sessions_listed(from, to).count() > 300, "its list has more than a page");
    // The whole list breaks off after its first page, on every attempt; its second half is not found.
    world.sim.script(fault(Match::ListTouching(from), 1, 8, status(500, "")));
    let gone = status(404, GONE);
    world.sim.script(fault(Match::ListTouching(to), 9, u32::MAX, gone));
    let id = world.submit(&body).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = world.failures(&id).await;
    assert!(
        !failures.is_empty()
            && failures.iter().all(|line| line["what"] == "listing" && line["code"] == "not-found"),
        "{failures:?}"
    );
    world.sim.clear_script();
    assert_eq!(world.retried(&id).await["state"], "completed");
    let archive = world.archive(&id).await;
    assert_all(&archive, &data, (from, to));
}

/// Nor while no part of the list has returned anything: the whole must be answered, or not be found either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_part_of_a_list_that_is_not_found_is_not_taken_for_empty() {
    let world = World::new(SimSettings { months: 1, ..account() }).await;
    let (body, (from, to)) = world.one_window();
    // The whole list fails; its first half is not found; the whole fails again.
    world.sim.script(fault(Match::ListTouching(from), 0, 8, status(500, "")));
    world.sim.script(fault(Match::ListTouching(from), 8, 2, status(404, GONE)));
    world.sim.script(fault(Match::ListTouching(from), 10, u32::MAX, status(500, "")));
    let id = world.submit(&body).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = world.failures(&id).await;
    let told: Vec<_> =
        failures.iter().map(|line| (&line["what"], &line["code"], &line["attempts"])).collect();
    assert_eq!(told, [(&json!("listing"), &json!("not-found"), &json!(2))]);
    world.sim.clear_script();
    assert_eq!(world.retried(&id).await["state"], "completed");
    assert_all(&world.archive(&id).await, world.sim.dataset(), (from, to));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_not_found_once_is_not_taken_for_empty() {
    whole_despite(vec![fault(Match::List, 0, 1, status(404, GONE))]).await;
}

/// Otherwise it would count as pending until the end, and keep the archive waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_chain_began_again_is_done_once_it_is_there() {
    let world = World::new(SimSettings { sessions: 2, messages: 2_000, months: 1, ..account() }).await;
    world.sim.script(fault(Match::Session(0), 1, 1, status(400, EXPIRED_PAGE_TOKEN)));
    world.sim.script(always(Match::Session(1), FaultAnswer::Hang));
    let id = world.submit(&world.one_window().0).await;
    let job = world.wait_until(&id, |job| job["progress"]["units_done"] == 1).await;
    assert_eq!(job["state"], "running", "{job:#}");
}
