//! A command that a test starts and then looks at, interrupts or kills, and the transactions that hold it up meanwhile.
//! Must not be used for one that reads its standard input: that is a `fed` run, or a whole one of `world`.
//! Invariant: a command never outlives its test, and what it printed is there once it has ended.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ConnectionTrait as _, DatabaseConnection};

use crate::harness::cli::Ran;
use crate::harness::wait_until;

/// A command under way, which never outlives its test.
pub struct UnderWay(Option<Child>);

impl UnderWay {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(Some(command.spawn().expect("keystead runs")))
    }

    pub fn has_ended(&mut self) -> bool {
        self.child().try_wait().expect("the process can be asked").is_some()
    }

    /// Fails where it has ended, with what it printed.
    pub fn expect_running(&mut self) {
        assert!(!self.has_ended(), "it has ended by itself: {:?}", self.output());
    }

    /// Sends SIGINT, as Ctrl-C does, unless it has ended.
    pub fn interrupt(&mut self) {
        // One that has not been waited for keeps its id.
        if !self.has_ended() {
            kill_process(Pid::from_child(self.child()), Signal::INT).expect("SIGINT is sent");
        }
    }

    /// Ends it at once: nothing of it runs any more.
    pub fn kill9(&mut self) {
        self.child().kill().expect("SIGKILL is sent");
        self.child().wait().expect("the process ends");
    }

    /// Waits for its end, and gives what it printed.
    pub async fn ended(mut self) -> Ran {
        wait_until("the command to end", async || self.has_ended()).await;
        self.output()
    }

    fn output(&mut self) -> Ran {
        let child = self.0.take().expect("a command is waited for once");
        let output = child.wait_with_output().expect("the command ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ran {
            code: output.status.code().expect("an exit code"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("a command that is under way")
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Nothing is left to do where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ends a transaction that others wait for.
pub async fn let_go(held: DatabaseConnection) {
    held.execute_unprepared("ROLLBACK").await.expect("the transaction ends");
    held.close().await.expect("the connection closes");
}
