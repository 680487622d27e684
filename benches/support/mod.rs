//! What the benchmarks stand on. Everything that is measured is real: the built binary, real databases, real sockets.
//!
//! - `plan`: how long and how large, in full and briefly
//! - `load`: the load generator, closed loop over HTTP/2
//! - `requests`: request bodies, encoded once and filled in for each call
//! - `server`: runs the `keystead` binary; `bare`: the stock tonic server that it is held against
//! - `database`: a database of its own, on either engine; `postgres`, `pgbench`: the server and its own benchmark
//! - `keys`: an organization with as many keys as it takes
//! - `process`: CPU time and memory of a child, read from `/proc`
//! - `compare`: alternating runs, medians, ratios, and how they are printed

pub mod bare;
pub mod compare;
pub mod database;
pub mod keys;
pub mod load;
pub mod pgbench;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod random;
pub mod requests;
pub mod server;

/// Why a benchmark could not be run. What it shows is for people.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
