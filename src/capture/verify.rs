//! Verifying a capture: everything that a run or an archive reads is read once, and every segment is inflated.

use futures_util::TryStreamExt;
use sqlx::Row;
use tokio_util::sync::CancellationToken;

use super::reader::{Reader, page_ref};
use super::{CaptureError, Meta, RangeId, UnitId};

impl Reader {
    /// The ranges with a damaged segment, as far as they were checked before cancellation. Fails if the index cannot be
    /// read, or cannot be true.
    pub(super) async fn damaged_ranges(
        &mut self,
        cancel: &CancellationToken,
    ) -> Result<Vec<RangeId>, CaptureError> {
        let mut damaged: Vec<RangeId> = Vec::new();
        if !self.has_plan().await? {
            return Ok(damaged);
        }
        self.check_consistency().await?;
        self.read_sessions_through(cancel).await?;
        self.read_others_through().await?;
        let mut after = (RangeId::default(), 0_i64, 0_i64);
        while !cancel.is_cancelled() {
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
                let range: RangeId = row.try_get("range")?;
                match page_ref(row).and_then(|page| self.segments().inflated(&page)) {
                    Err(error) if error.is_damaged() => {
                        if damaged.last() != Some(&range) {
                            damaged.push(range);
                        }
                    }
                    other => drop(other?),
                }
            }
        }
        Ok(damaged)
    }

    /// Reads what else a run, or the summary of an archive, reads.
    async fn read_others_through(&mut self) -> Result<(), CaptureError> {
        let values = sqlx::query_scalar::<_, String>("SELECT value FROM meta");
        values.fetch_all(&mut self.connection).await?;
        self.unknown_members().await?;
        for (window, _) in self.windows().await? {
            self.pending_lists(window).await?;
        }
        let chains =
            sqlx::query("SELECT next_token, token_at, query FROM ranges WHERE next_token IS NOT NULL");
        let mut chains = chains.fetch(&mut self.connection);
        while let Some(row) = chains.try_next().await? {
            for column in ["next_token", "token_at", "query"] {
                row.try_get::<Option<String>, _>(column)?;
            }
        }
        Ok(())
    }

    /// Fails if rows of the index contradict each other, or hold impossible numbers.
    async fn check_consistency(&mut self) -> Result<(), CaptureError> {
        if self.time(Meta::StartedAt).await?.is_none() {
            return Err(CaptureError::Damaged("the start time is missing".to_owned()));
        }
        let misplaced = sqlx::query_scalar(
            "SELECT r.id FROM ranges r JOIN units u ON u.id = r.unit WHERE u.window <> r.window LIMIT 1",
        );
        let misplaced: Option<RangeId> = misplaced.fetch_optional(&mut self.connection).await?;
        if let Some(range) = misplaced {
            return Err(CaptureError::Damaged(format!(
                "range {} is in another month than its session",
                range.0
            )));
        }
        let lost = sqlx::query_scalar(
            "SELECT u.id FROM units u WHERE u.state = 'pending' AND u.id NOT IN (SELECT unit FROM set_aside)
             AND NOT EXISTS (SELECT 1 FROM ranges WHERE unit = u.id AND state = 'pending') LIMIT 1",
        );
        let lost: Option<UnitId> = lost.fetch_optional(&mut self.connection).await?;
        if lost.is_some() {
            return Err(CaptureError::Damaged("a session is pending, but none of its days".to_owned()));
        }
        // Negative, or so many that they could not be added up.
        let impossible = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM ranges WHERE kept >> 40 <> 0 OR repeats >> 40 <> 0)",
        );
        if impossible.fetch_one(&mut self.connection).await? {
            return Err(CaptureError::Damaged("a number of items is impossible".to_owned()));
        }
        Ok(())
    }
}
