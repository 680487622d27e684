//! Queries that count over `api_keys`: key caps, statistics, and the admin keys that are left.
//! Must not read a key's settings, but to tell whether it is an admin key.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QuerySelect as _, QueryTrait as _,
    sea_query::{Expr, ExprTrait as _, SimpleExpr},
};

use super::{StoreError, api_keys::in_reach, entity::api_key as row, entity::api_key::Column, rows};
use crate::domain::{
    ids::{KeyId, OrganizationId},
    key::{ApiKey, StoredStatus},
    permission::{Reach, is_admin},
    time::Timestamp,
};

/// Organizations per statement, a power of two.
const ORGANIZATIONS_PER_STATEMENT: usize = 1024;

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

/// How many keys of an organization are not revoked: what its key cap counts.
pub async fn count(db: &impl ConnectionTrait, organization: OrganizationId) -> Result<i64, StoreError> {
    Ok(count_each(db, &[organization]).await?.first().map_or(0, |(_, count)| *count))
}

/// The same for several organizations; those without keys are absent.
pub async fn count_each(
    db: &impl ConnectionTrait,
    organizations: &[OrganizationId],
) -> Result<Vec<(OrganizationId, i64)>, StoreError> {
    let mut counts = Vec::new();
    for chunk in rows::in_powers_of_two(organizations, ORGANIZATIONS_PER_STATEMENT) {
        let select = row::Entity::find()
            .select_only()
            .column(Column::OrganizationId)
            .column_as(Column::Id.count(), "keys")
            .filter(Column::OrganizationId.is_in(chunk.iter().map(ToString::to_string)))
            .filter(Column::Status.is_in([StoredStatus::Active.as_str(), StoredStatus::Disabled.as_str()]))
            .group_by(Column::OrganizationId);
        for found in db.query_all(select.as_query()).await? {
            let id: String = found.try_get("", "organization_id")?;
            if let Ok(id) = OrganizationId::parse(&id) {
                counts.push((id, found.try_get("", "keys")?));
            }
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
            // Rows that cannot be read refuse themselves and no other.
            None => tracing::error!(organization_id = %organization, "keys with an unknown status were left out"),
        }
        statistics.requests += found.try_get::<Option<i64>>("", "requests")?.unwrap_or(0);
        let last_used = found.try_get::<Option<i64>>("", "last_used")?.map(Timestamp::from_micros);
        statistics.last_used_time = statistics.last_used_time.max(last_used);
    }
    Ok(statistics)
}

/// How many keys of `system` are among [`list_admins`].
pub async fn count_admins(db: &impl ConnectionTrait) -> Result<usize, StoreError> {
    Ok(list_admins(db).await?.len())
}

/// The keys of `system` that hold every permission, are usable now from anywhere and never expire: the ones that keep
/// the operator from being locked out.
pub async fn list_admins(db: &impl ConnectionTrait) -> Result<Vec<KeyId>, StoreError> {
    let select = in_reach(Reach::Only(OrganizationId::SYSTEM))
        .filter(Column::Status.eq(StoredStatus::Active.as_str()))
        .filter(Column::ExpireTimeUs.is_null())
        .filter(Column::AllowedCidrs.eq("[]"));
    let found = db.query_all(select.as_query()).await?;
    let keys: Vec<ApiKey> = rows::readable::<row::Model, ApiKey>(&found);
    Ok(keys.iter().filter(|key| is_admin(&key.scopes)).map(|key| key.id).collect())
}
