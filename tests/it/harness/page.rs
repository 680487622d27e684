//! A page of `docs/` whose command blocks are run as an operator runs them: pasted into one POSIX shell, one after the
//! other, with the variables that the page names. A block's name is the second word behind its fence, as in
//! `sh measure-begin`; a block of another language is not run.
//! Invariant: a block is run as it stands on the page. Any command in it that fails ends it, but for [`Shell::paste`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, Statement};

use super::cli::{self, Ran};
use super::postgres::postgres;
use super::{Server, TestDatabase, tools};

/// A page, from the repository's root.
#[derive(Clone, Copy)]
pub struct Page(pub &'static str);

/// What stands between two fences.
pub struct Block {
    /// `sh`, `toml`, `text`.
    pub language: String,
    /// Empty where the fence gives none.
    pub name: String,
    pub text: String,
}

impl Page {
    /// The whole page.
    pub fn text(self) -> String {
        let path = self.0;
        fs::read_to_string(tools::repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// All its blocks.
    pub fn blocks(self) -> Vec<Block> {
        let page = self.text();
        let mut blocks = Vec::new();
        let mut lines = page.lines();
        while let Some(line) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else {
                continue;
            };
            assert!(line.starts_with("```"), "an indented block cannot be pasted: {line}");
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let (language, name) = info.split_once(' ').unwrap_or((info, ""));
            blocks.push(Block { language: language.to_owned(), name: name.to_owned(), text: text.join("\n") });
        }
        blocks
    }

    /// What stands in one block.
    pub fn block(self, name: &str) -> String {
        let found = self.blocks().into_iter().find(|block| block.name == name);
        found.unwrap_or_else(|| panic!("{} has no block {name}", self.0)).text
    }
}

/// A shell with the variables that the page names, in a folder of its own.
pub struct Shell {
    page: Page,
    folder: PathBuf,
    variables: BTreeMap<&'static str, String>,
}

impl Shell {
    /// A shell beside Keystead's database, as the admin of a server of it.
    pub fn new(page: Page, database: &TestDatabase, server: &Server) -> Self {
        let mut shell = Self { page, folder: database.folder().to_path_buf(), variables: BTreeMap::new() };
        shell.set("KEYSTEAD_DATABASE_URL", &database.url);
        shell.set("KEYSTEAD_ADDRESS", format!("http://{}", server.address()));
        shell.set("KEYSTEAD_TOKEN", server.admin_secret());
        shell.set("REPLICAS", server.metrics_address().to_string());
        shell
    }

    /// A file that the commands find or leave.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file for the commands to find.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, text).expect("a file is written");
        path
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.insert(name, value.into());
    }

    /// Sets a variable to a path.
    pub fn set_path(&mut self, name: &'static str, path: &Path) {
        self.set(name, path.to_str().expect("a path of text"));
    }

    /// Runs blocks to their end, which must be a good one; gives what they printed.
    pub fn run(&self, names: &[&str]) -> String {
        let ran = self.try_run(names);
        assert_eq!(ran.code, 0, "{names:?}: {ran:?}");
        ran.stdout
    }

    /// Runs blocks to whatever end they come to.
    pub fn try_run(&self, names: &[&str]) -> Ran {
        let commands: Vec<String> = names.iter().map(|name| self.page.block(name)).collect();
        self.end_of(&["-eu"], &commands.join("\n"))
    }

    /// Runs a block as a shell does that somebody types at: what fails ends nothing by itself. `before` is typed before
    /// it, such as a function that takes the place of a program.
    pub fn paste(&self, before: &str, name: &str) -> Ran {
        self.end_of(&[], &format!("{before}\n{}", self.page.block(name)))
    }

    fn end_of(&self, options: &[&str], commands: &str) -> Ran {
        let mut command = Command::new("sh");
        command.args(options).args(["-c", commands]).current_dir(&self.folder);
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if name.starts_with("KEYSTEAD_") || name.starts_with("PG") {
                command.env_remove(&variable);
            }
        }
        command.env("PATH", tools::operators_path()).env("LC_ALL", "C").env("NO_COLOR", "1").envs(&self.variables);
        cli::run(command, "")
    }
}

/// A PostgreSQL database's URL as the server's administrator.
pub fn administrators_url(database: &TestDatabase) -> String {
    let (_, name) = database.url.rsplit_once('/').expect("a URL ends with the database's name");
    let url = postgres().admin_url();
    let (server, _) = url.rsplit_once('/').expect("a URL ends with the database's name");
    format!("{server}/{name}")
}

/// Gives a PostgreSQL database to another owner. Its tables stay whose they are.
pub async fn give_database(database: &TestDatabase, owner: &str) {
    let (_, name) = database.url.rsplit_once('/').expect("a URL ends with the database's name");
    postgres().as_superuser(&format!("ALTER DATABASE {name} OWNER TO {owner}")).await;
}

/// Whether a text stands in the file of a table on the disk, in a row, in what is left of one, or in a column that was
/// dropped.
pub async fn is_on_disk(database: &TestDatabase, table: &str, text: &str) -> bool {
    let mut options = ConnectOptions::new(administrators_url(database));
    options.max_connections(1).sqlx_logging(false);
    let connection = Database::connect(options).await.expect("the administrator connects");
    connection.execute_unprepared("CHECKPOINT").await.expect("a checkpoint");
    let sql = format!("SELECT position('{text}'::bytea IN pg_read_binary_file(pg_relation_filepath('{table}'))) > 0");
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let row = connection.query_one_raw(statement).await.expect("the file can be read").expect("a row");
    connection.close().await.expect("the administrator's connection closes");
    row.try_get_by_index(0).expect("true or false")
}

/// The first value of a field in a table's record, such as `id` in `id:  01a1...`.
pub fn field(printed: &str, name: &str) -> String {
    let start = format!("{name}:");
    let found = printed.lines().find_map(|line| line.trim_start().strip_prefix(&start));
    found.unwrap_or_else(|| panic!("no {name} in {printed}")).trim().to_owned()
}
