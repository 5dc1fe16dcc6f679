//! Files corrupted, emptied, truncated or removed by a bad disk, a crash or a person: intact data is kept, `retry` repairs the
//! rest.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::Value;
use sqlx::Connection;
use tempfile::TempDir;
use zoom_chat_reports::capture::Location;
use zoom_chat_reports::sim::{FaultAnswer, Match, SimSettings, Simulator};

use crate::caller::is_final;
use crate::disks::account;
use crate::harness::{
    TOO_OLD, World, alter, always, archive_in, archives_come_to, archives_in, everything, open_sqlite,
    removed, status,
};
use crate::process::Setup;

/// Overwrites a part of a file.
fn spoil(file: &Path, from: u64, bytes: usize) {
    let mut file = File::options().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(&vec![0x5a; bytes]).unwrap();
}

fn remove_index(directory: &Path) {
    for file in ["capture.db", "capture.db-wal", "capture.db-shm"] {
        let _ = std::fs::remove_file(directory.join(file));
    }
}

/// Checkpoints the WAL into the database file: the last connection to close does that as well, but maybe a little later.
async fn checkpoint(file: &Path) {
    let mut connection = open_sqlite(file).await;
    let checkpoint = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)");
    let busy: i64 = checkpoint.fetch_one(&mut connection).await.unwrap();
    assert_eq!(busy, 0);
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_capture_fails_its_own_job_only_and_retry_begins_anew() {
    let mut world = World::with(account(), |settings| settings.zoom.limit = Some(200.0)).await;
    // Keeps both jobs from ending before the stop.
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let (torn, sound) = (world.submit(&world.everything()).await, world.submit(&world.everything()).await);
    for id in [&torn, &sound] {
        world.wait_until(id, |job| job["progress"]["messages"].as_u64().unwrap() > 6_000).await;
    }
    world.stop().await;
    world.sim.clear_script();
    let capture = world.directory_of(&torn).join("capture.db");
    checkpoint(&capture).await;
    spoil(&capture, 8_192, 40_000);
    // A file that looks like a job's directory, but cannot be removed as one, holds nothing up.
    std::fs::write(world.directory_of("018f2f5e-7c1a-7000-8000-000000000000"), "").unwrap();
    world.restart().await;
    let job = world.finished(&torn).await;
    assert_eq!(
        (job["state"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("capture-damaged")),
        "{job:#}"
    );
    let failures = world.get(&format!("/v1/jobs/{torn}/failures")).await;
    assert_eq!(failures.status(), 409);
    assert_eq!(failures.json::<Value>().await.unwrap()["code"], "capture-damaged");
    assert_eq!(world.finished(&sound).await["state"], "completed");
    assert_eq!(world.retried(&torn).await["state"], "completed");
    assert_eq!(world.archive(&torn).await.comparable(), world.archive(&sound).await.comparable());
    assert!(capture.with_extension("db.damaged").exists(), "kept for whoever wants to look");
}

/// Captures of earlier builds may hold set-aside pages of chats that are complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_build_had_set_aside_is_compared_before_the_archive_is_made() {
    let mut world = World::new(account()).await;
    let (job, archive) = world.run(&world.everything()).await;
    let id = job["id"].as_str().unwrap().to_owned();
    world.stop().await;
    let directory = world.directory_of(&id);
    let mut capture = open_sqlite(&directory.join("capture.db")).await;
    let set_aside = sqlx::query(
        "INSERT INTO set_aside SELECT r.unit, r.first_day, r.last_day, kind, items, raw_len, crc32, offset, length
         FROM pages JOIN ranges r ON r.id = range",
    );
    assert!(set_aside.execute(&mut capture).await.unwrap().rows_affected() > 40);
    capture.close().await.unwrap();
    std::fs::remove_file(archive_in(&directory)).unwrap();
    world.restart().await;
    let again = world.retried(&id).await;
    assert_eq!(again["state"], "completed", "{again:#}");
    assert_eq!(again["progress"]["units_done"], job["progress"]["units_done"]);
    assert_eq!(world.archive(&id).await.comparable(), archive.comparable());
}

