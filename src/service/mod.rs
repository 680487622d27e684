//! The use cases, a file each, named after the rpc: control flow, permissions and transactions, top to bottom.
//!
//! A mutation writes its row, its audit event and (by trigger) its change row in ONE transaction, runs to its end
//! even if the caller hangs up, and evicts from the cache after the commit and before the answer.
//! Must not know the wire: requests come in decoded, answers go out as domain values.

mod authenticate;
mod batch_verify_keys;
mod create_key;
mod create_organization;
mod delete_organization;
mod error;
mod get_key;
mod get_organization;
mod guards;
mod import_keys;
mod import_limits;
mod import_organizations;
mod import_rows;
mod import_usage;
mod import_uses;
mod init;
mod list_audit_events;
mod list_keys;
mod list_organizations;
mod report_usage;
mod revoke_key;
mod revoke_keys;
mod rotate_key;
mod set_organization_active;
mod update_key;
mod update_organization;
mod usage_stats;
mod verify_key;
mod verify_slow_key;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::{
    clock::Clock,
    domain::{audit::Actor, ids::RecordId, page::PageTokens, permission::Caller},
    limits::{Limits, Quotas, SharedLimits, Spender},
    store::{Store, StoreError},
    telemetry::Metrics,
    usage::Recorder,
    verify::{Feed, Records},
};

/// Where a record comes from; asked for by the wire, obeyed by `verify`.
pub use crate::verify::Freshness;
/// How many slow keys one look-up part may lead to before a secret that begins with it is a scan.
pub use crate::verify::SLOW_LOOKED_UP_MAX;

pub use self::{
    authenticate::{Credential, authenticate},
    batch_verify_keys::{all_or_violations, batch_verify_keys},
    create_key::{IssuedKey, create_key},
    create_organization::create_organization,
    delete_organization::delete_organization,
    error::{Resource, ServiceError, Violation},
    get_key::get_key,
    get_organization::{CountedOrganization, get_organization},
    import_keys::{ImportBatch, ImportItem, ImportKeys, ItemResult, import_batch, import_keys},
    import_limits::{WindowCounts, WindowItem, WindowOwner, import_limits},
    import_organizations::{OrganizationItem, TakenNames, import_organizations, plan_organizations},
    import_rows::{RowBatch, RowResult},
    import_usage::{UsageItem, import_usage},
    import_uses::ImportUses,
    init::{ADMIN_KEY_NAME, init, is_initialized},
    list_audit_events::list_audit_events,
    list_keys::list_keys,
    list_organizations::list_organizations,
    report_usage::report_usage,
    revoke_key::{RevokeKey, revoke_key},
    revoke_keys::{RevokeKeys, RevokedKeys, revoke_keys},
    rotate_key::{RotateKey, RotatedKey, rotate_key},
    set_organization_active::set_organization_active,
    update_key::{UpdateKey, update_key},
    update_organization::{UpdateOrganization, update_organization},
    usage_stats::usage_stats,
    verify_key::{Verification, Verified, peek_outcome, verify_key},
    verify_slow_key::{CANDIDATES_MAX as SLOW_CANDIDATES_MAX, SlowKeys},
};

/// What the use cases work with: one for the whole process.
pub struct Context {
    /// Of this process, anew with each start.
    pub replica_id: RecordId,
    pub store: Store,
    pub clock: Clock,
    pub records: Arc<Records>,
    pub feed: Arc<Feed>,
    pub limits: Limits,
    pub quotas: Quotas,
    pub spender: Spender,
    pub slow_keys: SlowKeys,
    pub import_uses: ImportUses,
    pub recorder: Recorder,
    pub metrics: Arc<Metrics>,
    /// Set once everything that a call needs has been read from the database; until then every call is refused.
    pub page_tokens: OnceLock<PageTokens>,
    /// Whether this process may have written audit events that are not sealed yet.
    pub unsealed: AtomicBool,
    /// Mutations and spends of credits under way; a shutdown waits for them.
    pub mutations: TaskTracker,
}

