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
};
use crate::domain::{ids::KeyId, limits::Refill, time::Timestamp};

/// What became of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// Charged; so many remain.
    Charged { remaining: i64 },
    /// Not charged: only so many remain.
    Exhausted { remaining: i64 },
    /// Not charged: the key was rotated meanwhile, and this one holds its credits now.
    Moved { to: KeyId },
    /// The row has no credits, or is gone: nothing bounds the key.
    Unlimited,
}

/// Spends `cost` credits of a key, refilling first where that is due.
pub async fn spend(
    db: &impl ConnectionTrait,
    id: KeyId,
    cost: i64,
    refill: Option<Refill>,
    now: Timestamp,
) -> Result<Spent, StoreError> {
    let next = refill.map_or(Timestamp::LAST, |refill| refill.next_after(now));
    let statement = Query::update()
        .table(Entity)
        .value(Column::CreditsRemaining, effective(now).sub(cost))
        .value(
            Column::CreditsRefillTimeUs,
            Expr::case(due(now), next.micros()).finally(Expr::col(Column::CreditsRefillTimeUs)),
        )
        .and_where(Expr::col(Column::Id).eq(id.to_string()))
        // Or a refill that falls due on a rotated key's row would count there and on its successor's.
        .and_where(Expr::col(Column::SuccessorId).is_null())
        .and_where(effective(now).gte(cost))
        .returning_col(Column::CreditsRemaining)
        .to_owned();
    if let Some(row) = db.query_one(&statement).await? {
        return Ok(Spent::Charged { remaining: row.try_get("", "credits_remaining")? });
    }
    remaining(db, id, now).await
}

/// What remains, a due refill counted in, without charging anything: `Exhausted` tells it, be it 0 or not.
pub async fn remaining(db: &impl ConnectionTrait, id: KeyId, now: Timestamp) -> Result<Spent, StoreError> {
    let statement = Query::select()
        .expr_as(effective(now), "effective")
        .column(Column::SuccessorId)
        .from(Entity)
        .and_where(Expr::col(Column::Id).eq(id.to_string()))
        .to_owned();
    let Some(row) = db.query_one(&statement).await? else {
        return Ok(Spent::Unlimited);
    };
    let successor: Option<String> = row.try_get("", "successor_id")?;
    if let Some(to) = successor.and_then(|to| KeyId::parse(&to).ok()) {
        return Ok(Spent::Moved { to });
    }
    let remaining: Option<i64> = row.try_get("", "effective")?;
    Ok(remaining.map_or(Spent::Unlimited, |remaining| Spent::Exhausted { remaining }))
}

fn due(now: Timestamp) -> SimpleExpr {
    Expr::col(Column::CreditsRefillTimeUs).lte(now.micros())
}

/// What remains once a due refill has raised it.
fn effective(now: Timestamp) -> SimpleExpr {
    let raised = due(now).and(Expr::col(Column::CreditsRemaining).lt(Expr::col(Column::CreditsRefillAmount)));
    Expr::case(raised, Expr::col(Column::CreditsRefillAmount)).finally(Expr::col(Column::CreditsRemaining)).into()
}
