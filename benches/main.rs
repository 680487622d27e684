//! The benchmarks: one module for each promise about speed, run by `cargo bench`.
//!
//!     cargo bench                              all of them, in full
//!     cargo bench -- verify_hot flood          some
//!     cargo bench -- import                    those whose first word it is
//!     cargo bench -- --quick                   briefly, to see that they work; the figures mean nothing
//!
//! One program, so that one link is paid for; it starts the `keystead` binary and its baselines as its children.
//! Every answer is checked, and a wrong one ends the run. What the figures mean stands in `docs/performance.md`.

mod cache;
mod create;
mod flood;
mod import;
mod list_keys;
mod memory;
mod replicas;
mod support;
mod usage_stats;
mod verify_batch;
mod verify_cold;
mod verify_hot;

use std::process::ExitCode;

use support::{Failure, bare, plan::Plan};

/// The benchmarks by name, in the order in which they run.
const NAMES: &[&str] = &[
    "verify_hot",
    "verify_cold",
    "verify_batch",
    "create",
    "usage_stats",
    "list_keys",
    "memory",
    "flood",
    "replicas",
    "import_rate",
    "import_memory",
    "import_hot",
    "cache",
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [argument, answer] if argument == bare::ARGUMENT => bare::serve(answer),
        [argument, name, entries] if argument == cache::ARGUMENT => cache::measure(name, entries),
        arguments => run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let quick = arguments.iter().any(|argument| argument == "--quick");
    // Cargo adds `--bench`.
    let named: Vec<&str> = arguments.iter().map(String::as_str).filter(|name| !name.starts_with("--")).collect();
    if let Some(unknown) = named.iter().find(|asked| !NAMES.iter().any(|name| asks_for(asked, name))) {
        return Err(format!("there is no benchmark {unknown}; there are {}", NAMES.join(", ")).into());
    }
    let plan = Plan { quick };
    if quick {
        println!("briefly: every answer is checked, and the figures mean nothing");
    }
    for name in NAMES.iter().filter(|name| named.is_empty() || named.iter().any(|asked| asks_for(asked, name))) {
        // A runtime each: nothing of one benchmark runs on while the next one measures.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(bench(name, plan)).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// Whether this is the benchmark's name, or the first word of it.
fn asks_for(asked: &str, name: &str) -> bool {
    name.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

async fn bench(name: &str, plan: Plan) -> Result<(), Failure> {
    match name {
        "verify_hot" => verify_hot::run(plan).await,
        "verify_cold" => verify_cold::run(plan).await,
        "verify_batch" => verify_batch::run(plan).await,
        "create" => create::run(plan).await,
        "usage_stats" => usage_stats::run(plan).await,
        "list_keys" => list_keys::run(plan).await,
        "memory" => memory::run(plan).await,
        "flood" => flood::run(plan).await,
        "replicas" => replicas::run(plan).await,
        "import_rate" => import::rate::run(plan).await,
        "import_memory" => import::memory::run(plan).await,
        "import_hot" => import::hot::run(plan).await,
        "cache" => cache::run(plan),
        _ => Err("it has no function".into()),
    }
}
