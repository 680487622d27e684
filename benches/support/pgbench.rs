//! `pgbench`, PostgreSQL's own benchmark, as the baseline of what a round trip to the database costs.
//! Must run on the server that Keystead runs on, with as many clients, over TCP as Keystead does.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{Failure, postgres::Postgres};

/// Fills `pgbench_accounts` with 100,000 rows for each unit of `scale`.
pub async fn fill(postgres: &Postgres, scale: u32) -> Result<(), Failure> {
    run(postgres, &["-i", "-q", "-s", &scale.to_string()]).await?;
    Ok(())
}

/// Transactions per second of single-row selects by primary key, prepared.
pub async fn select(postgres: &Postgres, clients: usize, time: Duration) -> Result<f64, Failure> {
    measure(postgres, &["-S"], clients, time).await
}

/// Transactions per second of a script, prepared.
pub async fn script(postgres: &Postgres, script: &Path, clients: usize, time: Duration) -> Result<f64, Failure> {
    measure(postgres, &["-f", script.to_str().ok_or("a path that is text")?], clients, time).await
}

async fn measure(postgres: &Postgres, what: &[&str], clients: usize, time: Duration) -> Result<f64, Failure> {
    let (clients, threads) = (clients.to_string(), clients.min(2).to_string());
    // Whole seconds are all that it knows.
    let seconds = time.as_secs().max(1).to_string();
    let common = ["-n", "-M", "prepared", "-c", &clients, "-j", &threads, "-T", &seconds];
    let printed = run(postgres, &[&common, what].concat()).await?;
    let line = printed.lines().find_map(|line| line.strip_prefix("tps = ")).ok_or("pgbench printed no tps")?;
    Ok(line.split_whitespace().next().ok_or("pgbench printed no tps")?.parse()?)
}

async fn run(postgres: &Postgres, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new(postgres.programs.join("pgbench"));
    command.args(["-h", "127.0.0.1", "-p", &postgres.port.to_string(), "-U", "postgres"]).args(arguments);
    command.arg("postgres").env("PGPASSWORD", &postgres.password).stdin(Stdio::null());
    // On another thread: open connections must go on answering pings.
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("pgbench: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}
