//! The small documents of an archive: heads and tails of session files, summaries, the list of failures.
//!
//! Keys of the script that this service replaces keep their names; ours are added beside them. Everything volatile (times,
//! versions, counts of requests) comes from the capture.

use std::collections::HashSet;
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::ArchiveError;
use crate::capture::{
    CaptureError, FailureNote, FailureRow, Kind, Location, Meta, NotFoundRow, RangeId, Reader, WindowTotals,
};
use crate::days::DateRange;
use crate::json::{members, text_of};

/// What the capture records about the extraction as a whole.
#[derive(Debug, Clone)]
pub struct Facts {
    request: Value,
    from: String,
    to: String,
    /// What follows the id in each session's frame: the days, and the opening of the first array.
    after_id: String,
    pub started_at: Timestamp,
}

impl Facts {
    pub async fn read(reader: &mut Reader) -> Result<Self, ArchiveError> {
        let missing = |what| move || CaptureError::Damaged(format!("{what} is missing from the capture"));
        let request: Value = reader
            .meta(Meta::Request)
            .await?
            .and_then(|text| serde_json::from_str(&text).ok())
            .ok_or_else(missing("the request"))?;
        let day = |field: &str| request[field].as_str().unwrap_or_default().to_owned();
        let days = ["from", "to"].map(|field| json_text(&day(field)));
        Ok(Self {
            from: day("from"),
            to: day("to"),
            after_id: format!("\"from\": {}, \"to\": {},\n\"messages\": [\n", days[0], days[1]),
            started_at: reader.time(Meta::StartedAt).await?.ok_or_else(missing("the start time"))?,
            request,
        })
    }
}

/// The fields of a session that the summaries show.
#[derive(Debug, Serialize)]
pub struct SessionInfo {
    pub name: String,
    #[serde(rename = "type")]
    kind: Value,
    status: Value,
    member_count: usize,
    has_external_member: Value,
    last_message_time: Value,
}

impl SessionInfo {
    pub fn read(info: &str) -> Self {
        let wanted =
            ["name", "type", "status", "member_emails", "has_external_member", "last_message_sent_time"];
        let [name, kind, status, emails, external, last_sent] = members(info, wanted).unwrap_or_default();
        let value = |raw: Option<&RawValue>| -> Value {
            let Some(raw) = raw else { return Value::Null };
            serde_json::from_str(raw.get())
                .unwrap_or_else(|_| text_of(raw).map_or(Value::Null, Value::String))
        };
        let emails = emails.and_then(|raw| serde_json::from_str::<Vec<IgnoredAny>>(raw.get()).ok());
        Self {
            name: name.and_then(text_of).unwrap_or_default(),
            kind: value(kind),
            status: value(status),
            member_count: emails.map_or(0, |emails| emails.len()),
            has_external_member: match value(external) {
                Value::Null => Value::Bool(false),
                other => other,
            },
            last_message_time: value(last_sent),
        }
    }

    /// Reads only the name.
    pub fn name_in(info: &str) -> String {
        let [name] = members(info, ["name"]).unwrap_or_default();
        name.and_then(text_of).unwrap_or_default()
    }
}

/// One line of `sessions_summary.json`.
#[derive(Debug, Serialize)]
pub struct SessionLine<'a> {
    pub id: &'a str,
    #[serde(flatten)]
    pub info: &'a SessionInfo,
    pub key: &'a str,
    pub files: &'a [&'a str],
    pub counts: ItemCounts,
    pub not_found: bool,
    /// Some of its days are among the failures.
    pub incomplete: bool,
}

#[derive(Debug, Serialize)]
pub struct ItemCounts {
    messages: u64,
    edited_messages: u64,
    deleted_messages: u64,
}

impl From<[u64; 3]> for ItemCounts {
    fn from([messages, edited_messages, deleted_messages]: [u64; 3]) -> Self {
        Self { messages, edited_messages, deleted_messages }
    }
}

/// What surrounds the items of an array that is a file of its own.
pub const BEFORE_ITEMS: &str = "[\n";
pub const AFTER_ITEMS: &str = "\n]\n";

