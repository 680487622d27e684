//! Keys that no digest leads to yet: those that came with a hash which takes long, and those that came without any.
//! Few against the rest, they stand in partial indexes of their own. Must not compare a secret with anything.

use std::collections::BTreeSet;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, Select,
    sea_query::{Expr, ExprTrait as _, Func, Query},
};

use sha2::{Digest as _, Sha256};

use super::{
    StoreError, api_keys, entity::api_key as row, entity::api_key::Column, entity::import, error::of_write,
    imports::ImportKind,
};
use crate::domain::{
    audit::encode_hash,
    digest::Digest,
    ids::{KeyId, OrganizationId},
    import::{Scheme, SlowHash, SlowScheme},
    key::StoredStatus,
    permission::Reach,
    time::Timestamp,
};

/// The predicate of the index `api_keys_by_scheme`, in its own words, or no database would know that it serves.
const WITHOUT_DIGEST: &str = "scheme <> 'sha256'";

/// A key that a presented secret may be the secret of.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub id: KeyId,
    pub organization_id: OrganizationId,
    /// `None` where there is nothing to compare a secret with.
    pub hash: Option<SlowHash>,
    /// Whether it was disabled because somebody presented it without a hash.
    pub was_presented: bool,
}

/// Candidates in the order of their ids, as many as were asked for or all that there are.
#[derive(Debug)]
pub struct Page {
    pub candidates: Vec<Candidate>,
    /// Where there are more: the last one of this page.
    pub more_after: Option<KeyId>,
}

/// Stands in the place of the hash of a key without one, once it was presented.
const PRESENTED: &str = "presented";

/// What stays in the place of a slow hash that gave way to a digest: enough to tell it from another one.
#[must_use]
pub fn mark_of(hash: &SlowHash) -> String {
    let hash: [u8; 32] = Sha256::digest(hash.expose()).into();
    format!("sha256:{}", encode_hash(&hash))
}

/// What is known of all such keys together: what a search has to ask, and that of a secret no more leaves the process
/// than what is public of somebody's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    pub exist: bool,
    /// The lengths of their look-up parts, in characters.
    pub look_up_lengths: BTreeSet<usize>,
    /// The lengths of the prefixes of those without a look-up part, in characters; 0 for an unknown one.
    pub prefix_lengths: BTreeSet<usize>,
    /// A number that is another one once more keys were imported, from anywhere.
    pub imports: i64,
}

/// By the moments at which imports of keys went on, since their counts begin again with each pass. The remainder of
/// each, so that no number of them overflows.
const IMPORTS: &str = "CAST(COALESCE(SUM(update_time_us % 1000000007), 0) AS bigint)";

/// The imports that bring keys in; what the others bring makes no candidate.
const KINDS_OF_KEYS: [ImportKind; 2] = [ImportKind::Keys, ImportKind::Calls];

/// The outline of these keys. Reads all of them, so ask rarely.
pub async fn find_outline(db: &impl ConnectionTrait) -> Result<Outline, StoreError> {
    let length = |column: Column| Func::char_length(Expr::col(column)).cast_as("bigint");
    let select = Query::select()
        .distinct()
        .expr_as(length(Column::LookUpId), "look_up")
        .expr_as(length(Column::Prefix), "prefix")
        .from(row::Entity)
        .and_where(Expr::cust(WITHOUT_DIGEST))
        .to_owned();
    let imports = Query::select()
        .expr_as(Expr::cust(IMPORTS), "imports")
        .from(import::Entity)
        .and_where(Expr::col(import::Column::Kind).is_in(KINDS_OF_KEYS.map(ImportKind::as_str)))
        .to_owned();
    let mut outline = Outline::default();
    // First, so that what comes in between the two is noticed later.
    if let Some(found) = db.query_one(&imports).await? {
        outline.imports = found.try_get("", "imports")?;
    }
    for found in db.query_all(&select).await? {
        outline.exist = true;
        let length = |length: i64| usize::try_from(length).unwrap_or(0);
        match found.try_get::<Option<i64>>("", "look_up")? {
            Some(look_up) => outline.look_up_lengths.insert(length(look_up)),
            None => outline.prefix_lengths.insert(length(found.try_get("", "prefix")?)),
        };
    }
    Ok(outline)
}

/// The key with this id, if it is such a one and exists for the caller.
pub async fn find(db: &impl ConnectionTrait, reach: Reach, id: KeyId) -> Result<Option<Candidate>, StoreError> {
    let select = api_keys::in_reach(reach).filter(Column::Id.eq(id.to_string())).filter(Expr::cust(WITHOUT_DIGEST));
    Ok(read(db, select).await?.iter().find_map(Row::candidate))
}

/// Keys whose look-up part is one of these beginnings of a secret: up to `limit` of those after the one with this id.
pub async fn list_by_look_up(
    db: &impl ConnectionTrait,
    reach: Reach,
    beginnings: &[&str],
    after: Option<KeyId>,
    limit: usize,
) -> Result<Page, StoreError> {
    let select = api_keys::in_reach(reach).filter(Column::LookUpId.is_in(beginnings.iter().copied()));
    page(db, select, after, limit).await
}

