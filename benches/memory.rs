//! `memory`: resident bytes per cached key, and of a server that does nothing. The server is asked for 100,000 keys and
//! then for 400,000 more; the difference is divided by their number, so that what any load costs once does not count.
//! Keys without limits show what the cache takes; with one limit each, what counting takes besides.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::support::{
    Failure,
    compare::{float, title},
    database::{Database, Engine},
    keys::{self, Limits},
    load::{self, Connections, Workload},
    plan::Plan,
    process::{self, resident_bytes},
    requests::Template,
    server::Server,
};

/// Connections, and calls in flight over all of them: enough to gather misses.
const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 64;

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("memory", "resident bytes");
    for (limits, what) in [(Limits::None, "no limit"), (Limits::One, "one limit")] {
        with(limits, what, plan).await?;
    }
    Ok(())
}

async fn with(limits: Limits, what: &str, plan: Plan) -> Result<(), Failure> {
    let (few, many) = plan.sized((100_000, 500_000), (500, 2000));
    let database = Database::new(Engine::Sqlite, plan)?;
    let server = Server::start(&database, &["--cache-entries-max", "1000000"]).await?;
    process::settled(server.process()).await?;
    let idle = resident_bytes(server.process())?;
    let keys = keys::make(&server, &database, many, limits).await?;
    let connections = Connections::open(server.address, CONNECTIONS).await?;
    let before = resident_bytes(server.process())?;
    let mut held = Vec::new();
    for (first, count) in [(1, few), (few + 1, many - few)] {
        let workload = each_once(keys.caller.clone(), first, count)?;
        connections.run_times(&workload, IN_FLIGHT, count).await?;
        server.empty_log()?;
        process::settled(server.process()).await?;
        held.push(float(resident_bytes(server.process())?));
    }
    let [after_few, after_many] = held.as_slice() else { return Err("two figures".into()) };
    println!("idle: {:.1} MiB; goal at most 24", float(idle) / f64::from(1 << 20));
    println!(
        "cached keys with {what}: {:.0} bytes each from {few} to {many}, {:.0} from none to {few}; goal at most 512",
        (after_many - after_few) / float(many - few),
        (after_few - float(before)) / float(few),
    );
    Ok(())
}

/// Verifications of keys `first` and on, each once; then the last one again and again.
fn each_once(caller: String, first: u64, count: u64) -> Result<Workload, Failure> {
    let (template, next) = (Template::verify()?, AtomicU64::new(0));
    Ok(Workload {
        method: "keystead.v1.KeyService/VerifyKey",
        caller,
        body: Arc::new(move || template.fill(|| first + next.fetch_add(1, Ordering::Relaxed).min(count - 1))),
        check: load::valid,
    })
}
