//! Running migrations, one process at a time, and telling what they would do.
//! Must not be called by a server that found the schema newer than itself: old code survives a new schema.

use keystead_migrations::{Migration, Migrator, MigratorTrait as _};
use std::time::Duration;

use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};

use super::{
    StoreError,
    connect::{ConnectOptions, lock_migrations, unlock_migrations},
    engine::limit_lock_waits,
    error::waited_for_lock,
};

/// How long a migration waits for a table at a time, how long it steps back then, and how often: a minute in all.
const LOCK_WAIT: Duration = Duration::from_millis(500);
const STEP_BACK: Duration = Duration::from_millis(500);
const TRIES_MAX: u32 = 60;

/// One migration and whether the database has it.
#[derive(Debug, Clone)]
pub struct MigrationStatus {
    pub name: String,
    pub applied: bool,
    /// What going down would destroy.
    pub loses: &'static str,
}

/// Applies what is pending; gives the names, oldest first.
///
/// # Errors
/// The database's own; what had been applied before stays on PostgreSQL, and on SQLite all of it is taken back.
pub async fn up(options: &ConnectOptions) -> Result<Vec<String>, StoreError> {
    let connection = locked(options).await?;
    let result = async {
        let pending = pending_names(&connection).await?;
        if !pending.is_empty() {
            up_between_others(&connection).await?;
        }
        Ok(pending)
    }
    .await;
    unlocked(connection, result).await
}

/// Migrates, and steps back where a table is in use: whoever waits for a table's lock keeps all others waiting behind
/// it, the verifications of running replicas among them.
async fn up_between_others(connection: &DatabaseConnection) -> Result<(), DbErr> {
    limit_lock_waits(connection, LOCK_WAIT).await?;
    let mut tries = 0;
    loop {
        match Migrator::up(connection, None).await {
            Err(error) if waited_for_lock(&error) && tries < TRIES_MAX => {
                tries += 1;
                tokio::time::sleep(STEP_BACK).await;
            }
            ended => return ended,
        }
    }
}

/// Takes the newest `steps` migrations back; gives the names, newest first.
///
/// # Errors
/// The database's own.
pub async fn down(options: &ConnectOptions, steps: u32) -> Result<Vec<String>, StoreError> {
    let connection = locked(options).await?;
    let result = async {
        let rows = Migrator::get_migration_models(&connection).await?;
        let ours = names(Migrator::migrations().iter().map(|migration| migration.name()));
        if let Some(newer) = rows.iter().find(|row| !ours.contains(&row.version)) {
            let words = format!("the schema is newer than this version, which does not know {}", newer.version);
            return Err(StoreError::Unforeseen(DbErr::Custom(words)));
        }
        let applied = Migrator::get_applied_migrations(&connection).await?;
        let mut names = names(applied.iter().map(Migration::name));
        names.reverse();
        names.truncate(usize::try_from(steps).unwrap_or(usize::MAX));
        Migrator::down(&connection, Some(steps)).await?;
        Ok(names)
    }
    .await;
    unlocked(connection, result).await
}

/// All migrations, oldest first.
///
/// # Errors
/// The database's own.
pub async fn status(options: &ConnectOptions) -> Result<Vec<MigrationStatus>, StoreError> {
    let connection = locked(options).await?;
    let pending = pending_names(&connection).await;
    let pending = unlocked(connection, pending).await?;
    Ok(names(Migrator::migrations().iter().map(|migration| migration.name()))
        .into_iter()
        .map(|name| MigrationStatus {
            applied: !pending.contains(&name),
            loses: keystead_migrations::losses(&name),
            name,
        })
        .collect())
}

/// What this binary has and the database has not. Migrations that only the database knows, from a newer binary, are
/// no fault: old code survives a new schema.
async fn pending_names(connection: &DatabaseConnection) -> Result<Vec<String>, StoreError> {
    Migrator::install(connection).await?;
    let applied = Migrator::get_migration_models(connection).await?;
    let ours = names(Migrator::migrations().iter().map(|migration| migration.name()));
    Ok(ours.into_iter().filter(|name| !applied.iter().any(|row| row.version == *name)).collect())
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.map(str::to_owned).collect()
}

async fn locked(options: &ConnectOptions) -> Result<DatabaseConnection, StoreError> {
    lock_migrations(options).await.map_err(|source| StoreError::Unavailable {
        may_have_happened: false,
        source: DbErr::Conn(RuntimeErr::SqlxError(source.into())),
    })
}

async fn unlocked<T>(connection: DatabaseConnection, result: Result<T, StoreError>) -> Result<T, StoreError> {
    let ended = unlock_migrations(connection, result.is_ok()).await;
    let value = result?;
    ended?;
    Ok(value)
}
