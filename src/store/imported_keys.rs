//! Keys that came from elsewhere: writing many at once, and telling what has become of them.
//! Invariant: a row that some other key stands in the way of (by id, by digest, or by its row in the source) is passed
//! over and not written; the answer names those that were.

mod held;

use std::collections::HashSet;

use sea_orm::{
    ActiveModelTrait as _,
    ActiveValue::{self, Set},
    ColumnTrait as _, ConnectionTrait, EntityTrait, Iterable as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    Select, Value,
    sea_query::{Expr, ExprTrait as _, InsertStatement, OnConflict, Query, SimpleExpr},
};

use super::{
    StoreError, api_keys,
    entity::{
        api_key::{self as row, Column},
        import::{Column as ImportColumn, Entity as ImportEntity},
    },
    row_arrays::{self, ArrayColumn},
    rows::in_powers_of_two,
};
use crate::domain::{
    digest::Digest,
    ids::{KeyId, RecordId},
    import::{Material, Scheme},
    key::{ApiKey, StoredStatus},
    time::Timestamp,
};

use self::held::all;
pub use self::held::{
    ETAG_PLANNED, Held, HeldSettings, list_by_decoded_digests, list_by_digests, list_by_ids, list_by_source_ids,
    list_by_stored_hashes, prefer_indexes,
};

/// Keys per statement, a power of two: 39 parameters each, below SQLite's bound of 32,766.
const KEYS_PER_STATEMENT: usize = 512;
/// Keys per statement where they go as arrays.
const KEYS_IN_ARRAYS: usize = 2000;

/// A key to be written, with all that stands beside it.
pub struct NewImportedKey {
    pub key: ApiKey,
    pub material: Material,
    /// See `ImportedKey::decoded_digest`.
    pub decoded_digest: Option<Digest>,
    pub look_up_id: Option<String>,
    pub import_id: RecordId,
    /// `None` where the source did not say.
    pub source_id: Option<String>,
}

/// How many keys of an import stand under a scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemeCount {
    pub import_id: RecordId,
    pub scheme: Scheme,
    pub keys: i64,
    /// Of them, those that were used here.
    pub seen: i64,
    /// Of them, those that were not and still can be.
    pub unseen: i64,
    /// How often, beyond what the source had counted.
    pub uses: i64,
    /// The latest use of any of them, by the source's account too.
    pub last_used_time: Option<Timestamp>,
}

/// Writes those of these keys that nothing stands in the way of; gives their ids.
pub async fn insert_new(db: &impl ConnectionTrait, keys: &[NewImportedKey]) -> Result<HashSet<KeyId>, StoreError> {
    let models: Vec<row::ActiveModel> = keys.iter().map(new_row).collect();
    if models.is_empty() {
        return Ok(HashSet::new());
    }
    let columns = told(&models);
    let mut created = HashSet::with_capacity(keys.len());
    if row_arrays::are_taken(db) {
        for chunk in models.chunks(KEYS_IN_ARRAYS) {
            let mut insert = Query::insert().into_table(row::Entity).columns(columns.iter().copied()).to_owned();
            insert.select_from(row_arrays::rows_of(as_arrays(chunk, &columns))).map_err(of_building)?;
            insert_one(db, insert, &mut created).await?;
        }
        return Ok(created);
    }
    for chunk in in_powers_of_two(&models, KEYS_PER_STATEMENT) {
        let mut insert = Query::insert().into_table(row::Entity).columns(columns.iter().copied()).to_owned();
        for model in chunk {
            let values = columns.iter().filter_map(|column| value_of(model, *column)).map(Expr::val);
            insert.values(values).map_err(of_building)?;
        }
        insert_one(db, insert, &mut created).await?;
    }
    Ok(created)
}

/// The columns in which some of these rows say more than what stands there by itself.
fn told(models: &[row::ActiveModel]) -> Vec<Column> {
    let says = |column: Column, model: &row::ActiveModel| match value_of(model, column) {
        None | Some(Value::String(None) | Value::BigInt(None) | Value::Bytes(None)) => false,
        Some(Value::String(Some(text))) => !text.is_empty() || !is_by_itself(column),
        Some(Value::BigInt(Some(0))) => !is_by_itself(column),
        Some(_) => true,
    };
    Column::iter().filter(|column| models.iter().any(|model| says(*column, model))).collect()
}

