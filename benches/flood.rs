//! `flood`: the p99 of honest callers while half the load is random keys, well-shaped and unknown, against their p99
//! while all the load is honest. The calls in flight are the same in both, so that the ratio shows what unknown keys
//! cost others, and not what more load costs.

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
        requests::{Template, UNKNOWN},
        server::Server,
    },
    verify_hot,
};

/// Connections of each side, and calls in flight over all of them.
const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 64;

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("flood", "honest p99 while half the load is unknown keys");
    for engine in Engine::ALL {
        on(engine, plan).await?;
    }
    Ok(())
}

async fn on(engine: Engine, plan: Plan) -> Result<(), Failure> {
    let count = plan.sized(10_000, 100);
    let database = Database::new(engine, plan)?;
    let server = Server::start(&database, &[]).await?;
    let keys = keys::make(&server, &database, count, Limits::One).await?;
    let honest = verify_hot::verifying(keys.caller.clone(), 1, count)?;
    let unknown = guessing(keys.caller)?;
    let ours = Connections::open(server.address, CONNECTIONS).await?;
    let theirs = Connections::open(server.address, CONNECTIONS).await?;
    let half = IN_FLIGHT / 2;
    let p99 = async |others: &Workload| {
        process::settled(server.process()).await?;
        let (run, other) = tokio::try_join!(ours.run(&honest, half, plan.run()), theirs.run(others, half, plan.run()))?;
        server.empty_log()?;
        Ok((run.quantile_us(0.99), run.per_second(), other.per_second()))
    };
    let pairs = Pairs::alternate(plan.pairs(), async || p99(&unknown).await, async || p99(&honest).await).await?;
    let name = engine.name();
    print_ratio(name, "us at p99", "quiet", pairs.spreads(|(p99, ..)| *p99), "at most 1.5");
    print_ratio("  honest calls", "/s", "quiet", pairs.spreads(|(_, rate, _)| *rate), "none");
    print_ratio("  the other half", "/s", "quiet", pairs.spreads(|(.., rate)| *rate), "none");
    Ok(())
}

/// Verifications of secrets that no key has, another one each time.
fn guessing(caller: String) -> Result<Workload, Failure> {
    let (template, random) = (Template::verify()?, Mutex::new(Random::new(2)));
    Ok(Workload {
        method: "keystead.v1.KeyService/VerifyKey",
        caller,
        body: Arc::new(move || {
            let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
            template.fill(|| UNKNOWN + (random.number() >> 1))
        }),
        check: load::not_found,
    })
}
