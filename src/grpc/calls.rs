//! What every call goes through, in this order: caller and permission, then the request's fields, then the use case,
//! all within the service's own time. Refusing happens here, inside the handler, when the body has been read.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{call_log::CallRecord, listener::Peer, status::encode_error};
use crate::{
    domain::permission::Permission,
    service::{Call, Context, Credential, ServiceError, authenticate},
    verify::Freshness,
};

/// Who may be long: control-plane calls read the caller's permissions from the database, verification from the cache.
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
        let (time, freshness) = match plane {
            Plane::Verification => (self.verify_timeout, Freshness::Cached),
            Plane::Control => (self.control_timeout, Freshness::Fresh),
        };
        let whole = async {
            let call = self.caller(&metadata, peer, permission, freshness, &record).await?;
            work(self.context.clone(), call, message, record.clone()).await
        };
        let result = tokio::time::timeout(time, whole).await.unwrap_or_else(|_| Err(ServiceError::timed_out()));
        result.map(Response::new).map_err(|error| {
            if let ServiceError::Internal(cause) = &error {
                tracing::error!(request_id = &*record.request_id, cause, "internal error");
            }
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
