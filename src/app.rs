//! The composition root: configuration in, a running service out. Opens the database, starts the server in
//! `NOT_SERVING`, gets ready, serves, and drains: health off, no new connection, calls in flight finish, what is
//! gathered is written, and all of it within a deadline.
//! The only module that sees every other; must hold no rule of the domain.

mod greeting;
mod import;
mod metrics;
mod parts;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinError,
};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use self::parts::{
    BoxedError, Served, Server, cache_limits, connect_options, context, listen, load_tls, spool_options, start_server,
};
use crate::{
    config::{Config, DatabaseConfig},
    domain::page::PageTokens,
    grpc::{self, Health, TlsError},
    jobs::{self, Jobs},
    limits::{RedisCounters, RedisUrlError},
    random,
    service::{self, Context, ServiceError},
    store::{
        StoreError,
        connect::{self, ConnectError, ConnectOptions},
        migrate, replicas, state,
    },
    usage::OpenError,
    verify::CacheLimits,
};

pub use self::import::{import_contract, import_contract_plan, import_plan, import_run, import_status, import_verify};
pub use crate::store::migrate::MigrationStatus;

/// How long to wait before the database is asked again, at start; up to as much again is added at random, so that
/// replicas that start together do not ask together.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// How often health is told what is away.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// How long reading all that a call needs may take, usage that waits in the spool among it.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// How often those who watch health are told of its end while the service drains.
const WATCHERS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the last round of writing may take once no call is in flight.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the database refused")]
    Store(#[from] StoreError),
    #[error("the database has been initialized: its admin secret was printed then and is stored nowhere")]
    AlreadyInitialized,
    #[error("the database could not answer: {0}")]
    Unanswered(String),
    #[error("{0}")]
    Refused(String),
    #[error("the database lacks {} migrations: run `keystead migrate up`, or serve with --migrate", .0)]
    PendingMigrations(usize),
    #[error(transparent)]
    Usage(#[from] OpenError),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot serve metrics on {address}: choose another with --metrics-listen, or off")]
    ListenMetrics { address: SocketAddr, source: io::Error },
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Redis(#[from] RedisUrlError),
    #[error("the server failed")]
    Server(#[source] BoxedError),
    #[error("the operating system refused")]
    System(#[from] io::Error),
}

impl AppError {
    /// The exit code of a command that ends with this: 1, refused.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        1
    }
}

impl From<ServiceError> for AppError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::FailedPrecondition { reason: "ALREADY_INITIALIZED", .. } => Self::AlreadyInitialized,
            ServiceError::Unavailable { cause, .. } => Self::Unanswered(cause),
            other => Self::Refused(format!("{other:?}")),
        }
    }
}

/// Migrates an empty database, creates `system`, and gives the first admin secret.
///
/// # Errors
/// `AlreadyInitialized`, or the database's own.
pub async fn init(config: &DatabaseConfig) -> Result<Zeroizing<String>, AppError> {
    let options = connect_options(config);
    let (store, _lock) = connect::open(&options).await?;
    migrate::up(&options).await?;
    let context = context(store, CacheLimits::none(), Duration::ZERO, None);
    let secret = service::init(&context).await;
    context.store.clone().close().await;
    Ok(Zeroizing::new(secret?.expose().to_owned()))
}

/// Applies pending migrations; gives their names.
///
/// # Errors
/// The database's own; on SQLite also that a server is using the file.
pub async fn migrate_up(config: &DatabaseConfig) -> Result<Vec<String>, AppError> {
    let options = connect_options(config);
    let _lock = connect::lock_in_turn(&options).await?;
    Ok(migrate::up(&options).await?)
}

/// Takes the newest `steps` migrations back; gives their names.
///
/// # Errors
/// The database's own; on SQLite also that a server is using the file.
pub async fn migrate_down(config: &DatabaseConfig, steps: u32) -> Result<Vec<String>, AppError> {
    let options = connect_options(config);
    let _lock = connect::lock_in_turn(&options).await?;
    Ok(migrate::down(&options, steps).await?)
}

/// Tells which migrations the database has, oldest first.
///
/// # Errors
/// The database's own.
pub async fn migrate_status(config: &DatabaseConfig) -> Result<Vec<MigrationStatus>, AppError> {
    Ok(migrate::status(&connect_options(config)).await?)
}

/// Runs the service until SIGTERM or SIGINT, then drains it. A second signal ends it at once.
///
/// # Errors
/// What makes a start impossible. A PostgreSQL that is away is waited for.
pub async fn serve(config: Config) -> Result<(), AppError> {
    let tls = load_tls(&config)?;
    let options = ConnectOptions { verify_timeout: config.server.verify_timeout, ..connect_options(&config.database) };
    let (store, lock) = connect::open(&options).await?;
    spool_options(&config)?.prepare()?;
    let listener = listen(config.server.listen).await?;
    let address = listener.local_addr()?;
    let redis = config.limits.redis_url.as_ref().map(RedisCounters::new).transpose()?;
    let context = context(store, cache_limits(&config), config.cache.staleness_bound, redis);
    let _metrics = metrics::serve(config.server.metrics_listen, &context).await?;
    let health = Health::not_serving().await;
    let (stop, stopped) = watch::channel(false);
    let mut server = start_server(&config, &context, &health, tls, listener, stopped);
    // Before anybody learns that we listen, and may tell us to stop.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(address = %address, tls = config.server.tls.is_some(), "listening");
    let jobs = Jobs::default();
    let ready = async {
        get_ready(&config, &options, &context, address).await?;
        jobs.start(&context, config.usage.retention_days);
        health.set_serving(true).await;
        context.metrics.ready.set(1);
        tracing::info!("ready");
        tell_health(&context, &health).await
    };
    let outcome = tokio::select! {
        failed = ready => failed,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut server => return Err(AppError::Server(of_ended(ended))),
    };
    tokio::select! {
        () = drain(&config, context, health, &stop, server, &jobs) => {}
        _ = terminate.recv() => tracing::error!("a second signal ends the drain"),
        _ = interrupt.recv() => tracing::error!("a second signal ends the drain"),
    }
    drop(lock);
    outcome
}

