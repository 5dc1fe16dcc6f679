//! Faults on Zoom's side, and how a job reports them.

use std::time::Duration;

use jiff::ToSpan;
use serde_json::{Value, json};
use zoom_chat_reports::sim::{FaultAnswer, ItemOptions, Match, ScriptedFault, SimSettings};
use zoom_chat_reports::zoom::retry::RetryPolicy;

use crate::caller::is_final;
use crate::harness::{
    INVALID_TOKEN, Missing, NO_PERMISSION, World, always, assert_all, assert_whole, clock_at, fault, sent,
    status, with_headers,
};

pub fn account() -> SimSettings {
    SimSettings { sessions: 40, messages: 3_000, ..SimSettings::default() }
}

pub async fn whole_despite(faults: Vec<ScriptedFault>) -> Value {
    let world = World::new(account()).await;
    for fault in faults {
        world.sim.script(fault);
    }
    let data = world.sim.dataset().clone();
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert!(world.sim.stats().faults > 0, "it was never answered so");
    let days = (data.first_day(), data.last_day());
    assert_all(&archive, &data, days);
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_passing_fault_is_ridden_out() {
    let html = "<html><body>Bad gateway</body></html>";
    let answers = [
        status(500, r#"{"code":500,"message":"x"}"#),
        status(502, html),
        status(503, ""),
        status(
            429,
            r#"{"code":429,"message":"You have reached the maximum per-second rate limit for this API. Try again later."}"#,
        ),
        status(200, html),
        FaultAnswer::ReplaceBody("{\"messages\":\"none\"}".to_owned()),
        FaultAnswer::ReplaceBody("{\"code\":500,\"message\":\"an error in disguise\"}".to_owned()),
        FaultAnswer::Reset,
        FaultAnswer::CutBody(100),
        FaultAnswer::CutBody(0),
        FaultAnswer::ExpiredToken,
        status(401, r#"{"errorCode":401}"#),
        status(400, INVALID_TOKEN),
        FaultAnswer::Delay(Duration::from_millis(200)),
    ];
    let faults = answers.into_iter().enumerate();
    let job = whole_despite(
        faults.map(|(index, answer)| fault(Match::Report, 1 + index as u32 * 6, 1, answer)).collect(),
    )
    .await;
    assert!(job["progress"]["retries"].as_u64().unwrap() >= 11, "{job:#}");
    assert_eq!(job["progress"]["rate_limited"], 1);
}

/// A page that can never be fetched costs the day it belongs to, not the rest of the month.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_always_breaks_at_the_same_page_loses_that_day_only() {
    let world =
        World::new(SimSettings { messages: 4_000, sessions: 1, months: 1, hostile: false, ..account() })
            .await;
    let (body, (from, to)) = world.one_window();
    let day = from.saturating_add(12.days());
    world.sim.script(fault(Match::MessagesTouching(day), 2, u32::MAX, status(500, "")));
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = archive.json("_metadata/failures.json");
    let told: Vec<_> = failures.as_array().unwrap().iter().map(|one| (&one["from"], &one["to"])).collect();
    assert_eq!(told, [(&json!(day.to_string()), &json!(day.to_string()))], "{failures:#}");
    let sent = sent(world.sim.dataset(), 0, from, to);
    let on_that_day = format!("\"date_time\":\"{day}T");
    let (lost, rest): (Vec<_>, Vec<_>) = sent.into_iter().partition(|text| text.contains(&on_that_day));
    assert!(!lost.is_empty());
    let summary = archive.json("_metadata/sessions_summary.json");
    assert!(archive.messages_of(&summary[0]) == rest, "all others, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_forbidden_for_good_does_not_end_the_job() {
    for (forbidden, code) in [
        (status(403, "<html>no</html>"), "no-permission"),
        (status(400, NO_PERMISSION), "no-permission"),
        (status(401, INVALID_TOKEN), "credentials"),
        (status(400, r#"{"code":4711,"message":"does not contain scopes"}"#), "missing-scopes"),
    ] {
        let world = World::new(account()).await;
        world.sim.script(always(Match::Session(0), forbidden));
        let data = world.sim.dataset().clone();
        let id = world.submit(&world.everything()).await;
        let job = world.finished(&id).await;
        assert_eq!(job["state"], "completed_with_failures", "{job:#}");
        let failures = world.failures(&id).await;
        assert!(
            !failures.is_empty() && failures.iter().all(|failure| failure["code"] == code),
            "{failures:?}"
        );
        let missing = Missing { empty: [0].into(), ..Missing::default() };
        let days = (data.first_day(), data.last_day());
        assert_whole(&world.archive(&id).await, &data, days, ItemOptions::default(), &missing);
    }
}

/// As a firewall may do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_forbidden_for_good_does_not_end_the_job_while_another_is_answered() {
    let world = World::new(SimSettings { months: 2, ..account() }).await;
    let data = world.sim.dataset().clone();
    let (first, last) = (data.first_day(), data.last_day());
    world.sim.script(always(Match::ListTouching(first), status(403, "<html>no</html>")));
    let id = world.submit(&world.everything()).await;
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    let failures = world.failures(&id).await;
    let told: Vec<_> =
        failures.iter().map(|line| ["what", "code", "from", "to"].map(|name| &line[name])).collect();
    let day = first.to_string();
    assert_eq!(told, [["listing", "no-permission", &day, &day].map(|text| json!(text)).each_ref()]);
    world.sim.clear_script();
    assert_eq!(world.retried(&id).await["state"], "completed");
    assert_all(&world.archive(&id).await, &data, (first, last));
}

/// Nor does it slow down the others, or go on for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_gets_nothing_but_429s_is_a_failure() {
    let clock = clock_at("12:00:00");
    let sim = SimSettings { sessions: 20, messages: 30_000, ..account() };
    let world = World::with_clock(sim, clock.clone(), |settings| {
        settings.zoom.limit = Some(200.0);
        settings.zoom.retry = RetryPolicy::default();
    })
    .await;
    world.sim.script(always(Match::Session(0), status(429, "")));
    let data = world.sim.dataset().clone();
    let id = world.submit(&world.everything()).await;
    let others_are_done = |job: &Value| {
        let figure = |name: &str| job["progress"][name].as_u64().unwrap();
        figure("windows_listed") == figure("windows_total")
            && figure("sessions_done") + 1 == figure("sessions_total")
    };
    let job = world.wait_until(&id, others_are_done).await;
    let figure = |name: &str| job["progress"][name].as_u64().unwrap();
    assert!(figure("rate_limited") * 10 < figure("requests"), "it is asked for less and less often: {job:#}");
    // It is alone now, and waits for minutes before each attempt.
    for _ in 0..5_000 {
        if world.job(&id).await["state"] != "running" {
            break;
        }
        clock.advance(Duration::from_secs(61));
    }
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = world.failures(&id).await;
    assert!(
        !failures.is_empty() && failures.iter().all(|line| line["session_id"] == data.session(0).id.as_str()),
        "{failures:?}"
    );
    assert!(failures.iter().all(|line| line["code"] == "rejected" && line["status"] == 429), "{failures:?}");
    let missing = Missing { empty: [0].into(), ..Missing::default() };
    let days = (data.first_day(), data.last_day());
    assert_whole(&world.archive(&id).await, &data, days, ItemOptions::default(), &missing);
}

/// No other call is left that would show that others are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_gets_nothing_but_429s_is_a_failure_even_if_it_is_all_there_is() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), |settings| {
        settings.zoom.limit = Some(200.0);
        settings.zoom.retry = RetryPolicy::default();
    })
    .await;
    world.sim.script(always(Match::Session(0), status(429, "")));
    let mut only_this = world.one_window().0;
    only_this["sessions"] = json!({ "ids": [world.sim.dataset().session(0).id] });
    let id = world.submit(&only_this).await;
    for _ in 0..5_000 {
        if is_final(&world.job(&id).await) {
            break;
        }
        clock.advance(Duration::from_secs(61));
    }
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    assert_eq!(world.codes(&id).await, ["rejected"]);
}

