//! The composition root: configuration in, a running service out. Opens the database, starts the server in
//! `NOT_SERVING`, gets ready, serves, and drains: health off, no new connection, calls in flight finish, what is
//! gathered is written, and all of it within a deadline.
//! The only module that sees every other; must hold no rule of the domain.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::{
    clock::Clock,
    config::{CacheConfig, Config, DatabaseConfig},
    domain::page::PageTokens,
    grpc::{self, Calls, Health, ListenerLimits, ServerLimits, TlsError, TlsReloader},
    jobs::{self, Jobs},
    limits::Limiter,
    random,
    service::{self, Context, ServiceError},
    store::{
        Store, StoreError,
        connect::{self, ConnectError, ConnectOptions},
        migrate, state,
    },
    usage::Recorder,
    verify::{CacheLimits, Feed, Records},
};

pub use crate::store::migrate::MigrationStatus;

/// How long to wait before the database is asked again, at start; up to as much again is added at random, so that
/// replicas that start together do not ask together.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the database refused")]
    Store(#[from] StoreError),
    #[error("the database has been initialized: its admin secret was printed then and is stored nowhere")]
    AlreadyInitialized,
    #[error("{0}")]
    Refused(String),
    #[error("the database lacks {} migrations: run `keystead migrate up`, or serve with --migrate", .0)]
    PendingMigrations(usize),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    #[error("the server failed")]
    Server(#[source] Box<dyn std::error::Error + Send + Sync>),
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
            ServiceError::Unavailable { .. } => Self::Refused("the database could not answer".to_owned()),
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
    let context = context(store, CacheLimits::none());
    let secret = service::init(&context).await;
    context.store.clone().close().await;
    Ok(Zeroizing::new(secret?.expose().to_owned()))
}

/// Applies pending migrations; gives their names.
///
/// # Errors
/// The database's own.
pub async fn migrate_up(config: &DatabaseConfig) -> Result<Vec<String>, AppError> {
    Ok(migrate::up(&connect_options(config)).await?)
}

/// Takes the newest `steps` migrations back; gives their names.
///
/// # Errors
/// The database's own.
pub async fn migrate_down(config: &DatabaseConfig, steps: u32) -> Result<Vec<String>, AppError> {
    Ok(migrate::down(&connect_options(config), steps).await?)
}

/// Tells which migrations the database has, oldest first.
///
/// # Errors
/// The database's own.
pub async fn migrate_status(config: &DatabaseConfig) -> Result<Vec<MigrationStatus>, AppError> {
    Ok(migrate::status(&connect_options(config)).await?)
}

/// Runs the service until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// What makes a start impossible. A PostgreSQL that is away is waited for.
pub async fn serve(config: Config) -> Result<(), AppError> {
    let tls = load_tls(&config)?;
    let options = connect_options(&config.database);
    let (store, lock) = connect::open(&options).await?;
    let listener = listen(config.server.listen).await?;
    let address = listener.local_addr()?;
    let context = context(store, cache_limits(&config.cache));
    let health = Health::not_serving().await;
    let (stop, stopped) = watch::channel(false);
    let server = start_server(&config, &context, &health, tls, listener, stopped);
    tracing::info!(address = %address, tls = config.server.tls.is_some(), "listening");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let jobs = Jobs::default();
    let ready = async {
        get_ready(&config, &options, &context, address).await?;
        jobs.start(&context);
        health.set_serving(true).await;
        tracing::info!("ready");
        std::future::pending::<Result<(), AppError>>().await
    };
    let outcome = tokio::select! {
        failed = ready => failed,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let drained = drain(&config, context, &health, &stop, server, &jobs).await;
    drop(lock);
    outcome.and(drained)
}

fn connect_options(config: &DatabaseConfig) -> ConnectOptions {
    ConnectOptions {
        url: config.url.expose().to_owned(),
        verify_connections_max: config.verify_connections_max,
        control_connections_max: config.control_connections_max,
        usage_connections_max: config.usage_connections_max,
    }
}

fn cache_limits(config: &CacheConfig) -> CacheLimits {
    CacheLimits {
        entries_max: config.entries_max,
        entry_age_max: config.entry_age_max,
        negative_entries_max: config.negative_entries_max,
        negative_age_max: config.negative_age_max,
    }
}

fn context(store: Store, limits: CacheLimits) -> Arc<Context> {
    let records = Arc::new(Records::new(store.clone(), limits));
    Arc::new(Context {
        feed: Arc::new(Feed::new(store.clone(), records.clone())),
        records,
        store,
        clock: Clock::default(),
        limiter: Limiter::default(),
        recorder: Recorder::default(),
        page_tokens: OnceLock::new(),
        mutations: TaskTracker::new(),
    })
}

fn load_tls(config: &Config) -> Result<Option<Arc<TlsReloader>>, AppError> {
    let Some(files) = &config.server.tls else {
        return Ok(None);
    };
    let (certificate, key) = (files.certificate.clone(), files.key.clone());
    let tls = Arc::new(TlsReloader::load(certificate, key, files.client_ca.clone())?);
    let follower = tls.clone();
    tokio::spawn(async move { follower.follow().await });
    Ok(Some(tls))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, source })
}

