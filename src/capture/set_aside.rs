//! Sets aside pages that are removed from ranges, and adds back those of their items that are kept.

use super::pages::{Row, insert_pages};
use super::statements::json;
use super::writer::{Items, Restored};
use super::{CaptureError, Kind, RangeId, Tx};

/// Sets aside the pages of a range, which is to be fetched again from its beginning. Returns the (negative) change in items.
pub(super) async fn reset_range(tx: &mut Tx<'_>, range: RangeId) -> Result<Items, CaptureError> {
    let items = set_aside(tx, &[range]).await?;
    sqlx::query("UPDATE ranges SET pages = 0, repeats = 0, next_token = NULL, token_at = NULL WHERE id = ?")
        .bind(range)
        .execute(&mut **tx)
        .await?;
    Ok(items)
}

/// Sets the pages of these ranges aside; their units remember how many there were. Returns the (negative) change in items.
pub(super) async fn set_aside(tx: &mut Tx<'_>, ranges: &[RangeId]) -> Result<Items, CaptureError> {
    let ranges = json(&ranges);
    let held: Vec<(i64, i64)> = sqlx::query_as(
        // Not `sum`, which fails where wrong values overflow.
        "SELECT kind, CAST(total(items) AS INTEGER) FROM pages
         WHERE range IN (SELECT value FROM json_each(?)) AND kind BETWEEN 0 AND 2 GROUP BY kind",
    )
    .bind(&ranges)
    .fetch_all(&mut **tx)
    .await?;
    let mut items = Items::default();
    for (kind, of_kind) in held {
        items.count(Kind::try_from(kind)?, of_kind.saturating_neg());
    }
    for statement in [
        "INSERT INTO set_aside (unit, first_day, last_day, kind, items, raw_len, crc32, offset, length)
         SELECT r.unit, r.first_day, r.last_day, p.kind, p.items, p.raw_len, p.crc32, p.offset, p.length
         FROM ranges r JOIN pages p ON p.range = r.id
         WHERE r.id IN (SELECT value FROM json_each(?)) AND p.kind BETWEEN 0 AND 2
         ORDER BY p.range, p.seq, p.kind",
        "DELETE FROM pages WHERE range IN (SELECT value FROM json_each(?))",
        "DELETE FROM unknown_members WHERE range IN (SELECT value FROM json_each(?))",
        "UPDATE units SET expected_pages = max(expected_pages, r.pages)
         FROM (SELECT unit, max(pages) AS pages FROM ranges WHERE id IN (SELECT value FROM json_each(?)) GROUP BY unit) r
         WHERE units.id = r.unit",
        "UPDATE ranges SET kept = 0 WHERE id IN (SELECT value FROM json_each(?))",
    ] {
        sqlx::query(statement).bind(&ranges).execute(&mut **tx).await?;
    }
    Ok(items)
}

/// Appends what is kept to its ranges, in order; the first new segment is stored at `offset`. The chains of these ranges cannot
/// be resumed after this, only begun again. Returns the number of items kept.
pub(super) async fn restore(
    tx: &mut Tx<'_>,
    restored: &[(RangeId, Restored)],
    mut offset: u64,
) -> Result<Items, CaptureError> {
    let mut rows = Vec::with_capacity(restored.len());
    for of_range in restored.chunk_by(|one, next| one.0 == next.0) {
        let range = of_range[0].0;
        let first: i64 = sqlx::query_scalar(
            "UPDATE ranges SET pages = pages + ?1, kept = kept + ?3, next_token = NULL, token_at = NULL,
                 state = iif(state = 'not_found', 'done', state) WHERE id = ?2 RETURNING pages - ?1",
        )
        .bind(of_range.len() as i64)
        .bind(range)
        .bind(of_range.iter().map(|(_, restored)| restored.items()).sum::<u64>() as i64)
        .fetch_one(&mut **tx)
        .await?;
        for ((_, restored), seq) in of_range.iter().zip(first..) {
            let page = match restored {
                Restored::Page(page) => *page,
                Restored::Items(kind, segment) => {
                    let page = segment.at(offset, *kind);
                    offset += page.length;
                    page
                }
            };
            rows.push(Row { range, seq, page });
        }
    }
    insert_pages(tx, rows).await
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::civil::date;
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Connection};

    use super::*;
    use crate::capture::testing::{list, planned, position};
    use crate::capture::{Change, MessagesPage, Segment, Then};
    use crate::days::DateRange;

    #[tokio::test]
    async fn wrong_counts_of_items_do_not_keep_a_range_from_being_fetched_again() {
        let (_directory, location, writer) =
            planned(&[DateRange::new(date(2026, 3, 1), date(2026, 3, 28))]).await;
        writer.commit(list(1, &["a"])).await.unwrap();
        let range = RangeId(1);
        for (seq, then) in [(0, Then::Unfinished), (1, Then::End)] {
            let page =
                MessagesPage::new(position(range, seq), then, [Segment::of_items(&["{}"], 1), None, None]);
            writer.commit(Change::MessagesPage(page)).await.unwrap();
        }
        let mut connection = SqliteConnectOptions::new().filename(location.path()).connect().await.unwrap();
        sqlx::query("UPDATE pages SET items = ?").bind(i64::MAX).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let mut reader = location.open_reader().await.unwrap();
        assert_eq!(reader.counts().await.unwrap().items(), [i64::MAX as u64, 0, 0]);
        reader.close().await;
        let ranges = vec![range];
        writer.commit(Change::RefetchDamaged { ranges, found_at: Timestamp::UNIX_EPOCH }).await.unwrap();
        writer.close().await;
    }
}
