//! A database of a benchmark's own, on either engine: SQLite in a folder of its own on a real disk, or one in a
//! PostgreSQL that this process started. SQL run here goes past the service, over a connection of its own.

use std::path::{Path, PathBuf};

use sea_orm::DatabaseConnection;
use tempfile::TempDir;

use super::{Failure, plan::Plan, postgres::Postgres};

/// The databases that Keystead runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    pub const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    /// The engine's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// A database, gone with its folder or its server when this is dropped.
pub struct Database {
    pub url: String,
    pub plan: Plan,
    /// The server, on PostgreSQL.
    postgres: Option<Postgres>,
    folder: TempDir,
}

impl Database {
    /// An empty database.
    pub fn new(engine: Engine, plan: Plan) -> Result<Self, Failure> {
        let postgres = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(Postgres::start(plan)?),
        };
        Self::on(postgres, plan)
    }

    /// An empty database on a PostgreSQL that counts statements, where it can.
    pub fn counting(plan: Plan) -> Result<Self, Failure> {
        Self::on(Some(Postgres::start_counting(plan)?), plan)
    }

    fn on(postgres: Option<Postgres>, plan: Plan) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("keystead-bench-").tempdir()?;
        let url = match &postgres {
            None => format!("sqlite://{}", folder.path().join("keystead.db").display()),
            Some(postgres) => postgres.url(),
        };
        Ok(Self { url, plan, postgres, folder })
    }

    /// The PostgreSQL server that the database is on.
    pub fn postgres(&self) -> Result<&Postgres, Failure> {
        self.postgres.as_ref().ok_or_else(|| "this database is on no PostgreSQL".into())
    }

    /// The SQLite file; `None` on PostgreSQL.
    pub fn file(&self) -> Option<PathBuf> {
        self.postgres.is_none().then(|| self.folder.path().join("keystead.db"))
    }

    /// A folder that lives as long as the database: the server's working directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One connection.
    pub async fn connect(&self) -> Result<DatabaseConnection, Failure> {
        let mut options = sea_orm::ConnectOptions::new(self.url.clone());
        options.max_connections(1).sqlx_logging(false);
        Ok(sea_orm::Database::connect(options).await?)
    }
}
