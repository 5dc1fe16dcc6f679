//! The command line as a person uses it: the real binary, its output, its exit codes.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::ToSpan;
use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::Connection;
use tempfile::TempDir;
use zoom_chat_reports::capture::Location;
use zoom_chat_reports::sim::{FaultAnswer, FaultLevel, Match, SimSettings, Simulator};

use crate::harness::{NO_PERMISSION, always, eventually, open_sqlite, status};
use crate::process::{Setup, binary, connected, ended, run, signal};

fn account() -> SimSettings {
    SimSettings { sessions: 30, messages: 2_000, ..SimSettings::default() }
}

fn extract(sim: &Simulator, directory: &Path) -> Command {
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

fn zip(sim: &Simulator, directory: &Path) -> Command {
    let mut command = extract(sim, directory);
    command.args(["--zip", "out.zip"]);
    command
}

fn check(sim: &Simulator, directory: &Path) -> Command {
    let mut command = connected(sim, directory);
    command.arg("check");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extract_that_goes_on_spares_what_others_have_put_there_meanwhile() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    for (file, zip) in [("zoom_chat_reports/messages/mine", None), ("out.zip", Some("out.zip"))] {
        let command = |client: &str| {
            let mut command = extract(&sim, home.path());
            command.env("ZOOM_CLIENT_ID", client).args(zip.map(|zip| ["--zip", zip]).into_iter().flatten());
            command
        };
        assert_eq!(run(command("nobody")).await.0, 1);
        let file = home.path().join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "mine").unwrap();
        let asked = sim.stats().requests;
        let (code, _, err) = run(command("sim-client")).await;
        assert!(code == 1 && err.contains("already exists"), "{code} {err}");
        assert_eq!((sim.stats().requests, &std::fs::read(&file).unwrap()[..]), (asked, &b"mine"[..]));
    }
}

/// What a damaged capture held may be out of Zoom's reach by now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_hold_more_is_kept_when_extract_makes_its_files_anew() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    let fail = |matches| sim.script(always(matches, status(400, r#"{"code":1234,"message":"odd"}"#)));
    let to_zip: &[&str] = &["--zip", "out.zip"];
    for (arguments, capture, place, made, kept, kept_too) in [
        (
            &[][..],
            "zoom_chat_reports/.capture",
            "zoom_chat_reports/messages",
            "zoom_chat_reports/_metadata/SHA256SUMS",
            "zoom_chat_reports/before/_metadata/SHA256SUMS",
            "zoom_chat_reports/before-2/messages/mine",
        ),
        (to_zip, "out.zip.capture", "out.zip", "out.zip", "out.zip.before", "out.zip.before-2"),
    ] {
        let command = || {
            let mut command = extract(&sim, home.path());
            command.args(arguments);
            command
        };
        let [capture, made, kept] = [capture, made, kept].map(|path| home.path().join(path));
        fail(Match::Session(0));
        assert_eq!(run(command()).await.0, 3);
        let (code, out, _) = run(command()).await;
        assert!(code == 3 && !out.contains("is kept") && !kept.exists(), "as much as before replaces it");
        let before = std::fs::read(&made).unwrap();
        // More than before, but not all of it.
        sim.clear_script();
        fail(Match::Session(1));
        std::fs::write(capture.join("capture.segments"), "").unwrap();
        let (code, out, err) = run(command()).await;
        assert!(code == 3 && out.contains("may lack is kept as"), "{code} {out}{err}");
        assert!(out.contains("part of the received data was damaged"), "{out}");
        assert!(std::fs::read(&kept).unwrap() == before);
        assert!(std::fs::read(&made).unwrap() != before, "what there is now");
        // A kept copy is mentioned as long as it exists. What somebody has put in the output's place is kept as well: the
        // command replaces only what it has made itself.
        let place = home.path().join(place);
        std::fs::rename(&place, home.path().join(format!("moved-{}", arguments.len()))).unwrap();
        let mine = if arguments.is_empty() { place.join("mine") } else { place };
        std::fs::create_dir_all(mine.parent().unwrap()).unwrap();
        std::fs::write(&mine, "mine").unwrap();
        for new in [1, 0] {
            let (code, out, _) = run(command()).await;
            let told = ["may lack is kept as", "is still there from an earlier run"];
            assert_eq!((code, told.map(|told| out.matches(told).count())), (3, [new, 2 - new]), "{out}");
            assert_eq!(std::fs::read(home.path().join(kept_too)).unwrap(), b"mine");
        }
        std::fs::write(capture.join("capture.db"), "").unwrap();
        let mut other = command();
        other.arg("--no-edited");
        let (code, _, err) = run(other).await;
        assert!(code == 1 && err.contains("with other options"), "{code} {err}");
        // Nor does the same command replace anything once no record shows how the files were made.
        std::fs::write(capture.join("publishing"), "").unwrap();
        let before = std::fs::read(&made).unwrap();
        let (code, _, err) = run(command()).await;
        assert!(code == 1 && err.contains("publishing cannot be used"), "{code} {err}");
        assert!(std::fs::read(&made).unwrap() == before);
        sim.clear_script();
    }
}

