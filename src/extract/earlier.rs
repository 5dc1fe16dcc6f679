//! What an earlier run left in a job's directory: whether it is sound, and what it says about the job.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::progress::{Progress, Snapshot, TrafficTotals};
use super::request::ExtractRequest;
use super::run::Damage;
use super::shared::ExtractError;
use crate::capture::{CaptureError, Location, Meta, Reader};
use crate::zoom::lane::Traffic;
use crate::zoom::{Call, ItemChoice, Stalled};

/// Checks that what an earlier run left is sound. A retry goes ahead even if it is not: a damaged index is moved away and
/// everything refetched; ranges with damaged messages are returned, to be refetched.
pub(super) async fn check_earlier(
    location: &Location,
    retrying: bool,
    cancel: &CancellationToken,
) -> Result<Damage, CaptureError> {
    let damaged = async {
        location.check(cancel).await?;
        if retrying && location.exists() { location.damaged_ranges(cancel).await } else { Ok(Vec::new()) }
    };
    match damaged.await {
        // After a cancellation nobody needs the result; the capture stays as it is.
        Err(_) if cancel.is_cancelled() => Ok(Damage::None),
        Err(error) if error.is_damaged() && retrying => {
            tracing::error!(%error, "the capture is damaged and set aside; everything is fetched again");
            location.move_damaged_away()?;
            Ok(Damage::All)
        }
        Ok(ranges) if ranges.is_empty() => Ok(Damage::None),
        Ok(ranges) => {
            tracing::warn!(ranges = ranges.len(), "some ranges have damaged messages and are fetched again");
            Ok(Damage::Parts(ranges))
        }
        Err(error) => Err(error),
    }
}

/// What a capture says about its job.
#[derive(Debug)]
pub struct Captured {
    pub request: ExtractRequest,
    pub started_at: Option<Timestamp>,
    pub requester: Option<String>,
    /// The mark that identifies the account.
    pub account: Option<String>,
    /// Nothing is left to be fetched.
    pub complete: bool,
    /// Zoom has answered at least once.
    pub answered: bool,
}

/// The figures of the capture in `directory`, as a job reports them.
pub async fn figures_in(directory: &Path) -> Result<Option<Snapshot>, ExtractError> {
    let location = Location::in_directory(directory);
    let held = location.with_planned_reader(async |reader| {
        Ok::<_, CaptureError>((reader.counts().await?, traffic_in(reader).await?))
    });
    Ok(held.await?.map(|(counts, traffic)| {
        let progress = Progress::default();
        progress.set_to(&counts);
        progress.resume_from(traffic);
        progress.snapshot(&Traffic::default(), Stalled::default(), Duration::ZERO)
    }))
}

/// The traffic with Zoom recorded by earlier runs.
pub(super) async fn traffic_in(reader: &mut Reader) -> Result<TrafficTotals, CaptureError> {
    let totals = reader.meta(Meta::Traffic).await?;
    Ok(totals.and_then(|totals| serde_json::from_str(&totals).ok()).unwrap_or_default())
}

/// Calls for first pages that Zoom has answered: repeating one shows whether it still does.
pub(super) async fn answered_in(reader: &mut Reader, choice: ItemChoice) -> Result<Vec<Call>, CaptureError> {
    let list = reader.answered_list().await?.map(Call::sessions);
    let sessions = reader.answered_sessions().await?;
    let sessions = sessions.iter().map(|(session_id, days)| Call::messages(session_id, *days, choice));
    Ok(list.into_iter().chain(sessions).collect())
}

/// Reads what the capture in `directory` says about its job; `None` if it has no plan.
pub async fn captured(directory: &Path) -> Result<Option<Captured>, CaptureError> {
    Location::in_directory(directory).with_sound_planned_reader(read).await
}

async fn read(reader: &mut Reader) -> Result<Captured, CaptureError> {
    let request = reader.meta(Meta::Request).await?.expect("a plan has its request");
    let request = serde_json::from_str(&request)
        .map_err(|error| CaptureError::Damaged(format!("the request in it cannot be read: {error}")))?;
    let started_at = reader.time(Meta::StartedAt).await?;
    let requester = reader.meta(Meta::Requester).await?;
    let account = reader.meta(Meta::Account).await?;
    let complete = !reader.has_pending().await?;
    let answered = reader.answered_list().await?.is_some();
    Ok(Captured { request, started_at, requester, account, complete, answered })
}
