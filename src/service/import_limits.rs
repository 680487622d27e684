//! A batch of `keystead import`: what limits of another system have counted goes on counting here.
//!
//! A source says how many requests it counted and between which moments, not when each came. They are charged as though
//! all had come at the latest moment at which they can have: the end of their window, or now where that has not ended.
//! A charge weighs in fully until its fixed window ends, and less and less in the next one (`SlidingWindow`); so the
//! later it is placed, the more it weighs from then on. Limits thus stand at least as high as if Keystead had counted
//! those requests itself, and let through no more than they would have. What ended a whole window ago is in no sliding
//! window any more and is passed over. What Keystead has counted itself stays, and what comes over is added.
//!
//! Where replicas share Redis, its counters are charged first: a batch that is then not committed is charged there once
//! more, on the safe side. A server on SQLite counts in memory and writes its own counts over these: it must not run.

mod places;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use self::places::{Counter, Owners, latest, span, window_of};
use super::{
    Context, ServiceError,
    import_rows::{RowBatch, RowResult, advance, lock},
};
use crate::{
    domain::{
        ids::{KeyId, OrganizationId, RecordId},
        limits::{RateLimit, SlidingWindow},
        time::Timestamp,
    },
    limits::redis::Asked,
    limits::{RedisCounters, SharedLimits},
    store::{
        Database, commit,
        imported_counts::{self, SourceCount},
        rate_limits,
    },
};

/// Organizations whose counters one transaction locks at the most: each lock takes room in PostgreSQL's shared memory.
const ORGANIZATIONS_PER_TRANSACTION: usize = 256;
/// How long an answer of Redis may take.
const REDIS_BUDGET: Duration = Duration::from_secs(1);

/// A window of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowItem {
    /// The id of its row in the source.
    pub source_id: String,
    pub owner: WindowOwner,
    pub counts: WindowCounts,
    /// When it begins; `None`: a window's length before its end.
    pub start: Option<Timestamp>,
    /// The first moment that is no longer in it; `None`: a window's length after its start. One of the two is known.
    pub end: Option<Timestamp>,
    /// At most 10^12.
    pub count: i64,
}

/// Whose requests a window counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowOwner {
    Key(KeyId),
    Organization(OrganizationId),
}

/// For what a window counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowCounts {
    /// For the limit of this name.
    Limit(String),
    /// For the monthly quota.
    Quota,
}

/// Brings a batch in; gives a result for each item, in order. Where the context's limits are shared in Redis, they are
/// charged there too.
///
/// # Errors
/// `FailedPrecondition` where another run has gone on with the import; `Unavailable` where Redis does not count; the
/// store's own. The batch can be sent again as it is.
pub async fn import_limits(
    context: &Arc<Context>,
    batch: RowBatch<WindowItem>,
) -> Result<Vec<RowResult>, ServiceError> {
    let now = context.clock.now();
    let owners = Owners::find(context.store.control(), &batch.items).await?;
    let mut results = Vec::with_capacity(batch.items.len());
    let mut by_organization: BTreeMap<OrganizationId, Vec<Placed>> = BTreeMap::new();
    for (at, item) in batch.items.iter().enumerate() {
        match owners.place(item, now) {
            Ok((organization, counter)) => {
                results.push(if item.count > 0 { RowResult::Created } else { RowResult::Existing });
                by_organization.entry(organization).or_default().push(Placed { at, counter });
            }
            Err(result) => results.push(result),
        }
    }
    let redis = context.limits.shared().and_then(SharedLimits::redis);
    let redis = redis.map(|redis| redis.clone().with_budget(REDIS_BUDGET));
    if let Some(redis) = &redis {
        // It connects where it has not yet.
        redis.probe().await.map_err(|error| redis_away(&error))?;
    }
    let (own, work) = (context.clone(), Work { redis, batch, now });
    context.run_to_end(async move { work.bring(&own, by_organization, results).await }).await
}

struct Work {
    redis: Option<RedisCounters>,
    batch: RowBatch<WindowItem>,
    now: Timestamp,
}

/// An item by its place in the batch, and the counter that it belongs to.
struct Placed {
    at: usize,
    counter: Counter,
}

/// A limit's counter, and what is added to the window that begins then.
struct Charge {
    organization: OrganizationId,
    subject: u128,
    limit: RateLimit,
    start: Timestamp,
    added: i64,
}

