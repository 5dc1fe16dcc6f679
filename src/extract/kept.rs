//! Every item that was ever received is kept, also from pages that were taken off a range.
//!
//! That happens when its chain begins again or is cut; the capture sets them aside. Once all of a unit has been fetched it is
//! compared with what was set aside of it, and what it lacks is added.

use std::borrow::Cow;
use std::collections::HashSet;

use jiff::civil::Date;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::digest::{digest, digest_of_content};
use super::ranges::DENSE;
use super::shared::{ExtractError, Shared};
use crate::capture::{
    CaptureError, Change, Kept, Kind, PageRef, PendingRange, RangeId, Reader, Segment, SegmentReader, UnitId,
    UnitRange,
};
use crate::days::{self, DateRange};
use crate::zoom::wire::{modified_at, sent_at};

/// So many pages that were set aside are compared at a time: what is remembered of them does not grow with the chat.
const AT_A_TIME: usize = 1_000;

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

/// Adds to a unit that was fetched to its end what was set aside of it and has not come again: it may have been deleted meanwhile,
/// or the later answers may lack it. Compared is all of it, whatever days Zoom counts an item to.
pub(super) async fn compare(shared: &Shared, unit: UnitId) -> Result<(), ExtractError> {
    let stop = shared.stop.clone();
    let by_modification_time = shared.context.request.item_choice().by_modification_time;
    let compare = async move |stored: &mut Reader| {
        let as_of = stored.settled_in(unit).await?;
        let kept = lacking(stored, unit, by_modification_time, &stop).await?;
        Ok(kept.map(|kept| Change::Compared { unit, as_of, kept }))
    };
    let compared = shared.look_closely(compare).await?.ok_or(ExtractError::Cancelled)?;
    let kept = shared.commit(compared).await?.items.total();
    if kept > 0 {
        tracing::warn!(
            items = kept,
            "a session's days were read again and lack items that they had: those are kept"
        );
    }
    Ok(())
}

/// The same of all units that are left so: a run ended before it came to that.
pub(super) async fn compare_all(shared: &Shared) -> Result<(), ExtractError> {
    while let Some(unit) = shared.look(async |stored| stored.unit_to_compare().await).await? {
        compare(shared, unit).await?;
    }
    Ok(())
}

/// What was set aside of a unit, and its ranges do not have, each with the range it is added to; `None` once cancelled.
async fn lacking(
    stored: &mut Reader,
    unit: UnitId,
    by_modification_time: bool,
    stop: &CancellationToken,
) -> Result<Option<Vec<(RangeId, Kept)>>, CaptureError> {
    let (segments, ranges) = (stored.segments().clone(), stored.ranges_of(unit).await?);
    let (mut kept, mut known) = (Vec::new(), HashSet::<(Kind, u128)>::new());
    let set_aside = stored.set_aside(unit).await?;
    let of_same_days = set_aside.chunk_by(|one, next| one.0 == next.0);
    let some_at_a_time = of_same_days.flat_map(|pages| pages.chunks(AT_A_TIME).enumerate());
    // Of an item that was set aside more than once the latest counts.
    for (nth, some) in some_at_a_time.collect::<Vec<_>>().into_iter().rev() {
        let mut lacking = HashSet::new();
        for (_, page) in some {
            lacking.extend(recognised(&segments, page)?.difference(&known));
        }
        let place = (some[0].0, nth * AT_A_TIME);
        if !look_for(&mut lacking, stored, &ranges, place, stop).await? {
            return Ok(None);
        }
        known.extend(&lacking);
        for (_, page) in some.iter().rev() {
            let array = array_of(&read(&segments, page)?);
            let mut items = items_of(&array);
            items.retain(|item| lacking.remove(&(page.kind, identity(page.kind, item))));
            if page.kind == Kind::Deleted {
                for message in items.iter().map(|item| (Kind::Messages, id_of(item))) {
                    lacking.remove(&message);
                    known.insert(message);
                }
            }
            kept.extend(in_ranges(&ranges, page, &items, by_modification_time));
        }
    }
    kept.reverse();
    kept.sort_by_key(|(range, _)| *range);
    Ok(Some(kept))
}

/// Takes off what these ranges have. As a rule it is found in the place of a chain where it was, at one of the ends of its days. False
/// once cancelled.
async fn look_for(
    lacking: &mut HashSet<(Kind, u128)>,
    stored: &mut Reader,
    ranges: &[UnitRange],
    (days, place): (DateRange, usize),
    stop: &CancellationToken,
) -> Result<bool, CaptureError> {
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
            if stop.is_cancelled() {
                return Ok(false);
            }
            if lacking.is_empty() {
                break;
            }
            // A damaged one is no answer that lacks something: its range is to be fetched again.
            take_off(lacking, page.kind, &segments.inflated(page)?);
        }
    }
    Ok(true)
}