/// Then none of them is refused for its own reasons. (How long each waits at most: `zoom::refusals`.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_429s_for_all_requests_fail_none_of_them() {
    let sim = SimSettings { qps: 60, sessions: 200, messages: 15_000, ..account() };
    let world = World::with(sim, |settings| settings.zoom.retry = RetryPolicy::default()).await;
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert!(job["progress"]["rate_limited"].as_u64().unwrap() > 60, "{job:#}");
    let data = world.sim.dataset();
    assert_all(&archive, data, (data.first_day(), data.last_day()));
}

/// Scopes may have been added: a new token is asked for, but the old one is not given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_lacks_a_scope_does_not_take_the_others_their_token() {
    let world = World::new(account()).await;
    let lacks = status(400, r#"{"code":4711,"message":"does not contain scopes"}"#);
    world.sim.script(always(Match::Session(0), lacks));
    world.sim.script(fault(Match::Token, 1, u32::MAX, status(503, "")));
    let id = world.submit(&world.everything()).await;
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    assert_eq!(world.codes(&id).await, ["missing-scopes"]);
}

/// Items that a page repeats are recognised even when a page without messages came in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_page_does_not_hide_that_the_next_repeats_the_one_before() {
    let world = World::new(account()).await;
    let pages = [r#"{"id":"a"},{"id":"b"}"#, "", r#"{"id":"b"},{"id":"c"}"#];
    for (nth, messages) in pages.iter().enumerate() {
        let next = if nth + 1 < pages.len() { format!("page {nth}") } else { String::new() };
        let body = format!("{{\"next_page_token\":\"{next}\",\"messages\":[{messages}]}}");
        world.sim.script(fault(Match::Session(0), nth as u32, 1, FaultAnswer::ReplaceBody(body)));
    }
    let data = world.sim.dataset().clone();
    let (mut body, _) = world.one_window();
    body["sessions"] = json!({ "ids": [data.session(0).id] });
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let summary = archive.json("_metadata/sessions_summary.json");
    assert_eq!(archive.messages_of(&summary[0]), [r#"{"id":"a"}"#, r#"{"id":"b"}"#, r#"{"id":"c"}"#]);
    assert_eq!(archive.json("_metadata/extraction_summary.json")["repeated_items_dropped"], 1);
}

/// A chat selected by the name it has in one month is whole, whatever it is called in another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_that_was_renamed_is_selected_in_all_months() {
    let world = World::new(SimSettings { hostile: false, ..account() }).await;
    let data = world.sim.dataset().clone();
    let (first, last) = (data.first_day(), data.last_day());
    let session = data.session(0);
    let renamed = format!(r#"{{"sessions":[{{"id":"{}","type":"Group","name":"x"}}]}}"#, session.id);
    world.sim.script(always(Match::ListTouching(last), FaultAnswer::ReplaceBody(renamed)));
    let mut body = world.everything();
    body["sessions"] = json!({ "name_contains": session.name });
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let line = archive.line_of(&session.id).unwrap();
    assert_eq!(line["counts"]["messages"], sent(&data, 0, first, last).len(), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_token_endpoint_is_waited_for_and_slows_nothing_down() {
    let world = World::with(account(), |settings| settings.zoom.limit = Some(500.0)).await;
    world.sim.script(fault(Match::Token, 0, 5, status(429, r#"{"reason":"Too many requests"}"#)));
    let (job, _) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed");
    assert_eq!(job["progress"]["rate_limited"], 0, "{job:#}");
}

/// Parts of a month that could not be listed get fewer attempts, but not where giving up would end the whole job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_refused_while_a_part_of_a_month_is_listed_does_not_end_the_job() {
    let world = World::new(SimSettings { months: 1, ..account() }).await;
    world.sim.script(fault(Match::List, 0, 1, status(400, r#"{"code":300,"message":"Invalid parameter."}"#)));
    world.sim.script(fault(Match::List, 1, 5, status(401, INVALID_TOKEN)));
    let (body, days) = world.one_window();
    let (job, archive) = world.run(&body).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert_all(&archive, world.sim.dataset(), days);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_missing_scopes_and_a_low_plan_fail_the_job_and_say_what_to_do() {
    let world = World::new(account()).await;
    world.sim.set_credentials_valid(false);
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!((job["state"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("credentials")));
    assert!(job["error"]["help"].as_str().unwrap().contains("ZOOM_CLIENT_SECRET"));
    let check: Value = world.post("/v1/check", &Value::Null).await.json().await.unwrap();
    assert_eq!(check["ok"], false);
    let last = check["steps"].as_array().unwrap().last().unwrap();
    assert_eq!((last["name"].as_str(), last["ok"].as_bool()), (Some("token"), Some(false)));
    assert!(last["help"].as_str().unwrap().contains("ZOOM_CLIENT_ID"));
    // New credentials, and the same job goes on.
    world.sim.set_credentials_valid(true);
    assert_eq!(world.retried(&id).await["state"], "completed");
    let check: Value = world.post("/v1/check", &Value::Null).await.json().await.unwrap();
    assert_eq!(check["ok"], true, "{check:#}");

    let scopes = vec!["report_chat:read:admin".to_owned()];
    let world = World::new(SimSettings { scopes, ..account() }).await;
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(job["error"]["code"], "missing-scopes");
    assert!(job["error"]["detail"].as_str().unwrap().contains("report:read:list_chat_sessions:admin"));
    let check: Value = world.post("/v1/check", &Value::Null).await.json().await.unwrap();
    assert_eq!(check["steps"].as_array().unwrap().last().unwrap()["name"], "scopes");
    // The scopes are added: they apply at once, not only to the next token, an hour later.
    world.sim.set_scopes(&["report_chat:read:admin", "imchat:read:admin"]);
    world.sim.script(fault(Match::Token, 0, 1, status(503, "")));
    let check: Value = world.post("/v1/check", &Value::Null).await.json().await.unwrap();
    assert_eq!(check["ok"], true, "{check:#}");
    world.sim.set_scopes(&["report_chat:read:admin"]);
    world.sim.revoke_tokens();
    let again = world.submit(&world.everything()).await;
    assert_eq!(world.finished(&again).await["error"]["code"], "missing-scopes");
    world.sim.set_scopes(&["report_chat:read:admin", "imchat:read:admin"]);
    assert_eq!(world.retried(&again).await["state"], "completed");

    let world = World::new(account()).await;
    world.sim.script(always(Match::Report, status(400, NO_PERMISSION)));
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(job["error"]["code"], "no-permission");
    assert!(job["error"]["help"].as_str().unwrap().contains("Pro"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn granular_scopes_are_enough() {
    let scopes = ["report:read:list_chat_sessions:admin", "report:read:chat_session:admin"]
        .map(str::to_owned)
        .to_vec();
    let world = World::new(SimSettings { scopes, ..account() }).await;
    assert_eq!(world.run(&world.everything()).await.0["state"], "completed");
    let check: Value = world.post("/v1/check", &json!({})).await.json().await.unwrap();
    assert_eq!(check["ok"], true, "{check:#}");
}

/// A busy machine bunches requests: some are refused.
fn is_hardly_ever_refused(job: &Value) -> bool {
    let figure = |name: &str| job["progress"][name].as_u64().unwrap();
    figure("rate_limited") * 10 <= figure("requests")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_jobs_at_the_limit_are_both_whole_and_hardly_ever_refused() {
    let sim = SimSettings { qps: 60, ..account() };
    let world = World::with(sim, |settings| settings.zoom.limit = Some(60.0)).await;
    let (one, two) = (world.submit(&world.everything()).await, world.submit(&world.everything()).await);
    let jobs = [world.finished(&one).await, world.finished(&two).await];
    for job in &jobs {
        assert!(job["state"] == "completed" && is_hardly_ever_refused(job), "{job:#}");
    }
    let data = world.sim.dataset().clone();
    let days = (data.first_day(), data.last_day());
    for id in [one, two] {
        assert_all(&world.archive(&id).await, &data, days);
    }
}

/// A job with many chains under way leaves a later one as much of the rate limit as it keeps itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_share_the_limit_whoever_came_first() {
    let sim = SimSettings { qps: 60, messages: 24_000, ..account() };
    let world = World::with(sim, |settings| settings.zoom.limit = Some(60.0)).await;
    let requests = |job: &Value| job["progress"]["requests"].as_u64().unwrap();
    let figures = async |id: &str| requests(&world.job(id).await);
    let first = world.submit(&world.everything()).await;
    world.wait_until(&first, |job| requests(job) > 30).await;
    let second = world.submit(&world.everything()).await;
    // From when both run.
    let second_before = requests(&world.wait_until(&second, |job| requests(job) > 10).await);
    let first_before = figures(&first).await;
    let enough = |job: &Value| requests(job) >= second_before + 160;
    let of_second = requests(&world.wait_until(&second, enough).await) - second_before;
    let of_first = figures(&first).await - first_before;
    let share = of_second as f64 / (of_first + of_second) as f64;
    assert!((0.4..0.6).contains(&share), "{of_second} of {}", of_first + of_second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_lower_than_believed_is_followed_and_loses_nothing() {
    let sim = SimSettings { qps: 30, messages: 9_000, ..account() };
    let world = World::with(sim, |settings| settings.zoom.limit = Some(60.0)).await;
    let data = world.sim.dataset().clone();
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed");
    assert!(job["progress"]["requests"].as_u64() > Some(90), "three seconds at least: {job:#}");
    assert!(is_hardly_ever_refused(&job), "answers name it: {job:#}");
    let days = (data.first_day(), data.last_day());
    assert_all(&archive, &data, days);
}

/// Regression: the eighth attempt of a request, after server errors, met a 401, and the whole job was given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_after_server_errors_does_not_end_the_job() {
    let world = World::new(account()).await;
    world.sim.script(fault(Match::Session(0), 0, 7, status(500, "")));
    world.sim.script(fault(Match::Session(0), 7, 1, status(401, INVALID_TOKEN)));
    world.sim.script(fault(Match::Session(0), 8, u32::MAX, status(500, "")));
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    assert_eq!(world.codes(&id).await, ["server-error"]);
}

/// Regression: a token refused once, at the third attempt of a list, ended the whole job as if its credentials were wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_once_after_server_errors_does_not_end_the_job() {
    let world = World::new(account()).await;
    world.sim.script(fault(Match::List, 0, 2, status(500, "")));
    world.sim.script(fault(Match::List, 2, 1, status(401, INVALID_TOKEN)));
    world.sim.script(fault(
        Match::Token,
        1,
        1,
        status(400, r#"{"reason":"Invalid client","error":"invalid_client"}"#),
    ));
    let (body, _) = world.one_window();
    let id = world.submit(&body).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    assert_eq!(job["progress"]["retries"], 3, "what the token endpoint refused was no request: {job:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_daily_limit_the_job_waits_and_says_until_when() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(SimSettings { daily_limit: 20, ..account() }, clock, |_| {}).await;
    let id = world.submit(&world.everything()).await;
    let job = world.wait_until(&id, |job| job["progress"]["waiting_until"].is_string()).await;
    assert_eq!(job["state"], "running");
    assert!(job["progress"]["waiting_reason"].as_str().unwrap().contains("daily"));
    assert!(job["progress"]["waiting_until"].as_str().unwrap().ends_with("T00:00:00Z"), "{job:#}");
    let check: Value = world.post("/v1/check", &Value::Null).await.json().await.unwrap();
    let last = check["steps"].as_array().unwrap().last().unwrap();
    assert_eq!((check["ok"].as_bool(), last["name"].as_str()), (Some(false), Some("list")));
    assert!(last["detail"].as_str().unwrap().contains("daily"), "it does not wait itself: {last}");
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["state"], "cancelled", "a waiting job can be cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_zoom_asks_for_a_long_wait_the_job_says_so() {
    let clock = clock_at("12:00:00");
    let world = World::with_clock(account(), clock.clone(), |_| {}).await;
    world.sim.script(fault(Match::Messages, 5, 1, with_headers(429, &[("retry-after", "3600")], "")));
    let id = world.submit(&world.everything()).await;
    let job = world.wait_until(&id, |job| job["progress"]["waiting_until"].is_string()).await;
    let told = ["waiting_reason", "waiting_until"].map(|name| job["progress"][name].as_str().unwrap());
    assert_eq!(told[0], "Zoom asked for a pause");
    assert!(told[1].starts_with("2026-11-24T13:0"), "{told:?}");
    let check: Value = world.post("/v1/check", &Value::Null).await.json().await.unwrap();
    assert_eq!(check["ok"], false, "it does not wait an hour itself: {check}");
    clock.advance(Duration::from_secs(3_600));
    assert_eq!(world.finished(&id).await["state"], "completed");
}
