//! How a job's rounds run: each to its end in a task of its own, counted, and logged once per streak of failures.
//! `each_interval` and `paced` are for what every process does for itself; `leased` for what one process does for all,
//! by a lease.
//! Must not end a round in the middle: a round may hold a transaction.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::AbortHandle,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    domain::{ids::RecordId, time::Timestamp},
    random,
    service::Context,
    store::{Store, StoreError, job_leases, job_leases::Schedule},
};

/// How often a process asks whether a job is due that one process does for all; up to as much again is added at
/// random to the first, so that replicas that start together do not ask together.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// A paced job rests for so many times as long as its round took, so that it takes a twentieth of the time at most.
const REST: u32 = 19;
/// But it never rests for longer than this.
const REST_MAX: Duration = Duration::from_secs(10);

/// No round takes so long but one that hangs.
const ROUND_TIMEOUT: Duration = Duration::from_mins(2);

/// The pause before what panicked begins anew.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// What one round did: the rows that it wrote or deleted, or `None` where there was nothing to run.
type Round = Result<Option<u64>, StoreError>;

/// One job's name and present streak.
struct Job {
    name: &'static str,
    context: Arc<Context>,
    failing: bool,
}

impl Job {
    async fn run(&mut self, round: impl Future<Output = Round> + Send + 'static) {
        let begun = Instant::now();
        let store = self.context.store.clone();
        let (failure, rows) = match self.context.mutations.spawn(async move { in_time(&store, round).await }).await {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(rows))) => (None, rows),
            Ok(Err(error)) => (Some(error.chain()), 0),
            Err(panic) => (Some(panic.to_string()), 0),
        };
        let now = self.context.clock.now();
        let metrics = self.context.metrics.job(self.name);
        match &failure {
            None => metrics.succeeded(rows, begun.elapsed(), now),
            Some(_) => metrics.failed(begun.elapsed()),
        }
        let (job, failed) = (self.name, failure.is_some());
        match failure {
            Some(error) if !self.failing => tracing::error!(job, error, "a job fails"),
            None if self.failing => tracing::info!(job, "a job succeeds again"),
            Some(_) | None => {}
        }
        self.failing = failed;
    }
}

/// A round, unless it hangs on a connection whose other end is gone: then the next one takes another.
async fn in_time(store: &Store, round: impl Future<Output = Round>) -> Round {
    match timeout(ROUND_TIMEOUT, store.unless_stuck(round)).await {
        Ok(ended) => ended?,
        Err(_) => Err(StoreError::timed_out().of_commit()),
    }
}

/// Runs what has no end, and again should it panic: nobody else would notice.
pub fn for_ever<F>(
    name: &'static str,
    context: &Arc<Context>,
    work: impl Fn(Arc<Context>) -> F + Send + 'static,
) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    let context = context.clone();
    tokio::spawn(async move {
        loop {
            let ended = AbortOnDropHandle::new(tokio::spawn(work(context.clone()))).await;
            tracing::error!(job = name, error = ?ended.err(), "what should run for ever has ended; it begins anew");
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    })
    .abort_handle()
}

/// Runs a round now and then each `interval`; it gives how many rows it wrote or deleted.
pub fn each_interval<F>(
    name: &'static str,
    interval: Duration,
    context: &Arc<Context>,
    round: impl Fn(Arc<Context>) -> F + Send + 'static,
) -> AbortHandle
where
    F: Future<Output = Result<u64, StoreError>> + Send + 'static,
{
    let mut job = Job { name, context: context.clone(), failing: false };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let rows = round(job.context.clone());
            job.run(async move { rows.await.map(Some) }).await;
        }
    })
    .abort_handle()
}

/// Runs a round each `interval`. After a round that took long the next one waits for longer, so that the job leaves
/// the database and the processor to others, unless it `is_urgent`.
pub fn paced<F>(
    name: &'static str,
    interval: Duration,
    context: &Arc<Context>,
    is_urgent: impl Fn(&Context) -> bool + Send + 'static,
    round: impl Fn(Arc<Context>) -> F + Send + 'static,
) -> AbortHandle
where
    F: Future<Output = Result<u64, StoreError>> + Send + 'static,
{
    let mut job = Job { name, context: context.clone(), failing: false };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(async move {
        let mut rested_at = tokio::time::Instant::now();
        loop {
            ticks.tick().await;
            if tokio::time::Instant::now() < rested_at && !is_urgent(&job.context) {
                continue;
            }
            let begun = tokio::time::Instant::now();
            let rows = round(job.context.clone());
            job.run(async move { rows.await.map(Some) }).await;
            rested_at = tokio::time::Instant::now() + rest(begun.elapsed());
        }
    })
    .abort_handle()
}

/// How long a paced job rests after a round that took so long.
fn rest(took: Duration) -> Duration {
    (took * REST).min(REST_MAX)
}

/// Runs a job whenever it is due and no other process has it.
pub fn leased<F>(
    name: &'static str,
    schedule: Schedule,
    context: &Arc<Context>,
    work: impl Fn(Arc<Context>, Timestamp) -> F + Clone + Send + 'static,
) -> AbortHandle
where
    F: Future<Output = Result<u64, StoreError>> + Send + 'static,
{
    let mut job = Job { name, context: context.clone(), failing: false };
    let holder = RecordId::new(context.clock.now(), random::bytes()).to_string();
    tokio::spawn(async move {
        let mut pause = random::jitter(ASK_INTERVAL);
        loop {
            let (context, holder, work) = (job.context.clone(), holder.clone(), work.clone());
            job.run(async move { run_if_due(name, &holder, schedule, &context, work).await }).await;
            tokio::time::sleep(ASK_INTERVAL + pause).await;
            pause = Duration::ZERO;
        }
    })
    .abort_handle()
}

async fn run_if_due<F>(
    name: &str,
    holder: &str,
    schedule: Schedule,
    context: &Arc<Context>,
    work: impl FnOnce(Arc<Context>, Timestamp) -> F,
) -> Round
where
    F: Future<Output = Result<u64, StoreError>>,
{
    context.store.check_there()?;
    let now = context.clock.now();
    if !job_leases::take(context.store.write(), name, holder, schedule, now).await? {
        return Ok(None);
    }
    let result = work(context.clone(), now).await;
    let ended = if result.is_ok() { "ok" } else { "failed" };
    job_leases::release(context.store.write(), name, holder, ended, context.clock.now()).await?;
    result.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paced_job_takes_a_twentieth_of_the_time_and_rests_for_ten_seconds_at_most() {
        assert_eq!(rest(Duration::from_millis(10)), Duration::from_millis(190));
        assert_eq!(rest(Duration::from_millis(100)), Duration::from_millis(1900));
        assert_eq!(rest(Duration::from_secs(30)), Duration::from_secs(10));
    }
}
