//! Reading a capture: its totals, and what is missing from it.

use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::reader::{Reader, date, days, number};
use super::segment::MAX_INFLATE_RATIO;
use super::{CaptureError, FailureNote, RangeId};
use crate::days::DateRange;

/// What a capture holds, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts<N = u64> {
    pub windows_total: N,
    pub windows_listed: N,
    pub sessions_total: N,
    pub sessions_done: N,
    pub units_total: N,
    pub units_done: N,
    pub units_failed: N,
    /// Ranges and listings that failed for good.
    pub failures: N,
    pub messages: N,
    pub edited_messages: N,
    pub deleted_messages: N,
}

impl<N> Counts<N> {
    pub fn map<M>(self, of: impl Fn(N) -> M) -> Counts<M> {
        Counts {
            windows_total: of(self.windows_total),
            windows_listed: of(self.windows_listed),
            sessions_total: of(self.sessions_total),
            sessions_done: of(self.sessions_done),
            units_total: of(self.units_total),
            units_done: of(self.units_done),
            units_failed: of(self.units_failed),
            failures: of(self.failures),
            messages: of(self.messages),
            edited_messages: of(self.edited_messages),
            deleted_messages: of(self.deleted_messages),
        }
    }
}

impl Counts {
    /// Messages, edits and deletions.
    pub fn items(&self) -> [u64; 3] {
        [self.messages, self.edited_messages, self.deleted_messages]
    }
}

/// SQL for the number of ranges and listings that failed for good.
macro_rules! failures {
    () => {
        "((SELECT count(*) FROM ranges WHERE state = 'failed') + (SELECT count(*) FROM lists WHERE state = 'failed'))"
    };
}

/// Days of a session for which Zoom answered "not found" although their window lists it.
#[derive(Debug, Clone)]
pub struct NotFoundRow {
    pub range: RangeId,
    pub session_id: String,
    pub days: DateRange,
}

/// A failure as stored: of a session's days, or of a window's listing (no session).
#[derive(Debug, Clone)]
pub struct FailureRow {
    pub id: i64,
    pub session_id: Option<String>,
    pub window: DateRange,
    pub days: DateRange,
    pub failure: FailureNote,
    pub failed_at: String,
    /// Messages of those days that were received before it failed.
    pub messages_captured: u64,
}

impl Reader {
    pub async fn counts(&mut self) -> Result<Counts, CaptureError> {
        let row = sqlx::query(concat!(
            "SELECT (SELECT count(*) FROM windows) AS windows_total,
                    (SELECT count(*) FROM windows w WHERE NOT EXISTS
                        (SELECT 1 FROM lists l WHERE l.window = w.idx AND l.state = 'pending')) AS windows_listed,
                    (SELECT count(*) FROM sessions) AS sessions_total,
                    (SELECT count(*) FROM sessions s WHERE NOT EXISTS
                        (SELECT 1 FROM units u WHERE u.session = s.id AND u.state IN ('pending', 'failed')))
                        AS sessions_done,
                    u.*, p.*, ",
            failures!(),
            " AS failures
             FROM (SELECT count(*) AS units_total, count(*) FILTER (WHERE state IN ('done', 'not_found')) AS units_done,
                          count(*) FILTER (WHERE state = 'failed') AS units_failed FROM units) u,
                  (SELECT CAST(total(items) FILTER (WHERE kind = 0) AS INTEGER) AS messages,
                          CAST(total(items) FILTER (WHERE kind = 1) AS INTEGER) AS edited_messages,
                          CAST(total(items) FILTER (WHERE kind = 2) AS INTEGER) AS deleted_messages FROM pages) p",
        ))
        .fetch_one(&mut self.connection)
        .await?;
        Ok(Counts {
            windows_total: number(&row, "windows_total")?,
            windows_listed: number(&row, "windows_listed")?,
            sessions_total: number(&row, "sessions_total")?,
            sessions_done: number(&row, "sessions_done")?,
            units_total: number(&row, "units_total")?,
            units_done: number(&row, "units_done")?,
            units_failed: number(&row, "units_failed")?,
            failures: number(&row, "failures")?,
            messages: number(&row, "messages")?,
            edited_messages: number(&row, "edited_messages")?,
            deleted_messages: number(&row, "deleted_messages")?,
        })
    }

    /// Items dropped because the previous page held them already.
    pub async fn repeats(&mut self) -> Result<u64, CaptureError> {
        self.total("SELECT sum(repeats) AS total FROM ranges").await
    }

    /// Items kept although they were missing when their days were fetched again.
    pub async fn restored_items(&mut self) -> Result<u64, CaptureError> {
        self.total("SELECT sum(kept) AS total FROM ranges").await
    }

    /// Bytes of all segments that are referred to.
    pub async fn packed_bytes(&mut self) -> Result<u64, CaptureError> {
        self.total("SELECT CAST(total(length) AS INTEGER) AS total FROM pages").await
    }

    /// Bytes of all items as they were received; of a damaged index, no more than the segments can inflate to.
    pub async fn raw_bytes(&mut self) -> Result<u64, CaptureError> {
        let statement = "SELECT CAST(total(min(raw_len, length * ?)) AS INTEGER) AS total FROM pages";
        let most = MAX_INFLATE_RATIO.cast_signed();
        number(&sqlx::query(statement).bind(most).fetch_one(&mut self.connection).await?, "total")
    }

