//! The command line: the tree of commands, and what each exit code means.
//!
//! One file per command; `client.rs` reaches a running service, `output.rs` prints, `chart.rs` draws, `failure.rs` says what went
//! wrong, `values.rs` and `fields.rs` go from text to messages and back. Nothing here decides about keys: `serve`,
//! `init`, `migrate` and `import` call `app`, all other commands call the service. Invariant: a secret is never taken
//! as an argument, where a process list would show it.

mod audit;
mod audit_chain;
mod chart;
mod client;
mod confirm;
mod failure;
mod fields;
mod health;
mod import;
mod init;
mod keys;
mod migrate;
mod organizations;
mod output;
mod page;
mod serve;
mod usage;
mod values;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub use failure::{DONE, REFUSED, UNREACHABLE, USAGE};

use crate::config::{Environment, process_environment};
use failure::Failure;

/// API keys over gRPC: issue, verify, rotate, revoke.
#[derive(Debug, Parser)]
#[command(
    name = "keystead",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done, 1 refused, 2 wrong command line or configuration, 3 service unreachable."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(serve::Serve),
    /// Prepare a new database and print the first admin secret, once.
    Init(init::Init),
    /// Run, undo or list migrations of the database.
    Migrate(migrate::Migrate),
    /// Bring in keys that exist elsewhere, check that none was lost, and drop their plaintext.
    Import(import::Import),
    /// Create, read, change, rotate, revoke and verify keys.
    Keys(keys::Keys),
    /// Create, read, change and delete organizations.
    Organizations(organizations::Organizations),
    /// Show what keys were used for.
    Usage(usage::Usage),
    /// Read the audit log, and check that nobody tampered with it.
    Audit(audit::Audit),
    /// Ask whether the service is ready.
    Health(health::Health),
}

/// Runs the command line of this process. Returns the exit code.
pub async fn run() -> u8 {
    run_with(std::env::args_os(), &process_environment).await
}

/// Runs a command line, the program's name first, with these variables. Returns the exit code.
pub async fn run_with(arguments: impl IntoIterator<Item = OsString>, environment: Environment<'_>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" too, with exit code 0.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(USAGE);
        }
    };
    match dispatch(cli.command, environment).await {
        Ok(code) => code,
        Err(failure) => {
            output::note(&format!("error: {}", failure.text));
            failure.code
        }
    }
}

async fn dispatch(command: Command, environment: Environment<'_>) -> Result<u8, Failure> {
    match command {
        Command::Serve(serve) => serve.run(environment).await,
        Command::Init(init) => init.run(environment).await,
        Command::Migrate(migrate) => migrate.run(environment).await,
        Command::Import(import) => import.run(environment).await,
        Command::Keys(keys) => keys.run(environment).await,
        Command::Organizations(organizations) => organizations.run(environment).await,
        Command::Usage(usage) => usage.run(environment).await,
        Command::Audit(audit) => audit.run(environment).await,
        Command::Health(health) => health.run(environment).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_argument_takes_a_secret() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = argument.get_long().unwrap_or_default();
                assert!(!["token", "secret", "password"].contains(&name), "{}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
