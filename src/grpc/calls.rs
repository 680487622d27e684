//! What every call goes through, in this order: caller and permission, then the request's fields, then the use case,
//! all within the service's own time. Refusing happens here, inside the handler, when the body has been read.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{call_log::CallRecord, listener::Peer, status::encode_error};
use crate::{
    domain::permission::Permission,
    service::{Call, Context, Credential, Freshness, ServiceError, authenticate},
};

/// How long before the caller's deadline it is refused.
const ANSWER_TIME: Duration = Duration::from_millis(3);

/// What kind of call it is: control-plane calls read the caller's permissions from the database, verification takes
/// them from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    Verification,
    Control,
}

/// Runs calls.
#[derive(Clone)]
pub struct Calls {
    pub context: Arc<Context>,
    /// The service's own time for a verification.
    pub verify_timeout: Duration,
    /// The service's own time for any other call.
    pub control_timeout: Duration,
}

impl Calls {
    /// Runs one call of the control plane.
    pub async fn control<Q, A, F>(
        &self,
        request: Request<Q>,
        permission: Permission,
        work: impl FnOnce(Arc<Context>, Call, Q, CallRecord) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, ServiceError>>,
    {
        self.run(request, permission, Plane::Control, work).await
    }

    /// Runs one verification.
    pub async fn verification<Q, A, F>(
        &self,
        request: Request<Q>,
        work: impl FnOnce(Arc<Context>, Call, Q, CallRecord) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, ServiceError>>,
    {
        self.run(request, Permission::KeysVerify, Plane::Verification, work).await
    }

    /// Refuses an rpc that this version does not have, once the caller has been checked as for any other.
    pub async fn unimplemented<Q, A>(
        &self,
        request: Request<Q>,
        permission: Permission,
        rpc: &'static str,
    ) -> Result<Response<A>, Status> {
        self.control(request, permission, |_, _, _, _| async move { Err(ServiceError::Unimplemented { rpc }) }).await
    }

    async fn run<Q, A, F>(
        &self,
        request: Request<Q>,
        permission: Permission,
        plane: Plane,
        work: impl FnOnce(Arc<Context>, Call, Q, CallRecord) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, ServiceError>>,
    {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip().to_canonical());
        let record = request.extensions().get::<CallRecord>().cloned();
        let record = record.ok_or_else(|| Status::internal("the call log layer is missing"))?;
        let (metadata, _, message) = request.into_parts();
        let (own_time, freshness) = match plane {
            Plane::Verification => (self.verify_timeout, Freshness::Cached),
            Plane::Control => (self.control_timeout, Freshness::FreshForControl),
        };
        let callers_time = callers_time(&metadata);
        let whole = async {
            if !self.context.is_ready() {
                return Err(ServiceError::unavailable("NOT_READY"));
            }
            let call = self.caller(&metadata, peer, permission, freshness, &record).await?;
            work(self.context.clone(), call, message, record.clone()).await
        };
        let time = callers_time.map_or(own_time, |callers| callers.min(own_time));
        let result = tokio::time::timeout(time, whole).await.unwrap_or_else(|_| {
            Err(if time < own_time { ServiceError::DeadlineExceeded } else { ServiceError::timed_out() })
        });
        result.map(Response::new).map_err(|error| {
            log_cause(&error, &record.request_id);
            encode_error(&error, &record.request_id)
        })
    }

    async fn caller(
        &self,
        metadata: &MetadataMap,
        peer: Option<IpAddr>,
        permission: Permission,
        freshness: Freshness,
        record: &CallRecord,
    ) -> Result<Call, ServiceError> {
        let credential = Credential { secret: bearer(metadata), peer };
        let caller = authenticate(&self.context, &credential, permission, freshness).await?;
        record.caller(caller.key_id);
        Ok(Call { caller, request_id: record.request_id.to_string() })
    }
}

/// Logs what an error came from, once, here at the edge; the caller is shown none of it.
fn log_cause(error: &ServiceError, request_id: &str) {
    match error {
        ServiceError::Internal(cause) => tracing::error!(request_id, cause, "internal error"),
        ServiceError::Unavailable { cause, .. } if !cause.is_empty() => {
            tracing::warn!(request_id, cause, "the call could not be answered");
        }
        _ => {}
    }
}

/// How long the caller waits (`grpc-timeout` of the gRPC specification: up to 8 digits and a unit), less what the
/// answer needs to be sent. tonic drops a call at the caller's deadline; refusing just before it gives the answer its
/// details and the log its line.
fn callers_time(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    let time = match unit {
        "H" => Duration::from_hours(count),
        "M" => Duration::from_mins(count),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(time.saturating_sub(ANSWER_TIME))
}

/// The bearer secret (RFC 6750, section 2.1), `None` where there is none, another scheme, or more than one header.
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let mut values = metadata.get_all("authorization").iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim_start())
}
