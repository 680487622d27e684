//! The job `retention`: deletes what nobody needs any more, each kind of row after its own time.
//! Harmless if two processes run it at once: what one has deleted the other does not find.

use std::time::Duration;

use crate::{
    domain::time::Timestamp,
    store::{Store, StoreError, key_changes},
};

/// How long changes are kept for followers of the feed that were away; one that was away for longer starts anew.
const KEEP_CHANGES: Duration = Duration::from_hours(24);

/// Deletes what is too old at `now`; gives the number of rows.
///
/// # Errors
/// The store's own.
pub async fn run(store: &Store, now: Timestamp) -> Result<u64, StoreError> {
    key_changes::delete_before(store.write(), now.minus(KEEP_CHANGES)).await
}
