//! A database per test, on either engine: SQLite in a folder of its own, or a fresh database on the
//! test process's PostgreSQL. Nothing is shared between two tests, and nothing is cleaned up by hand.
//! SQL run here goes through a connection of its own, as an operator's shell would, past the service.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, QueryResult, Statement};
use tempfile::TempDir;

use super::postgres::{Postgres, postgres};
use super::proxy::Proxy;

/// The databases that Keystead runs on. Every test of the store and of the service names both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// One test's own database. Dropping it removes a SQLite folder; PostgreSQL's go with their server.
pub struct TestDatabase {
    pub engine: Engine,
    /// What `--database-url` takes.
    pub url: String,
    /// PostgreSQL's name for it; on SQLite empty.
    name: String,
    /// A folder of this test's own; on SQLite it holds the database file.
    folder: TempDir,
    /// How many servers were given a spool of their own.
    spools: AtomicU32,
    /// The secret that `keystead init` printed, once it has run on this database.
    admin_secret: Mutex<Option<String>>,
}

impl TestDatabase {
    /// Makes an empty database: no table is in it yet.
    pub async fn new(engine: Engine) -> Self {
        if engine == Engine::Postgres {
            return Self::on(postgres()).await;
        }
        let folder = new_folder();
        let url = format!("sqlite://{}", folder.path().join("keystead.db").display());
        Self::of(engine, String::new(), url, folder)
    }

    /// The same on a server of the test's own. What knows the address of a server, or closes and opens the database, is
    /// for the tests' common server alone.
    pub async fn on(postgres: &Postgres) -> Self {
        let (name, url) = postgres.create_database().await;
        Self::of(Engine::Postgres, name, url, new_folder())
    }

    fn of(engine: Engine, name: String, url: String, folder: TempDir) -> Self {
        Self { engine, url, name, folder, spools: AtomicU32::new(0), admin_secret: Mutex::new(None) }
    }

    /// Where PostgreSQL listens, for a proxy before it.
    pub fn address(&self) -> SocketAddr {
        self.require_postgres();
        postgres().address()
    }

    /// What `--database-url` takes for the same database through a proxy to `address`.
    pub fn url_through(&self, proxy: &Proxy) -> String {
        let own = format!("@{}/", self.address());
        assert!(self.url.contains(&own), "the database's URL names its address");
        self.url.replace(&own, &format!("@{}/", proxy.address()))
    }

    /// A folder that lives as long as the database, for what else a test writes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder in which servers of this database keep usage that waits: on SQLite where they would by themselves.
    pub fn spool(&self) -> PathBuf {
        self.folder.path().join("keystead.db-spool")
    }

