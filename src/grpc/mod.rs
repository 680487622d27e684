//! The wire: one file per service, which decode, call a use case, encode, and decide nothing.
//!
//! In reading order: `server` (services, accepting), `workers` (threads), `listener`, `tls` and `connection` (one
//! connection, from its handshake), `router` and `sizes` (which service takes a call), `verify_call` (the one call with
//! a way of its own), `call_log` (the one line per call, and what tonic refuses by itself, with `methods` and
//! `until_stopped`), `codec` (one member per oneof), `calls` (caller, deadline, error, where a call runs), then the
//! services, and `fields`, `decode_*`, `encode*` and `status` for what crosses the wire. `health` tells whether we are
//! ready.
//! tonic and prost types stay here.

mod audit_service;
mod call_log;
mod calls;
mod codec;
mod connection;
mod decode_audit;
mod decode_import;
mod decode_key;
mod decode_organization;
mod decode_usage;
mod encode;
mod encode_import;
mod encode_usage;
mod encode_verified;
mod fields;
mod health;
mod key_service;
mod listener;
mod methods;
mod organization_service;
mod router;
mod server;
mod sizes;
mod status;
mod tls;
mod until_stopped;
mod verify_call;
mod workers;

pub use self::{
    calls::Calls,
    codec::StrictCodec,
    connection::ConnectionLimits,
    health::{DATABASE, Health, LIMITS},
    listener::ListenerLimits,
    methods::names as method_names,
    server::{ServerLimits, serve},
    tls::{TlsError, TlsReloader},
};
