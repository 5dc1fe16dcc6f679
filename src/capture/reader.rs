//! Reading a capture: what is still to do, which sessions there are, and the stored pages in the order of the archive.
//!
//! Pages of rows, never whole tables: an account of a million sessions does not sit in memory.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};

use super::segments::SegmentReader;
use super::{CaptureError, Chain, Kind, PageToken, PendingRange};

/// A session with what is known of it.
#[derive(Debug, Clone)]
pub struct SessionRow {
    pub id: i64,
    pub zoom_id: String,
    pub info: String,
    /// It was listed, and Zoom answered "not found" for all of it.
    pub not_found: bool,
}

/// Where a stored segment is, and what it inflates to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct PageRef {
    pub kind: Kind,
    pub items: u64,
    pub raw_len: u64,
    pub crc32: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl PageRef {
    /// Bytes as it is stored.
    pub fn packed_len(&self) -> u64 {
        self.length
    }
}

/// A unit as SQLite tells of it: window, whether it was listed, state, and its ranges.
type UnitRead<'a> = (i64, i64, &'a str, Vec<RangeRead<'a>>);
/// First day, number, and each page with its number and with what there is of one kind.
type RangeRead<'a> = (&'a str, i64, Vec<(i64, i64, u64, u64, u32, u64, u64)>);

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

/// A connection for reading.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: SqliteConnection,
    segments: Arc<SegmentReader>,
}

impl Reader {
    pub(super) fn new(connection: SqliteConnection, segments: SegmentReader) -> Self {
        Self { connection, segments: Arc::new(segments) }
    }

    /// The messages themselves.
    pub fn segments(&self) -> &Arc<SegmentReader> {
        &self.segments
    }

    pub async fn close(self) {
        // Nothing was written; a failure to close cleanly loses nothing.
        let _ = self.connection.close().await;
    }

    /// Whether the schema is in place; a crash may leave an empty file.
    pub async fn has_plan(&mut self) -> Result<bool, CaptureError> {
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(tables == 1)
    }

