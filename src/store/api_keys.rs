//! Queries over `api_keys`.
//! Every query that serves a caller starts from `in_reach`, which carries the tenant. Digests go in and never come
//! out, but for the one that an eviction needs.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, Select,
    sea_query::{
        Expr, ExprTrait as _, IntoIden as _, IntoValueTuple as _, LikeExpr, LockType, Query, TableRef, UpdateStatement,
    },
};

use super::{StoreError, entity::api_key as row, entity::api_key::Column, rows, rows::in_powers_of_two};
use crate::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId, RecordId},
    import::Scheme,
    key::{ApiKey, KeyFilter, KeyStatus, Revocation, StoredStatus},
    page::{Page, PageRequest},
    permission::Reach,
    text,
    time::Timestamp,
};

/// Keys per statement, a power of two: three parameters each, far below both engines' bound.
const USED_PER_STATEMENT: usize = 512;

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
    row::Entity::insert(new_row(key, Some(digest), request_id)).exec_without_returning(db).await?;
    Ok(())
}

/// A new key as a row.
pub(super) fn new_row(key: &ApiKey, digest: Option<&Digest>, request_id: Option<RecordId>) -> row::ActiveModel {
    let mut model = settings(key);
    model.id = Set(key.id.to_string());
    model.organization_id = Set(key.organization_id.to_string());
    model.digest = Set(digest.map(|digest| digest.as_bytes().to_vec()));
    model.scheme = Set(Scheme::Sha256.as_str().to_owned());
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

/// The organizations of those of these keys that exist for the caller.
pub async fn find_owners(
    db: &impl ConnectionTrait,
    reach: Reach,
    ids: &[KeyId],
) -> Result<BTreeMap<KeyId, OrganizationId>, StoreError> {
    let select = in_reach(reach)
        .select_only()
        .columns([Column::Id, Column::OrganizationId])
        .filter(Column::Id.is_in(ids.iter().map(ToString::to_string)));
    let mut owners = BTreeMap::new();
    for found in db.query_all(select.as_query()).await? {
        let (id, owner): (String, String) = (found.try_get("", "id")?, found.try_get("", "organization_id")?);
        if let (Ok(id), Ok(owner)) = (KeyId::parse(&id), OrganizationId::parse(&owner)) {
            owners.insert(id, owner);
        }
    }
    Ok(owners)
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

/// Adds requests and times of last use to keys, by ascending id; a key that is gone is passed over. A clock that
/// stepped back does not turn the time of last use back.
pub async fn update_used(db: &impl ConnectionTrait, used: &[(KeyId, i64, Timestamp)]) -> Result<(), StoreError> {
    for chunk in in_powers_of_two(used, USED_PER_STATEMENT) {
        // One statement for all takes its row locks in no certain order, and so they are taken before it.
        let ids = chunk.iter().map(|(id, ..)| id.to_string());
        let lock = row::Entity::find().select_only().column(Column::Id).filter(Column::Id.is_in(ids));
        db.query_all(lock.order_by_asc(Column::Id).lock(LockType::NoKeyUpdate).as_query()).await?;
        db.execute(&add_used(chunk)).await?;
    }
    Ok(())
}

/// Both engines name the columns of a list of values `column1` and so on.
fn add_used(used: &[(KeyId, i64, Timestamp)]) -> UpdateStatement {
    let values = used.iter().map(|(id, requests, last)| (id.to_string(), *requests, last.micros()).into_value_tuple());
    let own = |column: Column| Expr::col((row::Entity, column));
    let last = || Expr::col(("used", "column3"));
    let older = own(Column::LastUsedTimeUs).is_null().or(own(Column::LastUsedTimeUs).lt(last()));
    Query::update()
        .table(row::Entity)
        .value(Column::RequestCount, own(Column::RequestCount).add(Expr::col(("used", "column2"))))
        .value(Column::LastUsedTimeUs, Expr::case(older, last()).finally(own(Column::LastUsedTimeUs)))
        .from(TableRef::ValuesList(values.collect(), "used".into_iden()))
        .and_where(own(Column::Id).eq(Expr::col(("used", "column1"))))
        .to_owned()
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
