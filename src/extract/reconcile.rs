//! Keeps every message, edit and deletion ever received, even from pages later removed from a range: a message in its latest
//! form, or only its deletion.
//!
//! Pages are removed when a chain restarts or is cut; the capture sets them aside. Once a unit has been fetched completely, it
//! is compared with what was set aside from it, and the items it lacks are added.

use std::collections::HashSet;

use jiff::civil::Date;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::digest::{digest, digest_of_content};
use super::ranges::DENSE;
use super::shared::{ExtractError, Shared};
use crate::capture::{
    CaptureError, Change, Kind, PageRef, PendingRange, RangeId, Reader, Restored, Segment, SegmentReader,
    UnitId, UnitRange,
};
use crate::days::{self, DateRange};
use crate::json::{members, text_of};
use crate::zoom::wire::{modified_at, sent_at};

/// The number of set-aside pages whose items are compared at a time: only the list of pages grows with the chat.
const AT_A_TIME: usize = 1_000;

/// The digests of a stored page's items.
pub(super) fn digests_of(page: &[u8]) -> HashSet<u128> {
    let array = array_of(page);
    items_of(&array).into_iter().map(|item| digest(item.get())).collect()
}

/// A stored page as a JSON array: the segment already separates its items by commas.
fn array_of(page: &[u8]) -> Vec<u8> {
    [b"[", page, b"]"].concat()
}

fn items_of(array: &[u8]) -> Vec<&RawValue> {
    serde_json::from_slice(array).unwrap_or_default()
}

/// Adds to a completely fetched unit the items set aside from it that have not come again: they may have been deleted since, or
/// the later answers may lack them. Compares the whole unit, whichever day Zoom counts an item towards.
pub(super) async fn compare(shared: &Shared, unit: UnitId) -> Result<(), ExtractError> {
    let stop = shared.stop.clone();
    let by_modification_time = shared.context.request.item_choice().by_modification_time;
    let compare = async move |stored: &mut Reader| {
        let as_of = stored.last_commit_of(unit).await?;
        let restored = missing_items(stored, unit, by_modification_time, &stop).await?;
        Ok::<_, ExtractError>(Change::Compared { unit, as_of, restored })
    };
    let compared = shared.with_reader(compare).await?;
    let items = shared.commit(compared).await?.items.total();
    if items > 0 {
        tracing::warn!(
            items,
            "a session's days were fetched again and lack items received before; those are kept"
        );
    }
    Ok(())
}

/// Compares all units still to be compared, as when a run ended before it got to them.
pub(super) async fn compare_all(shared: &Shared) -> Result<(), ExtractError> {
    while let Some(unit) = shared.with_reader(async |stored| stored.unit_to_compare().await).await? {
        compare(shared, unit).await?;
    }
    Ok(())
}

/// The items set aside from a unit that its ranges lack, each with the range to add it to.
async fn missing_items(
    stored: &mut Reader,
    unit: UnitId,
    by_modification_time: bool,
    stop: &CancellationToken,
) -> Result<Vec<(RangeId, Restored)>, ExtractError> {
    let (segments, ranges) = (stored.segments().clone(), stored.ranges_of(unit).await?);
    let (mut kept, mut known) = (Vec::new(), HashSet::<Identity>::new());
    // Deletions first, as a message is not kept beside its own deletion. Of an item set aside more than once, the latest is
    // kept.
    let (deleted, others): (Vec<_>, Vec<_>) =
        stored.set_aside(unit).await?.into_iter().partition(|(_, page)| page.kind == Kind::Deleted);
    for set_aside in [deleted, others] {
        let of_same_days = set_aside.chunk_by(|one, next| one.0 == next.0);
        let some_at_a_time = of_same_days.flat_map(|pages| pages.chunks(AT_A_TIME).enumerate());
        let mut chosen = Vec::new();
        for (nth, some) in some_at_a_time.collect::<Vec<_>>().into_iter().rev() {
            let mut lacking = HashSet::new();
            for (_, page) in some {
                let array = array_of(&read(&segments, page)?);
                lacking.extend(items_of(&array).into_iter().map(|item| identity(page.kind, item)));
            }
            lacking.retain(|item| !known.contains(item));
            look_for(&mut lacking, stored, &ranges, (some[0].0, nth * AT_A_TIME), stop).await?;
            if lacking.is_empty() {
                continue;
            }
            for (_, page) in some.iter().rev() {
                let array = array_of(&read(&segments, page)?);
                let mut items = items_of(&array);
                items.retain(|item| lacking.remove(&identity(page.kind, item)));
                known.extend(items.iter().flat_map(|item| identities_covered_by(page.kind, item)));
                chosen.extend(in_ranges(&ranges, page, &items, by_modification_time));
            }
        }
        kept.extend(chosen.into_iter().rev());
    }
    kept.sort_by_key(|(range, _)| *range);
    Ok(kept)
}