    async fn total(&mut self, statement: &'static str) -> Result<u64, CaptureError> {
        number(&sqlx::query(statement).fetch_one(&mut self.connection).await?, "total")
    }

    /// How many ranges and listings failed for good, without the totals over all pages, which take a while.
    pub async fn failure_count(&mut self) -> Result<u64, CaptureError> {
        self.total(concat!("SELECT ", failures!(), " AS total")).await
    }

    /// Failures after `after` (listings first, then sessions' days), at most `most`.
    pub async fn failures(&mut self, after: i64, most: i64) -> Result<Vec<FailureRow>, CaptureError> {
        // Listings get the negative numbers, so that one cursor pages through both. Each part has its own LIMIT, or all that
        // remain would be counted and sorted for each page.
        let rows = sqlx::query(
            "SELECT * FROM (
                 SELECT -1000000000000 + l.id AS id, NULL AS zoom_id, w.first_day AS wf, w.last_day AS wt,
                        l.first_day, l.last_day, l.failure, l.failed_at, 0 AS captured
                 FROM lists l CROSS JOIN windows w ON w.idx = l.window
                 WHERE l.state = 'failed' AND l.id > ?1 + 1000000000000 ORDER BY l.id LIMIT ?2)
             UNION ALL SELECT * FROM (
                 SELECT r.id, s.zoom_id, w.first_day, w.last_day, r.first_day, r.last_day, r.failure, r.failed_at,
                        (SELECT CAST(total(items) AS INTEGER) FROM pages p WHERE p.range = r.id AND p.kind = 0)
                 FROM ranges r CROSS JOIN units u ON u.id = r.unit CROSS JOIN sessions s ON s.id = u.session
                 CROSS JOIN windows w ON w.idx = r.window
                 WHERE r.state = 'failed' AND r.id > ?1 ORDER BY r.id LIMIT ?2)
             ORDER BY id LIMIT ?2",
        )
        .bind(after)
        .bind(most)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let failure: String = row.try_get("failure")?;
                Ok(FailureRow {
                    id: row.try_get("id")?,
                    session_id: row.try_get("zoom_id")?,
                    window: DateRange { from: date(row, "wf")?, to: date(row, "wt")? },
                    days: days(row)?,
                    failure: serde_json::from_str(&failure)
                        .map_err(|error| CaptureError::Damaged(format!("a failure's note: {error}")))?,
                    failed_at: row.try_get("failed_at")?,
                    messages_captured: number(row, "captured")?,
                })
            })
            .collect()
    }

    /// Ranges for which Zoom answered "not found", of listed units without a range that is done: at most `most`, after the
    /// range `after`.
    pub async fn not_found(&mut self, after: RangeId, most: i64) -> Result<Vec<NotFoundRow>, CaptureError> {
        let rows = sqlx::query(
            "SELECT r.id, s.zoom_id, r.first_day, r.last_day FROM ranges r CROSS JOIN units u ON u.id = r.unit
             CROSS JOIN sessions s ON s.id = u.session
             WHERE r.state = 'not_found' AND u.listed AND r.id > ?
             AND NOT EXISTS (SELECT 1 FROM ranges o WHERE o.unit = u.id AND o.state = 'done')
             ORDER BY r.id LIMIT ?",
        )
        .bind(after)
        .bind(most)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(NotFoundRow {
                    range: row.try_get("id")?,
                    session_id: row.try_get("zoom_id")?,
                    days: days(row)?,
                })
            })
            .collect()
    }

    /// Names of unknown members of responses; at most a hundred.
    pub async fn unknown_members(&mut self) -> Result<Vec<String>, CaptureError> {
        let statement = "SELECT DISTINCT name FROM unknown_members ORDER BY name LIMIT 100";
        Ok(sqlx::query_scalar(statement).fetch_all(&mut self.connection).await?)
    }
}

#[cfg(test)]
mod tests {
    use crate::days::DateRange;
    use jiff::civil::date;

    use super::super::testing::{empty_page, failed, list, planned};
    use super::super::{Change, RangeId};

    #[tokio::test]
    async fn days_not_found_are_told_beside_days_that_failed_and_not_where_others_are_there() {
        let days = |from, to| DateRange::new(date(2026, 3, from), date(2026, 3, to));
        let (_directory, location, writer) = planned(&[days(1, 28)]).await;
        writer.commit(list(1, &["failed", "there", "gone"])).await.unwrap();
        for range in [1, 2] {
            let parts = vec![days(1, 9), days(10, 28)];
            writer
                .commit(Change::SplitRange { range: RangeId(range), parts, expected_pages: 0 })
                .await
                .unwrap();
        }
        writer.commit(Change::FailRange { range: RangeId(1), failed: failed() }).await.unwrap();
        writer.commit(empty_page(2)).await.unwrap();
        for range in [3, 4, 5] {
            writer.commit(Change::RangeNotFound { range: RangeId(range) }).await.unwrap();
        }
        writer.close().await;
        let mut reader = location.open_reader().await.unwrap();
        let mut told = Vec::new();
        let mut after = RangeId::default();
        while let Some(row) = reader.not_found(after, 1).await.unwrap().pop() {
            after = row.range;
            told.push((row.session_id, row.days));
        }
        reader.close().await;
        told.sort_by(|(one, _): &(String, DateRange), (other, _)| one.cmp(other));
        let expected = [("failed", days(10, 28)), ("gone", days(1, 28))];
        assert_eq!(told, expected.map(|(id, days)| (id.to_owned(), days)));
    }
}
