//! What each organization has used of its monthly quota: rows of `rate_limit_tracking` under a name that no limit can
//! have. Each change is one guarded statement, so that all processes together never take more than the quota.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query},
};

use super::{
    StoreError,
    entity::rate_limit_tracking::{Column, Entity},
    error::of_write,
};
use crate::domain::{ids::OrganizationId, time::Timestamp};

/// The name under which a quota is counted.
pub(super) const NAME: &str = "monthly quota";

/// Takes `amount` of what is left of a month's quota; gives what has been taken of it since, or `None` where so much
/// is not left. `month` is the month's start.
pub async fn take(
    db: &impl ConnectionTrait,
    id: OrganizationId,
    month: Timestamp,
    amount: i64,
    quota: i64,
) -> Result<Option<i64>, StoreError> {
    if amount > quota {
        return Ok(None);
    }
    // By its table's name: PostgreSQL would not know which row of the two is meant.
    let taken = || Expr::col((Entity, Column::Count)).add(amount);
    let conflict = OnConflict::columns([Column::SubjectId, Column::LimitName, Column::WindowStartUs])
        .value(Column::Count, taken())
        .action_and_where(taken().lte(quota))
        .to_owned();
    let insert = Query::insert()
        .into_table(Entity)
        .columns([Column::SubjectId, Column::LimitName, Column::WindowStartUs, Column::WindowEndUs, Column::Count])
        .values_panic([
            id.to_string().into(),
            NAME.into(),
            month.micros().into(),
            month.start_of_next_month().micros().into(),
            amount.into(),
        ])
        .on_conflict(conflict)
        .returning_col(Column::Count)
        .to_owned();
    match db.query_one(&insert).await.map_err(of_write)? {
        Some(row) => Ok(Some(row.try_get("", "count")?)),
        None => Ok(None),
    }
}

/// What has been taken of a month's quota.
pub async fn find_taken(db: &impl ConnectionTrait, id: OrganizationId, month: Timestamp) -> Result<i64, StoreError> {
    let key = (id.to_string(), NAME.to_owned(), month.micros());
    Ok(Entity::find_by_id(key).one(db).await?.map_or(0, |row| row.count))
}

/// Gives back what was taken of a month's quota and not used.
pub async fn give_back(
    db: &impl ConnectionTrait,
    id: OrganizationId,
    month: Timestamp,
    amount: i64,
) -> Result<(), StoreError> {
    Entity::update_many()
        .col_expr(Column::Count, Expr::col(Column::Count).sub(amount))
        .filter(Column::SubjectId.eq(id.to_string()))
        .filter(Column::LimitName.eq(NAME))
        .filter(Column::WindowStartUs.eq(month.micros()))
        .filter(Column::Count.gte(amount))
        .exec(db)
        .await
        .map_err(of_write)?;
    Ok(())
}