impl Work {
    /// Each group of organizations is a transaction, the last one moves the position: what is added is noted with it,
    /// so that a batch that comes once more adds nothing.
    async fn bring(
        &self,
        context: &Context,
        by_organization: BTreeMap<OrganizationId, Vec<Placed>>,
        mut results: Vec<RowResult>,
    ) -> Result<Vec<RowResult>, ServiceError> {
        let organizations: Vec<(OrganizationId, Vec<Placed>)> = by_organization.into_iter().collect();
        let (first, last) = organizations.split_at(last_group(organizations.len()));
        for group in first.chunks(ORGANIZATIONS_PER_TRANSACTION) {
            let transaction = context.store.begin().await?;
            lock(&transaction, &self.batch).await?;
            self.add(&transaction, group, &mut results).await?;
            commit(transaction).await?;
        }
        let transaction = context.store.begin().await?;
        lock(&transaction, &self.batch).await?;
        self.add(&transaction, last, &mut results).await?;
        advance(&transaction, &self.batch, &results, self.now).await?;
        commit(transaction).await?;
        Ok(results)
    }

    /// Adds what is new of the windows of some organizations, in ascending order of those.
    async fn add(
        &self,
        transaction: &impl Database,
        group: &[(OrganizationId, Vec<Placed>)],
        results: &mut [RowResult],
    ) -> Result<(), ServiceError> {
        let (mut counts, mut charges, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (organization, windows) in group {
            // Replicas that count in the table read, add and write under this lock; and count by its clock.
            let now = rate_limits::lock_of_organization(transaction, *organization).await?;
            for Placed { at, counter } in windows {
                let Some(item) = self.batch.items.get(*at) else { continue };
                let (count, charge) = self.charge(*organization, item, counter, now);
                counts.push(count);
                charges.push(charge);
                places.push(*at);
            }
        }
        let added = imported_counts::add(transaction, &counts).await?;
        let mut to_redis = Vec::new();
        for ((at, charge), added) in places.into_iter().zip(charges).zip(added) {
            if added == 0 {
                if let Some(result) = results.get_mut(at) {
                    *result = RowResult::Existing;
                }
            } else if let Some(charge) = charge {
                to_redis.push(Charge { added, ..charge });
            }
        }
        match &self.redis {
            Some(redis) => charge_redis(redis, to_redis).await,
            None => Ok(()),
        }
    }

    /// What an item has counted, and the window that it is charged to.
    fn charge(
        &self,
        organization: OrganizationId,
        item: &WindowItem,
        counter: &Counter,
        now: Timestamp,
    ) -> (SourceCount, Option<Charge>) {
        match counter {
            Counter::Quota => (SourceCount::of_quota(organization, now.start_of_month(), item.count, false), None),
            Counter::Limit { subject, limit } => {
                let own = span(item, limit);
                let start = window_of(latest(own.1, now), limit);
                let subject_id = RecordId::from_u128(*subject).to_string();
                let (id, row) = (self.batch.import_id, &item.source_id);
                let count = SourceCount::of_limit(id, row, own, subject_id, limit, start, item.count);
                let charge = Charge { organization, subject: *subject, limit: limit.clone(), start, added: 0 };
                (count, Some(charge))
            }
        }
    }
}

/// Where the last group of so many organizations begins: a full one, or what is left over.
const fn last_group(organizations: usize) -> usize {
    organizations.saturating_sub(1) / ORGANIZATIONS_PER_TRANSACTION * ORGANIZATIONS_PER_TRANSACTION
}

/// Adds to counters in Redis: each charge is one that was made alone, in a window that is named, and costs no more.
async fn charge_redis(redis: &RedisCounters, charges: Vec<Charge>) -> Result<(), ServiceError> {
    // By window, oldest first: a window that is named after a newer one would be taken for that.
    let mut sums: BTreeMap<(OrganizationId, u128, String, i64), Charge> = BTreeMap::new();
    for charge in charges {
        let name = (charge.organization, charge.subject, charge.limit.name.clone(), charge.start.micros());
        match sums.get_mut(&name) {
            Some(sum) => sum.added = sum.added.saturating_add(charge.added),
            None => {
                sums.insert(name, charge);
            }
        }
    }
    for charge in sums.values() {
        let known = SlidingWindow { start_us: charge.start.micros(), current: 0, previous: 0 };
        let asked = Asked { subject: charge.subject, limit: &charge.limit, known: Some(known), carry: charge.added };
        let answer = redis.charge(charge.organization.as_u128(), &[asked], 0).await;
        answer.map_err(|error| redis_away(&error))?;
    }
    Ok(())
}

fn redis_away(error: &impl ToString) -> ServiceError {
    let (reason, cause) = ("REDIS_UNAVAILABLE", error.to_string());
    ServiceError::Unavailable { reason, may_have_happened: false, retry_after: REDIS_BUDGET, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_group_is_never_empty_where_there_is_any() {
        let most = ORGANIZATIONS_PER_TRANSACTION;
        let groups = [(0, 0), (1, 0), (most, 0), (most + 1, most), (2 * most, most), (2 * most + 5, 2 * most)];
        for (count, begins) in groups {
            assert_eq!(last_group(count), begins, "{count}");
        }
    }
}
