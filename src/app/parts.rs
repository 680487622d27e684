//! The parts of a running service, made from the configuration: options of the database, the spool and the cache, the
//! context of the use cases, and the server's task. Must start nothing but that task and the follower of TLS files.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Duration,
};

use tokio::{net::TcpListener, runtime::Handle, sync::watch, task::JoinHandle};
use tokio_util::task::TaskTracker;

use super::AppError;
use crate::{
    clock::Clock,
    config::{Config, DatabaseConfig},
    domain::ids::RecordId,
    grpc::{self, Calls, ConnectionLimits, Health, ListenerLimits, ServerLimits, TlsReloader},
    limits::{Limits, Quotas, RedisCounters, Spender},
    random,
    service::{Context, ImportUses, SlowKeys},
    store::{
        Store,
        connect::{self, ConnectError, ConnectOptions},
    },
    telemetry::Metrics,
    usage::{Recorder, SpoolOptions},
    verify::{CacheLimits, Feed, Records},
};

/// A verification's time in commands that serve none.
const VERIFY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

pub(super) fn connect_options(config: &DatabaseConfig) -> ConnectOptions {
    ConnectOptions {
        url: config.url.expose().to_owned(),
        verify_connections_max: config.verify_connections_max,
        control_connections_max: config.control_connections_max,
        usage_connections_max: config.usage_connections_max,
        verify_timeout: VERIFY_TIMEOUT_DEFAULT,
    }
}

pub(super) fn spool_options(config: &Config) -> Result<SpoolOptions, ConnectError> {
    let default = || connect::default_spool(config.database.url.expose());
    let folder = config.usage.spool.clone().map_or_else(default, Ok)?;
    Ok(SpoolOptions { folder, bytes_max: config.usage.spool_bytes_max })
}

pub(super) fn cache_limits(config: &Config) -> CacheLimits {
    CacheLimits {
        entries_max: config.cache.entries_max,
        entry_age_max: config.cache.entry_age_max,
        negative_entries_max: config.cache.negative_entries_max,
        negative_age_max: config.cache.negative_age_max,
        query_timeout: config.server.verify_timeout,
    }
}

pub(super) fn context(
    store: Store,
    limits: CacheLimits,
    staleness_bound: Duration,
    redis: Option<RedisCounters>,
) -> Arc<Context> {
    let records = Arc::new(Records::new(store.clone(), limits));
    let (runtime, mutations) = (Handle::current(), TaskTracker::new());
    let clock = Clock::default();
    Arc::new(Context {
        replica_id: RecordId::new(clock.now(), random::bytes()),
        feed: Arc::new(Feed::new(store.clone(), records.clone(), staleness_bound)),
        records,
        limits: Limits::new(redis, &store, runtime.clone(), mutations.clone()),
        quotas: Quotas::new(store.clone(), runtime.clone(), mutations.clone()),
        spender: Spender::new(store.clone(), runtime, mutations.clone()),
        slow_keys: SlowKeys::new(store.clone()),
        import_uses: ImportUses::default(),
        store,
        clock,
        recorder: Recorder::default(),
        metrics: Arc::new(Metrics::new(grpc::method_names())),
        page_tokens: OnceLock::new(),
        unsealed: AtomicBool::new(true),
        mutations,
    })
}

pub(super) fn load_tls(config: &Config) -> Result<Option<Arc<TlsReloader>>, AppError> {
    let Some(files) = &config.server.tls else {
        return Ok(None);
    };
    let (certificate, key) = (files.certificate.clone(), files.key.clone());
    let tls = Arc::new(TlsReloader::load(certificate, key, files.client_ca.clone())?);
    let follower = tls.clone();
    tokio::spawn(async move { follower.follow().await });
    Ok(Some(tls))
}

pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, source })
}

pub(super) type BoxedError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Served = Result<(), BoxedError>;
pub(super) type Server = JoinHandle<Served>;

pub(super) fn start_server(
    config: &Config,
    context: &Arc<Context>,
    health: &Health,
    tls: Option<Arc<TlsReloader>>,
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
) -> Server {
    let server = &config.server;
    let limits = ServerLimits {
        connection: ConnectionLimits {
            concurrent_streams_max: server.concurrent_streams_max,
            keepalive_interval: server.keepalive_interval,
            keepalive_timeout: server.keepalive_timeout,
        },
        listener: ListenerLimits {
            handshake_timeout: server.handshake_timeout,
            keepalive_interval: server.keepalive_interval,
        },
        message_bytes_max: server.message_bytes_max,
        batch_bytes_max: server.batch_bytes_max,
        reflection: server.reflection,
    };
    let calls = Calls {
        context: context.clone(),
        main: Handle::current(),
        verify_timeout: server.verify_timeout,
        control_timeout: server.control_timeout,
    };
    let health = health.clone();
    tokio::spawn(async move { grpc::serve(calls, health, tls, listener, limits, stopped).await })
}