/// Removes from `lacking` what these ranges hold. An item is usually found at its old place in the chain, in the first or last
/// range of these days.
async fn look_for(
    lacking: &mut HashSet<Identity>,
    stored: &mut Reader,
    ranges: &[UnitRange],
    (days, place): (DateRange, usize),
    stop: &CancellationToken,
) -> Result<(), ExtractError> {
    let segments = stored.segments().clone();
    let (near, far): (Vec<&UnitRange>, Vec<&UnitRange>) =
        ranges.iter().partition(|range| range.days.overlaps(days));
    for range in from_both_ends(&near).chain(&far) {
        if lacking.is_empty() {
            break;
        }
        let pages = stored.range_pages(range.id).await?;
        let (before, after) = pages.split_at(pages.len().min(place));
        for page in after.iter().chain(before.iter().rev()) {
            ensure_not_cancelled(stop)?;
            if lacking.is_empty() {
                break;
            }
            // Fails on a damaged page, which may hold the item: its range is to be refetched.
            let array = array_of(&segments.inflated(page)?);
            for known in items_of(&array).into_iter().flat_map(|item| identities_covered_by(page.kind, item))
            {
                lacking.remove(&known);
            }
        }
    }
    Ok(())
}

/// Returns an error once the run is to stop.
fn ensure_not_cancelled(stop: &CancellationToken) -> Result<(), ExtractError> {
    if stop.is_cancelled() { Err(ExtractError::Cancelled) } else { Ok(()) }
}

/// Reads a set-aside page; empty if it is damaged.
fn read(segments: &SegmentReader, page: &PageRef) -> Result<Vec<u8>, CaptureError> {
    match segments.inflated(page) {
        Err(error) if error.is_damaged() => Ok(Vec::new()),
        read => read,
    }
}

/// The first, the last, the second, the last but one and so on.
fn from_both_ends<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let place = |nth: usize| if nth.is_multiple_of(2) { nth / 2 } else { all.len() - 1 - nth / 2 };
    (0..all.len()).map(move |nth| &all[place(nth)])
}

/// Identifies an item across fetches: a message by its id, as it may have been edited since; an edit or deletion by its
/// content, as several may share an id.
type Identity = (Kind, u128);

fn identity(kind: Kind, item: &RawValue) -> Identity {
    (kind, if kind == Kind::Messages { id_of(item) } else { digest_of_content(item.get()) })
}

/// What need not be kept if this item is present: itself and, if it is a deletion, the message it deletes.
fn identities_covered_by(kind: Kind, item: &RawValue) -> impl Iterator<Item = Identity> {
    let deleted = (kind == Kind::Deleted).then(|| (Kind::Messages, id_of(item)));
    std::iter::once(identity(kind, item)).chain(deleted)
}

/// A digest of an item's id; of its content if it has none.
fn id_of(item: &RawValue) -> u128 {
    let id = members(item.get(), ["id"]).ok().and_then(|[id]| text_of(id?));
    id.map_or_else(|| digest_of_content(item.get()), |id| digest(&id))
}

