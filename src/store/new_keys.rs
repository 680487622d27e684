//! Issuing a key in one statement, its audit event included, so that it costs PostgreSQL one round trip and holds
//! the organization's row no longer than that statement.
//! Must not tell why nothing was written: whoever is told no asks again, in a transaction that locks and counts.
//! Invariant: both rows are written or none is, and only into an active organization without a key cap, which shares
//! its row until the commit, so that it is still active then.

use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait as _, ConnectionTrait as _, DbErr, EntityTrait, Iterable as _,
    RuntimeErr,
    sea_query::{CommonTableExpression, Expr, InsertStatement, Query, SelectStatement, WithClause},
};

use super::{
    Store, StoreError, api_keys, audit_events, engine,
    entity::{api_key, organization},
    error::of_write,
};
use crate::domain::{audit::NewAuditEvent, digest::Digest, ids::RecordId, key::ApiKey, secret::SecretPrefix};

/// The name under which the inserted key is known within the statement.
const ISSUED: &str = "issued";

/// A key to be written, with all that stands beside it.
pub struct NewRow<'a> {
    pub key: &'a ApiKey,
    pub digest: &'a Digest,
    pub request_id: Option<RecordId>,
    /// The organization's prefix as it was read; where it is another by now, nothing is written.
    pub secret_prefix: &'a SecretPrefix,
    pub event_id: RecordId,
    pub event: &'a NewAuditEvent,
}

/// Whether this database takes it: on SQLite a statement changes one table, and transactions share commits.
pub const fn is_possible(store: &Store) -> bool {
    store.group.is_none()
}

/// Writes a new key and its audit event if the organization is active, has no key cap and has this prefix; says
/// whether it did.
///
/// # Errors
/// `Conflict` where the request id or digest is taken; `Unavailable` that may have happened.
pub async fn insert_at_once(store: &Store, new: &NewRow<'_>) -> Result<bool, StoreError> {
    let open = Query::select()
        .from(organization::Entity)
        .and_where(organization::Column::Id.eq(new.key.organization_id.to_string()))
        .and_where(organization::Column::Active.eq(true))
        .and_where(organization::Column::MaxKeys.eq(0_i64))
        .and_where(organization::Column::SecretPrefix.eq(new.secret_prefix.as_str()))
        .and_where(engine::joins_line(new.key.organization_id))
        .lock_shared()
        .to_owned();
    let mut issue = insert_where(&api_keys::new_row(new.key, Some(new.digest), new.request_id), open)?;
    issue.returning_col(api_key::Column::Id);
    let issued = CommonTableExpression::new().table_name(ISSUED).query(issue).to_owned();
    let event = audit_events::new_row(new.event_id, new.event);
    let record = insert_where(&event, Query::select().from(ISSUED).to_owned())?;
    let statement = WithClause::new().cte(issued).to_owned().query(record);
    let written = store.write.execute(&statement).await.map_err(of_write)?;
    Ok(written.rows_affected() > 0)
}

/// An insertion of this row for each row that `source` finds.
fn insert_where<A: ActiveModelTrait>(row: &A, mut source: SelectStatement) -> Result<InsertStatement, DbErr>
where
    A::Entity: Default,
{
    let mut columns = Vec::new();
    for column in <A::Entity as EntityTrait>::Column::iter() {
        if let ActiveValue::Set(value) = row.get(column) {
            columns.push(column);
            source.expr(Expr::value(value));
        }
    }
    let mut insert = Query::insert().into_table(A::Entity::default()).columns(columns).to_owned();
    insert.select_from(source).map_err(|error| DbErr::Query(RuntimeErr::Internal(error.to_string())))?;
    Ok(insert)
}
