//! The other commands as a person uses them: the real binary, its output, its exit codes, its settings.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::ToSpan;
use rustix::process::Signal;
use tempfile::TempDir;
use zoom_chat_reports::sim::{FaultLevel, Match, SimSettings, Simulator};

use crate::extract::{account, extract};
use crate::harness::{NO_PERMISSION, always, status};
use crate::process::{Setup, binary, connected, run, signal};

fn check(sim: &Simulator, directory: &Path) -> Command {
    let mut command = connected(sim, directory);
    command.arg("check");
    command
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
