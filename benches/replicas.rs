//! `replicas`: several servers over one PostgreSQL. Verifications per second of two against one; what a revocation costs
//! with 1, 3 and 10 followers of the change feed against none (`revocation`); and what replicas at rest ask the database
//! (`rest`).
//! Two replicas are twice the servers only where there are cores for them: the load generator and PostgreSQL run on the
//! same machine. What carries over to a larger one is the CPU time of a call, which a second replica must not raise.

mod rest;
mod revocation;

use std::{thread, time::Duration};

use futures_util::future::try_join_all;

use crate::{
    support::{
        Failure,
        compare::{Pairs, float, print_ratio, title},
        database::{Database, Engine},
        keys::{self, Limits},
        load::{Connections, Run, Workload},
        plan::Plan,
        process,
        server::Server,
    },
    verify_hot,
};

/// The load of each replica: connections, and calls in flight over all of them.
const CONNECTIONS: usize = 8;
const IN_FLIGHT: usize = 64;
/// How long a run lasts: what a server puts off, it puts off for no longer than this.
const RUN: Duration = Duration::from_secs(10);

/// A replica and the connections to it.
struct Loaded<'a> {
    server: &'a Server,
    connections: Connections,
}

/// What one run came to, over all replicas that were loaded.
struct Sample {
    per_second: f64,
    /// Of the replicas alone, without the generator and PostgreSQL.
    cpu_us: f64,
}

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("replicas", "several servers over one PostgreSQL");
    throughput(plan).await?;
    revocation::run(plan).await?;
    rest::run(plan).await
}

async fn throughput(plan: Plan) -> Result<(), Failure> {
    let count = plan.sized(10_000, 100);
    let database = Database::new(Engine::Postgres, plan)?;
    let first = Server::start(&database, &[]).await?;
    let second = first.start_replica(&database, 1).await?;
    let keys = keys::make(&first, &database, count, Limits::None).await?;
    let workload = verify_hot::verifying(keys.caller, 1, count)?;
    let replicas = [Loaded::open(&first).await?, Loaded::open(&second).await?];
    let pairs = Pairs::alternate(
        plan.pairs(),
        async || sample(&replicas, 2, &workload, plan).await,
        async || sample(&replicas, 1, &workload, plan).await,
    )
    .await?;
    let cores = thread::available_parallelism()?;
    let goal = format!("2 with cores for all; here the generator and PostgreSQL share {cores} with them");
    print_ratio("2 replicas", "calls/s", "1 replica", pairs.spreads(|sample| sample.per_second), &goal);
    let cpu = pairs.spreads(|sample| sample.cpu_us);
    print_ratio("  their CPU time", "us per call", "1 replica", cpu, "1.00");
    Ok(())
}

impl<'a> Loaded<'a> {
    async fn open(server: &'a Server) -> Result<Self, Failure> {
        Ok(Self { server, connections: Connections::open(server.address, CONNECTIONS).await? })
    }
}

/// Loads the first `count` replicas at once, each with as much; the others are at rest.
async fn sample(replicas: &[Loaded<'_>], count: usize, workload: &Workload, plan: Plan) -> Result<Sample, Failure> {
    for replica in replicas {
        process::settled(replica.server.process()).await?;
    }
    let time = plan.sized(RUN, plan.run());
    let loaded = || replicas.iter().take(count);
    let cpu_time = || loaded().map(|replica| process::cpu_time(replica.server.process())).sum::<Result<Duration, _>>();
    let before = cpu_time()?;
    let runs = try_join_all(loaded().map(|replica| replica.connections.run(workload, IN_FLIGHT, time))).await?;
    let cpu = cpu_time()?.saturating_sub(before);
    let calls: u64 = runs.iter().map(|run| run.calls).sum();
    Ok(Sample { per_second: runs.iter().map(Run::per_second).sum(), cpu_us: cpu.as_secs_f64() * 1e6 / float(calls) })
}
