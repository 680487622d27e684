//! Queries over `job_leases`: which process runs a background job, so that several run it once and not each.
//! A lease saves work and is no lock: processes' clocks differ, so two may hold one for a moment, and every job must
//! be harmless when it runs twice at once. Times that no clock nearby can have written are taken for a clock that
//! stepped, and do not hold a job up.

use std::time::Duration;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _,
    sea_query::{Expr, ExprTrait as _, OnConflict, SimpleExpr},
};

use super::{StoreError, entity::job_lease as row, entity::job_lease::Column, error::of_write};
use crate::domain::time::Timestamp;

/// When a job runs.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// From one start to the next, whoever starts it.
    pub interval: Duration,
    /// For how long a process that took the job keeps others away; the next one takes it over from one that died.
    pub lease: Duration,
}

/// Takes a job for `holder` if it is due and nobody has it; one statement, so that of several one gets it.
pub async fn take(
    db: &impl ConnectionTrait,
    job: &str,
    holder: &str,
    schedule: Schedule,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let free = passed_or_absurd(Column::LeaseUntilUs, now, schedule.lease * 2);
    let start = now.minus(schedule.interval);
    let due = passed_or_absurd(Column::LastStartUs, start, schedule.interval * 2);
    let first = row::ActiveModel {
        name: Set(job.to_owned()),
        holder: Set(holder.to_owned()),
        lease_until_us: Set(now.plus(schedule.lease).micros()),
        last_start_us: Set(now.micros()),
        ..Default::default()
    };
    let again = OnConflict::column(Column::Name)
        .update_columns([Column::Holder, Column::LeaseUntilUs, Column::LastStartUs])
        .action_and_where(free.and(due))
        .to_owned();
    Ok(row::Entity::insert(first).on_conflict(again).exec_without_returning(db).await.map_err(of_write)? > 0)
}

/// Whether the moment in a column lies before `now`, or further ahead of it than any clock may be.
fn passed_or_absurd(column: Column, now: Timestamp, ahead_max: Duration) -> SimpleExpr {
    // With its table, since `excluded` has a column of the same name.
    let moment = || Expr::col((row::Entity, column));
    moment().lte(now.micros()).or(moment().gt(now.plus(ahead_max).micros()))
}

/// Notes how a job ended and gives it back, unless another process has taken it over meanwhile.
pub async fn release(
    db: &impl ConnectionTrait,
    job: &str,
    holder: &str,
    result: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    row::Entity::update_many()
        .col_expr(Column::LeaseUntilUs, Expr::value(now.micros()))
        .col_expr(Column::LastEndUs, Expr::value(now.micros()))
        .col_expr(Column::LastResult, Expr::value(result))
        .filter(Column::Name.eq(job))
        .filter(Column::Holder.eq(holder))
        .exec(db)
        .await?;
    Ok(())
}
