//! Queries over `api_keys`.
//! Every query that serves a caller starts from `in_reach`, which carries the tenant. Digests go in and never come
//! out, but for the one that an eviction needs.

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QueryResult,
    QuerySelect as _, QueryTrait as _, Select,
    sea_query::{Expr, ExprTrait as _, LikeExpr},
};

use super::{StoreError, entity::api_key as row, entity::api_key::Column, rows};
use crate::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId, RecordId},
    key::{ApiKey, KeyFilter, KeyStatus, Revocation, StoredStatus},
    page::{Page, PageRequest},
    permission::Reach,
    text,
    time::Timestamp,
};

/// Keys that exist for a caller.
pub(super) fn in_reach(reach: Reach) -> Select<row::Entity> {
    match reach {
        Reach::All => row::Entity::find(),
        Reach::Only(organization) => row::Entity::find().filter(Column::OrganizationId.eq(organization.to_string())),
    }
}

async fn one(db: &impl ConnectionTrait, select: Select<row::Entity>) -> Result<Option<ApiKey>, StoreError> {
    let found = db.query_one(select.as_query()).await?;
    found.as_ref().map(rows::read::<row::Model, ApiKey>).transpose()
}

/// The key with this id.
pub async fn find(db: &impl ConnectionTrait, reach: Reach, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
    one(db, in_reach(reach).filter(Column::Id.eq(id.to_string()))).await
}

/// The key with this id, locked until the transaction ends.
pub async fn find_locked(db: &impl ConnectionTrait, reach: Reach, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
    one(db, in_reach(reach).filter(Column::Id.eq(id.to_string())).lock_exclusive()).await
}

/// The key with this digest, whatever its organization: one that is verified, or a caller's own.
pub async fn find_by_digest(db: &impl ConnectionTrait, digest: &Digest) -> Result<Option<ApiKey>, StoreError> {
    let select = row::Entity::find().filter(Column::Digest.eq(digest.as_bytes().to_vec()));
    let Some(found) = db.query_one(select.as_query()).await? else {
        return Ok(None);
    };
    if !is_digest(&found, "", digest)? {
        return Ok(None);
    }
    rows::read::<row::Model, ApiKey>(&found).map(Some)
}

/// Whether a row that was found by this digest holds it. The index found it by comparing bytes in its own way; what
/// counts is compared in constant time.
pub(super) fn is_digest(found: &QueryResult, prefix: &str, digest: &Digest) -> Result<bool, StoreError> {
    let stored: Option<Vec<u8>> = found.try_get(prefix, "digest")?;
    Ok(stored.as_deref().and_then(Digest::from_bytes).as_ref() == Some(digest))
}

/// The digest under which caches hold a key; `None` for a key without one, or without a row.
pub async fn find_digest(db: &impl ConnectionTrait, id: KeyId) -> Result<Option<Digest>, StoreError> {
    let select = row::Entity::find().select_only().column(Column::Digest).filter(Column::Id.eq(id.to_string()));
    let Some(found) = db.query_one(select.as_query()).await? else {
        return Ok(None);
    };
    let stored: Option<Vec<u8>> = found.try_get("", "digest")?;
    Ok(stored.as_deref().and_then(Digest::from_bytes))
}

/// The key that was created with this request id.
pub async fn find_by_request_id(
    db: &impl ConnectionTrait,
    organization: OrganizationId,
    request_id: RecordId,
) -> Result<Option<ApiKey>, StoreError> {
    let select = in_reach(Reach::Only(organization)).filter(Column::RequestId.eq(request_id.to_string()));
    one(db, select).await
}

/// Writes a new key. `Conflict` where its request id or digest is taken.
pub async fn insert(
    db: &impl ConnectionTrait,
    key: &ApiKey,
    digest: &Digest,
    request_id: Option<RecordId>,
) -> Result<(), StoreError> {
    row::Entity::insert(new_row(key, digest, request_id)).exec_without_returning(db).await?;
    Ok(())
}