/// What surrounds the three arrays of a session's file; [`between`] is what separates them.
#[derive(Debug)]
pub struct SessionFrame {
    pub head: String,
    pub tail: String,
}

impl SessionFrame {
    pub fn new(info: &str, id: &str, facts: &Facts, totals: [u64; 3]) -> Self {
        let (id, after_id) = (json_text(id), &facts.after_id);
        let head =
            format!("{{\"session_info\": {info},\n\"messages_data\": {{\"session_id\": {id}, {after_id}");
        let [messages, edited, deleted] = totals;
        let tail = format!(
            "\n],\n\"total_messages\": {messages}, \"total_edited\": {edited}, \"total_deleted\": {deleted}}}}}\n"
        );
        Self { head, tail }
    }
}

fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("a text is plain data")
}

/// What separates the array of this kind from the one before; nothing before the first.
pub fn between(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Messages => None,
        Kind::Edited => Some("\n],\n\"edited_messages\": [\n"),
        Kind::Deleted => Some("\n],\n\"deleted_messages\": [\n"),
    }
}

/// One failure, the same in `failures.json` and in the API.
#[derive(Debug, Clone, Serialize)]
pub struct FailureLine {
    /// `session` (days of one session) or `listing` (days whose sessions could not be listed).
    pub what: &'static str,
    pub session_id: Option<String>,
    pub window_from: Date,
    pub window_to: Date,
    pub from: Date,
    pub to: Date,
    #[serde(flatten)]
    pub failure: FailureNote,
    pub failed_at: String,
    pub messages_captured: u64,
}

impl From<FailureRow> for FailureLine {
    fn from(row: FailureRow) -> Self {
        Self {
            what: if row.session_id.is_some() { "session" } else { "listing" },
            session_id: row.session_id,
            window_from: row.window.from,
            window_to: row.window.to,
            from: row.days.from,
            to: row.days.to,
            failure: row.failure,
            failed_at: row.failed_at,
            messages_captured: row.messages_captured,
        }
    }
}

/// Renders `extraction_summary.json` up to its last member, the list of what was not found, which may be long. `totals` are
/// those of all `sessions`.
pub async fn summary(
    reader: &mut Reader,
    facts: &Facts,
    sessions: u64,
    totals: &WindowTotals,
) -> Result<String, ArchiveError> {
    let traffic = reader.meta(Meta::Traffic).await?.and_then(|text| serde_json::from_str(&text).ok());
    let traffic: Value = traffic.unwrap_or(Value::Null);
    let captured_until = reader.meta(Meta::CapturedUntil).await?;
    let is_open = captured_until.is_some();
    let captured_until: Option<Timestamp> = captured_until.and_then(|text| text.parse().ok());
    let windows = reader.windows().await?;
    let last = windows.len().saturating_sub(1);
    let mut items = [0; 3];
    let windows: Vec<Value> = windows
        .iter()
        .enumerate()
        .map(|(index, (window, days))| {
            let total = totals.of(*window);
            let [messages, edited, deleted] = total.items;
            items.iter_mut().zip(total.items).for_each(|(sum, more)| *sum = u64::saturating_add(*sum, more));
            json!({
                "from": days.from.to_string(), "to": days.to.to_string(),
                "open": index == last && is_open,
                "sessions": total.listed,
                "messages": messages, "edited_messages": edited, "deleted_messages": deleted,
            })
        })
        .collect();
    let [messages, edited, deleted] = items;
    let document = json!({
        "total_sessions": sessions,
        "total_messages": messages,
        "total_edited_messages": edited,
        "total_deleted_messages": deleted,
        "date_range": format!("{} to {}", facts.from, facts.to),
        "monthly_ranges": windows.len(),
        "extraction_date": facts.started_at,
        "job_id": reader.meta(Meta::JobId).await?,
        "requester": reader.meta(Meta::Requester).await?,
        "version": reader.meta(Meta::Version).await?,
        "request": facts.request,
        "windows": windows,
        "captured_until": captured_until,
        "requests": traffic["requests"],
        "retries": traffic["retries"],
        "rate_limited": traffic["rate_limited"],
        "repeated_items_dropped": reader.repeats().await?,
        "items_missing_when_read_again": reader.restored_items().await?,
        "unknown_members": reader.unknown_members().await?,
        "failures": reader.failure_count().await?,
        "not_selected": not_selected(facts, reader).await?,
        "not_found": null,
    });
    let text = format!("{document:#}");
    Ok(text.strip_suffix("null\n}").expect("its last member is null").to_owned())
}

