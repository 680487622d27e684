//! The server: the services, the threads that serve them, and the loop that accepts connections.
//! Must not end for an error of one connection; out of descriptors, it pauses instead of burning a core.

use std::{error::Error, net::SocketAddr, net::TcpStream, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{net::TcpListener, sync::watch};
use tonic::service::Routes;

use super::{
    call_log::CallLog,
    calls::Calls,
    connection::{ConnectionLimits, serve_connection},
    health::Health,
    listener::{self, Begun, ListenerLimits, Peer},
    router::{Router, Services},
    sizes::BySize,
    tls::TlsReloader,
    until_stopped::stop,
    workers::Workers,
};
use crate::proto::{
    FILE_DESCRIPTOR_SET,
    v1::{
        audit_service_server::AuditServiceServer, key_service_server::KeyServiceServer,
        organization_service_server::OrganizationServiceServer,
    },
};

/// How long the accept loop pauses when the system gives no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long handshakes that are under way at the stop may take.
const LAST_HANDSHAKES: Duration = Duration::from_millis(250);

/// The bounds of the server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    pub connection: ConnectionLimits,
    pub listener: ListenerLimits,
    pub message_bytes_max: usize,
    pub batch_bytes_max: usize,
    /// Whether clients may ask for the contract by reflection.
    pub reflection: bool,
}

/// What it takes to serve a connection.
#[derive(Clone)]
pub struct Serving {
    services: Services,
    tls: Option<Arc<TlsReloader>>,
    limits: ServerLimits,
    stopped: watch::Receiver<bool>,
}

impl Serving {
    /// Serves one connection, from its handshake to its end.
    pub async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        let mut stopped = self.stopped.clone();
        let begun = tokio::select! {
            begun = listener::begin(stream, peer, self.tls.as_deref(), self.limits.listener) => begun,
            // One that is still shaking hands may have sent a call already: it is told properly that it is too late.
            () = stopped_for(&mut stopped, LAST_HANDSHAKES) => return,
        };
        let router = Router { services: self.services, peer: Peer { address: peer } };
        match begun {
            None => {}
            Some(Begun::Plain(stream)) => {
                serve_connection(stream, router, self.limits.connection, self.stopped).await;
            }
            Some(Begun::Tls(stream)) => serve_connection(stream, router, self.limits.connection, self.stopped).await,
        }
    }
}

/// Serves until `stopped` turns true, then until every call in flight has been answered.
///
/// # Errors
/// Where the descriptor set cannot be read, or the system gives no threads.
pub async fn serve(
    calls: Calls,
    health: Health,
    tls: Option<Arc<TlsReloader>>,
    listener: TcpListener,
    limits: ServerLimits,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let services = services(calls, &health, limits, stopped.clone())?;
    let workers = Workers::start(&Serving { services, tls, limits, stopped: stopped.clone() })?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop(&mut stopped) => break,
        };
        match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok((stream, peer)) => workers.give(stream, peer)?,
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever has connected by now is told, and not cut off.
    while let Some(Ok((stream, peer))) = listener.accept().now_or_never() {
        if let Ok(stream) = stream.into_std() {
            workers.give(stream, peer)?;
        }
    }
    drop(listener);
    workers.finish().await;
    Ok(())
}

async fn stopped_for(stopped: &mut watch::Receiver<bool>, time: Duration) {
    stop(stopped).await;
    tokio::time::sleep(time).await;
}

fn services(
    calls: Calls,
    health: &Health,
    limits: ServerLimits,
    stopped: watch::Receiver<bool>,
) -> Result<Services, Box<dyn Error + Send + Sync>> {
    let (single, batch) = (limits.message_bytes_max, limits.batch_bytes_max);
    let own_calls = calls.clone();
    let (clock, metrics) = (calls.context.clock.clone(), calls.context.metrics.clone());
    let log = CallLog { clock, metrics, stopped };
    let keys = BySize {
        single: KeyServiceServer::new(calls.clone()).max_decoding_message_size(single),
        batch: KeyServiceServer::new(calls.clone()).max_decoding_message_size(batch),
    };
    let mut others = Routes::builder();
    others
        .add_service(OrganizationServiceServer::new(calls.clone()).max_decoding_message_size(single))
        .add_service(AuditServiceServer::new(calls).max_decoding_message_size(single))
        .add_service(health.service().max_decoding_message_size(single));
    if limits.reflection {
        others
            .add_service(reflection().build_v1()?.max_decoding_message_size(single))
            .add_service(reflection().build_v1alpha()?.max_decoding_message_size(single));
    }
    Ok(Services { log, calls: own_calls, message_bytes_max: single, keys, others: others.routes().prepare() })
}

fn reflection<'a>() -> tonic_reflection::server::Builder<'a> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that clients which learn the contract by reflection can show the details of an error too.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
