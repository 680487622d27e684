//! Keys that are here already, found by what rows of a source may meet them by. Must not write.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryResult, QuerySelect as _, QueryTrait as _,
    Select, Value,
    sea_query::{Expr, ExprTrait as _, SimpleExpr},
};

use crate::{
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId, RecordId},
        import::{ImportedKey, Scheme},
        key::StoredStatus,
        time::Timestamp,
    },
    store::{
        StoreError, engine,
        entity::api_key::{self as row, Column},
        row_arrays::{self, ArrayColumn},
        rows::{self, in_powers_of_two},
    },
};

/// Values per look-up, a power of two.
const VALUES_PER_STATEMENT: usize = 1024;
/// The same where they are one array.
const VALUES_IN_ARRAY: usize = 4096;
/// The etag of a key that is not here, and only would be.
pub const ETAG_PLANNED: i64 = 0;

/// What is known of a key that is here already.
#[derive(Debug, Clone)]
pub struct Held {
    pub id: KeyId,
    pub organization_id: OrganizationId,
    pub digest: Option<Digest>,
    /// See `ImportedKey::decoded_digest`.
    pub decoded_digest: Option<Digest>,
    pub scheme: Scheme,
    pub stored_hash: Option<String>,
    pub status: StoredStatus,
    pub expire_time: Option<Timestamp>,
    pub name: String,
    pub owner_id: String,
    pub import_id: Option<RecordId>,
    pub source_id: Option<String>,
    pub last_used_time: Option<Timestamp>,
    pub request_count: i64,
    pub settings: HeldSettings,
    /// 1 as long as nobody has changed the key since it came; [`ETAG_PLANNED`] where it has not.
    pub etag: i64,
}

/// What a key may, as its row says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeldSettings {
    pub scopes: String,
    pub allowed_cidrs: String,
    pub rate_limits: String,
    pub credits_remaining: Option<i64>,
    pub credits_refill_amount: i64,
    pub credits_refill_interval: String,
}

impl HeldSettings {
    /// As the row of such a key would say it.
    #[must_use]
    pub fn of(key: &ImportedKey) -> Self {
        let refill = key.credits.and_then(|credits| credits.refill);
        Self {
            scopes: rows::encode_scopes(&key.scopes),
            allowed_cidrs: rows::encode_list(&key.allowed_cidrs),
            rate_limits: rows::encode_rate_limits(&key.rate_limits),
            credits_remaining: key.credits.map(|credits| credits.remaining),
            credits_refill_amount: refill.map_or(0, |refill| refill.amount),
            credits_refill_interval: refill.map_or_else(String::new, |refill| refill.interval.as_str().to_owned()),
        }
    }

    /// In which of them a key that is here is not what a row says. Credits that were spent here are no difference.
    #[must_use]
    pub fn differing(&self, row: &Self) -> Vec<&'static str> {
        let same_refill = self.credits_refill_amount == row.credits_refill_amount
            && self.credits_refill_interval == row.credits_refill_interval;
        let are_fewer = row.credits_refill_amount != 0 || self.credits_remaining <= row.credits_remaining;
        let same_count = self.credits_remaining.is_some() == row.credits_remaining.is_some() && are_fewer;
        let differs = [
            (self.scopes != row.scopes, "scopes"),
            (self.allowed_cidrs != row.allowed_cidrs, "networks"),
            (self.rate_limits != row.rate_limits, "limits"),
            (!same_count || !same_refill, "credits"),
        ];
        differs.into_iter().filter(|(differs, _)| *differs).map(|(_, name)| name).collect()
    }
}

/// Until this transaction ends, these look-ups go by their indexes, whatever the database thinks that costs.
pub async fn prefer_indexes(db: &impl ConnectionTrait) -> Result<(), StoreError> {
    Ok(engine::prefer_indexes(db).await?)
}

/// The keys with these digests.
pub async fn list_by_digests(db: &impl ConnectionTrait, digests: &[Digest]) -> Result<Vec<Held>, StoreError> {
    let wanted: Vec<Value> = digests.iter().map(|digest| digest.as_bytes().to_vec().into()).collect();
    list_by(db, row::Entity::find(), Column::Digest, &wanted).await
}

