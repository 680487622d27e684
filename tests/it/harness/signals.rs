//! What the harness does to a child process besides killing it: halts it, lets it go on, and looks whether it has ended.
//! A child is always named by the handle that this process holds, and none is reaped here, so that its id stays its own.

use std::process::Child;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Halts the process (SIGSTOP). When this returns, no thread of it runs.
pub(super) fn halt(child: &Child) {
    send(child, Signal::STOP);
    // The signal is under way for a moment in which the process could still answer.
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let state = waitid(WaitId::Pid(Pid::from_child(child)), options).expect("a child can be waited for");
    assert!(state.is_some_and(|state| state.stopped()), "the process has ended and cannot be halted");
}

/// Lets a halted process go on (SIGCONT).
pub(super) fn go_on(child: &Child) {
    send(child, Signal::CONT);
}

/// Whether the process has ended, which leaves it to be waited for.
pub(super) fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(child)), options).expect("a child can be asked").is_some()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("the signal is sent");
}
