//! Spending credits: one guarded statement over a row of `api_keys`, exact under any concurrency.
//! Invariant: what remains never goes below zero, and a refill that is due counts once, by whichever statement
//! comes first. Credits of a rotated key stand in the row of the newest key of its chain.

use sea_orm::{
    ConnectionTrait,
    sea_query::{Expr, ExprTrait as _, Query, SimpleExpr},
};

use super::{
    StoreError,
    entity::api_key::{Column, Entity},
    error::of_write,
};
use crate::domain::{ids::KeyId, limits::RefillInterval, time::Timestamp};

/// What became of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// Charged; so many remain.
    Charged { remaining: i64 },
    /// Not charged.
    Refused(Balance),
}

/// What a key's row says of its credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// So many remain, a due refill counted in.
    Remaining(i64),
    /// The key was rotated, and this one holds its credits now.
    Moved { to: KeyId },
    /// The row has no credits: nothing bounds the key.
    Unlimited,
    /// The row is gone, and with it whatever there was to spend.
    Gone,
}

/// Spends `cost` credits of a key, refilling first where that is due. What the refill is, the row says: the key that
/// was presented may be an older one of the same chain.
pub async fn spend(db: &impl ConnectionTrait, id: KeyId, cost: i64, now: Timestamp) -> Result<Spent, StoreError> {
    let statement = Query::update()
        .table(Entity)
        .value(Column::CreditsRemaining, effective(now).sub(cost))
        .value(Column::CreditsRefillTimeUs, refill_time(now))
        .and_where(Expr::col(Column::Id).eq(id.to_string()))
        // Or a refill that falls due on a rotated key's row would count there and on its successor's.
        .and_where(Expr::col(Column::SuccessorId).is_null())
        .and_where(effective(now).gte(cost))
        .returning_col(Column::CreditsRemaining)
        .to_owned();
    if let Some(row) = db.query_one(&statement).await.map_err(of_write)? {
        return Ok(Spent::Charged { remaining: row.try_get("", "credits_remaining")? });
    }
    Ok(Spent::Refused(balance(db, id, now).await?))
}

/// What a key's row says of its credits, without charging anything.
pub async fn balance(db: &impl ConnectionTrait, id: KeyId, now: Timestamp) -> Result<Balance, StoreError> {
    let statement = Query::select()
        .expr_as(effective(now), "effective")
        .column(Column::SuccessorId)
        .from(Entity)
        .and_where(Expr::col(Column::Id).eq(id.to_string()))
        .to_owned();
    let Some(row) = db.query_one(&statement).await? else {
        return Ok(Balance::Gone);
    };
    let successor: Option<String> = row.try_get("", "successor_id")?;
    if let Some(to) = successor.and_then(|to| KeyId::parse(&to).ok()) {
        return Ok(Balance::Moved { to });
    }
    let remaining: Option<i64> = row.try_get("", "effective")?;
    Ok(remaining.map_or(Balance::Unlimited, Balance::Remaining))
}

fn interval_is(interval: RefillInterval) -> SimpleExpr {
    Expr::col(Column::CreditsRefillInterval).eq(interval.as_str())
}

pub(super) fn due(now: Timestamp) -> SimpleExpr {
    Expr::col(Column::CreditsRefillTimeUs).lte(now.micros())
}

/// When the next refill is, once a due one has been counted in.
pub(super) fn refill_time(now: Timestamp) -> SimpleExpr {
    let next = Expr::case(interval_is(RefillInterval::Day), RefillInterval::Day.next_after(now).micros())
        .finally(RefillInterval::Month.next_after(now).micros());
    Expr::case(due(now), next).finally(Expr::col(Column::CreditsRefillTimeUs)).into()
}

/// What remains once a due refill has raised it.
pub(super) fn effective(now: Timestamp) -> SimpleExpr {
    let raised = due(now).and(Expr::col(Column::CreditsRemaining).lt(Expr::col(Column::CreditsRefillAmount)));
    Expr::case(raised, Expr::col(Column::CreditsRefillAmount)).finally(Expr::col(Column::CreditsRemaining)).into()
}
