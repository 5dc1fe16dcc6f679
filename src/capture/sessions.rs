//! Reading a capture: its sessions and their stored pages, in the order of the archive.
//!
//! Pages of rows, never whole tables: an account of a million sessions does not sit in memory.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;

use super::CaptureError;
use super::reader::{PageRef, Reader};

/// A session with what is known of it.
#[derive(Debug, Clone)]
pub struct SessionRow {
    pub id: i64,
    pub zoom_id: String,
    pub info: String,
    /// It was listed, and Zoom answered "not found" for all of it.
    pub not_found: bool,
}

/// Where a session stands among the others in the order in which they became complete: the number of the commit that did
/// it, and the session's own. Those that are not complete come last. Whatever becomes complete later stands later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    settled: i64,
    session: i64,
}

impl Place {
    /// Instead of the number of a commit.
    const INCOMPLETE: i64 = i64::MAX;
}

impl Reader {
    /// Number, id and info of sessions, in the order of their numbers, after `after`.
    pub async fn session_infos(
        &mut self,
        after: i64,
        most: i64,
    ) -> Result<Vec<(i64, String, String)>, CaptureError> {
        // One row: each is handed over by itself from SQLite's thread, which costs more than it holds.
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

    /// The next sessions after `after` of which everything is there and, once there are no more, of the others if those are
    /// wanted: at most so many and, if it is more than one, with at most so many pages.
    pub async fn sessions_after(
        &mut self,
        after: Place,
        also_incomplete: bool,
        most: i64,
        most_pages: i64,
    ) -> Result<Vec<Place>, CaptureError> {
        // One row: each is handed over by itself from SQLite's thread, which costs more than it holds.
        let mut sessions: String = sqlx::query_scalar(
            "SELECT json_group_array(json_array(settled, session,
                 (SELECT coalesce(sum(r.pages), 0) FROM units v CROSS JOIN ranges r ON r.unit = v.id
                  WHERE v.session = c.session))) FROM (
                 SELECT settled, session FROM units u INDEXED BY units_settled
                 WHERE (settled, session) > (?1, ?2) AND settled IS NOT NULL
                 AND NOT EXISTS (SELECT 1 FROM units v WHERE v.session = u.session
                     AND (v.state IN ('pending', 'failed') OR (v.settled, v.id) > (u.settled, u.id)))
                 ORDER BY settled, session LIMIT ?3) c",
        )
        .bind(after.settled)
        .bind(after.session)
        .bind(most)
        .fetch_one(&mut self.connection)
        .await?;
        if also_incomplete && sessions == "[]" {
            sessions = sqlx::query_scalar(
                "SELECT json_group_array(json_array(?1, session,
                     (SELECT coalesce(sum(r.pages), 0) FROM units v CROSS JOIN ranges r ON r.unit = v.id
                      WHERE v.session = i.session))) FROM (
                     SELECT DISTINCT session FROM units
                     WHERE session > iif(?2 = ?1, ?3, 0) AND state IN ('pending', 'failed')
                     ORDER BY session LIMIT ?4) i",
            )
            .bind(Place::INCOMPLETE)
            .bind(after.settled)
            .bind(after.session)
            .bind(most)
            .fetch_one(&mut self.connection)
            .await?;
        }
        let mut sessions: Vec<(i64, i64, i64)> = of_json(&sessions)?;
        sessions.sort_unstable();
        let mut all_pages = 0;
        let fitting = sessions.iter().take_while(|(_, _, pages)| {
            all_pages += pages;
            all_pages <= most_pages
        });
        let fitting = fitting.count().max(1);
        let places = sessions.into_iter().take(fitting);
        Ok(places.map(|(settled, session, _)| Place { settled, session }).collect())
    }

    /// These sessions, in the same order, each with where its stored segments are: in the order of kinds, windows, ranges,
    /// pages. Small, also for a session of millions of messages.
    pub async fn with_pages(
        &mut self,
        places: &[Place],
    ) -> Result<Vec<(SessionRow, Vec<PageRef>)>, CaptureError> {
        let ids: Vec<i64> = places.iter().map(|place| place.session).collect();
        // One row: each is handed over by itself from SQLite's thread, which costs more than a small session is worth.
        let sessions: String = sqlx::query_scalar(
            "SELECT json_group_array(json_array(id, zoom_id, info,
                (SELECT json_group_array(json_array(window, listed, state,
                    (SELECT json_group_array(json_array(first_day, id,
                        (SELECT json_group_array(json_array(seq, kind, items, raw_len, crc32, offset, length))
                         FROM pages WHERE range = r.id)))
                     FROM ranges r WHERE r.unit = u.id)))
                 FROM units u WHERE u.session = s.id)))
             FROM sessions s WHERE id IN (SELECT value FROM json_each(?))",
        )
        .bind(json!(ids).to_string())
        .fetch_one(&mut self.connection)
        .await?;
        let sessions: Vec<ReadSession<'_>> = of_json(&sessions)?;
        let mut read = HashMap::with_capacity(sessions.len());
        for ReadSession { id, zoom_id, info, units } in sessions {
            let mut listed = units.iter().filter(|unit| unit.listed == 1).peekable();
            let not_found = listed.peek().is_some() && listed.all(|unit| unit.state == "not_found");
            read.insert(id, (SessionRow { id, zoom_id, info, not_found }, pages(units)?));
        }
        let gone = || CaptureError::Damaged("a session has a unit and is not there".to_owned());
        ids.iter().map(|id| read.remove(id).ok_or_else(gone)).collect()
    }
}