/// Notes in a copy of a chat are somebody's work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_edited_in_its_place_is_kept() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    assert_eq!(run(extract(&sim, home.path())).await.0, 0);
    let folder = home.path().join("zoom_chat_reports");
    let file = std::fs::read_dir(folder.join("messages")).unwrap().next().unwrap().unwrap().path();
    std::fs::File::options().append(true).open(&file).unwrap().write_all(b"a note").unwrap();
    for told in ["kept as ./zoom_chat_reports/before", "./zoom_chat_reports/before is still there"] {
        let (code, out, _) = run(extract(&sim, home.path())).await;
        assert!(code == 0 && out.contains(told), "{code} {out}");
        assert!(!std::fs::read(&file).unwrap().ends_with(b"a note"), "made anew");
        let kept = folder.join("before/messages").join(file.file_name().unwrap());
        assert!(std::fs::read(kept).unwrap().ends_with(b"a note"));
        assert!(!folder.join("before/sessions").exists() && !folder.join("before-2").exists());
    }
    std::fs::write(folder.join(".capture/capture.db"), "no database").unwrap();
    let (code, out, err) = run(extract(&sim, home.path())).await;
    assert!(code == 0 && out.contains("the index of the received data was damaged"), "{code} {out}{err}");
    assert!(!err.contains('{'), "what a person reads is no JSON: {err}");
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

