//! Puts the listener of metrics and probes together with what it shows.
//! Must not keep the service from ending: the listener ends with the value that `serve` gives.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::AppError;
use crate::{
    service::Context,
    telemetry::listener::{self, Pages},
};

/// Serves metrics and probes until what this gives is dropped; nothing where the address is `None`.
pub(super) async fn serve(
    address: Option<SocketAddr>,
    context: &Arc<Context>,
) -> Result<Option<AbortOnDropHandle<()>>, AppError> {
    let Some(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await.map_err(|source| AppError::ListenMetrics { address, source })?;
    tracing::info!(metrics = %listener.local_addr()?, "metrics are served");
    let (page, state) = (context.clone(), context.clone());
    let pages = Pages {
        metrics: Box::new(move || page.metrics_page()),
        ready: Box::new(move || (state.metrics.ready.get() == 1, details(&state))),
    };
    Ok(Some(AbortOnDropHandle::new(tokio::spawn(listener::serve(listener, Arc::new(pages))))))
}

/// What the service does without at present, a line each.
fn details(context: &Context) -> String {
    let mut lines = String::new();
    if context.store.is_away() {
        lines.push_str("database: away\n");
    }
    if context.limits_are_degraded() {
        lines.push_str("limits: degraded\n");
    }
    lines
}