    /// Whether anything is still to be fetched.
    pub async fn has_pending(&mut self) -> Result<bool, CaptureError> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM lists WHERE state = 'pending')
                 OR EXISTS (SELECT 1 FROM ranges WHERE state = 'pending')",
        )
        .fetch_one(&mut self.connection)
        .await?)
    }

    pub async fn meta(&mut self, key: &str) -> Result<Option<String>, CaptureError> {
        Ok(sqlx::query_scalar("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&mut self.connection)
            .await?)
    }

    /// Sessions listed in a window.
    pub async fn units_listed(&mut self, window: i64) -> Result<u64, CaptureError> {
        let units: i64 = sqlx::query_scalar("SELECT count(*) FROM units WHERE window = ? AND listed")
            .bind(window)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(units as u64)
    }

    /// Items held of a range, by kind.
    pub async fn range_items(&mut self, range: i64) -> Result<[u64; 3], CaptureError> {
        let rows = sqlx::query("SELECT kind, sum(items) AS items FROM pages WHERE range = ? GROUP BY kind")
            .bind(range)
            .fetch_all(&mut self.connection)
            .await?;
        by_kind(&rows)
    }

    /// Another session and the days of a window in which it was listed; one that was answered, if there is any.
    pub async fn another_session(
        &mut self,
        zoom_id: &str,
    ) -> Result<Option<(String, Date, Date)>, CaptureError> {
        let row = sqlx::query(
            "WITH others AS (SELECT s.zoom_id, u.state, w.first_day, w.last_day FROM units u
                 JOIN sessions s ON s.id = u.session JOIN windows w ON w.idx = u.window WHERE s.zoom_id <> ?)
             SELECT * FROM others WHERE state = 'done'
             UNION ALL SELECT * FROM others WHERE state = 'pending' LIMIT 1",
        )
        .bind(zoom_id)
        .fetch_optional(&mut self.connection)
        .await?;
        let read =
            |row: &SqliteRow| Ok((row.try_get("zoom_id")?, date(row, "first_day")?, date(row, "last_day")?));
        row.as_ref().map(read).transpose()
    }

    /// The days of a range's window, if any of its session's pages in them were received, perhaps dropped since to be fetched
    /// again.
    pub async fn shown_in(&mut self, range: i64) -> Result<Option<(Date, Date)>, CaptureError> {
        let row = sqlx::query(
            "SELECT w.first_day, w.last_day FROM ranges r
             JOIN units u ON u.id = r.unit JOIN windows w ON w.idx = u.window
             WHERE r.id = ? AND (u.expected_pages > 0
                 OR EXISTS (SELECT 1 FROM ranges o WHERE o.unit = u.id AND o.pages > 0))",
        )
        .bind(range)
        .fetch_optional(&mut self.connection)
        .await?;
        row.as_ref().map(|row| Ok((date(row, "first_day")?, date(row, "last_day")?))).transpose()
    }

    /// Where a range's stored segments are, in the order of pages and kinds.
    pub async fn range_pages(&mut self, range: i64) -> Result<Vec<PageRef>, CaptureError> {
        let rows = sqlx::query(
            "SELECT kind, items, raw_len, crc32, offset, length FROM pages WHERE range = ? ORDER BY seq, kind",
        )
        .bind(range)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(page_ref).collect()
    }

    /// Days that could not be listed although they are within reach, as (window, first day, last day).
    pub async fn days_not_listed(&mut self) -> Result<Vec<(i64, Date, Date)>, CaptureError> {
        let rows = sqlx::query(
            "SELECT window, first_day, last_day FROM lists
             WHERE state = 'failed' AND failure ->> 'code' <> 'out-of-reach' ORDER BY window, first_day",
        )
        .fetch_all(&mut self.connection)
        .await?;
        let mut spans: Vec<(i64, Date, Date)> = Vec::new();
        for row in &rows {
            let (window, from, to) =
                (row.try_get("window")?, date(row, "first_day")?, date(row, "last_day")?);
            match spans.last_mut() {
                Some(span) if span.0 == window && span.2.tomorrow().is_ok_and(|next| next == from) => {
                    span.2 = to;
                }
                _ => spans.push((window, from, to)),
            }
        }
        Ok(spans)
    }

    /// The lists of a window still to be fetched, oldest days first.
    pub async fn pending_lists(&mut self, window: i64) -> Result<Vec<Chain>, CaptureError> {
        let rows =
            sqlx::query("SELECT * FROM lists WHERE state = 'pending' AND window = ? ORDER BY first_day")
                .bind(window)
                .fetch_all(&mut self.connection)
                .await?;
        rows.iter().map(chain).collect()
    }

    /// The next ranges to fetch of a window, after the range `after`.
    pub async fn pending_ranges(
        &mut self,
        window: i64,
        after: i64,
        most: i64,
    ) -> Result<Vec<PendingRange>, CaptureError> {
        let rows = sqlx::query(
            "SELECT r.*, s.zoom_id,
                    (SELECT coalesce(max(max(v.expected_pages,
                         (SELECT sum(o.pages) FROM ranges o WHERE o.unit = v.id))), 0)
                     FROM units v WHERE v.session = u.session AND v.window <> u.window) AS pages_elsewhere
             FROM ranges r INDEXED BY ranges_pending
             JOIN units u ON u.id = r.unit JOIN sessions s ON s.id = u.session
             WHERE r.state = 'pending' AND r.window = ? AND r.id > ? ORDER BY r.id LIMIT ?",
        )
        .bind(window)
        .bind(after)
        .bind(most)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(PendingRange {
                    chain: chain(row)?,
                    session_id: row.try_get("zoom_id")?,
                    pages_elsewhere: row.try_get("pages_elsewhere")?,
                    query: row.try_get("query")?,
                })
            })
            .collect()
    }

    /// The items of a range's last page, inflated: to recognise repeats when a chain is taken up again.
    pub async fn last_page(&mut self, range: i64) -> Result<[Vec<u8>; 3], CaptureError> {
        let rows = sqlx::query(
            "SELECT kind, items, raw_len, crc32, offset, length FROM pages WHERE range = ?1
             AND seq = (SELECT max(seq) FROM pages WHERE range = ?1)",
        )
        .bind(range)
        .fetch_all(&mut self.connection)
        .await?;
        let mut kinds: [Vec<u8>; 3] = Default::default();
        for row in &rows {
            let page = page_ref(row)?;
            kinds[page.kind as usize] = self.segments.inflated(&page)?;
        }
        Ok(kinds)
    }

    /// Number, id and info of sessions, in the order of their numbers, after `after`.
    pub async fn session_infos(
        &mut self,
        after: i64,
        most: i64,
    ) -> Result<Vec<(i64, String, String)>, CaptureError> {
        Ok(sqlx::query_as("SELECT id, zoom_id, info FROM sessions WHERE id > ? ORDER BY id LIMIT ?")
            .bind(after)
            .bind(most)
            .fetch_all(&mut self.connection)
            .await?)
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
        let sessions: Vec<(i64, String, String, Vec<UnitRead<'_>>)> = of_json(&sessions)?;
        let mut read = HashMap::with_capacity(sessions.len());
        for (id, zoom_id, info, units) in sessions {
            let mut listed = units.iter().filter(|(_, listed, ..)| *listed == 1).peekable();
            let not_found = listed.peek().is_some() && listed.all(|(.., state, _)| *state == "not_found");
            read.insert(id, (SessionRow { id, zoom_id, info, not_found }, pages(units)?));
        }
        let gone = || CaptureError::Damaged("a session has a unit and is not there".to_owned());
        ids.iter().map(|id| read.remove(id).ok_or_else(gone)).collect()
    }

    /// The ranges with a segment that is not what was stored.
    pub(super) async fn damaged_ranges(&mut self) -> Result<Vec<i64>, CaptureError> {
        let mut damaged: Vec<i64> = Vec::new();
        let mut after = (0_i64, 0_i64, 0_i64);
        loop {
            let rows = sqlx::query(
                "SELECT range, seq, kind, items, raw_len, crc32, offset, length FROM pages
                 WHERE (range, seq, kind) > (?, ?, ?) ORDER BY range, seq, kind LIMIT 1000",
            )
            .bind(after.0)
            .bind(after.1)
            .bind(after.2)
            .fetch_all(&mut self.connection)
            .await?;
            let Some(last) = rows.last() else { break };
            after = (last.try_get("range")?, last.try_get("seq")?, last.try_get("kind")?);
            for row in &rows {
                match self.segments.inflated(&page_ref(row)?) {
                    Err(error) if error.is_damaged() => damaged.push(row.try_get("range")?),
                    other => drop(other?),
                }
            }
        }
        damaged.dedup();
        Ok(damaged)
    }

    /// The windows as planned, oldest first: number, first day, last day.
    pub async fn windows(&mut self) -> Result<Vec<(i64, Date, Date)>, CaptureError> {
        let rows = sqlx::query("SELECT idx, first_day, last_day FROM windows ORDER BY idx")
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("idx")?, date(row, "first_day")?, date(row, "last_day")?)))
            .collect()
    }
}

