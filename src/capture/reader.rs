//! Reading a capture: what is still to do, and what is already stored.
//!
//! Reads rows in batches, never whole tables: an account of a million sessions is never held in memory.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Deserialize;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteRow};
use sqlx::{Connection, Decode, Row, Type};

use super::segments::SegmentReader;
use super::{CaptureError, Chain, Kind, ListId, Meta, PageToken, PendingRange, RangeId, UnitId, WindowId};
use crate::days::DateRange;

/// Where a stored segment is, and what it inflates to.
#[derive(Debug, Clone, Copy)]
pub struct PageRef {
    pub kind: Kind,
    pub items: u64,
    pub raw_len: u64,
    pub crc32: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl PageRef {
    /// Its stored (compressed) size in bytes.
    pub fn packed_len(&self) -> u64 {
        self.length
    }
}

/// The same as read from the index, not yet validated.
#[derive(Debug, Deserialize)]
pub(super) struct UncheckedPage {
    kind: i64,
    items: i64,
    raw_len: i64,
    crc32: i64,
    offset: i64,
    length: i64,
}

impl TryFrom<UncheckedPage> for PageRef {
    type Error = CaptureError;

    fn try_from(told: UncheckedPage) -> Result<Self, CaptureError> {
        let number = |name, value| {
            u64::try_from(value).map_err(|_| CaptureError::Damaged(format!("{name} is negative")))
        };
        let (items, raw_len) = (number("items", told.items)?, number("raw_len", told.raw_len)?);
        if items > raw_len {
            return Err(CaptureError::Damaged("a page has more items than bytes".to_owned()));
        }
        let crc32 = told.crc32.try_into();
        Ok(Self {
            kind: told.kind.try_into()?,
            items,
            raw_len,
            crc32: crc32.map_err(|_| CaptureError::Damaged("crc32 is not a 32-bit number".to_owned()))?,
            offset: number("offset", told.offset)?,
            length: number("length", told.length)?,
        })
    }
}

/// A range as a part of its unit.
#[derive(Debug, Clone, Copy)]
pub struct UnitRange {
    pub id: RangeId,
    pub days: DateRange,
    pub failed: bool,
}

/// What a session has returned in a window, as seen from one range of it.
#[derive(Debug, Clone, Copy)]
pub struct UnitPages {
    pub window: DateRange,
    /// Whether the range itself has pages, or the unit had some that were set aside.
    pub own: bool,
    /// The latest other range that has pages.
    pub other: Option<DateRange>,
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

    /// Whether the job is planned; a crash may leave a file without its plan, or without any table.
    pub async fn has_plan(&mut self) -> Result<bool, CaptureError> {
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(tables == 1 && self.meta(Meta::Request).await?.is_some())
    }

