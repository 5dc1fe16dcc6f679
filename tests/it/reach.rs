//! Days that leave Zoom's reach before or while they are fetched: only those days are lost.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::civil::Date;
use serde_json::{Value, json};
use zoom_chat_reports::days::DateRange;
use zoom_chat_reports::extract::windows;
use zoom_chat_reports::sim::{Dataset, FaultAnswer, ItemOptions, Match, SimSettings};

use crate::failures::account;
use crate::harness::{
    GONE, Missing, TOO_OLD, World, always, assert_whole, clock_at, eventually, fault, sent, status,
};

/// What is missing when these first days are lost; sessions active only then cannot be known.
fn without(data: &Dataset, first: Date, last: Date) -> Missing {
    let known: BTreeSet<u32> = data.sessions_listed(last.tomorrow().unwrap(), data.last_day()).collect();
    let all = data.sessions_listed(first, data.last_day());
    let unlisted = all.filter(|index| !known.contains(index)).collect();
    Missing { unlisted, lost_days: Some((first, last)), ..Missing::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_leaves_zooms_reach_before_it_is_fetched_is_a_failure_and_the_rest_is_whole() {
    let clock = clock_at("23:00:00");
    let sim = SimSettings { months: 6, ..account() };
    let world = World::with_clock(sim, clock.clone(), |settings| settings.jobs.max_running = 1).await;
    let data = world.sim.dataset().clone();
    let lost = jiff::civil::date(2026, 5, 24);
    assert_eq!(data.first_day(), lost, "as far back as Zoom goes today");
    // Keeps the first job from ending by itself.
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let first = world.submit(&world.everything()).await;
    world.wait_until(&first, |job| job["state"] == "running").await;
    let second = world.submit(&world.everything()).await;
    clock.advance(Duration::from_secs(7_200));
    world.sim.clear_script();
    world.cancel(&first).await;
    let job = world.finished(&second).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = world.failures(&second).await;
    assert!(!failures.is_empty());
    for failure in &failures {
        assert_eq!(
            (failure["code"].as_str(), failure["from"].as_str()),
            (Some("out-of-reach"), Some("2026-05-24"))
        );
        assert_eq!(failure["to"], "2026-05-24");
    }
    let missing = without(&data, lost, lost);
    let archive = world.archive(&second).await;
    assert_whole(&archive, &data, (lost, data.last_day()), ItemOptions::default(), &missing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_zooms_reach_begins_later_than_ours_only_the_days_before_are_lost() {
    let world = World::new(SimSettings { months: 6, ..account() }).await;
    let data = world.sim.dataset().clone();
    let first = data.first_day();
    let lost = [first, first.tomorrow().unwrap()];
    for day in lost {
        for touching in [Match::ListTouching(day), Match::MessagesTouching(day)] {
            world.sim.script(always(touching, status(400, TOO_OLD)));
        }
    }
    let id = world.submit(&world.everything()).await;
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    let failures = world.failures(&id).await;
    let told = |failure: &Value| ["what", "code", "from", "to"].map(|name| failure[name].clone());
    let [one, other] = lost.map(|day| day.to_string());
    for failure in failures.iter().map(told) {
        let expected = match failure[0].as_str() {
            Some("listing") => {
                ["listing", "rejected", failure[2].as_str().unwrap(), failure[2].as_str().unwrap()]
            }
            _ => ["session", "out-of-reach", &one, &other],
        };
        assert_eq!(failure, expected);
    }
    let stats = world.sim.stats();
    let refused = stats.requests - stats.pages_served;
    assert!(refused < 40 + 30, "not one by one for each session: {refused}");
    assert_eq!(world.retried(&id).await["state"], "completed_with_failures");
    let sessions_of = |failures: &[Value]| -> BTreeSet<String> {
        failures
            .iter()
            .filter(|failure| failure["what"] == "session")
            .map(|failure| told(failure)[1..].to_vec())
            .map(|told| format!("{told:?}"))
            .collect()
    };
    let again = world.failures(&id).await;
    assert_eq!((again.len(), sessions_of(&again)), (failures.len(), sessions_of(&failures)), "{again:?}");
    assert!(world.sim.stats().requests < stats.requests + 10, "a retry does not ask for them again");
    let missing = without(&data, first, lost[1]);
    let archive = world.archive(&id).await;
    assert_whole(&archive, &data, (first, data.last_day()), ItemOptions::default(), &missing);

    // The job first checks what an earlier run found out; it can be cancelled meanwhile.
    world.sim.clear_script();
    world.sim.script(always(Match::List, FaultAnswer::Hang));
    let asked = world.sim.stats().requests;
    world.retry(&id).await;
    eventually("it asks Zoom", || world.sim.stats().requests > asked).await;
    let asked_at = world.clock.elapsed();
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["state"], "cancelled");
    assert!(world.clock.elapsed() - asked_at < world.settings.zoom.idle_timeout, "at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_fetched_while_it_cannot_be_checked_where_zooms_reach_begins() {
    let world = World::new(SimSettings { months: 6, ..account() }).await;
    let lost = world.sim.dataset().first_day();
    let refuse_lost = || {
        for touching in [Match::ListTouching(lost), Match::MessagesTouching(lost)] {
            world.sim.script(always(touching, status(400, TOO_OLD)));
        }
    };
    world.sim.script(always(Match::Session(0), status(500, "")));
    refuse_lost();
    let id = world.submit(&world.everything()).await;
    let before = world.finished(&id).await;
    assert_eq!(before["state"], "completed_with_failures");
    world.sim.clear_script();
    world.sim.script(always(Match::List, FaultAnswer::Reset));
    refuse_lost();
    world.retry(&id).await;
    let messages = |job: &Value| job["progress"]["messages"].as_u64().unwrap();
    world.wait_until(&id, |job| messages(job) > messages(&before)).await;
    world.sim.clear_script();
    refuse_lost();
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_without_sessions_is_no_failure_once_its_window_has_partly_left_zooms_reach() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(SimSettings { months: 6, ..account() }, clock.clone(), |_| {}).await;
    let (first, day) = (world.sim.dataset().first_day(), jiff::civil::date(2026, 6, 10));
    world.sim.script(always(Match::ListTouching(day), status(500, "")));
    let id = world.submit(&world.everything()).await;
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    clock.advance(Duration::from_secs(5 * 86_400));
    world.sim.clear_script();
    world.sim.script(always(Match::ListTouching(first), status(400, TOO_OLD)));
    world.sim.script(fault(Match::ListTouching(day), 0, 2, status(404, GONE)));
    let job = world.retried(&id).await;
    assert_eq!(job["state"], "completed", "{:?}", world.failures(&id).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_refused_its_oldest_days_says_nothing_of_zooms_reach() {
    let world = World::new(SimSettings { months: 6, ..account() }).await;
    let data = world.sim.dataset().clone();
    let bad = r#"{"code":300,"message":"Invalid parameter."}"#;
    world.sim.script(always(Match::Session(0), status(400, bad)));
    let id = world.submit(&world.everything()).await;
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    let failures = world.failures(&id).await;
    let of_it = |failure: &Value| (failure["session_id"].clone(), failure["code"].clone());
    let expected = (json!(data.session(0).id), json!("rejected"));
    assert!(
        !failures.is_empty() && failures.iter().all(|failure| of_it(failure) == expected),
        "{failures:?}"
    );
    let missing = Missing { empty: [0].into(), ..Missing::default() };
    let days = (data.first_day(), data.last_day());
    assert_whole(&world.archive(&id).await, &data, days, ItemOptions::default(), &missing);
}

/// How Zoom answers such a request is not known: it may silently leave the day out, or answer "not found" for the whole
/// request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_leaves_zooms_reach_while_a_request_is_on_its_way_is_told_of() {
    let lost = jiff::civil::date(2026, 5, 24);
    for (on_its_way, is_not_found) in [
        (Match::MessagesTouching(lost), false),
        (Match::MessagesTouching(lost), true),
        (Match::ListTouching(lost), false),
        (Match::ListTouching(lost), true),
    ] {
        let case = format!("{on_its_way:?} {is_not_found}");
        let clock = clock_at("23:00:00");
        let latency = Duration::from_secs(1);
        let sim = SimSettings { sessions: 5, messages: 300, months: 6, latency, ..account() };
        let world = World::with_clock(sim, clock.clone(), |_| {}).await;
        if is_not_found {
            let nothing = status(404, GONE);
            world.sim.script(always(on_its_way.clone(), nothing));
        }
        let id = world.submit(&world.everything()).await;
        let is_of_a_list = matches!(on_its_way, Match::ListTouching(_));
        // All of them: it is not known which comes first.
        let data = world.sim.dataset();
        let windows = windows::plan(DateRange::new(data.first_day(), data.last_day()));
        let units: usize = windows.iter().map(|days| data.sessions_listed(days.from, days.to).count()).sum();
        let are_sent = || {
            let stats = world.sim.stats();
            if is_of_a_list {
                stats.list_requests >= windows.len() as u64
            } else {
                stats.message_requests >= units as u64
            }
        };
        eventually("the requests are sent", are_sent).await;
        clock.advance(Duration::from_secs(7_200));
        let job = world.finished(&id).await;
        assert_eq!(job["state"], "completed_with_failures", "{case}: {job:#}");
        let failures = world.failures(&id).await;
        let told: BTreeSet<_> = failures.iter().map(|failure| failure["code"].as_str().unwrap()).collect();
        assert_eq!(told, ["out-of-reach"].into(), "{case}");
        assert_eq!(failures.iter().any(|failure| failure["what"] == "listing"), is_of_a_list, "{case}");
        assert_eq!(data.first_day(), lost);
        let is_told_of = |id: &str| failures.iter().any(|failure| failure["session_id"] == id);
        for index in data.sessions_listed(lost, lost).filter(|_| !is_of_a_list) {
            assert!(is_told_of(&data.session(index).id), "{case}: session {index}");
        }
        // What was answered for that day is kept.
        let missing = match (is_of_a_list, is_not_found) {
            (false, false) => Missing::default(),
            (true, true) => without(data, lost, lost),
            _ => Missing { lost_days: Some((lost, lost)), ..Missing::default() },
        };
        let archive = world.archive(&id).await;
        assert_whole(&archive, data, (lost, data.last_day()), ItemOptions::default(), &missing);
    }
}

/// For a month in which a chat has another name, it is not selected until all months are listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_leaves_zooms_reach_before_a_renamed_chat_is_asked_for_it_is_told_of() {
    let clock = clock_at("23:00:00");
    let sim = SimSettings { months: 6, hostile: false, ..account() };
    let soon = Duration::from_secs(1);
    let world = World::with_clock(sim, clock.clone(), |settings| settings.zoom.idle_timeout = soon).await;
    let data = world.sim.dataset().clone();
    let (lost, session) = (data.first_day(), data.session(0));
    let renamed = format!(r#"{{"sessions":[{{"id":"{}","type":"Group","name":"x"}}]}}"#, session.id);
    world.sim.script(always(Match::ListTouching(lost), FaultAnswer::ReplaceBody(renamed)));
    // Keeps the last list from being read.
    world.sim.script(always(Match::ListTouching(data.last_day()), FaultAnswer::Hang));
    let mut body = world.everything();
    body["sessions"] = json!({ "name_contains": session.name });
    let id = world.submit(&body).await;
    let others_are_listed = |job: &Value| {
        job["progress"]["windows_listed"].as_u64().unwrap() + 1
            >= job["progress"]["windows_total"].as_u64().unwrap().max(2)
    };
    world.wait_until(&id, others_are_listed).await;
    clock.advance(Duration::from_secs(7_200));
    world.sim.clear_script();
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    let told: Vec<_> = world.failures(&id).await;
    let told_of = |failure: &Value| ["session_id", "code", "from", "to"].map(|name| failure[name].clone());
    let expected = [session.id.as_str(), "out-of-reach", "2026-05-24", "2026-05-24"].map(|text| json!(text));
    assert!(told.iter().map(told_of).any(|told| told == expected), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_leaves_zooms_reach_while_it_is_fetched_is_a_failure_and_the_rest_is_whole() {
    let clock = clock_at("23:00:00");
    let sim = SimSettings { sessions: 1, messages: 6_000, months: 6, ..account() };
    let soon = Duration::from_secs(1);
    let world = World::with_clock(sim, clock.clone(), |settings| settings.zoom.idle_timeout = soon).await;
    let data = world.sim.dataset().clone();
    let lost = data.first_day();
    // Of the one chain with that day two pages come, and no third while it is still in reach.
    world.sim.script(fault(Match::MessagesTouching(lost), 2, u32::MAX, FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    eventually("the third page is asked for", || world.sim.stats().faults > 0).await;
    clock.advance(Duration::from_secs(7_200));
    world.sim.clear_script();
    world.sim.script(always(Match::MessagesTouching(lost), status(400, TOO_OLD)));
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = world.failures(&id).await;
    assert!(!failures.is_empty());
    for failure in &failures {
        let told = [&failure["code"], &failure["from"], &failure["to"]].map(|text| text.as_str().unwrap());
        assert_eq!(told, ["out-of-reach", "2026-05-24", "2026-05-24"]);
    }
    let kept = failures.iter().map(|failure| failure["messages_captured"].as_u64().unwrap());
    assert!(kept.sum::<u64>() > 0, "what was received of that day stays: {failures:?}");
    let archive = world.archive(&id).await;
    let mut all = 0;
    for index in data.sessions_listed(lost, data.last_day()) {
        let mut held = archive.messages_of(&archive.line_of(&data.session(index).id).unwrap());
        all += held.len();
        // What had been received of the lost day, and all that came after it, each once.
        let rest = sent(&data, index, lost.tomorrow().unwrap(), data.last_day());
        let first = sent(&data, index, lost, lost);
        let kept = held.len() - rest.len();
        assert_eq!(held.split_off(kept), rest, "session {index}");
        assert!(held.iter().all(|text| first.contains(text)), "session {index}");
        assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), kept, "session {index}");
    }
    assert_eq!(job["progress"]["messages"], all);
}
