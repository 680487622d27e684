//! The wire: one file per service, which decode, call a use case, encode, and decide nothing.
//!
//! In reading order: `server` (settings and services), `listener` and `tls` (connections), `call_log` (the one line
//! per call, and what tonic refuses by itself, with `methods` and `until_stopped`), `codec` (one member per oneof), `calls` (caller, deadline, error), then the services, and
//! `fields`, `decode_*`, `encode` and `status` for what crosses the wire. `health` tells whether we are ready.
//! tonic and prost types stay here.

mod audit_service;
mod call_log;
mod calls;
mod codec;
mod decode_key;
mod decode_organization;
mod decode_usage;
mod encode;
mod fields;
mod health;
mod key_service;
mod listener;
mod methods;
mod organization_service;
mod server;
mod sizes;
mod status;
mod tls;
mod until_stopped;

pub use self::{
    calls::Calls,
    codec::StrictCodec,
    health::Health,
    listener::{Connections, ListenerLimits, accept},
    methods::names as method_names,
    server::{ServerLimits, serve},
    tls::{TlsError, TlsReloader},
};
