//! Who calls, read from the database: a key with its organization, in one query.
//! Serves the control plane, whose permissions never rest on a cache.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, JoinType, QueryFilter as _, QuerySelect as _, QueryTrait as _,
};

use super::{
    StoreError,
    entity::{api_key, organization},
    rows,
};
use crate::domain::{digest::Digest, key::ApiKey, organization::Organization, record::KeyRecord};

/// What SeaORM puts before the columns of the first and of the second table of a join.
const KEY: &str = "A_";
const ORGANIZATION: &str = "B_";

/// The key with this digest, whatever its organization, and that organization.
pub async fn find(db: &impl ConnectionTrait, digest: &Digest) -> Result<Option<(KeyRecord, Organization)>, StoreError> {
    let owner = api_key::Entity::belongs_to(organization::Entity)
        .from(api_key::Column::OrganizationId)
        .to(organization::Column::Id);
    let select = api_key::Entity::find()
        .join(JoinType::InnerJoin, owner.into())
        .filter(api_key::Column::Digest.eq(digest.as_bytes().to_vec()))
        .select_also(organization::Entity);
    let Some(found) = db.query_one(select.as_query()).await? else {
        return Ok(None);
    };
    // The index found it by comparing bytes in its own way; what counts is compared in constant time.
    let stored: Option<Vec<u8>> = found.try_get(KEY, "digest")?;
    if stored.as_deref().and_then(Digest::from_bytes).as_ref() != Some(digest) {
        return Ok(None);
    }
    let key = rows::read_at::<api_key::Model, ApiKey>(&found, KEY)?;
    let organization = rows::read_at::<organization::Model, Organization>(&found, ORGANIZATION)?;
    Ok(Some((key.into(), organization)))
}
