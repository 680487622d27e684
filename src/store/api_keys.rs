//! Queries over `api_keys`.
//! Every query that serves a caller starts from `in_reach`, which carries the tenant. Digests go in and never come
//! out, but for the one that an eviction needs.

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, Select,
    sea_query::{Expr, ExprTrait as _, LikeExpr, SimpleExpr},
};

use super::{StoreError, entity::api_key as row, entity::api_key::Column, rows};
use crate::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId, RecordId},
    key::{ApiKey, KeyFilter, KeyStatus, Revocation, StoredStatus},
    limits::Credits,
    page::{Page, PageRequest, Position},
    permission::{Reach, is_admin},
    text,
    time::Timestamp,
};

/// How many keys an organization has, by status, and what they were used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyStatistics {
    pub active: u64,
    pub disabled: u64,
    pub revoked: u64,
    pub expired: u64,
    pub requests: i64,
    pub last_used_time: Option<Timestamp>,
}

/// Keys that exist for a caller.
fn in_reach(reach: Reach) -> Select<row::Entity> {
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

/// The key that a caller authenticated with, whatever its organization.
pub async fn find_by_digest(db: &impl ConnectionTrait, digest: &Digest) -> Result<Option<ApiKey>, StoreError> {
    let select = row::Entity::find().filter(Column::Digest.eq(digest.as_bytes().to_vec()));
    let Some(found) = db.query_one(select.as_query()).await? else {
        return Ok(None);
    };
    // The index found it by comparing bytes in its own way; what counts is compared in constant time.
    let stored: Option<Vec<u8>> = found.try_get("", "digest")?;
    if stored.as_deref().and_then(Digest::from_bytes).as_ref() != Some(digest) {
        return Ok(None);
    }
    rows::read::<row::Model, ApiKey>(&found).map(Some)
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
    row::Entity::insert(model).exec_without_returning(db).await?;
    Ok(())
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
    let mut found = db.query_all(select.as_query()).await?;
    let size = usize::try_from(page.size).unwrap_or(usize::MAX);
    let more = found.len() > size;
    found.truncate(size);
    let next = match found.last() {
        Some(last) if more => Some(Position { sort: last.try_get("", "create_time_us")?, id: last.try_get("", "id")? }),
        _ => None,
    };
    Ok(Page { rows: rows::readable::<row::Model, ApiKey>(&found), next })
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

/// How many keys of an organization are not revoked: what its key cap counts.
pub async fn count(db: &impl ConnectionTrait, organization: OrganizationId) -> Result<i64, StoreError> {
    Ok(count_each(db, &[organization]).await?.first().map_or(0, |(_, count)| *count))
}

/// The same for several organizations; those without keys are absent.
pub async fn count_each(
    db: &impl ConnectionTrait,
    organizations: &[OrganizationId],
) -> Result<Vec<(OrganizationId, i64)>, StoreError> {
    let select = row::Entity::find()
        .select_only()
        .column(Column::OrganizationId)
        .column_as(Column::Id.count(), "keys")
        .filter(Column::OrganizationId.is_in(organizations.iter().map(ToString::to_string)))
        .filter(Column::Status.ne(StoredStatus::Revoked.as_str()))
        .group_by(Column::OrganizationId);
    let mut counts = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        let id: String = found.try_get("", "organization_id")?;
        if let Ok(id) = OrganizationId::parse(&id) {
            counts.push((id, found.try_get("", "keys")?));
        }
    }
    Ok(counts)
}

/// How many keys of any status an organization has: what protects it from deletion.
pub async fn count_all(db: &impl ConnectionTrait, organization: OrganizationId) -> Result<i64, StoreError> {
    let select = row::Entity::find()
        .select_only()
        .column_as(Column::Id.count(), "keys")
        .filter(Column::OrganizationId.eq(organization.to_string()));
    let found = db.query_one(select.as_query()).await?;
    Ok(found.map(|row| row.try_get("", "keys")).transpose()?.unwrap_or(0))
}

/// What an organization's keys are and were used for.
pub async fn statistics(
    db: &impl ConnectionTrait,
    organization: OrganizationId,
    now: Timestamp,
) -> Result<KeyStatistics, StoreError> {
    let expired: SimpleExpr = Expr::case(Expr::col(Column::ExpireTimeUs).lte(now.micros()), 1).finally(0).into();
    let select = row::Entity::find()
        .select_only()
        .column(Column::Status)
        .column_as(Column::Id.count(), "keys")
        .expr_as(expired.sum().cast_as("bigint"), "expired")
        .expr_as(Expr::col(Column::RequestCount).sum().cast_as("bigint"), "requests")
        .column_as(Column::LastUsedTimeUs.max(), "last_used")
        .filter(Column::OrganizationId.eq(organization.to_string()))
        .group_by(Column::Status);
    let mut statistics = KeyStatistics::default();
    for found in db.query_all(select.as_query()).await? {
        let count = |name: &str| found.try_get::<i64>("", name).map(|count| u64::try_from(count).unwrap_or(0));
        let (keys, expired) = (count("keys")?, count("expired")?);
        let status: String = found.try_get("", "status")?;
        match StoredStatus::from_stored(&status) {
            Some(StoredStatus::Revoked) => statistics.revoked += keys,
            Some(StoredStatus::Disabled) => statistics.disabled += keys,
            Some(StoredStatus::Active) => {
                statistics.expired += expired;
                statistics.active += keys.saturating_sub(expired);
            }
            None => return Err(StoreError::Corrupt(format!("a status of organization {organization}"))),
        }
        statistics.requests += found.try_get::<Option<i64>>("", "requests")?.unwrap_or(0);
        let last_used = found.try_get::<Option<i64>>("", "last_used")?.map(Timestamp::from_micros);
        statistics.last_used_time = statistics.last_used_time.max(last_used);
    }
    Ok(statistics)
}

/// How many keys of `system` hold every permission, are usable now and never expire: the ones that keep the
/// operator from being locked out.
pub async fn count_admins(db: &impl ConnectionTrait) -> Result<usize, StoreError> {
    let select = in_reach(Reach::Only(OrganizationId::SYSTEM))
        .filter(Column::Status.eq(StoredStatus::Active.as_str()))
        .filter(Column::ExpireTimeUs.is_null());
    let found = db.query_all(select.as_query()).await?;
    let keys: Vec<ApiKey> = rows::readable::<row::Model, ApiKey>(&found);
    Ok(keys.iter().filter(|key| is_admin(&key.scopes)).count())
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
