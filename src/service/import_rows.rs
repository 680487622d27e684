//! What batches of an import have in common that hold no keys: organizations, usage, and what limits have counted.
//! A batch is one transaction: its rows, and how far the import has come.
//! Invariant: a batch is written only where the import still stands at the position that the batch was read behind;
//! so whatever answer was lost, and however many run the same import, each row is counted once.

use super::{Resource, ServiceError};
use crate::{
    domain::{
        ids::RecordId,
        import::{Refusal, Refused},
        time::Timestamp,
    },
    store::{
        Database, imported_usage,
        imports::{self, Advance},
    },
};

/// Some rows of an import, in the order of the source.
#[derive(Debug, Clone)]
pub struct RowBatch<T> {
    pub import_id: RecordId,
    /// The position of the import behind which these rows were read; empty before the first.
    pub after: String,
    /// The position once they are in: the id of the last row, refused ones included.
    pub position: String,
    /// Rows up to there that were refused before they became items.
    pub refused: i64,
    pub items: Vec<T>,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowResult {
    /// It came over; in a dry run it would.
    Created,
    /// All of it is here already.
    Existing,
    /// It means nothing any more.
    Skipped,
    Refused(Refused),
}

impl RowResult {
    /// A refusal in these words.
    pub(super) fn refused(reason: Refusal, message: impl Into<String>) -> Self {
        Self::Refused(Refused::new(reason, message))
    }
}

/// Locks the import's position, and refuses where it is not the one that the batch goes on from.
pub(super) async fn lock<T>(transaction: &impl Database, batch: &RowBatch<T>) -> Result<(), ServiceError> {
    lock_at(transaction, batch.import_id, &batch.after).await
}

/// The same for an import by its id.
pub(super) async fn lock_at(transaction: &impl Database, import_id: RecordId, after: &str) -> Result<(), ServiceError> {
    let stands = imported_usage::find_position_locked(transaction, import_id).await?;
    if stands.as_deref() == Some(after) {
        return Ok(());
    }
    Err(ServiceError::FailedPrecondition {
        reason: "IMPORT_MOVED_ON",
        resource: Resource { kind: "import", name: import_id.to_string() },
        description: "another run has gone on with this table meanwhile; what it brought in stands".to_owned(),
    })
}

/// Moves the import on, in the transaction of the batch.
pub(super) async fn advance<T>(
    transaction: &impl Database,
    batch: &RowBatch<T>,
    results: &[RowResult],
    now: Timestamp,
) -> Result<(), ServiceError> {
    let mut advance = Advance { position: Some(batch.position.clone()), refused: batch.refused, ..Advance::default() };
    for result in results {
        match result {
            RowResult::Created => advance.created += 1,
            RowResult::Existing | RowResult::Skipped => advance.existing += 1,
            RowResult::Refused(_) => advance.refused += 1,
        }
    }
    imports::advance(transaction, batch.import_id, &advance, now).await?;
    Ok(())
}
