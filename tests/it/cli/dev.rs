//! `keystead serve --dev`, the first command of a newcomer: it prepares a database, prints the admin secret once and
//! lines to paste, and serves. A second start on the same database prints no secret, and everything is still there.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::is_a_secret;
use crate::harness::cli;
use crate::harness::{Engine, TestDatabase, keystead_command};

const PATIENCE: Duration = Duration::from_mins(1);

/// A running `serve --dev`.
struct Dev {
    child: Child,
    printed: Vec<String>,
    address: String,
}

impl Dev {
    /// Starts it and reads what it prints, up to the last line to paste.
    fn start(database: &TestDatabase) -> Self {
        let mut command: Command = keystead_command(database);
        command.args(["serve", "--dev", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("keystead runs");
        let lines = lines(child.stdout.take().expect("piped"));
        let errors = lines_of_stderr(&mut child);
        let mut dev = Self { child, printed: Vec::new(), address: String::new() };
        while !dev.printed.last().is_some_and(|line: &String| line.contains("KeyService/RevokeKey")) {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => dev.printed.push(line),
                Err(error) => panic!("{error} after {:?} and {:?}", dev.printed, errors.try_iter().collect::<Vec<_>>()),
            }
        }
        let call = dev.printed.iter().find(|line| line.starts_with("grpcurl")).expect("a line to paste");
        dev.address = call.split(' ').find(|word| word.starts_with("127.0.0.1:")).expect("an address").to_owned();
        dev
    }

    fn secret(&self) -> Option<String> {
        let export = self.printed.iter().find_map(|line| line.trim().strip_prefix("export KEYSTEAD_TOKEN="));
        export.map(str::to_owned)
    }

    fn run(&self, token: &str, arguments: &[&str]) -> cli::Ran {
        let mut command = cli::bare();
        command.env("KEYSTEAD_ADDRESS", format!("http://{}", self.address)).env("KEYSTEAD_TOKEN", token);
        command.args(arguments);
        cli::run(command, "")
    }

    /// Ends it, and gives what it wrote to standard output in all.
    fn end(mut self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().expect("sh runs");
        assert!(sent.success());
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
    }
}

impl Drop for Dev {
    /// A test that fails leaves no server behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(stream: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || BufReader::new(stream).lines().try_for_each(|line| sender.send(line.unwrap_or_default())));
    lines
}

fn lines_of_stderr(child: &mut Child) -> Receiver<String> {
    lines(child.stderr.take().expect("piped"))
}

async fn goes_the_newcomers_way(engine: Engine) {
    let database = TestDatabase::new(engine).await;
    if engine == Engine::Postgres {
        // On PostgreSQL migrations run when they are asked for.
        assert_eq!(cli::on_database(&database, &["migrate", "up"]).code, 0);
    }
    let first = Dev::start(&database);
    let secret = first.secret().expect("a line that exports the secret");
    assert!(is_a_secret(&secret));
    let rpcs = ["CreateOrganization", "CreateKey", "VerifyKey", "RevokeKey"];
    for rpc in rpcs {
        let pasted = first.printed.iter().filter(|line| line.starts_with("grpcurl") && line.ends_with(rpc)).count();
        assert_eq!(pasted, 1, "{rpc}: {:?}", first.printed);
    }
    let made = first.run(&secret, &["organizations", "create", "--name", "Acme", "--slug", "acme", "--output", "json"]);
    assert_eq!(made.code, 0, "{made:?}");
    first.end();

    let second = Dev::start(&database);
    assert_eq!(second.secret(), None, "it is stored nowhere, so it cannot be printed again");
    let found = second.run(&secret, &["organizations", "get", "--slug", "acme"]);
    assert_eq!(found.code, 0, "{found:?}");
    second.end();
    assert_eq!(database.query_i64("SELECT count(*) FROM api_keys").await, 1);
}

#[tokio::test]
async fn the_newcomers_first_command_prepares_serves_and_keeps_on_sqlite() {
    goes_the_newcomers_way(Engine::Sqlite).await;
}

#[tokio::test]
async fn the_newcomers_first_command_prepares_serves_and_keeps_on_postgres() {
    goes_the_newcomers_way(Engine::Postgres).await;
}
