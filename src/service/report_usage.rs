//! `ReportUsage`: takes what became of requests, counts each report once, and says which were not taken and why.
//!
//! Names of counted reports, rows of detail and all sums are written in one transaction: a repeat of a call, after
//! whatever was lost on the way, counts what the first did not. Reports are no change to a key, so they leave no audit
//! event, and they do not touch when a key was last used.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{Call, Context, ServiceError};
use crate::{
    domain::{
        ids::{KeyId, OrganizationId, RecordId},
        permission::Reach,
        time::Timestamp,
        usage_report::{Rejection, UsageReport, UsageReported, UsageReports},
    },
    random,
    store::{Database, api_keys, commit, organizations, usage, usage_reports},
};

/// A report that will be counted.
type Counted = (RecordId, OrganizationId, UsageReport);

/// Counts reports; those that cannot be taken do not hinder the others.
///
/// # Errors
/// The store's own. The call can be repeated as it is.
pub async fn report_usage(
    context: &Arc<Context>,
    call: &Call,
    reports: UsageReports,
) -> Result<UsageReported, ServiceError> {
    let now = context.clock.now();
    let (reach, worker) = (call.caller.reach(), context.clone());
    context.run_to_end(async move { count(&worker, reach, reports, now).await }).await
}

async fn count(
    context: &Context,
    reach: Reach,
    reports: UsageReports,
    now: Timestamp,
) -> Result<UsageReported, ServiceError> {
    let UsageReports { good, mut rejected } = reports;
    let mut reported = UsageReported::default();
    if !good.is_empty() {
        let transaction = context.store.begin().await?;
        let owners = owners(&transaction, reach, &good).await?;
        let (known, unknown): (Vec<_>, Vec<_>) =
            good.into_iter().partition(|(_, report)| owners.contains_key(&report.key_id));
        rejected.extend(unknown.into_iter().map(|(at, _)| (at, Rejection::KeyNotFound)));
        // A report may be repeated for as long as its own time or its arrival allows, whichever is later.
        let noted: Vec<_> =
            known.iter().map(|(_, report)| (report.key_id, report.request_id.as_str(), report.time.max(now))).collect();
        let mut new = usage_reports::insert_new(&transaction, &noted).await?;
        let counted = only_new(&known, &owners, &mut new, now);
        usage::insert_reports(&transaction, &counted).await?;
        usage::add_reports(&transaction, &counted).await?;
        commit(transaction).await?;
        reported.accepted = number(counted.len());
        reported.duplicates = number(known.len() - counted.len());
    }
    rejected.sort_unstable_by_key(|(at, _)| *at);
    reported.rejected = rejected;
    Ok(reported)
}

/// The organizations of the keys that exist for the caller, none of which is deleted before the transaction ends.
/// Organizations are locked in the order of their ids, as everywhere.
async fn owners(
    transaction: &impl Database,
    reach: Reach,
    reports: &[(i32, UsageReport)],
) -> Result<BTreeMap<KeyId, OrganizationId>, ServiceError> {
    let keys: BTreeSet<KeyId> = reports.iter().map(|(_, report)| report.key_id).collect();
    let keys: Vec<KeyId> = keys.into_iter().collect();
    let mut owners = api_keys::find_owners(transaction, reach, &keys).await?;
    let organizations: BTreeSet<OrganizationId> = owners.values().copied().collect();
    for organization in organizations {
        if organizations::find_shared(transaction, reach, organization).await?.is_none() {
            owners.retain(|_, owner| *owner != organization);
        }
    }
    Ok(owners)
}

/// The first of each report that is not counted yet.
fn only_new(
    reports: &[(i32, UsageReport)],
    owners: &BTreeMap<KeyId, OrganizationId>,
    new: &mut HashSet<(String, String)>,
    now: Timestamp,
) -> Vec<Counted> {
    reports
        .iter()
        .filter(|(_, report)| new.remove(&(report.key_id.to_string(), report.request_id.clone())))
        .filter_map(|(_, report)| {
            let owner = owners.get(&report.key_id)?;
            Some((RecordId::new(now, random::bytes()), *owner, report.clone()))
        })
        .collect()
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
