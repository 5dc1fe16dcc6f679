//! All that the script replaced by this service wrote is still there, under the same keys and with the same values.

use serde_json::{Value, json};
use zoom_chat_reports::sim::{ItemKind, ItemOptions, SimSettings};

use crate::harness::{World, clock_at};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_calendar_month_has_the_old_scripts_keys_and_values() {
    let clock = clock_at("09:00:00");
    let sim = SimSettings { sessions: 50, messages: 4_000, months: 3, ..SimSettings::default() };
    let world = World::with_clock(sim, clock, |_| {}).await;
    let (from, to) = (jiff::civil::date(2026, 10, 1), jiff::civil::date(2026, 10, 31));
    let body = json!({ "from": from.to_string(), "to": to.to_string(), "edits_by": "modification_time" });
    let (_, archive) = world.run(&body).await;
    let data = world.sim.dataset();
    let options = ItemOptions { all_modifications: true, ..ItemOptions::default() };

    let summary = archive.json("_metadata/extraction_summary.json");
    let listed: Vec<u32> = data.sessions_listed(from, to).collect();
    let count = |wanted: ItemKind| {
        let items = |session: &u32| {
            data.items(*session, from, to, options).filter(|(kind, _)| *kind == wanted).count()
        };
        listed.iter().map(items).sum::<usize>()
    };
    for (key, value) in [
        ("total_sessions", json!(listed.len())),
        ("total_messages", json!(count(ItemKind::Message))),
        ("total_edited_messages", json!(count(ItemKind::Edited))),
        ("total_deleted_messages", json!(count(ItemKind::Deleted))),
        ("date_range", json!("2026-10-01 to 2026-10-31")),
        ("monthly_ranges", json!(1)),
    ] {
        assert_eq!(summary[key], value, "{key}");
    }
    assert!(summary["extraction_date"].as_str().unwrap().starts_with("2026-11-24T09:"));
    let all = "total_sessions total_messages total_edited_messages total_deleted_messages date_range monthly_ranges \
        extraction_date job_id requester version request windows captured_until requests retries rate_limited \
        repeated_items_dropped items_missing_when_read_again unknown_members failures not_selected not_found";
    assert_eq!(keys(&summary), all.split_whitespace().collect::<Vec<_>>());
    assert_eq!(summary["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&summary["request"]["from"], &summary["captured_until"]),
        (&json!("2026-10-01"), &Value::Null)
    );

    let sessions = archive.json("_metadata/sessions_summary.json");
    for line in sessions.as_array().unwrap() {
        let old =
            ["id", "name", "type", "status", "member_count", "has_external_member", "last_message_time"];
        assert_eq!(keys(line)[..old.len()], old);
        let index = data.index_of(line["id"].as_str().unwrap()).unwrap();
        let info: Value = serde_json::from_str(&data.info_json(index)).unwrap();
        assert_eq!(line["name"], info["name"]);
        assert_eq!(line["type"], info["type"]);
        assert_eq!(line["status"], info["status"]);
        assert_eq!(line["member_count"], info["member_emails"].as_array().map_or(0, Vec::len));
        assert_eq!(
            line["has_external_member"],
            info.get("has_external_member").cloned().unwrap_or(json!(false))
        );
        assert_eq!(line["last_message_time"], info["last_message_sent_time"]);
    }
    for (name, text) in archive.files.iter().filter(|(name, _)| name.starts_with("sessions/")) {
        let members: std::collections::BTreeMap<String, &serde_json::value::RawValue> =
            serde_json::from_slice(text).unwrap();
        assert_eq!(members.keys().collect::<Vec<_>>(), ["messages_data", "session_info"], "{name}");
        let content: std::collections::BTreeMap<String, &serde_json::value::RawValue> =
            serde_json::from_str(members["messages_data"].get()).unwrap();
        let old = [
            "deleted_messages",
            "edited_messages",
            "from",
            "messages",
            "session_id",
            "to",
            "total_deleted",
            "total_edited",
            "total_messages",
        ];
        assert_eq!(content.keys().collect::<Vec<_>>(), old, "{name}");
        assert_eq!((content["from"].get(), content["to"].get()), ("\"2026-10-01\"", "\"2026-10-31\""));
    }
}
