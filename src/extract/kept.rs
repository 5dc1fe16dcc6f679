//! Every item that was ever received is kept, also from pages that had been set aside.
//!
//! Pages are taken off a range when its chain begins again or is cut, and set aside in the capture. Should those days fail
//! after all, or be answered without what they had, what the pages hold of them is added to what is there.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use jiff::civil::Date;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::digest::{digest, digest_of_content};
use super::ranges::DENSE;
use super::run::{ExtractError, Shared};
use super::windows;
use crate::capture::{
    CaptureError, Change, Kept, Kind, PageRef, PendingRange, Reader, Segment, SegmentReader,
};
use crate::days::DateRange;
use crate::files::blocking;
use crate::zoom::wire::{modified_at, sent_at};

/// The digests of a stored page's items.
pub(super) fn digests_of(page: &[u8]) -> HashSet<u128> {
    let array = array_of(page);
    items_of(&array).into_iter().map(|item| digest(item.get())).collect()
}

/// A stored page as a JSON array: its items are joined as the segment joined them.
fn array_of(page: &[u8]) -> Vec<u8> {
    [b"[", page, b"]"].concat()
}

fn items_of(array: &[u8]) -> Vec<&RawValue> {
    serde_json::from_slice(array).unwrap_or_default()
}

/// A digest of an item's id; of its content if it has none.
fn id_of(item: &RawValue) -> u128 {
    #[derive(Deserialize)]
    struct Identified<'a> {
        #[serde(borrow)]
        id: Cow<'a, str>,
    }
    let identified = serde_json::from_str::<Identified<'_>>(item.get());
    identified.map_or_else(|_| digest_of_content(item.get()), |identified| digest(&identified.id))
}

/// What is kept of a range that failed, beside the pages it has.
pub(super) async fn of_failed(shared: &Shared, range: &PendingRange) -> Result<Vec<Kept>, ExtractError> {
    let (own, set_aside, choice) = received(shared, range, range.chain.days).await?;
    if set_aside.is_empty() {
        return Ok(Vec::new());
    }
    Ok(blocking(move || choice.of(&own, &set_aside)).await?)
}

/// Adds to all units that were fetched to their end what was set aside of them and has not come again: it may have been deleted
/// meanwhile, or the later answers may lack it. Compared is all of a unit, whatever days Zoom counts an item to.
pub(super) async fn compare_all(shared: &Shared) -> Result<(), ExtractError> {
    while let Some(unit) = shared.look(async |stored| stored.unit_to_compare().await).await? {
        let (location, cancel) = (shared.location.clone(), shared.context.cancel.clone());
        let runtime = Handle::current();
        let compare =
            move || runtime.block_on(location.look(async |stored| lacking(stored, unit, &cancel).await));
        let Some(kept) = blocking(compare).await? else { return Err(ExtractError::Cancelled) };
        if !kept.is_empty() {
            let items = kept.iter().map(Kept::items).sum::<u64>();
            tracing::warn!(
                items,
                "a session's days were read again and lack items that they had: those are kept"
            );
        }
        shared.commit(Change::Compared { unit, kept }).await?;
    }
    Ok(())
}

/// What was set aside of a unit, and its ranges do not have; `None` once cancelled.
async fn lacking(
    stored: &mut Reader,
    unit: i64,
    cancel: &CancellationToken,
) -> Result<Option<Vec<Kept>>, CaptureError> {
    let (segments, ranges) = (stored.segments().clone(), stored.ranges_of(unit).await?);
    let (mut kept, mut known) = (Vec::new(), HashSet::<(Kind, u128)>::new());
    let set_aside = stored.set_aside(unit, DateRange::new(Date::MIN, Date::MAX)).await?;
    // Of an item that was set aside more than once the latest counts.
    for at_once in set_aside.chunk_by(|one, next| one.0 == next.0).rev() {
        let mut lacking = HashSet::new();
        for (_, page) in at_once {
            lacking.extend(recognised(&segments, page)?.difference(&known));
        }
        // As a rule these were the first pages of a chain, and are found again at one of the ends of its days.
        let (near, far): (Vec<_>, Vec<_>) = ranges.iter().partition(|(_, days)| days.overlaps(at_once[0].0));
        for (range, _) in from_both_ends(&near).chain(&far) {
            if lacking.is_empty() {
                break;
            }
            let pages = stored.range_pages(*range).await?;
            if !take_off(&mut lacking, &pages, &segments, cancel)? {
                return Ok(None);
            }
        }
        if lacking.is_empty() {
            continue;
        }
        known.extend(&lacking);
        for (_, page) in at_once {
            kept.extend(chosen(&segments, page, |item| {
                lacking.remove(&(page.kind, identity(page.kind, item)))
            })?);
        }
    }
    Ok(Some(kept))
}

