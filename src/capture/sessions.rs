//! Reading a capture: its sessions and their stored pages, in the order of the archive.
//!
//! Reads rows in batches, never whole tables: an account of a million sessions is never held in memory.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::reader::{PageRef, Reader, UncheckedPage};
use super::statements::json;
use super::{CaptureError, RangeId, WindowId};

/// A session and what is known about it.
#[derive(Debug, Clone)]
pub struct SessionRow {
    pub id: i64,
    pub zoom_id: String,
    pub info: String,
    /// Zoom answered "not found" for all of it.
    pub not_found: bool,
    /// Some of its days failed or are still pending.
    pub incomplete: bool,
}

/// A session's position in the order in which sessions became complete: the number of the commit that completed it, then the
/// session's own number. Incomplete sessions come last. A session that becomes complete later sorts later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    last_commit: i64,
    session: i64,
}

/// A session, its place, and its ranges in the order of the archive.
#[derive(Debug, Clone)]
pub struct PlacedSession {
    pub row: SessionRow,
    pub place: Place,
    ranges: Vec<Range>,
    /// The windows that list it.
    listed_in: Vec<WindowId>,
}

#[derive(Debug, Clone, Copy)]
struct Range {
    id: RangeId,
    window: WindowId,
    pages: u32,
}

/// The totals of some sessions in each window.
#[derive(Debug, Default)]
pub struct WindowTotals(HashMap<WindowId, WindowTotal>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowTotal {
    /// Sessions that it lists.
    pub listed: u64,
    pub items: [u64; 3],
}

impl WindowTotals {
    fn list(&mut self, window: WindowId) {
        self.0.entry(window).or_default().listed += 1;
    }

    fn count(&mut self, window: WindowId, page: &PageRef) {
        let items = &mut self.0.entry(window).or_default().items[page.kind as usize];
        *items = items.saturating_add(page.items);
    }

    pub fn of(&self, window: WindowId) -> WindowTotal {
        self.0.get(&window).copied().unwrap_or_default()
    }

    pub fn add(&mut self, other: &Self) {
        for (window, other) in &other.0 {
            let total = self.0.entry(*window).or_default();
            total.listed += other.listed;
            for (sum, items) in total.items.iter_mut().zip(other.items) {
                *sum = sum.saturating_add(items);
            }
        }
    }
}

impl PlacedSession {
    fn pages(&self) -> i64 {
        self.ranges.iter().map(|range| i64::from(range.pages)).sum()
    }
}

impl Place {
    /// Stands in for the commit number of incomplete sessions.
    const INCOMPLETE: i64 = i64::MAX;
}

/// Selects what is known about the sessions at these places as one row: SQLite's thread hands over each row separately, which
/// costs more than reading a small session.
macro_rules! placed {
    ($places:literal) => {
        concat!(
            "SELECT json_group_array(json_array(p.last_commit, p.session, s.zoom_id, s.info,
                (SELECT json_group_array(json_array(window, listed, state,
                    (SELECT json_group_array(json_array(first_day, id, pages, newest_first)) FROM ranges WHERE unit = u.id)))
                 FROM units u WHERE u.session = p.session)))
             FROM (",
            $places,
            ") p LEFT JOIN sessions s ON s.id = p.session"
        )
    };
}

impl Reader {
    /// Returns number, id and info of the sessions after `after`, at most `most`, in the order of their numbers.
    pub async fn session_infos(
        &mut self,
        after: i64,
        most: i64,
    ) -> Result<Vec<(i64, String, String)>, CaptureError> {
        // One row: SQLite's thread hands over each row separately, which costs more than its contents.
        let sessions: String = sqlx::query_scalar(
            "SELECT json_group_array(json_array(id, zoom_id, info)) FROM
                 (SELECT id, zoom_id, info FROM sessions WHERE id > ? ORDER BY id LIMIT ?)",
        )
        .bind(after)
        .bind(most)
        .fetch_one(&mut self.connection)
        .await?;
        let mut sessions: Vec<(i64, String, String)> = of_json(&sessions)?;
        sessions.sort_unstable_by_key(|(id, ..)| *id);
        Ok(sessions)
    }

    /// Reads all sessions as for an archive, until cancelled. Fails if one cannot be read or does not appear in the order.
    pub(super) async fn read_sessions_through(
        &mut self,
        cancel: &CancellationToken,
    ) -> Result<(), CaptureError> {
        const AT_A_TIME: i64 = 500;
        let sessions: i64 =
            sqlx::query_scalar("SELECT count(*) FROM sessions").fetch_one(&mut self.connection).await?;
        let (mut read, mut after) = (0, Place::default());
        while !cancel.is_cancelled() {
            let some = self.sessions_after(after, true, AT_A_TIME, i64::MAX).await?;
            let Some(last) = some.last() else {
                let lost = CaptureError::Damaged(format!("{read} of {sessions} sessions can be found"));
                return if read == sessions { Ok(()) } else { Err(lost) };
            };
            after = last.place;
            read += some.len() as i64;
        }
        Ok(())
    }

