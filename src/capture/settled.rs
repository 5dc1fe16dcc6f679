//! When a unit is settled (done or failed), and how that is counted.

use std::ops::Sub;

use super::statements::json;
use super::writer::Effect;
use super::{CaptureError, RangeId, Tx, UnitId};

/// How many sessions and units are settled, or by how much that changed: negative if something settled is pending again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    /// Sessions all of whose units are done.
    pub sessions_done: i64,
    pub units_done: i64,
    pub units_failed: i64,
}

impl Sub for Settled {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            sessions_done: self.sessions_done - before.sessions_done,
            units_done: self.units_done - before.units_done,
            units_failed: self.units_failed - before.units_failed,
        }
    }
}

impl Settled {
    /// Counts for these sessions.
    pub(super) async fn of(tx: &mut Tx<'_>, sessions: &[i64]) -> Result<Self, CaptureError> {
        if sessions.is_empty() {
            return Ok(Self::default());
        }
        let (sessions_done, units_done, units_failed) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM sessions s WHERE s.id IN (SELECT value FROM json_each(?1)) AND NOT EXISTS
                         (SELECT 1 FROM units u WHERE u.session = s.id AND u.state IN ('pending', 'failed'))),
                    count(*) FILTER (WHERE u.state IN ('done', 'not_found')), count(*) FILTER (WHERE u.state = 'failed')
             FROM units u WHERE u.session IN (SELECT value FROM json_each(?1))",
        )
        .bind(json(&sessions))
        .fetch_one(&mut **tx)
        .await?;
        Ok(Self { sessions_done, units_done, units_failed })
    }
}

/// Updates the states of the units of these ranges. A unit is pending while any of its ranges is, or while pages set aside from
/// them are still to be compared; else failed if any range is, else not found if all are, else done. They must have been
/// pending until now, as whatever is settled counts as newly settled.
pub(super) async fn update_units(
    tx: &mut Tx<'_>,
    commit: i64,
    ranges: &[RangeId],
) -> Result<Effect, CaptureError> {
    let units: Vec<(UnitId, i64, String, bool)> = sqlx::query_as(
        "UPDATE units SET last_commit = ?2, state = (
             SELECT CASE WHEN sum(r.state = 'pending') > 0
                             OR EXISTS (SELECT 1 FROM set_aside WHERE unit = units.id) THEN 'pending'
                         WHEN sum(r.state = 'failed') > 0 THEN 'failed'
                         WHEN sum(r.state = 'done') = 0 THEN 'not_found'
                         ELSE 'done' END
             FROM ranges r WHERE r.unit = units.id)
         WHERE id IN (SELECT unit FROM ranges WHERE id IN (SELECT value FROM json_each(?1)))
         RETURNING id, session, state, NOT EXISTS (SELECT 1 FROM ranges WHERE unit = units.id AND state = 'pending')",
    )
    .bind(json(&ranges))
    .bind(commit)
    .fetch_all(&mut **tx)
    .await?;
    let mut effect = Effect::default();
    let mut sessions = Vec::new();
    for (unit, session, state, is_fetched) in units {
        match state.as_str() {
            "pending" if is_fetched => effect.to_compare.push(unit),
            "pending" => {}
            "failed" => effect.settled.units_failed += 1,
            "done" | "not_found" => {
                effect.settled.units_done += 1;
                sessions.push(session);
            }
            other => return Err(CaptureError::Damaged(format!("a unit that is {other}"))),
        }
    }
    effect.settled.sessions_done = Settled::of(tx, &sessions).await?.sessions_done;
    Ok(effect)
}
