//! Queries over `key_changes`, the change feed that triggers write, and `change_counter`, its revision.
//! Reading only, but for pruning what every follower has long seen.

use sea_orm::{ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _};

use super::{StoreError, entity::change_counter, entity::key_change as row, entity::key_change::Column};
use crate::domain::{digest::Digest, ids::OrganizationId, time::Timestamp};

/// How many changes one read gives.
const CHANGES_MAX: u64 = 1000;

/// One change that can alter a verification.
#[derive(Debug, Clone)]
pub struct Change {
    pub revision: i64,
    pub what: Changed,
}

/// What changed.
#[derive(Debug, Clone)]
pub enum Changed {
    /// The key that caches hold under this digest.
    Key(Digest),
    /// A key without a digest, which no cache holds.
    KeyWithoutDigest,
    Organization(OrganizationId),
    /// A kind of change that this version does not know: whoever caches anything has to drop it all.
    Unknown,
}

/// The revision that the feed has reached.
pub async fn find_revision(db: &impl ConnectionTrait) -> Result<i64, StoreError> {
    let counter = change_counter::Entity::find_by_id(1).one(db).await?;
    counter.map(|row| row.revision).ok_or_else(|| StoreError::Corrupt("change_counter".to_owned()))
}

/// The changes after `revision`, in commit order, at most 1000.
pub async fn list_after(db: &impl ConnectionTrait, revision: i64) -> Result<Vec<Change>, StoreError> {
    let rows = row::Entity::find()
        .filter(Column::Revision.gt(revision))
        .order_by_asc(Column::Revision)
        .limit(CHANGES_MAX)
        .all(db)
        .await?;
    Ok(rows.into_iter().map(|row| Change { revision: row.revision, what: changed(&row) }).collect())
}

fn changed(row: &row::Model) -> Changed {
    match row.kind.as_str() {
        "key" => match row.digest.as_deref() {
            None => Changed::KeyWithoutDigest,
            Some(bytes) => Digest::from_bytes(bytes).map_or(Changed::Unknown, Changed::Key),
        },
        "organization" => OrganizationId::parse(&row.organization_id).map_or(Changed::Unknown, Changed::Organization),
        _ => Changed::Unknown,
    }
}

/// Deletes changes from before `time`; gives their number.
pub async fn delete_before(db: &impl ConnectionTrait, time: Timestamp) -> Result<u64, StoreError> {
    let result = row::Entity::delete_many().filter(Column::TimeUs.lt(time.micros())).exec(db).await?;
    Ok(result.rows_affected)
}
