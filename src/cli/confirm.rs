//! Asks a person on a terminal before something that cannot be taken back.
//! Must not take silence for consent: without a terminal, and after any answer but yes, nothing is done.

use std::io::{self, BufRead as _, IsTerminal as _};

use super::failure::Failure;
use super::output;

/// Asks whether to go on. `verb` completes "pass --yes to ... without a terminal"; `refusal` is said after a no.
pub fn confirm(verb: &str, refusal: &str) -> Result<(), Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::refused(format!("nobody to ask: pass --yes to {verb} without a terminal")));
    }
    output::note("Go on? [y/N]");
    let mut answer = String::new();
    stdin
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::refused(format!("the answer cannot be read: {error}")))?;
    if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { Err(Failure::refused(refusal.to_owned())) }
}
