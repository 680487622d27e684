//! Queries over `usage_reports`: which reports have been counted, so that a repeat is not.
//! A report is known by its key and request id. Invariant: a row is written in the transaction that counts its report,
//! so that one stands exactly when the other does, whoever reports at the same time and whatever answer is lost.

use std::collections::HashSet;

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query},
};

use super::{StoreError, entity::usage_report as row, entity::usage_report::Column};
use crate::domain::{ids::KeyId, time::Timestamp};

/// Rows per statement: 3 parameters each, below both engines' bound.
const ROWS_PER_STATEMENT: usize = 1000;
/// Rows that one statement deletes, so that no other writer waits for long.
const DELETED_PER_STATEMENT: u64 = 5000;

/// Notes reports as counted: key, request id, and the moment from which on a repeat ages. Gives key and request id of
/// those that had not been noted before; a transaction that is just noting the same is waited for.
pub async fn insert_new(
    db: &impl ConnectionTrait,
    reports: &[(KeyId, &str, Timestamp)],
) -> Result<HashSet<(String, String)>, StoreError> {
    // One order for all writers, so that two that note the same never wait for each other in a circle.
    let mut sorted = reports.to_vec();
    sorted.sort_unstable();
    sorted.dedup_by(|(key, id, _), (other_key, other_id, _)| key == other_key && id == other_id);
    let mut new = HashSet::new();
    for chunk in sorted.chunks(ROWS_PER_STATEMENT) {
        let mut insert = Query::insert();
        insert.into_table(row::Entity).columns([Column::KeyId, Column::RequestId, Column::TimeUs]);
        for (key, request_id, time) in chunk {
            let values = [key.to_string().into(), (*request_id).into(), time.micros().into()];
            insert.values(values).map_err(|error| sea_orm::DbErr::Custom(error.to_string()))?;
        }
        let taken = OnConflict::columns([Column::KeyId, Column::RequestId]).do_nothing().to_owned();
        insert.on_conflict(taken).returning(Query::returning().columns([Column::KeyId, Column::RequestId]));
        for written in db.query_all(&insert).await? {
            new.insert((written.try_get("", "key_id")?, written.try_get("", "request_id")?));
        }
    }
    Ok(new)
}

/// Forgets reports from before `before`, oldest first, a bounded number in each statement; says how many.
///
/// `before` must be at least [`crate::domain::usage_report::REPORT_KEPT`] ago, or a repeat may be counted twice.
/// Run it outside of a transaction, so that others write between two statements.
pub async fn prune(db: &impl ConnectionTrait, before: Timestamp) -> Result<u64, StoreError> {
    let identity = || Expr::tuple([Expr::col(Column::KeyId), Expr::col(Column::RequestId)]);
    let oldest = row::Entity::find()
        .select_only()
        .columns([Column::KeyId, Column::RequestId])
        .filter(Column::TimeUs.lt(before.micros()))
        .order_by_asc(Column::TimeUs)
        .limit(DELETED_PER_STATEMENT)
        .into_query();
    let mut deleted = 0;
    loop {
        let found = row::Entity::delete_many().filter(identity().in_subquery(oldest.clone())).exec(db).await?;
        deleted += found.rows_affected;
        if found.rows_affected < DELETED_PER_STATEMENT {
            return Ok(deleted);
        }
    }
}