/// Something that has a capture's name but is not one belongs to somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extract_touches_no_directory_that_it_did_not_make() {
    let sim = Simulator::start(account()).await.unwrap();
    for output in [&["--output-dir", "out"][..], &["--zip", "out.zip"]] {
        let home = TempDir::new().unwrap();
        let capture = home.path().join(if output[0] == "--zip" { "out.zip.capture" } else { "out/.capture" });
        let elsewhere = home.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("mine"), "mine").unwrap();
        std::fs::create_dir_all(capture.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &capture).unwrap();
        let mut command = extract(&sim, home.path());
        command.args(output);
        let (code, _, err) = run(command).await;
        assert!(code == 1 && err.contains("capture already exists; choose another place"), "{code} {err}");
        let left: Vec<_> =
            std::fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["mine"]);
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
async fn health_tells_whether_the_service_is_ready() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    let setup = Setup::new(&sim, home.path());
    let health = || {
        let mut command = binary();
        command.arg("health").env("LISTEN_ADDR", format!("127.0.0.1:{}", setup.port));
        run(command)
    };
    let service = setup.start().await;
    let (code, out, err) = health().await;
    assert!(code == 0 && out.contains("ready"), "{out}{err}");
    drop(service);
    let (code, out, err) = health().await;
    assert!(code == 1 && out.contains("no answer from"), "{out}{err}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulate_prints_the_settings_that_point_to_it() {
    let home = TempDir::new().unwrap();
    let mut simulate = binary();
    simulate.args(["simulate", "--port", "0", "--sessions", "5", "--messages", "50", "--latency-ms", "0"]);
    let mut simulator = simulate.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(simulator.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut check = binary();
    check.current_dir(home.path()).arg("check");
    for line in lines.by_ref().take_while(|line| !line.starts_with("# messages from")) {
        let settings = line.strip_prefix("export ").unwrap_or_default();
        check.envs(settings.split(' ').filter_map(|setting| setting.split_once('=')));
    }
    let (code, out, err) = run(check).await;
    signal(&simulator, Signal::TERM);
    assert!(simulator.wait().unwrap().success());
    assert_eq!(code, 0, "{out}{err}");
    assert!(lines.next().unwrap().starts_with("{\"requests\":"), "its figures");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_come_first_and_empty_settings_are_none() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    let mut flag = check(&sim, home.path());
    flag.env("ZOOM_CLIENT_SECRET", "wrong").args(["--zoom-client-secret", "sim-secret"]);
    assert_eq!(run(flag).await.0, 0);
    for (name, expected) in [("RETRY_BASE", 2), ("IN_FLIGHT", 2), ("RUST_LOG", 0), ("HTTPS_PROXY", 0)] {
        let mut empty = check(&sim, home.path());
        empty.env(name, "");
        let (code, _, err) = run(empty).await;
        assert_eq!(code, expected, "{name}: {err}");
        let is_told = err.contains(name) && err.contains("unset it to use the default");
        assert_eq!(is_told, expected == 2, "{name}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_prints_the_committed_document() {
    let mut openapi = binary();
    openapi.arg("openapi");
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    assert!(run(openapi).await.1 == std::fs::read_to_string(committed).unwrap());
}

/// It may hold what Zoom no longer returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_capture_stays_also_when_the_zip_is_whole() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    for kept in ["out.zip.damaged", "out.zip.damaged-2"] {
        sim.script(always(Match::Session(0), status(500, "")));
        assert_eq!(run(zip(&sim, home.path())).await.0, 3);
        sim.clear_script();
        std::fs::write(home.path().join("out.zip.capture/capture.db"), [0x5a; 8_192]).unwrap();
        let (code, out, err) = run(zip(&sim, home.path())).await;
        assert_eq!(code, 0, "{out}{err}");
        let kept = home.path().join(kept);
        let mut names: Vec<_> =
            std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["capture.db.damaged", "capture.segments.damaged"]);
        assert!(!home.path().join("out.zip.capture").exists());
        std::fs::remove_file(home.path().join("out.zip")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_and_messages_say_what_happened_and_what_to_do() {
    let sim =
        Simulator::start(SimSettings { faults: FaultLevel::Nasty, sessions: 60, ..account() }).await.unwrap();
    let home = TempDir::new().unwrap();
    let (code, out, _) = run(extract(&sim, home.path())).await;
    assert_eq!(code, 3, "{out}");
    assert!(out.contains("missing: ") && out.contains("server-error"), "{out}");

    let empty = Simulator::start(SimSettings { sessions: 0, messages: 0, ..account() }).await.unwrap();
    let home = TempDir::new().unwrap();
    let (code, out, _) = run(extract(&empty, home.path())).await;
    assert_eq!(code, 0);
    assert!(out.contains("no sessions"), "{out}");

    let home = TempDir::new().unwrap();
    let mut wrong = extract(&empty, home.path());
    wrong.env("ZOOM_CLIENT_SECRET", "not-this-one");
    let (code, _, err) = run(wrong).await;
    assert_eq!(code, 1);
    assert!(err.contains("ZOOM_CLIENT_SECRET") && !err.contains("not-this-one"), "{err}");

    let no_text = OsStr::from_bytes(b"out\xff");
    std::fs::write(home.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", home.path().join("link")).unwrap();
    for (option, place, told) in [
        ("--output-dir", OsStr::new("file"), "--output-dir must name a directory"),
        ("--output-dir", OsStr::new("link"), "--output-dir must name a directory"),
        ("--output-dir", no_text, "--output-dir must be UTF-8"),
        ("--zip", no_text, "--zip must be UTF-8"),
        ("--zip", OsStr::new("-"), "--zip must name a file of its own"),
        ("--zip", OsStr::new("/dev/null"), "--zip must name a file of its own"),
    ] {
        let mut wrong = extract(&empty, home.path());
        wrong.arg(option).arg(place);
        let (code, _, err) = run(wrong).await;
        assert!(code == 2 && err.contains(told), "{code} {err}");
    }
    let mut wrong = extract(&empty, home.path());
    wrong.env("ZOOM_CLIENT_SECRET", no_text);
    let (code, _, err) = run(wrong).await;
    assert!(
        code == 2 && err.contains("The environment variable ZOOM_CLIENT_SECRET is not valid UTF-8"),
        "{code} {err}"
    );

    for place in ["out/", "."] {
        let mut directory = extract(&empty, home.path());
        directory.args(["--zip", place]);
        let (code, _, err) = run(directory).await;
        assert!(code == 2 && err.contains("--zip must name a file"), "{code} {err}");
    }

    let old = jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC).date().saturating_add(1.day());
    let home = TempDir::new().unwrap();
    let mut too_old = connected(&empty, home.path());
    too_old.args(["extract", "--from-date", &old.to_string(), "--to-date", &old.to_string()]);
    let (code, _, err) = run(too_old).await;
    assert_eq!(code, 2);
    assert!(err.contains("oldest possible date"), "{err}");

    let mut bare = binary();
    bare.current_dir(home.path()).arg("check");
    let (code, _, err) = run(bare).await;
    assert_eq!(code, 2);
    assert!(err.contains("ZOOM_ACCOUNT_ID") && err.contains("ZOOM_CLIENT_SECRET"), "{err}");
    let mut unset = check(&sim, home.path());
    unset.env("ZOOM_CLIENT_SECRET", " ");
    let (code, _, err) = run(unset).await;
    assert!(code == 2 && err.contains("ZOOM_CLIENT_SECRET is not set"), "{err}");
    // A `.env` in a parent directory is not read: it may be somebody else's, where others may write.
    std::fs::write(home.path().join(".env"), "ZOOM_PLAN=pro\nno setting\n").unwrap();
    std::fs::create_dir(home.path().join("own")).unwrap();
    assert_eq!(run(check(&sim, &home.path().join("own"))).await.0, 0);
    let (code, _, err) = run(check(&sim, home.path())).await;
    assert!(code == 2 && err.contains(".env: line 2 is malformed"), "{err}");
    let mut help = connected(&sim, home.path());
    help.arg("--help");
    let (code, out, _) = run(help).await;
    assert!(code == 0 && out.contains("extract"), "{out}");
    // Its values count, except where a variable is already set.
    std::fs::write(home.path().join(".env"), "ZOOM_CLIENT_SECRET='sim-secret'\nZOOM_ACCOUNT_ID=wrong\n")
        .unwrap();
    let mut told = check(&sim, home.path());
    told.env_remove("ZOOM_CLIENT_SECRET").env("ZOOM_RATELIMIT", "20");
    told.env("ZOOM_API_BASE_URL", format!(" {} ", sim.api_base_url()));
    let (code, _, err) = run(told).await;
    assert!(code == 0 && err == "warning: ZOOM_RATELIMIT is not a known setting and is ignored\n", "{err}");
    std::fs::remove_file(home.path().join(".env")).unwrap();
    let mut nowhere = extract(&sim, home.path());
    nowhere.args(["--output-dir", "/proc/nowhere"]);
    let (code, _, err) = run(nowhere).await;
    assert!(code == 1 && err.contains("--output-dir /proc/nowhere"), "{err}");
    let mut nonsense = binary();
    nonsense.arg("extract");
    assert_eq!(run(nonsense).await.0, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_prints_a_line_a_step() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    let (code, out, _) = run(check(&sim, home.path())).await;
    assert_eq!(code, 0, "{out}");
    for step in ["settings", "token", "scopes", "list", "messages", "the account is ready"] {
        assert!(out.contains(step), "{step} in {out}");
    }
    sim.script(always(Match::Messages, status(400, NO_PERMISSION)));
    let (code, out, _) = run(check(&sim, home.path())).await;
    assert_eq!(code, 1);
    assert!(out.contains("FAIL messages") && out.contains("Pro plan"), "{out}");
}

/// Zoom says "not found" where there is nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_passes_where_nobody_has_written() {
    let home = TempDir::new().unwrap();
    let sim = SimSettings { empty_is_not_found: true, sessions: 1, messages: 1, ..account() };
    let sim = Simulator::start(sim).await.unwrap();
    let answer = status(404, r#"{"code":1001,"message":"There is nothing."}"#);
    for (matches, told) in [
        (Match::List, "no session from"),
        (Match::Messages, "Zoom has no messages of the first session listed"),
    ] {
        sim.clear_script();
        sim.script(always(matches, answer.clone()));
        let (code, out, _) = run(check(&sim, home.path())).await;
        assert!(code == 0 && out.contains(told), "{code} {out}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_data_and_an_open_door_without_keys_are_refused() {
    let sim = Simulator::start(account()).await.unwrap();
    let home = TempDir::new().unwrap();
    let serve = |address: &str| {
        let mut command = connected(&sim, home.path());
        command.arg("serve").env("LISTEN_ADDR", address).env("DATA_DIR", home.path().join("data"));
        command
    };
    let (code, _, err) = run(serve("0.0.0.0:0")).await;
    assert_eq!(code, 2);
    assert!(err.contains("API_KEYS"), "{err}");
    // As when an unset shell variable is passed on.
    let mut without = serve("127.0.0.1:0");
    without.env("API_KEYS", " ");
    let (code, _, err) = run(without).await;
    assert!(code == 2 && err.contains("API_KEYS contains no key"), "{err}");
    let mut for_pages = serve("127.0.0.1:0");
    for_pages.env("CORS_ORIGINS", "https://tools.example.org");
    let (code, _, err) = run(for_pages).await;
    assert!(code == 2 && err.contains("CORS_ORIGINS needs API_KEYS"), "{err}");
    let _first = Setup::new(&sim, home.path()).start().await;
    let (code, _, err) = run(serve("127.0.0.1:0")).await;
    assert!(code == 1 && err.contains("in use by another process"), "{code} {err}");
}

/// The first command of the README.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_ends_in_a_verified_archive_and_says_what_to_try_next() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    assert!(readme.contains("cargo run --release -- demo"));
    let home = TempDir::new().unwrap();
    let mut demo = binary();
    demo.current_dir(home.path()).arg("demo");
    // A configured proxy must not be used for a simulator on this machine.
    demo.env("HTTP_PROXY", "http://127.0.0.1:9").env("TMPDIR", home.path());
    let (code, out, err) = run(demo).await;
    assert_eq!(code, 0, "{out}{err}");
    for words in ["verified:", "zoom-chat-reports-demo.zip", "unzip -l", "demo --keep"] {
        assert!(out.contains(words), "{words} in {out}");
    }
    let tested = Command::new("unzip")
        .arg("-tq")
        .arg(home.path().join("zoom-chat-reports-demo.zip"))
        .output()
        .unwrap();
    assert!(tested.status.success());
    let others = home.path().join("zoom-chat-reports-demo.zip.part");
    std::fs::write(&others, "not ours").unwrap();
    std::fs::write(home.path().join("mine.zip"), "mine").unwrap();
    let mut demo = binary();
    demo.current_dir(home.path()).env("TMPDIR", home.path()).args(["demo", "--archive", "mine.zip"]);
    let (code, _, err) = run(demo).await;
    assert!(code == 2 && err.contains("mine.zip already exists"), "{code} {err}");
    std::fs::remove_file(home.path().join("mine.zip")).unwrap();
    let mut demo = binary();
    demo.current_dir(home.path()).env("TMPDIR", home.path()).args(["demo", "--archive", "."]);
    let (code, _, err) = run(demo).await;
    assert!(code == 2 && err.contains("--archive must name a file"), "{code} {err}");
    let elsewhere = TempDir::new().unwrap();
    let precious = elsewhere.path().join("zoom-chat-reports-demo.zip");
    std::fs::write(&precious, "precious").unwrap();
    let mut demo = binary();
    demo.current_dir(elsewhere.path()).env("TMPDIR", home.path()).arg("demo");
    let (code, _, err) = run(demo).await;
    assert!(code == 2 && err.contains("demo.zip already exists"), "{code} {err}");
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut demo = binary();
    demo.current_dir(home.path()).env("TMPDIR", home.path()).arg("demo");
    demo.args(["--listen-addr", &taken.local_addr().unwrap().to_string()]);
    let (code, _, err) = run(demo).await;
    assert!(code == 1 && err.contains("cannot be used"), "{code} {err}");
    std::fs::remove_file(others).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["zoom-chat-reports-demo.zip"]);
}
