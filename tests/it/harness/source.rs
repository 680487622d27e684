//! A database that keys come from: one per test, on SQLite, PostgreSQL or MariaDB, filled by SQL that the test writes.
//! It can be read by an account that may only select, and told apart from what it was: that is how a test shows that a
//! source is never written. Nothing here knows Keystead's own tables.

use std::fs;

use sha2::{Digest as _, Sha256};
use sqlx::Row as _;

use super::mariadb::MariaDatabase;
use super::postgres::postgres;
use super::{Engine, TestDatabase, hex};

/// How many rows one statement inserts.
const ROWS_PER_STATEMENT: usize = 500;

/// The engines of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceEngine {
    Sqlite,
    Postgres,
    MariaDb,
}

impl From<Engine> for SourceEngine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => Self::Sqlite,
            Engine::Postgres => Self::Postgres,
        }
    }
}

/// One test's own source.
pub struct SourceDatabase(Inner);

enum Inner {
    Common(TestDatabase),
    Maria(MariaDatabase),
}

/// One field of a row, as text in any engine's own spelling; `None` is NULL.
pub type Cell = Option<String>;

/// A field that is not NULL.
#[expect(clippy::unnecessary_wraps, reason = "it stands beside fields that are NULL")]
pub fn cell(value: impl Into<String>) -> Cell {
    Some(value.into())
}

impl SourceDatabase {
    /// Makes an empty one.
    pub async fn new(engine: impl Into<SourceEngine>) -> Self {
        Self(match engine.into() {
            SourceEngine::Sqlite => Inner::Common(TestDatabase::new(Engine::Sqlite).await),
            SourceEngine::Postgres => Inner::Common(TestDatabase::new(Engine::Postgres).await),
            SourceEngine::MariaDb => Inner::Maria(MariaDatabase::new().await),
        })
    }

    pub fn engine(&self) -> SourceEngine {
        match &self.0 {
            Inner::Common(database) => database.engine.into(),
            Inner::Maria(_) => SourceEngine::MariaDb,
        }
    }

    /// What `--source-url` takes, of the account that owns it.
    pub fn url(&self) -> &str {
        match &self.0 {
            Inner::Common(database) => &database.url,
            Inner::Maria(database) => &database.url,
        }
    }

    /// The same of an account that may only select from the tables that there are now. SQLite has no accounts.
    pub async fn reader_url(&self) -> String {
        match &self.0 {
            Inner::Common(database) if database.engine == Engine::Sqlite => database.url.clone(),
            Inner::Common(database) => {
                let (rest, name) = database.url.rsplit_once('/').expect("a URL ends with the database's name");
                let (_, password) = rest.split_once(&format!("//{name}:")).expect("the owner has the database's name");
                let (password, _) = password.split_once('@').expect("a password");
                // Asked for again, it is there already.
                let create = format!(
                    "DO $$ BEGIN CREATE ROLE {name}_reader LOGIN PASSWORD '{password}'; \
                     EXCEPTION WHEN duplicate_object THEN NULL; END $$"
                );
                postgres().as_superuser(&create).await;
                self.run(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}_reader")).await;
                database.url.replacen(&format!("//{name}:"), &format!("//{name}_reader:"), 1)
            }
            Inner::Maria(database) => database.reader_url.clone(),
        }
    }

    /// Runs statements as the owner.
    pub async fn run(&self, sql: &str) {
        match &self.0 {
            Inner::Common(database) => {
                database.raw_sql(sql).await;
            }
            Inner::Maria(database) => database.run(sql).await,
        }
    }

    /// The one number that a query answers.
    pub async fn number(&self, sql: &str) -> i64 {
        match &self.0 {
            Inner::Common(database) => database.query_i64(sql).await,
            Inner::Maria(database) => database.row(sql).await.try_get_unchecked(0).expect("a number"),
        }
    }

    /// The one text that a query answers.
    pub async fn text(&self, sql: &str) -> String {
        match &self.0 {
            Inner::Common(database) => database.query_string(sql).await,
            Inner::Maria(database) => database.row(sql).await.try_get_unchecked(0).expect("a text"),
        }
    }

    /// Inserts rows, many at a time.
    pub async fn insert(&self, table: &str, columns: &str, rows: &[Vec<Cell>]) {
        for rows in rows.chunks(ROWS_PER_STATEMENT) {
            let rows: Vec<String> = rows.iter().map(|row| format!("({})", literals(row))).collect();
            self.run(&format!("INSERT INTO {table} ({columns}) VALUES {}", rows.join(", "))).await;
        }
    }

