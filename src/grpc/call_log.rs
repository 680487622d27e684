//! One log line and one count per call, and rich details for what tonic refuses by itself before a handler runs:
//! messages that are too large or malformed, methods that do not exist.
//! Must not read the body of a call that a handler takes, nor refuse one unread: h2 punishes dropped bodies.
//! Never logs a secret, a digest or metadata; names and ids alone.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::field::display;

use super::{methods, methods::Method, status::Refusal, until_stopped::until_stopped};
use crate::{
    clock::Clock,
    domain::ids::{KeyId, OrganizationId, RecordId},
    random,
    telemetry::Metrics,
};

/// The response header that carries the call's id.
const REQUEST_ID_HEADER: &str = "x-request-id";

/// How much of the body of an unknown method is read.
const UNKNOWN_BYTES_MAX: usize = 1 << 20;

/// What a handler tells of its call.
#[derive(Debug, Default)]
struct Told {
    outcome: Option<&'static str>,
    caller_key_id: Option<KeyId>,
    key_id: Option<KeyId>,
    organization_id: Option<OrganizationId>,
}

/// One call, as the log will show it. Handlers find it in the request's extensions.
#[derive(Debug, Clone)]
pub struct CallRecord {
    pub request_id: Arc<str>,
    told: Arc<Mutex<Told>>,
}

impl CallRecord {
    fn new(request_id: &str) -> Self {
        Self { request_id: request_id.into(), told: Arc::default() }
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes who calls.
    pub fn caller(&self, key: KeyId) {
        self.tell(|told| told.caller_key_id = Some(key));
    }

    /// Notes the key that the call is about.
    pub fn key(&self, key: KeyId, organization: OrganizationId) {
        self.tell(|told| (told.key_id, told.organization_id) = (Some(key), Some(organization)));
    }

    /// Notes the key that the call asks for, be there one or not.
    pub fn key_id(&self, key: KeyId) {
        self.tell(|told| told.key_id = Some(key));
    }

    /// Notes the organization that the call is about.
    pub fn organization(&self, organization: OrganizationId) {
        self.tell(|told| told.organization_id = Some(organization));
    }

    /// Notes the outcome of a verification.
    pub fn outcome(&self, outcome: &'static str) {
        self.tell(|told| told.outcome = Some(outcome));
    }
}

/// Writes the line when it is dropped, so that a call whose caller hung up has one too.
struct Line {
    method: Method,
    metrics: Arc<Metrics>,
    begun: Instant,
    record: CallRecord,
    code: Code,
}

impl Drop for Line {
    fn drop(&mut self) {
        let told = self.record.told.lock().unwrap_or_else(PoisonError::into_inner);
        let time = self.begun.elapsed();
        self.metrics.call(self.method.index, self.code as usize, time);
        let duration_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let outcome = told.outcome;
        let key_id = told.key_id.map(display);
        let organization_id = told.organization_id.map(display);
        let caller_key_id = told.caller_key_id.map(display);
        let (method, code, request_id) = (self.method.name, code_name(self.code), &*self.record.request_id);
        if method.starts_with("grpc.") {
            tracing::debug!(method, code, duration_us, request_id, "call");
        } else {
            tracing::info!(
                method,
                code,
                outcome,
                key_id,
                organization_id,
                caller_key_id,
                duration_us,
                request_id,
                "call"
            );
        }
    }
}

/// Wraps every call.
#[derive(Clone)]
pub struct CallLogLayer {
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    /// Turns true when the service is told to stop.
    pub stopped: watch::Receiver<bool>,
}

impl<S> Layer<S> for CallLogLayer {
    type Service = CallLog<S>;

    fn layer(&self, inner: S) -> CallLog<S> {
        CallLog { inner, layer: self.clone() }
    }
}

/// The service of [`CallLogLayer`].
#[derive(Clone)]
pub struct CallLog<S> {
    inner: S,
    layer: CallLogLayer,
}

impl<S> Service<Request<Body>> for CallLog<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let request_id = RecordId::new(self.layer.clock.now(), random::bytes()).to_string();
        let record = CallRecord::new(&request_id);
        let known = methods::find(request.uri().path());
        let method = known.unwrap_or_else(methods::unknown);
        let metrics = self.layer.metrics.clone();
        let line = Line { method, metrics, begun: Instant::now(), record: record.clone(), code: Code::Cancelled };
        let answer = if known.is_some() {
            request.extensions_mut().insert(record);
            if methods::is_reflection(method.name) {
                request = request.map(|body| until_stopped(body, self.layer.stopped.clone()));
            }
            Ok(self.inner.call(request))
        } else {
            Err(refuse_unknown(request))
        };
        Box::pin(async move {
            // All of it, so that it is dropped, and written, when this future is.
            let mut line = line;
            let mut response = match answer {
                Ok(answer) => answer.await?,
                Err(refused) => refused.await,
            };
            line.code = match Status::from_header_map(response.headers()) {
                Some(status) => complete(&status, &mut response),
                None => Code::Ok,
            };
            if let Ok(id) = HeaderValue::from_str(&request_id) {
                response.headers_mut().insert(REQUEST_ID_HEADER, id);
            }
            Ok(response)
        })
    }
}

/// Refuses a method that does not exist, once its body has been read: h2 gives up connections on which bodies are
/// dropped unread. A body that is larger than any of ours is not read to its end.
async fn refuse_unknown(request: Request<Body>) -> Response<Body> {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, prost::bytes::Bytes::len);
        if bytes > UNKNOWN_BYTES_MAX {
            break;
        }
    }
    Refusal::new(Code::Unimplemented, "UNKNOWN_METHOD", "there is no such method").into_status().into_http()
}

/// Gives a status that tonic made by itself the details that ours have, in the words of our contract.
fn complete(status: &Status, response: &mut Response<Body>) -> Code {
    if status.code() == Code::Ok || !status.details().is_empty() {
        return status.code();
    }
    let message = status.message();
    let refusal = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            Refusal::new(Code::InvalidArgument, "MESSAGE_TOO_LARGE", "the request is larger than this rpc takes")
        }
        Code::Internal => {
            let message = "the request cannot be decoded: it is not a message of this rpc";
            Refusal::new(Code::InvalidArgument, "MALFORMED_MESSAGE", message)
        }
        // Unknown methods do not get here, so this is about how a known one was called.
        Code::Unimplemented => {
            let message = "the request is compressed, which is not supported";
            Refusal::new(Code::Unimplemented, "ENCODING_NOT_SUPPORTED", message)
        }
        Code::NotFound => Refusal::new(Code::NotFound, "NOT_FOUND", message),
        code => Refusal::new(code, "REFUSED", message),
    };
    let completed = refusal.into_status();
    for name in [Status::GRPC_STATUS, Status::GRPC_MESSAGE, Status::GRPC_STATUS_DETAILS] {
        response.headers_mut().remove(name);
    }
    // Only fails for a message that no header can hold; the status then goes out as tonic made it.
    let _ = completed.add_header(response.headers_mut());
    completed.code()
}

/// The name of a code as the gRPC specification spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
