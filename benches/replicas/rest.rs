//! What replicas at rest ask the database: statements per second and replica, of ten together against one alone, and
//! which statements these are. `pg_stat_statements` counts them, but for those that triggers run; where PostgreSQL comes
//! without it, transactions are counted (`pg_stat_database`), among which are those of its own background processes.
//! Must not count what this benchmark asks itself.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, QueryResult, Statement};
use tokio::time::sleep;

use crate::support::{
    Failure,
    compare::{Spread, float},
    database::Database,
    plan::Plan,
    process,
    server::Server,
};

/// Replicas, all at rest.
const REPLICAS: &[usize] = &[1, 10];
const REPLICAS_QUICK: &[usize] = &[1, 2];
/// How long they are watched, and how often.
const WATCHED: Duration = Duration::from_secs(30);
const WATCHED_QUICK: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;
/// Statements that come less often than this, per second and replica, are not listed.
const LISTED_MIN: f64 = 0.02;
/// So much is shown of a statement.
const SHOWN_CHARS: usize = 100;

/// Measures one replica at rest, and then several.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    let database = Database::counting(plan)?;
    let counter = Counter::new(&database).await?;
    let first = Server::start(&database, &[]).await?;
    let mut others: Vec<Server> = Vec::new();
    let mut alone = f64::NAN;
    for replicas in plan.sized(REPLICAS, REPLICAS_QUICK).iter().copied() {
        while others.len() + 1 < replicas {
            others.push(first.start_replica(&database, others.len() + 1).await?);
        }
        for server in others.iter().chain([&first]) {
            process::settled(server.process()).await?;
        }
        let (mut rates, mut statements) = (Vec::new(), Vec::new());
        for _ in 0..plan.sized(ROUNDS, 1) {
            let begun = Instant::now();
            statements = counter.watch(plan.sized(WATCHED, WATCHED_QUICK)).await?;
            let per_second = 1.0 / (begun.elapsed().as_secs_f64() * float(u64::try_from(replicas)?));
            for (_, count) in &mut statements {
                *count *= per_second;
            }
            rates.push(statements.iter().map(|(_, rate)| rate).sum::<f64>());
        }
        let (rate, what) = (Spread::of(&rates), counter.unit());
        if replicas == 1 {
            alone = rate.median;
        }
        let ratio = rate.median / alone;
        println!(
            "at rest, {replicas} replicas: {rate} {what} per second and replica; of one {ratio:.2}; goal at most 2"
        );
        for (statement, rate) in statements.iter().filter(|(_, rate)| *rate >= LISTED_MIN) {
            println!("  {rate:.2} {}", statement.chars().take(SHOWN_CHARS).collect::<String>());
        }
    }
    Ok(())
}

/// Counts what the replicas ask.
struct Counter {
    connection: DatabaseConnection,
    by_statement: bool,
}

impl Counter {
    async fn new(database: &Database) -> Result<Self, Failure> {
        let (connection, by_statement) = (database.connect().await?, database.postgres()?.counts_statements);
        if by_statement {
            connection.execute_unprepared("CREATE EXTENSION pg_stat_statements").await?;
        }
        Ok(Self { connection, by_statement })
    }

    const fn unit(&self) -> &'static str {
        if self.by_statement { "statements" } else { "transactions" }
    }

    /// What all replicas together ask in `time`, and how often, the most frequent first.
    async fn watch(&self, time: Duration) -> Result<Vec<(String, f64)>, Failure> {
        if !self.by_statement {
            let before = self.transactions().await?;
            sleep(time).await;
            // Looking is a transaction too, and the second look does not see itself.
            let counted = self.transactions().await?.saturating_sub(before + 1);
            return Ok(vec![("(all)".to_owned(), counted_as_float(counted)?)]);
        }
        self.connection.execute_unprepared("SELECT pg_stat_statements_reset()").await?;
        sleep(time).await;
        let sql = "SELECT query, calls FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%' \
                   ORDER BY calls DESC";
        let rows = self.rows(sql).await?;
        rows.iter().map(|row| Ok((row.try_get_by_index(0)?, counted_as_float(row.try_get_by_index(1)?)?))).collect()
    }

    async fn transactions(&self) -> Result<i64, Failure> {
        let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
        let rows = self.rows(sql).await?;
        Ok(rows.first().ok_or("a database that PostgreSQL does not know")?.try_get_by_index(0)?)
    }

    async fn rows(&self, sql: &str) -> Result<Vec<QueryResult>, Failure> {
        Ok(self.connection.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await?)
    }
}

fn counted_as_float(count: i64) -> Result<f64, Failure> {
    Ok(float(u64::try_from(count)?))
}
