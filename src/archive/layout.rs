//! Names of entries: safe on every disk, unique without regard to case, readable where possible.
//!
//! Pure functions of ids and names. No name is absolute, holds `..`, a reserved device name or a control character,
//! or exceeds 200 bytes.

use sha2::{Digest, Sha256};

use crate::capture::Kind;

pub const SUMMARY: &str = "_metadata/extraction_summary.json";
pub const SESSIONS: &str = "_metadata/sessions_summary.json";
pub const FAILURES: &str = "_metadata/failures.json";
pub const SUMS: &str = "_metadata/SHA256SUMS";

/// The longest key; leaves room for folder, name and suffix within 200 bytes.
const MAX_KEY: usize = 80;
/// The longest stem made of a session's name, in bytes.
const MAX_STEM: usize = 80;
/// Hex digits of a hash that stand in for what a safe name cannot hold.
const HASH_DIGITS: usize = 16;

/// The file key of a session: its id where that is a safe file name, else a readable, unique encoding of it.
pub fn key(id: &str) -> String {
    if is_safe(id) { id.to_owned() } else { hashed_key(id) }
}

/// A readable, unique key for an id that is not a safe file name, or whose plain key collides (ids that differ only in case).
pub fn hashed_key(id: &str) -> String {
    let readable: String =
        id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(32).collect();
    let hash = Sha256::digest(id.as_bytes());
    let digits = hex::encode(hash);
    format!("{}~{}", readable.trim_matches(['_', '-']), &digits[..HASH_DIGITS])
}

fn is_safe(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_KEY
        && id.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'+' | b'@')
        })
        && !id.starts_with('.')
        && !id.starts_with('-')
        && !id.ends_with('.')
        && !id.contains("..")
        && !is_device(id)
}

/// Names that Windows reserves for devices, with any extension.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name);
    let is = |device: &&str| stem.eq_ignore_ascii_case(device);
    let is_port = |port: &[u8]| port.eq_ignore_ascii_case(b"COM") || port.eq_ignore_ascii_case(b"LPT");
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].iter().any(is)
        || matches!(stem.as_bytes(), [port @ .., b'0'..=b'9'] if is_port(port))
}

/// A session's name as the readable part of a file name; letters and digits of any script stay.
pub fn stem(name: &str) -> String {
    let mut stem = String::new();
    for c in name.chars() {
        let c = if c.is_alphanumeric() { c } else { '_' };
        if c == '_' && (stem.is_empty() || stem.ends_with('_')) {
            continue;
        }
        if stem.len() + c.len_utf8() > MAX_STEM {
            break;
        }
        stem.push(c);
    }
    stem.trim_end_matches('_').to_owned()
}

pub fn session_entry(key: &str, name: &str) -> String {
    format!("sessions/{key}_{}.json", stem(name))
}

pub fn items_entry(key: &str, kind: Kind) -> String {
    let suffix = match kind {
        Kind::Messages => "messages",
        Kind::Edited => "edited",
        Kind::Deleted => "deleted",
    };
    format!("messages/{key}_{suffix}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn check(path: &str) {
        assert!(path.len() <= 200, "{path}");
        assert!(
            !path.starts_with('/') && !path.contains("..") && !path.contains('\\') && !path.contains(':'),
            "{path}"
        );
        assert!(path.chars().all(|c| !c.is_control()), "{path:?}");
        for part in path.split('/') {
            assert!(
                !part.is_empty() && !part.ends_with('.') && !part.ends_with(' ') && !is_device(part),
                "{path}"
            );
        }
        assert_eq!(path.matches('/').count(), 1, "{path}");
    }

    proptest! {
        #[test]
        fn whatever_the_id_and_name_entries_are_safe(id in ".{0,400}", name in ".{0,400}") {
            let key = key(&id);
            check(&session_entry(&key, &name));
            check(&session_entry(&hashed_key(&id), &name));
            for kind in Kind::ALL {
                check(&items_entry(&key, kind));
            }
        }
    }

    #[test]
    fn hostile_ids_get_readable_keys_that_differ() {
        let ids = [
            "",
            ".",
            "..",
            "../../etc/passwd",
            "/abs",
            "a/b",
            "a//b",
            "a\\b",
            "CON",
            "nul.txt",
            "com1",
            "a:b",
            "a b",
            "x.",
            ".hidden",
            "-rf",
            "a\u{1}b",
            "a\nb",
            "ä",
            "~tilde",
            "a%2Fb",
            "../..",
            "LPT9.json",
        ];
        let mut seen = HashMap::new();
        for id in ids.iter().map(ToString::to_string).chain(["a".repeat(300), "a".repeat(301)]) {
            let key = key(&id);
            check(&session_entry(&key, "../../x"));
            assert_eq!(seen.insert(key.to_lowercase(), id.clone()), None, "{id:?}");
        }
    }

    #[test]
    fn safe_ids_stay_as_they_are() {
        for id in [
            "c38230acb7f009282c1b0d367a08102d65d12629bbcca58dfe2168bd335f5849",
            "aB_c-9==",
            "user@conf.example",
        ] {
            assert_eq!(key(id), id);
        }
    }

    #[test]
    fn names_keep_letters_and_digits_of_any_script() {
        let table = [
            ("Channel One", "Channel_One"),
            ("", ""),
            ("../../x", "x"),
            ("a/b\\c", "a_b_c"),
            ("日本語 チャット", "日本語_チャット"),
            ("привет!", "привет"),
            ("🎉🎉", ""),
            ("\u{202e}evil", "evil"),
        ];
        for (name, expected) in table {
            assert_eq!(stem(name), expected, "{name:?}");
        }
        assert!(stem(&"é".repeat(500)).len() <= MAX_STEM);
    }
}
