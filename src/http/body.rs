//! The body of `POST /v1/jobs`: every wrong field is named, all at once.

use axum::http::StatusCode;
use jiff::civil::Date;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::problem::{FieldError, Problem};
use crate::extract::request::KNOWN_TYPES;
use crate::extract::windows::{RangeError, oldest_reachable, parse_day, validate};
use crate::extract::{EditsBy, ExtractRequest, Include, SessionFilter};
use crate::json::duplicate_members;

/// What a job extracts.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "used only for its OpenAPI schema")]
#[schema(example = json!({"from": "2026-09-15", "to": "2026-10-14", "label": "case 4711"}))]
pub struct JobRequest {
    /// First day, UTC, `yyyy-mm-dd`; at most six months back.
    #[schema(value_type = String, format = Date, example = "2026-09-15")]
    pub from: String,
    /// Last day, inclusive, UTC; not after today.
    #[schema(value_type = String, format = Date, example = "2026-10-14")]
    pub to: String,
    pub include: Option<IncludeRequest>,
    /// How edited and deleted items are selected: by the time their message was sent (`sent_time`, the default: complete for
    /// the range), or by the time of the edit or deletion (`modification_time`).
    #[schema(value_type = Option<EditsByRequest>)]
    pub edits_by: Option<String>,
    pub sessions: Option<SessionsRequest>,
    /// Free text, shown with the job.
    #[schema(max_length = 200, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    pub label: Option<String>,
}

/// What to extract besides messages; each is true by default.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "used only for its OpenAPI schema")]
pub struct IncludeRequest {
    /// Earlier versions of edited messages.
    pub edited: Option<bool>,
    /// Deleted messages.
    pub deleted: Option<bool>,
    /// What bots attached to messages (`bot_message`).
    pub bot_messages: Option<bool>,
    /// Emoji reactions to messages.
    pub reactions: Option<bool>,
    /// Reactions with the account's own emoji.
    pub custom_emoji_reactions: Option<bool>,
}

#[derive(Debug, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "used only for its OpenAPI schema")]
pub enum EditsByRequest {
    SentTime,
    ModificationTime,
}

/// Only sessions that match all given filters; without filters, all sessions. Filters save requests.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "used only for its OpenAPI schema")]
pub struct SessionsRequest {
    /// `1:1` or `group`; sessions of any other type pass this filter.
    #[schema(max_items = 1000)]
    pub types: Option<Vec<SessionType>>,
    /// Zoom's session ids.
    #[schema(max_items = 1000)]
    pub ids: Option<Vec<ZoomId>>,
    /// Zoom's channel ids.
    #[schema(max_items = 1000)]
    pub channel_ids: Option<Vec<ZoomId>>,
    /// Part of the name, case-insensitive.
    #[schema(max_length = 200, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    pub name_contains: Option<String>,
}

/// An id as Zoom reports it.
#[derive(Debug, ToSchema)]
#[schema(min_length = 1, max_length = 200, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
#[expect(dead_code, reason = "used only for its OpenAPI schema")]
pub struct ZoomId(String);

#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "used only for its OpenAPI schema")]
pub enum SessionType {
    #[serde(rename = "1:1")]
    OneToOne,
    #[serde(rename = "group")]
    Group,
}

/// The maximum length of a label, a name or an id.
const MAX_CHARACTERS: usize = 200;
const MAX_FILTER: usize = 1_000;
/// At most this many unknown fields of an object are named, and this many repeated ones in all.
const MAX_UNKNOWN: usize = 100;

/// A valid body, except perhaps that its first day has left Zoom's reach.
#[derive(Debug)]
pub struct Submitted {
    pub request: ExtractRequest,
    pub out_of_reach: Option<Problem>,
}

