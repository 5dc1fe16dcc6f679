//! Zoom down, the account at its daily limit, credentials withdrawn, clocks changed: jobs wait, say so, and go on.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use zoom_chat_reports::app::AppSettings;
use zoom_chat_reports::clock::{Clock, ManualClock};
use zoom_chat_reports::sim::{FaultAnswer, Match, SimSettings};

use crate::caller::is_final;
use crate::harness::{INVALID_TOKEN, World, always, assert_all, clock_at, eventually, fault, status};

fn account() -> SimSettings {
    SimSettings {
        sessions: 60,
        messages: 12_000,
        latency: Duration::from_millis(5),
        ..SimSettings::default()
    }
}

/// Slow enough for something to happen in the middle.
fn paced(settings: &mut AppSettings) {
    settings.zoom.limit = Some(100.0);
}

fn is_waiting(job: &Value) -> bool {
    job["progress"]["waiting_reason"].as_str().is_some_and(|reason| reason.contains("has not answered since"))
}

async fn assert_completed(world: &World, id: &str) {
    let job = world.finished(id).await;
    assert_eq!(
        (job["state"].as_str(), job["failures_total"].as_u64()),
        (Some("completed"), Some(0)),
        "{job:#}"
    );
    let data = world.sim.dataset().clone();
    let days = (data.first_day(), data.last_day());
    assert_all(&world.archive(id).await, &data, days);
}

/// Advances the clock by minutes, one at a time, each noticed by the prober.
async fn minutes(count: u32, world: &World, clock: &ManualClock, id: &str) {
    for _ in 0..count {
        let job = world.wait_until(id, is_waiting).await;
        let until = job["progress"]["waiting_until"].clone();
        clock.advance(Duration::from_secs(60));
        world.wait_until(id, |job| is_waiting(job) && job["progress"]["waiting_until"] != until).await;
    }
}

/// Answers to requests that had carried the old token come later than the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_replaced_once() {
    let late = Duration::from_millis(200);
    let world = World::new(SimSettings { latency: late, latency_jitter: late, ..account() }).await;
    let ids = [world.submit(&world.everything()).await, world.submit(&world.everything()).await];
    eventually("some pages have come", || world.sim.stats().pages_served >= 20).await;
    world.sim.revoke_tokens();
    for id in &ids {
        assert_completed(&world, id).await;
    }
    assert_eq!(world.sim.stats().token_requests, 2, "for both jobs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_minutes_without_zoom_cost_nothing_but_ten_minutes() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), paced).await;
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    world.sim.set_down(true);
    // The token endpoint is down as well, and a new token is needed when Zoom comes back.
    world.sim.revoke_tokens();
    let before = world.sim.stats().requests;
    minutes(10, &world, &clock, &id).await;
    let asked = world.sim.stats().requests - before;
    // Requests in flight, queued ones, and those of a prober whose delay grows to a minute.
    assert!((10..300).contains(&asked), "{asked}");
    world.sim.set_down(false);
    clock.advance(Duration::from_secs(60));
    assert_completed(&world, &id).await;
    assert!(world.sim.stats().requests - before > asked);
    let job = world.finished(&id).await;
    assert!(job["progress"]["retries"].as_u64().unwrap() < 100, "nobody hammers: {job:#}");
}

/// One endpoint is down for some minutes while the other answers: no list is cut and no session fails because of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_one_endpoint_is_waited_for_while_the_other_answers() {
    for (matches, after, down) in [
        (Match::List, 1, status(503, "")),
        (Match::Messages, 3, status(503, "")),
        // Answers of a gateway, after Zoom itself has been reached.
        (Match::List, 1, status(404, "")),
        (Match::Messages, 3, status(302, "")),
        (Match::Messages, 3, status(403, "")),
    ] {
        let clock = clock_at("12:00:00");
        let sim = SimSettings { sessions: 700, messages: 7_000, months: 3, ..account() };
        let world = World::with_clock(sim, clock.clone(), |settings| settings.zoom.limit = Some(600.0)).await;
        world.sim.script(fault(matches, after, u32::MAX, down));
        let id = world.submit(&world.everything()).await;
        minutes(3, &world, &clock, &id).await;
        world.sim.clear_script();
        clock.advance(Duration::from_secs(60));
        assert_completed(&world, &id).await;
    }
}