    /// Returns the next sessions after `after`: at most `most` of them and, if more than one, with at most `most_pages` pages in
    /// total. Complete ones come first; the others follow only `if_incomplete`.
    pub async fn sessions_after(
        &mut self,
        after: Place,
        if_incomplete: bool,
        most: i64,
        most_pages: i64,
    ) -> Result<Vec<PlacedSession>, CaptureError> {
        let complete = placed!(
            "SELECT last_commit, session FROM units u INDEXED BY units_by_commit
             WHERE (last_commit, session) > (?1, ?2) AND last_commit IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM units v WHERE v.session = u.session
                 AND (v.state IN ('pending', 'failed') OR (v.last_commit, v.id) > (u.last_commit, u.id)))
             ORDER BY last_commit, session LIMIT ?3"
        );
        let incomplete = placed!(
            "SELECT DISTINCT ?4 AS last_commit, session FROM units
             WHERE session > iif(?1 = ?4, ?2, 0) AND state IN ('pending', 'failed')
             ORDER BY session LIMIT ?3"
        );
        let sessions = self.placed(complete, after, most, most_pages).await?;
        if sessions.is_empty() && if_incomplete {
            return self.placed(incomplete, after, most, most_pages).await;
        }
        Ok(sessions)
    }

    async fn placed(
        &mut self,
        statement: &'static str,
        after: Place,
        most: i64,
        most_pages: i64,
    ) -> Result<Vec<PlacedSession>, CaptureError> {
        let sessions: String = sqlx::query_scalar(statement)
            .bind(after.last_commit)
            .bind(after.session)
            .bind(most)
            .bind(Place::INCOMPLETE)
            .fetch_one(&mut self.connection)
            .await?;
        let sessions: Vec<ReadSession<'_>> = of_json(&sessions)?;
        // The info goes into the archive as it is, so it must be valid JSON.
        sessions.iter().try_for_each(|session| of_json::<&RawValue>(&session.info).map(drop))?;
        let mut sessions: Vec<PlacedSession> = sessions.into_iter().map(PlacedSession::from).collect();
        sessions.sort_unstable_by_key(|session| session.place);
        sessions.truncate(fitting(sessions.iter().map(PlacedSession::pages), most_pages));
        Ok(sessions)
    }

    /// Returns where the stored segments of each session are, in the order of kinds, windows, ranges, pages, and the totals of
    /// these sessions in each window. The result is small even for a session of millions of messages; ranges are read in
    /// batches of at most `at_a_time` pages, a longer one by itself.
    pub async fn pages_of(
        &mut self,
        sessions: &[PlacedSession],
        at_a_time: i64,
    ) -> Result<(Vec<Vec<PageRef>>, WindowTotals), CaptureError> {
        // Each range with the index of its session, its own index within that session, and its window.
        let ranges = sessions.iter().enumerate().flat_map(|(nth, session)| {
            session.ranges.iter().enumerate().map(move |(order, range)| (range, (nth, order, range.window)))
        });
        let ranges: Vec<_> = ranges.collect();
        let mut found: Vec<Vec<(usize, i64, PageRef)>> = vec![Vec::new(); sessions.len()];
        let mut totals = WindowTotals::default();
        for window in sessions.iter().flat_map(|session| &session.listed_in) {
            totals.list(*window);
        }
        let mut rest = &ranges[..];
        while !rest.is_empty() {
            let (some, others) =
                rest.split_at(fitting(rest.iter().map(|(range, _)| i64::from(range.pages)), at_a_time));
            rest = others;
            let places: HashMap<RangeId, (usize, usize, WindowId)> =
                some.iter().map(|(range, place)| (range.id, *place)).collect();
            let pages: String = sqlx::query_scalar(
                "SELECT json_group_array(json_array(range, seq, json_array(kind, items, raw_len, crc32, offset, length)))
                 FROM pages WHERE range IN (SELECT value FROM json_each(?))",
            )
            .bind(json(&places.keys().collect::<Vec<_>>()))
            .fetch_one(&mut self.connection)
            .await?;
            for (range, seq, page) in of_json::<Vec<(RangeId, i64, UncheckedPage)>>(&pages)? {
                let page = PageRef::try_from(page)?;
                let gone =
                    || CaptureError::Damaged("a page belongs to another range than requested".to_owned());
                let (nth, order, window) = *places.get(&range).ok_or_else(gone)?;
                totals.count(window, &page);
                found[nth].push((order, seq, page));
            }
        }
        let in_order = |mut pages: Vec<(usize, i64, PageRef)>| {
            pages.sort_unstable_by_key(|(order, seq, page)| (page.kind, *order, *seq));
            pages.into_iter().map(|(.., page)| page).collect()
        };
        Ok((found.into_iter().map(in_order).collect(), totals))
    }
}

