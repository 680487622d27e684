//! The job `retention`: deletes what nobody needs any more, each kind of row after its own time.
//! Harmless if two processes run it at once: what one has deleted the other does not find.

use std::time::Duration;

use crate::{
    domain::{time::Timestamp, usage_report::REPORT_KEPT},
    store::{Store, StoreError, key_changes, replicas, usage_reports},
    usage,
};

/// How long changes are kept for followers of the feed that were away; one that was away for longer starts anew.
const KEEP_CHANGES: Duration = Duration::from_hours(24);

/// Deletes what is too old at `now`; gives the number of rows.
///
/// # Errors
/// The store's own.
pub async fn run(store: &Store, now: Timestamp, usage_retention_days: u32) -> Result<u64, StoreError> {
    let changes = key_changes::delete_before(store.write(), now.minus(KEEP_CHANGES)).await?;
    let gone = replicas::delete_gone(store.write()).await?;
    let details = usage::retention::prune(store, now, usage_retention_days).await?;
    let reports = usage_reports::prune(store.write(), now.minus(REPORT_KEPT)).await?;
    Ok(changes + gone + details + reports)
}
