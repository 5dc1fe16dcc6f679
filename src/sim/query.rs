//! The two report endpoints and their queries: which parameters they take, and which they refuse.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::Response;
use jiff::ToSpan;
use jiff::civil::Date;

use super::answers::error;
use super::dataset::ItemOptions;
use super::encoding::parse_pairs;

pub(super) type Refused = Response<Body>;

/// The two report endpoints.
#[derive(Clone, Copy)]
pub(super) enum Endpoint {
    List,
    Messages,
}

impl Endpoint {
    /// The granular scope that it needs.
    pub fn scope(self) -> &'static str {
        match self {
            Self::List => "report:read:list_chat_sessions:admin",
            Self::Messages => "report:read:chat_session:admin",
        }
    }

    fn largest_page(self) -> u32 {
        match self {
            Self::List => 300,
            Self::Messages => 100,
        }
    }
}

/// A query of either endpoint, validated as Zoom does.
pub(super) struct Query {
    pub days: (Date, Date),
    pub page_size: u32,
    pub page_token: Option<String>,
    pub options: ItemOptions,
    /// The parameters that a page token is bound to, as text.
    pub bound: String,
}

impl Query {
    pub fn read(text: &str, endpoint: Endpoint, today: Date) -> Result<Self, Refused> {
        let pairs: BTreeMap<String, String> = parse_pairs(text).into_iter().collect();
        let bad = |name: &str, why: &str| error(400, 300, &format!("Validation Failed. {name}: {why}"));
        let day = |name: &str| -> Result<Date, Refused> {
            let value = pairs.get(name).ok_or_else(|| bad(name, "is required"))?;
            if value.len() != 10 {
                return Err(bad(name, "must be yyyy-mm-dd"));
            }
            value.parse().map_err(|_| bad(name, "must be yyyy-mm-dd"))
        };
        let (from, to) = (day("from")?, day("to")?);
        if from > to {
            return Err(bad("from", "must not be after to"));
        }
        if to >= from.saturating_add(1.month()) {
            return Err(bad("to", "the range must be within one month"));
        }
        if from < today.saturating_sub(6.months()) {
            return Err(bad("from", "must be within the last six months"));
        }
        let most = endpoint.largest_page();
        let page_size = match pairs.get("page_size") {
            None => 30,
            Some(value) => value
                .parse()
                .ok()
                .filter(|size| (1..=most).contains(size))
                .ok_or_else(|| bad("page_size", "is out of range"))?,
        };
        let switch = |name: &str| match pairs.get(name).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(bad(name, "must be true or false")),
        };
        let fields = pairs.get("include_fields").map(String::as_str).unwrap_or_default();
        if fields.split(',').any(|field| !["", "edited_messages", "deleted_messages"].contains(&field)) {
            return Err(bad("include_fields", "must be edited_messages, deleted_messages or both"));
        }
        let options = ItemOptions {
            edited: fields.contains("edited_messages"),
            deleted: fields.contains("deleted_messages"),
            bot_messages: switch("include_bot_message")?,
            reactions: switch("include_reactions")?,
            custom_emoji_reactions: switch("include_custom_emoji_reactions")?,
            all_modifications: switch("query_all_modifications")?,
        };
        switch("include_reacted_sessions")?;
        switch("include_reaction_recent_changed")?;
        let page_token = pairs.get("next_page_token").filter(|token| !token.is_empty()).cloned();
        let bound = format!("{from} {to} {page_size} {options:?}");
        Ok(Self { days: (from, to), page_size, page_token, options, bound })
    }
}
