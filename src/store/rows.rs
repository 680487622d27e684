//! From row to domain and back: what the text in JSON columns and closed words means.
//! Invariant: a row that cannot be read refuses itself and no other. Lists leave it out and log its id; a look-up of
//! it says `Corrupt`, which is "we do not know", never "there is no such key".

use std::{collections::BTreeMap, iter};

use sea_orm::{DbErr, FromQueryResult, QueryResult, TryGetable};
use serde::{Deserialize, Serialize};

use super::{StoreError, entity};
use crate::domain::{
    address,
    audit::{AuditRecord, SealedEvent},
    ids::{KeyId, OrganizationId, RecordId},
    key::{ApiKey, Environment, Revocation, RevocationReason, StoredStatus},
    limits::{Credits, RateLimit, RefillInterval},
    organization::{Organization, Plan},
    page::{Page, Position},
    record::KeyRecord,
    scope::Scope,
    secret::SecretPrefix,
    time::Timestamp,
};

/// A rate limit as it stands in a JSON column.
#[derive(Serialize, Deserialize)]
struct StoredRateLimit {
    name: String,
    limit: i64,
    window_us: u64,
    #[serde(default)]
    shadow: bool,
}

/// These in pieces for a statement each, of `most` (a power of two) or of lower powers of two: so a connection prepares
/// a handful of statements, and not one for every number of rows.
pub(super) fn in_powers_of_two<T>(mut rest: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    iter::from_fn(move || {
        let size = most.min(1 << rest.len().checked_ilog2()?);
        let (piece, after) = rest.split_at(size);
        rest = after;
        Some(piece)
    })
}

/// Reads the rows that can be read. The others are logged by id and left out.
pub(super) fn readable<M, T>(rows: &[QueryResult]) -> Vec<T>
where
    M: FromQueryResult,
    T: TryFrom<M, Error = StoreError>,
{
    rows.iter()
        .filter_map(|row| match read::<M, T>(row) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(error = %error, "a row was left out because it cannot be read");
                None
            }
        })
        .collect()
}

/// Reads a page from up to `size + 1` rows; the one too many tells that there is a next page, which begins after the
/// last row of this one, be that readable or not.
pub(super) fn page<M, T>(
    mut found: Vec<QueryResult>,
    size: u64,
    position: impl Fn(&QueryResult) -> Result<Position, DbErr>,
) -> Result<Page<T>, StoreError>
where
    M: FromQueryResult,
    T: TryFrom<M, Error = StoreError>,
{
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let more = found.len() > size;
    found.truncate(size);
    let last = found.last().filter(|_| more);
    let next = last.map(position).transpose()?;
    Ok(Page { rows: readable(&found), next })
}

/// The position of a row in a list that goes by time of creation.
pub(super) fn by_creation(row: &QueryResult) -> Result<Position, DbErr> {
    Ok(Position { sort: row.try_get("", "create_time_us")?, id: row.try_get("", "id")? })
}

/// Reads one row.
pub(super) fn read<M, T>(row: &QueryResult) -> Result<T, StoreError>
where
    M: FromQueryResult,
    T: TryFrom<M, Error = StoreError>,
{
    read_at(row, "")
}

/// Reads one row of a join, whose columns carry this prefix.
pub(super) fn read_at<M, T>(row: &QueryResult, prefix: &str) -> Result<T, StoreError>
where
    M: FromQueryResult,
    T: TryFrom<M, Error = StoreError>,
{
    let id: String = row.try_get(prefix, "id").unwrap_or_default();
    let model = M::from_query_result(row, prefix).map_err(|_| corrupt(&id, "types"))?;
    T::try_from(model)
}

impl TryFrom<entity::api_key::Model> for ApiKey {
    type Error = StoreError;

