//! Writes a batch to the database: the number of its segment, rows of detail, rollups, and what keys were used for,
//! all in one transaction. Usage of organizations that were deleted meanwhile is left out, so that a deletion stands.
//! Must not be split over transactions. Invariant: a segment counts once, however often it is tried.

use super::Batch;
use crate::{
    domain::ids::RecordId,
    random,
    store::{Store, StoreError, api_keys, commit, organizations, usage, usage_spools},
};

/// Writes a segment's batch, unless it has been written already; says whether this call wrote it.
///
/// # Errors
/// The store's own. Where the write may have happened, another try with the same number is safe.
pub async fn apply(store: &Store, spool: RecordId, number: i64, batch: &Batch) -> Result<bool, StoreError> {
    let transaction = store.begin_usage().await?;
    if !usage_spools::advance(&transaction, spool, number, batch.newest()).await? {
        return Ok(false);
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
    Ok(true)
}
