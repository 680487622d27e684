//! Where the two engines differ in SQL: locks, clocks, standbys, and triggers that run for a statement.
//! Must not be joined by differences elsewhere, but for those that `store/mod.rs` names.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, Statement,
    sea_query::{Expr, Func, SimpleExpr},
};

use super::StoreError;
use crate::domain::ids::OrganizationId;

/// Of so many organizations at once a transaction lines up for each.
const LINES_MAX: usize = 256;

/// Lines up for an organization, first come first served, before its row is locked for this transaction alone or
/// shared. PostgreSQL lets those who share a row's lock pass whoever waits to have it alone: without this line, keys
/// that are created without a pause would keep a revocation of all keys waiting for ever.
///
/// # Errors
/// The database's own.
pub(super) async fn line_up(db: &impl ConnectionTrait, id: OrganizationId, alone: bool) -> Result<(), DbErr> {
    if db.get_database_backend() == DbBackend::Postgres {
        let sql = if alone { "SELECT pg_advisory_xact_lock($1)" } else { "SELECT pg_advisory_xact_lock_shared($1)" };
        let place = [id.spread().cast_signed().into()];
        db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, place)).await?;
    }
    Ok(())
}

/// The same for many organizations, in this order, before any of their rows is locked. Of very many only the first line
/// up: these locks stand in shared memory, 6,400 in all unless the operator says otherwise. What keeps the others from
/// being changed is the locks on their rows, which cost none.
///
/// # Errors
/// The database's own.
pub(super) async fn line_up_all(db: &impl ConnectionTrait, ids: &[OrganizationId], alone: bool) -> Result<(), DbErr> {
    if db.get_database_backend() == DbBackend::Postgres {
        let sql = if alone {
            "SELECT pg_advisory_xact_lock(place) FROM unnest(string_to_array($1, ',')::bigint[]) AS places (place)"
        } else {
            "SELECT pg_advisory_xact_lock_shared(place) \
             FROM unnest(string_to_array($1, ',')::bigint[]) AS places (place)"
        };
        let places = ids.iter().take(LINES_MAX).map(|id| id.spread().cast_signed().to_string());
        let places = [places.collect::<Vec<String>>().join(",").into()];
        db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, places)).await?;
    }
    Ok(())
}

/// Whether a statement may share the organization's row at once: not where somebody has lined up to have it alone.
pub(super) fn joins_line(id: OrganizationId) -> SimpleExpr {
    Func::cust("pg_try_advisory_xact_lock_shared").arg(id.spread().cast_signed()).into()
}

/// Waits until this transaction alone may change the counters of an organization's limits, and gives the time then, in
/// microseconds since 1970. Where there is one process, on SQLite, its one writer sees to that.
///
/// # Errors
/// The database's own.
pub(super) async fn lock_counters(db: &impl ConnectionTrait, id: OrganizationId) -> Result<i64, DbErr> {
    let backend = db.get_database_backend();
    let (sql, place) = if backend == DbBackend::Postgres {
        // Another number than that of the line for the organization itself.
        let sql = format!(
            "WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock($1)) SELECT {POSTGRES_TIME} AS now FROM locked"
        );
        (sql, vec![id.spread().rotate_left(32).cast_signed().into()])
    } else {
        (format!("SELECT {SQLITE_TIME} AS now"), Vec::new())
    };
    let row = db.query_one_raw(Statement::from_sql_and_values(backend, sql, place)).await?;
    row.map_or_else(|| Err(DbErr::RecordNotFound("the time".to_owned())), |row| row.try_get("", "now"))
}

const POSTGRES_TIME: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
const SQLITE_TIME: &str = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)";

/// Until this transaction ends, look for many values by the indexes over them. For a few thousand of them PostgreSQL
/// would read the whole table, as long as that has not very many rows: it believes in disks that seek.
///
/// # Errors
/// The database's own.
pub(super) async fn prefer_indexes(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    if db.get_database_backend() == DbBackend::Postgres {
        db.execute_unprepared("SET LOCAL enable_seqscan = off").await?;
    }
    Ok(())
}

/// Bounds how long the statements of this connection wait for what somebody else holds. SQLite has one such bound from
/// the beginning.
///
/// # Errors
/// The database's own.
pub(super) async fn limit_lock_waits(db: &impl ConnectionTrait, wait: Duration) -> Result<(), DbErr> {
    if db.get_database_backend() == DbBackend::Postgres {
        db.execute_unprepared(&format!("SET lock_timeout = {}", wait.as_millis())).await?;
    }
    Ok(())
}

/// The database's clock, in microseconds since 1970.
pub(super) fn server_time(db: &impl ConnectionTrait) -> SimpleExpr {
    Expr::cust(match db.get_database_backend() {
        DbBackend::Postgres => POSTGRES_TIME,
        _ => SQLITE_TIME,
    })
}

/// Whether what answers is a standby of PostgreSQL, which follows its primary at a distance.
pub(super) fn is_standby(db: &impl ConnectionTrait) -> SimpleExpr {
    match db.get_database_backend() {
        DbBackend::Postgres => Func::cust("pg_is_in_recovery").into(),
        _ => Expr::val(false),
    }
}

/// Says that this transaction changes many keys in each statement. On PostgreSQL the feed's triggers then run once for
/// a statement and not once for a row, where each would walk over all versions of the counter before it.
///
/// # Errors
/// The database's own.
pub async fn announce_bulk(transaction: &impl ConnectionTrait) -> Result<(), StoreError> {
    if transaction.get_database_backend() == DbBackend::Postgres {
        transaction.execute_unprepared("SELECT set_config('keystead.bulk', 'on', true)").await?;
    }
    Ok(())
}