/// Takes off what these pages have. False once cancelled.
fn take_off(
    lacking: &mut HashSet<(Kind, u128)>,
    pages: &[PageRef],
    segments: &SegmentReader,
    cancel: &CancellationToken,
) -> Result<bool, CaptureError> {
    for page in from_both_ends(pages) {
        if cancel.is_cancelled() {
            return Ok(false);
        }
        if lacking.is_empty() {
            break;
        }
        let array = array_of(&read(segments, page)?);
        for item in items_of(&array) {
            lacking.remove(&(page.kind, identity(page.kind, item)));
            // It may have been deleted since.
            lacking.remove(&(Kind::Messages, identity(Kind::Messages, item)));
        }
    }
    Ok(true)
}

/// What the items of a page are recognised by.
fn recognised(segments: &SegmentReader, page: &PageRef) -> Result<HashSet<(Kind, u128)>, CaptureError> {
    let array = array_of(&read(segments, page)?);
    Ok(items_of(&array).into_iter().map(|item| (page.kind, identity(page.kind, item))).collect())
}

/// The first, the last, the second, the last but one and so on.
fn from_both_ends<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let place = |nth: usize| if nth.is_multiple_of(2) { nth / 2 } else { all.len() - 1 - nth / 2 };
    (0..all.len()).map(move |nth| &all[place(nth)])
}

/// What an item is recognised by in another reading: a message by its id, as it may have been edited since; of edits and deletions
/// there may be several with one id.
fn identity(kind: Kind, item: &RawValue) -> u128 {
    if kind == Kind::Messages { id_of(item) } else { digest_of_content(item.get()) }
}

/// What is kept of the days that a range is about to lose, together with the pages it has.
pub(super) async fn of_lost_days(
    shared: &Shared,
    range: &PendingRange,
    lost: DateRange,
) -> Result<Vec<Kept>, ExtractError> {
    let (own, set_aside, choice) = received(shared, range, lost).await?;
    Ok(blocking(move || choice.of(&[], &[own, set_aside].concat())).await?)
}

/// A stored page, and days that hold everything in it.
type Received = (DateRange, PageRef);

/// The pages a range has, those set aside, and how to choose from them what is of these days.
async fn received(
    shared: &Shared,
    range: &PendingRange,
    days: DateRange,
) -> Result<(Vec<Received>, Vec<Received>, Choice), ExtractError> {
    let (own, set_aside, segments) = shared
        .look(async |stored| {
            let own = stored.range_pages(range.chain.id).await?;
            let set_aside = match stored.unit_of(range.chain.id).await? {
                Some(unit) => stored.set_aside(unit, days).await?,
                None => Vec::new(),
            };
            Ok((own, set_aside, stored.segments().clone()))
        })
        .await?;
    let own = own.into_iter().map(|page| (range.chain.days, page)).collect();
    let by_modification_time = shared.context.request.item_choice().by_modification_time;
    Ok((own, set_aside, Choice { wanted: Wanted { days, by_modification_time }, segments }))
}

/// What is chosen from pages: the items of some days, each once.
struct Choice {
    wanted: Wanted,
    segments: Arc<SegmentReader>,
}

