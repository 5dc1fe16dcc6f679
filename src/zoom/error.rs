//! How one request can go wrong, as data, and the failures that callers get.
//!
//! Reads Zoom's error bodies in all their observed variants; decides nothing (`retry` does).

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// Why a call failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Zoom refuses the client id, the secret or the account id.
    Credentials,
    /// The app's token lacks a scope; the message names it.
    MissingScopes,
    /// The account's plan or role does not allow the report.
    NoPermission,
    /// Zoom says that the thing does not exist or, if there is no Zoom code, an intermediary says so.
    NotFound,
    /// Zoom does not know the path of the request.
    UnknownEndpoint,
    /// Zoom refuses the request (any status that means nothing else).
    Rejected,
    /// Zoom answered this request with nothing but 429s.
    RateLimited,
    /// The page token is no longer valid: the chain of pages may restart. If it does not, this is why it failed.
    PageTokenExpired,
    /// Zoom kept answering with a server error.
    ServerError,
    /// No answer: connection refused, reset, timed out, or ended in mid-body.
    Connection,
    /// An answer with status 200 that is not the JSON it should be.
    UnreadableAnswer,
    /// An answer larger than the set maximum.
    AnswerTooLarge,
    /// A page token came twice in one chain of pages.
    PageTokenLoop,
    /// Page after page brought nothing new, and there was always another.
    EndlessPages,
    /// Zoom answered for fewer days than it was asked for.
    DaysLeftOut,
    /// The days left Zoom's reach of six months before they could be fetched.
    OutOfReach,
    /// Zoom, or the way to it, was down for longer than MAX_OUTAGE.
    Unreachable,
}

impl FailureKind {
    /// The stable code of failures in the API and in `_metadata/failures.json`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::MissingScopes => "missing-scopes",
            Self::NoPermission => "no-permission",
            Self::NotFound => "not-found",
            Self::UnknownEndpoint => "unknown-endpoint",
            Self::Rejected | Self::RateLimited | Self::PageTokenExpired => "rejected",
            Self::ServerError => "server-error",
            Self::Connection => "connection",
            Self::UnreadableAnswer => "unreadable-answer",
            Self::AnswerTooLarge => "answer-too-large",
            Self::PageTokenLoop => "page-token-loop",
            Self::EndlessPages => "endless-pages",
            Self::DaysLeftOut => "days-left-out",
            Self::OutOfReach => "out-of-reach",
            Self::Unreachable => "zoom-unreachable",
        }
    }

    /// True when every other call is likely to fail the same way. One that is answered shows that it is not so.
    pub fn concerns_the_account(self) -> bool {
        matches!(
            self,
            Self::Credentials
                | Self::MissingScopes
                | Self::NoPermission
                | Self::UnknownEndpoint
                | Self::Unreachable
        )
    }

    /// True when the failure is about what was asked for: that it does not exist, or cannot be asked for.
    pub fn concerns_the_request(self) -> bool {
        matches!(self, Self::NotFound | Self::Rejected | Self::PageTokenExpired)
    }
}

/// A call that failed for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    /// The HTTP status of the last answer, if there was one.
    pub status: Option<u16>,
    /// Zoom's own error code, if it gave one.
    pub zoom_code: Option<i64>,
    pub message: String,
    /// How often it was tried.
    pub attempts: u32,
}

impl Failure {
    /// The failure of a chain of pages in which every single answer was fine.
    pub fn in_chain(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { status: Some(200), attempts: 1, ..Self::without_answer(kind, message) }
    }

    /// A failure without an answer to quote.
    pub fn without_answer(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, status: None, zoom_code: None, message: message.into(), attempts: 0 }
    }

    /// True when it is Zoom itself that rejects what was asked for.
    pub fn is_refused_by_zoom(&self) -> bool {
        self.kind == FailureKind::Rejected && self.zoom_code.is_some()
    }

    /// True when it is Zoom itself that says that what was asked for does not exist.
    pub fn is_not_found_by_zoom(&self) -> bool {
        self.kind == FailureKind::NotFound && self.zoom_code.is_some()
    }
}

