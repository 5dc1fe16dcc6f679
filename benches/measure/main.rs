//! What this project promises, measured: the real binary against the simulator in another process, mostly as ratios.
//!
//! `cargo bench --bench measure` runs everything (about an hour); `-- NAME ...` runs some, `-- list` lists the names. Prints
//! the figures of each as they come and, at the end, a table of all jobs and everything as JSON. No figure is asserted: they
//! are for people to compare.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop loudly")]
#![expect(clippy::print_stdout, reason = "the figures are the result")]

mod floor;
mod jobs;
mod processes;
mod serving;

use std::process::Command;

use futures_util::future::LocalBoxFuture;
use serde_json::{Map, Value};

use processes::Profile;

type Measurement = (&'static str, fn() -> LocalBoxFuture<'static, Value>);

const USUAL: Profile = Profile::USUAL;
const MINUTE: Profile = Profile { messages: 330_000, sessions: 300, months: 2, ..USUAL };
const UNPACED: Profile = Profile::UNPACED;

const ALL: [Measurement; 27] = [
    // Bound by the rate limit, more than five minutes each.
    ("efficiency-20", || Box::pin(jobs::ratios(Profile { limit: 20, messages: 470_000, ..USUAL }))),
    ("efficiency-60", || Box::pin(jobs::ratios(Profile { messages: 1_400_000, sessions: 2_000, ..USUAL }))),
    ("heavy-tailed", || {
        Box::pin(jobs::ratios(Profile { messages: 1_650_000, heaviest_share: 0.5, ..USUAL }))
    }),
    ("high-latency", || {
        Box::pin(jobs::ratios(Profile { messages: 1_680_000, latency_ms: 800, jitter_ms: 300, ..USUAL }))
    }),
    ("light-faults", || Box::pin(jobs::ratios(Profile { messages: 1_560_000, faults: "light", ..USUAL }))),
    ("wide-60", || Box::pin(jobs::ratios(Profile { messages: 42_000, sessions: 10_500, ..USUAL }))),
    ("long-messages-60", || Box::pin(jobs::ratios(Profile { messages: 1_700_000, text_scale: 20, ..USUAL }))),
    // One-minute runs: too short to make up for a misjudgement at the start.
    ("minute", || Box::pin(jobs::ratios(MINUTE))),
    ("minute-high-latency", || Box::pin(jobs::ratios(Profile { latency_ms: 800, jitter_ms: 300, ..MINUTE }))),
    ("sharing", || Box::pin(jobs::sharing())),
    ("many-jobs", || Box::pin(jobs::many_jobs())),
    ("many-accounts", || Box::pin(jobs::many_accounts())),
    ("neighbour", || Box::pin(jobs::neighbour())),
    ("kills", || Box::pin(jobs::kills())),
    // Bound by the CPU.
    ("small", || Box::pin(jobs::unpaced(Profile { messages: 6_000, sessions: 60, months: 2, ..UNPACED }))),
    ("memory", || Box::pin(jobs::unpaced(Profile { messages: 2_000_000, sessions: 5_000, ..UNPACED }))),
    ("giant", || {
        Box::pin(jobs::unpaced(Profile {
            messages: 3_000_000,
            sessions: 10,
            heaviest_share: 0.99,
            ..UNPACED
        }))
    }),
    ("wide", || Box::pin(jobs::unpaced(Profile { messages: 400_000, sessions: 100_000, ..UNPACED }))),
    ("widest", || Box::pin(jobs::unpaced(Profile { messages: 1_000_000, sessions: 250_000, ..UNPACED }))),
    ("million", || Box::pin(jobs::unpaced(Profile { messages: 1_500_000, sessions: 1_000_000, ..UNPACED }))),
    ("long-messages", || Box::pin(jobs::unpaced(Profile { messages: 100_000, text_scale: 20, ..UNPACED }))),
    ("linear", || Box::pin(jobs::linear())),
    // As users see it.
    ("polling", || Box::pin(serving::polling())),
    ("downloads", || Box::pin(serving::downloads())),
    ("ready", || Box::pin(serving::ready())),
    ("load", || Box::pin(serving::load())),
    ("soak", || Box::pin(serving::soak())),
];

/// The figures that jobs have or may have, and their column headings in the table.
const COLUMNS: [(&str, &str); 13] = [
    ("efficiency", "of limit"),
    ("requests_over_least", "of least"),
    ("requests_over_necessary", "of needed"),
    ("answers_429", "429s"),
    ("wall_s", "seconds"),
    ("cpu_s_per_1000_pages", "CPU/1000"),
    ("cpu_over_floor", "of floor"),
    ("json_mb_per_s", "MB/s"),
    ("assembly_json_mb_per_s", "assembly"),
    ("assembly_of_received_mb_per_s", "of received"),
    ("assembly_over_copy", "of copy"),
    ("written_per_archive_byte", "written"),
    ("peak_rss_mib", "MiB"),
];

/// One line per job.
fn rows(results: &Map<String, Value>, of: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, result) in results {
        let Value::Object(figures) = result else { continue };
        if figures.contains_key("cpu_s_per_1000_pages") {
            let cells = COLUMNS.map(|(key, _)| figures.get(key).map_or(String::new(), Value::to_string));
            lines.push(row(&format!("{of}{name}"), &cells));
        } else {
            lines.extend(rows(figures, &format!("{name} ")));
        }
    }
    lines
}

fn row(head: &str, cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>10}")).collect();
    format!("{head:<24}{}", cells.concat())
}

/// Prints one line per figure.
fn tell(result: &Value, of: &str) {
    let Value::Object(members) = result else {
        println!("  {:<44}{result}", of.replace('_', " "));
        return;
    };
    for (name, value) in members {
        tell(value, format!("{of} {name}").trim_start());
    }
}

/// The heap's settings, as `src/main.rs` makes them for the service: archives are assembled again in this process.
const HEAP: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

fn main() {
    let (options, wanted): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    // Cargo passes `--bench` for `cargo bench` only; `cargo test --all-targets` runs this too and should not take an hour.
    if !options.iter().any(|option| option == "--bench") {
        return;
    }
    if HEAP.iter().any(|(name, value)| std::env::var(name).as_deref() != Ok(*value)) {
        let mut same = Command::new(std::env::current_exe().unwrap());
        let ended = same.args(std::env::args_os().skip(1)).envs(HEAP).status().unwrap();
        std::process::exit(ended.code().unwrap_or(1));
    }
    if wanted.iter().any(|name| name == "list") {
        for (name, _) in ALL {
            println!("{name}");
        }
        return;
    }
    for name in &wanted {
        assert!(ALL.iter().any(|(known, _)| known == name), "no measurement is called {name}; see -- list");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut results = Map::new();
    for (name, measure) in ALL {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            let result = runtime.block_on(measure());
            println!("{name}");
            tell(&result, "");
            results.insert(name.to_owned(), result);
        }
    }
    let jobs = rows(&results, "");
    if !jobs.is_empty() {
        println!("\n{}\n{}", row("", &COLUMNS.map(|(_, head)| head.to_owned())), jobs.join("\n"));
    }
    println!("\n{:#}", Value::Object(results));
}
