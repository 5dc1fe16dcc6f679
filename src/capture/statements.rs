//! What statements are given.

use serde::Serialize;

use super::ids::RowId;
use super::{CaptureError, Tx};

/// Rows as one argument of a statement, which takes them apart again: the same statement for however many there are.
pub(super) fn json(rows: &impl Serialize) -> String {
    serde_json::to_string(rows).expect("rows are texts and numbers")
}

/// Runs statements whose only argument is this number.
pub(super) async fn run_with_id(
    tx: &mut Tx<'_>,
    statements: &[&'static str],
    id: impl RowId,
) -> Result<(), CaptureError> {
    for statement in statements {
        sqlx::query(*statement).bind(id).execute(&mut **tx).await?;
    }
    Ok(())
}