/// Whatever happened to the index, the messages beside it may be the only copy of some days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_their_index_are_set_aside_and_not_overwritten() {
    for damage in ["removed", "without tables"] {
        let mut world = World::new(account()).await;
        world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
        let id = world.submit(&world.everything()).await;
        world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 6_000).await;
        world.stop().await;
        world.sim.clear_script();
        let directory = world.directory_of(&id);
        remove_index(&directory);
        if damage == "without tables" {
            File::create(directory.join("capture.db")).unwrap();
        }
        let segments = directory.join("capture.segments");
        let messages = std::fs::read(&segments).unwrap();
        world.restart().await;
        let job = world.finished(&id).await;
        let told = (job["state"].as_str(), job["error"]["code"].as_str());
        assert_eq!(told, (Some("failed"), Some("capture-damaged")), "{damage}: {job:#}");
        assert!(std::fs::read(&segments).unwrap() == messages, "{damage}: they are as they were");
        assert_eq!(world.retried(&id).await["state"], "completed", "{damage}");
        let set_aside = std::fs::read(directory.join("capture.segments.damaged")).unwrap();
        assert!(set_aside == messages, "{damage}: for whoever wants to look");
    }
}

/// A crash or a full disk may come before the plan is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_never_got_its_plan_is_planned_by_a_retry() {
    let mut world = World::new(SimSettings { sessions: 5, messages: 100, ..account() }).await;
    world.settings.zoom.credentials.client_id = "nobody".to_owned();
    world.restart().await;
    let ids = [world.submit(&world.everything()).await, world.submit(&world.everything()).await];
    for id in &ids {
        assert_eq!(world.finished(id).await["error"]["code"], "credentials");
    }
    world.stop().await;
    let [empty, planless] = ids.each_ref().map(|id| world.directory_of(id));
    for directory in [&empty, &planless] {
        remove_index(directory);
    }
    File::create(empty.join("capture.db")).unwrap();
    Location::in_directory(&planless).open_writer().await.unwrap().close().await;
    world.settings.zoom.credentials.client_id = "sim-client".to_owned();
    world.restart().await;
    for id in &ids {
        assert_eq!(world.retried(id).await["state"], "completed");
    }
}

