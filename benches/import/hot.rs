//! `import_hot`: the time of cached verifications, offered at a fixed rate, while an import runs beside them, while
//! checks of bcrypt do, and while both do, against quiet. All of it on one server and one PostgreSQL; a round measures
//! each of the four once, and begins with another one each time.
//! Verifications are offered for as long as the import takes, and without one for about as long.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::sleep;

use super::{
    command::{self, Imported},
    paced::{self, Paced, Stop},
    site::{Scheme, Site, Table},
    slow::{self, Checks, SlowKeys},
};
use crate::{
    support::{
        Failure,
        compare::{Pairs, Spread, float, print_ratio, title},
        keys::{self, Limits},
        load::{Connections, Workload},
        plan::Plan,
    },
    verify_hot,
};

/// Verifications that are offered each second: moderate, a twelfth of what one server does here.
const PER_SECOND: u32 = 5000;
const PER_SECOND_QUICK: u32 = 500;
/// How long they go on where nothing else says when to end.
const WINDOW: Duration = Duration::from_secs(15);
/// Connections and calls in flight with which the cache is filled before.
const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 64;
/// How often a key is verified then, on average: one in e^10 is not.
const WARMING: u64 = 10;

/// What runs beside the verifications.
struct Beside {
    what: &'static str,
    /// The table that is imported.
    table: Option<&'static str>,
    checks: bool,
}

/// The first is the baseline of the others.
const ALL: [Beside; 4] = [
    Beside { what: "quiet", table: None, checks: false },
    Beside { what: "beside an import", table: Some("keys_of_hot"), checks: false },
    Beside { what: "beside checks of bcrypt", table: None, checks: true },
    Beside { what: "beside both", table: Some("keys_of_both"), checks: true },
];

struct Sample {
    paced: Paced,
    imported: Option<Imported>,
    checks: Option<Checks>,
}

/// What is measured in one round.
struct Bench<'a> {
    plan: Plan,
    site: &'a Site,
    slow: &'a SlowKeys,
    keys: u64,
    workload: Workload,
    connections: Connections,
}

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    let rate = plan.sized(PER_SECOND, PER_SECOND_QUICK);
    title("import_hot", &format!("cached VerifyKey at {rate} calls/s while keys are brought in"));
    let slow = SlowKeys::hash(plan)?;
    println!("one hash of bcrypt takes {:?} of one core here", slow.each);
    let mut rounds = Vec::new();
    for number in 0..plan.pairs() {
        rounds.push(round(number, &slow, plan).await?);
    }
    for (place, beside) in ALL.iter().enumerate() {
        print(beside, place, &rounds);
    }
    let raised = rounds.iter().flatten().all(|sample| sample.paced.raised);
    println!("the generator had {} priority", if raised { "a higher" } else { "no higher" });
    Ok(())
}

/// Measures all four, in the order of `ALL` from `number` on, and gives them in the order of `ALL`.
async fn round(number: usize, slow: &SlowKeys, plan: Plan) -> Result<Vec<Sample>, Failure> {
    let count = plan.sized(10_000, 100);
    let site = Site::open(plan).await?;
    let keys = keys::make(&site.server, &site.database, count, Limits::None).await?;
    slow.import(&site, &keys.organization_id).await?;
    for name in ALL.iter().filter_map(|beside| beside.table) {
        site.fill(&table(name, plan)).await?;
    }
    let bench = Bench {
        plan,
        site: &site,
        slow,
        keys: count,
        workload: verify_hot::verifying(keys.caller, 1, count)?,
        connections: Connections::open(site.server.address, CONNECTIONS).await?,
    };
    let mut samples = Vec::new();
    for (place, beside) in ALL.iter().enumerate().cycle().skip(number).take(ALL.len()) {
        let sample = bench.sample(beside).await.map_err(|error| format!("{}: {error}", beside.what))?;
        samples.push((place, sample));
    }
    samples.sort_by_key(|(place, _)| *place);
    Ok(samples.into_iter().map(|(_, sample)| sample).collect())
}

