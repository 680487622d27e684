//! Queries over `service_state`: the id of the database, the key of the page tokens, and the head of the audit chain.
//! Values that belong to the database as a whole, so that every replica and every restart agrees on them.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QuerySelect as _,
    sea_query::OnConflict,
};

use super::{StoreError, entity::service_state as row, entity::service_state::Column};
use crate::domain::{
    audit::{AuditHead, decode_hash, encode_hash},
    ids::RecordId,
};

const PAGE_TOKEN_KEY: &str = "page_token_key";
const AUDIT_HEAD: &str = "audit_head";
const DATABASE_ID: &str = "database_id";

/// The id of this database, which tells it from every other: the one that stands, or `fresh` where none does.
pub async fn find_or_insert_database_id(db: &impl ConnectionTrait, fresh: RecordId) -> Result<RecordId, StoreError> {
    insert_if_absent(db, DATABASE_ID, fresh.to_string()).await?;
    let stands = row::Entity::find_by_id(DATABASE_ID).one(db).await?;
    let id = stands.and_then(|row| RecordId::parse(&row.value).ok());
    id.ok_or_else(|| StoreError::Corrupt(format!("service_state {DATABASE_ID}")))
}

/// The key of the page tokens: the one that stands, or `fresh` where none does.
pub async fn find_or_insert_page_token_key(db: &impl ConnectionTrait, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
    insert_if_absent(db, PAGE_TOKEN_KEY, encode_hash(&fresh)).await?;
    let stands = row::Entity::find_by_id(PAGE_TOKEN_KEY).one(db).await?;
    let key = stands.as_ref().and_then(|row| decode_hash(&row.value));
    key.ok_or_else(|| StoreError::Corrupt(format!("service_state {PAGE_TOKEN_KEY}")))
}

/// The head of the audit chain, locked until the transaction ends.
pub async fn find_audit_head_locked(db: &impl ConnectionTrait) -> Result<AuditHead, StoreError> {
    insert_if_absent(db, AUDIT_HEAD, encode_hash(&AuditHead::GENESIS.hash)).await?;
    let stands = row::Entity::find_by_id(AUDIT_HEAD).lock_exclusive().one(db).await?;
    let head = stands.and_then(|row| Some(AuditHead { sequence: row.number, hash: decode_hash(&row.value)? }));
    head.ok_or_else(|| StoreError::Corrupt(format!("service_state {AUDIT_HEAD}")))
}

/// Moves the head of the audit chain on.
pub async fn update_audit_head(db: &impl ConnectionTrait, head: AuditHead) -> Result<(), StoreError> {
    let changes =
        row::ActiveModel { number: Set(head.sequence), value: Set(encode_hash(&head.hash)), ..Default::default() };
    row::Entity::update_many().set(changes).filter(Column::Name.eq(AUDIT_HEAD)).exec(db).await?;
    Ok(())
}

async fn insert_if_absent(db: &impl ConnectionTrait, name: &str, value: String) -> Result<(), StoreError> {
    let model = row::ActiveModel { name: Set(name.to_owned()), number: Set(0), value: Set(value) };
    row::Entity::insert(model)
        .on_conflict(OnConflict::column(Column::Name).do_nothing().to_owned())
        .exec_without_returning(db)
        .await?;
    Ok(())
}
