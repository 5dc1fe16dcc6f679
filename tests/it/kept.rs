//! What `extract` finds in its place and did not make, or what may hold more than it makes, is kept.

use std::io::Write;

use tempfile::TempDir;
use zoom_chat_reports::sim::{Match, Simulator};

use crate::extract::{account, extract, zip};
use crate::harness::{always, status};
use crate::process::run;

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
    assert!(out.contains("kept as ./zoom_chat_reports/.capture\n"), "{out}");
    assert!(folder.join(".capture/capture.db.damaged").exists());
    assert!(!err.contains('{'), "what a person reads is no JSON: {err}");
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