/// The keys whose secret, read as a digest, has one of these digests.
pub async fn list_by_decoded_digests(db: &impl ConnectionTrait, digests: &[Digest]) -> Result<Vec<Held>, StoreError> {
    let wanted: Vec<Value> = digests.iter().map(|digest| digest.as_bytes().to_vec().into()).collect();
    // In the words of the index over it.
    let known = row::Entity::find().filter(Column::DecodedDigest.is_not_null());
    // Nearly nowhere is there any such key, and thousands of look-ups would find out each for itself.
    if db.query_one(known.clone().select_only().column(Column::Id).limit(1).as_query()).await?.is_none() {
        return Ok(Vec::new());
    }
    list_by(db, known, Column::DecodedDigest, &wanted).await
}

/// The keys that came from these rows of an import.
pub async fn list_by_source_ids(
    db: &impl ConnectionTrait,
    import_id: RecordId,
    source_ids: &[String],
) -> Result<Vec<Held>, StoreError> {
    let of_import = row::Entity::find().filter(Column::ImportId.eq(import_id.to_string()));
    let wanted: Vec<Value> = source_ids.iter().map(|id| id.as_str().into()).collect();
    list_by(db, of_import, Column::SourceId, &wanted).await
}

/// The keys with these ids.
pub async fn list_by_ids(db: &impl ConnectionTrait, ids: &[KeyId]) -> Result<Vec<Held>, StoreError> {
    let wanted: Vec<Value> = ids.iter().map(|id| id.to_string().into()).collect();
    list_by(db, row::Entity::find(), Column::Id, &wanted).await
}

/// The keys that are known by one of these slow hashes, or by the mark that one left (`slow_keys::mark_of`).
pub async fn list_by_stored_hashes(db: &impl ConnectionTrait, hashes: &[String]) -> Result<Vec<Held>, StoreError> {
    // In the words of the index over it.
    let known = row::Entity::find().filter(Expr::cust("stored_hash IS NOT NULL AND scheme <> 'missing'"));
    let wanted: Vec<Value> = hashes.iter().map(|hash| hash.as_str().into()).collect();
    list_by(db, known, Column::StoredHash, &wanted).await
}

async fn list_by(
    db: &impl ConnectionTrait,
    select: Select<row::Entity>,
    column: Column,
    wanted: &[Value],
) -> Result<Vec<Held>, StoreError> {
    let mut found = Vec::new();
    for wanted in among(db, column, wanted) {
        found.extend(all(db, select.clone().filter(wanted)).await?);
    }
    Ok(found)
}

/// Conditions that a column is one of these values, a statement each. On PostgreSQL they are one array: of a list of
/// parameters the plan is made when the table is small, reads all of it, and is kept while the table grows.
fn among(db: &impl ConnectionTrait, column: Column, wanted: &[Value]) -> Vec<SimpleExpr> {
    if let Some(first) = wanted.first().filter(|_| row_arrays::are_taken(db)) {
        let is_any = |chunk: &[Value]| {
            let mut array = ArrayColumn::like(first);
            for value in chunk {
                array.push(value);
            }
            Expr::col(column).eq(array.any())
        };
        return wanted.chunks(VALUES_IN_ARRAY).map(is_any).collect();
    }
    let is_in = |chunk: &[Value]| Expr::col(column).is_in(chunk.iter().cloned());
    in_powers_of_two(wanted, VALUES_PER_STATEMENT).map(is_in).collect()
}

const COLUMNS: [Column; 21] = [
    Column::Id,
    Column::OrganizationId,
    Column::Digest,
    Column::DecodedDigest,
    Column::Scheme,
    Column::StoredHash,
    Column::Status,
    Column::ExpireTimeUs,
    Column::Name,
    Column::OwnerId,
    Column::ImportId,
    Column::SourceId,
    Column::LastUsedTimeUs,
    Column::RequestCount,
    Column::Etag,
    Column::Scopes,
    Column::AllowedCidrs,
    Column::RateLimits,
    Column::CreditsRemaining,
    Column::CreditsRefillAmount,
    Column::CreditsRefillInterval,
];

