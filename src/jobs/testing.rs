//! Fixtures for the tests of jobs.

use jiff::Timestamp;
use serde_json::json;

use super::model::{Job, JobId, JobState};

/// A job in this state that ended long ago, or claims to have ended.
pub(crate) fn job(state: JobState) -> Job {
    let request = json!({
        "from": "2026-05-01", "to": "2026-05-02", "label": null, "edits_by": "sent_time",
        "include": { "edited": true, "deleted": true, "bot_messages": true, "reactions": true,
                     "custom_emoji_reactions": true },
        "sessions": { "types": [], "ids": [], "channel_ids": [], "name_contains": null },
    });
    let id = JobId::new(&crate::clock::SystemClock::new());
    let job = Job::new(id, serde_json::from_value(request).unwrap(), None, Timestamp::UNIX_EPOCH);
    Job { state, finished_at: Some(Timestamp::UNIX_EPOCH), ..job }
}
