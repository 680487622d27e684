//! `keystead migrate up`, `down` and `status`: migrations of the database, by hand.
//!
//! The work is `app`'s; here are the question before `down` and the tables. Invariant: nothing is undone before
//! what it loses was named and somebody agreed, on a terminal or with `--yes`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::confirm;
use super::failure::{DONE, Failure};
use super::output::{self, Fields};
use crate::app::MigrationStatus;
use crate::config::{DatabaseConfig, Environment, Flags, StoreConfig, StoreSettings};
use crate::{app, telemetry};

/// Flags of `migrate`.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    flags: Flags<StoreSettings>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run all pending migrations.
    Up,
    /// Undo the newest migrations. Names what is lost and asks first.
    Down {
        /// How many migrations to undo.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        steps: u32,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// List the migrations and whether they have run.
    Status,
}

impl Migrate {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let config = StoreConfig::load(&self.flags, environment)?;
        telemetry::init(&config.telemetry);
        let database = &config.database;
        match self.action {
            Action::Up => print_names("applied", &app::migrate_up(database).await?)?,
            Action::Down { steps, yes } => down(database, steps, yes).await?,
            Action::Status => status(database).await?,
        }
        Ok(DONE)
    }
}

async fn status(database: &DatabaseConfig) -> Result<(), Failure> {
    let rows: Vec<Fields> = app::migrate_status(database)
        .await?
        .into_iter()
        .map(|migration| {
            let state = if migration.applied { "applied" } else { "pending" };
            vec![("migration", json!(migration.name)), ("state", json!(state))]
        })
        .collect();
    output::print(&output::table(&["migration", "state"], &rows))
}

async fn down(database: &DatabaseConfig, steps: u32, yes: bool) -> Result<(), Failure> {
    let known = app::migrate_status(database).await?;
    let undone = newest_applied(&known, steps);
    if undone.is_empty() {
        return print_names("undone", &[]);
    }
    output::note("This undoes:");
    for migration in &undone {
        output::note(&format!("  {}: loses {}", migration.name, migration.loses));
    }
    if !yes {
        confirm::confirm("undo", "not undone")?;
    }
    let steps = u32::try_from(undone.len()).unwrap_or(steps);
    print_names("undone", &app::migrate_down(database, steps).await?)
}

/// The newest applied migrations, newest first; `known` is in the order in which they run.
fn newest_applied(known: &[MigrationStatus], steps: u32) -> Vec<&MigrationStatus> {
    let steps = usize::try_from(steps).unwrap_or(usize::MAX);
    known.iter().rev().filter(|migration| migration.applied).take(steps).collect()
}

fn print_names(what: &str, names: &[String]) -> Result<(), Failure> {
    if names.is_empty() {
        return output::print(&format!("nothing to do: none {what}\n"));
    }
    let lines: Vec<String> = names.iter().map(|name| format!("{what} {name}\n")).collect();
    output::print(&lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_applied_migrations_are_undone_first() {
        let known: Vec<MigrationStatus> = [("a", true), ("b", true), ("c", true), ("d", false)]
            .into_iter()
            .map(|(name, applied)| MigrationStatus { name: name.to_owned(), applied, loses: "" })
            .collect();
        let names =
            |steps| -> Vec<&str> { newest_applied(&known, steps).into_iter().map(|one| one.name.as_str()).collect() };
        assert_eq!(names(1), ["c"]);
        assert_eq!(names(9), ["c", "b", "a"]);
    }
}
