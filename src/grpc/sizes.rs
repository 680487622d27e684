//! Two bounds on the size of a request in one service: tonic bounds messages per service, while of `KeyService` only
//! the batches may be large. Without a bound of 64 KiB on the rest, five bytes reserve a megabyte for each stream.

use std::task::{Context, Poll};

use http::Request;
use tonic::server::NamedService;
use tower::Service;

/// The rpcs that carry a batch.
const BATCHES: [&str; 3] = ["/BatchVerifyKeys", "/ImportKeys", "/ReportUsage"];

/// Sends batches to one instance of a service and everything else to another, which bounds messages tighter.
#[derive(Clone)]
pub struct BySize<S> {
    pub single: S,
    pub batch: S,
}

impl<S: NamedService> NamedService for BySize<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for BySize<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.single.poll_ready(context) {
            Poll::Ready(Ok(())) => self.batch.poll_ready(context),
            other => other,
        }
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let is_batch = BATCHES.iter().any(|method| request.uri().path().ends_with(method));
        if is_batch { self.batch.call(request) } else { self.single.call(request) }
    }
}