/// Tells health of the parts that calls may do without for a while, for ever.
async fn tell_health(context: &Context, health: &Health) -> Result<(), AppError> {
    let mut told = None;
    loop {
        if let Some(shared) = context.limits.shared() {
            shared.set_live(context.feed.live());
        }
        let there = (!context.store.is_away(), !context.limits_are_degraded());
        if told.replace(there) != Some(there) {
            health.set_part(grpc::DATABASE, there.0).await;
            health.set_part(grpc::LIMITS, there.1).await;
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

/// Waits until the database answers and everything that a call needs has been read from it.
async fn get_ready(
    config: &Config,
    options: &ConnectOptions,
    context: &Arc<Context>,
    address: SocketAddr,
) -> Result<(), AppError> {
    let mut told = false;
    loop {
        match prepare(config, options, context, address).await {
            Err(
                error @ (AppError::Unanswered(_)
                | AppError::Store(StoreError::Unavailable { .. })
                | AppError::Usage(OpenError::Store(StoreError::Unavailable { .. }))),
            ) => {
                if !told {
                    let cause = if let AppError::Store(error) = &error { error.chain() } else { error.to_string() };
                    tracing::warn!(cause, "waiting for the database");
                }
                told = true;
                tokio::time::sleep(RETRY_INTERVAL + random::jitter(RETRY_INTERVAL)).await;
            }
            ended => return ended,
        }
    }
}

async fn prepare(
    config: &Config,
    options: &ConnectOptions,
    context: &Arc<Context>,
    address: SocketAddr,
) -> Result<(), AppError> {
    if config.database.migrate || connect::is_sqlite(&options.url) {
        for name in migrate::up(options).await? {
            tracing::info!(name, "migrated");
        }
    } else {
        let pending = migrate::status(options).await?.iter().filter(|migration| !migration.applied).count();
        if pending > 0 {
            return Err(AppError::PendingMigrations(pending));
        }
    }
    if let Some(limiter) = context.limits.alone() {
        limiter.restore(&context.store, context.clock.now()).await?;
    }
    // Whatever hangs there, on a connection whose other end is gone, is tried once more.
    let read = tokio::time::timeout(READ_TIMEOUT, read_all(config, context)).await;
    read.unwrap_or_else(|_| Err(AppError::Store(StoreError::timed_out())))?;
    if config.server.dev {
        greeting::greet(config, context, address).await?;
    } else if !service::is_initialized(context).await? {
        tracing::warn!("the database has no organization yet: run `keystead init`");
    }
    Ok(())
}

/// Reads from the database everything that a call needs. Calls are answered from its end on.
async fn read_all(config: &Config, context: &Arc<Context>) -> Result<(), AppError> {
    // Others learn of this replica, and this one of them, before it charges anything.
    replicas::beat(context.store.write(), context.replica_id).await?;
    context.feed.poll().await?;
    if let Some(shared) = context.limits.shared() {
        shared.set_live(context.feed.live());
        shared.probe().await;
    }
    context.recorder.open(&context.store, &spool_options(config)?).await?;
    let key = state::find_or_insert_page_token_key(context.store.write(), random::bytes()).await?;
    // After all else, since calls are answered from here on. A second round after a failure finds the same key.
    let _ = context.page_tokens.set(PageTokens::new(key));
    Ok(())
}

/// Ends the service without losing a call or what it has gathered; calls that outlive the deadline are cut off, and
/// what has been gathered is written all the same.
async fn drain(
    config: &Config,
    context: Arc<Context>,
    mut health: Health,
    stop: &watch::Sender<bool>,
    mut server: Server,
    jobs: &Jobs,
) {
    tracing::info!("draining");
    health.end().await;
    context.metrics.ready.set(0);
    stop.send_replace(true);
    // Who has begun to watch health in between must not hold the drain up.
    let watchers = tokio::spawn(async move {
        loop {
            tokio::time::sleep(WATCHERS_INTERVAL).await;
            health.end().await;
        }
    });
    let _watchers = AbortOnDropHandle::new(watchers);
    match tokio::time::timeout(config.server.drain_timeout, &mut server).await {
        Ok(Ok(Ok(()))) => {}
        Ok(ended) => tracing::error!(error = %of_ended(ended), "the server failed while it drained"),
        Err(_) => {
            tracing::error!("the drain deadline has passed; what is still in flight is cut off");
            server.abort();
        }
    }
    jobs.stop();
    context.mutations.close();
    let finish = async {
        context.mutations.wait().await;
        if context.is_ready() {
            jobs::finish(&context).await;
        }
        context.store.clone().close().await;
    };
    if tokio::time::timeout(FLUSH_TIMEOUT, finish).await.is_ok() {
        tracing::info!("drained");
    } else {
        tracing::error!("limits and audit hashes were not taken in time; usage waits in the spool, for the next start");
    }
}

/// Why the server's task ended though nobody stopped it.
fn of_ended(ended: Result<Served, JoinError>) -> BoxedError {
    match ended {
        Ok(Ok(())) => "the server ended by itself".into(),
        Ok(Err(error)) => error,
        Err(panic) => Box::new(panic),
    }
}