/// Whether a column is empty or 0 where nothing is said.
const fn is_by_itself(column: Column) -> bool {
    use Column::{
        CreditsRefillAmount, CreditsRefillInterval, ImportRequestCount, OwnerId, RequestCount, RevocationNote,
        RevocationReason, RevokedBy,
    };
    matches!(column, OwnerId | CreditsRefillAmount | CreditsRefillInterval | RequestCount | ImportRequestCount)
        || matches!(column, RevokedBy | RevocationReason | RevocationNote)
}

async fn insert_one(
    db: &impl ConnectionTrait,
    mut insert: InsertStatement,
    created: &mut HashSet<KeyId>,
) -> Result<(), StoreError> {
    insert.on_conflict(OnConflict::new().do_nothing().to_owned()).returning_col(Column::Id);
    for found in db.query_all(&insert).await? {
        let id: String = found.try_get_by_index(0)?;
        created.extend(KeyId::parse(&id));
    }
    Ok(())
}

fn of_building(error: impl std::fmt::Display) -> sea_orm::DbErr {
    sea_orm::DbErr::Custom(error.to_string())
}

fn value_of(model: &row::ActiveModel, column: Column) -> Option<Value> {
    match model.get(column) {
        ActiveValue::Set(value) | ActiveValue::Unchanged(value) => Some(value),
        ActiveValue::NotSet => None,
    }
}

fn as_arrays(models: &[row::ActiveModel], columns: &[Column]) -> Vec<ArrayColumn> {
    let of_column = |column: &Column| {
        let values = models.iter().filter_map(|model| value_of(model, *column));
        let mut array = ArrayColumn::like(&value_of(models.first()?, *column)?);
        values.for_each(|value| array.push(&value));
        Some(array)
    };
    columns.iter().filter_map(of_column).collect()
}

fn new_row(new: &NewImportedKey) -> row::ActiveModel {
    let (key, revocation) = (&new.key, new.key.revocation.as_ref());
    let mut model = api_keys::new_row(key, new.material.digest(), None);
    model.scheme = Set(new.material.scheme().as_str().to_owned());
    model.stored_hash = Set(match &new.material {
        Material::Slow(hash) => Some(hash.expose().to_owned()),
        Material::Digest(_) | Material::Missing => None,
    });
    model.decoded_digest = Set(new.decoded_digest.map(|digest| digest.as_bytes().to_vec()));
    model.look_up_id = Set(new.look_up_id.clone());
    model.import_id = Set(Some(new.import_id.to_string()));
    model.source_id = Set(new.source_id.clone());
    model.last_used_time_us = Set(key.last_used_time.map(Timestamp::micros));
    model.request_count = Set(key.request_count);
    model.import_request_count = Set(key.request_count);
    model.revoke_time_us = Set(revocation.map(|end| end.time.micros()));
    model.revoked_by = Set(revocation.map_or_else(String::new, |end| end.by.clone()));
    model.revocation_reason = Set(revocation.map_or_else(String::new, |end| end.reason.as_str().to_owned()));
    model.revocation_note = Set(revocation.map_or_else(String::new, |end| end.note.clone()));
    model
}

/// Keys of an import that nobody has used here, whatever the source had counted, by owner and id: up to `limit` after
/// the last one of the page before. Keys that are revoked or expired at `now` are not among them.
pub async fn list_unseen(
    db: &impl ConnectionTrait,
    import_id: RecordId,
    now: Timestamp,
    after: Option<(String, KeyId)>,
    limit: u64,
) -> Result<Vec<Held>, StoreError> {
    let select = row::Entity::find().filter(Column::ImportId.eq(import_id.to_string())).filter(is_unseen(now));
    by_owner(db, select, after, limit).await
}

