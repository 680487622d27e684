//! Queries that find the keys whose expiry has passed and was not told to the audit log yet.
//! Whether a key has expired is decided at each verification from the clock; nothing here changes that.
//! Invariant: `expire_told_us` is set, under the key's lock, in the transaction that writes its event, to the expiry
//! that was told: one that is moved on is told again when it comes, and none is told twice.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, Select,
    sea_query::{Expr, ExprTrait as _},
};

use super::{StoreError, entity::api_key as row, entity::api_key::Column};
use crate::domain::{ids::OrganizationId, key::StoredStatus, time::Timestamp};

/// A key whose expiry is to be told.
#[derive(Debug, Clone)]
pub struct Expiry {
    pub key_id: String,
    pub organization_id: OrganizationId,
    pub expire_time: Timestamp,
}

/// Ids of keys whose expiry has passed untold, the earliest first, at most `count_max`. Revoked ones are among them,
/// so that they leave the index; theirs is not told.
pub async fn list_untold(db: &impl ConnectionTrait, now: Timestamp, count_max: u64) -> Result<Vec<String>, StoreError> {
    let select = untold(now).select_only().column(Column::Id).order_by_asc(Column::ExpireTimeUs).limit(count_max);
    let found = db.query_all(select.as_query()).await?;
    found.iter().map(|row| Ok(row.try_get("", "id")?)).collect()
}

/// Marks the expiry of these keys as told, those of them for which that is still to do; gives the ones to tell, in
/// the same transaction.
pub async fn update_told(db: &impl ConnectionTrait, ids: &[String], now: Timestamp) -> Result<Vec<Expiry>, StoreError> {
    let select = untold(now)
        .select_only()
        .columns([Column::Id, Column::OrganizationId, Column::Status, Column::ExpireTimeUs])
        .filter(Column::Id.is_in(ids))
        .order_by_asc(Column::Id)
        .lock_exclusive();
    let mut expiries = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        let (key_id, organization): (String, String) =
            (found.try_get("", "id")?, found.try_get("", "organization_id")?);
        let status: String = found.try_get("", "status")?;
        let expire_time = Timestamp::from_micros(found.try_get("", "expire_time_us")?);
        match OrganizationId::parse(&organization) {
            Ok(_) if status == StoredStatus::Revoked.as_str() => {}
            Ok(organization_id) => expiries.push(Expiry { key_id, organization_id, expire_time }),
            Err(_) => tracing::error!(key_id, "an expiry was not told, since the row cannot be read"),
        }
    }
    row::Entity::update_many()
        .col_expr(Column::ExpireToldUs, Expr::col(Column::ExpireTimeUs))
        .filter(Column::Id.is_in(ids))
        .filter(is_untold(now))
        .exec(db)
        .await?;
    Ok(expiries)
}

fn untold(now: Timestamp) -> Select<row::Entity> {
    row::Entity::find().filter(is_untold(now))
}

fn is_untold(now: Timestamp) -> sea_orm::sea_query::SimpleExpr {
    // In the words of the index's own condition, or it would not be used.
    let untold = Expr::col(Column::ExpireToldUs).ne(Expr::col(Column::ExpireTimeUs));
    Column::ExpireTimeUs.lte(now.micros()).and(untold)
}
