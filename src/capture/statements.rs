//! Passing arguments to SQL statements.

use serde::Serialize;

use super::{CaptureError, Tx};

/// Encodes rows as one JSON argument, which the statement unpacks: the same statement serves any number of rows.
pub(super) fn json(rows: &impl Serialize) -> String {
    serde_json::to_string(rows).expect("rows are texts and numbers")
}

/// Runs a statement whose only argument is this id.
pub(super) async fn run_with_id(
    tx: &mut Tx<'_>,
    statement: &'static str,
    id: i64,
) -> Result<(), CaptureError> {
    sqlx::query(statement).bind(id).execute(&mut **tx).await?;
    Ok(())
}