/// Who calls, and under which id the call stands in the log and in audit events.
#[derive(Debug, Clone)]
pub struct Call {
    pub caller: Caller,
    pub request_id: RecordId,
}

impl Call {
    /// The actor of an audit event.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor::of(&self.caller, &self.request_id.to_string())
    }
}

impl Context {
    /// Whether calls can be answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.page_tokens.get().is_some()
    }

    /// Whether rate limits go on with this replica's share, because the shared counters are away.
    #[must_use]
    pub fn limits_are_degraded(&self) -> bool {
        self.limits.shared().is_some_and(SharedLimits::is_degraded)
    }

    /// The page of metrics. What the parts hold as numbers already is read here, when somebody asks.
    #[must_use]
    pub fn metrics_page(&self) -> String {
        let metrics = &self.metrics;
        metrics.feed_revision.set(self.feed.position());
        metrics.mutations_in_flight.set(count(self.mutations.len()));
        let (keys, unknown, _) = self.records.sizes();
        metrics.state.cache_keys.set(count(keys));
        metrics.state.cache_unknown.set(count(unknown));
        metrics.state.cache_queries.set(count(self.records.queries()));
        metrics.state.limiter_meters.set(count(self.limits.len()));
        metrics.state.limiter_degraded.set(i64::from(self.limits_are_degraded()));
        metrics.state.limiter_alone.set(count(self.limits.shared().map_or(0, SharedLimits::charged_alone)));
        metrics.state.feed_age.set(self.feed.age().as_secs_f64());
        metrics.state.feed_listening.set(i64::from(self.feed.is_listening()));
        metrics.state.replicas_live.set(count(self.feed.live()));
        metrics.state.database_away.set(i64::from(self.store.is_away()));
        let spool = self.recorder.status();
        metrics.state.spool_bytes.set(count(spool.bytes));
        metrics.state.spool_bytes_max.set(count(spool.bytes_max));
        metrics.state.spool_segments.set(count(spool.segments));
        metrics.state.spool_oldest_age.set(spool.oldest_age.as_secs_f64());
        metrics.state.spool_merges.set(count(spool.merges));
        metrics.state.details_left_out.set(count(spool.details_left_out));
        metrics.state.spool_failing.set(i64::from(spool.failing));
        metrics.render()
    }

    /// The tokens of lists; `Unavailable` before the database has answered for the first time.
    fn page_tokens(&self) -> Result<&PageTokens, ServiceError> {
        self.page_tokens.get().ok_or_else(|| ServiceError::unavailable("NOT_READY"))
    }

    /// Runs a mutation to its end, also when whoever awaits it is dropped, so that no transaction lives in a future
    /// that can be cancelled. A refusal is told once that on which it may rest has been committed.
    async fn run_to_end<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let failed_before = self.store.failed_commits();
        let store = self.store.clone();
        let running = self.mutations.spawn(async move {
            let ended = timeout(MUTATION_TIMEOUT, store.unless_stuck(work)).await;
            ended.unwrap_or_else(|_| Err(StoreError::timed_out().of_commit()))?
        });
        self.unsealed.store(true, Ordering::Release);
        let ended = tokio::select! {
            biased;
            ended = running => ended,
            // It goes on by itself; whoever waits need not.
            () = self.store.gone() => return Err(StoreError::away().of_commit().into()),
        };
        match ended {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(refusal)) => {
                self.store.settle(failed_before).await?;
                Err(refusal)
            }
            Err(failure) => Err(ServiceError::Internal(format!("a mutation did not end: {failure}"))),
        }
    }
}

/// No mutation takes so long but one that hangs, on a connection whose other end is gone.
const MUTATION_TIMEOUT: Duration = Duration::from_mins(5);

/// A number as a gauge shows it.
fn count<N: TryInto<i64>>(number: N) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