    /// A folder for a further server of this database, which it does not share.
    pub(super) fn new_spool(&self) -> PathBuf {
        self.further_spools().join(self.spools.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn further_spools(&self) -> PathBuf {
        self.folder.path().join("spools")
    }

    /// Runs statements past the service and returns how many rows they changed.
    pub async fn raw_sql(&self, sql: &str) -> u64 {
        let connection = self.connect().await;
        let result = connection.execute_unprepared(sql).await;
        let changed = result.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected();
        connection.close().await.expect("the connection closes");
        changed
    }

    /// The one number that a query answers, such as `SELECT count(*) ...`.
    pub async fn query_i64(&self, sql: &str) -> i64 {
        let row = self.query(sql).await;
        // PostgreSQL is strict about the width of what it sends.
        let narrow = || row.try_get_by_index::<i32>(0).map(i64::from);
        row.try_get_by_index::<i64>(0).or_else(|_| narrow()).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The one text that a query answers.
    pub async fn query_string(&self, sql: &str) -> String {
        let row = self.query(sql).await;
        row.try_get_by_index(0).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Opens a transaction past the service that keeps every change of a key or an organization waiting, and reads
    /// going on. SQLite gives up waiting after 5 s.
    pub async fn block_writes(&self) -> Blocked {
        let connection = self.connect().await;
        let statement = match self.engine {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN; LOCK TABLE organizations, api_keys, audit_events IN EXCLUSIVE MODE",
        };
        connection.execute_unprepared(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        Blocked(connection)
    }

    /// Every byte of the database's files, write-ahead log and usage spools included, for finding what must not be
    /// there.
    pub async fn bytes_at_rest(&self) -> Vec<u8> {
        let mut folders = match self.engine {
            Engine::Sqlite => vec![self.folder.path().to_path_buf()],
            Engine::Postgres => postgres().files_of(&self.name).await,
        };
        folders.extend(folders_below(&self.spool()));
        folders.extend(folders_below(&self.further_spools()));
        let mut bytes = Vec::new();
        for folder in folders {
            for file in files_in(&folder) {
                // PostgreSQL may remove a file between the listing and the reading.
                bytes.extend(fs::read(file).unwrap_or_default());
            }
        }
        bytes
    }

    /// Takes PostgreSQL's database away from everybody: sessions end, new ones are refused.
    pub async fn cut_off(&self) {
        self.require_postgres();
        let name = &self.name;
        postgres().as_superuser(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        let sessions = format!("FROM pg_stat_activity WHERE datname = '{name}'");
        postgres().as_superuser(&format!("SELECT pg_terminate_backend(pid) {sessions}")).await;
    }

    /// Undoes `cut_off`.
    pub async fn let_back(&self) {
        self.require_postgres();
        postgres().as_superuser(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", self.name)).await;
    }

    /// The admin secret, if `keystead init` has run through the harness.
    pub(super) fn admin_secret(&self) -> Option<String> {
        self.admin_secret.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn remember_admin_secret(&self, secret: &str) {
        *self.admin_secret.lock().unwrap_or_else(PoisonError::into_inner) = Some(secret.to_owned());
    }

    fn require_postgres(&self) {
        assert_eq!(self.engine, Engine::Postgres, "a file has no server");
    }

    async fn query(&self, sql: &str) -> QueryResult {
        let connection = self.connect().await;
        let statement = Statement::from_string(connection.get_database_backend(), sql);
        let row = connection.query_one_raw(statement).await;
        connection.close().await.expect("the connection closes");
        row.unwrap_or_else(|error| panic!("{sql}: {error}")).unwrap_or_else(|| panic!("{sql}: no row"))
    }

    /// One connection of its own, for what a test asks or writes past the service.
    pub async fn connect(&self) -> DatabaseConnection {
        let url = match self.engine {
            Engine::Sqlite => format!("{}?mode=rwc", self.url),
            Engine::Postgres => self.url.clone(),
        };
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false);
        Database::connect(options).await.expect("the test's database accepts a connection")
    }
}

/// A database in which changes wait.
pub struct Blocked(DatabaseConnection);

impl Blocked {
    /// Lets them go on.
    pub async fn release(self) {
        self.0.execute_unprepared("ROLLBACK").await.expect("the transaction ends");
        self.0.close().await.expect("the connection closes");
    }
}

fn new_folder() -> TempDir {
    tempfile::Builder::new().prefix("keystead-test-").tempdir().expect("a folder")
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .expect("the database's folder can be listed")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect()
}

/// A folder that may not be there, and all that are in it.
fn folders_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let inner = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    let inner: Vec<PathBuf> = inner.flat_map(|path| folders_below(&path)).collect();
    [vec![folder.to_path_buf()], inner].concat()
}

/// Makes two tests, `NAME::sqlite` and `NAME::postgres`, of an async function that takes a
/// `TestDatabase`. Where only the name is given, the function has the same:
///
/// ```ignore
/// store_test!(a_key_is_found_by_its_digest);
/// async fn a_key_is_found_by_its_digest(database: TestDatabase) { ... }
/// ```
macro_rules! store_test {
    ($name:ident) => {
        $crate::harness::store_test!($name, $name);
    };
    ($name:ident, $body:ident) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                let engine = $crate::harness::Engine::Sqlite;
                super::$body($crate::harness::TestDatabase::new(engine).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let engine = $crate::harness::Engine::Postgres;
                super::$body($crate::harness::TestDatabase::new(engine).await).await;
            }
        }
    };
}
pub(crate) use store_test;
