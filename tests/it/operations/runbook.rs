//! The command blocks of `docs/operations.md`, found by their names and run as an operator runs them: pasted into one
//! POSIX shell, one after the other, with the variables that the page names. A block's name is the second word behind its
//! fence, as in `sh revoke-sql`.
//! Invariant: a block is run as it stands on the page; any command in it that fails ends it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::cli::{self, Ran};
use crate::harness::{Postgres, Server, TestDatabase, tools};
use crate::structure::document;

const PAGE: &str = "docs/operations.md";

/// Arguments of a server whose metrics and log the page's commands read.
pub const ARGUMENTS: &[&str] = &["--metrics-listen", "127.0.0.1:0", "--log-format", "json"];

/// All blocks of the page: name and commands. One without a name is named by its first line.
pub fn blocks() -> Vec<(String, String)> {
    let page = document(PAGE);
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        assert!(line.starts_with("```"), "an indented block cannot be pasted: {line}");
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let name = info.strip_prefix("sh ").unwrap_or_else(|| text.first().copied().unwrap_or_default());
        blocks.push((name.to_owned(), text.join("\n")));
    }
    blocks
}

/// The commands of one block.
pub fn block(name: &str) -> String {
    let found = blocks().into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("{PAGE} has no block {name}")).1
}

/// A shell with the variables that the page names, in a folder of its own.
#[derive(Clone)]
pub struct Shell {
    folder: PathBuf,
    variables: BTreeMap<&'static str, String>,
}

impl Shell {
    /// A shell beside a database, as the admin of its first server.
    pub fn new(database: &TestDatabase, servers: &[&Server]) -> Self {
        let mut shell = Self { folder: database.folder().to_path_buf(), variables: BTreeMap::new() };
        shell.set("KEYSTEAD_DATABASE_URL", &database.url);
        let replicas: Vec<String> = servers.iter().map(|server| server.metrics_address().to_string()).collect();
        shell.set("REPLICAS", replicas.join(" "));
        if let Some(first) = servers.first() {
            shell.set("KEYSTEAD_ADDRESS", format!("http://{}", first.address()));
            shell.set("KEYSTEAD_TOKEN", first.admin_secret());
        }
        shell
    }

    /// A file that the commands find or leave.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.insert(name, value.into());
    }

    /// Sets what was set in another shell and is not in this one.
    pub fn take_over(&mut self, other: Self) {
        for (name, value) in other.variables {
            self.variables.entry(name).or_insert(value);
        }
    }

    /// Runs blocks to their end, which must be a good one; gives what they printed.
    pub fn run(&self, names: &[&str]) -> String {
        Self::succeeded(names, self.try_run(names))
    }

    /// The same as the user that `postgres` runs as, on the machine of that server.
    pub fn run_beside(&self, postgres: &Postgres, names: &[&str]) -> String {
        let mut command = self.command(names);
        command.current_dir("/");
        postgres.as_its_user(&mut command);
        Self::succeeded(names, cli::run(command, ""))
    }

    /// Runs blocks to whatever end they come to.
    pub fn try_run(&self, names: &[&str]) -> Ran {
        cli::run(self.command(names), "")
    }

    fn succeeded(names: &[&str], ran: Ran) -> String {
        assert_eq!(ran.code, 0, "{names:?}: {ran:?}");
        ran.stdout
    }

    fn command(&self, names: &[&str]) -> Command {
        let commands: Vec<String> = names.iter().map(|name| block(name)).collect();
        let mut command = Command::new("sh");
        command.args(["-eu", "-c", &commands.join("\n")]).current_dir(&self.folder);
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if name.starts_with("KEYSTEAD_") || name.starts_with("PG") {
                command.env_remove(&variable);
            }
        }
        command.env("PATH", tools::operators_path()).env("LC_ALL", "C").env("NO_COLOR", "1").envs(&self.variables);
        command
    }
}

/// The first value of a field in a table's record or a grpcurl answer, such as `id` in `id:  01a1...`.
pub fn field(printed: &str, name: &str) -> String {
    let start = format!("{name}:");
    let found = printed.lines().find_map(|line| line.trim_start().strip_prefix(&start));
    found.unwrap_or_else(|| panic!("no {name} in {printed}")).trim().to_owned()
}
