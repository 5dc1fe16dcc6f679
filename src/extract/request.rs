//! What is asked of a run: the range, what to include, which sessions.

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::days::DateRange;
use crate::zoom::wire::SessionHead;
use crate::zoom::{Include, ItemChoice};

/// One extraction, validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractRequest {
    pub from: Date,
    pub to: Date,
    pub include: Include,
    pub edits_by: EditsBy,
    pub sessions: SessionFilter,
    pub label: Option<String>,
}

/// Which time edited and deleted items are selected by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditsBy {
    /// When the parent message was sent: complete for the range.
    #[default]
    SentTime,
    /// When the edit or deletion happened: what an incremental run wants.
    ModificationTime,
}

/// Which sessions to extract; an empty list or absent name selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFilter {
    /// `1:1`, `group`; case-insensitive.
    pub types: Vec<String>,
    pub ids: Vec<String>,
    pub channel_ids: Vec<String>,
    /// Part of the name; case-insensitive.
    pub name_contains: Option<String>,
}

/// The session types in the vendor's description. Unknown types pass a filter on types: leaving out what we do not understand
/// would be a silent loss.
pub const KNOWN_TYPES: [&str; 2] = ["1:1", "group"];

impl SessionFilter {
    pub fn selects_by_name(&self) -> bool {
        self.name_part().is_some()
    }

    fn name_part(&self) -> Option<&String> {
        self.name_contains.as_ref().filter(|part| !part.is_empty())
    }

    pub fn matches(&self, session: &SessionHead) -> bool {
        let kind = session.kind.as_deref().map(str::to_lowercase);
        let type_matches = self.types.is_empty()
            || kind.is_none_or(|kind| {
                !KNOWN_TYPES.contains(&kind.as_str())
                    || self.types.iter().any(|wanted| wanted.to_lowercase() == kind)
            });
        let id_matches = self.ids.is_empty() || self.ids.contains(&session.id);
        let channel_matches = self.channel_ids.is_empty()
            || session.channel_id.as_ref().is_some_and(|channel| self.channel_ids.contains(channel));
        let part = self.name_part();
        let name_matches = part.is_none_or(|part| {
            session.name.as_ref().is_some_and(|name| name.to_lowercase().contains(&part.to_lowercase()))
        });
        type_matches && id_matches && channel_matches && name_matches
    }
}

impl ExtractRequest {
    pub fn range(&self) -> DateRange {
        DateRange { from: self.from, to: self.to }
    }

    pub fn item_choice(&self) -> ItemChoice {
        ItemChoice { include: self.include, by_modification_time: self.edits_by == EditsBy::ModificationTime }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_select_and_unknown_types_pass() {
        let session = |kind: &str, name: &str| SessionHead {
            id: "i".to_owned(),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            channel_id: Some("c".to_owned()),
        };
        let filter = |types: &[&str], name: Option<&str>| SessionFilter {
            types: types.iter().map(|kind| (*kind).to_owned()).collect(),
            name_contains: name.map(str::to_owned),
            ..SessionFilter::default()
        };
        assert!(filter(&["group"], None).matches(&session("Group", "x")));
        assert!(!filter(&["1:1"], None).matches(&session("Group", "x")));
        assert!(filter(&["1:1"], None).matches(&session("Meeting", "x")));
        assert!(filter(&[], Some("ÜBER")).matches(&session("Group", "die Übersicht")));
        assert!(!filter(&[], Some("y")).matches(&session("Group", "x")));
        let nameless = SessionHead { name: None, ..session("1:1", "") };
        assert!(filter(&[], Some("")).matches(&nameless) && !filter(&[], Some("y")).matches(&nameless));
        let by_channel = SessionFilter { channel_ids: vec!["d".to_owned()], ..SessionFilter::default() };
        assert!(!by_channel.matches(&session("Group", "x")));
    }
}