pub(super) async fn all(db: &impl ConnectionTrait, select: Select<row::Entity>) -> Result<Vec<Held>, StoreError> {
    let select = select.select_only().columns(COLUMNS);
    db.query_all(select.as_query()).await?.iter().map(held).collect()
}

fn held(row: &QueryResult) -> Result<Held, StoreError> {
    let id: String = row.try_get("", "id")?;
    let corrupt = |column: &str| StoreError::Corrupt(format!("row {id:?}, column {column}"));
    let text = |column: &str| row.try_get::<String>("", column);
    let time = |column: &str| row.try_get::<Option<i64>>("", column).map(|us| us.map(Timestamp::from_micros));
    let digest = |column: &str| row.try_get::<Option<Vec<u8>>>("", column);
    let import_id: Option<String> = row.try_get("", "import_id")?;
    Ok(Held {
        organization_id: OrganizationId::parse(&text("organization_id")?).map_err(|_| corrupt("organization_id"))?,
        digest: digest("digest")?.as_deref().and_then(Digest::from_bytes),
        decoded_digest: digest("decoded_digest")?.as_deref().and_then(Digest::from_bytes),
        scheme: Scheme::from_stored(&text("scheme")?).ok_or_else(|| corrupt("scheme"))?,
        stored_hash: row.try_get("", "stored_hash")?,
        status: StoredStatus::from_stored(&text("status")?).ok_or_else(|| corrupt("status"))?,
        expire_time: time("expire_time_us")?,
        name: text("name")?,
        owner_id: text("owner_id")?,
        import_id: import_id.as_deref().and_then(|id| RecordId::parse(id).ok()),
        source_id: row.try_get("", "source_id")?,
        last_used_time: time("last_used_time_us")?,
        request_count: row.try_get("", "request_count")?,
        settings: HeldSettings {
            scopes: text("scopes")?,
            allowed_cidrs: text("allowed_cidrs")?,
            rate_limits: text("rate_limits")?,
            credits_remaining: row.try_get("", "credits_remaining")?,
            credits_refill_amount: row.try_get("", "credits_refill_amount")?,
            credits_refill_interval: text("credits_refill_interval")?,
        },
        etag: row.try_get("", "etag")?,
        id: KeyId::parse(&id).map_err(|_| corrupt("id"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(remaining: Option<i64>, refill_amount: i64) -> HeldSettings {
        HeldSettings {
            scopes: "[]".to_owned(),
            allowed_cidrs: "[]".to_owned(),
            rate_limits: "[]".to_owned(),
            credits_remaining: remaining,
            credits_refill_amount: refill_amount,
            credits_refill_interval: String::new(),
        }
    }

    #[test]
    fn each_setting_that_differs_is_named() {
        let row = settings(None, 0);
        assert!(row.differing(&row).is_empty());
        let other = || "[\"a\"]".to_owned();
        let scopes = HeldSettings { scopes: other(), ..row.clone() };
        assert_eq!(scopes.differing(&row), ["scopes"]);
        let most = HeldSettings { allowed_cidrs: other(), rate_limits: other(), ..settings(Some(1), 0) };
        assert_eq!(most.differing(&row), ["networks", "limits", "credits"]);
    }

    #[test]
    fn credits_that_were_spent_here_are_no_difference() {
        for (held, row) in [(Some(3), Some(5)), (Some(0), Some(5)), (Some(5), Some(5)), (None, None)] {
            assert!(settings(held, 0).differing(&settings(row, 0)).is_empty(), "{held:?} {row:?}");
        }
        for (held, row) in [(Some(5), Some(3)), (None, Some(3)), (Some(3), None)] {
            assert_eq!(settings(held, 0).differing(&settings(row, 0)), ["credits"], "{held:?} {row:?}");
        }
        assert!(settings(Some(9), 10).differing(&settings(Some(5), 10)).is_empty(), "they were refilled");
        assert_eq!(settings(Some(3), 10).differing(&settings(Some(3), 0)), ["credits"]);
    }
}
