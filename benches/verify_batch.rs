//! `verify_batch`: keys verified per second at 100 per `BatchVerifyKeys`, against the same keys by `VerifyKey` one at a
//! time on the same server. What a call costs besides its keys is paid once for a hundred.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    support::{
        Failure,
        compare::{Pairs, print_ratio, title},
        database::{Database, Engine},
        keys::{self, Limits},
        load::{self, Connections, Workload},
        plan::Plan,
        process,
        random::Random,
        requests::Template,
        server::Server,
    },
    verify_hot,
};

/// Keys per batch call.
const BATCH: usize = 100;
/// Connections, and batch calls in flight; single calls are as many in flight as the shapes of `verify_hot` have.
const CONNECTIONS: usize = 8;
const BATCHES_IN_FLIGHT: usize = 16;
const SINGLE_IN_FLIGHT: usize = 64;

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("verify_batch", "BatchVerifyKeys against VerifyKey");
    let count = plan.sized(10_000, 100);
    let database = Database::new(Engine::Sqlite, plan)?;
    let server = Server::start(&database, &[]).await?;
    let keys = keys::make(&server, &database, count, Limits::One).await?;
    let single = verify_hot::verifying(keys.caller.clone(), 1, count)?;
    let (template, random) = (Template::verify_batch(BATCH)?, Mutex::new(Random::new(1)));
    let batch = Workload {
        method: "keystead.v1.KeyService/BatchVerifyKeys",
        caller: keys.caller,
        body: Arc::new(move || {
            let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
            template.fill(|| 1 + random.below(count))
        }),
        check: load::all_valid::<BATCH>,
    };
    let connections = Connections::open(server.address, CONNECTIONS).await?;
    let rate = async |workload: &Workload, in_flight| {
        process::settled(server.process()).await?;
        let run = connections.run(workload, in_flight, plan.run()).await?;
        server.empty_log()?;
        Ok(run.per_second())
    };
    let pairs = Pairs::alternate(
        plan.pairs(),
        async || Ok(rate(&batch, BATCHES_IN_FLIGHT).await? * 100.0),
        async || rate(&single, SINGLE_IN_FLIGHT).await,
    )
    .await?;
    print_ratio("batches of 100", "keys/s", "one by one", pairs.spreads(|rate| *rate), "at least 5");
    Ok(())
}