/// Returns the requested ids of sessions and channels that no session in the capture has: perhaps mistyped, silent on these
/// days, or excluded by another filter.
async fn not_selected(facts: &Facts, reader: &mut Reader) -> Result<Vec<String>, ArchiveError> {
    let wanted = |filter: &str| facts.request["sessions"][filter].as_array().cloned().unwrap_or_default();
    let (ids, channels) = (wanted("ids"), wanted("channel_ids"));
    let [mut missing_ids, mut missing_channels] =
        [&ids, &channels].map(|ids| ids.iter().filter_map(Value::as_str).collect::<HashSet<_>>());
    let mut after = 0;
    while !(missing_ids.is_empty() && missing_channels.is_empty()) {
        let sessions = reader.session_infos(after, 500).await?;
        let Some((last, ..)) = sessions.last() else { break };
        after = *last;
        for (_, id, info) in &sessions {
            missing_ids.remove(&id[..]);
            let [channel] = members(info, ["channel_id"]).unwrap_or_default();
            if let Some(channel) = channel.and_then(text_of) {
                missing_channels.remove(&channel[..]);
            }
        }
    }
    let in_order = |wanted: &[Value], missing: &HashSet<&str>| -> Vec<String> {
        let missing = wanted.iter().filter_map(Value::as_str).filter(|id| missing.contains(id));
        missing.map(str::to_owned).collect()
    };
    Ok([in_order(&ids, &missing_ids), in_order(&channels, &missing_channels)].concat())
}

/// What follows the last member.
pub const AFTER_SUMMARY: &str = "\n}\n";

/// Returns the next ranges that were not found, after the one numbered `after`, each as its sort key and its line, and the
/// number of the last; `None` when there are no more.
pub async fn not_found(
    reader: &mut Reader,
    after: RangeId,
) -> Result<Option<(RangeId, Vec<(String, String)>)>, ArchiveError> {
    let rows = reader.not_found(after, 500).await?;
    let Some(last) = rows.last().map(|row| row.range) else { return Ok(None) };
    let line = |NotFoundRow { session_id, days: DateRange { from, to }, .. }| {
        let line = json!({ "session_id": session_id, "from": from.to_string(), "to": to.to_string() });
        (format!("{from} {session_id}"), line.to_string())
    };
    Ok(Some((last, rows.into_iter().map(line).collect())))
}

/// Returns the next failures after the one numbered `after`, as lines of `failures.json`, and the number of the last; `None`
/// when there are no more.
pub async fn failures(reader: &mut Reader, after: i64) -> Result<Option<(i64, Vec<String>)>, ArchiveError> {
    let rows = reader.failures(after, 500).await?;
    let Some(last) = rows.last() else { return Ok(None) };
    let line = |row| serde_json::to_string(&FailureLine::from(row)).expect("a failure is plain data");
    Ok(Some((last.id, rows.into_iter().map(line).collect())))
}

/// Returns at most `most` failures after the one numbered `after`, and the number of the last if there may be more; `None` if
/// there is no planned capture.
pub async fn failures_page(
    directory: &Path,
    after: Option<i64>,
    most: usize,
) -> Result<Option<(Vec<FailureLine>, Option<i64>)>, ArchiveError> {
    let location = Location::in_directory(directory);
    let rows = location
        .with_planned_reader(async |reader| reader.failures(after.unwrap_or(i64::MIN), most as i64).await);
    let Some(rows) = rows.await? else { return Ok(None) };
    let next = if rows.len() == most { rows.last().map(|row| row.id) } else { None };
    Ok(Some((rows.into_iter().map(FailureLine::from).collect(), next)))
}