/// Keys without a look-up part whose prefix is one of these beginnings of a secret and whose hint is this one or
/// unknown: up to `limit` of those after the one with this id.
pub async fn list_to_scan(
    db: &impl ConnectionTrait,
    reach: Reach,
    beginnings: &[&str],
    hint: &str,
    after: Option<KeyId>,
    limit: usize,
) -> Result<Page, StoreError> {
    let select = api_keys::in_reach(reach)
        .filter(Column::LookUpId.is_null())
        .filter(Column::Prefix.is_in(beginnings.iter().copied()))
        .filter(Column::Hint.is_in(["", hint]));
    page(db, select, after, limit).await
}

/// Those of these keys that have a slow hash.
async fn page(
    db: &impl ConnectionTrait,
    select: Select<row::Entity>,
    after: Option<KeyId>,
    limit: usize,
) -> Result<Page, StoreError> {
    let mut select = select
        .filter(Expr::cust(WITHOUT_DIGEST))
        .filter(Column::Scheme.ne(Scheme::Missing.as_str()))
        .order_by_asc(Column::Id)
        .limit(u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1));
    if let Some(after) = after {
        select = select.filter(Column::Id.gt(after.to_string()));
    }
    let rows = read(db, select).await?;
    let is_more = rows.len() > limit;
    let rows = || rows.iter().take(limit);
    // A row that cannot be read must not look like the end.
    let last = rows().rev().find_map(|row| KeyId::parse(&row.id).ok());
    Ok(Page { candidates: rows().filter_map(Row::candidate).collect(), more_after: last.filter(|_| is_more) })
}

/// What is read of a key.
struct Row {
    id: String,
    organization_id: String,
    scheme: String,
    stored_hash: Option<String>,
}

async fn read(db: &impl ConnectionTrait, select: Select<row::Entity>) -> Result<Vec<Row>, StoreError> {
    let columns = [Column::Id, Column::OrganizationId, Column::Scheme, Column::StoredHash];
    let select = select.select_only().columns(columns);
    let mut rows = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        rows.push(Row {
            id: found.try_get("", "id")?,
            organization_id: found.try_get("", "organization_id")?,
            scheme: found.try_get("", "scheme")?,
            stored_hash: found.try_get("", "stored_hash")?,
        });
    }
    Ok(rows)
}

impl Row {
    /// `None` where it cannot be read: such a row refuses itself and no other.
    fn candidate(&self) -> Option<Candidate> {
        let read = self.parse();
        if let Err(error) = &read {
            tracing::error!(error = %error, "a key cannot be checked because its row cannot be read");
        }
        read.ok()
    }

    fn parse(&self) -> Result<Candidate, StoreError> {
        let corrupt = |column: &str| StoreError::Corrupt(format!("row {:?}, column {column}", self.id));
        let stored = self.stored_hash.as_deref();
        let slow = |scheme| {
            let hash = stored.and_then(|text| SlowHash::parse(scheme, text).ok());
            hash.map(Some).ok_or_else(|| corrupt("stored_hash"))
        };
        Ok(Candidate {
            id: KeyId::parse(&self.id).map_err(|_| corrupt("id"))?,
            organization_id: OrganizationId::parse(&self.organization_id).map_err(|_| corrupt("organization_id"))?,
            hash: match Scheme::from_stored(&self.scheme) {
                Some(Scheme::Bcrypt) => slow(SlowScheme::Bcrypt)?,
                Some(Scheme::Argon2) => slow(SlowScheme::Argon2)?,
                Some(Scheme::Missing) => None,
                Some(Scheme::Sha256) | None => return Err(corrupt("scheme")),
            },
            was_presented: stored == Some(PRESENTED),
        })
    }
}

/// Puts a digest in the place of a slow hash, and beside it what stays of a secret that reads as a digest itself
/// (`domain::import::decoded_digest`); says whether that hash still stood there.
pub async fn update_to_digest(
    db: &impl ConnectionTrait,
    id: KeyId,
    hash: &SlowHash,
    digest: &Digest,
    decoded_digest: Option<&Digest>,
) -> Result<bool, StoreError> {
    let changes = row::ActiveModel {
        digest: Set(Some(digest.as_bytes().to_vec())),
        scheme: Set(Scheme::Sha256.as_str().to_owned()),
        stored_hash: Set(Some(mark_of(hash))),
        decoded_digest: Set(decoded_digest.map(|digest| digest.as_bytes().to_vec())),
        ..Default::default()
    };
    let result = row::Entity::update_many()
        .set(changes)
        .filter(Column::Id.eq(id.to_string()))
        .filter(Column::StoredHash.eq(hash.expose()))
        .exec(db)
        .await
        .map_err(of_write)?;
    Ok(result.rows_affected > 0)
}

/// Disables a key that nothing can be compared with; says whether it was active.
pub async fn update_disabled(db: &impl ConnectionTrait, id: KeyId, now: Timestamp) -> Result<bool, StoreError> {
    let result = row::Entity::update_many()
        .col_expr(Column::Status, Expr::val(StoredStatus::Disabled.as_str()))
        .col_expr(Column::StoredHash, Expr::val(PRESENTED))
        .col_expr(Column::UpdateTimeUs, Expr::val(now.micros()))
        .col_expr(Column::Etag, Expr::col(Column::Etag).add(1))
        .filter(Column::Id.eq(id.to_string()))
        .filter(Column::Scheme.eq(Scheme::Missing.as_str()))
        .filter(Column::Status.eq(StoredStatus::Active.as_str()))
        .exec(db)
        .await
        .map_err(of_write)?;
    Ok(result.rows_affected > 0)
}