/// The index may hold wrong values without being corrupt as a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_values_in_a_capture_are_found_and_retry_mends_them() {
    let of_a_page = |wrong| format!("UPDATE pages SET {wrong} WHERE range = 1 AND seq = 0 AND kind = 0");
    for wrong in [
        of_a_page("kind = 7"),
        of_a_page("length = 35184372088832"),
        of_a_page("length = length - 1"),
        of_a_page("length = length + 1"),
        of_a_page("raw_len = 4611686018427387904"),
        of_a_page("offset = -1"),
        of_a_page("offset = 9223372036854775807"),
        of_a_page("items = -5"),
        of_a_page("items = 9223372036854775807"),
        of_a_page("crc32 = crc32 + 4294967296"),
        "UPDATE ranges SET pages = -1 WHERE id = 1".to_owned(),
        "UPDATE ranges SET repeats = -1 WHERE id = 1".to_owned(),
        "UPDATE ranges SET kept = -9 WHERE id = 1".to_owned(),
        "UPDATE ranges SET window = window + 1 WHERE id = 1".to_owned(),
        "UPDATE ranges SET window = 7, state = 'pending' WHERE id = 1".to_owned(),
        "UPDATE meta SET value = replace(value, '\"', '') WHERE key = 'request'".to_owned(),
        "DELETE FROM meta WHERE key = 'started_at'".to_owned(),
        "UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE key = 'job_id'".to_owned(),
        "INSERT INTO unknown_members VALUES (NULL, 1, 0, CAST(x'ff' AS TEXT), '')".to_owned(),
        "UPDATE ranges SET last_day = '2026-02-30' WHERE id = 1".to_owned(),
        "UPDATE ranges SET token_at = 'some day', next_token = 'x', state = 'pending' WHERE id = 1"
            .to_owned(),
        "UPDATE ranges SET next_token = CAST(x'ff' AS TEXT), token_at = '2026-05-30T00:00:00Z', state = 'pending'
         WHERE id = 1"
            .to_owned(),
        "UPDATE ranges SET next_token = CAST(x'ff' AS TEXT), token_at = '', state = 'failed',
         failure = '{\"code\":\"rejected\",\"message\":\"\",\"attempts\":1}' WHERE id = 1"
            .to_owned(),
        "UPDATE ranges SET kept = 9223372036854775807 WHERE id < 3".to_owned(),
        "UPDATE units SET state = 'dome' WHERE id = 1".to_owned(),
        "UPDATE units SET state = 'pending' WHERE id = 1".to_owned(),
        "UPDATE units SET last_commit = NULL WHERE id = 1".to_owned(),
        "UPDATE sessions SET info = replace(info, '\"name\"', '\"name') WHERE id = 1".to_owned(),
        "UPDATE sessions SET info = CAST(info || x'ff' AS TEXT) WHERE id = 1".to_owned(),
        "UPDATE sessions SET zoom_id = CAST(x'ff' AS TEXT) WHERE id = 1".to_owned(),
        "UPDATE windows SET first_day = '2026-02-30' WHERE idx = 0".to_owned(),
        "UPDATE ranges SET unit = 999999 WHERE id = 1".to_owned(),
        "UPDATE ranges SET unit = 999999, state = 'pending' WHERE id = 1".to_owned(),
        "UPDATE units SET session = 999999 WHERE id = 1".to_owned(),
    ] {
        let world = World::new(SimSettings { sessions: 5, messages: 400, ..account() }).await;
        let (job, expected) = world.run(&world.everything()).await;
        let id = job["id"].as_str().unwrap();
        let directory = world.directory_of(id);
        let as_a_bad_disk_would =
            format!("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; {wrong}");
        alter(&directory.join("capture.db"), sqlx::AssertSqlSafe(as_a_bad_disk_would)).await;
        std::fs::remove_file(archive_in(&directory)).unwrap();
        let asked = world.sim.stats().requests;
        let job = world.retried(id).await;
        assert_eq!(job["state"], "completed", "{wrong}: {job:#}");
        assert_eq!(world.archive(id).await.comparable(), expected.comparable(), "{wrong}");
        // The order of sessions in the archive is no reason to ask for anything.
        let is_found = world.sim.stats().requests > asked;
        assert!(is_found || wrong.contains("last_commit"), "{wrong}: it was found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_not_what_was_stored_are_found_and_only_they_are_fetched_again() {
    let mut world = World::with(account(), |settings| settings.zoom.limit = Some(200.0)).await;
    let (job, expected) = world.run(&world.everything()).await;
    let whole = job["progress"]["requests"].as_u64().unwrap();
    let id = world.submit(&world.everything()).await;
    // Keeps the job from ending by itself.
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 12_000).await;
    world.stop().await;
    world.sim.clear_script();
    let directory = world.directory_of(&id);
    spoil(&directory.join("capture.segments"), 200_000, 10);
    world.restart().await;
    let job = world.finished(&id).await;
    assert_eq!(
        (job["state"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("capture-damaged")),
        "{job:#}"
    );
    assert!(archives_in(&directory).is_empty() && !directory.join("archive.zip.tmp").exists());
    let before = world.sim.stats().requests;
    assert_eq!(world.retried(&id).await["state"], "completed");
    assert_eq!(world.archive(&id).await.comparable(), expected.comparable());
    let again = world.sim.stats().requests - before;
    assert!(again > 0 && again < whole / 2, "one chain of pages, not everything: {again} of {whole}");
}

/// By the time a loss on disk is noticed, the data may be out of Zoom's reach: then only an earlier archive has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_holds_more_than_the_next_one_stays_beside_it() {
    let world = World::new(account()).await;
    let script = |matches, code, body| world.sim.script(always(matches, status(code, body)));
    script(Match::Session(0), 400, r#"{"code":1234,"message":"odd"}"#);
    let (job, held) = world.run(&world.everything()).await;
    assert_eq!(job["state"], "completed_with_failures", "{job:#}");
    let id = job["id"].as_str().unwrap();
    let directory = world.directory_of(id);
    let retry = || world.retried(id);
    // When a retry loses nothing, the old archive is not kept.
    assert_eq!(retry().await["progress"]["messages"], job["progress"]["messages"]);
    let held_in = archives_come_to(&directory, 1).await.remove(0);
    let bytes = std::fs::read(&held_in).unwrap();
    let first_day = world.sim.dataset().first_day();
    script(Match::MessagesTouching(first_day), 400, TOO_OLD);
    let segments = directory.join("capture.segments");
    spoil(&segments, 0, segments.metadata().unwrap().len() as usize);
    let retried = retry().await;
    assert_eq!(retried["state"], "completed_with_failures", "{retried:#}");
    assert!(retried["progress"]["messages"].as_u64() < job["progress"]["messages"].as_u64(), "{retried:#}");
    assert_ne!(world.archive(id).await.comparable(), held.comparable());
    assert!(std::fs::read(&held_in).unwrap() == bytes, "what was lost is in the archive of before");
    retry().await;
    assert!(std::fs::read(&held_in).unwrap() == bytes, "and stays there");
    // The same once more, with an archive that holds more than both.
    world.sim.clear_script();
    assert_eq!(retry().await["state"], "completed");
    let mut others = archives_come_to(&directory, 2).await;
    others.retain(|archive| *archive != held_in);
    let fullest_in = &others[0];
    std::fs::remove_file(fullest_in).unwrap();
    assert_eq!(retry().await["state"], "completed", "it can be made again");
    let fullest = std::fs::read(fullest_in).unwrap();
    // A retry of a completed job only checks whether its archive is lost, so the job is marked as failed.
    std::fs::write(directory.join("capture.segments"), "").unwrap();
    let mut table = open_sqlite(&world.settings.jobs.data_dir.join("state.db")).await;
    // And the archive is not recorded, as after the loss of the table.
    let failed = "UPDATE jobs SET state = 'failed',
                  job = json_set(job, '$.state', 'failed', '$.archive', NULL) WHERE id = ?";
    sqlx::query(failed).bind(id).execute(&mut table).await.unwrap();
    table.close().await.unwrap();
    script(Match::MessagesTouching(first_day), 400, TOO_OLD);
    assert_eq!(retry().await["state"], "completed_with_failures");
    assert!(std::fs::read(&held_in).unwrap() == bytes && std::fs::read(fullest_in).unwrap() == fullest);
    assert_eq!(archives_in(&directory).len(), 3, "and the new one");
    let deleted = world.client.delete(world.url(&format!("/v1/jobs/{id}"))).send().await.unwrap();
    assert_eq!((deleted.status().as_u16(), directory.exists()), (204, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_table_of_jobs_is_mended_from_what_is_left_of_it_and_from_the_captures() {
    for damage in ["overwritten", "torn", "removed", "emptied", "without rows"] {
        let mut world = World::new(account()).await;
        let done = world.submit(&world.everything()).await;
        world.finished(&done).await;
        let expected = world.archive(&done).await;
        world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
        let interrupted = world.submit(&world.everything()).await;
        world.wait_until(&interrupted, |job| job["progress"]["messages"].as_u64().unwrap() > 6_000).await;
        world.stop().await;
        world.sim.clear_script();
        let table = world.settings.jobs.data_dir.join("state.db");
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", table.display()));
        }
        match damage {
            "overwritten" => spoil(&table, 0, 64),
            "torn" => spoil(&table, 12_288, 4_096),
            "emptied" => File::create(&table).map(drop).unwrap(),
            "without rows" => forget(&table, "%").await,
            _ => std::fs::remove_file(&table).unwrap(),
        }
        world.restart().await;
        let asked = world.sim.stats().requests;
        let job = world.finished(&done).await;
        assert_eq!(job["state"], "completed", "{damage}: {job:#}");
        assert_eq!(world.archive(&done).await.comparable(), expected.comparable(), "{damage}");
        let job = world.wait_until(&interrupted, is_final).await;
        if job["error"]["code"] == "record-lost" {
            assert_eq!(
                world.sim.stats().requests,
                asked,
                "{damage}: Zoom is asked only when somebody says so"
            );
            world.retry(&interrupted).await;
        }
        assert_eq!(world.finished(&interrupted).await["state"], "completed", "{damage}");
        assert_eq!(world.archive(&interrupted).await.comparable(), expected.comparable(), "{damage}");
    }
}

/// No change of state would succeed: each compares with the state that was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_not_that_of_its_record_is_mended() {
    let mut world = World::new(account()).await;
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["state"], "cancelled");
    world.stop().await;
    world.sim.clear_script();
    alter(&world.settings.jobs.data_dir.join("state.db"), "UPDATE jobs SET state = 'cancemled'").await;
    world.restart().await;
    assert_eq!(world.retried(&id).await["state"], "completed");
}

/// Removes the records of jobs whose ids are `like` this.
async fn forget(table: &Path, like: &str) {
    let mut table = open_sqlite(table).await;
    sqlx::query("DELETE FROM jobs WHERE id LIKE ?").bind(like).execute(&mut table).await.unwrap();
    table.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_of_another_version_says_what_can_be_done() {
    let world = World::new(account()).await;
    world.sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let id = world.submit(&world.everything()).await;
    world.wait_until(&id, |job| job["progress"]["messages"].as_u64().unwrap() > 1_000).await;
    world.cancel(&id).await;
    world.finished(&id).await;
    alter(&world.directory_of(&id).join("capture.db"), "PRAGMA user_version = 1").await;
    let error = &world.retried(&id).await["error"];
    assert_eq!(error["code"], "capture", "{error}");
    assert!(error["help"].as_str().unwrap().contains("the release that began it"), "{error}");
}

/// As if it had been killed between recording that a job has expired and removing its files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_expired_job_has_left_goes_at_the_next_start() {
    let mut world = World::new(account()).await;
    let id = world.submit(&world.everything()).await;
    world.finished(&id).await;
    world.stop().await;
    let expired = "UPDATE jobs SET state = 'expired', job = json_set(job, '$.state', 'expired')";
    alter(&world.settings.jobs.data_dir.join("state.db"), expired).await;
    world.restart().await;
    removed(&world.directory_of(&id)).await;
    assert_eq!(world.job(&id).await["state"], "expired");
}

/// A crash may interrupt a deletion at any point. What nobody deleted comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_job_without_a_record_go_only_if_it_was_being_deleted() {
    let mut world = World::new(SimSettings { sessions: 5, messages: 100, ..account() }).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.submit(&world.everything()).await);
        world.finished(ids.last().unwrap()).await;
    }
    let [forgotten, bare, half_deleted, asked_for, scraps] = &ids[..] else { unreachable!() };
    let data = world.settings.jobs.data_dir.clone();
    let directory = |id: &str| data.join("jobs").join(id);
    world.stop().await;
    for id in [forgotten, bare, half_deleted, scraps] {
        forget(&data.join("state.db"), id).await;
    }
    for file in ["capture.db", "capture.segments"] {
        std::fs::remove_file(directory(bare).join(file)).unwrap();
    }
    for file in ["capture.db", "capture.segments"] {
        let [sound, damaged] = [file.to_owned(), format!("{file}.damaged")];
        std::fs::rename(directory(scraps).join(sound), directory(scraps).join(damaged)).unwrap();
    }
    std::fs::remove_file(archive_in(&directory(scraps))).unwrap();
    for id in [half_deleted, asked_for] {
        File::create(directory(id).join("deleted")).unwrap();
    }
    world.restart().await;
    assert_eq!(world.finished(forgotten).await["state"], "completed");
    assert!(archive_in(&directory(&format!("{bare}.damaged"))).exists());
    assert!(directory(&format!("{scraps}.damaged")).join("capture.segments.damaged").exists());
    assert!(!directory(half_deleted).exists());
    for id in [bare, half_deleted, scraps] {
        assert_eq!(world.get(&format!("/v1/jobs/{id}")).await.status(), 404);
    }
    assert_eq!(world.archive(asked_for).await.comparable(), world.archive(forgotten).await.comparable());
    assert!(!directory(asked_for).join("deleted").exists(), "it was not deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_nobody_can_read_any_more_is_left_for_a_person() {
    let mut world = World::new(account()).await;
    let done = world.submit(&world.everything()).await;
    world.finished(&done).await;
    world.stop().await;
    std::fs::remove_file(world.settings.jobs.data_dir.join("state.db")).unwrap();
    spoil(&world.directory_of(&done).join("capture.db"), 0, 4_096);
    for start in 0..2 {
        world.restart().await;
        assert_eq!(world.get(&format!("/v1/jobs/{done}")).await.status(), 404);
        let left = world.directory_of(&format!("{done}.damaged"));
        assert!(archive_in(&left).exists() && left.join("capture.segments").exists(), "start {start}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_hides_no_other_and_a_trouble_is_found_in_the_log_by_its_request() {
    let sim = Simulator::start(SimSettings { sessions: 5, messages: 100, ..account() }).await.unwrap();
    let directory = TempDir::new().unwrap();
    let setup = Setup::new(&sim, directory.path());
    let mut service = setup.start().await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(service.submit(&everything(&sim)).await);
        service.finished(jobs.last().unwrap()).await;
    }
    let mut table = open_sqlite(&setup.data.join("state.db")).await;
    sqlx::query("UPDATE jobs SET job = '{\"of\":\"another version\"}', state = 'running' WHERE id = ?")
        .bind(&jobs[1])
        .execute(&mut table)
        .await
        .unwrap();
    for start in 0..2 {
        if start > 0 {
            assert!(service.terminate().await.success());
            service = setup.start().await;
        }
        let answer = service.get(&format!("/v1/jobs/{}", jobs[1])).await;
        assert_eq!(answer.status(), 500);
        let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let log = setup.log();
        let line = log.lines().find(|line| line.contains(&request) && line.contains("cannot be read"));
        assert!(line.is_some(), "{request}: {log}");
        let about_a_job = log.lines().find(|line| line.contains("window listed") && line.contains(&jobs[0]));
        assert!(about_a_job.is_some(), "what a job does is found by its id: {log}");
        let page: Value = service.get("/v1/jobs").await.json().await.unwrap();
        let listed: Vec<_> = page["items"].as_array().unwrap().iter().map(|job| &job["id"]).collect();
        let mut others: Vec<_> = jobs.iter().filter(|id| **id != jobs[1]).collect();
        others.reverse();
        assert_eq!(listed, others, "newest first");
        jobs.push(service.submit(&everything(&sim)).await);
        assert_eq!(service.finished(jobs.last().unwrap()).await["state"], "completed");
    }
    let its_files = setup.data.join("jobs").join(&jobs[1]);
    assert!(archive_in(&its_files).exists(), "its files stay");
    let deleted = service.client.delete(service.url(&format!("/v1/jobs/{}", jobs[1]))).send().await.unwrap();
    assert_eq!((deleted.status().as_u16(), its_files.exists()), (204, false));
}

/// An empty list of failures would say that nothing is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_capture_nobody_knows_what_is_missing() {
    let world = World::new(account()).await;
    world.sim.script(always(Match::Session(0), status(500, "")));
    let id = world.submit(&world.everything()).await;
    assert_eq!(world.finished(&id).await["state"], "completed_with_failures");
    std::fs::remove_dir_all(world.directory_of(&id)).unwrap();
    let answer = world.get(&format!("/v1/jobs/{id}/failures")).await;
    assert_eq!(answer.status(), 409);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "capture-damaged");
    world.sim.clear_script();
    assert_eq!(world.retried(&id).await["state"], "completed");
    assert!(world.failures(&id).await.is_empty());
}

