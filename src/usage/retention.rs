//! Deletes rows of detail that are older than their retention. Rollups stay for ever.
//! Must not hold the writer for long: many small statements, each a transaction of its own.

use std::time::Duration;

use crate::{
    domain::time::Timestamp,
    store::{Store, StoreError, usage_retention},
};

/// Rows per statement.
const CHUNK: u64 = 5_000;

/// Deletes the rows of detail that are more than `days` old at `now`; says how many.
///
/// # Errors
/// The store's own; what was deleted before stays deleted.
pub async fn prune(store: &Store, now: Timestamp, days: u32) -> Result<u64, StoreError> {
    let before = now.minus(Duration::from_hours(24 * u64::from(days)));
    let mut deleted = 0;
    loop {
        let chunk = usage_retention::delete_before(store.write(), before, CHUNK).await?;
        deleted += chunk;
        if chunk < CHUNK {
            return Ok(deleted);
        }
    }
}