    fn try_from(row: entity::api_key::Model) -> Result<Self, StoreError> {
        let id = row.id.as_str();
        let refill_interval = match row.credits_refill_interval.as_str() {
            "" => None,
            word => Some(RefillInterval::from_stored(word).ok_or_else(|| corrupt(id, "credits_refill_interval"))?),
        };
        let credits = row
            .credits_remaining
            .map(|remaining| Credits::parse(remaining, row.credits_refill_amount, refill_interval))
            .transpose()
            .map_err(|_| corrupt(id, "credits_remaining"))?;
        Ok(Self {
            id: key_id(id, "id", id)?,
            organization_id: OrganizationId::parse(&row.organization_id).map_err(|_| corrupt(id, "organization_id"))?,
            environment: Environment::from_stored(&row.environment).ok_or_else(|| corrupt(id, "environment"))?,
            stored_status: StoredStatus::from_stored(&row.status).ok_or_else(|| corrupt(id, "status"))?,
            scopes: list(id, "scopes", &row.scopes, |text| Scope::parse(text).ok())?,
            metadata: json(id, "metadata", &row.metadata)?,
            allowed_cidrs: list(id, "allowed_cidrs", &row.allowed_cidrs, |text| address::parse_cidr(text).ok())?,
            rate_limits: rate_limits(id, &row.rate_limits)?,
            credits,
            refill_time: row.credits_refill_time_us.map(Timestamp::from_micros),
            create_time: Timestamp::from_micros(row.create_time_us),
            update_time: Timestamp::from_micros(row.update_time_us),
            expire_time: row.expire_time_us.map(Timestamp::from_micros),
            last_used_time: row.last_used_time_us.map(Timestamp::from_micros),
            request_count: row.request_count,
            revocation: revocation(&row),
            rotated_from_id: row.rotated_from_id.map(|text| key_id(id, "rotated_from_id", &text)).transpose()?,
            successor_id: row.successor_id.map(|text| key_id(id, "successor_id", &text)).transpose()?,
            counter_id: key_id(id, "counter_id", &row.counter_id)?,
            etag: row.etag,
            name: row.name,
            prefix: row.prefix,
            hint: row.hint,
            owner_id: row.owner_id,
            created_by: row.created_by,
        })
    }
}

/// Reads a record from the columns of `key_records.rs`, by their places there.
pub(super) fn key_record(row: &QueryResult) -> Result<KeyRecord, StoreError> {
    let id: String = at(row, 1, "")?;
    let id = id.as_str();
    let text = |place: usize| at::<String>(row, place, id);
    let own = key_id(id, "id", id)?;
    let successor = at::<Option<String>>(row, 4, id)?;
    let successor = successor.map(|text| key_id(id, "successor_id", &text)).transpose()?;
    let credits_id = match at::<Option<i64>>(row, 5, id)? {
        None => None,
        Some(0..) => Some(successor.unwrap_or(own)),
        Some(_) => return Err(corrupt(id, "credits_remaining")),
    };
    let interval = text(15)?;
    if !interval.is_empty() && RefillInterval::from_stored(&interval).is_none() {
        return Err(corrupt(id, "credits_refill_interval"));
    }
    let metadata: BTreeMap<Box<str>, Box<str>> = json(id, "metadata", &text(12)?)?;
    let cidr = |text: &str| address::parse_cidr(text).ok();
    Ok(KeyRecord {
        id: own,
        organization_id: OrganizationId::parse(&text(2)?).map_err(|_| corrupt(id, "organization_id"))?,
        counter_id: key_id(id, "counter_id", &text(3)?)?,
        credits_id,
        environment: Environment::from_stored(&text(6)?).ok_or_else(|| corrupt(id, "environment"))?,
        stored_status: StoredStatus::from_stored(&text(7)?).ok_or_else(|| corrupt(id, "status"))?,
        expire_time: at::<Option<i64>>(row, 8, id)?.map(Timestamp::from_micros),
        name: text(9)?.into(),
        owner_id: text(10)?.into(),
        scopes: list(id, "scopes", &text(11)?, |text| Scope::parse(text).ok())?.into(),
        metadata: metadata.into_iter().collect(),
        allowed_cidrs: list(id, "allowed_cidrs", &text(13)?, cidr)?.into(),
        rate_limits: rate_limits(id, &text(14)?)?.into(),
        import_id: at::<Option<String>>(row, 16, id)?.and_then(|id| RecordId::parse(&id).ok()).map(Box::new),
    })
}

fn at<T: TryGetable>(row: &QueryResult, place: usize, id: &str) -> Result<T, StoreError> {
    row.try_get_by_index(place).map_err(|_| corrupt(id, "types"))
}