const fn table(name: &'static str, plan: Plan) -> Table {
    Table { name, scheme: Scheme::Plaintext, rows: plan.sized(300_000, 2000) }
}

impl Bench<'_> {
    async fn sample(&self, beside: &Beside) -> Result<Sample, Failure> {
        self.site.settle().await?;
        self.connections.run_times(&self.workload, IN_FLIGHT, self.keys * WARMING).await?;
        self.site.settle().await?;
        let stop = Stop::default();
        let rate = self.plan.sized(PER_SECOND, PER_SECOND_QUICK);
        let paced = paced::offer(self.site.server.address, &self.workload, rate, &stop)?;
        let window = async {
            let imported = self.window(beside).await;
            stop.set();
            imported
        };
        let checks = async { if beside.checks { self.slow.offer(self.site, &stop).await.map(Some) } else { Ok(None) } };
        let ended = tokio::try_join!(window, checks);
        // Also where one of them failed.
        stop.set();
        let paced = paced.await??;
        let (imported, checks) = ended?;
        Ok(Sample { paced, imported, checks })
    }

    /// Lasts as long as the verifications are to go on.
    async fn window(&self, beside: &Beside) -> Result<Option<Imported>, Failure> {
        if let Some(name) = beside.table {
            return Ok(Some(command::run(self.site, &table(name, self.plan)).await?));
        }
        sleep(self.plan.sized(WINDOW, self.plan.run())).await;
        Ok(None)
    }
}

fn print(beside: &Beside, place: usize, rounds: &[Vec<Sample>]) {
    let samples: Vec<&Sample> = rounds.iter().filter_map(|samples| samples.get(place)).collect();
    let spread = |figure: fn(&Sample) -> f64| Spread::of(&samples.iter().map(|at| figure(at)).collect::<Vec<_>>());
    let lag = spread(|sample| float(sample.paced.lag.value_at_quantile(0.99)) / 1000.0);
    let rate = spread(|sample| sample.paced.run.per_second());
    println!("{}: {rate} calls/s; lag of the generator {lag} us at p99", beside.what);
    for (quantile, name, goal) in [(0.5, "p50", "none"), (0.99, "p99", "at most 1.5"), (0.999, "p999", "none")] {
        let at = |place: usize| -> Vec<f64> {
            let samples = rounds.iter().filter_map(|samples| samples.get(place));
            samples.map(|sample| sample.paced.run.quantile_us(quantile)).collect()
        };
        let spreads = Pairs { ours: at(place), baseline: at(0) }.spreads(|time| *time);
        match (place, spreads) {
            (0, [quiet, ..]) => println!("  {name}: {quiet} us"),
            (_, spreads) => print_ratio(&format!("  {name}"), "us", "quiet", spreads, goal),
        }
    }
    let imports: Vec<f64> = samples.iter().filter_map(|at| at.imported.as_ref()).map(Imported::per_second).collect();
    if !imports.is_empty() {
        println!("  the import: {} rows/s; goal none", Spread::of(&imports));
    }
    let checks: Vec<&Checks> = samples.iter().filter_map(|at| at.checks.as_ref()).collect();
    if !checks.is_empty() {
        print_checks(&checks);
    }
}

fn print_checks(checks: &[&Checks]) {
    let answered: Vec<f64> = checks.iter().map(|checks| checks.answered_per_second()).collect();
    let turned_away: Vec<f64> = checks.iter().map(|checks| checks.turned_away_per_second()).collect();
    println!(
        "  checks: {} a second offered; {} decided, {} turned away; goal none",
        slow::PER_SECOND,
        Spread::of(&answered),
        Spread::of(&turned_away)
    );
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for (labels, count) in checks.iter().flat_map(|checks| &checks.counted) {
        *counted.entry(labels).or_default() += count;
    }
    let offered: u64 = checks.iter().map(|checks| checks.offered).sum();
    println!("  of {offered} the metric of checks counts {counted:?}");
}
