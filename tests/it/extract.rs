//! A run of `extract`: what it leaves, how it starts over and goes on.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::Connection;
use tempfile::TempDir;
use zoom_chat_reports::capture::Location;
use zoom_chat_reports::sim::{FaultAnswer, Match, SimSettings, Simulator};

use crate::harness::{always, eventually, open_sqlite, status};
use crate::process::{connected, ended, run, signal};

pub fn account() -> SimSettings {
    SimSettings { sessions: 30, messages: 2_000, ..SimSettings::default() }
}

pub fn extract(sim: &Simulator, directory: &Path) -> Command {
    let data = sim.dataset();
    let mut command = connected(sim, directory);
    command.args([
        "extract",
        "--from-date",
        &data.first_day().to_string(),
        "--to-date",
        &data.last_day().to_string(),
    ]);
    command
}

pub fn zip(sim: &Simulator, directory: &Path) -> Command {
    let mut command = extract(sim, directory);
    command.args(["--zip", "out.zip"]);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extract_leaves_checkable_files_and_the_same_command_asks_nothing_twice() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    let (code, out, err) = run(extract(&sim, home.path())).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("2,000 messages"), "{out}");
    let directory = home.path().join("zoom_chat_reports");
    let checked = Command::new("sha256sum")
        .args(["--check", "--quiet", "_metadata/SHA256SUMS"])
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let mode = std::fs::metadata(directory.join("messages")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "chats are for their owner only");
    let asked = sim.stats().requests;
    let (code, out, _) = run(extract(&sim, home.path())).await;
    assert_eq!((code, sim.stats().requests), (0, asked), "{out}");
    assert!(out.contains("nothing was left to request from Zoom"), "{out}");
    let mut other = extract(&sim, home.path());
    other.env("ZOOM_ACCOUNT_ID", "another");
    let (code, _, err) = run(other).await;
    assert!(code == 1 && err.contains("of another Zoom account"), "{code} {err}");
    let mut other = extract(&sim, home.path());
    other.arg("--no-edited");
    let (code, _, err) = run(other).await;
    assert_eq!(code, 1);
    assert!(err.contains("with other options") && err.contains("choose another place"), "{err}");
    // Without its capture nothing shows whose files these are.
    std::fs::remove_dir_all(directory.join(".capture")).unwrap();
    let (code, _, err) = run(extract(&sim, home.path())).await;
    assert_eq!((code, sim.stats().requests), (1, asked), "{err}");
    assert!(err.contains("_metadata already exists"), "{err}");
    assert!(directory.join("messages").exists(), "nothing is taken away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_flag_leaves_out_what_it_names() {
    let sim = Simulator::start(SimSettings { sessions: 3, messages: 60, ..account() }).await.unwrap();
    for (flag, left_out) in [
        ("--no-edited", &["edited"][..]),
        ("--no-deleted", &["deleted"]),
        ("--no-bot", &["bot_messages"]),
        ("--no-reactions", &["reactions", "custom_emoji_reactions"]),
    ] {
        let home = TempDir::new().unwrap();
        let mut command = extract(&sim, home.path());
        command.arg(flag);
        assert_eq!(run(command).await.0, 0, "{flag}");
        let summary = home.path().join("zoom_chat_reports/_metadata/extraction_summary.json");
        let summary: Value = serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
        for (name, is_included) in summary["request"]["include"].as_object().unwrap() {
            assert_eq!(*is_included, !left_out.contains(&name.as_str()), "{flag}: {name}");
        }
    }
}

/// A run with wrong credentials or dates has extracted nothing: with the right ones it can use the same place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extract_starts_over_where_nothing_was_received() {
    let sim = Simulator::start(account()).await.unwrap();
    for output in [&["--output-dir", "out"][..], &["--zip", "out.zip"]] {
        let home = TempDir::new().unwrap();
        let last = sim.dataset().last_day().to_string();
        let mut wrong = connected(&sim, home.path());
        wrong.args(["extract", "--from-date", &last, "--to-date", &last]).args(output);
        wrong.env("ZOOM_ACCOUNT_ID", "mistyped");
        let (code, _, err) = run(wrong).await;
        assert!(code == 1 && err.contains("ZOOM_ACCOUNT_ID"), "{code} {err}");
        let mut old = connected(&sim, home.path());
        old.args(["extract", "--from-date", "2016-01-01", "--to-date", &last]).args(output);
        let (code, _, err) = run(old).await;
        assert!(code == 2 && err.contains("older than the six months"), "{code} {err}");
        // Also where a run was killed before it had a plan.
        let place = home.path().join(if output[0] == "--zip" { "out.zip.capture" } else { "out/.capture" });
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("lock"), "").unwrap();
        Location::in_directory(&place).open_writer().await.unwrap().close().await;
        let mut old = connected(&sim, home.path());
        old.args(["extract", "--from-date", "2016-01-01", "--to-date", &last]).args(output);
        let (code, _, err) = run(old).await;
        assert!(code == 2 && err.contains("older than the six months"), "{code} {err}");
        let mut right = extract(&sim, home.path());
        right.args(output);
        let (code, out, err) = run(right).await;
        assert!(code == 0 && !err.contains("resuming"), "{code} {out}{err}");
        assert!(out.contains("2,000 messages"), "{out}");
    }
}

