//! One real PostgreSQL server for the whole test process: started on first use in a temporary folder,
//! as an ordinary user even where the tests run as root, reachable on 127.0.0.1 alone. A test that stops
//! its server or makes a standby of it has servers of its own, which end when they are dropped.
//! None must ever outlive the tests. `postgres.sh` sees to that: it holds a pipe from this process and
//! stops the server when the pipe closes, which happens however this process ends.
//! Each test gets a database and a role of its own; that role is no superuser, as in production.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};

use super::tools;

/// A PostgreSQL server.
pub struct Postgres {
    port: u16,
    password: String,
    folder: PathBuf,
    databases: AtomicU32,
    /// `postgres.sh`. Its standard input is open for as long as this process lives, and no longer.
    _watchdog: Child,
}

/// The test process's server, started by whoever asks first.
pub fn postgres() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

impl Postgres {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Creates an empty database owned by a role of its own, and returns its name and URL.
    pub async fn create_database(&self) -> (String, String) {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let password = &self.password;
        self.as_superuser(&format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'")).await;
        self.as_superuser(&format!("CREATE DATABASE {name} OWNER {name}")).await;
        let url = format!("postgres://{name}:{password}@127.0.0.1:{}/{name}", self.port);
        (name, url)
    }

    /// The URL of its database `postgres`, as its superuser.
    pub fn admin_url(&self) -> String {
        format!("postgres://postgres:{}@{}/postgres", self.password, self.address())
    }

    /// The folder with all its data.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Makes a command run as the user that the server runs as.
    pub fn as_its_user(&self, command: &mut Command) {
        become_ordinary_user(command, &self.folder);
    }

    /// Runs one statement as the server's administrator.
    pub async fn as_superuser(&self, sql: &str) {
        let connection = self.connect().await;
        connection.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await.expect("the administrator's connection closes");
    }

    /// The folder with the data files of database `name` and the one with the write-ahead log.
    pub async fn files_of(&self, name: &str) -> Vec<PathBuf> {
        let connection = self.connect().await;
        let statement = format!("SELECT oid::int8 FROM pg_database WHERE datname = '{name}'");
        let row = connection
            .query_one_raw(sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, statement))
            .await
            .expect("pg_database can be read")
            .expect("the database exists");
        let oid: i64 = row.try_get_by_index(0).expect("an oid");
        connection.execute_unprepared("CHECKPOINT").await.expect("a checkpoint");
        connection.close().await.expect("the administrator's connection closes");
        let data = self.data();
        vec![data.join("base").join(oid.to_string()), data.join("pg_wal")]
    }

    async fn connect(&self) -> DatabaseConnection {
        let mut options = ConnectOptions::new(self.admin_url());
        options.max_connections(1).sqlx_logging(false);
        Database::connect(options).await.expect("the tests' PostgreSQL accepts a connection")
    }

    /// Starts one for a test alone.
    pub fn start() -> Self {
        Self::run(random_password(), &[])
    }

    /// Starts a copy of this one for a test alone: `commands` fill its folder, `STANDBY_DATA`, and find `variables`.
    pub fn start_copy(&self, commands: &str, variables: &[(&str, &str)]) -> Self {
        let commands = [("KEYSTEAD_POSTGRES_COPY", commands)];
        Self::run(self.password.clone(), &[commands.as_slice(), variables].concat())
    }

    fn run(password: String, variables: &[(&str, &str)]) -> Self {
        let programs = tools::postgres_folder();
        let folder =
            tempfile::Builder::new().prefix("keystead-postgres-").tempdir().expect("a temporary folder").keep();
        fs::write(folder.join("password"), &password).expect("the password file");

        let mut command = Command::new("sh");
        command.arg("-c").arg(include_str!("postgres.sh")).arg("postgres");
        command.arg(&folder).arg(&programs).args(free_ports().iter().map(u16::to_string));
        command.current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A group of its own, so that Ctrl-C in a terminal reaches the tests and not the clean-up.
        command.process_group(0).env("LC_ALL", "C");
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        command.envs(variables.iter().copied());
        become_ordinary_user(&mut command, &folder);

        let mut child = command.spawn().expect("sh runs");
        let mut output = BufReader::new(child.stdout.take().expect("a piped standard output"));
        let mut answer = String::new();
        output.read_line(&mut answer).expect("an answer from postgres.sh");
        let Some(port) = answer.trim().strip_prefix("ready ").and_then(|port| port.parse().ok()) else {
            output.read_to_string(&mut answer).expect("the rest of the answer");
            panic!("The tests' PostgreSQL from {} did not start: {answer}", programs.display());
        };
        Self { port, password, folder, databases: AtomicU32::new(0), _watchdog: child }
    }
}

/// Database servers refuse to run as root, so root hands the folder and the process to an ordinary user.
pub(super) fn become_ordinary_user(command: &mut Command, folder: &Path) {
    if id("-u", None) != Some(0) {
        return;
    }
    let user = ["postgres", "nobody"]
        .into_iter()
        .find(|name| id("-u", Some(name)).is_some_and(|uid| uid != 0))
        .expect("root needs a user called `postgres` or `nobody` to run databases as; add one");
    let uid = id("-u", Some(user)).expect("the user's number");
    let gid = id("-g", Some(user)).expect("the group's number");
    for path in [folder, &folder.join("password")] {
        chown(path, Some(uid), Some(gid)).expect("root may give the folder away");
    }
    command.uid(uid).gid(gid);
}

fn id(flag: &str, user: Option<&str>) -> Option<u32> {
    let output = Command::new("id").arg(flag).args(user).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Ports that were free a moment ago; more than one, because another process may take the first.
fn free_ports() -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("a local address").port()).collect()
}

/// 128 random bits in decimal: other users of this machine can reach the port.
pub(super) fn random_password() -> String {
    let mut bytes = [0_u8; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .expect("/dev/urandom gives random bytes");
    u128::from_ne_bytes(bytes).to_string()
}
