//! One HTTP/2 connection: hyper's settings, of which its defaults bound almost nothing, and how its calls are run.
//! Why each setting is there stands in the table of `docs/architecture.md`; every one was seen to be needed.
//! Must not decide anything about a call.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::{rt::Executor, server::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use super::{router::Router, until_stopped::stop};

/// Flow control per connection: at least 512 bytes for each of 1024 streams.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Flow control per stream: one request of the largest single size.
const STREAM_WINDOW_BYTES: u32 = 1 << 16;
/// Streams that we reset for their errors before the connection is given up.
const LOCAL_ERROR_RESETS_MAX: usize = 1024;
/// Headers of one call; a bearer secret is at most 512 bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// The bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    pub concurrent_streams_max: u32,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

/// Runs a call where it arrives: a verification that hits the cache ends at its first poll, and pays for no task.
/// What does not end there goes on as a task. One that panics ends alone, as a task would, and not its connection.
#[derive(Clone)]
struct FirstPollInPlace;

impl<F> Executor<F> for FirstPollInPlace
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let mut call = Box::pin(call);
        let first = || call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // The panic has been told of already; the call is dropped, which resets its stream.
        if let Ok(Poll::Pending) = catch_unwind(AssertUnwindSafe(first)) {
            tokio::spawn(call);
        }
    }
}

/// Serves a connection until it ends; once `stopped` turns true it takes no more calls, and ends with the last one.
pub async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    limits: ConnectionLimits,
    mut stopped: watch::Receiver<bool>,
) {
    let connection = http2::Builder::new(FirstPollInPlace)
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(limits.concurrent_streams_max)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_local_error_reset_streams(LOCAL_ERROR_RESETS_MAX)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_header_list_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), router);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "a connection ended with an error");
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    #[tokio::test]
    async fn a_call_that_panics_at_once_ends_alone() {
        FirstPollInPlace.execute(async { panic!("a defect") });
        let (answer, answered) = tokio::sync::oneshot::channel();
        FirstPollInPlace.execute(async move {
            tokio::task::yield_now().await;
            let _ = answer.send(());
        });
        FirstPollInPlace.execute(future::ready(()));
        answered.await.expect("the next call is run to its end");
    }
}