/// Returns how many of the first sizes add up to at most `most`; one if the first alone exceeds it.
fn fitting(sizes: impl Iterator<Item = i64>, most: i64) -> usize {
    let mut all = 0;
    let fitting = sizes.take_while(|size| {
        all += size;
        all <= most
    });
    fitting.count().max(1)
}

/// A session as SQLite returns it: a JSON array with these fields in this order.
#[derive(Deserialize)]
struct ReadSession<'a> {
    last_commit: i64,
    id: i64,
    zoom_id: String,
    info: String,
    #[serde(borrow)]
    units: Vec<ReadUnit<'a>>,
}

#[derive(Deserialize)]
struct ReadUnit<'a> {
    window: WindowId,
    listed: i64,
    state: &'a str,
    #[serde(borrow)]
    ranges: Vec<ReadRange<'a>>,
}

#[derive(Deserialize)]
struct ReadRange<'a> {
    first_day: &'a str,
    id: RangeId,
    pages: u32,
    newest_first: i64,
}

impl From<ReadSession<'_>> for PlacedSession {
    fn from(ReadSession { last_commit, id, zoom_id, info, mut units }: ReadSession<'_>) -> Self {
        let not_found = !units.is_empty() && units.iter().all(|unit| unit.state == "not_found");
        units.sort_by_key(|unit| unit.window);
        let listed_in = units.iter().filter(|unit| unit.listed != 0).map(|unit| unit.window).collect();
        let ranges = units.into_iter().flat_map(|ReadUnit { window, mut ranges, .. }| {
            ranges.sort_by_key(|range| (range.first_day, range.id));
            // The order they would have had if the unit had not been split.
            if ranges.iter().map(|range| range.newest_first).sum::<i64>() > 0 {
                ranges.reverse();
            }
            ranges.into_iter().map(move |ReadRange { id, pages, .. }| Range { id, window, pages })
        });
        let ranges = ranges.collect();
        Self {
            row: SessionRow { id, zoom_id, info, not_found, incomplete: last_commit == Place::INCOMPLETE },
            place: Place { last_commit, session: id },
            ranges,
            listed_in,
        }
    }
}