    /// Whether anything is still to be fetched.
    pub async fn has_pending(&mut self) -> Result<bool, CaptureError> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM lists WHERE state = 'pending')
                 OR EXISTS (SELECT 1 FROM ranges WHERE state = 'pending')
                 OR EXISTS (SELECT 1 FROM units WHERE state = 'pending' AND id NOT IN (SELECT unit FROM set_aside))",
        )
        .fetch_one(&mut self.connection)
        .await?)
    }

    pub async fn meta(&mut self, meta: Meta) -> Result<Option<String>, CaptureError> {
        Ok(sqlx::query_scalar("SELECT value FROM meta WHERE key = ?")
            .bind(meta.key())
            .fetch_optional(&mut self.connection)
            .await?)
    }

    /// Like [`meta`](Self::meta), for a value that is an instant.
    pub async fn time(&mut self, meta: Meta) -> Result<Option<Timestamp>, CaptureError> {
        Ok(self.meta(meta).await?.and_then(|text| text.parse().ok()))
    }

    /// The number of sessions listed in a window.
    pub async fn units_listed(&mut self, window: WindowId) -> Result<u64, CaptureError> {
        let units: i64 = sqlx::query_scalar("SELECT count(*) FROM units WHERE window = ? AND listed")
            .bind(window)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(units as u64)
    }

    /// The highest number of any session; 0 if there are none.
    pub async fn last_session(&mut self) -> Result<i64, CaptureError> {
        Ok(sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM sessions")
            .fetch_one(&mut self.connection)
            .await?)
    }

    /// Up to three other sessions to compare with, each with one of its windows that ends on `oldest` or later; those whose
    /// unit there is done come first.
    pub async fn comparable_sessions(
        &mut self,
        zoom_id: &str,
        oldest: Date,
    ) -> Result<Vec<(String, DateRange)>, CaptureError> {
        let rows = sqlx::query(
            "WITH others AS NOT MATERIALIZED (SELECT s.zoom_id, u.state, w.first_day, w.last_day FROM units u
                 JOIN sessions s ON s.id = u.session JOIN windows w ON w.idx = u.window
                 WHERE s.zoom_id <> ? AND w.last_day >= ?)
             SELECT * FROM others WHERE state = 'done'
             UNION ALL SELECT * FROM others WHERE state = 'pending' LIMIT 21",
        )
        .bind(zoom_id)
        .bind(oldest.to_string())
        .fetch_all(&mut self.connection)
        .await?;
        let mut sessions: Vec<(String, DateRange)> = Vec::new();
        // A session has at most seven units, so 21 rows hold three sessions.
        for row in &rows {
            let (session, days) = session_days(row)?;
            if sessions.len() < 3 && sessions.iter().all(|(known, _)| *known != session) {
                sessions.push((session, days));
            }
        }
        Ok(sessions)
    }

    /// The days of a list that Zoom answered, if only with "not found".
    pub async fn answered_list(&mut self) -> Result<Option<DateRange>, CaptureError> {
        let row =
            sqlx::query("SELECT first_day, last_day FROM lists WHERE pages > 0 OR state = 'done' LIMIT 1")
                .fetch_optional(&mut self.connection)
                .await?;
        row.as_ref().map(days).transpose()
    }

    /// Whether a list of the window, or of a part of it, has returned a page, even an empty one.
    pub async fn has_listed(&mut self, window: WindowId) -> Result<bool, CaptureError> {
        let listed = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM lists WHERE window = ? AND pages > 0)");
        Ok(listed.bind(window).fetch_one(&mut self.connection).await?)
    }

    /// Up to two sessions for which Zoom has returned pages, each with the days of a range that has some.
    pub async fn answered_sessions(&mut self) -> Result<Vec<(String, DateRange)>, CaptureError> {
        let rows = sqlx::query(
            "SELECT s.zoom_id, r.first_day, r.last_day FROM units u
                 JOIN sessions s ON s.id = u.session JOIN ranges r ON r.unit = u.id AND r.pages > 0
             GROUP BY u.session LIMIT 2",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(session_days).collect()
    }

    /// What a range's session has returned so far in the range's window.
    pub async fn unit_pages(&mut self, range: RangeId) -> Result<UnitPages, CaptureError> {
        let row = sqlx::query(
            "SELECT w.first_day, w.last_day, (u.expected_pages > 0 OR r.pages > 0) AS own
             FROM ranges r JOIN units u ON u.id = r.unit JOIN windows w ON w.idx = u.window WHERE r.id = ?",
        )
        .bind(range)
        .fetch_one(&mut self.connection)
        .await?;
        let other = sqlx::query(
            "SELECT first_day, last_day FROM ranges WHERE unit = (SELECT unit FROM ranges WHERE id = ?1) AND id <> ?1
             AND pages > 0 ORDER BY last_day DESC LIMIT 1",
        )
        .bind(range)
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(UnitPages {
            window: days(&row)?,
            own: row.try_get("own")?,
            other: other.as_ref().map(days).transpose()?,
        })
    }

    /// Where a range's stored segments are, in the order of pages and kinds.
    pub async fn range_pages(&mut self, range: RangeId) -> Result<Vec<PageRef>, CaptureError> {
        let rows = sqlx::query(
            "SELECT kind, items, raw_len, crc32, offset, length FROM pages WHERE range = ? ORDER BY seq, kind",
        )
        .bind(range)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(page_ref).collect()
    }

    /// A unit that has been fetched completely and is to be compared with the pages set aside from it.
    pub async fn unit_to_compare(&mut self) -> Result<Option<UnitId>, CaptureError> {
        Ok(sqlx::query_scalar(
            "SELECT id FROM units WHERE id IN (SELECT unit FROM set_aside)
             AND (SELECT min(r.state <> 'pending') FROM ranges r WHERE r.unit = units.id) LIMIT 1",
        )
        .fetch_optional(&mut self.connection)
        .await?)
    }

    /// The number of the commit that last ended a range of a unit, or compared it.
    pub async fn last_commit_of(&mut self, unit: UnitId) -> Result<Option<i64>, CaptureError> {
        Ok(sqlx::query_scalar("SELECT last_commit FROM units WHERE id = ?")
            .bind(unit)
            .fetch_one(&mut self.connection)
            .await?)
    }

    /// The ranges of a unit in the order of its days.
    pub async fn ranges_of(&mut self, unit: UnitId) -> Result<Vec<UnitRange>, CaptureError> {
        let rows = sqlx::query(
            "SELECT id, first_day, last_day, state = 'failed' AS failed FROM ranges
             WHERE unit = ? ORDER BY first_day, id",
        )
        .bind(unit)
        .fetch_all(&mut self.connection)
        .await?;
        let range = |row: &SqliteRow| {
            Ok(UnitRange { id: row.try_get("id")?, days: days(row)?, failed: row.try_get("failed")? })
        };
        rows.iter().map(range).collect()
    }

    /// The pages set aside from a unit's ranges, each with the days of its range.
    pub async fn set_aside(&mut self, unit: UnitId) -> Result<Vec<(DateRange, PageRef)>, CaptureError> {
        let rows = sqlx::query(
            "SELECT first_day, last_day, kind, items, raw_len, crc32, offset, length FROM set_aside
             WHERE unit = ? ORDER BY rowid",
        )
        .bind(unit)
        .fetch_all(&mut self.connection)
        .await?;
        // An invalid row is as lost as one whose segment is damaged.
        let pages = rows.iter().filter_map(|row| page_ref(row).ok().map(|page| (row, page)));
        pages.map(|(row, page)| Ok((days(row)?, page))).collect()
    }

    /// The spans of days that could not be listed, each with its window, except those that failed with the code `but`.
    pub async fn days_not_listed(&mut self, but: &str) -> Result<Vec<(WindowId, DateRange)>, CaptureError> {
        let rows = sqlx::query(
            "SELECT window, first_day, last_day FROM lists
             WHERE state = 'failed' AND failure ->> 'code' <> ? ORDER BY window, first_day",
        )
        .bind(but)
        .fetch_all(&mut self.connection)
        .await?;
        let mut spans: Vec<(WindowId, DateRange)> = Vec::new();
        for row in &rows {
            let (window, days) = (row.try_get("window")?, days(row)?);
            match spans.last_mut() {
                Some((of, span))
                    if *of == window && span.to.tomorrow().is_ok_and(|next| next == days.from) =>
                {
                    span.to = days.to;
                }
                _ => spans.push((window, days)),
            }
        }
        Ok(spans)
    }

    /// The lists of a window that are still to be fetched, oldest days first.
    pub async fn pending_lists(&mut self, window: WindowId) -> Result<Vec<Chain<ListId>>, CaptureError> {
        let rows =
            sqlx::query("SELECT * FROM lists WHERE state = 'pending' AND window = ? ORDER BY first_day")
                .bind(window)
                .fetch_all(&mut self.connection)
                .await?;
        rows.iter().map(chain).collect()
    }

    /// The next ranges of a window to fetch, after the range `after`. Those of sessions that it does not list are held back
    /// until it has been listed: the list may replace them.
    pub async fn pending_ranges(
        &mut self,
        window: WindowId,
        after: RangeId,
        most: i64,
    ) -> Result<Vec<PendingRange>, CaptureError> {
        let rows = sqlx::query(
            "SELECT r.*, s.zoom_id,
                    iif(json_valid(s.info), s.info ->> 'last_message_sent_time', NULL) AS last_sent,
                    (SELECT coalesce(max(max(v.expected_pages,
                         (SELECT sum(o.pages) FROM ranges o WHERE o.unit = v.id))), 0)
                     FROM units v WHERE v.session = u.session AND v.window <> u.window) AS pages_elsewhere
             FROM ranges r INDEXED BY ranges_pending
             JOIN units u ON u.id = r.unit JOIN sessions s ON s.id = u.session
             WHERE r.state = 'pending' AND r.window = ?1 AND r.id > ?2
             AND (u.listed OR NOT EXISTS (SELECT 1 FROM lists l WHERE l.window = ?1 AND l.state = 'pending'))
             ORDER BY r.id LIMIT ?3",
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
                    unit: row.try_get("unit")?,
                    session_id: row.try_get("zoom_id")?,
                    pages_elsewhere: row.try_get("pages_elsewhere")?,
                    query: row.try_get("query")?,
                    last_sent: row.try_get("last_sent").ok().and_then(|text: String| text.parse().ok()),
                })
            })
            .collect()
    }

    /// The items of each kind on the last page of a range that has any, inflated: to recognise repeats when a chain is resumed.
    pub async fn last_items(&mut self, range: RangeId) -> Result<[Vec<u8>; 3], CaptureError> {
        let rows = sqlx::query(
            "WITH kinds(k) AS (VALUES (0), (1), (2))
             SELECT kind, items, raw_len, crc32, offset, length FROM kinds JOIN pages ON kind = k
                 AND range = ?1 AND seq = (SELECT max(seq) FROM pages WHERE range = ?1 AND kind = k)",
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

    /// The windows as planned, oldest first, each with its number.
    pub async fn windows(&mut self) -> Result<Vec<(WindowId, DateRange)>, CaptureError> {
        let rows = sqlx::query("SELECT idx, first_day, last_day FROM windows ORDER BY idx")
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("idx")?, days(row)?))).collect()
    }
}

