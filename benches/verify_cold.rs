//! `verify_cold`: `VerifyKey` where every key is a miss, at 16 clients: a million keys in random order and a cache that
//! holds a thousand. On PostgreSQL against `pgbench -S -M prepared` on the same server with as many rows; on SQLite
//! against a prepared single-row SELECT through SQLite's C library on the same file, a thread for each client.
//! What misses is what is shown: one key in a thousand may still be in the cache.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use keystead::domain::digest::Digest;
use rusqlite::{Connection, OpenFlags};

use crate::{
    support::{
        Failure,
        compare::{Pairs, float, print_ratio, title},
        database::{Database, Engine},
        keys::{self, Limits},
        load::{Connections, Workload},
        pgbench,
        plan::Plan,
        process,
        random::Random,
        requests,
        server::Server,
    },
    verify_hot,
};

/// A client has a connection, and one call in flight on it.
const CLIENTS: usize = 16;
/// Rows in `pgbench_accounts` for each unit of scale.
const ROWS_PER_SCALE: u64 = 100_000;

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("verify_cold", "VerifyKey of keys that are not cached, 16 clients");
    for engine in Engine::ALL {
        on(engine, plan).await?;
    }
    Ok(())
}

async fn on(engine: Engine, plan: Plan) -> Result<(), Failure> {
    let (count, cached) = plan.sized((1_000_000, "1000"), (2000, "2"));
    let database = Database::new(engine, plan)?;
    let server = Server::start(&database, &["--cache-entries-max", cached]).await?;
    let keys = keys::make(&server, &database, count, Limits::One).await?;
    let workload = verify_hot::verifying(keys.caller, 1, count)?;
    let connections = Connections::open(server.address, CLIENTS).await?;
    let ours = async || rate(&server, &connections, &workload, plan).await;
    match engine {
        Engine::Postgres => {
            let postgres = database.postgres()?;
            pgbench::fill(postgres, u32::try_from(count.div_ceil(ROWS_PER_SCALE))?).await?;
            let theirs = async || {
                process::settled(server.process()).await?;
                pgbench::select(postgres, CLIENTS, plan.run()).await
            };
            let pairs = Pairs::alternate(plan.pairs(), ours, theirs).await?;
            print_ratio("PostgreSQL", "calls/s", "pgbench -S", pairs.spreads(|rate| *rate), "at least 1.0");
        }
        Engine::Sqlite => {
            let file = database.file().ok_or("a SQLite file")?;
            let theirs = async || {
                process::settled(server.process()).await?;
                let (file, time) = (file.clone(), plan.run());
                tokio::task::spawn_blocking(move || raw_selects(&file, count, time)).await?
            };
            let pairs = Pairs::alternate(plan.pairs(), ours, theirs).await?;
            print_ratio("SQLite", "calls/s", "raw SELECTs", pairs.spreads(|rate| *rate), "at least 0.5");
        }
    }
    Ok(())
}

async fn rate(server: &Server, connections: &Connections, workload: &Workload, plan: Plan) -> Result<f64, Failure> {
    process::settled(server.process()).await?;
    let run = connections.run(workload, CLIENTS, plan.run()).await?;
    server.empty_log()?;
    Ok(run.per_second())
}

/// Rows read per second by digest, all columns, by `CLIENTS` threads with a connection each.
fn raw_selects(file: &Path, count: u64, time: Duration) -> Result<f64, Failure> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..CLIENTS as u64)
        .map(|client| {
            let (file, random) = (file.to_owned(), Random::new(client));
            thread::spawn(move || select_until(&file, random, count, begun + time))
        })
        .collect();
    let mut selects = 0;
    for thread in threads {
        selects += thread.join().map_err(|_| "a client ended")??;
    }
    Ok(float(selects) / begun.elapsed().as_secs_f64())
}

fn select_until(file: &Path, mut random: Random, count: u64, end: Instant) -> Result<u64, Failure> {
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let mut statement = connection.prepare("SELECT * FROM api_keys WHERE digest = ?1")?;
    let columns = statement.column_count();
    let mut selects = 0;
    while Instant::now() < end {
        let digest = Digest::of(&requests::secret(1 + random.below(count)));
        let mut rows = statement.query([digest.as_bytes()])?;
        let row = rows.next()?.ok_or("a key that is not there")?;
        for column in 0..columns {
            std::hint::black_box(row.get_ref(column)?);
        }
        selects += 1;
    }
    Ok(selects)
}
