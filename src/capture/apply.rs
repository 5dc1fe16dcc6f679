//! What each change does to the tables.

use jiff::Timestamp;
use jiff::civil::Date;

use super::writer::{Change, Effect};
use super::{CaptureError, FailureNote, Tx, bulk, listed};

/// Writes one change, as a part of the commit of this number; its segments stand from `offset` on. Pages of messages are
/// written together with others of their group.
pub(super) async fn apply(
    tx: &mut Tx<'_>,
    number: i64,
    change: &Change,
    offset: u64,
) -> Result<Effect, CaptureError> {
    let mut effect = Effect::default();
    match change {
        Change::Plan { windows, meta } => {
            for (index, (from, to)) in windows.iter().enumerate() {
                sqlx::query("INSERT INTO windows (idx, first_day, last_day) VALUES (?, ?, ?)")
                    .bind(index as i64)
                    .bind(from.to_string())
                    .bind(to.to_string())
                    .execute(&mut **tx)
                    .await?;
                insert_list(tx, index as i64, (*from, *to)).await?;
            }
            set_meta(tx, meta).await?;
        }
        Change::SetMeta(meta) => set_meta(tx, meta).await?,
        Change::ListPage { page, sessions } => effect = listed::list_page(tx, page, sessions).await?,
        Change::CutList { list, parts } => {
            let window: i64 = sqlx::query_scalar(
                "UPDATE lists SET state = 'cut', next_token = NULL WHERE id = ? RETURNING window",
            )
            .bind(list)
            .fetch_one(&mut **tx)
            .await?;
            for part in parts {
                insert_list(tx, window, *part).await?;
            }
        }
        Change::FailList { list, failure, at } => {
            let statement = "UPDATE lists SET state = 'failed', failure = ?, failed_at = ? WHERE id = ?";
            fail(tx, statement, *list, failure, *at).await?;
        }
        Change::MessagesPage { .. } => unreachable!("pages of a group are written together"),
        Change::RangeNotFound { range } => {
            run_with_id(tx, &["UPDATE ranges SET state = 'not_found' WHERE id = ?"], *range).await?;
            effect = bulk::settle(tx, number, &[*range]).await?;
        }
        Change::FailRange { range, failure, at } => {
            let statement = "UPDATE ranges SET state = 'failed', failure = ?, failed_at = ? WHERE id = ?";
            fail(tx, statement, *range, failure, *at).await?;
            effect = bulk::settle(tx, number, &[*range]).await?;
        }
        Change::CutRange { range, reachable_from, kept, failure, at } => {
            let last_lost =
                reachable_from.yesterday().map_err(|error| CaptureError::Damaged(error.to_string()))?;
            let lost: Option<i64> = sqlx::query_scalar(
                "INSERT INTO ranges (unit, window, first_day, last_day, state, pages, failure, failed_at)
                 SELECT unit, window, first_day, ?, 'failed', ?, ?, ? FROM ranges WHERE id = ? RETURNING id",
            )
            .bind(last_lost.to_string())
            .bind(kept.len() as i64)
            .bind(note(failure))
            .bind(at.to_string())
            .bind(range)
            .fetch_optional(&mut **tx)
            .await?;
            // It may have been replaced meanwhile.
            let Some(lost) = lost else { return Ok(effect) };
            let mut offset = offset;
            let rows = kept.iter().zip(0..).map(|((kind, segment), seq)| {
                let row = bulk::Row { range: lost, seq, kind: *kind, segment, offset };
                offset += segment.data.len() as u64;
                row
            });
            bulk::insert_pages(tx, rows.collect()).await?;
            sqlx::query("UPDATE ranges SET first_day = ? WHERE id = ?")
                .bind(reachable_from.to_string())
                .bind(range)
                .execute(&mut **tx)
                .await?;
            drop_pages(tx, *range).await?;
        }
        Change::SplitRange { range, parts, expected_pages } => {
            let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM ranges WHERE id = ?)")
                .bind(range)
                .fetch_one(&mut **tx)
                .await?;
            if !there {
                // It has been replaced meanwhile.
                return Ok(effect);
            }
            drop_pages(tx, *range).await?;
            sqlx::query(
                "UPDATE units SET expected_pages = max(expected_pages, ?)
                 WHERE id = (SELECT unit FROM ranges WHERE id = ?)",
            )
            .bind(expected_pages)
            .bind(range)
            .execute(&mut **tx)
            .await?;
            let mut parts = parts.iter();
            let Some(first) = parts.next() else { return Ok(effect) };
            for (from, to) in parts {
                let id = sqlx::query_scalar(
                    "INSERT INTO ranges (unit, window, first_day, last_day)
                     SELECT unit, window, ?, ? FROM ranges WHERE id = ? RETURNING id",
                )
                .bind(from.to_string())
                .bind(to.to_string())
                .bind(range)
                .fetch_one(&mut **tx)
                .await?;
                effect.new_ranges.push(id);
            }
            sqlx::query("UPDATE ranges SET first_day = ?, last_day = ? WHERE id = ?")
                .bind(first.0.to_string())
                .bind(first.1.to_string())
                .bind(range)
                .execute(&mut **tx)
                .await?;
        }
        Change::ProbeDays { window, from, to } => {
            effect.new_units = listed::probe_days(tx, *window, *from, *to).await?;
        }
        Change::RefetchRanges(ranges) => {
            let statements = [
                "UPDATE ranges SET state = 'pending', failure = NULL, failed_at = NULL WHERE id = ?",
                "UPDATE units SET state = 'pending' WHERE id = (SELECT unit FROM ranges WHERE id = ?)",
            ];
            for range in ranges {
                drop_pages(tx, *range).await?;
                run_with_id(tx, &statements, *range).await?;
            }
        }
        Change::RetryFailed => {
            for statement in [
                "UPDATE units SET state = 'pending' WHERE id IN (SELECT unit FROM ranges WHERE state = 'failed')",
                "UPDATE ranges SET state = 'pending', failure = NULL, failed_at = NULL WHERE state = 'failed'",
                "UPDATE lists SET state = 'pending', failure = NULL, failed_at = NULL WHERE state = 'failed'",
            ] {
                sqlx::query(statement).execute(&mut **tx).await?;
            }
        }
    }
    Ok(effect)
}

