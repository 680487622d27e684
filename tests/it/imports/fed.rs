//! A run of `keystead import` whose rows the test writes to its standard input, piece by piece: it stands wherever the
//! test wants it to, over either database, however fast it is.
//! Must be given whole lines. Invariant: a run never outlives its test.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Stdio};

use super::world::Import;
use crate::harness::cli::Ran;
use crate::harness::wait_until;

/// The source of such a run.
pub const SOURCE: &str = "jsonl:-";

/// A run under way.
pub struct FedRun {
    child: Child,
    /// Open for as long as rows may come.
    rows: Option<ChildStdin>,
}

impl FedRun {
    /// Starts `keystead import run`, with its report as JSON.
    pub fn start(import: &Import<'_>, arguments: &[&str]) -> Self {
        let mut command = import.command(&[["run", "--output", "json"].as_slice(), arguments].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("keystead runs");
        let rows = child.stdin.take();
        Self { child, rows }
    }

    /// Gives it rows, a line each.
    pub fn feed(&mut self, lines: &str) {
        let rows = self.rows.as_mut().expect("rows may come");
        rows.write_all(lines.as_bytes()).expect("the run takes rows");
        rows.flush().expect("the run takes rows");
    }

    /// Tells it that there are no more rows, and waits until it has ended.
    pub async fn end(mut self) -> Ran {
        drop(self.rows.take());
        let mut status = None;
        wait_until("the run to end", async || {
            status = self.child.try_wait().expect("the process can be asked");
            status.is_some()
        })
        .await;
        let code = status.and_then(|status| status.code()).expect("an exit code");
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (out, err) = (self.child.stdout.take(), self.child.stderr.take());
        out.expect("a piped standard output").read_to_string(&mut stdout).expect("text on standard output");
        err.expect("a piped standard error").read_to_string(&mut stderr).expect("text on standard error");
        Ran { code, stdout, stderr }
    }
}

impl Drop for FedRun {
    fn drop(&mut self) {
        // Nothing is left to do where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
