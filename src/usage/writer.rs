//! Writes a batch to the database: the numbers of its segments, rows of detail, rollups, and what keys were used for,
//! all in one transaction. Usage of organizations that were deleted meanwhile is left out, so that a deletion stands.
//! Must not be split over transactions. Invariant: a segment counts once, however often it is tried.

use std::ops::RangeInclusive;

use super::Batch;
use crate::{
    domain::ids::RecordId,
    random,
    store::{Store, StoreError, api_keys, commit, organizations, usage, usage_spools, usage_spools::Advance},
};

/// Writes the batch of a run of segments, unless the first of them has been written already.
///
/// # Errors
/// The store's own. Where the write may have happened, another try is safe, also with more segments or fewer.
pub async fn apply(
    store: &Store,
    spool: RecordId,
    numbers: RangeInclusive<i64>,
    batch: &Batch,
) -> Result<Advance, StoreError> {
    let transaction = store.begin_usage().await?;
    let advance = usage_spools::advance(&transaction, spool, numbers, batch.newest()).await?;
    if advance != Advance::Now {
        return Ok(advance);
    }
    let existing = organizations::list_existing_shared(&transaction, &batch.organizations()).await?;
    let details: Vec<_> = batch
        .details()
        .iter()
        .filter(|(event, _)| event.key.is_some_and(|(_, organization)| existing.contains(&organization)))
        .map(|(event, weight)| (RecordId::new(event.time, random::bytes()), event.clone(), *weight))
        .collect();
    usage::insert_events(&transaction, &details).await?;
    let mut rollups = batch.rollups();
    rollups.retain(|(rollup, _)| rollup.key.is_none_or(|(_, organization)| existing.contains(&organization)));
    usage::add_rollups(&transaction, &rollups).await?;
    api_keys::update_used(&transaction, &batch.used()).await?;
    commit(transaction).await?;
    Ok(advance)
}
