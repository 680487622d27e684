//! Queries over the chains of rotated keys in `api_keys`: who points to the newest key, and whose credits are spent.
//! Invariant: whoever changes several keys in one transaction locks them first, in the order of their ids, so that
//! two such changes queue and never wait for each other in a circle.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, QueryTrait as _,
};

use super::{StoreError, entity::api_key as row, entity::api_key::Column, rows};
use crate::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId},
    key::ApiKey,
    limits::Credits,
    time::Timestamp,
};

/// Locks a key and every key that it replaced, until the transaction ends.
pub async fn lock_chain(db: &impl ConnectionTrait, newest: KeyId) -> Result<(), StoreError> {
    let id = newest.to_string();
    lock(db, Condition::any().add(Column::Id.eq(&id)).add(Column::SuccessorId.eq(&id))).await
}

/// Locks every key of an organization, until the transaction ends.
pub async fn lock_organization(db: &impl ConnectionTrait, id: OrganizationId) -> Result<(), StoreError> {
    lock(db, Condition::all().add(Column::OrganizationId.eq(id.to_string()))).await
}

async fn lock(db: &impl ConnectionTrait, which: Condition) -> Result<(), StoreError> {
    let select =
        row::Entity::find().select_only().column(Column::Id).filter(which).order_by_asc(Column::Id).lock_exclusive();
    db.query_all(select.as_query()).await?;
    Ok(())
}

/// Points a rotated key, and every key that pointed at it, to the newest key of the chain, which has taken over the
/// credits: a spend that was under way against the old row finds none left there.
pub async fn update_successor(db: &impl ConnectionTrait, rotated: KeyId, newest: KeyId) -> Result<(), StoreError> {
    row::Entity::update_many()
        .set(row::ActiveModel { successor_id: Set(Some(newest.to_string())), ..Default::default() })
        .filter(
            Condition::any().add(Column::Id.eq(rotated.to_string())).add(Column::SuccessorId.eq(rotated.to_string())),
        )
        .exec(db)
        .await?;
    row::Entity::update_many()
        .set(row::ActiveModel { credits_remaining: Set(Some(0)), ..Default::default() })
        .filter(Column::Id.eq(rotated.to_string()))
        .filter(Column::CreditsRemaining.is_not_null())
        .exec(db)
        .await?;
    Ok(())
}

/// Marks the keys that `newest` replaced as spending its credits, or as unlimited where it has none; gives the
/// digests under which caches hold them.
pub async fn update_predecessors(
    db: &impl ConnectionTrait,
    newest: KeyId,
    limited: bool,
) -> Result<Vec<Digest>, StoreError> {
    row::Entity::update_many()
        .set(row::ActiveModel { credits_remaining: Set(limited.then_some(0)), ..Default::default() })
        .filter(Column::SuccessorId.eq(newest.to_string()))
        .exec(db)
        .await?;
    let select =
        row::Entity::find().select_only().column(Column::Digest).filter(Column::SuccessorId.eq(newest.to_string()));
    let mut digests = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        let stored: Option<Vec<u8>> = found.try_get("", "digest")?;
        digests.extend(stored.as_deref().and_then(Digest::from_bytes));
    }
    Ok(digests)
}

/// The credits in the rows of these keys, for those that hold the credits of keys rotated before them.
pub async fn find_credits(
    db: &impl ConnectionTrait,
    ids: &[KeyId],
) -> Result<Vec<(KeyId, Option<Credits>, Option<Timestamp>)>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let select = row::Entity::find().filter(Column::Id.is_in(ids.iter().map(ToString::to_string)));
    let found = db.query_all(select.as_query()).await?;
    let keys: Vec<ApiKey> = rows::readable::<row::Model, ApiKey>(&found);
    Ok(keys.into_iter().map(|key| (key.id, key.credits, key.refill_time)).collect())
}
