//! Keystead issues, verifies and retires API keys over gRPC, so that no other service touches a key hash.
//!
//! The modules, in reading order:
//!
//! - [`domain`]: the words and rules, pure: ids, secret, digest, key, scope, and the one function that decides
//! - [`store`]: the database: entities, one file of queries per table, errors
//! - [`verify`]: the cache and the loader that a verification leans on, and the change feed
//! - [`limits`]: rate limits, quotas and credits: who keeps the counts
//! - [`usage`]: the recorder of verifications and its writer
//! - [`service`]: one file per rpc: control flow, permissions, transactions
//! - [`grpc`]: the wire: decode, encode, status, layers, health
//! - [`import`]: keys that exist elsewhere: mapping, sources, how each row is treated, and what `keystead import` does
//! - [`telemetry`]: what the log shows, and what never
//! - [`config`], [`cli`]: what the operator says
//! - [`app`]: puts it all together, serves and drains
//! - [`jobs`]: what runs in the background meanwhile
//! - [`clock`], [`random`]: the only doors to wall clock and randomness; [`proto`]: the generated contract
//!
//! Who may import what (a test checks it): `cli` uses `app`; `app` sees everything; `grpc` sees `service` and
//! `domain`; `service` sees `domain`, `store`, `verify`, `limits`, `usage`, `telemetry`; `verify`, `limits` and `usage`
//! see `domain` and `store`; `store` sees `domain`; `domain` sees nothing; `clock` and `random` are open to most. tonic and prost stay in `grpc` (and the
//! CLI's client), `sea_orm` in `store`.
//!
//! The way of one `VerifyKey`: `grpc/verify_call.rs` reads and writes its bytes; `grpc/key_service.rs` decodes, calls and
//! encodes; `service/verify_key.rs` holds the whole control flow; from there a reader opens only leaves:
//! `domain/outcome.rs` for why this answer, `verify/` and `store/` for where it came from, `limits/` for what was
//! charged, `grpc/encode.rs` for how it looks.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod grpc;
pub mod import;
pub mod jobs;
pub mod limits;
pub mod proto;
pub mod random;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod usage;
pub mod verify;