fn of_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CaptureError> {
    serde_json::from_str(text).map_err(|error| CaptureError::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{list, planned, position};
    use crate::capture::{Change, MessagesPage, Segment, Then};
    use crate::days::DateRange;
    use jiff::civil::date;

    #[tokio::test]
    async fn sessions_come_with_their_pages_in_order_and_not_too_many_of_them_at_a_time() {
        let days = |month| DateRange::new(date(2026, month, 1), date(2026, month, 28));
        let (_directory, location, writer) = planned(&[days(3), days(4)]).await;
        // The later window is listed first, so that its ranges have the lower numbers: 1, 2, 3 and then 4.
        for change in [list(2, &["a", "b", "c"]), list(1, &["a"])] {
            writer.commit(change).await.unwrap();
        }
        // Segments are told apart by their length: one digit each for range, page and kind.
        for (range, seq) in [(1, 0), (2, 0), (4, 0), (4, 1), (4, 2)] {
            let segment =
                |kind: usize| Segment::of_items(&["x".repeat(range * 100 + seq * 10 + kind).as_str()], 1);
            let page = MessagesPage::new(
                position(RangeId(range as i64), seq as i64),
                Then::End,
                [segment(0), None, segment(2)],
            );
            writer.commit(Change::MessagesPage(page)).await.unwrap();
        }
        let mut reader = location.open_reader().await.unwrap();
        // The first has four pages, the second one; the third is pending.
        let place = |last_commit, session| Place { last_commit, session };
        let (second, first, third) = (place(5, 2), place(8, 1), place(Place::INCOMPLETE, 3));
        let places = |found: &[PlacedSession]| found.iter().map(|session| session.place).collect::<Vec<_>>();
        for (after, most, most_pages, expected) in [
            (Place::default(), 9, 9, &[second, first][..]),
            (Place::default(), 9, 5, &[second, first]),
            (Place::default(), 9, 4, &[second]),
            (Place::default(), 1, 9, &[second]),
            (second, 9, 1, &[first]),
            (first, 9, 9, &[]),
        ] {
            let found = reader.sessions_after(after, false, most, most_pages).await.unwrap();
            assert_eq!(places(&found), expected, "{after:?} {most} {most_pages}");
        }
        for (after, expected) in [(Place::default(), &[second, first][..]), (first, &[third]), (third, &[])] {
            let found = reader.sessions_after(after, true, 9, 9).await.unwrap();
            assert_eq!(places(&found), expected, "{after:?}");
        }
        let mut sessions = reader.sessions_after(Place::default(), true, 9, 9).await.unwrap();
        sessions.extend(reader.sessions_after(first, true, 9, 9).await.unwrap());
        let ids: Vec<i64> = sessions.iter().map(|session| session.row.id).collect();
        assert_eq!(ids, [2, 1, 3]);
        for at_a_time in 1..9 {
            let (pages, totals) = reader.pages_of(&sessions, at_a_time).await.unwrap();
            let lengths: Vec<Vec<u64>> =
                pages.iter().map(|pages| pages.iter().map(|page| page.raw_len).collect()).collect();
            assert_eq!(lengths, [vec![200, 202], vec![400, 410, 420, 100, 402, 412, 422, 102], vec![]]);
            let total = |listed, messages, deleted| WindowTotal { listed, items: [messages, 0, deleted] };
            assert_eq!(
                [0, 1, 2].map(|window| totals.of(WindowId(window))),
                [total(1, 3, 3), total(3, 2, 2), total(0, 0, 0)]
            );
        }
        writer.close().await;
    }

    #[tokio::test]
    async fn incomplete_sessions_come_some_at_a_time_as_well() {
        let (_directory, location, writer) =
            planned(&[DateRange::new(date(2026, 3, 1), date(2026, 3, 28))]).await;
        writer.commit(list(1, &["a", "b", "c"])).await.unwrap();
        for chain in (1..=3).map(RangeId) {
            let page = MessagesPage::new(
                position(chain, 0),
                Then::Unfinished,
                [Segment::of_items(&["{}"], 1), None, None],
            );
            writer.commit(Change::MessagesPage(page)).await.unwrap();
        }
        let mut reader = location.open_reader().await.unwrap();
        let first = Place { last_commit: Place::INCOMPLETE, session: 1 };
        for (after, most, most_pages, expected) in [
            (Place::default(), 9, 9, &[1, 2, 3][..]),
            (Place::default(), 2, 9, &[1, 2]),
            (Place::default(), 9, 2, &[1, 2]),
            (Place::default(), 9, 0, &[1]),
            (first, 9, 9, &[2, 3]),
        ] {
            let found = reader.sessions_after(after, true, most, most_pages).await.unwrap();
            let found: Vec<i64> = found.iter().map(|session| session.row.id).collect();
            assert_eq!(found, expected, "{after:?} {most} {most_pages}");
        }
        reader.close().await;
        writer.close().await;
    }

    #[tokio::test]
    async fn the_parts_of_a_unit_come_in_the_order_of_its_messages() {
        for newest_first in [false, true] {
            let days = |month, from, to| DateRange::new(date(2026, month, from), date(2026, month, to));
            let (_directory, location, writer) = planned(&[days(3, 1, 31), days(4, 1, 30)]).await;
            for number in [1, 2] {
                writer.commit(list(number, &["a"])).await.unwrap();
            }
            let parts = vec![days(3, 1, 10), days(3, 11, 20), days(3, 21, 31)];
            writer.commit(Change::SplitRange { range: RangeId(1), parts, expected_pages: 0 }).await.unwrap();
            // The order of a part with one message is unknown; a part whose first message has a wrong time is outvoted.
            let order = if newest_first { 1 } else { -1 };
            for (range, seq, direction) in
                [(1, 0, -order), (2, 0, 0), (3, 0, order), (3, 1, order), (4, 0, 0)]
            {
                let segments = [Segment::of_items(&["x".repeat(range).as_str()], 1), None, None];
                let page = MessagesPage {
                    direction,
                    ..MessagesPage::new(position(RangeId(range as i64), seq), Then::End, segments)
                };
                writer.commit(Change::MessagesPage(page)).await.unwrap();
            }
            let mut reader = location.open_reader().await.unwrap();
            let sessions = reader.sessions_after(Place::default(), false, 9, 9).await.unwrap();
            let (pages, _) = reader.pages_of(&sessions, 9).await.unwrap();
            let lengths: Vec<u64> = pages[0].iter().map(|page| page.raw_len).collect();
            assert_eq!(lengths, if newest_first { [4, 3, 3, 1, 2] } else { [1, 3, 3, 4, 2] });
            reader.close().await;
            writer.close().await;
        }
    }
}