/// A new key as a row.
pub(super) fn new_row(key: &ApiKey, digest: &Digest, request_id: Option<RecordId>) -> row::ActiveModel {
    let mut model = settings(key);
    model.id = Set(key.id.to_string());
    model.organization_id = Set(key.organization_id.to_string());
    model.digest = Set(Some(digest.as_bytes().to_vec()));
    model.scheme = Set("sha256".to_owned());
    model.prefix = Set(key.prefix.clone());
    model.hint = Set(key.hint.clone());
    model.environment = Set(key.environment.as_str().to_owned());
    model.create_time_us = Set(key.create_time.micros());
    model.created_by = Set(key.created_by.clone());
    model.rotated_from_id = Set(key.rotated_from_id.map(|id| id.to_string()));
    model.counter_id = Set(key.counter_id.to_string());
    model.request_id = Set(request_id.map(|id| id.to_string()));
    model
}

/// Writes the settings of a key, with a new etag; says whether there was such a key.
pub async fn update(db: &impl ConnectionTrait, key: &ApiKey) -> Result<bool, StoreError> {
    let result =
        row::Entity::update_many().set(settings(key)).filter(Column::Id.eq(key.id.to_string())).exec(db).await?;
    Ok(result.rows_affected > 0)
}

/// What an update may change, as columns.
fn settings(key: &ApiKey) -> row::ActiveModel {
    let refill = key.credits.and_then(|credits| credits.refill);
    row::ActiveModel {
        name: Set(key.name.clone()),
        name_folded: Set(text::fold(&key.name)),
        status: Set(key.stored_status.as_str().to_owned()),
        scopes: Set(rows::encode_scopes(&key.scopes)),
        metadata: Set(rows::encode_json(&key.metadata)),
        owner_id: Set(key.owner_id.clone()),
        allowed_cidrs: Set(rows::encode_list(&key.allowed_cidrs)),
        rate_limits: Set(rows::encode_rate_limits(&key.rate_limits)),
        credits_remaining: Set(key.credits.map(|credits| credits.remaining)),
        credits_refill_amount: Set(refill.map_or(0, |refill| refill.amount)),
        credits_refill_interval: Set(refill.map_or_else(String::new, |refill| refill.interval.as_str().to_owned())),
        credits_refill_time_us: Set(key.refill_time.map(Timestamp::micros)),
        update_time_us: Set(key.update_time.micros()),
        expire_time_us: Set(key.expire_time.map(Timestamp::micros)),
        etag: Set(key.etag),
        ..Default::default()
    }
}

/// Revokes a key for good; says whether it was not revoked yet.
pub async fn update_revoked(
    db: &impl ConnectionTrait,
    id: KeyId,
    revocation: &Revocation,
    etag: i64,
) -> Result<bool, StoreError> {
    let changes = row::ActiveModel {
        status: Set(StoredStatus::Revoked.as_str().to_owned()),
        update_time_us: Set(revocation.time.micros()),
        revoke_time_us: Set(Some(revocation.time.micros())),
        revoked_by: Set(revocation.by.clone()),
        revocation_reason: Set(revocation.reason.as_str().to_owned()),
        revocation_note: Set(revocation.note.clone()),
        etag: Set(etag),
        ..Default::default()
    };
    let result = row::Entity::update_many()
        .set(changes)
        .filter(Column::Id.eq(id.to_string()))
        .filter(Column::Status.ne(StoredStatus::Revoked.as_str()))
        .exec(db)
        .await?;
    Ok(result.rows_affected > 0)
}

/// The names of those of these keys that exist for the caller.
pub async fn find_names(
    db: &impl ConnectionTrait,
    reach: Reach,
    ids: &[KeyId],
) -> Result<Vec<(KeyId, String)>, StoreError> {
    let select = in_reach(reach)
        .select_only()
        .columns([Column::Id, Column::Name])
        .filter(Column::Id.is_in(ids.iter().map(ToString::to_string)));
    let mut names = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        let id: String = found.try_get("", "id")?;
        if let Ok(id) = KeyId::parse(&id) {
            names.push((id, found.try_get("", "name")?));
        }
    }
    Ok(names)
}

