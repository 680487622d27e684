//! `keystead import plan`, `run`, `verify`, `contract` and `status`: brings keys that exist elsewhere in.
//!
//! Works on Keystead's own database, like `migrate`, also beside a running server. The work is `app`'s; here are the
//! flags, the mapping file, the question before `contract`, and what is shown (`progress.rs`, `show.rs`).
//! Invariant: standard output holds the report alone, and neither it nor standard error ever shows a key.

mod progress;
mod show;

use std::error::Error as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustix::process::{Pid, setpriority_process};

use self::progress::Progress;
use super::confirm;
use super::failure::{DONE, Failure, REFUSED, UNREACHABLE, USAGE, chain};
use super::output;
use crate::config::{Environment, Flags, ImportConfig, ImportSettings, OutputFormat};
use crate::import::report::Report;
use crate::import::{BATCH_DEFAULT, ErrorKind, ImportError, Mapping, Options, StatusQuery};
use crate::{app, telemetry};

/// Longest mapping file, in bytes.
const MAPPING_BYTES_MAX: u64 = 1 << 20;
/// The priority of this process, as nice(2) counts it: whoever serves on the same machine comes first.
const NICE: i32 = 10;

/// Flags of `import`.
#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(flatten)]
    flags: Flags<ImportSettings>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Tell what `run` would do, per scheme and per problem. Writes nothing.
    Plan {
        #[command(flatten)]
        reading: Reading,
        #[command(flatten)]
        output: Output,
    },
    /// Bring the rows in. Goes on where it was interrupted; a repeat brings nothing in twice.
    Run {
        #[command(flatten)]
        reading: Reading,
        /// Where the ids of refused rows go, with reasons; by default SOURCE-refused.csv, after the label.
        #[arg(long, value_name = "FILE")]
        refused_file: Option<PathBuf>,
        /// Read past requests although organizations or keys were refused: those of such keys are lost.
        #[arg(long)]
        accept_refused: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Read every row again and check what Keystead says of it. Exit code 1 where anything differs.
    Verify {
        #[command(flatten)]
        reading: Reading,
        /// Let rows pass that the import refuses, and those that cannot be compared any more (`HASHED_SINCE`).
        #[arg(long)]
        accept_refused: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Drop the columns that the mapping names from the source. Only after `verify` passed; asks first.
    Contract {
        #[command(flatten)]
        mapping: MappingFile,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Create the dropped columns again, empty: what was in them cannot come back.
        #[arg(long)]
        down: bool,
    },
    /// Tell what came from where, and which keys nobody has presented since.
    Status {
        /// Only what has this label.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        /// List the keys that were never seen since the import and are neither revoked nor expired, by owner.
        #[arg(long)]
        unseen: bool,
        /// List the keys that came without a hash, by owner.
        #[arg(long)]
        missing: bool,
        #[command(flatten)]
        output: Output,
    },
}

// What the commands share that read the source.
#[derive(Debug, Args)]
struct Reading {
    #[command(flatten)]
    mapping: MappingFile,
    /// Bring weak keys in too, flagged in their metadata.
    #[arg(long)]
    allow_weak: bool,
    /// Rows of one batch, 1 to 10000.
    #[arg(long, value_name = "N", default_value_t = BATCH_DEFAULT,
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
}

#[derive(Debug, Args)]
struct MappingFile {
    /// TOML file that says which column is what.
    #[arg(long = "mapping", value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
struct Output {
    /// Tables for people or JSON for programs.
    #[arg(long = "output", value_name = "table|json", default_value = "table", value_parser = output_format)]
    format: OutputFormat,
}

fn output_format(text: &str) -> Result<OutputFormat, String> {
    match text {
        "table" => Ok(OutputFormat::Table),
        "json" => Ok(OutputFormat::Json),
        _ => Err("neither table nor json".to_owned()),
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let code = match error.kind() {
            ErrorKind::Refused => REFUSED,
            ErrorKind::Usage => USAGE,
            ErrorKind::Unreachable => UNREACHABLE,
        };
        Self { code, text: text_of(&error) }
    }
}

/// An error and what caused it; where it names several problems, a line each.
fn text_of(error: &ImportError) -> String {
    let lines: Vec<String> = error.to_string().lines().map(output::escape).collect();
    let text = lines.join("\n  ");
    let Some(cause) = error.source() else { return text };
    let cause = chain(cause);
    if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
}

impl Import {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let config = ImportConfig::load(&self.flags, environment)?;
        telemetry::init(&config.telemetry);
        step_back();
        match self.action {
            Action::Plan { reading, output } => plan(&config, &reading, &output).await,
            Action::Run { reading, refused_file, accept_refused, output } => {
                let options = Options { refused_file, accept_refused, ..reading.options() };
                run(&config, &reading, &options, &output).await
            }
            Action::Verify { reading, accept_refused, output } => {
                verify(&config, &reading, accept_refused, &output).await
            }
            Action::Contract { mapping, yes, down } => contract(&config, &mapping, yes, down).await,
            Action::Status { source, unseen, missing, output } => {
                let query = StatusQuery { source, unseen, missing };
                let status = app::import_status(&config, &query).await?;
                output::print(&match output.format {
                    OutputFormat::Table => show::status_text(&status),
                    OutputFormat::Json => show::status_json(&status),
                })?;
                Ok(DONE)
            }
        }
    }
}

/// Lowers the priority of every thread that there is, since Linux counts it by thread; those that come later take it
/// over. Where that cannot be done an import is as good as before.
fn step_back() {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return };
    for thread in threads.flatten() {
        let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(thread) = number.and_then(Pid::from_raw) {
            let _ = setpriority_process(Some(thread), NICE);
        }
    }
}