/// A session as SQLite tells of it: arrays, in the order of these members.
#[derive(Deserialize)]
struct ReadSession<'a> {
    id: i64,
    zoom_id: String,
    info: String,
    #[serde(borrow)]
    units: Vec<ReadUnit<'a>>,
}

#[derive(Deserialize)]
struct ReadUnit<'a> {
    window: i64,
    listed: i64,
    state: &'a str,
    #[serde(borrow)]
    ranges: Vec<ReadRange<'a>>,
}

#[derive(Deserialize)]
struct ReadRange<'a> {
    first_day: &'a str,
    id: i64,
    pages: Vec<ReadPage>,
}

/// What a page has of one kind.
#[derive(Deserialize)]
struct ReadPage {
    seq: i64,
    kind: i64,
    items: u64,
    raw_len: u64,
    crc32: u32,
    offset: u64,
    length: u64,
}

fn of_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CaptureError> {
    serde_json::from_str(text).map_err(|error| CaptureError::Damaged(error.to_string()))
}

/// In the order of kinds, windows, ranges, pages. SQLite promises none, but walks the indexes in the order of the last
/// three.
fn pages(mut units: Vec<ReadUnit<'_>>) -> Result<Vec<PageRef>, CaptureError> {
    units.sort_by_key(|unit| unit.window);
    let mut all = Vec::new();
    for ReadUnit { mut ranges, .. } in units {
        ranges.sort_by_key(|range| (range.first_day, range.id));
        for ReadRange { mut pages, .. } in ranges {
            pages.sort_by_key(|page| page.seq);
            for ReadPage { kind, items, raw_len, crc32, offset, length, .. } in pages {
                all.push(PageRef { kind: kind.try_into()?, items, raw_len, crc32, offset, length });
            }
        }
    }
    all.sort_by_key(|page| page.kind);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{last_page, list, planned};
    use crate::capture::{Change, Segment};
    use jiff::civil::date;

    #[tokio::test]
    async fn sessions_come_with_their_pages_in_order_and_not_too_many_of_them_at_a_time() {
        let days = |month| (date(2026, month, 1), date(2026, month, 28));
        let (_directory, location, writer) = planned(&[days(3), days(4)]).await;
        // The later window is listed first, so that its ranges have the lower numbers: 1, 2, 3 and then 4.
        for change in [list(2, &["a", "b", "c"]), list(1, &["a"])] {
            writer.commit(change).await.unwrap();
        }
        // Segments are told from each other by how much they hold: a digit for range, page and kind.
        for (range, seq) in [(1, 0), (2, 0), (4, 0), (4, 1), (4, 2)] {
            let segment =
                |kind: usize| Segment::of_items(&["x".repeat(range * 100 + seq * 10 + kind).as_str()], 1);
            let change = Change::MessagesPage {
                page: last_page(range as i64, seq as i64),
                query: None,
                segments: [segment(0), None, segment(2)],
                repeats: 0,
            };
            writer.commit(change).await.unwrap();
        }
        let mut reader = location.open_reader().await.unwrap();
        // The first has four pages, the second one; the third is pending.
        let place = |settled, session| Place { settled, session };
        let (second, first, third) = (place(5, 2), place(8, 1), place(Place::INCOMPLETE, 3));
        for (after, also_incomplete, most, most_pages, expected) in [
            (Place::default(), true, 9, 9, &[second, first][..]),
            (Place::default(), true, 9, 5, &[second, first]),
            (Place::default(), true, 9, 4, &[second]),
            (Place::default(), true, 1, 9, &[second]),
            (second, true, 9, 1, &[first]),
            (first, false, 9, 9, &[]),
            (first, true, 9, 9, &[third]),
            (third, true, 9, 9, &[]),
        ] {
            let found = reader.sessions_after(after, also_incomplete, most, most_pages).await.unwrap();
            assert_eq!(found, expected, "{after:?} {also_incomplete} {most} {most_pages}");
        }
        let sessions = reader.with_pages(&[second, first, third]).await.unwrap();
        let lengths = |pages: &[PageRef]| pages.iter().map(|page| page.raw_len).collect::<Vec<_>>();
        let found: Vec<_> = sessions.iter().map(|(session, pages)| (session.id, lengths(pages))).collect();
        let expected =
            [(2, vec![200, 202]), (1, vec![400, 410, 420, 100, 402, 412, 422, 102]), (3, Vec::new())];
        assert_eq!(found, expected);
        writer.close().await;
    }
}
