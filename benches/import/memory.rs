//! `import_memory`: the most memory that `keystead import run` holds at once, with a million rows against 50,000. It
//! reads, treats and writes batches, so the number of rows must not show. Rows per second of both come with it.

use super::{
    command::{self, Imported},
    site::{Scheme, Site, Table},
};
use crate::support::{
    Failure,
    compare::{Pairs, float, print_ratio, title},
    keys,
    plan::Plan,
};

/// How often both are imported, each time into a new database.
const ROUNDS: usize = 3;

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("import_memory", "resident memory of keystead import run");
    let (few, many) = plan.sized((50_000, 1_000_000), (500, 5000));
    let mut rounds = Pairs { ours: Vec::new(), baseline: Vec::new() };
    for _ in 0..plan.sized(ROUNDS, 1) {
        rounds.ours.push(import(many, plan).await?);
        rounds.baseline.push(import(few, plan).await?);
    }
    let baseline = format!("{few} rows");
    let peak = rounds.spreads(|imported| float(imported.peak_bytes) / f64::from(1 << 20));
    print_ratio(&format!("peak with {many} rows"), "MiB", &baseline, peak, "1.0: bounded by the batch");
    let rate = rounds.spreads(Imported::per_second);
    print_ratio(&format!("{many} rows"), "rows/s", &baseline, rate, "20000 rows/s");
    Ok(())
}

async fn import(rows: u64, plan: Plan) -> Result<Imported, Failure> {
    let table = Table { name: "keys_of_memory", scheme: Scheme::Plaintext, rows };
    let site = Site::open(plan).await?;
    keys::organization(&site.server).await?;
    site.fill(&table).await?;
    site.settle().await?;
    command::run(&site, &table).await
}
