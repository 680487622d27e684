//! Where a call goes, by its path. `VerifyKey` has a way of its own; `KeyService` is looked at next and without a detour,
//! all else goes through tonic's routes.
//! Must not know what a call means.

use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::bytes::Bytes;
use tonic::{Code, body::Body, codegen::BoxFuture, server::NamedService as _, service::Routes};
use tower::Service as _;

use super::{
    call_log::CallLog,
    calls::Calls,
    listener::Peer,
    methods,
    sizes::BySize,
    status::Refusal,
    verify_call::{AnswerBody, verify_call},
};
use crate::proto::v1::key_service_server::KeyServiceServer;

/// How much of the body of an unknown method is read.
const UNKNOWN_BYTES_MAX: usize = 1 << 20;

/// The services behind all connections.
#[derive(Clone)]
pub struct Services {
    pub log: CallLog,
    pub calls: Calls,
    /// The largest message of a call that is no batch.
    pub message_bytes_max: usize,
    pub keys: BySize<KeyServiceServer<Calls>>,
    pub others: Routes,
}

/// Finds the service of a call of one connection.
pub struct Router {
    pub services: Services,
    pub peer: Peer,
}

impl hyper::service::Service<Request<Incoming>> for Router {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = BoxFuture<Response<AnswerBody>, Infallible>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Services { log, calls, message_bytes_max, keys, others } = &self.services;
        let method = methods::find(request.uri().path());
        let call = log.begin(method, self.peer);
        match method {
            Some(method) if method.name == methods::VERIFY_KEY => {
                let (calls, bytes_max) = (calls.clone(), *message_bytes_max);
                Box::pin(async move {
                    let answer = verify_call(&calls, request, call.record(), bytes_max).await;
                    Ok(call.end(answer))
                })
            }
            Some(method) => {
                let request = log.prepare(method, request.map(Body::new), call.record());
                let answer = if method.name.starts_with(KeyServiceServer::<Calls>::NAME) {
                    keys.clone().call(request)
                } else {
                    Box::pin(others.clone().call(request)) as BoxFuture<_, _>
                };
                Box::pin(async move { answer.await.map(|response| call.end(response).map(AnswerBody::Tonic)) })
            }
            None => Box::pin(async move {
                let answer = refuse_unknown(request).await;
                Ok(call.end(answer))
            }),
        }
    }
}

/// Refuses a method that does not exist, once its body has been read: h2 gives up connections on which bodies are
/// dropped unread. A body that is larger than any of ours is not read to its end.
async fn refuse_unknown(request: Request<Incoming>) -> Response<AnswerBody> {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > UNKNOWN_BYTES_MAX {
            break;
        }
    }
    let refusal = Refusal::new(Code::Unimplemented, "UNKNOWN_METHOD", "there is no such method");
    refusal.into_status().into_http::<Body>().map(AnswerBody::Tonic)
}
