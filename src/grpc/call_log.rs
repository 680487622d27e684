//! One log line and one count per call, and rich details for what tonic refuses by itself before a handler runs: messages that are
//! too large or malformed, methods that do not exist. Verifications that were answered are logged at DEBUG, since
//! there is one for every request of every service; all other calls at INFO.
//! Must not read the body of a call that a handler takes, nor refuse one unread: h2 punishes dropped bodies.
//! Never logs a secret, a digest or metadata; names and ids alone.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body};
use tracing::{Level, field::display};

use super::{
    listener::Peer,
    methods::{self, Method},
    status::Refusal,
    until_stopped::until_stopped,
};
use crate::{
    clock::Clock,
    domain::ids::{KeyId, OrganizationId, RecordId},
    random,
    telemetry::Metrics,
};

/// The response header that carries the call's id, where the call has a line in the log.
const REQUEST_ID_HEADER: &str = "x-request-id";

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
    pub request_id: RecordId,
    pub peer: Peer,
    told: Arc<Mutex<Told>>,
}

impl CallRecord {
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

impl Line {
    /// Calls that are made so often that nobody wants to read of each one that went well.
    fn is_quiet(&self) -> bool {
        let name = self.method.name;
        let answered = methods::is_verification(name) && self.code == Code::Ok;
        answered || !name.starts_with("keystead.") && name != methods::UNKNOWN
    }

    fn is_written(&self) -> bool {
        !self.is_quiet() || tracing::enabled!(Level::DEBUG)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let time = self.begun.elapsed();
        self.metrics.call(self.method.index, self.code as usize, time);
        if !self.is_written() {
            return;
        }
        let told = self.record.told.lock().unwrap_or_else(PoisonError::into_inner);
        let duration_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let outcome = told.outcome;
        let key_id = told.key_id.map(display);
        let organization_id = told.organization_id.map(display);
        let caller_key_id = told.caller_key_id.map(display);
        let (method, code, request_id) = (self.method.name, code_name(self.code), display(self.record.request_id));
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    method,
                    code,
                    outcome,
                    key_id,
                    organization_id,
                    caller_key_id,
                    duration_us,
                    request_id,
                    "call"
                )
            };
        }
        if self.is_quiet() { line!(Level::DEBUG) } else { line!(Level::INFO) }
    }
}

/// Begins the records of calls.
#[derive(Clone)]
pub struct CallLog {
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    /// Turns true when the service is told to stop.
    pub stopped: watch::Receiver<bool>,
}

/// A call under way. Its line is written when it ends, or is dropped since its caller has hung up.
pub struct LoggedCall(Line);

impl CallLog {
    /// Begins a call of this method; `None` for one that does not exist.
    pub fn begin(&self, method: Option<Method>, peer: Peer) -> LoggedCall {
        let request_id = RecordId::new(self.clock.now(), random::id_bytes());
        let record = CallRecord { request_id, peer, told: Arc::default() };
        let method = method.unwrap_or_else(methods::unknown);
        let metrics = self.metrics.clone();
        LoggedCall(Line { method, metrics, begun: Instant::now(), record, code: Code::Cancelled })
    }

    /// Gives a request what its handler wants to know of the call, and a stream that never ends by itself its end.
    pub fn prepare(&self, method: Method, mut request: Request<Body>, record: CallRecord) -> Request<Body> {
        request.extensions_mut().insert(record);
        if methods::is_reflection(method.name) {
            request.map(|body| until_stopped(body, self.stopped.clone()))
        } else {
            request
        }
    }
}

impl LoggedCall {
    /// What handlers add to.
    pub fn record(&self) -> CallRecord {
        self.0.record.clone()
    }

    /// Ends the call with this answer.
    pub fn end<B>(self, mut response: Response<B>) -> Response<B> {
        let Self(mut line) = self;
        line.code = match Status::from_header_map(response.headers()) {
            Some(status) => complete(&status, response.headers_mut()),
            None => Code::Ok,
        };
        if line.is_written()
            && let Ok(id) = HeaderValue::from_str(&line.record.request_id.to_string())
        {
            response.headers_mut().insert(REQUEST_ID_HEADER, id);
        }
        response
    }
}

/// Gives a status that tonic made by itself the details that ours have, in the words of our contract.
fn complete(status: &Status, headers: &mut HeaderMap) -> Code {
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
        headers.remove(name);
    }
    // Only fails for a message that no header can hold; the status then goes out as tonic made it.
    let _ = completed.add_header(headers);
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
