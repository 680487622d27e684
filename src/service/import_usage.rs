//! A batch of `keystead import`: requests of the past come in as requests that were reported, rows of detail and all
//! sums, in one transaction with the position.
//!
//! Unlike reports they may be of any time before now, and nobody notes which they were: the position does. They touch
//! neither when a key was last used nor its count of requests, which come over with the key itself. A server deletes
//! rows of detail that are older than its retention, here as everywhere; sums stay.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    Context, ServiceError,
    import_rows::{RowBatch, RowResult, advance, lock},
};
use crate::{
    domain::{
        ids::{OrganizationId, RecordId},
        import::Refusal,
        time::Timestamp,
        usage_report::UsageReport,
    },
    random,
    store::{Database, commit, imported_counts, imported_organizations, imported_usage, organizations, usage},
};

/// A request of the past.
#[derive(Debug, Clone)]
pub struct UsageItem {
    /// Whose key it was made with.
    pub organization_id: OrganizationId,
    pub report: UsageReport,
}

/// A request that is counted.
type Counted = (RecordId, OrganizationId, UsageReport);

/// Brings a batch in; gives a result for each item, in order. With `spends_quota` requests of this month are taken from
/// the monthly quotas of their organizations, where these have one.
///
/// # Errors
/// `FailedPrecondition` where another run has gone on with the import; the store's own.
pub async fn import_usage(
    context: &Arc<Context>,
    batch: RowBatch<UsageItem>,
    spends_quota: bool,
) -> Result<Vec<RowResult>, ServiceError> {
    let (own, now) = (context.clone(), context.clock.now());
    context.run_to_end(async move { bring(&own, batch, spends_quota, now).await }).await
}

async fn bring(
    context: &Context,
    mut batch: RowBatch<UsageItem>,
    spends_quota: bool,
    now: Timestamp,
) -> Result<Vec<RowResult>, ServiceError> {
    let transaction = context.store.begin_usage().await?;
    lock(&transaction, &batch).await?;
    let wanted: BTreeSet<OrganizationId> = batch.items.iter().map(|item| item.organization_id).collect();
    let wanted: Vec<OrganizationId> = wanted.into_iter().collect();
    let existing = organizations::list_existing_shared(&transaction, &wanted).await?;
    let (counted, results) = split(std::mem::take(&mut batch.items), &existing);
    imported_usage::insert_details(&transaction, &counted).await?;
    usage::add_reports(&transaction, &counted).await?;
    if spends_quota {
        let spent = spent_in(&transaction, now.start_of_month(), &counted).await?;
        imported_counts::add_to_quotas(&transaction, now.start_of_month(), &spent).await?;
    }
    advance(&transaction, &batch, &results, now).await?;
    commit(transaction).await?;
    Ok(results)
}

/// Tells what is counted from requests whose organization, and with it their key, was deleted meanwhile.
fn split(items: Vec<UsageItem>, existing: &HashSet<OrganizationId>) -> (Vec<Counted>, Vec<RowResult>) {
    let (mut counted, mut results) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    for UsageItem { organization_id, report } in items {
        if existing.contains(&organization_id) {
            results.push(RowResult::Created);
            counted.push((RecordId::new(report.time, random::id_bytes()), organization_id, report));
        } else {
            results.push(RowResult::refused(Refusal::UnknownKey, "the key was deleted meanwhile"));
        }
    }
    (counted, results)
}

/// How many of these requests lie in the month that begins then, by organization, of those that have a quota.
async fn spent_in(
    db: &impl Database,
    month: Timestamp,
    counted: &[Counted],
) -> Result<BTreeMap<OrganizationId, i64>, ServiceError> {
    let mut spent: BTreeMap<OrganizationId, i64> = BTreeMap::new();
    for (_, organization, report) in counted {
        if report.time >= month {
            *spent.entry(*organization).or_default() += 1;
        }
    }
    let ids: Vec<OrganizationId> = spent.keys().copied().collect();
    let found = imported_organizations::list_by_ids(db, &ids).await?;
    let with_quota: HashSet<OrganizationId> =
        found.into_iter().filter(|one| one.monthly_quota > 0).map(|one| one.id).collect();
    spent.retain(|id, _| with_quota.contains(id));
    Ok(spent)
}