/// A `Retry-After`, in any of the three forms seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    In(Duration),
    At(Timestamp),
}

impl RetryAfter {
    /// Reads seconds, an HTTP date, or an ISO-8601 instant (Zoom's daily limit).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<u64>() {
            return Some(Self::In(Duration::from_secs(seconds.min(366 * 86_400))));
        }
        if let Ok(instant) = text.parse::<Timestamp>() {
            return Some(Self::At(instant));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        Timestamp::try_from(date).ok().map(Self::At)
    }

    /// How long that is from `now`; zero for an instant that has passed.
    pub fn after(self, now: Timestamp) -> Duration {
        match self {
            Self::In(duration) => duration,
            Self::At(instant) => Duration::try_from(instant.duration_since(now)).unwrap_or(Duration::ZERO),
        }
    }
}

/// Which limit a 429 is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    PerSecond,
    Daily,
}

/// The relevant parts of an answer with a status other than 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub zoom_code: Option<i64>,
    pub message: String,
    pub retry_after: Option<RetryAfter>,
    pub limit: LimitKind,
    /// Whether the body is HTML, as intermediaries send it.
    pub is_html: bool,
    /// Whether the request carried a page token (code 300 is then about the token, otherwise about the parameters).
    pub page_token_sent: bool,
}

/// How one request went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestError {
    Refused(Refusal),
    /// Connect error, reset, timeout, body cut short.
    NoAnswer(String),
    /// 200, but not readable as the page it should be.
    Unreadable(String),
    TooLarge,
    /// The token endpoint refused the credentials.
    NoToken(Refusal),
}

impl RequestError {
    /// What happened, in one line.
    pub fn describe(&self) -> String {
        let said = |refusal: &Refusal| match (&refusal.message[..], refusal.is_html) {
            ("", true) => "an HTML page, perhaps from a proxy or firewall in Zoom's place".to_owned(),
            ("", false) => "no message".to_owned(),
            (message, _) => message.to_owned(),
        };
        match self {
            Self::Refused(refusal) => {
                let code = refusal.zoom_code.map(|code| format!(", code {code}")).unwrap_or_default();
                format!("Zoom answered {}{code}: {}", refusal.status, said(refusal))
            }
            Self::NoAnswer(what) => what.clone(),
            Self::Unreadable(what) => format!("the answer could not be read: {what}"),
            Self::TooLarge => "the answer is larger than MAX_ANSWER_BYTES".to_owned(),
            Self::NoToken(refusal) if refusal.message.is_empty() => format!(
                "no access token, only status {} and {}; is ZOOM_OAUTH_BASE_URL right?",
                refusal.status,
                said(refusal)
            ),
            Self::NoToken(refusal) => format!(
                "Zoom refused ZOOM_ACCOUNT_ID, ZOOM_CLIENT_ID or ZOOM_CLIENT_SECRET (status {}): {}",
                refusal.status,
                said(refusal)
            ),
        }
    }

    /// Converts this into the failure to report once there are no more retries.
    pub fn into_failure(self, kind: FailureKind, attempts: u32) -> Failure {
        let (status, zoom_code) = match &self {
            Self::Refused(refusal) | Self::NoToken(refusal) => (Some(refusal.status), refusal.zoom_code),
            Self::NoAnswer(_) => (None, None),
            Self::Unreadable(_) | Self::TooLarge => (Some(200), None),
        };
        Failure { kind, status, zoom_code, message: self.describe(), attempts }
    }
}

/// The names under which an error body carries its code and its text.
pub(super) const CODES: [&str; 2] = ["code", "errorCode"];
pub(super) const TEXTS: [&str; 3] = ["message", "errorMessage", "reason"];

impl LimitKind {
    /// Returns the limit that an answer names.
    pub fn named_in(headers: &HeaderMap) -> Option<Self> {
        let named = headers.get("x-ratelimit-type")?.to_str().ok()?;
        match &named.to_ascii_lowercase()[..] {
            "daily-limit" => Some(Self::Daily),
            "qps" | "per-second-limit" => Some(Self::PerSecond),
            _ => None,
        }
    }
}

