//! The shapes of Zoom's JSON, as little of them as needed: arrays are found, their items stay raw text.
//!
//! Owns the reading of pages. Every item, known or not, is passed on byte for byte; numbers are never re-rendered.
//! `sim` shares no type with this module, so that a misspelt field cannot pass every test.

use std::borrow::Cow;
use std::fmt;

use jiff::civil::Date;
use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{CODES, Failure, FailureKind, TEXTS, looks_like_html};
use crate::days::DateRange;
use crate::json::{members, text_of};

/// A page of either endpoint: the arrays asked for by name, the next token, and members we do not know.
#[derive(Debug)]
pub struct Page<'a, const N: usize> {
    pub arrays: [Vec<&'a RawValue>; N],
    /// `None` on the last page.
    pub next_page_token: Option<String>,
    /// The first and the last day that the page says it covers.
    days: [Option<Date>; 2],
    /// Members of the response that we do not know, verbatim.
    pub unknown: Vec<(String, String)>,
}

/// The arrays of a list page.
pub const SESSIONS: [&str; 1] = ["sessions"];
/// The arrays of a messages page, in the order of [`crate::capture::Kind`].
pub const MESSAGES: [&str; 3] = ["messages", "edited_messages", "deleted_messages"];

impl<'a, const N: usize> Page<'a, N> {
    /// Parses the body of an answer with status 200. Anything but such a page (HTML, an error in disguise, an array that is not
    /// one) is an error, never an empty page.
    pub fn read(body: &'a [u8], names: [&'static str; N]) -> Result<Self, String> {
        // Checking UTF-8 all at once: item by item it takes four times as long.
        let text = simdutf8::basic::from_utf8(body).map_err(|error| error.to_string())?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let page = PageSeed { names }.deserialize(&mut deserializer).map_err(|error| {
            if looks_like_html(body) { "it is an HTML page".to_owned() } else { shape_of(&error) }
        })?;
        deserializer.end().map_err(|error| shape_of(&error))?;
        Ok(page)
    }

    /// Returns a failure when the page says that it does not cover all the days asked for: nobody knows what is missing.
    pub fn leaves_out(&self, asked: DateRange) -> Option<Failure> {
        let [from, to] = self.days;
        let answered = DateRange { from: from.unwrap_or(asked.from), to: to.unwrap_or(asked.to) };
        (!answered.covers(asked)).then(|| {
            let message = format!("Zoom answered for {answered} when it was asked for {asked}");
            Failure::in_chain(FailureKind::DaysLeftOut, message)
        })
    }
}

/// A parse error without quoting the body, which is chat content.
fn shape_of(error: &serde_json::Error) -> String {
    format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()).to_lowercase()
}

struct PageSeed<const N: usize> {
    names: [&'static str; N],
}

impl<'de, const N: usize> DeserializeSeed<'de> for PageSeed<N> {
    type Value = Page<'de, N>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// A member name, borrowed unless it has escapes to resolve.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, const N: usize> Visitor<'de> for PageSeed<N> {
    type Value = Page<'de, N>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a page of a report")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut page = Page {
            arrays: std::array::from_fn(|_| Vec::new()),
            next_page_token: None,
            days: [None, None],
            unknown: Vec::new(),
        };
        let (mut is_a_page, mut has_token, mut seen) = (false, false, [false; N]);
        while let Some(Name(name)) = map.next_key()? {
            if let Some(index) = self.names.iter().position(|known| *known == name) {
                if std::mem::replace(&mut seen[index], true) {
                    return Err(serde::de::Error::custom("an array that comes twice"));
                }
                page.arrays[index] = map.next_value::<Option<Vec<&RawValue>>>()?.unwrap_or_default();
                is_a_page = true;
                continue;
            }
            match name.as_ref() {
                "next_page_token" => {
                    if std::mem::replace(&mut has_token, true) {
                        return Err(serde::de::Error::custom("a page token that comes twice"));
                    }
                    let token: Option<String> = map.next_value()?;
                    page.next_page_token = token.filter(|token| !token.is_empty());
                    is_a_page = true;
                }
                end @ ("from" | "to") => {
                    page.days[usize::from(end == "to")] = day_of(map.next_value()?);
                    is_a_page = true;
                }
                "page_size" => {
                    map.next_value::<IgnoredAny>()?;
                    is_a_page = true;
                }
                _ => page.unknown.push((name.into_owned(), map.next_value::<&RawValue>()?.get().to_owned())),
            }
        }
        let is_of_errors = |name: &str| CODES.contains(&name) || TEXTS.contains(&name);
        // An error may come with its arrays null or empty, or with only some of them: it must not pass for a page without
        // messages.
        let has_no_items = !seen[0] || page.arrays.iter().all(Vec::is_empty);
        let is_error = has_no_items && page.unknown.iter().any(|(name, _)| is_of_errors(name));
        if is_a_page && !is_error { Ok(page) } else { Err(serde::de::Error::custom("not a page")) }
    }
}

/// Reads a day, with or without a time after it.
fn day_of(value: &RawValue) -> Option<Date> {
    text_of(value)?.get(..10)?.parse().ok()
}

/// When a message was sent, in milliseconds since 1970; `None` if it has no such number.
pub fn sent_at(message: &RawValue) -> Option<i64> {
    instant_in(message, "timestamp")
}

/// Likewise, when an item was edited or deleted.
pub fn modified_at(message: &RawValue) -> Option<i64> {
    instant_in(message, "action_timestamp")
}

