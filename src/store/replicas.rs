//! Queries over `replicas`: which processes serve this database, by the sign of life that each gives now and then.
//! By the database's clock alone: those of the replicas need not agree.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, EntityTrait as _,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query, SimpleExpr},
};

use super::{
    StoreError, engine,
    entity::replica::{Column, Entity},
};
use crate::domain::ids::RecordId;

/// After so long without a sign of life a replica counts as gone.
pub const LIVE: Duration = Duration::from_secs(35);

/// Gives a sign of life of this replica.
pub async fn beat(db: &impl ConnectionTrait, id: RecordId) -> Result<(), StoreError> {
    let beat = Query::insert()
        .into_table(Entity)
        .columns([Column::Id, Column::TimeUs])
        .values_panic([id.to_string().into(), engine::server_time(db)])
        .on_conflict(OnConflict::column(Column::Id).update_column(Column::TimeUs).to_owned())
        .to_owned();
    db.execute(&beat).await?;
    Ok(())
}

/// How many replicas are live, as a part of another query.
pub(super) fn count_live(db: &impl ConnectionTrait) -> SimpleExpr {
    let since = engine::server_time(db).sub(i64::try_from(LIVE.as_micros()).unwrap_or(i64::MAX));
    let live = Query::select()
        .expr(Expr::col(Column::Id).count())
        .from(Entity)
        .and_where(Expr::col(Column::TimeUs).gt(since))
        .to_owned();
    SimpleExpr::SubQuery(None, Box::new(live.into()))
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
