//! Queries over `audit_events`, and the chain that seals them.
//! An event is inserted in the transaction of the change it tells of, without touching the chain, so that changes
//! do not queue for its last link. Sealing gives the waiting events their sequence and hashes, in order, one
//! sealer at a time. Must not change a sealed event.

use std::mem;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _,
    sea_query::{Expr, ExprTrait as _, IntoIden as _, IntoValueTuple as _, Query, TableRef, UpdateStatement},
};

use super::{
    Store, StoreError, commit, entity::audit_event as row, entity::audit_event::Column, rows, rows::in_powers_of_two,
    state,
};
use crate::domain::{
    audit::{AuditAction, AuditFilter, NewAuditEvent, SealedEvent, encode_hash, event_hash},
    ids::RecordId,
    page::{Page, PageRequest, Position},
};

/// How many events one transaction seals.
const SEAL_BATCH: u64 = 500;

/// How many of them one statement writes, a power of two: 4 parameters each.
const SEALED_PER_STATEMENT: usize = 256;

/// How many events one statement writes: 13 parameters each, below both engines' bound.
const ROWS_PER_STATEMENT: usize = 1000;

/// Writes an event, not sealed yet.
pub async fn insert(db: &impl ConnectionTrait, id: RecordId, event: &NewAuditEvent) -> Result<(), StoreError> {
    row::Entity::insert(new_row(id, event)).exec_without_returning(db).await?;
    Ok(())
}

/// Writes many events, not sealed yet.
pub async fn insert_many(db: &impl ConnectionTrait, events: &[(RecordId, NewAuditEvent)]) -> Result<(), StoreError> {
    for chunk in events.chunks(ROWS_PER_STATEMENT) {
        let models = chunk.iter().map(|(id, event)| new_row(*id, event));
        row::Entity::insert_many(models).exec_without_returning(db).await?;
    }
    Ok(())
}

/// A new event as a row, not sealed yet.
pub(super) fn new_row(id: RecordId, event: &NewAuditEvent) -> row::ActiveModel {
    row::ActiveModel {
        id: Set(id.to_string()),
        sequence: Set(None),
        time_us: Set(event.time.micros()),
        actor_key_id: Set(event.actor.key_id.clone()),
        actor: Set(event.actor.name.clone()),
        action: Set(event.action.as_str().to_owned()),
        target_type: Set(event.action.target_type().to_owned()),
        target_id: Set(event.target_id.clone()),
        organization_id: Set(event.organization_id.to_string()),
        request_id: Set(event.actor.request_id.clone()),
        detail: Set(event.detail.clone()),
        previous_hash: Set(String::new()),
        hash: Set(String::new()),
    }
}

/// Seals every event that waits; gives their number. Several sealers queue for the head's row.
pub async fn seal(store: &Store) -> Result<usize, StoreError> {
    let mut sealed = 0;
    while exist_unsealed(store.control()).await? {
        sealed += seal_batch(store).await?;
    }
    Ok(sealed)
}

async fn exist_unsealed(db: &impl ConnectionTrait) -> Result<bool, StoreError> {
    let select = row::Entity::find().select_only().column(Column::Id).filter(Column::Sequence.is_null()).limit(1);
    Ok(db.query_one(select.as_query()).await?.is_some())
}

async fn seal_batch(store: &Store) -> Result<usize, StoreError> {
    let transaction = store.begin().await?;
    let mut head = state::find_audit_head_locked(&transaction).await?;
    let waiting = row::Entity::find()
        .filter(Column::Sequence.is_null())
        .order_by_asc(Column::TimeUs)
        .order_by_asc(Column::Id)
        .limit(SEAL_BATCH)
        .all(&transaction)
        .await?;
    let mut sealed = Vec::with_capacity(waiting.len());
    for model in waiting {
        let id = model.id.clone();
        let mut event = SealedEvent::try_from(model)?;
        event.record.sequence = head.sequence + 1;
        let hash = event_hash(&head.hash, &event.record);
        let previous = mem::replace(&mut head.hash, hash);
        head.sequence = event.record.sequence;
        sealed.push((id, head.sequence, encode_hash(&previous), encode_hash(&head.hash)));
    }
    for chunk in in_powers_of_two(&sealed, SEALED_PER_STATEMENT) {
        transaction.execute(&write_seals(chunk)).await?;
    }
    state::update_audit_head(&transaction, head).await?;
    commit(transaction).await?;
    Ok(sealed.len())
}

/// Both engines name the columns of a list of values `column1` and so on.
fn write_seals(sealed: &[(String, i64, String, String)]) -> UpdateStatement {
    let values = sealed.iter().map(|seal| seal.clone().into_value_tuple()).collect();
    let of = |column: &'static str| Expr::col(("sealed", column));
    Query::update()
        .table(row::Entity)
        .value(Column::Sequence, of("column2"))
        .value(Column::PreviousHash, of("column3"))
        .value(Column::Hash, of("column4"))
        .from(TableRef::ValuesList(values, "sealed".into_iden()))
        .and_where(Expr::col((row::Entity, Column::Id)).eq(of("column1")))
        .to_owned()
}

/// One page of sealed events, newest first.
pub async fn list(
    db: &impl ConnectionTrait,
    filter: &AuditFilter,
    page: &PageRequest,
) -> Result<Page<SealedEvent>, StoreError> {
    let mut select = row::Entity::find().filter(Column::Sequence.is_not_null());
    if let Some(organization) = filter.organization_id {
        select = select.filter(Column::OrganizationId.eq(organization.to_string()));
    }
    let texts = [
        (Column::TargetId, filter.target_id.as_deref()),
        (Column::ActorKeyId, filter.actor_key_id.as_deref()),
        (Column::Action, filter.action.map(AuditAction::as_str)),
    ];
    for (column, wanted) in texts {
        if let Some(wanted) = wanted {
            select = select.filter(column.eq(wanted));
        }
    }
    if let Some(start) = filter.start_time {
        select = select.filter(Column::TimeUs.gte(start.micros()));
    }
    if let Some(end) = filter.end_time {
        select = select.filter(Column::TimeUs.lt(end.micros()));
    }
    if let Some(after) = &page.after {
        select = select.filter(Column::Sequence.lt(after.sort));
    }
    let select = select.order_by_desc(Column::Sequence).limit(page.size + 1);
    let found = db.query_all(select.as_query()).await?;
    rows::page::<row::Model, SealedEvent>(found, page.size, |last| {
        Ok(Position { sort: last.try_get("", "sequence")?, id: String::new() })
    })
}