/// Whether nobody has used a key here who still may: one that is revoked or expired cannot be used any more.
fn is_unseen(now: Timestamp) -> SimpleExpr {
    let own = |column: Column| Expr::col((row::Entity, column));
    let may_last = own(Column::ExpireTimeUs).is_null().or(own(Column::ExpireTimeUs).gt(now.micros()));
    own(Column::RequestCount)
        .lte(own(Column::ImportRequestCount))
        .and(own(Column::Status).ne(StoredStatus::Revoked.as_str()))
        .and(may_last)
}

/// Keys without anything that a secret could be compared with, as [`list_unseen`]; revoked ones too.
pub async fn list_missing(
    db: &impl ConnectionTrait,
    import_id: RecordId,
    after: Option<(String, KeyId)>,
    limit: u64,
) -> Result<Vec<Held>, StoreError> {
    let select = row::Entity::find()
        .filter(Column::ImportId.eq(import_id.to_string()))
        .filter(Column::Scheme.eq(Scheme::Missing.as_str()));
    by_owner(db, select, after, limit).await
}

async fn by_owner(
    db: &impl ConnectionTrait,
    mut select: Select<row::Entity>,
    after: Option<(String, KeyId)>,
    limit: u64,
) -> Result<Vec<Held>, StoreError> {
    if let Some((owner, id)) = after {
        let place = Expr::tuple([Expr::col(Column::OwnerId), Expr::col(Column::Id)]);
        select = select.filter(place.gt(Expr::tuple([owner.into(), id.to_string().into()])));
    }
    all(db, select.order_by_asc(Column::OwnerId).order_by_asc(Column::Id).limit(limit)).await
}

/// How many keys of each import stand under each scheme, and how many of them have been used since, or not and still can
/// be at `now`.
pub async fn count_by_scheme(db: &impl ConnectionTrait, now: Timestamp) -> Result<Vec<SchemeCount>, StoreError> {
    let used = Expr::col((row::Entity, Column::LastUsedTimeUs));
    let count = Expr::col((row::Entity, Column::RequestCount));
    let before = Expr::col((row::Entity, Column::ImportRequestCount));
    let seen: SimpleExpr = Expr::case(count.clone().gt(before.clone()), 1).finally(0).into();
    let unseen: SimpleExpr = Expr::case(is_unseen(now), 1).finally(0).into();
    let select = Query::select()
        .expr_as(Expr::col((row::Entity, Column::ImportId)), "import_id")
        .expr_as(Expr::col((row::Entity, Column::Scheme)), "scheme")
        .expr_as(Expr::col((row::Entity, Column::Id)).count(), "keys")
        .expr_as(seen.sum().cast_as("bigint"), "seen")
        .expr_as(unseen.sum().cast_as("bigint"), "unseen")
        .expr_as(count.sub(before).sum().cast_as("bigint"), "uses")
        .expr_as(used.max(), "last_used")
        .from(row::Entity)
        .inner_join(ImportEntity, Expr::col((ImportEntity, ImportColumn::Id)).equals((row::Entity, Column::ImportId)))
        .group_by_col((row::Entity, Column::ImportId))
        .group_by_col((row::Entity, Column::Scheme))
        .to_owned();
    let mut counts = Vec::new();
    for found in db.query_all(&select).await? {
        let (import_id, scheme): (String, String) = (found.try_get("", "import_id")?, found.try_get("", "scheme")?);
        let (Ok(import_id), Some(scheme)) = (RecordId::parse(&import_id), Scheme::from_stored(&scheme)) else {
            continue;
        };
        let last_used: Option<i64> = found.try_get("", "last_used")?;
        counts.push(SchemeCount {
            import_id,
            scheme,
            keys: found.try_get("", "keys")?,
            seen: found.try_get::<Option<i64>>("", "seen")?.unwrap_or(0),
            unseen: found.try_get::<Option<i64>>("", "unseen")?.unwrap_or(0),
            uses: found.try_get::<Option<i64>>("", "uses")?.unwrap_or(0),
            last_used_time: last_used.map(Timestamp::from_micros),
        });
    }
    Ok(counts)
}
