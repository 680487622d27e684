//! The listener of `/metrics`, `/livez` and `/readyz`, over plain HTTP/1.1, for scrapers and probes.
//! Without a credential, so it must show nothing but numbers and names of ours; it reads no body and takes no other
//! path. Invariant: what a peer can hold is bounded: connections, bytes of a request's head, and time.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// The head of a request.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// How long a peer may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take as a whole: one request each.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after an error of accepting: out of descriptors, the loop would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// `OpenMetrics` 1.0.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN_TYPE: &str = "text/plain; charset=utf-8";

/// What the pages show.
pub struct Pages {
    /// The page of metrics.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// Whether the service serves, and lines of detail: what `/readyz` says.
    pub ready: Box<dyn Fn() -> (bool, String) + Send + Sync>,
}

/// Answers until the task is ended.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(seat) = seats.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let _seat = seat;
            // However it ends, there is nobody to tell.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, answer(stream, pages)).await;
        });
    }
}

async fn answer(stream: TcpStream, pages: Arc<Pages>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &pages);
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn respond(method: &Method, path: &str, pages: &Pages) -> Response<Full<Bytes>> {
    let (status, content_type, text) = match path {
        "/metrics" | "/livez" | "/readyz" if method != Method::GET && method != Method::HEAD => {
            (StatusCode::METHOD_NOT_ALLOWED, PLAIN_TYPE, "GET or HEAD\n".to_owned())
        }
        "/metrics" => (StatusCode::OK, METRICS_TYPE, (pages.metrics)()),
        "/livez" => (StatusCode::OK, PLAIN_TYPE, "alive\n".to_owned()),
        "/readyz" => match (pages.ready)() {
            (true, details) => (StatusCode::OK, PLAIN_TYPE, format!("ready\n{details}")),
            (false, details) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN_TYPE, format!("not ready\n{details}")),
        },
        _ => (StatusCode::NOT_FOUND, PLAIN_TYPE, "there are /metrics, /livez and /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
