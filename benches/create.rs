//! `create`: keys created per second with their audit events, every one committed to disk before its answer. On
//! PostgreSQL against `pgbench` that inserts one row per transaction on the same server with as many clients; on SQLite
//! against creating one by one, since concurrent creates can share a commit.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use sea_orm::ConnectionTrait as _;

use crate::support::{
    Failure,
    compare::{Pairs, print_ratio, title},
    database::{Database, Engine},
    keys,
    load::{self, Connections, Workload},
    pgbench,
    plan::Plan,
    process, requests,
    server::Server,
};

/// A client has a connection, and one call in flight on it.
const CLIENTS: &[usize] = &[1, 16, 64];
const CLIENTS_QUICK: &[usize] = &[1, 4];

/// The row that `pgbench` inserts: of the size of a key's, and with the one index that any table has.
const TABLE: &str =
    "CREATE TABLE bench_rows (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, filler text NOT NULL)";
const SCRIPT: &str = "INSERT INTO bench_rows (filler) VALUES (repeat('x', 400));\n";

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("create", "CreateKey, each committed with its audit event");
    on_postgres(plan).await?;
    on_sqlite(plan).await
}

async fn on_postgres(plan: Plan) -> Result<(), Failure> {
    let database = Database::new(Engine::Postgres, plan)?;
    let server = Server::start(&database, &[]).await?;
    let workload = creating(&server).await?;
    database.connect().await?.execute_unprepared(TABLE).await?;
    let script = database.folder().join("insert.sql");
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644))?;
    let postgres = database.postgres()?;
    for clients in plan.sized(CLIENTS, CLIENTS_QUICK).iter().copied() {
        let connections = Connections::open(server.address, clients).await?;
        let pairs = Pairs::alternate(
            plan.pairs(),
            async || rate(&server, &connections, &workload, clients, plan).await,
            async || {
                process::settled(server.process()).await?;
                pgbench::script(postgres, &script, clients, plan.run()).await
            },
        )
        .await?;
        let what = format!("PostgreSQL, {clients} clients");
        print_ratio(&what, "keys/s", "pgbench INSERT", pairs.spreads(|rate| *rate), "at least 0.3");
    }
    Ok(())
}

async fn on_sqlite(plan: Plan) -> Result<(), Failure> {
    let database = Database::new(Engine::Sqlite, plan)?;
    let server = Server::start(&database, &[]).await?;
    let workload = creating(&server).await?;
    let one = Connections::open(server.address, 1).await?;
    for clients in plan.sized(CLIENTS, CLIENTS_QUICK).iter().copied().filter(|clients| *clients > 1) {
        let connections = Connections::open(server.address, clients).await?;
        let pairs = Pairs::alternate(
            plan.pairs(),
            async || rate(&server, &connections, &workload, clients, plan).await,
            async || rate(&server, &one, &workload, 1, plan).await,
        )
        .await?;
        let what = format!("SQLite, {clients} clients");
        print_ratio(&what, "keys/s", "one by one", pairs.spreads(|rate| *rate), "at least 5");
    }
    Ok(())
}

async fn rate(
    server: &Server,
    connections: &Connections,
    workload: &Workload,
    clients: usize,
    plan: Plan,
) -> Result<f64, Failure> {
    process::settled(server.process()).await?;
    let run = connections.run(workload, clients, plan.run()).await?;
    server.empty_log()?;
    Ok(run.per_second())
}

async fn creating(server: &Server) -> Result<Workload, Failure> {
    let body = requests::frame(&keys::creation(&keys::organization(server).await?))?;
    Ok(Workload {
        method: "keystead.v1.KeyService/CreateKey",
        caller: server.admin.clone(),
        body: Arc::new(move || body.clone()),
        check: load::answered,
    })
}
