//! Deletes old rows of `api_key_usage`. Rollups have no retention: they are what statistics rest on.
//! Must stay bounded: one call is one statement over a bounded number of rows, so that nobody waits long behind it.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _,
};

use super::{StoreError, entity::api_key_usage as row, entity::api_key_usage::Column};
use crate::domain::time::Timestamp;

/// Deletes the oldest rows of detail from before `time`, `most` of them at the most; says how many.
pub async fn delete_before(db: &impl ConnectionTrait, time: Timestamp, most: u64) -> Result<u64, StoreError> {
    let oldest = row::Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(Column::TimeUs.lt(time.micros()))
        .order_by_asc(Column::TimeUs)
        .limit(most)
        .into_query();
    let result = row::Entity::delete_many().filter(Column::Id.in_subquery(oldest)).exec(db).await?;
    Ok(result.rows_affected)
}