type Server = JoinHandle<Result<(), Box<dyn std::error::Error + Send + Sync>>>;

fn start_server(
    config: &Config,
    context: &Arc<Context>,
    health: &Health,
    tls: Option<Arc<TlsReloader>>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) -> Server {
    let server = &config.server;
    let connections = grpc::accept(
        listener,
        tls,
        ListenerLimits { handshake_timeout: server.handshake_timeout, keepalive_interval: server.keepalive_interval },
    );
    let limits = ServerLimits {
        concurrent_streams_max: server.concurrent_streams_max,
        message_bytes_max: server.message_bytes_max,
        batch_bytes_max: server.batch_bytes_max,
        keepalive_interval: server.keepalive_interval,
        keepalive_timeout: server.keepalive_timeout,
        reflection: server.reflection,
    };
    let calls = Calls {
        context: context.clone(),
        verify_timeout: server.verify_timeout,
        control_timeout: server.control_timeout,
    };
    let health = health.clone();
    tokio::spawn(async move {
        let stop = async move {
            // An error means that the sender is gone, and with it the reason to go on.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        grpc::serve(calls, health, connections, limits, stop).await
    })
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
        match prepare(config, options, context).await {
            Ok(()) => break,
            Err(AppError::Store(error @ StoreError::Unavailable { .. })) => {
                if !told {
                    tracing::warn!(error = error.chain(), "waiting for the database");
                }
                told = true;
                let jitter = u32::from(random::bytes::<1>().first().copied().unwrap_or(0));
                tokio::time::sleep(RETRY_INTERVAL + RETRY_INTERVAL * jitter / 256).await;
            }
            Err(error) => return Err(error),
        }
    }
    if config.server.dev {
        return greet(config, context, address).await;
    }
    if !service::is_initialized(context).await? {
        tracing::warn!("the database has no organization yet: run `keystead init`");
    }
    Ok(())
}

async fn prepare(config: &Config, options: &ConnectOptions, context: &Arc<Context>) -> Result<(), AppError> {
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
    let key = state::find_or_insert_page_token_key(context.store.write(), random::bytes()).await?;
    // Set once; a second round after a failure finds the same key.
    let _ = context.page_tokens.set(PageTokens::new(key));
    context.limiter.restore(&context.store, context.clock.now()).await?;
    context.feed.poll().await?;
    Ok(())
}

/// Initializes a new database and prints what a newcomer can paste.
async fn greet(config: &Config, context: &Arc<Context>, address: SocketAddr) -> Result<(), AppError> {
    let secret = match service::init(context).await {
        Ok(secret) => Some(secret),
        Err(ServiceError::FailedPrecondition { reason: "ALREADY_INITIALIZED", .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let plain = if config.server.tls.is_some() { "" } else { " -plaintext" };
    let mut out = io::stdout().lock();
    writeln!(out, "Keystead serves on {address}. Paste into another terminal:\n")?;
    match &secret {
        Some(secret) => writeln!(out, "export KEYSTEAD_TOKEN={}", secret.expose())?,
        None => writeln!(out, "# KEYSTEAD_TOKEN is the admin secret that was printed at the first start.")?,
    }
    let call = format!("grpcurl{plain} -H \"authorization: Bearer $KEYSTEAD_TOKEN\"");
    let service = "keystead.v1";
    writeln!(
        out,
        "\n{call} -d '{{\"name\":\"Acme\",\"slug\":\"acme\"}}' {address} {service}.OrganizationService/CreateOrganization"
    )?;
    writeln!(
        out,
        "{call} -d '{{\"organization_id\":\"<id>\",\"name\":\"first\",\"environment\":\"ENVIRONMENT_LIVE\"}}' {address} {service}.KeyService/CreateKey"
    )?;
    writeln!(out, "{call} -d '{{\"secret\":\"<secret>\"}}' {address} {service}.KeyService/VerifyKey")?;
    writeln!(out, "{call} -d '{{\"key_id\":\"<key id>\"}}' {address} {service}.KeyService/RevokeKey\n")?;
    out.flush()?;
    Ok(())
}

/// Ends the service without losing a call or what it has gathered, or after the deadline in any case.
async fn drain(
    config: &Config,
    context: Arc<Context>,
    health: &Health,
    stop: &watch::Sender<bool>,
    server: Server,
    jobs: &Jobs,
) -> Result<(), AppError> {
    tracing::info!("draining");
    health.set_serving(false).await;
    stop.send_replace(true);
    let finish = async {
        let ended = server.await;
        jobs.stop();
        context.mutations.close();
        jobs::finish(&context).await;
        context.mutations.wait().await;
        context.store.clone().close().await;
        ended
    };
    let drained = tokio::time::timeout(config.server.drain_timeout, finish).await;
    match drained {
        Ok(Ok(Ok(()))) => tracing::info!("drained"),
        Ok(Ok(Err(error))) => return Err(AppError::Server(error)),
        Ok(Err(panic)) => return Err(AppError::Server(Box::new(panic))),
        Err(_) => tracing::error!("the drain deadline has passed; what is still in flight is cut off"),
    }
    Ok(())
}
