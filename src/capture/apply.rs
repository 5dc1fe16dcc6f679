//! What each change does to the tables.

use jiff::civil::Date;

use super::set_aside::{reset_range, restore};
use super::settled::update_units;
use super::statements::{json, run_with_id};
use super::writer::{Change, Effect, Items, MessagesPage};
use super::{CaptureError, Failed, Meta, RangeId, Tx, WindowId, listed};
use crate::days::DateRange;

/// Applies one change as part of the commit of this number; its segments are stored from `offset` on. Messages pages are only
/// collected in `pages`, to be written together.
pub(super) async fn apply<'a>(
    tx: &mut Tx<'_>,
    commit: i64,
    change: &'a Change,
    offset: u64,
    pages: &mut Vec<(&'a MessagesPage, u64)>,
) -> Result<Effect, CaptureError> {
    let mut effect = Effect::default();
    match change {
        Change::Plan { windows, meta } => {
            for (index, window) in windows.iter().enumerate() {
                sqlx::query("INSERT INTO windows (idx, first_day, last_day) VALUES (?, ?, ?)")
                    .bind(index as i64)
                    .bind(window.from.to_string())
                    .bind(window.to.to_string())
                    .execute(&mut **tx)
                    .await?;
                insert_list(tx, WindowId(index as i64), *window).await?;
            }
            set_meta(tx, meta).await?;
        }
        Change::SetMeta(meta) => set_meta(tx, meta).await?,
        Change::ListPage { page, next, sessions } => {
            effect = listed::list_page(tx, page, next.as_ref(), sessions).await?;
        }
        Change::EndList { list } => {
            run_with_id(tx, "UPDATE lists SET state = 'done' WHERE id = ?", list.0).await?;
        }
        Change::CutList { list, parts } => {
            let window: WindowId = sqlx::query_scalar(
                "UPDATE lists SET state = 'cut', next_token = NULL WHERE id = ? RETURNING window",
            )
            .bind(list)
            .fetch_one(&mut **tx)
            .await?;
            for part in parts {
                insert_list(tx, window, *part).await?;
            }
        }
        Change::FailList { list, failed } => {
            let statement = "UPDATE lists SET state = 'failed', next_token = NULL, failure = ?, failed_at = ? WHERE id = ?";
            fail(tx, statement, list.0, failed).await?;
            effect.failures = 1;
        }
        Change::MessagesPage(page) => pages.push((page, offset)),
        Change::Compared { unit, as_of, restored } => {
            let one_of_its_ranges: Option<RangeId> = sqlx::query_scalar(
                "SELECT r.id FROM units u JOIN ranges r ON r.unit = u.id WHERE u.id = ?1 AND u.last_commit IS ?2
                 AND NOT EXISTS (SELECT 1 FROM ranges WHERE unit = ?1 AND state = 'pending') LIMIT 1",
            )
            .bind(unit)
            .bind(as_of)
            .fetch_optional(&mut **tx)
            .await?;
            if let Some(range) = one_of_its_ranges {
                let items = restore(tx, restored, offset).await?;
                run_with_id(tx, "DELETE FROM set_aside WHERE unit = ?", unit.0).await?;
                effect = Effect { items, ..update_units(tx, commit, &[range]).await? };
            }
        }
        Change::RangeNotFound { range } => {
            run_with_id(tx, "UPDATE ranges SET state = 'not_found' WHERE id = ?", range.0).await?;
            effect = update_units(tx, commit, &[*range]).await?;
        }
        Change::FailRange { range, failed } => {
            let statement = "UPDATE ranges SET state = 'failed', failure = ?, failed_at = ? WHERE id = ?";
            fail(tx, statement, range.0, failed).await?;
            effect = Effect { failures: 1, ..update_units(tx, commit, &[*range]).await? };
        }
        Change::CutRange { range, oldest, failed } => {
            effect.items = cut_range(tx, *range, *oldest, failed).await?;
            effect.failures = 1;
        }
        Change::SplitRange { range, parts, expected_pages } => {
            effect = split_range(tx, *range, parts, *expected_pages).await?;
        }
        Change::ProbeDays { window, days, sessions } => {
            effect = listed::probe_days(tx, *window, *days, *sessions).await?;
        }
        Change::RefetchDamaged { ranges, found_at } => {
            set_meta(tx, &[(Meta::DamagedAt, found_at.to_string())]).await?;
            let statements = [
                "UPDATE ranges SET state = 'pending', failure = NULL, failed_at = NULL WHERE id = ?",
                "UPDATE units SET state = 'pending' WHERE id = (SELECT unit FROM ranges WHERE id = ?)",
            ];
            for range in ranges {
                effect.items = effect.items + reset_range(tx, *range).await?;
                for statement in statements {
                    run_with_id(tx, statement, range.0).await?;
                }
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

/// Turns the days of a range before `oldest`, which are out of reach, into a failed range of their own.
async fn cut_range(
    tx: &mut Tx<'_>,
    range: RangeId,
    oldest: Date,
    failed: &Failed,
) -> Result<Items, CaptureError> {
    let oldest = oldest.to_string();
    sqlx::query(
        "INSERT INTO ranges (unit, window, first_day, last_day, state, failure, failed_at)
         SELECT unit, window, first_day, date(?, '-1 day'), 'failed', ?, ? FROM ranges WHERE id = ?",
    )
    .bind(&oldest)
    .bind(json(&failed.note))
    .bind(failed.at.to_string())
    .bind(range)
    .execute(&mut **tx)
    .await?;
    let items = reset_range(tx, range).await?;
    sqlx::query("UPDATE ranges SET first_day = ? WHERE id = ?")
        .bind(&oldest)
        .bind(range)
        .execute(&mut **tx)
        .await?;
    Ok(items)
}

/// Splits a range into parts, the first of which keeps its number.
async fn split_range(
    tx: &mut Tx<'_>,
    range: RangeId,
    parts: &[DateRange],
    expected_pages: i64,
) -> Result<Effect, CaptureError> {
    let mut effect = Effect::default();
    let (first, others) = parts.split_first().expect("a split has parts");
    effect.items = reset_range(tx, range).await?;
    sqlx::query(
        "UPDATE units SET expected_pages = max(expected_pages, ?)
         WHERE id = (SELECT unit FROM ranges WHERE id = ?)",
    )
    .bind(expected_pages)
    .bind(range)
    .execute(&mut **tx)
    .await?;
    for part in others {
        let id = sqlx::query_scalar(
            "INSERT INTO ranges (unit, window, first_day, last_day)
             SELECT unit, window, ?, ? FROM ranges WHERE id = ? RETURNING id",
        )
        .bind(part.from.to_string())
        .bind(part.to.to_string())
        .bind(range)
        .fetch_one(&mut **tx)
        .await?;
        effect.new_ranges.push(id);
    }
    sqlx::query("UPDATE ranges SET first_day = ?, last_day = ? WHERE id = ?")
        .bind(first.from.to_string())
        .bind(first.to.to_string())
        .bind(range)
        .execute(&mut **tx)
        .await?;
    Ok(effect)
}

async fn fail(
    tx: &mut Tx<'_>,
    statement: &'static str,
    id: i64,
    Failed { note, at }: &Failed,
) -> Result<(), CaptureError> {
    sqlx::query(statement).bind(json(note)).bind(at.to_string()).bind(id).execute(&mut **tx).await?;
    Ok(())
}

async fn set_meta(tx: &mut Tx<'_>, meta: &[(Meta, String)]) -> Result<(), CaptureError> {
    for (meta, value) in meta {
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(meta.key())
            .bind(value)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

async fn insert_list(tx: &mut Tx<'_>, window: WindowId, days: DateRange) -> Result<(), CaptureError> {
    sqlx::query("INSERT INTO lists (window, first_day, last_day) VALUES (?, ?, ?)")
        .bind(window)
        .bind(days.from.to_string())
        .bind(days.to.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
