//! Queries over `audit_events`, and the chain that seals them.
//! An event is inserted in the transaction of the change it tells of, without touching the chain, so that changes
//! do not queue for its last link. Sealing gives the waiting events their sequence and hashes, in order, one
//! sealer at a time. Must not change a sealed event.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, QueryTrait as _, sea_query::Expr,
};

use super::{Store, StoreError, commit, entity::audit_event as row, entity::audit_event::Column, rows, state};
use crate::domain::{
    audit::{AuditAction, AuditFilter, AuditHead, NewAuditEvent, SealedEvent, encode_hash, event_hash},
    ids::RecordId,
    page::{Page, PageRequest, Position},
};

/// How many events one transaction seals.
const SEAL_BATCH: u64 = 500;

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
    let select = row::Entity::find().select_only().column(Column::Id).filter(Column::Hash.eq("")).limit(1);
    Ok(db.query_one(select.as_query()).await?.is_some())
}

async fn seal_batch(store: &Store) -> Result<usize, StoreError> {
    let transaction = store.begin().await?;
    let mut head = state::find_audit_head_locked(&transaction).await?;
    let waiting = row::Entity::find()
        .filter(Column::Hash.eq(""))
        .order_by_asc(Column::TimeUs)
        .order_by_asc(Column::Id)
        .limit(SEAL_BATCH)
        .all(&transaction)
        .await?;
    let count = waiting.len();
    for model in waiting {
        head = seal_one(&transaction, head, model).await?;
    }
    state::update_audit_head(&transaction, head).await?;
    commit(transaction).await?;
    Ok(count)
}

async fn seal_one(db: &impl ConnectionTrait, head: AuditHead, model: row::Model) -> Result<AuditHead, StoreError> {
    let id = model.id.clone();
    let mut event = SealedEvent::try_from(model)?;
    event.record.sequence = head.sequence + 1;
    let hash = event_hash(&head.hash, &event.record);
    row::Entity::update_many()
        .col_expr(Column::Sequence, Expr::value(event.record.sequence))
        .col_expr(Column::PreviousHash, Expr::value(encode_hash(&head.hash)))
        .col_expr(Column::Hash, Expr::value(encode_hash(&hash)))
        .filter(Column::Id.eq(id))
        .exec(db)
        .await?;
    Ok(AuditHead { sequence: event.record.sequence, hash })
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
