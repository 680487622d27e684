//! What runs in the background while the service serves. Each process for itself: the feed is followed, usage and
//! limits are written through, audit events are sealed. One process for all, by a lease: expiries are told, refills
//! are made, old rows are deleted. A job's last round runs once more when the service drains, where it gathers.
//! Must not hold a transaction in a task that is ended in the middle: rounds run to their end.

pub mod expire;
pub mod refill;
pub mod retention;
mod rounds;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::task::AbortHandle;

use crate::{
    service::Context,
    store::{StoreError, audit_events, job_leases::Schedule, rate_limits, replicas},
};
use rounds::{each_interval, for_ever, leased, paced};

/// How often usage, limits and audit events are written: what a `kill -9` may cost of the limits, unless there is so
/// much to write that the job rests for longer.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the counts of limits are written too of which little has been charged since.
const ALL_LIMITS_INTERVAL: Duration = Duration::from_secs(5);
/// How often audit events are looked for that another process wrote and did not come to seal.
const UNSEALED_INTERVAL: Duration = Duration::from_secs(10);
/// How often a process says that it lives: three times before it counts as gone.
const BEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How often the usage of processes that are gone is looked for.
const ADOPTION_INTERVAL: Duration = Duration::from_mins(1);
/// How often a process drops the counters of limits that no longer count.
const PRUNING_INTERVAL: Duration = Duration::from_mins(10);
/// Expiries and refills are written within a minute or so.
const EACH_MINUTE: Schedule = Schedule { interval: Duration::from_mins(1), lease: Duration::from_secs(30) };
/// How often rows are deleted that nobody needs any more.
const RETENTION: Schedule = Schedule { interval: Duration::from_mins(10), lease: Duration::from_mins(5) };

/// The jobs that run.
#[derive(Default)]
pub struct Jobs {
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Jobs {
    /// Starts all jobs. Rows of usage are deleted after so many days.
    pub fn start(&self, context: &Arc<Context>, usage_retention_days: u32) {
        let follower = for_ever("feed", context, |context| async move { context.feed.follow().await });
        let prober = for_ever("limits", context, |context| async move {
            match context.limits.shared() {
                Some(shared) => shared.follow().await,
                None => std::future::pending().await,
            }
        });
        let tasks = [follower, prober]
            .into_iter()
            .chain(of_this_process(context))
            .chain(of_one_process(context, usage_retention_days));
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
    }

    /// Begins no further round. A round under way is a mutation like any other, and runs to its end.
    pub fn stop(&self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// What every process does for itself.
fn of_this_process(context: &Arc<Context>) -> Vec<AbortHandle> {
    vec![
        paced("usage", INTERVAL, context, is_spool_filling, |context| async move { flush_usage(&context).await }),
        each_interval("adoption", ADOPTION_INTERVAL, context, |context| async move {
            context.recorder.adopt(&context.store).await.map(|()| 0)
        }),
        paced("limits", INTERVAL, context, |_| false, limits_round()),
        each_interval("audit", INTERVAL, context, audit_round()),
        each_interval("pruning", PRUNING_INTERVAL, context, |context| async move { prune(&context).await }),
        each_interval("quotas", INTERVAL, context, quotas_round()),
        each_interval("replicas", INTERVAL, context, beats()),
    ]
}

/// What one process does for all.
fn of_one_process(context: &Arc<Context>, usage_retention_days: u32) -> [AbortHandle; 3] {
    [
        leased("expire", EACH_MINUTE, context, |context, now| async move { expire::run(&context.store, now).await }),
        leased("refill", EACH_MINUTE, context, |context, now| async move { refill::run(&context.store, now).await }),
        leased("retention", RETENTION, context, move |context, now| async move {
            retention::run(&context.store, now, usage_retention_days).await
        }),
    ]
}

/// Says now and then that this process lives, and at once after it could not; how many do, the feed counts.
fn beats() -> impl Fn(Arc<Context>) -> BoxFuture<'static, Result<u64, StoreError>> {
    let beaten: Arc<Mutex<Option<Instant>>> = Arc::default();
    move |context| {
        let beaten = beaten.clone();
        Box::pin(async move {
            let last = *beaten.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| at.elapsed() < BEAT_INTERVAL) {
                return Ok(0);
            }
            context.store.check_there()?;
            // Not on the connections of usage, whose transactions may take long.
            replicas::beat(context.store.write(), context.replica_id).await?;
            *beaten.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            Ok(0)
        })
    }
}

/// Gives back what quotas hold and do not use. Of another history nothing was taken.
fn quotas_round() -> impl Fn(Arc<Context>) -> BoxFuture<'static, Result<u64, StoreError>> {
    let known = AtomicU64::new(0);
    move |context| {
        let turns = context.feed.turns_of_history();
        if known.swap(turns, Ordering::AcqRel) != turns {
            context.quotas.forget();
        }
        Box::pin(async move { context.quotas.give_back(&context.store, false).await })
    }
}