/// One page of an organization's keys, newest first.
pub async fn list(
    db: &impl ConnectionTrait,
    reach: Reach,
    filter: &KeyFilter,
    now: Timestamp,
    page: &PageRequest,
) -> Result<Page<ApiKey>, StoreError> {
    let mut select = in_reach(reach).filter(matching(filter, now));
    if let Some(after) = &page.after {
        let row = Expr::tuple([Expr::col(Column::CreateTimeUs), Expr::col(Column::Id)]);
        select = select.filter(row.lt(Expr::tuple([after.sort.into(), after.id.clone().into()])));
    }
    let select = select.order_by_desc(Column::CreateTimeUs).order_by_desc(Column::Id).limit(page.size + 1);
    let found = db.query_all(select.as_query()).await?;
    rows::page::<row::Model, ApiKey>(found, page.size, rows::by_creation)
}

fn matching(filter: &KeyFilter, now: Timestamp) -> Condition {
    let mut all = Condition::all().add(Column::OrganizationId.eq(filter.organization_id.to_string()));
    let now = now.micros();
    let status = |status: StoredStatus| Column::Status.eq(status.as_str());
    match filter.status {
        None => {}
        Some(KeyStatus::Revoked) => all = all.add(status(StoredStatus::Revoked)),
        Some(KeyStatus::Disabled) => all = all.add(status(StoredStatus::Disabled)),
        Some(KeyStatus::Expired) => all = all.add(status(StoredStatus::Active)).add(Column::ExpireTimeUs.lte(now)),
        Some(KeyStatus::Active) => {
            let lives = Condition::any().add(Column::ExpireTimeUs.is_null()).add(Column::ExpireTimeUs.gt(now));
            all = all.add(status(StoredStatus::Active)).add(lives);
        }
    }
    if let Some(environment) = filter.environment {
        all = all.add(Column::Environment.eq(environment.as_str()));
    }
    if let Some(owner) = &filter.owner_id {
        all = all.add(Column::OwnerId.eq(owner));
    }
    if let Some(part) = &filter.name_contains {
        all = all.add(Expr::col(Column::NameFolded).like(contains(part)));
    }
    if let Some(end) = filter.expiring_before {
        all = all.add(Column::ExpireTimeUs.lt(end.micros()));
    }
    if let Some(since) = filter.unused_since {
        let unused =
            Condition::any().add(Column::LastUsedTimeUs.is_null()).add(Column::LastUsedTimeUs.lt(since.micros()));
        all = all.add(unused);
    }
    all
}

/// A pattern for "contains", in which `%` and `_` stand for themselves.
pub(super) fn contains(part: &str) -> LikeExpr {
    let escaped = part.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    LikeExpr::new(format!("%{escaped}%")).escape('\\')
}

/// Adds to what keys were used for; a key that is gone is passed over. A clock that stepped back does not turn the
/// time of last use back.
pub async fn update_used(
    db: &impl ConnectionTrait,
    id: KeyId,
    requests: i64,
    last_used: Timestamp,
) -> Result<(), StoreError> {
    let last = last_used.micros();
    let newer = Expr::col(Column::LastUsedTimeUs).is_null().or(Expr::col(Column::LastUsedTimeUs).lt(last));
    row::Entity::update_many()
        .col_expr(Column::RequestCount, Expr::col(Column::RequestCount).add(requests))
        .col_expr(Column::LastUsedTimeUs, Expr::case(newer, last).finally(Expr::col(Column::LastUsedTimeUs)).into())
        .filter(Column::Id.eq(id.to_string()))
        .exec(db)
        .await?;
    Ok(())
}

/// Deletes all keys of an organization.
pub async fn delete_of_organization(
    db: &impl ConnectionTrait,
    organization: OrganizationId,
) -> Result<u64, StoreError> {
    let result =
        row::Entity::delete_many().filter(Column::OrganizationId.eq(organization.to_string())).exec(db).await?;
    Ok(result.rows_affected)
}
