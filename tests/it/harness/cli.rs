//! The command line as its users run it: a process with variables, arguments and standard input.
//! Nothing of the library is called here; what counts is what is printed and the exit code.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Server, TestDatabase, keystead_command};

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output as JSON, of a command that ended with 0.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        self.any_json()
    }

    /// Standard output as JSON, whatever the exit code.
    pub fn any_json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs a command to its end, with `stdin` on its standard input.
pub fn run(mut command: Command, stdin: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("keystead runs");
    let mut input = child.stdin.take().expect("a piped standard input");
    // A command that does not read its input may have ended before it is written.
    let _ = input.write_all(stdin.as_bytes());
    drop(input);
    let output = child.wait_with_output().expect("the command ends");
    Ran {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).expect("text on standard output"),
        stderr: String::from_utf8(output.stderr).expect("text on standard error"),
    }
}

/// Runs `keystead ARGUMENTS` on a database.
pub fn on_database(database: &TestDatabase, arguments: &[&str]) -> Ran {
    let mut command = keystead_command(database);
    command.args(arguments);
    run(command, "")
}

/// The `keystead` command with no setting at all, whatever this process's environment says.
pub fn bare() -> Command {
    super::server::bare_command("")
}

/// Runs `keystead ARGUMENTS` as a client of a server, with `token` as its credential.
pub fn as_caller(server: &Server, token: &str, arguments: &[&str], stdin: &str) -> Ran {
    let mut command = bare();
    command.env("KEYSTEAD_ADDRESS", format!("http://{}", server.address()));
    command.env("KEYSTEAD_TOKEN", token).args(arguments);
    run(command, stdin)
}

/// The same as the first admin, with nothing on standard input.
pub fn as_admin(server: &Server, arguments: &[&str]) -> Ran {
    as_caller(server, server.admin_secret(), arguments, "")
}
