//! Queries that write the refills of credits that have fallen due, so that rows show them without a spend.
//! Invariant: a refill is the very expression with which a spend counts it in (`credits.rs`), guarded in the same
//! way: whichever statement comes first makes it, and the other finds nothing due.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, Select,
};

use super::{
    StoreError,
    credits::{due, effective, refill_time},
    entity::api_key as row,
    entity::api_key::Column,
};
use crate::domain::time::Timestamp;

/// Ids of keys whose refill is due, the longest due first, at most `count_max`.
pub async fn list_due(db: &impl ConnectionTrait, now: Timestamp, count_max: u64) -> Result<Vec<String>, StoreError> {
    let select =
        to_refill(now).select_only().column(Column::Id).order_by_asc(Column::CreditsRefillTimeUs).limit(count_max);
    let found = db.query_all(select.as_query()).await?;
    found.iter().map(|row| Ok(row.try_get("", "id")?)).collect()
}

/// Refills those of these keys that are still due at `now`, in a transaction that locks them by ascending id; gives
/// how many. However many refills a key has missed, what remains is raised to the amount once.
pub async fn update_due(db: &impl ConnectionTrait, ids: &[String], now: Timestamp) -> Result<u64, StoreError> {
    let lock = to_refill(now)
        .select_only()
        .column(Column::Id)
        .filter(Column::Id.is_in(ids))
        .order_by_asc(Column::Id)
        .lock_exclusive();
    db.query_all(lock.as_query()).await?;
    let result = row::Entity::update_many()
        .col_expr(Column::CreditsRemaining, effective(now))
        .col_expr(Column::CreditsRefillTimeUs, refill_time(now))
        .filter(Column::Id.is_in(ids))
        .filter(Column::SuccessorId.is_null())
        .filter(due(now))
        .exec(db)
        .await?;
    Ok(result.rows_affected)
}

/// A rotated key's credits stand in its successor's row.
fn to_refill(now: Timestamp) -> Select<row::Entity> {
    row::Entity::find().filter(Column::SuccessorId.is_null()).filter(due(now))
}