/// Reads and validates a body.
pub fn read(body: &[u8], today: Date) -> Result<Submitted, Problem> {
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "malformed-json",
            "The body cannot be read as JSON",
            // Says what is wrong and where, without quoting the body.
            error.to_string(),
        )
    })?;
    let mut reader = Reader { errors: Vec::new(), is_out_of_reach: false };
    let request = reader.request(value, today);
    for member in duplicate_members(body, &["include", "sessions"]).into_iter().take(MAX_UNKNOWN) {
        reader.wrong(&member, "occurs more than once");
    }
    let Reader { errors, is_out_of_reach } = reader;
    // No other error can appear merely because time has passed.
    let is_only_out_of_reach = is_out_of_reach && errors.len() == 1;
    let problem = |errors| Problem::invalid(StatusCode::UNPROCESSABLE_ENTITY, errors);
    let Some(request) = request.filter(|_| errors.is_empty() || is_only_out_of_reach) else {
        return Err(problem(errors));
    };
    Ok(Submitted { request, out_of_reach: is_only_out_of_reach.then(|| problem(errors)) })
}

struct Reader {
    errors: Vec<FieldError>,
    /// Whether one of the errors is that the first day has left Zoom's reach.
    is_out_of_reach: bool,
}

impl Reader {
    fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.errors.push(FieldError { field: field.to_owned(), message: message.into() });
    }

    fn request(&mut self, value: Value, today: Date) -> Option<ExtractRequest> {
        let Value::Object(members) = value else {
            self.wrong("body", "must be an object with from and to");
            return None;
        };
        let mut members = Members { prefix: "", rest: members, known: Vec::new() };
        let from = self.date(&mut members, "from");
        let to = self.date(&mut members, "to");
        for error in validate(oldest_reachable(today), from, to, today) {
            self.is_out_of_reach |= matches!(error, RangeError::OutOfReach { .. });
            self.wrong(error.field(), error.to_string());
        }
        let include = self.include(members.take("include"));
        let edits_by = match self.text(members.take("edits_by"), "edits_by").as_deref() {
            None | Some("sent_time") => EditsBy::SentTime,
            Some("modification_time") => EditsBy::ModificationTime,
            Some(_) => {
                self.wrong("edits_by", "must be sent_time or modification_time");
                EditsBy::SentTime
            }
        };
        let sessions = self.sessions(members.take("sessions"));
        let label = self.short_text(members.take("label"), "label");
        self.nothing_else(&members);
        Some(ExtractRequest { from: from?, to: to?, include, edits_by, sessions, label })
    }

    fn date(&mut self, members: &mut Members, field: &'static str) -> Option<Date> {
        match members.take(field) {
            None | Some(Value::Null) => {
                self.wrong(field, "is required, as yyyy-mm-dd");
                None
            }
            Some(value) => parse_day(value.as_str().unwrap_or_default())
                .map_err(|message| self.wrong(field, message))
                .ok(),
        }
    }

    fn include(&mut self, value: Option<Value>) -> Include {
        let mut include = Include::default();
        let mut members = self.object(value, "include", "include.");
        for (name, switch) in [
            ("edited", &mut include.edited),
            ("deleted", &mut include.deleted),
            ("bot_messages", &mut include.bot_messages),
            ("reactions", &mut include.reactions),
            ("custom_emoji_reactions", &mut include.custom_emoji_reactions),
        ] {
            match members.take(name) {
                None | Some(Value::Null) => {}
                Some(Value::Bool(on)) => *switch = on,
                Some(_) => self.wrong(&format!("include.{name}"), "must be true or false"),
            }
        }
        self.nothing_else(&members);
        include
    }

    fn sessions(&mut self, value: Option<Value>) -> SessionFilter {
        let mut members = self.object(value, "sessions", "sessions.");
        let types = self.texts(members.take("types"), "sessions.types");
        let types: Vec<String> = types.into_iter().map(|kind| kind.to_lowercase()).collect();
        if types.iter().any(|kind| !KNOWN_TYPES.contains(&kind.as_str())) {
            self.wrong("sessions.types", "each must be 1:1 or group");
        }
        let filter = SessionFilter {
            types,
            ids: self.texts(members.take("ids"), "sessions.ids"),
            channel_ids: self.texts(members.take("channel_ids"), "sessions.channel_ids"),
            name_contains: self.short_text(members.take("name_contains"), "sessions.name_contains"),
        };
        self.nothing_else(&members);
        filter
    }

    fn object(&mut self, value: Option<Value>, field: &str, prefix: &'static str) -> Members {
        let rest = match value {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(members)) => members,
            Some(_) => {
                self.wrong(field, "must be an object");
                Map::new()
            }
        };
        Members { prefix, rest, known: Vec::new() }
    }

    fn text(&mut self, value: Option<Value>, field: &str) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                self.wrong(field, "must be a string");
                None
            }
        }
    }

    fn short_text(&mut self, value: Option<Value>, field: &str) -> Option<String> {
        let text = self.text(value, field);
        if text.as_deref().is_some_and(is_too_long) {
            self.wrong(field, format!("must have at most {MAX_CHARACTERS} characters"));
        } else if text.as_deref().is_some_and(has_control_characters) {
            self.wrong(field, "must have no control characters");
        }
        text
    }

    fn texts(&mut self, value: Option<Value>, field: &str) -> Vec<String> {
        let items = match value {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.wrong(field, "must be an array of strings");
                return Vec::new();
            }
        };
        if items.len() > MAX_FILTER {
            self.wrong(field, format!("must have at most {MAX_FILTER} items"));
        }
        let count = items.len();
        let texts: Vec<String> = items
            .into_iter()
            .filter_map(|item| if let Value::String(text) = item { Some(text) } else { None })
            .collect();
        if texts.len() < count {
            self.wrong(field, "must be an array of strings");
        } else if texts.iter().any(String::is_empty) {
            self.wrong(field, "must not hold an empty string");
        } else if texts.iter().any(|text| is_too_long(text)) {
            self.wrong(field, format!("must hold strings of at most {MAX_CHARACTERS} characters"));
        } else if texts.iter().any(|text| has_control_characters(text)) {
            self.wrong(field, "must hold strings without control characters");
        }
        texts
    }

    fn nothing_else(&mut self, Members { prefix, rest, known }: &Members) {
        let known = known.join(", ");
        for name in rest.keys().take(MAX_UNKNOWN) {
            let name = if name.is_empty() { "\"\"" } else { name };
            self.wrong(&format!("{prefix}{name}"), format!("is not a known field; known fields: {known}"));
        }
        if rest.len() > MAX_UNKNOWN {
            let more = rest.len() - MAX_UNKNOWN;
            self.wrong(prefix.strip_suffix('.').unwrap_or("body"), format!("has {more} more unknown fields"));
        }
    }
}