/// A number that must not be negative; 0 if it is NULL.
pub(super) fn number(row: &SqliteRow, column: &str) -> Result<u64, CaptureError> {
    let number = row.try_get::<Option<i64>, _>(column)?.unwrap_or(0);
    u64::try_from(number).map_err(|_| CaptureError::Damaged(format!("{column} is negative")))
}

pub(super) fn date(row: &SqliteRow, column: &str) -> Result<Date, CaptureError> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| CaptureError::Damaged(format!("{column} is not a date")))
}

pub(super) fn days(row: &SqliteRow) -> Result<DateRange, CaptureError> {
    Ok(DateRange { from: date(row, "first_day")?, to: date(row, "last_day")? })
}

fn session_days(row: &SqliteRow) -> Result<(String, DateRange), CaptureError> {
    Ok((row.try_get("zoom_id")?, days(row)?))
}

fn chain<'r, Id: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow) -> Result<Chain<Id>, CaptureError> {
    let token: Option<String> = row.try_get("next_token")?;
    let at: Option<String> = row.try_get("token_at")?;
    // A token of unknown age is of no use: the chain begins again.
    let at = at.and_then(|at| at.parse().ok());
    let resume = token.zip(at).map(|(token, at)| PageToken { token, at });
    Ok(Chain {
        id: row.try_get("id")?,
        window: row.try_get("window")?,
        days: days(row)?,
        pages: row.try_get("pages")?,
        resume,
    })
}

pub(super) fn page_ref(row: &SqliteRow) -> Result<PageRef, CaptureError> {
    let told = UncheckedPage {
        kind: row.try_get("kind")?,
        items: row.try_get("items")?,
        raw_len: row.try_get("raw_len")?,
        crc32: row.try_get("crc32")?,
        offset: row.try_get("offset")?,
        length: row.try_get("length")?,
    };
    told.try_into()
}