/// Groups these items of a page by the range to add each to: that of its day, or the last; if any ranges have failed, one of
/// those, so that the items are compared again once it has been fetched.
fn in_ranges(
    ranges: &[UnitRange],
    page: &PageRef,
    items: &[&RawValue],
    by_modification_time: bool,
) -> Vec<(RangeId, Restored)> {
    let any_failed = ranges.iter().any(|range| range.failed);
    let among: Vec<&UnitRange> = ranges.iter().filter(|range| range.failed == any_failed).collect();
    let range_of = |item: &RawValue| {
        let day = day_of(page.kind, item, by_modification_time).map(DateRange::day);
        let own = among.iter().find(|range| day.is_some_and(|day| range.days.covers(day)));
        own.or(among.last()).map(|range| range.id)
    };
    let of: Vec<_> = items.iter().map(|item| range_of(item)).collect();
    let kept = among.iter().filter_map(|range| {
        let own = items.iter().zip(&of).filter(|(_, of)| **of == Some(range.id));
        let own: Vec<&str> = own.map(|(item, _)| item.get()).collect();
        let kept = if own.len() as u64 == page.items {
            Restored::Page(*page)
        } else {
            Restored::Items(page.kind, Segment::of_items(&own, DENSE)?)
        };
        Some((range.id, kept))
    });
    kept.collect()
}

/// The day towards which Zoom counts an item, if it can be told.
fn day_of(kind: Kind, item: &RawValue, by_modification_time: bool) -> Option<Date> {
    // Edited and deleted items may be selected by the time of the edit or deletion, not by when their message was sent.
    let at = if kind != Kind::Messages && by_modification_time { modified_at(item) } else { sent_at(item) };
    days::day_of(at?)
}