/// An interrupted run can be finished even when its dates can no longer be requested anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extract_goes_on_when_its_first_day_has_left_the_six_months() {
    let sim = Simulator::start(SimSettings { months: 6, ..account() }).await.unwrap();
    let home = TempDir::new().unwrap();
    let oldest = sim.dataset().first_day();
    // Not the oldest day itself: another day may begin meanwhile.
    let days = [oldest.yesterday().unwrap(), oldest.tomorrow().unwrap(), sim.dataset().last_day()];
    let [before, first, last] = days.map(|day| day.to_string());
    let command = |from: &str| {
        let mut command = connected(&sim, home.path());
        command.args(["extract", "--from-date", from, "--to-date", &last]);
        command
    };
    assert_eq!(run(command(&first)).await.0, 0);
    // As if it had been begun some days earlier.
    let capture = home.path().join("zoom_chat_reports/.capture/capture.db");
    let mut capture = open_sqlite(&capture).await;
    let earlier = sqlx::query("UPDATE meta SET value = replace(value, ?, ?) WHERE key = 'request'");
    earlier.bind(&first).bind(&before).execute(&mut capture).await.unwrap();
    capture.close().await.unwrap();
    let (code, out, err) = run(command(&before)).await;
    assert!(code == 0 && err.contains("resuming from"), "{code} {out}{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extract_that_is_interrupted_says_so_and_continues() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let mut command = zip(&sim, home.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it has some pages", || sim.stats().pages_served >= 20).await;
    signal(&child, Signal::INT);
    let (code, _, said) = ended(child).await;
    assert!(code == 1 && said.contains("stopped; received data is kept in"), "{code} {said}");
    sim.clear_script();
    let (code, out, err) = run(zip(&sim, home.path())).await;
    assert!(code == 0 && err.contains("resuming from") && out.contains("2,000 messages"), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extract_continues_after_a_kill_and_makes_a_zip() {
    let sim = Simulator::start(account()).await.unwrap();
    // Keeps it from ending by itself.
    sim.script(always(Match::Session(0), FaultAnswer::Hang));
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join("out.zip.tmp"), "another's").unwrap();
    let mut command = zip(&sim, home.path());
    command.stderr(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    eventually("it has some pages", || sim.stats().pages_served >= 20).await;
    child.kill().unwrap();
    child.wait().unwrap();
    sim.clear_script();
    assert!(!home.path().join("out.zip").exists());
    let (code, out, err) = run(zip(&sim, home.path())).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains("resuming from"), "{err}");
    assert!(out.contains("2,000 messages"), "{out}");
    let told = Sha256::digest(std::fs::read(home.path().join("out.zip")).unwrap());
    assert!(out.contains(&format!("sha256 {}", hex::encode(told))), "{out}");
    assert_eq!(std::fs::read(home.path().join("out.zip.tmp")).unwrap(), b"another's");
    std::fs::remove_file(home.path().join("out.zip.tmp")).unwrap();
    let in_home = || -> Vec<_> {
        std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(in_home(), ["out.zip"], "nothing but the zip is left");
    // As if it had been killed while it removed its capture: the zip is whole, and stays.
    let half_removed = || {
        let capture = home.path().join("out.zip.capture-removed");
        std::fs::create_dir(&capture).unwrap();
        for file in ["lock", "publishing", "capture.segments"] {
            std::fs::write(capture.join(file), "1").unwrap();
        }
    };
    half_removed();
    let whole = std::fs::read(home.path().join("out.zip")).unwrap();
    let (code, _, err) = run(zip(&sim, home.path())).await;
    assert!(code == 1 && err.contains("already exists"), "{code} {err}");
    assert!(std::fs::read(home.path().join("out.zip")).unwrap() == whole);
    assert_eq!(in_home(), ["out.zip"], "nothing says any more that it is incomplete");
    let tested = Command::new("unzip").arg("-tq").arg(home.path().join("out.zip")).output().unwrap();
    assert!(tested.status.success());
    // Once the zip has been moved away, the command makes it anew.
    half_removed();
    std::fs::rename(home.path().join("out.zip"), home.path().join("moved.zip")).unwrap();
    let (code, out, err) = run(zip(&sim, home.path())).await;
    assert!(code == 0, "{code} {out}{err}");
    std::fs::remove_file(home.path().join("moved.zip")).unwrap();
    assert_eq!(in_home(), ["out.zip"]);
    // Something with that name that is not a capture belongs to somebody else.
    std::fs::create_dir(home.path().join("out.zip.capture-removed")).unwrap();
    std::fs::write(home.path().join("out.zip.capture-removed/mine"), "mine").unwrap();
    assert_eq!(run(zip(&sim, home.path())).await.0, 1);
    assert!(home.path().join("out.zip.capture-removed/mine").exists());
    std::fs::remove_dir_all(home.path().join("out.zip.capture-removed")).unwrap();
    // A symlink belongs to somebody else, even a dangling one.
    std::fs::remove_file(home.path().join("out.zip")).unwrap();
    std::os::unix::fs::symlink("nowhere", home.path().join("out.zip")).unwrap();
    let (code, _, err) = run(zip(&sim, home.path())).await;
    assert!(code == 1 && err.contains("already exists"), "{code} {err}");
    assert_eq!(in_home(), ["out.zip"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_could_be_listed_nobody_knows_whether_there_was_anything() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    sim.script(always(Match::List, status(400, r#"{"code":1234,"message":"odd"}"#)));
    let (code, out, err) = run(zip(&sim, home.path())).await;
    assert_eq!(code, 3, "{out}{err}");
    assert!(out.contains("missing: ") && !out.contains("there were no sessions"), "{out}");
}