/// Drops what was received of a range, which is to be fetched again. That there was something is remembered.
async fn drop_pages(tx: &mut Tx<'_>, range: i64) -> Result<(), CaptureError> {
    let statements = [
        "UPDATE units SET expected_pages = max(expected_pages, r.pages)
         FROM ranges r WHERE r.id = ? AND units.id = r.unit",
        "DELETE FROM pages WHERE range = ?",
        "DELETE FROM unknown_members WHERE range = ?",
        "UPDATE ranges SET pages = 0, repeats = 0, next_token = NULL, token_at = NULL WHERE id = ?",
    ];
    run_with_id(tx, &statements, range).await
}

pub(super) async fn run_with_id(
    tx: &mut Tx<'_>,
    statements: &[&'static str],
    id: i64,
) -> Result<(), CaptureError> {
    for statement in statements {
        sqlx::query(*statement).bind(id).execute(&mut **tx).await?;
    }
    Ok(())
}

fn note(failure: &FailureNote) -> String {
    serde_json::to_string(failure).expect("a note is plain text and numbers")
}

async fn fail(
    tx: &mut Tx<'_>,
    statement: &'static str,
    id: i64,
    failure: &FailureNote,
    at: Timestamp,
) -> Result<(), CaptureError> {
    sqlx::query(statement).bind(note(failure)).bind(at.to_string()).bind(id).execute(&mut **tx).await?;
    Ok(())
}

async fn set_meta(tx: &mut Tx<'_>, meta: &[(&'static str, String)]) -> Result<(), CaptureError> {
    for (key, value) in meta {
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(key)
            .bind(value)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

async fn insert_list(tx: &mut Tx<'_>, window: i64, (from, to): (Date, Date)) -> Result<(), CaptureError> {
    sqlx::query("INSERT INTO lists (window, first_day, last_day) VALUES (?, ?, ?)")
        .bind(window)
        .bind(from.to_string())
        .bind(to.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
