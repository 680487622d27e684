//! What the tests stand on. Everything here is real: the built binary, real databases, a real channel.
//! No test sleeps; it waits on a condition with `wait_until`, which is bounded and says what it waited for.
//!
//! - `tools`: finds the programs that the tests need (PostgreSQL's, Redis, libfaketime, grpcurl, Python).
//! - `postgres`: one PostgreSQL server for the test process, gone when the process is, and servers of one test alone.
//! - `database`: a database per test on either engine; `store_test!` runs a test on both.
//! - `mariadb`: one MariaDB for the test process, a source of imports.
//! - `source`: a database that keys come from, per test, on any of three engines; with a reader who may only select.
//! - `redis`: one Redis for the test process, Redis servers that a test may kill, and a cluster.
//! - `server`: runs the `keystead` binary, and stops, kills and restarts it; `output` is what it printed.
//! - `proxy`: a network between a server and its database or Redis, with the faults of one.
//! - `clock`: moves the wall clock under a server.
//! - `signals`: halts a process and lets it go on.
//! - `calls`: generated clients of a server, with the caller's secret, and the commonest calls.
//! - `rpcs`: every rpc of the contract by enumeration, and calls by bytes.
//! - `samples`: ready-made organizations and keys, for tests that call the store itself.
//! - `cli`: runs the command line as a process.
//! - `page`: runs the command blocks of a page of `docs/`.

mod calls;
pub mod cli;
pub mod clock;
mod database;
mod mariadb;
mod output;
pub mod page;
mod postgres;
pub mod proxy;
pub mod redis;
pub mod rpcs;
pub mod samples;
mod server;
mod signals;
pub mod source;
pub mod tools;

use std::time::Duration;

pub use self::redis::{OwnRedis, RedisCluster, redis};
pub use calls::{Authorized, create_key, create_organization, expect_error, verify};
pub use clock::FakeClock;
pub(crate) use database::store_test;
pub use database::{Engine, TestDatabase};
pub use postgres::Postgres;
pub use proxy::{Fault, Proxy};
pub use server::{Server, Setup, keystead_command};

/// How long a condition may take to come true, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_mins(1);

/// How often a condition is looked at.
const TICK: Duration = Duration::from_millis(20);

/// Waits until `condition` holds. `what` completes "waited for ..." in the failure's words.
pub async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(TICK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, holds).await;
    assert!(waited.is_ok(), "waited for {what} for {} s in vain", PATIENCE.as_secs());
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether `needle` occurs in `haystack`, byte for byte.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    assert!(!needle.is_empty(), "the empty needle is everywhere");
    haystack.windows(needle.len()).any(|window| window == needle)
}