/// The members of an object that have not been taken yet, and the names of all that were asked for.
struct Members {
    prefix: &'static str,
    rest: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Members {
    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.rest.remove(name)
    }
}

fn is_too_long(text: &str) -> bool {
    text.chars().count() > MAX_CHARACTERS
}

fn has_control_characters(text: &str) -> bool {
    text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    fn errors(body: &str) -> Vec<(String, String)> {
        let problem = read(body.as_bytes(), date(2026, 11, 24)).unwrap_err();
        problem.errors.into_iter().map(|error| (error.field, error.message)).collect()
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let body = r#"{"from":"2026-13-01","to":7,"include":{"edited":"yes","x":1},"edits_by":"whim",
            "sessions":{"types":["dm"],"ids":"a","name_contains":[]},"label":3,"colour":"red"}"#;
        insta::assert_json_snapshot!("every_wrong_field", errors(body));
    }

    #[test]
    fn an_answer_names_no_more_than_somebody_can_read() {
        let days = r#""from":"2026-10-01","to":"2026-10-31""#;
        let unknown = (0..1_000).map(|number| format!("\"x{number}\":1")).collect::<Vec<_>>().join(",");
        let of_many = errors(&format!("{{{days},{unknown}}}"));
        assert_eq!(of_many.len(), MAX_UNKNOWN + 1);
        assert_eq!(of_many[MAX_UNKNOWN], ("body".to_owned(), "has 900 more unknown fields".to_owned()));
        for wrong in [&"x".repeat(MAX_CHARACTERS + 1), r"a\u0000", r"a\n"] {
            let errors = errors(&format!(
                r#"{{{days},"label":"{wrong}","sessions":{{"name_contains":"{wrong}","ids":["{wrong}"]}}}}"#
            ));
            let fields: Vec<_> = errors.iter().map(|(field, _)| &field[..]).collect();
            assert_eq!(fields, ["sessions.ids", "sessions.name_contains", "label"]);
        }
    }

    #[test]
    fn what_is_said_twice_or_says_nothing_is_named() {
        let body = r#"{"from":"2026-10-01","to":"2026-10-31","from":"2026-10-02","label":null,"label":"x",
            "sessions":{"ids":["a",""],"types":[],"types":["1:1"]}}"#;
        let twice = |field: &str| (field.to_owned(), "occurs more than once".to_owned());
        let empty = ("sessions.ids".to_owned(), "must not hold an empty string".to_owned());
        assert_eq!(errors(body), [empty, twice("from"), twice("label"), twice("sessions.types")]);
    }

    #[test]
    fn defaults_and_all_fields_are_understood() {
        let today = date(2026, 11, 24);
        let read = |body: &[u8]| read(body, today).unwrap().request;
        let plain = read(br#"{"from":"2026-10-01","to":"2026-10-31"}"#);
        assert_eq!((plain.include, plain.edits_by), (Include::default(), EditsBy::SentTime));
        let full = read(
            br#"{"from":"2026-10-01","to":"2026-10-31","include":{"edited":false},"edits_by":"modification_time",
                "sessions":{"types":["1:1"],"ids":["a"],"channel_ids":["c"],"name_contains":"x"},"label":"l"}"#,
        );
        assert!(!full.include.edited && full.include.deleted);
        assert_eq!(full.edits_by, EditsBy::ModificationTime);
        assert_eq!(full.sessions.ids, ["a"]);
    }

    #[test]
    fn days_out_of_reach_are_told_with_the_request_and_beside_other_errors_among_them() {
        let today = date(2026, 11, 24);
        let old = read(br#"{"from":"2026-01-01","to":"2026-10-31"}"#, today).unwrap();
        assert_eq!(old.request.from, date(2026, 1, 1));
        assert_eq!(old.out_of_reach.unwrap().errors[0].field, "from");
        let fields: Vec<_> = errors(r#"{"from":"2026-01-01","to":"2026-11-25","label":1}"#);
        let fields: Vec<_> = fields.iter().map(|(field, _)| &field[..]).collect();
        assert_eq!(fields, ["from", "to", "label"]);
        // These were never valid before, so it does not matter whether there is a job for them.
        for wrong in
            [r#"{"from":"2026-01-02","to":"2026-01-01"}"#, r#"{"from":"2026-11-24","to":"2026-11-25"}"#]
        {
            assert_eq!(errors(wrong).len(), 1);
        }
    }

    /// Nested values of every kind, under known and unknown names.
    fn value() -> impl Strategy<Value = Value> {
        let day = prop_oneof![Just("2026-10-01"), Just("2026-10-31"), Just("2026-02-30"), Just("9999-12-31")];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            day.prop_map(Value::from),
            "[a-z1:_]{0,12}".prop_map(Value::from),
            "\\PC{0,250}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 40, 6, |inner| {
            let names = "from|to|include|edits_by|sessions|label|edited|deleted|bot_messages|types|ids|channel_ids|name_contains|[a-z]{1,4}";
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(names, inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_body_is_a_request_or_something_is_named(value in value(), text in ".{0,200}") {
            for body in [value.to_string(), text] {
                if let Err(problem) = read(body.as_bytes(), date(2026, 11, 24)) {
                    prop_assert!(problem.status == 400 || !problem.errors.is_empty());
                }
            }
        }
    }
}
