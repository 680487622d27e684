//! One `keystead import run`: the built binary as a process, timed from its start to its end, and looked at meanwhile,
//! since what Linux tells of a process's memory is gone with it.
//! Invariant: an import that did not bring in every row, or whose keys the server does not know, ends the benchmark.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use keystead::proto::v1::{Outcome, VerifyKeyRequest};
use tokio::time::sleep;

use super::site::{Site, Table};
use crate::support::{Failure, compare::float, process};

/// How often it is looked at. Memory that is held for less than this before the end is not seen.
const LOOK: Duration = Duration::from_millis(5);

/// What one import came to.
pub struct Imported {
    rows: u64,
    elapsed: Duration,
    /// Of the process alone.
    cpu: Duration,
    /// The most memory that was resident at once.
    pub peak_bytes: u64,
}

impl Imported {
    /// Rows per second, from the start of the process to its end.
    pub fn per_second(&self) -> f64 {
        float(self.rows) / self.elapsed.as_secs_f64()
    }

    /// CPU time of the process for a row, without PostgreSQL's.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / float(self.rows)
    }
}

/// A child that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Imports a table, and sees that all of it came in.
pub async fn run(site: &Site, table: &Table) -> Result<Imported, Failure> {
    let before = site.counts().await?;
    let printed = site.database.folder().join(format!("{}.log", table.name));
    let mut command = command(site, table, &printed)?;
    let begun = Instant::now();
    let mut running = Running(command.spawn()?);
    let process = running.0.id();
    let (mut peak_bytes, mut cpu) = (0, Duration::ZERO);
    let status = loop {
        // A process that has ended has no memory any more, but is there until it has been waited for.
        peak_bytes = find_peak_bytes(process).unwrap_or(peak_bytes);
        cpu = process::cpu_time(process)?.max(cpu);
        if let Some(status) = running.0.try_wait()? {
            break status;
        }
        sleep(LOOK).await;
    };
    let elapsed = begun.elapsed();
    if !status.success() {
        return Err(format!("keystead import run: {status}: {}", fs::read_to_string(&printed)?).into());
    }
    if peak_bytes == 0 {
        return Err("the peak of its memory was not seen; that needs Linux".into());
    }
    let after = site.counts().await?;
    if after.keys - before.keys != i64::try_from(table.rows)? || after.events == before.events {
        let (keys, events) = (after.keys - before.keys, after.events - before.events);
        let printed = fs::read_to_string(&printed)?;
        return Err(format!("{} rows became {keys} keys and {events} events: {printed}", table.rows).into());
    }
    check(site, table).await?;
    Ok(Imported { rows: table.rows, elapsed, cpu, peak_bytes })
}

fn command(site: &Site, table: &Table, printed: &Path) -> Result<Command, Failure> {
    let folder = site.database.folder();
    let file = |extension: &str| -> PathBuf { folder.join(format!("{}.{extension}", table.name)) };
    fs::write(file("toml"), table.mapping())?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KEYSTEAD_")) {
        command.env_remove(variable);
    }
    command.args(["import", "run", "--mapping"]).arg(file("toml")).arg("--refused-file").arg(file("csv"));
    command.env("KEYSTEAD_DATABASE_URL", &site.database.url).env("KEYSTEAD_SOURCE_URL", &site.source_url);
    let output = File::create(printed)?;
    command.current_dir(folder).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    Ok(command)
}

/// The server must say `VALID` of some keys of the table, by the secrets that were never changed.
async fn check(site: &Site, table: &Table) -> Result<(), Failure> {
    let mut client = site.server.keys()?;
    for secret in site.secrets(table).await? {
        let request = VerifyKeyRequest { secret, ..Default::default() };
        let answer = client.verify_key(request).await?.into_inner();
        if answer.outcome() != Outcome::Valid {
            return Err(format!("an imported key is {}", answer.outcome().as_str_name()).into());
        }
    }
    Ok(())
}

/// The most memory that the process has held (`VmHWM` in `proc_pid_status(5)`), `None` where it is not told.
fn find_peak_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}