/// Takes off what a stored page has: its items, and messages of which it says that they were deleted since.
fn take_off(lacking: &mut HashSet<(Kind, u128)>, kind: Kind, page: &[u8]) {
    let array = array_of(page);
    for item in items_of(&array) {
        lacking.remove(&(kind, identity(kind, item)));
        if kind == Kind::Deleted {
            lacking.remove(&(Kind::Messages, id_of(item)));
        }
    }
}

/// What the items of a page are recognised by.
fn recognised(segments: &SegmentReader, page: &PageRef) -> Result<HashSet<(Kind, u128)>, CaptureError> {
    let array = array_of(&read(segments, page)?);
    Ok(items_of(&array).into_iter().map(|item| (page.kind, identity(page.kind, item))).collect())
}

/// A page that was set aside; nothing if it is damaged.
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

/// What an item is recognised by in another reading: a message by its id, as it may have been edited since; of edits and deletions
/// there may be several with one id.
fn identity(kind: Kind, item: &RawValue) -> u128 {
    if kind == Kind::Messages { id_of(item) } else { digest_of_content(item.get()) }
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

/// These items of a page, by the range that each is added to: that of its day, but one that failed as long as there is any, so that
/// they are compared again once that is there.
fn in_ranges(
    ranges: &[UnitRange],
    page: &PageRef,
    items: &[&RawValue],
    by_modification_time: bool,
) -> Vec<(RangeId, Kept)> {
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
            Kept::Page(*page)
        } else {
            Kept::Items(page.kind, Segment::of_items(&own, DENSE)?)
        };
        Some((range.id, kept))
    });
    kept.collect()
}

/// The day to which Zoom counts an item, as far as that can be told.
fn day_of(kind: Kind, item: &RawValue, by_modification_time: bool) -> Option<Date> {
    // Edited and deleted items may be selected by when they were, not by when their message was sent.
    let at = if kind != Kind::Messages && by_modification_time { modified_at(item) } else { sent_at(item) };
    days::day_of(at?)
}

/// Whether something of a range's days was received that is set aside now.
pub(super) async fn has_shown(shared: &Shared, range: &PendingRange) -> Result<bool, ExtractError> {
    let (unit, days, stop) = (range.unit, range.chain.days, shared.stop.clone());
    let by_modification_time = shared.context.request.item_choice().by_modification_time;
    let has_shown = async move |stored: &mut Reader| {
        let set_aside = stored.set_aside(unit).await?;
        for (asked, page) in set_aside.into_iter().filter(|(asked, _)| asked.overlaps(days)) {
            if stop.is_cancelled() {
                break;
            }
            let array = array_of(&read(stored.segments(), &page)?);
            let mut of =
                items_of(&array).into_iter().map(|item| day_of(page.kind, item, by_modification_time));
            if of.any(|day| days.covers(day.map_or(asked, DateRange::day))) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    shared.look_closely(has_shown).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{last_page, list, planned};
    use crate::capture::{MessagesPage, PagePosition, Then};
    use futures_util::future::try_join_all;
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

    /// More of them than are compared at a time.
    #[tokio::test]
    async fn what_is_lacking_is_found_among_many_pages() {
        let month = DateRange::new(date(2026, 5, 1), date(2026, 5, 31));
        let (_directory, location, writer) = planned(&[month]).await;
        let pages = 2 * AT_A_TIME as i64 + 500;
        let page = |seq, then| {
            let item = format!(r#"{{"id":"{seq}"}}"#);
            let segments = [Segment::of_items(&[&item], 1), None, None];
            let position = PagePosition { then, ..last_page(RangeId(1), seq) };
            writer.commit(Change::MessagesPage(MessagesPage::new(position, segments)))
        };
        writer.commit(list(1, &["a"])).await.unwrap();
        try_join_all((0..pages).map(|seq| page(seq, Then::Again))).await.unwrap();
        writer.commit(Change::RefetchRanges(vec![RangeId(1)])).await.unwrap();
        let missing = |seq| seq % 1_111 == 10;
        try_join_all((0..pages).filter(|seq| !missing(*seq)).map(|seq| page(seq, Then::Again)))
            .await
            .unwrap();
        page(pages, Then::End).await.unwrap();
        let stop = CancellationToken::new();
        let look = async |stored: &mut Reader| {
            let kept = lacking(stored, UnitId(1), false, &stop).await?.unwrap();
            let own = kept.iter().map(|(range, kept)| match kept {
                Kept::Page(page) => (*range, read(stored.segments(), page).unwrap()),
                Kept::Items(..) => panic!("a part of a page of one item"),
            });
            Ok::<_, CaptureError>(own.collect::<Vec<_>>())
        };
        let expected = (0..pages).filter(|seq| missing(*seq));
        let expected = expected.map(|seq| (RangeId(1), format!(r#"{{"id":"{seq}"}}"#).into_bytes()));
        assert_eq!(location.look(look).await.unwrap(), expected.collect::<Vec<_>>());
    }
}
