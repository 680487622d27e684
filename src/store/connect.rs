//! Opening a database: how the two engines differ in what a connection is. How they differ in SQL is in `engine.rs`.
//! SQLite: WAL, `synchronous=FULL`, foreign keys, one writer connection and a pool of readers, a library without the
//! WAL corruption bug fixed in 3.51.3, and a lock file that keeps a second server process out.
//! PostgreSQL: lazy pools, one for verification, one for the control plane, one for usage.
//! Invariant: a connection goes back to its pool without an open transaction, whatever was cancelled before.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, SqlxPostgresConnector, SqlxSqliteConnector,
    sqlx::{
        self, Connection as _, Executor as _,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

use super::{
    Store,
    group_commit::{Begins, Group},
};

/// The first SQLite library in which a WAL cannot be corrupted by a checkpoint race (release notes of 3.51.3).
const SQLITE_VERSION_MIN: [u32; 3] = [3, 51, 3];
/// How long a writer waits for the lock that a `sqlite3` shell may hold.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers of a SQLite file; each is a thread.
const SQLITE_READERS: u32 = 4;
/// How long other work waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest statement of anything else.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a statement waits for a row that somebody else holds, and a command for a file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause inside a transaction. A process that stands still holds its locks that long, the change counter's
/// among them: shorter than others wait for a lock, so that they get through.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection of PostgreSQL that has not been used for so long is asked whether it still is one.
const POSTGRES_REST: Duration = Duration::from_millis(250);
/// After so long a connection is made anew, so that the load spreads over what a pooler or a proxy has by then.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(30);
/// The longest statement of the change feed.
const FEED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection that is there may take to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a command asks for a file that is in use.
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// The advisory lock under which migrations run; any number will do that nobody else uses.
const MIGRATION_LOCK: i64 = 0x6b65_7973_7465_6164;

/// Which database to open, and how many connections each kind of work gets on PostgreSQL.
#[derive(Clone)]
pub struct ConnectOptions {
    pub url: String,
    pub verify_connections_max: u32,
    pub control_connections_max: u32,
    pub usage_connections_max: u32,
    /// The service's own time for a verification: waiting for a connection and asking the database fit into it.
    pub verify_timeout: Duration,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the database url cannot be read")]
    Url(#[source] sqlx::Error),
    #[error("another keystead process is using {}: stop it first, or use PostgreSQL for several", .0.display())]
    InUse(PathBuf),
    #[error("the lock file {} cannot be opened", .path.display())]
    LockFile { path: PathBuf, source: std::io::Error },
    #[error("SQLite {found} is too old: 3.51.3 or later is needed, older ones can corrupt the database")]
    SqliteTooOld { found: String },
    #[error("the database cannot be opened")]
    Open(#[source] sqlx::Error),
}

/// Keeps a second server process out of a SQLite file for as long as it lives. Nothing to hold on PostgreSQL.
#[derive(Debug)]
pub struct FileLock {
    _file: Option<File>,
}

/// Whether the url names a SQLite file, where migrations always run and one process serves.
#[must_use]
pub fn is_sqlite(url: &str) -> bool {
    url.starts_with("sqlite:")
}

/// Where usage waits for the database unless the operator says where: beside the file of SQLite, or in the working
/// directory.
///
/// # Errors
/// `Url`, where it cannot be read.
pub fn default_spool(url: &str) -> Result<PathBuf, ConnectError> {
    if !is_sqlite(url) {
        return Ok(PathBuf::from("keystead-spool"));
    }
    let mut name = sqlite_options(url)?.get_filename().as_os_str().to_owned();
    name.push("-spool");
    Ok(PathBuf::from(name))
}

/// Keeps servers and other commands out of a SQLite file; commands that only take a moment are waited for.
///
/// # Errors
/// `InUse` where another process goes on using the file.
pub async fn lock_in_turn(options: &ConnectOptions) -> Result<FileLock, ConnectError> {
    let begun = Instant::now();
    loop {
        match lock(options) {
            Err(ConnectError::InUse(_)) if begun.elapsed() < LOCK_TIMEOUT => tokio::time::sleep(LOCK_RETRY).await,
            result => return result,
        }
    }
}

fn lock(options: &ConnectOptions) -> Result<FileLock, ConnectError> {
    if is_sqlite(&options.url) {
        lock_file(sqlite_options(&options.url)?.get_filename())
    } else {
        Ok(FileLock { _file: None })
    }
}

/// Opens the database. SQLite's file is created where there is none; PostgreSQL is connected to when first used.
///
/// # Errors
/// See [`ConnectError`]; PostgreSQL being away is not among them.
pub async fn open(options: &ConnectOptions) -> Result<(Store, FileLock), ConnectError> {
    if is_sqlite(&options.url) {
        let lock = lock(options)?;
        Ok((open_sqlite(sqlite_options(&options.url)?, options.verify_timeout).await?, lock))
    } else {
        Ok((open_postgres(options)?, lock(options)?))
    }
}

/// Opens the database beside whoever serves it, as a command does that writes in short transactions: on SQLite nobody is
/// kept out, and writers wait for each other.
///
/// # Errors
/// See [`ConnectError`]; PostgreSQL being away is not among them.
pub async fn open_beside(options: &ConnectOptions) -> Result<Store, ConnectError> {
    if is_sqlite(&options.url) {
        open_sqlite(sqlite_options(&options.url)?, options.verify_timeout).await
    } else {
        open_postgres(options)
    }
}

fn sqlite_options(url: &str) -> Result<SqliteConnectOptions, ConnectError> {
    let options = SqliteConnectOptions::from_str(url).map_err(ConnectError::Url)?;
    Ok(options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(SQLITE_BUSY_TIMEOUT))
}

fn lock_file(database: &Path) -> Result<FileLock, ConnectError> {
    // By its real name: a second process may come through a symbolic link.
    let real = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut name = real.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| ConnectError::LockFile { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(FileLock { _file: Some(file) }),
        Err(TryLockError::WouldBlock) => Err(ConnectError::InUse(database.to_owned())),
        Err(TryLockError::Error(source)) => Err(ConnectError::LockFile { path, source }),
    }
}

async fn open_sqlite(options: SqliteConnectOptions, verify_timeout: Duration) -> Result<Store, ConnectError> {
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_release(|connection, _| {
            Box::pin(async move {
                // Fails where nothing is open, which is the rule; what is open is rolled back.
                let _ = connection.execute("ROLLBACK").await;
                Ok(true)
            })
        })
        .connect_with(options.clone())
        .await
        .map_err(ConnectError::Open)?;
    let found: String =
        sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&writer).await.map_err(ConnectError::Open)?;
    if !is_new_enough(&found) {
        return Err(ConnectError::SqliteTooOld { found });
    }
    let options = options.pragma("query_only", "ON");
    let readers = |connections_max| {
        let pool = SqlitePoolOptions::new().max_connections(connections_max).acquire_timeout(verify_timeout * 3 / 4);
        SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.connect_lazy_with(options.clone()))
    };
    let writer = SqlxSqliteConnector::from_sqlx_sqlite_pool(writer);
    Ok(Store {
        verify: readers(SQLITE_READERS),
        control: readers(SQLITE_READERS),
        feed: Arc::new(RwLock::new(readers(1))),
        usage: writer.clone(),
        group: Some(Group::new(writer.clone())),
        begins: Begins::default(),
        write: writer,
        listen: None,
        away: Arc::default(),
        charge_timeout: verify_timeout / 4,
    })
}

fn is_new_enough(version: &str) -> bool {
    let parts: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    parts.as_slice() >= SQLITE_VERSION_MIN.as_slice()
}

fn open_postgres(options: &ConnectOptions) -> Result<Store, ConnectError> {
    let postgres = PgConnectOptions::from_str(&options.url).map_err(ConnectError::Url)?.application_name("keystead");
    let (wait, ask) = (options.verify_timeout * 3 / 4, options.verify_timeout);
    let begins = Begins::default();
    let pool = |connections_max, wait, ask| postgres_pool(&postgres, connections_max, wait, ask, begins.clone());
    let verify = pool(options.verify_connections_max, wait, ask);
    let control = pool(options.control_connections_max, ACQUIRE_TIMEOUT, STATEMENT_TIMEOUT);
    let usage = pool(options.usage_connections_max, ACQUIRE_TIMEOUT, STATEMENT_TIMEOUT);
    let feed = Arc::new(RwLock::new(feed_pool(&postgres, &begins)));
    Ok(Store {
        verify,
        write: control.clone(),
        control,
        usage,
        feed,
        group: None,
        begins,
        listen: Some(postgres),
        away: Arc::default(),
        charge_timeout: options.verify_timeout / 4,
    })
}

/// A pool of the change feed's one connection.
pub(super) fn feed_pool(options: &PgConnectOptions, begins: &Begins) -> DatabaseConnection {
    postgres_pool(options, 1, ACQUIRE_TIMEOUT, FEED_TIMEOUT, begins.clone())
}

/// A mutation runs to its end, so the end has to be bounded: by how long a statement may take, wait for a lock, or
/// leave its transaction idle.
fn postgres_pool(
    options: &PgConnectOptions,
    connections_max: u32,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    begins: Begins,
) -> DatabaseConnection {
    let milliseconds = |timeout: Duration| timeout.as_millis().to_string();
    let options = options.clone().options([
        ("statement_timeout", milliseconds(statement_timeout)),
        ("lock_timeout", milliseconds(LOCK_TIMEOUT)),
        ("idle_in_transaction_session_timeout", milliseconds(IDLE_TIMEOUT)),
    ]);
    // A pool of one keeps its connection: where the server has none to spare, another would not be had.
    let lifetime = (connections_max > 1).then_some(CONNECTION_LIFETIME);
    let pool = PgPoolOptions::new()
        .max_connections(connections_max)
        .max_lifetime(lifetime)
        .idle_timeout(lifetime)
        .acquire_timeout(acquire_timeout)
        // sqlx asks the server at every release; what has rested longer may have been cut meanwhile.
        .test_before_acquire(false)
        .before_acquire(|connection, met| {
            Box::pin(async move {
                if met.idle_for < POSTGRES_REST || answers(connection.ping()).await {
                    return Ok(true);
                }
                Err(sqlx::Error::WorkerCrashed)
            })
        })
        .after_connect(|connection, _| {
            Box::pin(async move {
                // A standby's state may be old: a revocation that it has not heard of would come back from it. A server
                // becomes one by a restart alone, which ends its connections.
                let standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(connection).await?;
                if standby { Err(sqlx::Error::Protocol("it is a standby".to_owned())) } else { Ok(()) }
            })
        })
        .after_release(move |connection, _| {
            let may_be_open = begins.may_be_open();
            Box::pin(async move {
                // A plain ROLLBACK would write a warning to the server's log each time that nothing is open.
                let clean = async {
                    if may_be_open {
                        connection.execute("BEGIN; ROLLBACK").await.map(|_| ())
                    } else {
                        connection.ping().await
                    }
                };
                // An error closes the connection without another word to a peer that may be gone.
                if answers(clean).await { Ok(true) } else { Err(sqlx::Error::WorkerCrashed) }
            })
        })
        .connect_lazy_with(options);
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

/// Whether a connection answers in a time in which any does that is still there. A peer that went without a word, its
/// machine off or a router gone, would else keep a place of the pool until TCP gives up, a quarter of an hour later.
async fn answers<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> bool {
    tokio::time::timeout(PING_TIMEOUT, asked).await.is_ok_and(|answer| answer.is_ok())
}

/// Takes the lock under which one process at a time migrates, and gives the connection that holds it: run the
/// migrations on it, then call [`unlock_migrations`]. On SQLite the lock is one write transaction around them all,
/// since sea-orm gives them none there: a process that ends half-way leaves nothing behind. On PostgreSQL each
/// migration has a transaction of its own.
///
/// # Errors
/// The database's own.
pub(super) async fn lock_migrations(options: &ConnectOptions) -> Result<DatabaseConnection, sqlx::Error> {
    if is_sqlite(&options.url) {
        let sqlite = SqliteConnectOptions::from_str(&options.url)?.create_if_missing(true).foreign_keys(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(sqlite.busy_timeout(SQLITE_BUSY_TIMEOUT))
            .await?;
        sqlx::query("BEGIN IMMEDIATE").execute(&pool).await?;
        return Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool));
    }
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect(&options.url)
        .await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK).execute(&pool).await?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Gives the migration lock back by closing the connection that holds it; on SQLite what was done under it is kept
/// or dropped whole.
///
/// # Errors
/// Where what should be kept was not.
pub(super) async fn unlock_migrations(connection: DatabaseConnection, keep: bool) -> Result<(), DbErr> {
    let ended = if connection.get_database_backend() == DbBackend::Sqlite {
        connection.execute_unprepared(if keep { "COMMIT" } else { "ROLLBACK" }).await.map(|_| ())
    } else {
        Ok(())
    };
    if let Err(error) = connection.close().await {
        tracing::warn!(error = %error, "closing the migration connection failed");
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_sqlite_libraries_are_told_from_new_ones() {
        for version in ["3.51.3", "3.52.0", "4.0.0"] {
            assert!(is_new_enough(version), "{version}");
        }
        for version in ["3.51.2", "3.46.1", ""] {
            assert!(!is_new_enough(version), "{version}");
        }
    }
}
