//! `import_rate`: rows per second of `keystead import run`, with a server beside it that follows the change feed, and
//! with audit events. Against the same rows written by one `INSERT ... SELECT`, first into a table that has the columns
//! of `api_keys` and one unique index on the digest, then into a copy of `api_keys` with all its indexes: what the
//! database does where no other program takes part and nothing is read from elsewhere, hashed or checked.

use std::time::Instant;

use super::{
    command,
    site::{Scheme, Site, Table},
};
use crate::support::{
    Failure,
    compare::{Pairs, Spread, float, print_ratio, title},
    keys,
    plan::Plan,
};

/// A table that the database fills by itself, and the statements that make it.
struct Alone {
    name: &'static str,
    what: &'static str,
    create: &'static [&'static str],
}

const BARE: Alone = Alone {
    name: "bench_bare",
    what: "INSERT ... SELECT with one index",
    create: &[
        "CREATE TABLE bench_bare AS SELECT * FROM api_keys WITH NO DATA",
        "CREATE UNIQUE INDEX bench_bare_digest ON bench_bare (digest)",
    ],
};
const INDEXED: Alone = Alone {
    name: "bench_indexed",
    what: "INSERT ... SELECT with all indexes",
    create: &["CREATE TABLE bench_indexed (LIKE api_keys INCLUDING ALL)"],
};

/// Rows per second of each, and the CPU time of the importing process for a row.
struct Round {
    import: f64,
    bare: f64,
    indexed: f64,
    cpu_us: f64,
}

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("import_rate", "keystead import run, PostgreSQL to PostgreSQL, beside a server");
    for scheme in Scheme::ALL {
        let mut rounds = Vec::new();
        for _ in 0..plan.pairs() {
            rounds.push(round(scheme, plan).await?);
        }
        let of = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<f64>>();
        let against = |baseline: fn(&Round) -> f64| {
            Pairs { ours: of(|round| round.import), baseline: of(baseline) }.spreads(|rate| *rate)
        };
        let name = format!("{} rows", scheme.name());
        print_ratio(&name, "rows/s", BARE.what, against(|round| round.bare), "20000 rows/s");
        print_ratio(&name, "rows/s", INDEXED.what, against(|round| round.indexed), "none");
        println!("  the process: {} CPU us per row", Spread::of(&of(|round| round.cpu_us)));
    }
    Ok(())
}

async fn round(scheme: Scheme, plan: Plan) -> Result<Round, Failure> {
    let table = Table { name: "keys_of_rate", scheme, rows: plan.sized(200_000, 2000) };
    let site = Site::open(plan).await?;
    keys::organization(&site.server).await?;
    site.fill(&table).await?;
    site.settle().await?;
    let imported = command::run(&site, &table).await?;
    Ok(Round {
        import: imported.per_second(),
        bare: by_itself(&site, &table, &BARE).await?,
        indexed: by_itself(&site, &table, &INDEXED).await?,
        cpu_us: imported.cpu_us(),
    })
}

/// Rows per second with which the database writes what was imported once more.
async fn by_itself(site: &Site, table: &Table, alone: &Alone) -> Result<f64, Failure> {
    for sql in alone.create {
        site.execute(sql).await?;
    }
    site.settle().await?;
    let insert = format!("INSERT INTO {} SELECT * FROM api_keys WHERE import_id IS NOT NULL", alone.name);
    let begun = Instant::now();
    let rows = site.execute(&insert).await?;
    let elapsed = begun.elapsed();
    if rows != table.rows {
        return Err(format!("{rows} rows instead of {}", table.rows).into());
    }
    Ok(float(rows) / elapsed.as_secs_f64())
}