/// What is known of the end of a revoked key. An operator who sets the status alone, in SQL, leaves no time.
fn revocation(row: &entity::api_key::Model) -> Option<Revocation> {
    (row.status == StoredStatus::Revoked.as_str()).then(|| Revocation {
        time: Timestamp::from_micros(row.revoke_time_us.unwrap_or(row.update_time_us)),
        by: if row.revoke_time_us.is_some() { row.revoked_by.clone() } else { "sql".to_owned() },
        reason: RevocationReason::from_stored(&row.revocation_reason).unwrap_or(RevocationReason::Unspecified),
        note: row.revocation_note.clone(),
    })
}

impl TryFrom<entity::organization::Model> for Organization {
    type Error = StoreError;

    fn try_from(row: entity::organization::Model) -> Result<Self, StoreError> {
        let id = row.id.as_str();
        Ok(Self {
            id: OrganizationId::parse(id).map_err(|_| corrupt(id, "id"))?,
            plan: Plan::from_stored(&row.plan).ok_or_else(|| corrupt(id, "plan"))?,
            rate_limits: rate_limits(id, &row.rate_limits)?,
            secret_prefix: SecretPrefix::parse(&row.secret_prefix).map_err(|_| corrupt(id, "secret_prefix"))?,
            metadata: json(id, "metadata", &row.metadata)?,
            create_time: Timestamp::from_micros(row.create_time_us),
            update_time: Timestamp::from_micros(row.update_time_us),
            active: row.active,
            max_keys: row.max_keys,
            monthly_quota: row.monthly_quota,
            etag: row.etag,
            name: row.name,
            slug: row.slug,
            email: row.email,
        })
    }
}

impl TryFrom<entity::audit_event::Model> for SealedEvent {
    type Error = StoreError;

    fn try_from(row: entity::audit_event::Model) -> Result<Self, StoreError> {
        let record = AuditRecord {
            sequence: row.sequence.unwrap_or(0),
            id: row.id,
            time_us: row.time_us,
            actor_key_id: row.actor_key_id,
            actor: row.actor,
            action: row.action,
            target_type: row.target_type,
            target_id: row.target_id,
            organization_id: row.organization_id,
            request_id: row.request_id,
            detail: row.detail,
        };
        Ok(Self { record, previous_hash: row.previous_hash, hash: row.hash })
    }
}

/// Rate limits as JSON text.
pub(super) fn encode_rate_limits(limits: &[RateLimit]) -> String {
    let stored: Vec<StoredRateLimit> = limits
        .iter()
        .map(|limit| StoredRateLimit {
            name: limit.name.clone(),
            limit: limit.limit,
            window_us: u64::try_from(limit.window.as_micros()).unwrap_or(u64::MAX),
            shadow: limit.shadow,
        })
        .collect();
    encode_json(&stored)
}

/// A list of things that print as text, as JSON text.
pub(super) fn encode_list<T: ToString>(items: &[T]) -> String {
    encode_json(&items.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// Scopes as JSON text.
pub(super) fn encode_scopes(scopes: &[Scope]) -> String {
    encode_json(&scopes.iter().map(Scope::as_str).collect::<Vec<_>>())
}

/// Any value as JSON text.
pub(super) fn encode_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn corrupt(id: &str, column: &str) -> StoreError {
    StoreError::Corrupt(format!("row {id:?}, column {column}"))
}

fn key_id(row: &str, column: &str, text: &str) -> Result<KeyId, StoreError> {
    KeyId::parse(text).map_err(|_| corrupt(row, column))
}

fn json<T: for<'a> Deserialize<'a>>(row: &str, column: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| corrupt(row, column))
}

fn list<T>(row: &str, column: &str, text: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, StoreError> {
    let texts: Vec<String> = json(row, column, text)?;
    texts.iter().map(|text| parse(text).ok_or_else(|| corrupt(row, column))).collect()
}

fn rate_limits(row: &str, text: &str) -> Result<Vec<RateLimit>, StoreError> {
    let stored: Vec<StoredRateLimit> = json(row, "rate_limits", text)?;
    stored
        .into_iter()
        .map(|limit| {
            let window = std::time::Duration::from_micros(limit.window_us);
            RateLimit::parse(&limit.name, limit.limit, window, limit.shadow).map_err(|_| corrupt(row, "rate_limits"))
        })
        .collect()
}
