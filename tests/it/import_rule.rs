//! Rooms may import only what the map in `lib.rs` allows.

use std::collections::BTreeSet;
use std::path::Path;

/// Which rooms a room may use.
const ALLOWED: [(&str, &[&str]); 19] = [
    ("clock", &[]),
    ("days", &[]),
    ("files", &[]),
    ("json", &[]),
    ("sync", &[]),
    ("telemetry", &[]),
    ("shutdown", &["clock"]),
    ("sim", &[]),
    ("zoom", &["clock", "days", "json", "sync"]),
    ("sqlite", &["files"]),
    ("capture", &["days", "files", "sqlite"]),
    ("archive", &["capture", "clock", "days", "files", "json"]),
    ("extract", &["zoom", "capture", "clock", "days", "files", "json", "sync"]),
    ("jobs", &["extract", "archive", "clock", "files", "sqlite", "sync"]),
    ("http", &["jobs", "extract", "archive", "clock", "files", "json", "sync", "telemetry"]),
    ("app", &["http", "jobs", "extract", "archive", "capture", "zoom", "clock", "files", "telemetry"]),
    ("config", &["app", "http", "jobs", "extract", "zoom", "telemetry"]),
    (
        "cli",
        &[
            "app",
            "config",
            "sim",
            "clock",
            "days",
            "files",
            "shutdown",
            "telemetry",
            "http",
            "extract",
            "jobs",
            "zoom",
        ],
    ),
    ("lib", &[]),
];

fn edges(path: &Path, found: &mut BTreeSet<(String, String)>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            edges(&path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let relative = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
        let room = relative.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        let is_at_the_top = relative.iter().count() == 1 || relative.ends_with("mod.rs");
        let to_the_root = if is_at_the_top { "super::" } else { "super::super::" };
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            assert!(
                !line.contains(to_the_root),
                "other rooms are named by `crate::`, so that this test sees them: {}: {line}",
                path.display()
            );
            for (at, _) in line.match_indices("crate::") {
                let rest = &line[at + "crate::".len()..];
                let target: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(
                    !target.is_empty(),
                    "one room an import, so that this test can read it: {}: {line}",
                    path.display()
                );
                if target != room {
                    found.insert((room.clone(), target));
                }
            }
        }
    }
}

#[test]
fn rooms_import_only_what_the_map_allows() {
    let mut found = BTreeSet::new();
    edges(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 15, "the walk sees the code");
    for (room, target) in ALLOWED.iter().flat_map(|(room, of)| of.iter().map(move |target| (*room, *target)))
    {
        assert!(found.contains(&(room.to_owned(), target.to_owned())), "{room} does not import {target}");
    }
    for (room, target) in found {
        let allowed = ALLOWED.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| *allowed);
        let is_main = room == "main";
        assert!(is_main || allowed.contains(&target.as_str()), "{room} must not import {target}");
    }
}
