//! The parts of a request other than its body: ids in the path, parameters, headers. Invalid ones are refused by name.

use std::error::Error;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::{FieldError, Problem};
use crate::jobs::JobId;

/// The longest wait for a change.
const MAX_WAIT: Duration = Duration::from_secs(60);
const MAX_PAGE: usize = 200;
const DEFAULT_PAGE: usize = 50;

/// The id of the job that a path names. Anything but a UUID names no job.
#[derive(Debug)]
pub(super) struct PathId(pub JobId);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.ok().and_then(|Path(id)| read_id(&id)).map(Self).ok_or_else(Problem::job_not_found)
    }
}

/// Accepts an id only in the form in which it is printed (in either case), not in the other forms of a UUID.
fn read_id(text: &str) -> Option<JobId> {
    text.parse().ok().filter(|id: &JobId| id.to_string().eq_ignore_ascii_case(text))
}

/// The query parameters: each may occur once, and unknown ones are refused.
#[derive(Debug)]
pub(super) struct Parameters<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let read = Query::try_from_uri(&parts.uri);
        read.map(|Query(parameters)| Self(parameters)).map_err(|rejection| {
            let mut cause: &dyn Error = &rejection;
            while let Some(source) = cause.source() {
                cause = source;
            }
            let (field, message) = in_our_words(&cause.to_string());
            bad_parameter(&field, &message)
        })
    }
}

/// Turns a message of serde's into the name of the parameter and what is wrong with it: "unknown field `sate`, expected one of
/// `state`, `limit`", "unknown field `x`, there are no fields", "duplicate field `state`".
fn in_our_words(message: &str) -> (String, String) {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((field, known)) = names.split_first() else { return ("query".to_owned(), message.to_owned()) };
    let message = if message.starts_with("duplicate field") {
        "occurs more than once".to_owned()
    } else if known.is_empty() {
        "is not a known parameter; this request takes none".to_owned()
    } else {
        format!("is not a known parameter; known parameters: {}", known.join(", "))
    };
    let field = if field.is_empty() { "\"\"" } else { field };
    (field.to_owned(), message)
}

/// No query parameters: everything is in the path or in the body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParameters {}

pub(super) fn bad_parameter(field: &str, message: &str) -> Problem {
    let error = FieldError { field: field.to_owned(), message: message.to_owned() };
    Problem::invalid(StatusCode::BAD_REQUEST, vec![error])
}

pub(super) fn page_size(limit: Option<&str>) -> Result<usize, Problem> {
    let Some(limit) = limit else {
        return Ok(DEFAULT_PAGE);
    };
    let number: i64 =
        limit.parse().map_err(|_| bad_parameter("limit", "must be a whole number, 1 to 200"))?;
    Ok(number.clamp(1, MAX_PAGE as i64) as usize)
}

/// Cursors are opaque to users: a number with a letter that says which list it belongs to.
pub(super) fn cursor_of(list: char, number: i64) -> String {
    format!("{list}{number:x}")
}

pub(super) fn parse_cursor(list: char, cursor: Option<&str>) -> Result<Option<i64>, Problem> {
    let Some(cursor) = cursor else { return Ok(None) };
    let bad = || bad_parameter("cursor", "must be the next_cursor of an earlier page of this list");
    let digits = cursor.strip_prefix(list).ok_or_else(bad)?;
    let number = u64::from_str_radix(digits, 16).map_err(|_| bad())?;
    if cursor_of(list, number as i64) == cursor { Ok(Some(number as i64)) } else { Err(bad()) }
}

pub(super) fn parse_wait(text: &str) -> Result<Duration, Problem> {
    let bad = || {
        bad_parameter(
            "wait",
            "must be a time such as 30s, 500ms or 1m; more than a minute counts as a minute",
        )
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let wait = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "" | "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(bad()),
    };
    Ok(wait.min(MAX_WAIT))
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match value.to_str() {
        // `to_str` also accepts tabs.
        Ok(key) if (1..=255).contains(&key.len()) && !key.contains('\t') && values.next().is_none() => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(bad_parameter(
            "Idempotency-Key",
            "must be 1 to 255 printable ASCII characters and occur only once",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cursors_come_back_and_anything_else_is_refused(number: i64, junk in "[jf]?[+0-9a-fA-F]{0,18}|\\PC{0,40}") {
            prop_assert_eq!(parse_cursor('j', Some(&cursor_of('j', number))).unwrap(), Some(number));
            prop_assert!(parse_cursor('f', Some(&cursor_of('j', number))).is_err());
            if let Ok(Some(number)) = parse_cursor('j', Some(&junk)) {
                prop_assert_eq!(cursor_of('j', number), junk);
            }
        }

        #[test]
        fn no_text_makes_the_readers_of_parameters_panic(number in "[-+]?[0-9]{0,25}", unit in "(ms|s|m|\\PC{0,40})") {
            let _ = (parse_wait(&(number.clone() + &unit)), page_size(Some(&(number + &unit))));
        }
    }

    #[test]
    fn waits_and_limits_are_read_and_clamped() {
        assert_eq!(parse_wait("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(parse_wait("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_wait("7").unwrap(), Duration::from_secs(7));
        assert_eq!(parse_wait("2h").map_err(|problem| problem.status), Err(400));
        assert_eq!(parse_wait("9m").unwrap(), MAX_WAIT);
        assert_eq!(page_size(Some("0")).unwrap(), 1);
        assert_eq!(page_size(Some("-5")).unwrap(), 1);
        assert_eq!(page_size(Some("201")).unwrap(), 200);
        assert!(
            ["99999999999999999999", "many", "", "-", "1.5"]
                .iter()
                .all(|limit| page_size(Some(limit)).is_err())
        );
    }
}
