//! One real MariaDB for the whole test process: a source of imports, never Keystead's own database. Started on first
//! use in a temporary folder, as an ordinary user even where the tests run as root, reachable on 127.0.0.1 alone. It
//! never outlives the tests, however they end: `mariadb.sh` holds a pipe from this process and kills the server when
//! the pipe closes. Each test gets a database of its own, with an owner and with a reader who may only select.
//! Invariant: a server that is handed out answered as the very process that was started here.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection, Row as _};
use tokio::sync::OnceCell;

use super::postgres::{become_ordinary_user, random_password};
use super::{signals, tools, wait_until};

/// Another process may take a port first; so often is another port tried.
const STARTS_MAX: usize = 5;

/// The test process's server.
struct MariaDb {
    port: u16,
    password: String,
    databases: AtomicU32,
    /// `mariadb.sh`, then the server itself. Its standard input is open for as long as this process lives.
    _server: Child,
}

/// One test's own database.
pub struct MariaDatabase {
    name: String,
    /// Of an account that owns it.
    pub url: String,
    /// Of an account that may only select.
    pub reader_url: String,
}

impl MariaDatabase {
    /// Makes an empty database on the shared server, which whoever asks first starts.
    pub async fn new() -> Self {
        static SERVER: OnceCell<MariaDb> = OnceCell::const_new();
        SERVER.get_or_init(MariaDb::start).await.create_database().await
    }

    /// Runs statements as the owner.
    pub async fn run(&self, sql: &str) {
        let mut connection = connect(&self.url).await.unwrap_or_else(|error| panic!("{error}"));
        // Quotes alone end a text then, as they do in the other databases; ANSI_QUOTES: names as well.
        let mode = "SET SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES', time_zone = '+00:00'";
        connection.execute(mode).await.expect("a mode that every version has");
        let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
        done.unwrap_or_else(|error| panic!("{sql:.200}: {error}"));
        connection.close().await.expect("the connection closes");
    }

    /// The row that a query answers.
    pub async fn row(&self, sql: &str) -> MySqlRow {
        let mut connection = connect(&self.url).await.unwrap_or_else(|error| panic!("{error}"));
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
        connection.close().await.expect("the connection closes");
        row.unwrap_or_else(|error| panic!("{sql:.200}: {error}"))
    }

    /// A word that is another when a table has changed.
    pub async fn checksum(&self, table: &str) -> String {
        let row = self.row(&format!("CHECKSUM TABLE `{}`.`{table}` EXTENDED", self.name)).await;
        // Versions differ in whether they call the number signed.
        let sum: i64 = row.try_get_unchecked(1).expect("a checksum");
        sum.to_string()
    }
}

impl MariaDb {
    async fn start() -> Self {
        let mut log = String::new();
        for _ in 0..STARTS_MAX {
            match Self::start_at(free_port()).await {
                Ok(server) => return server,
                Err(why) => log = why,
            }
        }
        panic!("The tests' MariaDB did not start: {log}");
    }

    /// Starts one and waits until it answers, or returns its log where it ends instead.
    async fn start_at(port: u16) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("keystead-mariadb-").tempdir().expect("a temporary folder").keep();
        let password = random_password();
        fs::write(folder.join("password"), &password).expect("the password file");
        let mut server = command(port, &folder).spawn().expect("sh runs");
        let itself = format!("{}/data/", folder.display());
        let url = url("root", &password, port, "mysql");
        // Whoever else may have taken the port knows neither the password nor the folder.
        wait_until("MariaDB to answer", async || {
            signals::has_ended(&server) || data_folder(&url).await.is_some_and(|data| data == itself)
        })
        .await;
        if signals::has_ended(&server) {
            server.wait().expect("the process has ended");
            let log = fs::read_to_string(folder.join("mariadb.log")).unwrap_or_default();
            return Err(log.lines().rev().take(20).collect::<Vec<_>>().join("\n"));
        }
        Ok(Self { port, password, databases: AtomicU32::new(0), _server: server })
    }

    async fn create_database(&self) -> MariaDatabase {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let (owner, reader, password) = (format!("{name}_owner"), format!("{name}_reader"), &self.password);
        let mut root = connect(&url("root", password, self.port, "mysql")).await.expect("a connection as root");
        for sql in [
            format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"),
            format!("CREATE USER '{owner}'@'127.0.0.1' IDENTIFIED BY '{password}'"),
            format!("CREATE USER '{reader}'@'127.0.0.1' IDENTIFIED BY '{password}'"),
            format!("GRANT ALL PRIVILEGES ON {name}.* TO '{owner}'@'127.0.0.1'"),
            format!("GRANT SELECT ON {name}.* TO '{reader}'@'127.0.0.1'"),
        ] {
            let done = root.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
            done.expect("root may do so");
        }
        root.close().await.expect("the connection closes");
        let [url, reader_url] = [owner, reader].map(|user| url(&user, password, self.port, &name));
        MariaDatabase { name, url, reader_url }
    }
}

async fn connect(url: &str) -> sqlx::Result<MySqlConnection> {
    MySqlConnection::connect(url).await
}

/// Where the server that answers keeps its data.
async fn data_folder(url: &str) -> Option<String> {
    let mut connection = connect(url).await.ok()?;
    sqlx::query_scalar("SELECT @@datadir").fetch_one(&mut connection).await.ok()
}

fn url(user: &str, password: &str, port: u16, database: &str) -> String {
    format!("mysql://{user}:{password}@127.0.0.1:{port}/{database}")
}

fn command(port: u16, folder: &Path) -> Command {
    let (server, installer) = tools::mariadb();
    let mut command = Command::new("sh");
    command.arg("-c").arg(include_str!("mariadb.sh")).arg("mariadb");
    command.arg(folder).arg(server).arg(installer).arg(port.to_string());
    command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null());
    // A group of its own, so that Ctrl-C in a terminal reaches the tests and not the clean-up.
    command.process_group(0).env("LC_ALL", "C");
    become_ordinary_user(&mut command, folder);
    command
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a local address").port()
}