async fn plan(config: &ImportConfig, reading: &Reading, output: &Output) -> Result<u8, Failure> {
    let mapping = reading.mapping.read()?;
    let progress = Progress::new("to be refused");
    let options = reading.options();
    let report = app::import_plan(config, &mapping, &options, &|event| progress.tell(&event)).await?;
    print_report(&report, output)
}

async fn run(config: &ImportConfig, reading: &Reading, options: &Options, output: &Output) -> Result<u8, Failure> {
    let mapping = reading.mapping.read()?;
    let progress = Progress::new("refused");
    let report = app::import_run(config, &mapping, options, &|event| progress.tell(&event)).await?;
    print_report(&report, output)
}

fn print_report(report: &Report, output: &Output) -> Result<u8, Failure> {
    output::print(&match output.format {
        OutputFormat::Table => show::report_text(report),
        OutputFormat::Json => show::report_json(report),
    })?;
    if report.interrupted {
        let hint = if report.dry_run { "" } else { ": the same command goes on from here" };
        return Err(Failure::refused(format!("interrupted{hint}")));
    }
    if report.dry_run || report.withheld.is_empty() {
        return Ok(DONE);
    }
    let tables = output::escape(&report.withheld.join(", "));
    Err(Failure::refused(format!("past requests are still to be read: {tables}")))
}

async fn verify(
    config: &ImportConfig,
    reading: &Reading,
    accept_refused: bool,
    output: &Output,
) -> Result<u8, Failure> {
    let mapping = reading.mapping.read()?;
    let progress = Progress::new("mismatches");
    let options = Options { accept_refused, ..reading.options() };
    let report = app::import_verify(config, &mapping, &options, &|event| progress.tell(&event)).await?;
    output::print(&match output.format {
        OutputFormat::Table => show::verify_text(&report),
        OutputFormat::Json => show::verify_json(&report),
    })?;
    if report.interrupted {
        return Err(Failure::refused("interrupted before the last row".to_owned()));
    }
    Ok(if report.passed { DONE } else { REFUSED })
}

async fn contract(config: &ImportConfig, mapping: &MappingFile, yes: bool, down: bool) -> Result<u8, Failure> {
    let mapping = mapping.read()?;
    let plan = app::import_contract_plan(config, &mapping, down).await?;
    output::note(show::contract_text(&plan).trim_end());
    if !yes {
        let verb = if down { "create the columns again" } else { "drop the columns" };
        confirm::confirm(verb, "nothing was changed")?;
    }
    let progress = Progress::new("changed");
    let done = app::import_contract(config, &mapping, &plan, &|event| progress.tell(&event)).await?;
    let tables = done.tables.join(", ");
    let what = if done.down { "created again, empty" } else { "dropped" };
    output::print(&format!("{what}: columns of {}\n", output::escape(&tables)))?;
    Ok(DONE)
}

impl Reading {
    fn options(&self) -> Options {
        Options {
            allow_weak: self.allow_weak,
            batch: usize::from(self.batch),
            refused_file: None,
            accept_refused: false,
        }
    }
}

impl MappingFile {
    fn read(&self) -> Result<Mapping, Failure> {
        let shown = self.file.display();
        let text =
            read_bounded(&self.file).map_err(|reason| Failure::usage(format!("the mapping file {shown} {reason}")))?;
        Mapping::parse(&text).map_err(|problems| Failure::usage(format!("{shown}: {problems}")))
    }
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut bytes = Vec::new();
    file.take(MAPPING_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAPPING_BYTES_MAX {
        return Err(format!("is longer than {MAPPING_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}