impl Choice {
    /// What `pages` hold of the days and `there` does not.
    fn of(&self, there: &[Received], pages: &[Received]) -> Result<Vec<Kept>, CaptureError> {
        let mut known = HashSet::new();
        for (_, page) in there {
            let array = array_of(&read(&self.segments, page)?);
            known.extend(items_of(&array).iter().map(|item| (page.kind, digest_of_content(item.get()))));
        }
        let mut kept = Vec::new();
        for (days, page) in pages {
            kept.extend(chosen(&self.segments, page, |item| {
                self.wanted.holds(*days, page.kind, item)
                    && known.insert((page.kind, digest_of_content(item.get())))
            })?);
        }
        Ok(kept)
    }
}

/// A page's items; none if it is damaged.
fn read(segments: &SegmentReader, page: &PageRef) -> Result<Vec<u8>, CaptureError> {
    match segments.inflated(page) {
        Err(error) if error.is_damaged() => Ok(Vec::new()),
        read => read,
    }
}

/// What is kept of a page: the items that are chosen.
fn chosen(
    segments: &SegmentReader,
    page: &PageRef,
    mut is_chosen: impl FnMut(&RawValue) -> bool,
) -> Result<Option<Kept>, CaptureError> {
    let array = array_of(&read(segments, page)?);
    let items = items_of(&array);
    let chosen: Vec<&str> = items.iter().filter(|item| is_chosen(item)).map(|item| item.get()).collect();
    if chosen.len() as u64 == page.items {
        return Ok(Some(Kept::Page(*page)));
    }
    Ok(Segment::of_items(&chosen, DENSE).map(|segment| Kept::Items(page.kind, segment)))
}

/// Which items are of some days.
#[derive(Clone, Copy)]
struct Wanted {
    days: DateRange,
    /// Edited and deleted items were selected by when they were, not by when their message was sent.
    by_modification_time: bool,
}

impl Wanted {
    /// Whether an item of a page that was asked for these days is one.
    fn holds(self, asked: DateRange, kind: Kind, item: &RawValue) -> bool {
        let Self { days, by_modification_time } = self;
        if days.covers(asked) {
            return true;
        }
        let by_modification = kind != Kind::Messages && by_modification_time;
        let at = if by_modification { modified_at(item) } else { sent_at(item) };
        let [from, until] = [days.from, days.to.tomorrow().unwrap_or(Date::MAX)]
            .map(|day| windows::begins(day).as_millisecond());
        // One that tells no time is found when all of the unit is compared.
        at.is_some_and(|at| (from..until).contains(&at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn an_item_is_of_the_days_by_which_it_was_selected() {
        let day = |day| DateRange::day(date(2026, 5, day));
        let noon_of = |day: i8| windows::begins(date(2026, 5, day)).as_millisecond() + 43_200_000;
        let item = |text: String| RawValue::from_string(text).unwrap();
        let edited = item(format!(r#"{{"timestamp":{},"action_timestamp":{}}}"#, noon_of(3), noon_of(5)));
        let timeless = item(r#"{"id":"x"}"#.to_owned());
        let month = DateRange { from: date(2026, 5, 1), to: date(2026, 5, 31) };
        for by_modification_time in [false, true] {
            let holds = |of: i8, kind, item: &RawValue| {
                Wanted { days: day(of), by_modification_time }.holds(month, kind, item)
            };
            for of in [3, 4, 5] {
                assert_eq!(holds(of, Kind::Messages, &edited), of == 3);
                let selected_on = if by_modification_time { 5 } else { 3 };
                assert_eq!(holds(of, Kind::Edited, &edited), of == selected_on);
                assert_eq!(
                    [Kind::Messages, Kind::Deleted].map(|kind| holds(of, kind, &timeless)),
                    [false; 2]
                );
            }
            let whole = Wanted { days: month, by_modification_time };
            let all = whole.holds(day(9), Kind::Deleted, &edited);
            assert!(all, "all of a page that was asked for them");
        }
    }
}
