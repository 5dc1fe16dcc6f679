//! A job stopped at any moment goes on and ends in the same archive as an undisturbed one.

use std::time::Duration;

use zoom_chat_reports::app::AppSettings;
use zoom_chat_reports::sim::{FaultAnswer, ItemOptions, Match, SimSettings};

use crate::harness::{
    Archive, EXPIRED_PAGE_TOKEN, GONE, World, alter, always, archive_in, archives_come_to, eventually, fault,
    page_of_hour, status, with_headers,
};

fn account(latency_ms: u64) -> SimSettings {
    SimSettings {
        sessions: 150,
        messages: 30_000,
        months: 3,
        latency: Duration::from_millis(latency_ms),
        ..SimSettings::default()
    }
}

/// A service that was stopped in the middle of a job.
async fn interrupted() -> (World, String) {
    let mut world = World::new(account(20)).await;
    // Keeps the job from ending by itself.
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    world.stop().await;
    world.sim.clear_script();
    (world, id)
}

async fn undisturbed(sim: SimSettings) -> Archive {
    let world = World::new(sim).await;
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed");
    archive
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_restart_goes_on_where_the_job_stood() {
    let expected = undisturbed(account(0)).await;
    let mut world = World::with(account(0), |settings| settings.zoom.limit = Some(200.0)).await;
    // Keeps the job from ending by itself.
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    for messages in [2_000, 8_000, 14_000] {
        let job = world.wait_until(&id, |job| job["progress"]["messages"].as_u64() >= Some(messages)).await;
        assert_eq!(job["state"], "running", "it is interrupted: {job:#}");
        world.restart().await;
    }
    world.sim.clear_script();
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed", "{job:#}");
    let archive = world.archive(&id).await;
    assert_eq!(archive.comparable(), expected.comparable());
    let stats = world.sim.stats();
    // The undisturbed run may have split more, and so have asked for more.
    let asked_twice = stats.requests.saturating_sub(undisturbed_requests(&expected));
    assert!(asked_twice <= 3 * 64 + 10, "at most what was in flight is asked again: {asked_twice}");
}

fn undisturbed_requests(archive: &Archive) -> u64 {
    archive.json("_metadata/extraction_summary.json")["requests"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_token_that_grew_old_begins_the_chain_again_without_loss_or_doubling() {
    let expected = undisturbed(account(0)).await;
    let world = World::new(account(0)).await;
    world.sim.script(fault(Match::WithPageToken, 5, 12, status(400, EXPIRED_PAGE_TOKEN)));
    let (job, archive) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed");
    assert_eq!(archive.comparable(), expected.comparable());
    assert_eq!(world.sim.stats().faults, 12);
    assert_eq!(job["progress"]["messages"], 30_000, "the figures do not count the dropped pages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_keeps_what_was_captured_and_retry_fetches_only_the_rest() {
    let expected = undisturbed(account(0)).await;
    // Cancelling waits for no answer.
    let never = Duration::from_secs(3_600);
    let timeouts = |settings: &mut AppSettings| {
        (settings.zoom.idle_timeout, settings.zoom.request_timeout) = (never, never);
    };
    let world = World::with(account(5), timeouts).await;
    // Keeps the job from ending by itself.
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 16_000).await;
    world.cancel(&id).await;
    let job = world.finished(&id).await;
    assert_eq!((job["state"].as_str(), job["archive"].is_null()), (Some("cancelled"), true));
    world.sim.clear_script();
    let before = world.sim.stats().requests;
    let job = world.retried(&id).await;
    assert_eq!(job["state"], "completed");
    assert_eq!(world.archive(&id).await.comparable(), expected.comparable());
    let (rest, all) = (world.sim.stats().requests - before, undisturbed_requests(&expected));
    assert!(rest < all * 3 / 4, "not everything was asked again: {rest} of {all}");
}

/// No page of a chain is requested twice if the chain can go on with its page token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_goes_on_after_a_restart_while_its_page_token_is_young() {
    for life in [Duration::from_secs(600), Duration::ZERO] {
        let sim = SimSettings { sessions: 1, messages: 600, months: 1, ..account(0) };
        let mut world = World::with(sim, |settings| settings.jobs.extract.page_token_life = life).await;
        let (body, (from, to)) = world.one_window();
        // One of these requests is the list.
        let least = world.sim.dataset().least_requests(from, to, ItemOptions::default());
        let pages = least - 1;
        assert!(pages > 2, "{pages}");
        // All pages but the last are answered.
        world.sim.script(fault(Match::WithPageToken, pages as u32 - 2, u32::MAX, FaultAnswer::Hang));
        let id = world.submit(&body).await;
        eventually("all pages but the last are answered", || world.sim.stats().requests >= least).await;
        world.stop().await;
        world.sim.clear_script();
        let before = world.sim.stats().requests;
        world.restart().await;
        assert_eq!(world.finished(&id).await["state"], "completed");
        let asked = world.sim.stats().requests - before;
        assert_eq!(asked, if life.is_zero() { pages } else { 1 }, "{life:?}");
    }
}

/// As if it had been killed between recording that it is to be cancelled and stopping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_told_to_stop_does_not_go_on_after_a_restart() {
    let (mut world, id) = interrupted().await;
    let told = "UPDATE jobs SET job = json_set(job, '$.cancel_requested', json('true'))";
    alter(&world.settings.jobs.data_dir.join("state.db"), told).await;
    world.restart().await;
    assert_eq!(world.finished(&id).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_job_that_waits_for_its_turn_can_be_cancelled() {
    let mut world = World::with(account(20), |settings| settings.jobs.max_running = 2).await;
    // Keeps both jobs from ending by themselves.
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let first = world.submit(&world.everything()).await;
    let second = world.submit(&world.everything()).await;
    for id in [&first, &second] {
        world.wait_until(id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    }
    world.settings.jobs.max_running = 1;
    world.restart().await;
    for id in [&first, &second] {
        let job = world.job(id).await;
        assert!(job["progress"]["messages"].as_u64().unwrap() > 1_000, "from the first answer on: {job:#}");
    }
    for (id, other) in [(&second, "running"), (&first, "cancelled")] {
        world.cancel(id).await;
        let cancelled = world.finished(id).await;
        assert_eq!(cancelled["state"], "cancelled");
        let progress = &cancelled["progress"];
        let figures = ["messages", "requests", "sessions_total"].map(|name| progress[name].as_u64().unwrap());
        assert!(figures[0] > 1_000 && figures[1] > 10 && figures[2] > 1, "{cancelled:#}");
        let another = if id == &second { &first } else { &second };
        let job = world.job(another).await;
        assert_eq!(job["state"], other, "it need not end first");
    }
}

/// Chats of two organisations never end up in the same archive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_only_with_the_account_it_was_begun_with() {
    let (mut world, id) = interrupted().await;
    let asked = world.sim.stats().requests;
    let own = std::mem::replace(&mut world.settings.zoom.credentials.account_id, "another".to_owned());
    world.restart().await;
    let job = world.finished(&id).await;
    assert_eq!(job["error"]["code"], "other-account", "{job:#}");
    assert_eq!(world.sim.stats().requests, asked);
    world.settings.zoom.credentials.account_id = own;
    world.restart().await;
    assert_eq!(world.retried(&id).await["state"], "completed");
}

/// "There is nothing" is an answer about one particular account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_months_of_one_account_are_not_taken_for_those_of_another() {
    let mut world = World::new(SimSettings { months: 2, ..account(20) }).await;
    let (first, last) = (world.sim.dataset().first_day(), world.sim.dataset().last_day());
    let nothing = status(404, GONE);
    for (day, answer) in [(first, nothing), (last, FaultAnswer::Hang)] {
        world.sim.script(always(Match::ListTouching(day), answer));
    }
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["windows_listed"] == 1).await;
    world.stop().await;
    world.sim.clear_script();
    world.settings.zoom.credentials.account_id = "another".to_owned();
    world.restart().await;
    let job = world.finished(&id).await;
    assert_eq!(job["error"]["code"], "other-account", "{job:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_runs_only_what_failed_and_keeps_the_old_archive_until_the_new_one() {
    let soon = Duration::from_secs(1);
    let world = World::with(account(0), |settings| settings.zoom.idle_timeout = soon).await;
    let data = world.sim.dataset().clone();
    // The account's biggest chat fails in mid-chain, and so do all parts into which its days are cut.
    world.sim.script(fault(Match::Session(0), 3, u32::MAX, status(500, "")));
    let id = world.submit(&world.everything()).await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let failures = world.failures(&id).await;
    assert!(
        !failures.is_empty()
            && failures.iter().all(|failure| failure["session_id"] == data.session(0).id.as_str())
    );
    let old = world.archive(&id).await;
    world.sim.clear_script();
    // Keeps the job from ending by itself.
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    world.retry(&id).await;
    world.wait_until(&id, |job| job["state"] == "running").await;
    assert_eq!(world.archive(&id).await.bytes, old.bytes, "the old archive stays");
    assert_eq!(world.job(&id).await["state"], "running");
    world.sim.clear_script();
    let before = world.sim.stats().requests;
    let job = world.finished(&id).await;
    assert_eq!((job["state"].as_str(), job["failures_total"].as_u64()), (Some("completed"), Some(0)));
    let archive = world.archive(&id).await;
    assert_ne!(archive.bytes, old.bytes);
    let directory = world.directory_of(&id);
    let left = archives_come_to(&directory, 1).await;
    assert!(std::fs::read(&left[0]).unwrap() == archive.bytes, "and the old one is gone");
    assert_eq!(archive.comparable(), undisturbed(account(0)).await.comparable());
    assert!(world.sim.stats().requests - before < 100, "only the failed chat was asked again");
}

/// A run that is killed between publishing its archive and recording it leaves one that no record refers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_no_record_refers_to_goes_once_another_run_has_made_one() {
    let mut world = World::new(account(0)).await;
    let refuse = |matches, code, body| world.sim.script(always(matches, status(code, body)));
    refuse(Match::Session(0), 400, r#"{"code":1234,"message":"odd"}"#);
    let (job, _) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let id = job["id"].as_str().unwrap();
    let directory = world.directory_of(id);
    let stray = directory.join("archive-0123456789abcdef.zip");
    std::fs::write(&stray, "it may hold more").unwrap();
    world.sim.clear_script();
    refuse(Match::Messages, 400, r#"{"code":4711,"message":"no scope"}"#);
    assert_eq!(world.retried(id).await["state"], "failed");
    world.restart().await;
    assert_eq!(archives_come_to(&directory, 2).await.len(), 2, "a run that failed decides nothing");
    world.sim.clear_script();
    assert_eq!(world.retried(id).await["state"], "completed");
    assert!(archives_come_to(&directory, 1).await[0] != stray);
    // As if the run had been killed before it removed the stray archive.
    std::fs::write(&stray, "").unwrap();
    world.restart().await;
    assert!(!stray.exists());
    assert_eq!(world.get(&format!("/v1/jobs/{id}/archive")).await.status(), 200);
    // Unless the job's own is gone.
    std::fs::rename(archive_in(&directory), &stray).unwrap();
    std::fs::write(directory.join("archive-fedcba9876543210.zip"), "").unwrap();
    world.restart().await;
    assert_eq!(archives_come_to(&directory, 2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_page_repeats_is_kept_once_also_when_the_chain_is_interrupted() {
    let mut world = World::new(SimSettings { sessions: 1, ..account(0) }).await;
    let (body, day) = world.one_day();
    let page = |hour, next| page_of_hour(day, hour, next);
    let script = |answers: Vec<FaultAnswer>| {
        for answer in answers {
            world.sim.script(fault(Match::Session(0), 0, 1, answer));
        }
    };
    script(vec![page(0, "a"), page(1, "b"), with_headers(429, &[("retry-after", "9")], "")]);
    let id = world.submit(&body).await;
    let job = world.wait_until(&id, |job| job["progress"]["messages"] == 4).await;
    assert_eq!(job["progress"]["edited_messages"], 1);
    world.sim.clear_script();
    script(vec![page(0, "c"), page(1, "d"), page(2, "")]);
    world.restart().await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed");
    assert_eq!((&job["progress"]["messages"], &job["progress"]["edited_messages"]), (&6.into(), &1.into()));
    let summary = world.archive(&id).await.json("_metadata/extraction_summary.json");
    assert_eq!((&summary["total_messages"], &summary["total_edited_messages"]), (&6.into(), &1.into()));
    assert_eq!(summary["repeated_items_dropped"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_is_interrupted_does_not_forget_that_days_were_left_out() {
    let mut world = World::new(SimSettings { sessions: 1, ..account(0) }).await;
    let (body, day) = world.one_day();
    let of_the_day_before = |hour, next| {
        let FaultAnswer::ReplaceBody(page) = page_of_hour(day, hour, next) else { unreachable!() };
        let to = day.yesterday().unwrap();
        FaultAnswer::ReplaceBody(page.replacen('{', &format!(r#"{{"to":"{to}","#), 1))
    };
    let script = |matches, times, answer| world.sim.script(fault(matches, 0, times, answer));
    script(Match::Session(0), 1, of_the_day_before(0, "a"));
    script(Match::Session(0), 1, with_headers(429, &[("retry-after", "9")], ""));
    let id = world.submit(&body).await;
    world.wait_until(&id, |job| job["progress"]["messages"] == 2).await;
    world.sim.clear_script();
    script(Match::WithPageToken, u32::MAX, page_of_hour(day, 1, ""));
    script(Match::Session(0), u32::MAX, of_the_day_before(0, "b"));
    world.restart().await;
    let job = world.finished(&id).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    assert_eq!(world.failures(&id).await[0]["code"], "days-left-out");
    assert_eq!(job["progress"]["messages"], 4);
}
