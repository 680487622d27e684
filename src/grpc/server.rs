//! The server: tonic's settings, of which its defaults bound almost nothing, and the services behind them.
//! Why each setting is there stands in the table of `docs/architecture.md`; every one was seen to be needed.

use std::time::Duration;

use tokio::sync::watch;
use tonic::transport::Server;

use super::{call_log::CallLogLayer, calls::Calls, health::Health, listener::Connections, sizes::BySize};
use crate::{
    clock::Clock,
    proto::{
        FILE_DESCRIPTOR_SET,
        v1::{
            audit_service_server::AuditServiceServer, key_service_server::KeyServiceServer,
            organization_service_server::OrganizationServiceServer,
        },
    },
};

/// Flow control per connection: at least 512 bytes for each of 1024 streams.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Flow control per stream: one request of the largest single size.
const STREAM_WINDOW_BYTES: u32 = 1 << 16;
/// Streams that we reset for their errors before the connection is given up (h2's own default, which tonic drops).
const LOCAL_ERROR_RESETS_MAX: usize = 1024;
/// Headers of one call; a bearer secret is at most 512 bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// The bounds of the server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    pub concurrent_streams_max: u32,
    pub message_bytes_max: usize,
    pub batch_bytes_max: usize,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// Whether clients may ask for the contract by reflection.
    pub reflection: bool,
}

/// Serves until `stopped` turns true, then until every call in flight has been answered.
///
/// # Errors
/// Where the descriptor set cannot be read, or the transport fails as a whole.
pub async fn serve(
    calls: Calls,
    health: Health,
    connections: Connections,
    limits: ServerLimits,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let clock: Clock = calls.context.clock.clone();
    let metrics = calls.context.metrics.clone();
    let (single, batch) = (limits.message_bytes_max, limits.batch_bytes_max);
    let keys = BySize {
        single: KeyServiceServer::new(calls.clone()).max_decoding_message_size(single),
        batch: KeyServiceServer::new(calls.clone()).max_decoding_message_size(batch),
    };
    let reflection_v1 = limits.reflection.then(|| reflection().build_v1()).transpose()?;
    let reflection_v1 = reflection_v1.map(|service| service.max_decoding_message_size(single));
    let reflection_v1alpha = limits.reflection.then(|| reflection().build_v1alpha()).transpose()?;
    let reflection_v1alpha = reflection_v1alpha.map(|service| service.max_decoding_message_size(single));
    Server::builder()
        .max_concurrent_streams(limits.concurrent_streams_max)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS_MAX))
        .http2_keepalive_interval(Some(limits.keepalive_interval))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .layer(CallLogLayer { clock, metrics, stopped: stopped.clone() })
        .add_service(keys)
        .add_service(OrganizationServiceServer::new(calls.clone()).max_decoding_message_size(single))
        .add_service(AuditServiceServer::new(calls).max_decoding_message_size(single))
        .add_service(health.service().max_decoding_message_size(single))
        .add_optional_service(reflection_v1)
        .add_optional_service(reflection_v1alpha)
        .serve_with_incoming_shutdown(connections, async move {
            // An error means that the sender is gone, and with it the reason to go on.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        })
        .await?;
    Ok(())
}

fn reflection<'a>() -> tonic_reflection::server::Builder<'a> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that clients which learn the contract by reflection can show the details of an error too.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
