//! Queries over `replicas`: which processes serve this database, by the sign of life that each gives now and then.
//! By the database's clock alone: those of the replicas need not agree.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, EntityTrait as _,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query},
};

use super::{
    StoreError, engine,
    entity::replica::{Column, Entity},
};
use crate::domain::ids::RecordId;

/// After so long without a sign of life a replica counts as gone.
pub const LIVE: Duration = Duration::from_secs(35);

/// Gives a sign of life of this replica, and counts those that are live.
pub async fn beat(db: &impl ConnectionTrait, id: RecordId) -> Result<i64, StoreError> {
    let now = engine::server_time(db);
    let beat = Query::insert()
        .into_table(Entity)
        .columns([Column::Id, Column::TimeUs])
        .values_panic([id.to_string().into(), now.clone()])
        .on_conflict(OnConflict::column(Column::Id).update_column(Column::TimeUs).to_owned())
        .to_owned();
    db.execute(&beat).await?;
    let since = now.sub(i64::try_from(LIVE.as_micros()).unwrap_or(i64::MAX));
    let live = Query::select()
        .expr_as(Expr::col(Column::Id).count(), "live")
        .from(Entity)
        .and_where(Expr::col(Column::TimeUs).gt(since))
        .to_owned();
    let row = db.query_one(&live).await?;
    Ok(row.map(|row| row.try_get("", "live")).transpose()?.unwrap_or(1))
}

/// Says that this replica serves no longer.
pub async fn leave(db: &impl ConnectionTrait, id: RecordId) -> Result<(), StoreError> {
    Entity::delete_by_id(id.to_string()).exec(db).await?;
    Ok(())
}

/// Deletes the replicas that gave no sign of life for a day; says how many.
pub async fn delete_gone(db: &impl ConnectionTrait) -> Result<u64, StoreError> {
    let day = i64::try_from(Duration::from_hours(24).as_micros()).unwrap_or(i64::MAX);
    let gone = Query::delete()
        .from_table(Entity)
        .and_where(Expr::col(Column::TimeUs).lt(engine::server_time(db).sub(day)))
        .to_owned();
    Ok(db.execute(&gone).await?.rows_affected())
}