    /// PostgreSQL's table with every change of the structure from now on: `command`, `statement_timeout`,
    /// `lock_timeout` and `transaction`.
    pub async fn log_structure(&self) {
        self.run(
            "CREATE TABLE structure_log (command text, statement_timeout text, lock_timeout text, transaction bigint);
             CREATE FUNCTION log_structure() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO structure_log VALUES (tg_tag, current_setting('statement_timeout'),
                    current_setting('lock_timeout'), txid_current());
             END $$",
        )
        .await;
        // Only the administrator may make one.
        self.as_administrator(
            "CREATE EVENT TRIGGER log_structure ON ddl_command_start WHEN TAG IN ('ALTER TABLE', 'DROP INDEX')
             EXECUTE FUNCTION log_structure()",
        )
        .await;
    }

    async fn as_administrator(&self, sql: &str) {
        let Inner::Common(database) = &self.0 else { panic!("for PostgreSQL alone") };
        let name = database.url.rsplit('/').next().expect("a URL ends with the database's name");
        let server = postgres().admin_url();
        let (server, _) = server.rsplit_once('/').expect("a URL ends with the database's name");
        let mut options = sea_orm::ConnectOptions::new(format!("{server}/{name}"));
        options.max_connections(1).sqlx_logging(false);
        let connection = sea_orm::Database::connect(options).await.expect("the administrator connects");
        let done = sea_orm::ConnectionTrait::execute_unprepared(&connection, sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await.expect("the administrator's connection closes");
    }

    /// Keeps everybody else out of a table, on SQLite out of all of them, for as long as the connection lives.
    pub async fn lock(&self, table: &str) -> sea_orm::DatabaseConnection {
        let Inner::Common(database) = &self.0 else { panic!("for SQLite and PostgreSQL alone") };
        let connection = database.connect().await;
        let sql = match database.engine {
            Engine::Sqlite => "BEGIN EXCLUSIVE".to_owned(),
            Engine::Postgres => format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
        };
        let done = sea_orm::ConnectionTrait::execute_unprepared(&connection, &sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection
    }

    /// A word that is another when anything in it was written: every row, column and index.
    pub async fn state(&self) -> String {
        match (&self.0, self.engine()) {
            (Inner::Common(database), SourceEngine::Sqlite) => {
                let path = database.url.strip_prefix("sqlite://").expect("a file");
                let log = fs::metadata(format!("{path}-wal")).map_or(0, |log| log.len());
                assert_eq!(log, 0, "nobody wrote a log beside the file");
                hex(&Sha256::digest(fs::read(path).expect("the file")))
            }
            (Inner::Common(_), _) => self.postgres_state().await,
            (Inner::Maria(database), _) => {
                let list = "SELECT coalesce(group_concat(table_name ORDER BY table_name), '') \
                            FROM information_schema.tables WHERE table_schema = database()";
                let mut state = String::new();
                for table in self.text(list).await.split(',') {
                    let shape: String =
                        database.row(&format!("SHOW CREATE TABLE `{table}`")).await.try_get_unchecked(1).expect("SQL");
                    state.push_str(&[shape.as_str(), database.checksum(table).await.as_str()].join("\n"));
                }
                state
            }
        }
    }

    async fn postgres_state(&self) -> String {
        let columns = "SELECT coalesce(string_agg(concat_ws(' ', table_name, column_name, data_type, is_nullable), ';' \
                       ORDER BY table_name, ordinal_position), '') FROM information_schema.columns \
                       WHERE table_schema = 'public'";
        let indexes = "SELECT coalesce(string_agg(indexdef, ';' ORDER BY indexdef), '') FROM pg_indexes \
                       WHERE schemaname = 'public'";
        let mut state = format!("{}\n{}\n", self.text(columns).await, self.text(indexes).await);
        let list = "SELECT coalesce(string_agg(tablename, ',' ORDER BY tablename), '') FROM pg_tables \
                    WHERE schemaname = 'public'";
        for table in self.text(list).await.split(',') {
            let rows = format!(
                "SELECT '{table} ' || count(*) || ' ' || \
                 md5(coalesce(string_agg(md5(row::text), '' ORDER BY row::text), '')) FROM {table} AS row"
            );
            state.push_str(&self.text(&rows).await);
        }
        state
    }
}

fn literals(row: &[Cell]) -> String {
    let literals: Vec<String> = row
        .iter()
        .map(|cell| cell.as_ref().map_or_else(|| "NULL".to_owned(), |text| format!("'{}'", text.replace('\'', "''"))))
        .collect();
    literals.join(", ")
}
