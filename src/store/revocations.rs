//! Queries that revoke many keys of one organization in one transaction.
//! Invariant: keys are locked by ascending id before the first of them changes, as everywhere, and no statement grows
//! with the number of keys.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, Select,
    sea_query::{Expr, ExprTrait as _},
};

use super::{StoreError, api_keys::in_reach, entity::api_key as row, entity::api_key::Column};
use crate::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId},
    key::{Revocation, StoredStatus},
    permission::Reach,
};

/// Rows per statement: one parameter each, and the longest pause for whoever waits for one of the rows' locks.
pub const ROWS_PER_STATEMENT: usize = 1000;

/// The keys of an organization, or of one owner in it, that are not revoked, by ascending id.
pub async fn list_living(
    db: &impl ConnectionTrait,
    organization: OrganizationId,
    owner: Option<&str>,
) -> Result<Vec<KeyId>, StoreError> {
    read_ids(db, &living(organization, owner)).await
}

/// The same, each locked until the transaction ends.
pub async fn list_living_locked(
    db: &impl ConnectionTrait,
    organization: OrganizationId,
    owner: Option<&str>,
) -> Result<Vec<KeyId>, StoreError> {
    read_ids(db, &living(organization, owner).lock_exclusive()).await
}

/// The digests under which caches hold the keys of an organization, or of one owner in it, revoked or not.
pub async fn list_digests(
    db: &impl ConnectionTrait,
    organization: OrganizationId,
    owner: Option<&str>,
) -> Result<Vec<Digest>, StoreError> {
    let select = of_owner(organization, owner).column(Column::Digest);
    let mut digests = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        let stored: Option<Vec<u8>> = found.try_get("", "digest")?;
        digests.extend(stored.as_deref().and_then(Digest::from_bytes));
    }
    Ok(digests)
}

fn of_owner(organization: OrganizationId, owner: Option<&str>) -> Select<row::Entity> {
    let select = in_reach(Reach::Only(organization)).select_only();
    match owner {
        Some(owner) => select.filter(Column::OwnerId.eq(owner)),
        None => select,
    }
}

fn living(organization: OrganizationId, owner: Option<&str>) -> Select<row::Entity> {
    of_owner(organization, owner)
        .column(Column::Id)
        .filter(Column::Status.ne(StoredStatus::Revoked.as_str()))
        .order_by_asc(Column::Id)
}

async fn read_ids(db: &impl ConnectionTrait, select: &Select<row::Entity>) -> Result<Vec<KeyId>, StoreError> {
    let mut ids = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        let id: String = found.try_get("", "id")?;
        if let Ok(id) = KeyId::parse(&id) {
            ids.push(id);
        } else {
            // No verification can read such a row either, so it is nobody's living key.
            tracing::error!("a key whose id cannot be read was passed over");
        }
    }
    Ok(ids)
}

/// Revokes keys that the transaction has locked; gives how many were not revoked yet. At most
/// [`ROWS_PER_STATEMENT`] of them.
pub async fn update_revoked(
    db: &impl ConnectionTrait,
    ids: &[KeyId],
    revocation: &Revocation,
) -> Result<u64, StoreError> {
    let time = revocation.time.micros();
    let result = row::Entity::update_many()
        .col_expr(Column::Status, Expr::value(StoredStatus::Revoked.as_str()))
        .col_expr(Column::UpdateTimeUs, Expr::value(time))
        .col_expr(Column::RevokeTimeUs, Expr::value(time))
        .col_expr(Column::RevokedBy, Expr::value(revocation.by.as_str()))
        .col_expr(Column::RevocationReason, Expr::value(revocation.reason.as_str()))
        .col_expr(Column::RevocationNote, Expr::value(revocation.note.as_str()))
        .col_expr(Column::Etag, Expr::col(Column::Etag).add(1))
        .filter(Column::Id.is_in(ids.iter().map(ToString::to_string)))
        .filter(Column::Status.ne(StoredStatus::Revoked.as_str()))
        .exec(db)
        .await?;
    Ok(result.rows_affected)
}
