//! Queries over `usage_spools`: the number of the last segment of each spool that has been written.
//! `advance` is the guard that makes a segment count once: it must be in the transaction that writes the segment.

use sea_orm::{
    ActiveValue::Set,
    ConnectionTrait, EntityTrait,
    sea_query::{Expr, ExprTrait as _, OnConflict},
};

use super::{StoreError, entity::usage_spool as row, entity::usage_spool::Column};
use crate::domain::{ids::RecordId, time::Timestamp};

/// The number of the last segment of this spool that was written, 0 where none was.
pub async fn find_applied(db: &impl ConnectionTrait, spool: RecordId) -> Result<i64, StoreError> {
    let found = row::Entity::find_by_id(spool.to_string()).one(db).await?;
    Ok(found.map_or(0, |row| row.applied_number))
}

/// Notes that a segment is written; says whether it was not yet. Whoever tries the same one meanwhile waits until
/// this transaction ends, and is then told.
pub async fn advance(
    db: &impl ConnectionTrait,
    spool: RecordId,
    number: i64,
    time: Timestamp,
) -> Result<bool, StoreError> {
    let model = row::ActiveModel {
        spool_id: Set(spool.to_string()),
        applied_number: Set(number),
        update_time_us: Set(time.micros()),
    };
    let stands = Expr::col((row::Entity, Column::AppliedNumber));
    let newer = OnConflict::column(Column::SpoolId)
        .update_columns([Column::AppliedNumber, Column::UpdateTimeUs])
        .action_and_where(stands.lt(Expr::col(("excluded", "applied_number"))))
        .to_owned();
    let changed = row::Entity::insert(model).on_conflict(newer).exec_without_returning(db).await?;
    Ok(changed > 0)
}