/// A list that always fails is not an outage, even if its first page was the last one to be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_breaks_while_it_is_read_again_is_cut_and_not_waited_for() {
    let sim = SimSettings { sessions: 700, messages: 3_000, months: 1, hostile: false, ..account() };
    let world = World::new(sim).await;
    let data = world.sim.dataset().clone();
    let (body, (from, to)) = world.one_window();
    let pages = data.sessions_listed(from, to).count().div_ceil(300) as u32;
    assert!(pages > 1, "it is read again");
    world.sim.script(fault(Match::ListTouching(from), pages, u32::MAX, status(504, "")));
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = archive.json("_metadata/failures.json");
    let days = [&failures[0]["from"], &failures[0]["to"]];
    assert_eq!((failures.as_array().unwrap().len(), days), (1, [&json!(from.to_string()); 2]));
    assert_all(&archive, &data, (from, to));
}

/// A gateway's page that happens to be JSON is not an answer of Zoom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_speaks_json_is_one_as_well() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), paced).await;
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    world
        .sim
        .script(always(Match::Report, FaultAnswer::ReplaceBody(r#"{"status":"maintenance"}"#.to_owned())));
    minutes(10, &world, &clock, &id).await;
    world.sim.clear_script();
    clock.advance(Duration::from_secs(60));
    assert_completed(&world, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_begins_in_an_outage_waits_for_its_end() {
    for faults_of in [Match::Report, Match::Token] {
        let clock = clock_at("12:00:00");
        let sim = SimSettings { months: 1, ..account() };
        let world = World::with_clock(sim, clock.clone(), |_| {}).await;
        world.sim.script(fault(faults_of, 0, 40, FaultAnswer::Reset));
        let id = world.submit(&world.everything()).await;
        world.wait_until(&id, is_waiting).await;
        while world.job(&id).await["state"] == "running" {
            clock.advance(Duration::from_secs(30));
            clock.sleep(Duration::from_millis(20)).await;
        }
        assert_completed(&world, &id).await;
    }
}

/// A proxy's page in place of the token endpoint's answer says nothing about credentials that worked before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_endpoint_that_is_not_reached_any_more_is_waited_for_and_not_stormed() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), paced).await;
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    world.sim.script(always(Match::Token, status(404, "<html>no such page</html>")));
    world.sim.script(always(Match::Report, status(401, INVALID_TOKEN)));
    minutes(5, &world, &clock, &id).await;
    // Those before the outage is detected, then those of one prober with growing delay.
    let asked = world.sim.stats().token_requests;
    assert!(asked < 40, "{asked}");
    world.sim.clear_script();
    clock.advance(Duration::from_secs(60));
    assert_completed(&world, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_cannot_be_renewed_early_is_used_to_its_end() {
    for answer in [status(503, ""), status(400, r#"{"reason":"Invalid client_id or client_secret"}"#)] {
        let clock = clock_at("12:00:00");
        let world = World::with_clock(account(), clock.clone(), paced).await;
        let id = world.submit(&world.everything()).await;
        world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
        world.sim.script(always(Match::Token, answer));
        let before = world.sim.stats().token_requests;
        clock.advance(Duration::from_secs(3_550));
        assert_completed(&world, &id).await;
        assert!(world.sim.stats().token_requests > before, "it was tried");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_longest_outage_the_job_fails_and_retry_goes_on() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), |settings| {
        paced(settings);
        settings.zoom.max_outage = Duration::from_secs(240);
    })
    .await;
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    world.sim.set_down(true);
    let mut job = world.wait_until(&id, |job| is_waiting(job) || job["state"] != "running").await;
    while job["state"] == "running" {
        clock.advance(Duration::from_secs(30));
        job = world.wait_until(&id, |_| true).await;
        clock.sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        (job["state"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("zoom-unreachable"))
    );
    assert!(
        job["error"]["detail"].as_str().unwrap().contains("did not answer within MAX_OUTAGE (4m):"),
        "{job:#}"
    );
    assert!(world.failures(&id).await.is_empty(), "no session is to blame");
    world.sim.set_down(false);
    clock.advance(Duration::from_secs(60));
    let before = world.sim.stats().requests;
    world.retry(&id).await;
    assert_completed(&world, &id).await;
    assert!(world.sim.stats().requests - before < 200, "what was there is not asked for again");
}

/// One chat fails for good while everything else is answered: that is not an outage, however often it fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_always_fails_is_not_taken_for_an_outage() {
    let world =
        World::with_clock(SimSettings { sessions: 1, ..account() }, clock_at("12:00:00"), |_| {}).await;
    // The first page is answered, so that there is something to probe with; the second never is.
    world.sim.script(always(Match::WithPageToken, status(503, "")));
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    assert_eq!(world.codes(&id).await, ["server-error"]);
}

/// Regression: a chat that was split and then failed in all its parts, after everything else had ended, was taken for an
/// outage, because Zoom was probed with a page of that very chat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_session_that_fails_in_all_its_parts_is_not_taken_for_an_outage() {
    let sim = SimSettings { messages: 24_000, heaviest_share: 0.8, months: 1, ..account() };
    let world = World::with_clock(sim, clock_at("12:00:00"), |_| {}).await;
    world.sim.script(fault(Match::Session(0), 12, u32::MAX, status(500, "")));
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = world.failures(&id).await;
    assert!(failures.len() > 1, "it was split: {failures:?}");
    let first = world.sim.dataset().session(0).id;
    assert!(
        !failures.is_empty()
            && failures
                .iter()
                .all(|line| line["code"] == "server-error" && line["session_id"] == first.as_str())
    );
}

/// Chats that always fail, retried by a process that has asked for nothing else: Zoom is probed with other chats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_sessions_that_always_fail_retried_after_a_restart_are_not_taken_for_an_outage() {
    let sim = SimSettings { months: 1, ..account() };
    let mut world = World::with_clock(sim, clock_at("12:00:00"), |_| {}).await;
    for session in 0..12 {
        world.sim.script(always(Match::Session(session), status(500, "")));
    }
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(
        (job["state"].as_str(), job["failures_total"].as_u64()),
        (Some("completed_with_failures"), Some(12))
    );
    world.restart().await;
    world.retry(&id).await;
    let job = world.wait_until(&id, |job| is_waiting(job) || !job["finished_at"].is_null()).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    assert_eq!(world.codes(&id).await, ["server-error"]);
}

/// What has been captured shows that Zoom was reached before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_a_gateway_are_waited_for_across_a_restart() {
    for of_tokens in [None, Some(302), Some(404)] {
        let clock = clock_at("12:00:00");
        let mut world = World::with_clock(account(), clock.clone(), paced).await;
        let id = world.submit(&world.everything()).await;
        world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
        world.sim.script(always(Match::Report, status(403, "")));
        minutes(2, &world, &clock, &id).await;
        if let Some(code) = of_tokens {
            // Only new tokens are refused; the next process needs one.
            world.stop().await;
            world.sim.clear_script();
            world.sim.script(always(Match::Token, status(code, "")));
        }
        world.restart().await;
        minutes(2, &world, &clock, &id).await;
        world.sim.clear_script();
        clock.advance(Duration::from_secs(60));
        assert_completed(&world, &id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_a_daily_limit_survives_a_restart() {
    let clock = clock_at("12:00:00");
    let sim = SimSettings { daily_limit: 20, ..account() };
    let mut world = World::with_clock(sim, clock.clone(), |_| {}).await;
    let (one, two) = (world.submit(&world.everything()).await, world.submit(&world.everything()).await);
    let daily = |job: &Value| {
        job["progress"]["waiting_reason"].as_str().is_some_and(|reason| reason.contains("daily"))
    };
    let first = world.wait_until(&one, daily).await;
    world.wait_until(&two, daily).await;
    let asked = world.sim.stats().requests;
    world.restart().await;
    let again = world.wait_until(&one, daily).await;
    assert_eq!(again["progress"]["waiting_until"], first["progress"]["waiting_until"]);
    assert_eq!(world.sim.stats().requests, asked, "Zoom is not asked in vain");
    world.sim.set_daily_limit(0);
    clock.advance(Duration::from_secs(12 * 3_600));
    assert_completed(&world, &one).await;
    assert_completed(&world, &two).await;
}

/// Each pause outlasts the page tokens, and within a day no chat can be read to its end while all take turns. Few are as many
/// as may be in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_that_are_too_long_for_one_day_together_end_a_few_at_a_time() {
    let (clock, day) = (clock_at("12:00:00"), 40);
    let sim = SimSettings {
        sessions: 4,
        messages: 8_000,
        months: 1,
        heaviest_share: 0.25,
        daily_limit: day,
        ..account()
    };
    let world = World::with_clock(sim, clock.clone(), |settings| settings.zoom.in_flight = 1).await;
    let id = world.submit(&world.everything()).await;
    let mut refused = 0;
    for days in 2..30 {
        let is_stopped = |job: &Value| {
            let waits = job["progress"]["waiting_until"].is_string();
            is_final(job) || (waits && world.sim.stats().rate_limited > refused)
        };
        if is_final(&world.wait_until(&id, is_stopped).await) {
            break;
        }
        world.sim.expire_page_tokens();
        refused = world.sim.stats().rate_limited;
        world.sim.set_daily_limit(day * days);
        clock.advance(Duration::from_secs(25 * 3_600));
    }
    assert!(world.job(&id).await["progress"]["requests"].as_u64().unwrap() > 3 * day);
    assert_completed(&world, &id).await;
}

/// 429s that name neither the limit nor its end: the job says that it waits; a check does not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_everything_for_a_minute_are_a_pause() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), paced).await;
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    world.sim.script(always(Match::Report, status(429, "")));
    for _ in 0..2 {
        let before = world.sim.stats().requests;
        eventually("more is refused", || world.sim.stats().requests > before + 3).await;
        clock.advance(Duration::from_secs(31));
    }
    let paused = |job: &Value| {
        job["progress"]["waiting_reason"].as_str().is_some_and(|reason| reason.contains("every request"))
    };
    world.wait_until(&id, paused).await;
    let check: Value = world.post("/v1/check", &Value::Null).await.json().await.unwrap();
    assert_eq!(check["ok"], false, "{check:#}");
    world.sim.clear_script();
    clock.advance(Duration::from_secs(61));
    world.wait_until(&id, |job| !paused(job)).await;
    // The pace recovers.
    clock.advance(Duration::from_secs(61));
    assert_completed(&world, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_withdrawn_in_mid_job_end_it_soon_and_new_ones_finish_it() {
    let world = World::with_clock(account(), clock_at("12:00:00"), paced).await;
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 2_000).await;
    world.sim.set_credentials_valid(false);
    world.sim.revoke_tokens();
    let job = world.finished(&id).await;
    assert_eq!((job["state"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("credentials")));
    assert!(job["progress"]["messages"].as_u64().unwrap() > 2_000, "everything is kept");
    let before = world.sim.stats().requests;
    world.sim.set_credentials_valid(true);
    world.retry(&id).await;
    assert_completed(&world, &id).await;
    let all = world.finished(&id).await["progress"]["requests"].as_u64().unwrap();
    assert!(world.sim.stats().requests - before < all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_an_hour_forward_or_back_stops_nothing_and_expires_nothing() {
    for hours in [1, -1] {
        let clock = clock_at("12:00:00");
        let world = World::with_clock(account(), clock.clone(), |settings| {
            settings.jobs.retention = Duration::from_secs(1_800);
            settings.zoom.limit = Some(400.0);
        })
        .await;
        let done = world.submit(&world.everything()).await;
        world.finished(&done).await;
        let id = world.submit(&world.everything()).await;
        world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
        clock.set_wall(SignedDuration::from_hours(hours));
        assert_completed(&world, &id).await;
        // Retention runs once a minute.
        clock.advance(Duration::from_secs(120));
        let third = world.submit(&world.everything()).await;
        world.finished(&third).await;
        let job = world.job(&done).await;
        assert_eq!(job["state"], "completed", "set by {hours} h: half an hour has not passed");
        // Now it has passed by both clocks.
        clock.advance(Duration::from_secs(2 * 3_600));
        world.wait_until(&done, |job| job["state"] == "expired").await;
    }
}
