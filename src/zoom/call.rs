//! The two requests of the report API, as data: what to ask for, and the URL that asks for it.

use std::sync::Arc;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::readers::ReadResult;
use super::wire::{MESSAGES, Page, SESSIONS};
use crate::days::DateRange;

/// What to request besides the messages. All true by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Include {
    pub edited: bool,
    pub deleted: bool,
    pub bot_messages: bool,
    pub reactions: bool,
    pub custom_emoji_reactions: bool,
}

impl Default for Include {
    fn default() -> Self {
        Self {
            edited: true,
            deleted: true,
            bot_messages: true,
            reactions: true,
            custom_emoji_reactions: true,
        }
    }
}

/// Which of a session's items to request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ItemChoice {
    pub include: Include,
    /// Select edited and deleted items by the time of the change instead of the parent's sending time.
    pub by_modification_time: bool,
}

/// One request of the report API: for a page of a report about these days.
#[derive(Debug, Clone)]
pub struct Call {
    pub days: DateRange,
    /// `None` for the first page.
    pub(super) page_token: Option<String>,
    report: Report,
}

#[derive(Debug, Clone)]
enum Report {
    Sessions,
    Messages { session_id: Arc<str>, choice: ItemChoice },
}

/// Zoom's maximum page sizes (vendor's description), for the fewest requests possible.
const SESSIONS_A_PAGE: u32 = 300;
const MESSAGES_A_PAGE: u32 = 100;

/// Everything but RFC 3986's unreserved characters.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One value for each endpoint of the report API: one may be down while the other answers.
#[derive(Debug, Default)]
pub(super) struct PerEndpoint<T> {
    pub sessions: T,
    pub messages: T,
}

impl<T> PerEndpoint<T> {
    pub fn of(&self, call: &Call) -> &T {
        if call.is_a_list() { &self.sessions } else { &self.messages }
    }

    pub fn all(&self) -> [&T; 2] {
        [&self.sessions, &self.messages]
    }
}

impl Call {
    /// For the first page of the list of sessions.
    pub fn sessions(days: DateRange) -> Self {
        Self { days, page_token: None, report: Report::Sessions }
    }

    /// For the first page of a session's messages.
    pub fn messages(session_id: &str, days: DateRange, choice: ItemChoice) -> Self {
        let session_id = session_id.into();
        Self { days, page_token: None, report: Report::Messages { session_id, choice } }
    }

    /// For the page that the token leads to.
    #[must_use]
    pub fn with_page_token(self, page_token: Option<String>) -> Self {
        Self { page_token, ..self }
    }

    pub(super) fn is_a_list(&self) -> bool {
        matches!(self.report, Report::Sessions)
    }

    /// What would be to blame if this call failed while others to its endpoint did not: its session; empty for lists.
    pub(super) fn subject(&self) -> &str {
        match &self.report {
            Report::Sessions => "",
            Report::Messages { session_id, .. } => session_id,
        }
    }

    /// Returns a reader that accepts any valid answer to this call and discards it.
    pub fn any_answer(&self) -> fn(Bytes) -> ReadResult<()> {
        match self.report {
            Report::Sessions => |body| Page::read(&body, SESSIONS).map(drop),
            Report::Messages { .. } => |body| Page::read(&body, MESSAGES).map(drop),
        }
    }

    /// Path and query without the page token: a page token is valid for exactly these.
    pub fn query(&self) -> String {
        let DateRange { from, to } = self.days;
        match &self.report {
            Report::Sessions => {
                format!("/report/chat/sessions?from={from}&to={to}&page_size={SESSIONS_A_PAGE}")
            }
            Report::Messages { session_id, choice: ItemChoice { include, by_modification_time } } => {
                let fields = match (include.edited, include.deleted) {
                    (true, true) => "&include_fields=edited_messages%2Cdeleted_messages",
                    (true, false) => "&include_fields=edited_messages",
                    (false, true) => "&include_fields=deleted_messages",
                    (false, false) => "",
                };
                format!(
                    "/report/chat/sessions/{}?from={from}&to={to}&page_size={MESSAGES_A_PAGE}{fields}\
                     &include_bot_message={}&include_reactions={}&include_custom_emoji_reactions={}\
                     &query_all_modifications={by_modification_time}",
                    path_segment(session_id),
                    include.bot_messages,
                    include.reactions,
                    include.custom_emoji_reactions,
                )
            }
        }
    }

    pub(super) fn url(&self, base: &str) -> String {
        let token = self
            .page_token
            .as_ref()
            .map(|token| format!("&next_page_token={}", utf8_percent_encode(token, PATH_SEGMENT)));
        format!("{}{}{}", base.trim_end_matches('/'), self.query(), token.unwrap_or_default())
    }
}

/// Encodes an id as one path segment, twice where the vendor's rule for ids with slashes requires it. The segments `.` and `..`
/// have a special meaning in URLs even when encoded once, so they are encoded twice as well.
fn path_segment(id: &str) -> String {
    let once = utf8_percent_encode(id, PATH_SEGMENT).to_string();
    if id.starts_with('/') || id.contains("//") {
        utf8_percent_encode(&once, PATH_SEGMENT).to_string()
    } else if id == "." || id == ".." {
        once.replace('.', "%252E")
    } else {
        once
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn ids_become_one_path_segment() {
        let table = [
            ("abc-1._~", "abc-1._~"),
            ("a/b", "a%2Fb"),
            ("/a", "%252Fa"),
            ("a//b", "a%252F%252Fb"),
            ("a+b=c%2F?#", "a%2Bb%3Dc%252F%3F%23"),
            ("..", "%252E%252E"),
            ("../x", "..%2Fx"),
            ("ü", "%C3%BC"),
        ];
        for (id, segment) in table {
            assert_eq!(path_segment(id), segment, "{id}");
            let call = Call::messages(id, DateRange::day(date(2026, 1, 15)), ItemChoice::default());
            let url = reqwest::Url::parse(&call.url("http://h/v2")).unwrap();
            assert_eq!(
                url.path(),
                format!("/v2/report/chat/sessions/{segment}"),
                "the URL parser leaves it alone"
            );
        }
    }

    #[test]
    fn booleans_are_lower_case_and_the_page_token_stays_out_of_the_query() {
        let include = Include { deleted: false, reactions: false, ..Include::default() };
        let choice = ItemChoice { include, by_modification_time: false };
        let days = DateRange::new(date(2026, 1, 15), date(2026, 2, 14));
        let call = Call::messages("s", days, choice).with_page_token(Some("t+/=".to_owned()));
        assert_eq!(
            call.query(),
            "/report/chat/sessions/s?from=2026-01-15&to=2026-02-14&page_size=100&include_fields=edited_messages\
             &include_bot_message=true&include_reactions=false&include_custom_emoji_reactions=true\
             &query_all_modifications=false"
        );
        assert!(call.url("http://h/v2/").ends_with("&next_page_token=t%2B%2F%3D"));
    }
}
