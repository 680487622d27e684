//! The `keystead` binary: starts the runtime, runs one command, ends with its exit code.
//!
//! Everything else is in the library, so that tests reach it. Must hold no logic of its own. Invariant: the process
//! ends even if a blocking task hangs, because the runtime is given up after a bounded wait.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Builder;

/// How long blocking work may go on after the command is done.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(keystead::cli::run());
            runtime.shutdown_timeout(SHUTDOWN_WAIT);
            ExitCode::from(code)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: the runtime cannot start: {error}");
            ExitCode::from(keystead::cli::REFUSED)
        }
    }
}
