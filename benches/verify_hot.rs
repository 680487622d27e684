//! `verify_hot`: a cached `VerifyKey` with authentication, one rate limit and usage recording, against a stock tonic
//! server that answers the same bytes and does nothing else. Throughput, p99 and the server's CPU time per call.
//! One of the two servers runs at a time, under load; the other is halted. So Keystead is charged for all that it puts
//! off, such as writing usage: what it does not get done in one run, it does in the next. A run lasts for as long as
//! the longest that it puts something off.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::support::{
    Failure,
    bare::BareServer,
    compare::{Pairs, Spread, float, title},
    database::{Database, Engine},
    keys::{self, Limits},
    load::{self, Connections, Workload},
    plan::Plan,
    process,
    random::Random,
    requests::Template,
    server::Server,
};

/// Connections, and calls in flight over all of them.
const SHAPES: &[(usize, usize)] = &[(1, 1), (1, 16), (1, 256), (8, 16), (8, 64), (8, 256), (16, 64), (16, 256)];
const SHAPES_QUICK: &[(usize, usize)] = &[(1, 1), (8, 64)];
/// How long a run lasts: the background jobs of the service rest for no longer than this.
const RUN: Duration = Duration::from_secs(10);

/// What one run came to.
struct Sample {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    cpu_us: f64,
}

/// A figure's name and where it stands in a sample.
type Figure = (&'static str, fn(&Sample) -> f64);

const FIGURES: [Figure; 5] = [
    ("calls/s", |sample| sample.per_second),
    ("us at p99", |sample| sample.p99_us),
    ("CPU us per call", |sample| sample.cpu_us),
    ("us at p50", |sample| sample.p50_us),
    ("us at p999", |sample| sample.p999_us),
];

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("verify_hot", "VerifyKey of cached keys against a bare tonic server");
    let count = plan.sized(10_000, 100);
    let database = Database::new(Engine::Sqlite, plan)?;
    let server = Server::start(&database, &[]).await?;
    let keys = keys::make(&server, &database, count, Limits::One).await?;
    let workload = verifying(keys.caller.clone(), 1, count)?;
    let answer = Connections::open(server.address, 1).await?.call(&workload).await?;
    let bare = BareServer::start(&answer)?;
    let mut ratios: [Vec<f64>; 3] = Default::default();
    for (connections, in_flight) in plan.sized(SHAPES, SHAPES_QUICK).iter().copied() {
        let shape = Shape { plan, workload: &workload, in_flight };
        let ours = Connections::open(server.address, connections).await?;
        let theirs = Connections::open(bare.address, connections).await?;
        let processes = [server.process(), bare.process()];
        processes.iter().try_for_each(|process| process::halt(*process))?;
        let pairs = Pairs::alternate(
            plan.pairs(),
            async || {
                let sample = shape.sample(&ours, server.process()).await?;
                server.empty_log()?;
                Ok(sample)
            },
            async || shape.sample(&theirs, bare.process()).await,
        )
        .await?;
        processes.iter().try_for_each(|process| process::go_on(*process))?;
        println!("connections {connections}, in flight {in_flight}");
        // Those that have no goal come last, and are not summed up.
        let mut ratios = ratios.iter_mut();
        for (name, of) in FIGURES {
            let [ours, theirs, ratio] = pairs.spreads(of);
            println!("  {name}: keystead {ours}; bare {theirs}; ratio {ratio}");
            if let Some(ratios) = ratios.next() {
                ratios.push(ratio.median);
            }
        }
    }
    let [throughput, p99, cpu] = ratios.map(|ratios| Spread::of(&ratios));
    println!("median over all shapes, and the range, as parts of the bare server's");
    println!("  calls/s {throughput}; goal at least 1.00");
    println!("  us at p99 {p99}; goal at most 1.10");
    println!("  CPU us per call {cpu}; goal at most 1.15");
    Ok(())
}

/// Verifications of keys `first` and on, so many, in random order.
pub fn verifying(caller: String, first: u64, count: u64) -> Result<Workload, Failure> {
    let (template, random) = (Template::verify()?, Mutex::new(Random::new(1)));
    Ok(Workload {
        method: "keystead.v1.KeyService/VerifyKey",
        caller,
        body: Arc::new(move || {
            let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
            template.fill(|| first + random.below(count))
        }),
        check: load::valid,
    })
}

struct Shape<'a> {
    plan: Plan,
    workload: &'a Workload,
    in_flight: usize,
}

impl Shape<'_> {
    async fn sample(&self, connections: &Connections, process: u32) -> Result<Sample, Failure> {
        let before = process::cpu_time(process)?;
        process::go_on(process)?;
        let time = self.plan.sized(RUN, self.plan.run());
        let run = connections.run(self.workload, self.in_flight, time).await?;
        process::halt(process)?;
        let cpu = process::cpu_time(process)?.saturating_sub(before);
        Ok(Sample {
            per_second: run.per_second(),
            p50_us: run.quantile_us(0.5),
            p99_us: run.quantile_us(0.99),
            p999_us: run.quantile_us(0.999),
            cpu_us: cpu.as_secs_f64() * 1e6 / float(run.calls),
        })
    }
}
