//! Where an import happens: a PostgreSQL with Keystead's database, a server that follows its change feed, and a second
//! database that keys come from. What the source holds is made by SQL: a client would take longer than the import.
//! Must hold nothing of another round: a site is opened for one and gone with it.

use std::net::{SocketAddr, TcpListener};

use sea_orm::{ConnectOptions, ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};

use crate::support::{
    Failure,
    database::{Database, Engine},
    plan::Plan,
    process,
    server::Server,
};

/// The slug of the organization that gets the keys, as `keys::organization` names it.
const ORGANIZATION: &str = "acme";
/// How many keys of an imported table are verified.
const SAMPLES: u64 = 10;

/// How a table of the source holds its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Plaintext,
    Sha256Hex,
}

impl Scheme {
    pub const ALL: [Self; 2] = [Self::Plaintext, Self::Sha256Hex];

    /// The scheme's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Sha256Hex => "sha256-hex",
        }
    }

    /// What a mapping calls the column.
    const fn field(self) -> &'static str {
        match self {
            Self::Plaintext => "secret",
            Self::Sha256Hex => "sha256-hex",
        }
    }
}

/// A table of the source: so many rows, each with a key of its own.
#[derive(Clone, Copy)]
pub struct Table {
    pub name: &'static str,
    pub scheme: Scheme,
    pub rows: u64,
}

impl Table {
    /// The mapping that brings it in. The table's name is the source's too.
    pub fn mapping(&self) -> String {
        let (name, field) = (self.name, self.scheme.field());
        format!(
            "source = \"{name}\"\n\
             organization = \"{ORGANIZATION}\"\n\
             \n\
             [[keys]]\n\
             table = \"{name}\"\n\
             id = \"id\"\n\
             \n\
             [keys.columns]\n\
             {field} = \"material\"\n\
             name = \"title\"\n\
             owner-id = \"owner\"\n\
             create-time = \"created\"\n\
             \n\
             [keys.values]\n\
             environment = \"live\"\n"
        )
    }

    /// SQL of the secret of row `number`: 35 characters, as many services issue them.
    fn secret(&self) -> String {
        format!("'sk_' || md5('{}/' || number)", self.name)
    }

    /// SQL of what the row holds of it.
    fn material(&self) -> String {
        let secret = self.secret();
        match self.scheme {
            Scheme::Plaintext => secret,
            Scheme::Sha256Hex => format!("encode(sha256(convert_to({secret}, 'UTF8')), 'hex')"),
        }
    }
}

/// What Keystead's database holds of imports.
pub struct Counts {
    pub keys: i64,
    /// Audit events of batches.
    pub events: i64,
}

/// A Keystead that serves, and a source beside it.
pub struct Site {
    // In this order: the server ends before its database.
    pub server: Server,
    /// Where the server shows its metrics.
    pub metrics: SocketAddr,
    pub source_url: String,
    keystead: DatabaseConnection,
    source: DatabaseConnection,
    pub database: Database,
}

impl Site {
    /// Opens one, with no organization but Keystead's own and no table in the source.
    pub async fn open(plan: Plan) -> Result<Self, Failure> {
        let database = Database::new(Engine::Postgres, plan)?;
        // Free a moment ago.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let server = Server::start(&database, &["--metrics-listen", &metrics.to_string()]).await?;
        let keystead = database.connect().await?;
        keystead.execute_unprepared("CREATE DATABASE keystead_source").await?;
        let (postgres, _) = database.url.rsplit_once('/').ok_or("a URL without a database")?;
        let source_url = format!("{postgres}/keystead_source");
        let mut options = ConnectOptions::new(source_url.clone());
        options.max_connections(1).sqlx_logging(false);
        let source = sea_orm::Database::connect(options).await?;
        Ok(Self { server, metrics, source_url, keystead, source, database })
    }

    /// Makes a table of the source.
    pub async fn fill(&self, table: &Table) -> Result<(), Failure> {
        let (name, material, rows) = (table.name, table.material(), table.rows);
        let create = format!(
            "CREATE TABLE {name} (id bigint PRIMARY KEY, material varchar(255), title text NOT NULL, \
             owner text NOT NULL, created timestamptz NOT NULL)"
        );
        let insert = format!(
            "INSERT INTO {name} SELECT number, {material}, 'Key ' || number, 'owner-' || number % 1000, \
             timestamptz '2025-01-01 00:00:00+00' + number * interval '1 second' \
             FROM generate_series(1, {rows}) AS number"
        );
        for sql in [create, insert, format!("VACUUM ANALYZE {name}")] {
            self.source.execute_unprepared(&sql).await?;
        }
        Ok(())
    }

    /// The secrets of some keys of a table, over its whole length.
    pub async fn secrets(&self, table: &Table) -> Result<Vec<String>, Failure> {
        let (secret, rows, step) = (table.secret(), table.rows, (table.rows / SAMPLES).max(1));
        let sql = format!("SELECT {secret} FROM generate_series(1, {rows}, {step}) AS number");
        let rows = self.source.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
        Ok(rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?)
    }

    /// Runs one statement in Keystead's database, past the service, and gives how many rows it wrote.
    pub async fn execute(&self, sql: &str) -> Result<u64, Failure> {
        Ok(self.keystead.execute_unprepared(sql).await?.rows_affected())
    }

    /// Counts what imports leave behind.
    pub async fn counts(&self) -> Result<Counts, Failure> {
        let sql = "SELECT (SELECT count(*) FROM api_keys), \
                   (SELECT count(*) FROM audit_events WHERE action = 'key.import')";
        let row = self.keystead.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
        let row = row.ok_or("a count without a row")?;
        Ok(Counts { keys: row.try_get_by_index(0)?, events: row.try_get_by_index(1)? })
    }

    /// Has the database and the server do now what they would else do beside the next measurement.
    pub async fn settle(&self) -> Result<(), Failure> {
        for sql in ["VACUUM ANALYZE api_keys", "CHECKPOINT"] {
            self.execute(sql).await?;
        }
        process::settled(self.server.process()).await
    }
}