fn instant_in(message: &RawValue, name: &str) -> Option<i64> {
    let [instant] = members(message.get(), [name]).ok()?;
    instant?.get().parse().ok()
}

/// What is read of a listed session; everything else stays in its raw text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHead {
    pub id: String,
    pub kind: Option<String>,
    pub name: Option<String>,
    pub channel_id: Option<String>,
}

impl SessionHead {
    /// Reads the members that select and name a session. Only the id is required.
    pub fn read(info: &RawValue) -> Result<Self, String> {
        let members = members(info.get(), ["id", "type", "name", "channel_id"]);
        let members = members.map_err(|error| format!("a session: {}", shape_of(&error)))?;
        let [id, kind, name, channel_id] = members.map(|member| member.and_then(text_of));
        let id = id.filter(|id| !id.is_empty()).ok_or("a session without an id")?;
        Ok(Self { id, kind, name, channel_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any JSON, including what a strict parser would refuse to turn into values.
    fn json_text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,4})?",
            "\"([a-zäß漢😀 ]|\\\\u[0-9a-fA-F]{4}|\\\\[nrtbf/\"\\\\]){0,20}\"",
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5)
                    .prop_map(|items| format!("[{}]", items.join(" , "))),
                proptest::collection::vec(("[a-z_]{1,8}", inner), 0..5).prop_map(|members| {
                    let members: Vec<_> =
                        members.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn items_and_unknown_members_pass_byte_for_byte(
            messages in proptest::collection::vec(json_text(), 0..6), edited in proptest::collection::vec(json_text(), 0..3),
            unknown in json_text(),
        ) {
            let body = format!(
                "{{\"x_new\": {unknown},\n\"edited_messages\":[{}],\"next_page_token\":\"t\",\"messages\" : [ {} ]}}",
                edited.join(","), messages.join(" ,\n"),
            );
            let page = Page::read(body.as_bytes(), MESSAGES).unwrap();
            let read = |kind: usize| page.arrays[kind].iter().map(|item| item.get().to_owned()).collect::<Vec<_>>();
            prop_assert_eq!(read(0), messages);
            prop_assert_eq!(read(1), edited);
            prop_assert_eq!(page.unknown, [("x_new".to_owned(), unknown)]);
            prop_assert_eq!(page.next_page_token.as_deref(), Some("t"));
        }

        #[test]
        fn no_body_is_too_strange_to_be_refused(body in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..80) {
            let _ = Page::read(&body, MESSAGES);
            let good = b"{\"next_page_token\":\"t\",\"messages\":[{\"a\":[1,2,{}]}],\"sessions\":[{\"id\":\"x\"}]}";
            let part = &good[..cut.min(good.len() - 1)];
            prop_assert!(Page::read(part, MESSAGES).is_err(), "half a page is no page");
        }
    }

    #[test]
    fn items_come_through_byte_for_byte() {
        let body = br#"{"from":"2026-01-01","x":{"a" : 1.10},"messages":[ {"n":12345678901234567890123, "s":"\ud83d\u00e9"} ,{"f":1E400}],
            "deleted_messages":null,"next_page_token":"t"}"#;
        let page = Page::read(body, MESSAGES).unwrap();
        let items: Vec<_> = page.arrays[0].iter().map(|item| item.get()).collect();
        assert_eq!(items, [r#"{"n":12345678901234567890123, "s":"\ud83d\u00e9"}"#, r#"{"f":1E400}"#]);
        assert!(page.arrays[1].is_empty() && page.arrays[2].is_empty());
        assert_eq!(page.next_page_token.as_deref(), Some("t"));
        assert_eq!(page.unknown, [("x".to_owned(), r#"{"a" : 1.10}"#.to_owned())]);
    }

    #[test]
    fn what_is_no_page_is_refused_and_never_quoted() {
        let table: [&[u8]; 16] = [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"<html>secret</html>",
            br#"{"code":300,"message":"secret"}"#,
            br#"{"code":5000,"message":"secret","next_page_token":"","page_size":100}"#,
            br#"{"page_size":100,"next_page_token":"","message":"secret"}"#,
            br#"{"code":5000,"message":"secret","messages":null}"#,
            br#"{"code":5000,"message":"secret","edited_messages":[{"a":1}]}"#,
            br#"{"messages":[],"deleted_messages":[],"next_page_token":"","reason":"secret"}"#,
            br#"{"messages":[],"next_page_token":"secret","next_page_token":""}"#,
            br#"{"messages":{"secret":1}}"#,
            br#"{"messages":[{"secret":1}],"messages":[]}"#,
            br#"{"messages":[{"secret":1}"#,
            b"{\"messages\":[\"secret\xff\"]}",
        ];
        for body in table {
            let error = Page::read(body, MESSAGES).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_session_is_read_leniently_but_needs_its_id() {
        let head = |text: &str| SessionHead::read(&RawValue::from_string(text.to_owned()).unwrap());
        let lone = head(r#"{"id":"a","name":"x\ud83d","type":7,"later":[1]}"#).unwrap();
        assert!(lone.name.unwrap().starts_with('x'));
        assert_eq!(lone.kind, None);
        assert!(head(r#"{"name":"x"}"#).is_err());
        assert!(head(r#"{"id":""}"#).is_err());
        assert!(head(r#"{"id":12}"#).is_err());
    }
}