impl Refusal {
    /// Reads an error answer; the body may be JSON in one of several shapes, HTML, or nothing.
    pub fn read(status: u16, headers: &HeaderMap, body: &[u8], page_token_sent: bool) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let is_html = looks_like_html(body);
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        // Code and text may come under any of their names, and under several at once.
        let number = |name: &str| match body.get(name)? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let text = |name: &str| body.get(name)?.as_str();
        // A code that repeats the status comes from an intermediary, or says no more than the status.
        let zoom_code = CODES.into_iter().filter_map(number).find(|code| *code != i64::from(status));
        let message = TEXTS.into_iter().find_map(text).unwrap_or_default();
        let retry_after = header("retry-after").and_then(RetryAfter::parse);
        let says_daily =
            LimitKind::named_in(headers) == Some(LimitKind::Daily) || message.contains("daily rate limit");
        Self {
            status,
            zoom_code,
            message: sanitised(message),
            retry_after,
            limit: if says_daily { LimitKind::Daily } else { LimitKind::PerSecond },
            is_html,
            page_token_sent,
        }
    }
}

/// Whether this is HTML, as proxies, firewalls and login pages send in Zoom's place.
pub(super) fn looks_like_html(body: &[u8]) -> bool {
    let text = body.trim_ascii_start();
    text.starts_with(b"<") && !text.starts_with(b"<?xml")
}

/// A message from outside, fit for a log line or an error: one line, bounded.
fn sanitised(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn retry_after_is_read_in_all_three_forms() {
        let now: Timestamp = "2026-05-30T23:59:00Z".parse().unwrap();
        let table = [
            ("30", Some(30)),
            (" 5 ", Some(5)),
            ("2026-05-31T00:00:00Z", Some(60)),
            ("Sun, 31 May 2026 00:00:00 GMT", Some(60)),
            ("2020-05-31T00:00:00Z", Some(0)),
            ("soon", None),
            ("-4", None),
            ("", None),
        ];
        for (text, seconds) in table {
            let after = RetryAfter::parse(text).map(|retry| retry.after(now).as_secs());
            assert_eq!(after, seconds, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_in_retry_after_is_a_wait_that_can_be_kept(text in "\\PC{0,40}|[0-9]{1,40}|[0-9TZ:.+-]{0,40}") {
            if let Some(retry) = RetryAfter::parse(&text) {
                let now: Timestamp = "2026-05-30T23:59:00Z".parse().unwrap();
                prop_assert!(retry.after(now) <= Duration::from_secs(10_000 * 366 * 86_400));
            }
        }

        #[test]
        fn no_error_body_is_too_strange_to_be_read(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let refusal = Refusal::read(500, &HeaderMap::new(), &body, false);
            prop_assert!(refusal.message.chars().count() <= 500);
        }
    }

    #[test]
    fn error_bodies_are_read_in_every_observed_variant() {
        let table: [(&[u8], Option<i64>, &str); 11] = [
            (br#"{"code":124,"message":"Invalid access token."}"#, Some(124), "Invalid access token."),
            (br#"{"errorCode":401,"errorMessage":"no"}"#, Some(401), "no"),
            (br#"{"code":"300","message":"x"}"#, Some(300), "x"),
            (
                br#"{"reason":"Invalid client_id or client_secret","error":"invalid_client"}"#,
                None,
                "Invalid client_id or client_secret",
            ),
            (br#"{"code":300,"errorCode":300,"message":"x","reason":"y"}"#, Some(300), "x"),
            (br#"{"code":null,"errorCode":124,"message":{"en":"x"},"reason":"y"}"#, Some(124), "y"),
            (br#"{"code":400,"message":"Bad request"}"#, None, "Bad request"),
            (br#"{"code":400,"errorCode":300,"message":"x"}"#, Some(300), "x"),
            (br#"["code"]"#, None, ""),
            (b"<html>oops</html>", None, ""),
            (b"", None, ""),
        ];
        for (body, code, message) in table {
            let refusal = Refusal::read(400, &HeaderMap::new(), body, false);
            assert_eq!((refusal.zoom_code, refusal.message.as_str()), (code, message));
        }
    }
}
