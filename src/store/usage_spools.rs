//! Queries over `usage_spools`: the number of the last segment of each spool that has been written.
//! `advance` is the guard that makes a segment count once: it must be in the transaction that writes the segment.

use std::ops::RangeInclusive;

use sea_orm::{
    ActiveValue::Set,
    ConnectionTrait, EntityTrait,
    sea_query::{Expr, ExprTrait as _, OnConflict},
};

use super::{StoreError, entity::usage_spool as row, entity::usage_spool::Column};
use crate::domain::{ids::RecordId, time::Timestamp};

/// Whether a run of segments may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    Now,
    /// The first of them has been written before, as has every one up to this number.
    Before {
        applied: i64,
    },
}

/// The number of the last segment of this spool that was written, 0 where none was.
pub async fn find_applied(db: &impl ConnectionTrait, spool: RecordId) -> Result<i64, StoreError> {
    let found = row::Entity::find_by_id(spool.to_string()).one(db).await?;
    Ok(found.map_or(0, |row| row.applied_number))
}

/// Notes that a run of segments is written, all of them or none; gives what stands already where the first of them
/// has been written before. Whoever tries one of them meanwhile waits until this transaction ends, and is then told.
pub async fn advance(
    db: &impl ConnectionTrait,
    spool: RecordId,
    numbers: RangeInclusive<i64>,
    time: Timestamp,
) -> Result<Advance, StoreError> {
    let model = row::ActiveModel {
        spool_id: Set(spool.to_string()),
        applied_number: Set(*numbers.end()),
        update_time_us: Set(time.micros()),
    };
    let stands = Expr::col((row::Entity, Column::AppliedNumber));
    let newer = OnConflict::column(Column::SpoolId)
        .update_columns([Column::AppliedNumber, Column::UpdateTimeUs])
        .action_and_where(stands.lt(*numbers.start()))
        .to_owned();
    let changed = row::Entity::insert(model).on_conflict(newer).exec_without_returning(db).await?;
    if changed > 0 {
        return Ok(Advance::Now);
    }
    Ok(Advance::Before { applied: find_applied(db, spool).await? })
}
