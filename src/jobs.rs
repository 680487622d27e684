//! What runs in the background while the service serves: the feed is followed, usage and limits are written through,
//! audit events are sealed. Each job's last round runs once more when the service drains.
//! Must not hold a transaction in a task that is ended in the middle: rounds run to their end.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::AbortHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    service::Context,
    store::{StoreError, audit_events},
};

/// How often usage, limits and audit events are written: what a `kill -9` may cost of the first two.
const INTERVAL: Duration = Duration::from_secs(1);

/// The jobs that run.
#[derive(Default)]
pub struct Jobs {
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Jobs {
    /// Starts all jobs.
    pub fn start(&self, context: &Arc<Context>) {
        let feed = context.feed.clone();
        let clock = context.clock.clone();
        let follower = tokio::spawn(async move { feed.follow(|| clock.now()).await }).abort_handle();
        let usage = every("usage", context, |context| async move { context.recorder.flush(&context.store).await });
        let limits = every("limits", context, |context| async move {
            context.limiter.flush(&context.store, context.clock.now()).await
        });
        let audit =
            every("audit", context, |context| async move { audit_events::seal(&context.store).await.map(|_| ()) });
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend([follower, usage, limits, audit]);
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
        ("limits", context.limiter.flush(&context.store, context.clock.now()).await),
        ("audit", audit_events::seal(&context.store).await.map(|_| ())),
    ];
    for (job, result) in results {
        if let Err(error) = result {
            tracing::error!(job, error = error.chain(), "the last round of a job failed");
        }
    }
}

fn every<F>(
    job: &'static str,
    context: &Arc<Context>,
    round: impl Fn(Arc<Context>) -> F + Send + 'static,
) -> AbortHandle
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let context = context.clone();
    tokio::spawn(async move {
        let mut ticks = interval(INTERVAL);
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
