//! Queries over `rate_limit_tracking`: what limits have counted, written through so that a restart resets nothing, or,
//! where replicas share it, the counters themselves. Must not decide: `src/limits/` does. Quotas stand in the same table
//! and have queries of their own, in `quotas.rs`.

use std::time::Duration;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query, SimpleExpr},
};

use super::{StoreError, engine, entity::rate_limit_tracking as row, entity::rate_limit_tracking::Column, quotas};
use crate::domain::{ids::OrganizationId, time::Timestamp};

/// Rows per statement: 5 parameters each, far below both engines' bound.
const ROWS_PER_STATEMENT: usize = 1000;

/// For how long a window that no longer counts is kept.
const SLACK: Duration = Duration::from_hours(24);

/// What one limit of one subject counted in one window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedWindow {
    /// A key's or an organization's id.
    pub subject_id: String,
    pub limit_name: String,
    pub window_start_us: i64,
    pub window_end_us: i64,
    pub count: i64,
}

impl From<row::Model> for TrackedWindow {
    fn from(row: row::Model) -> Self {
        Self {
            subject_id: row.subject_id,
            limit_name: row.limit_name,
            window_start_us: row.window_start_us,
            window_end_us: row.window_end_us,
            count: row.count,
        }
    }
}

/// A window counts until it has ended, and fades out in the one after it.
fn counts_at(time: Timestamp) -> SimpleExpr {
    let end = || Expr::col(Column::WindowEndUs);
    end().add(end()).sub(Expr::col(Column::WindowStartUs)).gt(time.micros())
}

/// Every limit's window that still counts at `time`, or did within the last day: a clock may step back.
pub async fn list_counting_at(db: &impl ConnectionTrait, time: Timestamp) -> Result<Vec<TrackedWindow>, StoreError> {
    let rows = row::Entity::find()
        .filter(counts_at(time.minus(SLACK)))
        .filter(Column::LimitName.ne(quotas::NAME))
        .all(db)
        .await?;
    Ok(rows.into_iter().map(TrackedWindow::from).collect())
}

/// The windows of these subjects that still count at `time`.
pub async fn list_of_subjects(
    db: &impl ConnectionTrait,
    subjects: &[String],
    time: Timestamp,
) -> Result<Vec<TrackedWindow>, StoreError> {
    let rows = row::Entity::find()
        .filter(Column::SubjectId.is_in(subjects))
        .filter(Column::LimitName.ne(quotas::NAME))
        .filter(counts_at(time))
        .all(db)
        .await?;
    Ok(rows.into_iter().map(TrackedWindow::from).collect())
}

/// Lines up for the counters of an organization and of its keys, which one transaction at a time may change, and gives
/// the database's time when it is this one's turn.
///
/// # Errors
/// The database's own.
pub async fn lock_of_organization(
    transaction: &impl ConnectionTrait,
    id: OrganizationId,
) -> Result<Timestamp, StoreError> {
    Ok(Timestamp::from_micros(engine::lock_counters(transaction, id).await?))
}

/// The database's own time, which all replicas have in common.
///
/// # Errors
/// The database's own.
pub async fn find_server_time(db: &impl ConnectionTrait) -> Result<Timestamp, StoreError> {
    let row = db.query_one(Query::select().expr_as(engine::server_time(db), "now")).await?;
    let row = row.ok_or_else(|| StoreError::Corrupt("the time".to_owned()))?;
    Ok(Timestamp::from_micros(row.try_get("", "now")?))
}

/// Writes the counts of these windows over what stood there.
pub async fn upsert(db: &impl ConnectionTrait, windows: &[TrackedWindow]) -> Result<(), StoreError> {
    for chunk in windows.chunks(ROWS_PER_STATEMENT) {
        let models = chunk.iter().map(|window| row::ActiveModel {
            subject_id: Set(window.subject_id.clone()),
            limit_name: Set(window.limit_name.clone()),
            window_start_us: Set(window.window_start_us),
            window_end_us: Set(window.window_end_us),
            count: Set(window.count),
        });
        let identity = [Column::SubjectId, Column::LimitName, Column::WindowStartUs];
        row::Entity::insert_many(models)
            .on_conflict(OnConflict::columns(identity).update_columns([Column::WindowEndUs, Column::Count]).to_owned())
            .exec_without_returning(db)
            .await?;
    }
    Ok(())
}

/// Deletes the windows that `list_counting_at` would not give; says how many.
pub async fn delete_faded(db: &impl ConnectionTrait, time: Timestamp) -> Result<u64, StoreError> {
    let result = row::Entity::delete_many()
        .filter(Column::WindowEndUs.lte(time.micros()))
        .filter(counts_at(time.minus(SLACK)).not())
        .exec(db)
        .await?;
    Ok(result.rows_affected)
}

/// Deletes what an organization itself has counted; its keys' windows end by themselves.
pub async fn delete_of_organization(db: &impl ConnectionTrait, id: OrganizationId) -> Result<(), StoreError> {
    row::Entity::delete_many().filter(Column::SubjectId.eq(id.to_string())).exec(db).await?;
    Ok(())
}
