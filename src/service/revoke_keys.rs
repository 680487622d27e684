//! `RevokeKeys`: ends all keys of an organization, or of one owner in it, at once: all or none.
//! Idempotent: keys that are revoked already keep their first revocation and are not told of. One audit event a key,
//! since an auditor asks who revoked this one; the id of the call shows which belong together.
//! Invariant: while the organization's row is locked no key can be created or rotated in it, so none is missed.

use std::sync::Arc;

use serde_json::json;

use super::{Call, Context, Resource, ServiceError, guards};
use crate::{
    domain::{
        audit::{AuditAction, NewAuditEvent},
        ids::{KeyId, OrganizationId, RecordId},
        key::{Revocation, RevocationReason},
        time::Timestamp,
    },
    random,
    store::{Database, audit_events, commit, engine, key_changes, organizations, revocations},
};

/// Which keys to revoke, and why.
#[derive(Debug, Clone)]
pub struct RevokeKeys {
    pub organization_id: OrganizationId,
    /// `None` for all keys of the organization.
    pub owner_id: Option<String>,
    pub reason: RevocationReason,
    pub note: String,
    /// Only tell which keys it would be.
    pub dry_run: bool,
}

/// The keys that were revoked or, in a dry run, would be, by ascending id.
#[derive(Debug)]
pub struct RevokedKeys {
    pub ids: Vec<KeyId>,
    /// From which on all of them are revoked; 0 in a dry run.
    pub revision: i64,
}

/// Revokes keys, or tells which it would be. Keys that are revoked already are not among them.
///
/// # Errors
/// `NotFound` without such an organization, and `FailedPrecondition` where the last admin key is among the keys.
pub async fn revoke_keys(context: &Arc<Context>, call: &Call, revoke: RevokeKeys) -> Result<RevokedKeys, ServiceError> {
    if revoke.dry_run {
        return tell(context, call, &revoke).await;
    }
    let now = context.clock.now();
    context.run_to_end(end(context.clone(), call.clone(), revoke, now)).await
}

/// What it would be, from plain reads.
async fn tell(context: &Context, call: &Call, revoke: &RevokeKeys) -> Result<RevokedKeys, ServiceError> {
    let (db, id) = (context.store.control(), revoke.organization_id);
    let found = organizations::find_by_id(db, call.caller.reach(), id).await?;
    found.ok_or_else(|| ServiceError::NotFound(Resource::organization(id)))?;
    let ids = revocations::list_living(db, id, revoke.owner_id.as_deref()).await?;
    guards::check_admins_stay(db, id, &ids).await?;
    Ok(RevokedKeys { ids, revision: 0 })
}

async fn end(
    context: Arc<Context>,
    call: Call,
    revoke: RevokeKeys,
    now: Timestamp,
) -> Result<RevokedKeys, ServiceError> {
    let id = revoke.organization_id;
    let transaction = context.store.begin().await?;
    // Creating and rotating share this lock: what they have begun is seen below, and what they begin waits.
    let found = organizations::find_locked(&transaction, call.caller.reach(), id).await?;
    found.ok_or_else(|| ServiceError::NotFound(Resource::organization(id)))?;
    let owner = revoke.owner_id.as_deref();
    let ids = revocations::list_living_locked(&transaction, id, owner).await?;
    // Also of those that are revoked: what made them so may have been SQL that the feed has not brought yet.
    let digests = revocations::list_digests(&transaction, id, owner).await?;
    guards::check_admins_stay(&transaction, id, &ids).await?;
    engine::announce_bulk(&transaction).await?;
    let by = call.caller.key_id().to_string();
    let revocation = Revocation { time: now, by, reason: revoke.reason, note: revoke.note };
    for chunk in ids.chunks(revocations::ROWS_PER_STATEMENT) {
        revocations::update_revoked(&transaction, chunk, &revocation).await?;
        audit(&transaction, &call, id, chunk, &revocation).await?;
    }
    let revision = key_changes::find_revision(&transaction).await?;
    let committed = commit(transaction).await;
    for digest in &digests {
        context.records.evict_key(digest);
    }
    committed?;
    Ok(RevokedKeys { ids, revision })
}

async fn audit(
    transaction: &impl Database,
    call: &Call,
    organization_id: OrganizationId,
    keys: &[KeyId],
    revocation: &Revocation,
) -> Result<(), ServiceError> {
    let detail = json!({"reason": revocation.reason.as_str()}).to_string();
    let event = |key: &KeyId| NewAuditEvent {
        time: revocation.time,
        actor: call.actor(),
        action: AuditAction::KeyRevoke,
        target_id: key.to_string(),
        organization_id,
        detail: detail.clone(),
    };
    let events: Vec<_> = keys.iter().map(|key| (RecordId::new(revocation.time, random::bytes()), event(key))).collect();
    audit_events::insert_many(transaction, &events).await?;
    Ok(())
}