pub(super) fn number(row: &SqliteRow, column: &str) -> Result<u64, CaptureError> {
    Ok(row.try_get::<Option<i64>, _>(column)?.unwrap_or(0) as u64)
}

fn by_kind(rows: &[SqliteRow]) -> Result<[u64; 3], CaptureError> {
    let mut totals = [0; 3];
    for row in rows {
        let kind = Kind::try_from(row.try_get::<i64, _>("kind")?)?;
        totals[kind as usize] = number(row, "items")?;
    }
    Ok(totals)
}

pub(super) fn date(row: &SqliteRow, column: &str) -> Result<Date, CaptureError> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| CaptureError::Damaged(format!("{column} is no date")))
}

fn chain(row: &SqliteRow) -> Result<Chain, CaptureError> {
    let token: Option<String> = row.try_get("next_token")?;
    let at: Option<String> = row.try_get("token_at")?;
    let resume = match (token, at) {
        (Some(token), Some(at)) => {
            let at = at.parse().map_err(|_| CaptureError::Damaged("token_at is no instant".to_owned()))?;
            Some(PageToken { token, at })
        }
        _ => None,
    };
    Ok(Chain {
        id: row.try_get("id")?,
        window: row.try_get("window")?,
        from: date(row, "first_day")?,
        to: date(row, "last_day")?,
        pages: row.try_get("pages")?,
        resume,
    })
}

fn of_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CaptureError> {
    serde_json::from_str(text).map_err(|error| CaptureError::Damaged(error.to_string()))
}

/// In the order of kinds, windows, ranges, pages. SQLite promises none, but walks the indexes in the order of the last
/// three.
fn pages(mut units: Vec<UnitRead<'_>>) -> Result<Vec<PageRef>, CaptureError> {
    units.sort_by_key(|(window, ..)| *window);
    let mut all = Vec::new();
    for (.., mut ranges) in units {
        ranges.sort_by_key(|(first_day, id, _)| (*first_day, *id));
        for (.., mut pages) in ranges {
            pages.sort_by_key(|page| page.0);
            for (_, kind, items, raw_len, crc32, offset, length) in pages {
                all.push(PageRef { kind: kind.try_into()?, items, raw_len, crc32, offset, length });
            }
        }
    }
    all.sort_by_key(|page| page.kind);
    Ok(all)
}

fn page_ref(row: &SqliteRow) -> Result<PageRef, CaptureError> {
    Ok(PageRef {
        kind: Kind::try_from(row.try_get::<i64, _>("kind")?)?,
        items: number(row, "items")?,
        raw_len: number(row, "raw_len")?,
        crc32: row.try_get::<i64, _>("crc32")? as u32,
        offset: number(row, "offset")?,
        length: number(row, "length")?,
    })
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
                query: String::new(),
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
