//! Where a call goes, by its path. `KeyService` is looked at first and without a detour, because its `VerifyKey` is
//! called for every request of every service; all else goes through tonic's own routes.
//! Must not know what a call means.

use std::convert::Infallible;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::{body::Body, codegen::BoxFuture, server::NamedService as _, service::Routes};
use tower::Service as _;

use super::{call_log::CallLog, calls::Calls, listener::Peer, sizes::BySize};
use crate::proto::v1::key_service_server::KeyServiceServer;

/// The services behind all connections.
#[derive(Clone)]
pub struct Services {
    pub log: CallLog,
    pub keys: BySize<KeyServiceServer<Calls>>,
    pub others: Routes,
}

/// Finds the service of a call of one connection.
pub struct Router {
    pub services: Services,
    pub peer: Peer,
}

impl hyper::service::Service<Request<Incoming>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Services { log, keys, others } = &self.services;
        log.run(request.map(Body::new), self.peer, |method, request| {
            if method.starts_with(KeyServiceServer::<Calls>::NAME) {
                keys.clone().call(request)
            } else {
                Box::pin(others.clone().call(request))
            }
        })
    }
}