/// Drops the counters of limits that no longer count.
async fn prune(context: &Context) -> Result<u64, StoreError> {
    let now = context.clock.now();
    if let Some(shared) = context.limits.shared() {
        shared.forget_faded(now);
    }
    if let Some(limiter) = context.limits.alone() {
        return limiter.prune(&context.store, now).await.map(|()| 0);
    }
    context.store.check_there()?;
    // Not by this replica's clock: one that is ahead would delete what others count with.
    let now = rate_limits::find_server_time(context.store.usage()).await?;
    rate_limits::delete_faded(context.store.usage(), now).await
}

/// Whether what waits for the database comes near the bound of the spool.
fn is_spool_filling(context: &Context) -> bool {
    let spool = context.recorder.status();
    spool.bytes > spool.bytes_max / 4
}

async fn flush_usage(context: &Context) -> Result<u64, StoreError> {
    context.recorder.flush(&context.store).await.map(|()| 0)
}

/// A round of the job that writes limits through.
fn limits_round() -> impl Fn(Arc<Context>) -> BoxFuture<'static, Result<u64, StoreError>> {
    let all_at: Mutex<Option<Instant>> = Mutex::default();
    move |context| {
        let mut all_at = all_at.lock().unwrap_or_else(PoisonError::into_inner);
        let all = all_at.is_none_or(|at| at.elapsed() >= ALL_LIMITS_INTERVAL);
        if all {
            *all_at = Some(Instant::now());
        }
        Box::pin(async move {
            match context.limits.alone() {
                Some(limiter) if !all => limiter.flush_much(&context.store).await.map(|()| 0),
                Some(_) | None => flush_limits(&context).await,
            }
        })
    }
}

async fn flush_limits(context: &Context) -> Result<u64, StoreError> {
    match context.limits.alone() {
        Some(limiter) => limiter.flush(&context.store).await.map(|()| 0),
        None => Ok(0),
    }
}

/// A round of the job that seals audit events: where this process has changed something, or to look after others.
fn audit_round() -> impl Fn(Arc<Context>) -> BoxFuture<'static, Result<u64, StoreError>> {
    let looked_at: Mutex<Option<Instant>> = Mutex::default();
    move |context| {
        let mut looked_at = looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = context.unsealed.swap(false, Ordering::AcqRel);
        if !changed && looked_at.is_some_and(|at| at.elapsed() < UNSEALED_INTERVAL) {
            return Box::pin(async { Ok(0) });
        }
        *looked_at = Some(Instant::now());
        Box::pin(async move {
            let sealed = seal(&context).await;
            if !matches!(sealed, Ok(0)) {
                context.unsealed.store(true, Ordering::Release);
            }
            sealed
        })
    }
}

async fn seal(context: &Context) -> Result<u64, StoreError> {
    audit_events::seal(&context.store).await.map(|sealed| u64::try_from(sealed).unwrap_or(0))
}

/// Runs the last round of every job that gathers, once no call is in flight any more.
pub async fn finish(context: &Arc<Context>) {
    let results = [
        ("usage", flush_usage(context).await),
        ("limits", flush_limits(context).await),
        ("audit", seal(context).await),
        ("quotas", context.quotas.give_back(&context.store, true).await),
        ("replicas", replicas::leave(context.store.write(), context.replica_id).await.map(|()| 0)),
    ];
    for (job, result) in results {
        if let Err(error) = result {
            tracing::error!(job, error = error.chain(), "the last round of a job failed");
        }
    }
    let spool = context.recorder.status();
    if spool.segments > 0 {
        tracing::warn!(
            segments = spool.segments,
            "usage that the database did not take waits in the spool, for the next start"
        );
    }
}
