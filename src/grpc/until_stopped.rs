//! What ends when the service is told to stop: the body of a request, for one. A shutdown waits for every stream, and a stream
//! whose client never ends it (reflection is one) would hold it up until the deadline.
//! Must not be put around our own calls: those finish.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::Frame;
use prost::bytes::Bytes;
use tokio::sync::watch;
use tonic::{Status, body::Body};

/// Waits until the service is told to stop.
pub async fn stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the reason to go on.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// A body that ends at the stop.
struct UntilStopped {
    body: Body,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Ends `body` when `stopped` turns true.
pub fn until_stopped(body: Body, mut stopped: watch::Receiver<bool>) -> Body {
    let stopped = Box::pin(async move { stop(&mut stopped).await });
    Body::new(UntilStopped { body, stopped })
}

impl http_body::Body for UntilStopped {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