/// What a user downloads can be made again without asking Zoom again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_got_lost_or_damaged_is_made_again_by_a_retry() {
    let world = World::new(account()).await;
    let id = world.submit(&world.everything()).await;
    world.finished(&id).await;
    let expected = world.archive(&id).await;
    let path = format!("/v1/jobs/{id}/archive");
    let retry = async || world.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await;
    assert_eq!(retry().await.status(), 409, "nothing is missing");
    let job_directory = world.directory_of(&id);
    let file = archive_in(&job_directory);
    for damage in ["overwritten", "removed", "cut short", "everything removed"] {
        match damage {
            "overwritten" => spoil(&file, 5_000, 100),
            "removed" => std::fs::remove_file(&file).unwrap(),
            "cut short" => File::options().write(true).open(&file).unwrap().set_len(1_000).unwrap(),
            _ => std::fs::remove_dir_all(&job_directory).unwrap(),
        }
        // An archive of unchanged length is not read in full for each download: its hash shows the damage.
        if damage != "overwritten" {
            for answer in [world.client.head(world.url(&path)), world.client.get(world.url(&path))] {
                assert_eq!(answer.send().await.unwrap().status(), 409, "{damage}");
            }
            let told: Value = world.get(&path).await.json().await.unwrap();
            assert_eq!(told["code"], "archive-lost", "{told}");
        }
        let asked = world.sim.stats().requests;
        assert_eq!(retry().await.status(), 202, "{damage}");
        assert_eq!(world.finished(&id).await["state"], "completed", "{damage}");
        assert_eq!(world.archive(&id).await.comparable(), expected.comparable(), "{damage}");
        let again = world.sim.stats().requests - asked;
        assert_eq!(again > 0, damage == "everything removed", "{damage}: {again}");
    }
}
