//! All integration tests, as one binary, so that one PostgreSQL serves them and one link is paid for.
//! `harness` is what they stand on; every other module is one subject, named after what it shows.
//! `tests/run` provides what they need on a fresh machine and runs them.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod audit;
mod callers;
mod cli;
mod clients;
mod durability;
mod faults;
mod harness;
mod imports;
mod keys;
mod limits;
mod migrating;
mod operations;
mod organizations;
mod secrecy;
mod server;
mod store;
mod structure;
mod usage;