/// Whether any item now set aside belongs to a range's days.
pub(super) async fn has_shown(shared: &Shared, range: &PendingRange) -> Result<bool, ExtractError> {
    let (unit, days, stop) = (range.unit, range.chain.days, shared.stop.clone());
    let by_modification_time = shared.context.request.item_choice().by_modification_time;
    let has_shown = async move |stored: &mut Reader| {
        let set_aside = stored.set_aside(unit).await?;
        for (asked, page) in set_aside.into_iter().filter(|(asked, _)| asked.overlaps(days)) {
            ensure_not_cancelled(&stop)?;
            let array = array_of(&read(stored.segments(), &page)?);
            let mut of =
                items_of(&array).into_iter().map(|item| day_of(page.kind, item, by_modification_time));
            if of.any(|day| days.covers(day.map_or(asked, DateRange::day))) {
                return Ok(true);
            }
        }
        Ok::<_, ExtractError>(false)
    };
    shared.with_reader(has_shown).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{empty_page, list, planned, position};
    use crate::capture::{MessagesPage, Then};
    use futures_util::future::try_join_all;
    use jiff::Timestamp;
    use jiff::civil::date;

    #[test]
    fn what_is_kept_goes_to_the_range_of_its_day_or_to_one_that_failed() {
        let month = |from, to| DateRange::new(date(2026, 5, from), date(2026, 5, to));
        let noon_of = |day: i8| days::begins(date(2026, 5, day)).as_millisecond() + 43_200_000;
        let item = |text: String| RawValue::from_string(text).unwrap();
        let edited = item(format!(r#"{{"timestamp":{},"action_timestamp":{}}}"#, noon_of(3), noon_of(15)));
        let timeless = item(r#"{"id":"x"}"#.to_owned());
        let elsewhere = item(format!(r#"{{"timestamp":{}}}"#, noon_of(31)));
        let all = [&*edited, &timeless, &elsewhere];
        let page = |kind| Segment::of_items(&all.map(RawValue::get), 1).unwrap().at(0, kind);
        let to = |failed: &[i64], kind, by_modification_time| {
            let ranges = [month(1, 10), month(11, 20), month(21, 30)].into_iter().zip((1..).map(RangeId));
            let ranges: Vec<_> =
                ranges.map(|(days, id)| UnitRange { id, days, failed: failed.contains(&id.0) }).collect();
            let kept = in_ranges(&ranges, &page(kind), &all, by_modification_time);
            kept.into_iter().map(|(range, kept)| (range.0, kept.items())).collect::<Vec<_>>()
        };
        assert_eq!(to(&[], Kind::Messages, true), [(1, 1), (3, 2)]);
        assert_eq!(to(&[2], Kind::Messages, true), [(2, 3)]);
        assert_eq!(to(&[1, 2], Kind::Messages, true), [(1, 1), (2, 2)]);
        assert_eq!(to(&[], Kind::Deleted, true), [(2, 1), (3, 2)], "counted to the day it was deleted on");
        assert_eq!(to(&[], Kind::Deleted, false), [(1, 1), (3, 2)]);
        assert_eq!(to(&[1], Kind::Edited, false), [(1, 3)]);
    }

    /// With more pages than are compared at a time.
    #[tokio::test]
    async fn what_is_lacking_is_found_among_many_pages() {
        let month = DateRange::new(date(2026, 5, 1), date(2026, 5, 31));
        let (_directory, location, writer) = planned(&[month]).await;
        let pages = 2 * AT_A_TIME as i64 + 500;
        let page = |seq, then| {
            let item = format!(r#"{{"id":"{seq}"}}"#);
            let segments = [Segment::of_items(&[&item], 1), None, None];
            writer.commit(Change::MessagesPage(MessagesPage::new(position(RangeId(1), seq), then, segments)))
        };
        writer.commit(list(1, &["a"])).await.unwrap();
        try_join_all((0..pages).map(|seq| page(seq, Then::Unfinished))).await.unwrap();
        writer
            .commit(Change::RefetchDamaged { ranges: vec![RangeId(1)], found_at: Timestamp::UNIX_EPOCH })
            .await
            .unwrap();
        let missing = |seq| seq % 1_111 == 10;
        try_join_all((0..pages).filter(|seq| !missing(*seq)).map(|seq| page(seq, Then::Unfinished)))
            .await
            .unwrap();
        page(pages, Then::End).await.unwrap();
        let stop = CancellationToken::new();
        let look = async |stored: &mut Reader| {
            let restored = missing_items(stored, UnitId(1), false, &stop).await?;
            let own = restored.iter().map(|(range, restored)| match restored {
                Restored::Page(page) => (*range, read(stored.segments(), page).unwrap()),
                Restored::Items(..) => panic!("a part of a page of one item"),
            });
            Ok::<_, ExtractError>(own.collect::<Vec<_>>())
        };
        let expected = (0..pages).filter(|seq| missing(*seq));
        let expected = expected.map(|seq| (RangeId(1), format!(r#"{{"id":"{seq}"}}"#).into_bytes()));
        assert_eq!(location.with_reader(look).await.unwrap(), expected.collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_message_is_not_kept_beside_its_own_deletion_whichever_was_set_aside_last() {
        let days = |from, to| DateRange::new(date(2026, 5, from), date(2026, 5, to));
        let (_directory, location, writer) = planned(&[days(1, 31)]).await;
        let items = |range, kind: Kind| {
            let mut segments = [None, None, None];
            segments[kind as usize] = Segment::of_items(&[r#"{"id":"m"}"#], 1);
            let position = position(RangeId(range), 0);
            Change::MessagesPage(MessagesPage::new(position, Then::Unfinished, segments))
        };
        let refetch =
            |range| Change::RefetchDamaged { ranges: vec![RangeId(range)], found_at: Timestamp::UNIX_EPOCH };
        let parts = vec![days(1, 9), days(10, 31)];
        for change in [
            list(1, &["a"]),
            Change::SplitRange { range: RangeId(1), parts, expected_pages: 0 },
            items(2, Kind::Deleted),
            refetch(2),
            items(1, Kind::Messages),
            refetch(1),
            empty_page(1),
            empty_page(2),
        ] {
            writer.commit(change).await.unwrap();
        }
        let stop = CancellationToken::new();
        let look = async |stored: &mut Reader| missing_items(stored, UnitId(1), false, &stop).await;
        let kept = location.with_reader(look).await.unwrap();
        assert!(matches!(&kept[..], [(_, Restored::Page(page))] if page.kind == Kind::Deleted), "{kept:?}");
    }
}
