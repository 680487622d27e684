//! `keystead import` put together: the database opened beside a server that may be running, the source, and the work
//! of `import` between them, until it is done or a signal says to end.
//! Takes the lock that keeps a second server out of a SQLite file for one thing alone, what limits have counted: all
//! other batches are transactions like any other. Must hold no rule of an import.
//! Invariant: a first SIGINT or SIGTERM ends a run between two batches, and whatever ends it the mutation under way is
//! waited for before the database is closed.

use std::{sync::Arc, time::Duration};

use tokio::{
    pin,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::parts::{connect_options, context};
use crate::{
    config::{DatabaseConfig, ImportConfig, RedisUrl, SourceUrl},
    import::{
        self, ContractJob, ImportError, Job, Mapping, Options, Source, StatusQuery, Tell,
        report::{ContractReport, Report, Status, VerifyReport},
    },
    limits::RedisCounters,
    service::Context,
    store::{
        connect::{self, ConnectOptions},
        migrate,
    },
    verify::CacheLimits,
};

/// The staleness bound of a process that answers nobody.
const STALENESS_BOUND: Duration = Duration::from_secs(5);
/// The longest look-up of a key.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a batch that is being written when the work ends may still take.
const LAST_BATCH_TIMEOUT: Duration = Duration::from_mins(1);
/// Keys are looked up in the database each time; a few are remembered for those that ask twice.
const CACHE: CacheLimits = CacheLimits {
    entries_max: 1000,
    entry_age_max: Duration::from_secs(1),
    negative_entries_max: 1000,
    negative_age_max: Duration::from_secs(1),
    query_timeout: QUERY_TIMEOUT,
};

/// Tells what a run would do; writes nothing.
///
/// # Errors
/// See [`ImportError`].
pub async fn import_plan(
    config: &ImportConfig,
    mapping: &Mapping,
    options: &Options,
    tell: Tell<'_>,
) -> Result<Report, ImportError> {
    beside(config, async |context, stop| {
        let mut job = Job { context, mapping, options, tell, stop, source: Box::pin(open(config, mapping)).await? };
        Box::pin(import::plan(&mut job)).await
    })
    .await
}

/// Brings the rows of the source in, or those that an earlier run has left. What limits have counted cannot come into
/// a SQLite file beside its server, which counts in memory and writes over it.
///
/// # Errors
/// See [`ImportError`]. What was brought in stays, and the next run goes on from there.
pub async fn import_run(
    config: &ImportConfig,
    mapping: &Mapping,
    options: &Options,
    tell: Tell<'_>,
) -> Result<Report, ImportError> {
    let _lock = if mapping.limits.is_empty() {
        None
    } else {
        Some(connect::lock_in_turn(&connection(&config.database)).await?)
    };
    beside(config, async |context, stop| {
        let mut job = Job { context, mapping, options, tell, stop, source: Box::pin(open(config, mapping)).await? };
        Box::pin(import::run(&mut job)).await
    })
    .await
}

/// Reads every row again and compares it with what Keystead holds and answers.
///
/// # Errors
/// See [`ImportError`]; a mismatch is none.
pub async fn import_verify(
    config: &ImportConfig,
    mapping: &Mapping,
    options: &Options,
    tell: Tell<'_>,
) -> Result<VerifyReport, ImportError> {
    beside(config, async |context, stop| {
        let mut job = Job { context, mapping, options, tell, stop, source: Box::pin(open(config, mapping)).await? };
        Box::pin(import::verify(&mut job)).await
    })
    .await
}

/// Tells what `import_contract` would run on the source; changes nothing.
///
/// # Errors
/// See [`ImportError`]; `Refused` where the rows were not verified.
pub async fn import_contract_plan(
    config: &ImportConfig,
    mapping: &Mapping,
    is_down: bool,
) -> Result<ContractReport, ImportError> {
    let source = source_of(config)?;
    beside(config, async |context, _| Box::pin(import::contract_plan(context, source, mapping, is_down)).await).await
}

/// Drops the columns that the mapping names from the source, if its rows are still those that were verified, or
/// creates them again, empty: what `import_contract_plan` has shown, and nothing else.
///
/// # Errors
/// See [`ImportError`]; `Refused` where the rows are others, or what is to be done is.
pub async fn import_contract(
    config: &ImportConfig,
    mapping: &Mapping,
    shown: &ContractReport,
    tell: Tell<'_>,
) -> Result<ContractReport, ImportError> {
    let source = source_of(config)?;
    beside(config, async |context, stop| {
        let job = ContractJob { context, source, mapping, shown, tell, stop };
        Box::pin(import::contract(&job)).await
    })
    .await
}

/// Tells how far imports have come. Needs no source.
///
/// # Errors
/// The database's own.
pub async fn import_status(config: &ImportConfig, query: &StatusQuery) -> Result<Status, ImportError> {
    beside(config, async |context, _| import::status(context, query).await).await
}

fn source_of(config: &ImportConfig) -> Result<&SourceUrl, ImportError> {
    let missing = || ImportError::Mapping("no source: give --source-url or KEYSTEAD_SOURCE_URL".to_owned());
    config.source_url.as_ref().ok_or_else(missing)
}

async fn open(config: &ImportConfig, mapping: &Mapping) -> Result<Source, ImportError> {
    Ok(Source::open(source_of(config)?, mapping.statement_timeout).await?)
}

fn connection(database: &DatabaseConfig) -> ConnectOptions {
    ConnectOptions { verify_timeout: QUERY_TIMEOUT, ..connect_options(database) }
}

fn counters(url: Option<&RedisUrl>) -> Result<Option<RedisCounters>, ImportError> {
    url.map(RedisCounters::new).transpose().map_err(|error| ImportError::Mapping(error.to_string()))
}

/// Runs `work` on the database, beside whoever else uses it.
async fn beside<T>(
    config: &ImportConfig,
    work: impl AsyncFnOnce(&Arc<Context>, &CancellationToken) -> Result<T, ImportError>,
) -> Result<T, ImportError> {
    let options = connection(&config.database);
    let redis = counters(config.limits.redis_url.as_ref())?;
    let pending = migrate::status(&options).await?.iter().filter(|migration| !migration.applied).count();
    if pending > 0 {
        return Err(ImportError::PendingMigrations(pending));
    }
    let store = connect::open_beside(&options).await?;
    let context = context(store, CACHE, STALENESS_BOUND, redis);
    let stop = CancellationToken::new();
    let ended = until_told(work(&context, &stop), &stop).await;
    context.mutations.close();
    if timeout(LAST_BATCH_TIMEOUT, context.mutations.wait()).await.is_err() {
        tracing::error!("a batch did not end; the next run finds out whether it came through");
    }
    context.store.clone().close().await;
    ended
}

/// Awaits `work`, which is told to stop at a first signal and given up at a second one.
async fn until_told<T>(
    work: impl Future<Output = Result<T, ImportError>>,
    stop: &CancellationToken,
) -> Result<T, ImportError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    tokio::select! {
        ended = &mut work => ended,
        _ = terminate.recv() => Err(ImportError::GivenUp),
        _ = interrupt.recv() => Err(ImportError::GivenUp),
    }
}
