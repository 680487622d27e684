//! What runs in the background while the service serves: the feed is followed, usage and limits are written through,
//! audit events are sealed, old rows are pruned. Each job's last round runs once more when the service drains.
//! Must not hold a transaction in a task that is ended in the middle: rounds run to their end.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::AbortHandle, time::MissedTickBehavior};

use crate::{
    service::Context,
    store::{StoreError, audit_events, key_changes},
    usage::retention,
};

/// How often usage, limits and audit events are written: what a `kill -9` may cost of the limits.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the usage of processes that are gone is looked for.
const ADOPTION_INTERVAL: Duration = Duration::from_mins(1);
/// How often what nobody needs any more is deleted.
const PRUNING_INTERVAL: Duration = Duration::from_mins(10);
/// How long changes are kept for followers of the feed that were away; one that was away for longer starts anew.
const KEEP_CHANGES: Duration = Duration::from_hours(24);

/// The jobs that run.
#[derive(Default)]
pub struct Jobs {
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Jobs {
    /// Starts all jobs. Rows of usage are deleted after so many days.
    pub fn start(&self, context: &Arc<Context>, usage_retention_days: u32) {
        let feed = context.feed.clone();
        let follower = tokio::spawn(async move { feed.follow().await }).abort_handle();
        let usage =
            every("usage", INTERVAL, context, |context| async move { context.recorder.flush(&context.store).await });
        let limits =
            every("limits", INTERVAL, context, |context| async move { context.limiter.flush(&context.store).await });
        let audit =
            every(
                "audit",
                INTERVAL,
                context,
                |context| async move { audit_events::seal(&context.store).await.map(|_| ()) },
            );
        let adoption = every("adoption", ADOPTION_INTERVAL, context, |context| async move {
            context.recorder.adopt(&context.store).await
        });
        let pruning = every("pruning", PRUNING_INTERVAL, context, move |context| async move {
            let now = context.clock.now();
            retention::prune(&context.store, now, usage_retention_days).await?;
            context.limiter.prune(&context.store, now).await?;
            key_changes::delete_before(context.store.write(), now.minus(KEEP_CHANGES)).await.map(|_| ())
        });
        let tasks = [follower, usage, adoption, limits, audit, pruning];
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
    }

    /// Begins no further round. A round under way is a mutation like any other, and runs to its end.
    pub fn stop(&self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// Runs every job's last round, once no call is in flight any more.
pub async fn finish(context: &Arc<Context>) {
    let results = [
        ("usage", context.recorder.flush(&context.store).await),
        ("limits", context.limiter.flush(&context.store).await),
        ("audit", audit_events::seal(&context.store).await.map(|_| ())),
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

fn every<F>(
    job: &'static str,
    interval: Duration,
    context: &Arc<Context>,
    round: impl Fn(Arc<Context>) -> F + Send + 'static,
) -> AbortHandle
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let context = context.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            ticks.tick().await;
            let failure = match context.mutations.spawn(round(context.clone())).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.chain()),
                Err(panic) => Some(panic.to_string()),
            };
            let failed = failure.is_some();
            match failure {
                Some(error) if !failing => tracing::error!(job, error, "a job fails"),
                None if failing => tracing::info!(job, "a job succeeds again"),
                Some(_) | None => {}
            }
            failing = failed;
        }
    })
    .abort_handle()
}
