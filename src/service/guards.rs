//! Checks that several mutations share: etags, scopes handed out, and the last admin key.
//! Those about rows belong inside the mutation's transaction, after the row has been locked.

use std::collections::HashSet;

use super::{Call, Resource, ServiceError};
use crate::{
    domain::{
        audit::{AuditAction, NewAuditEvent},
        ids::{KeyId, OrganizationId, RecordId},
        key::{ApiKey, StoredStatus},
        permission::{Reach, is_admin},
        scope::Scope,
        time::Timestamp,
    },
    random,
    store::{Database, api_keys, audit_events, key_counts, organizations, rotations},
};

/// Refuses where the caller read another version. No etag means that the caller does not mind.
pub fn check_etag(wanted: Option<i64>, found: i64, resource: Resource) -> Result<(), ServiceError> {
    if wanted.is_none_or(|wanted| wanted == found) { Ok(()) } else { Err(ServiceError::EtagMismatch(resource)) }
}

/// Refuses to hand out a `keystead.` scope that the caller does not hold.
pub fn check_scopes(call: &Call, scopes: &[Scope]) -> Result<(), ServiceError> {
    match call.caller.beyond_own(scopes) {
        None => Ok(()),
        Some(scope) => {
            Err(ServiceError::PermissionDenied { reason: "SCOPE_NOT_HELD", permission: scope.as_str().to_owned() })
        }
    }
}

/// Whether this key is one of those that keep the operator from being locked out.
pub fn is_lasting_admin(key: &ApiKey) -> bool {
    key.organization_id == OrganizationId::SYSTEM
        && key.stored_status == StoredStatus::Active
        && key.expire_time.is_none()
        && key.allowed_cidrs.is_empty()
        && is_admin(&key.scopes)
}

/// Refuses a change, already made in this transaction, that leaves no lasting admin key. `before` is the key as it
/// was, from [`find_for_change`].
pub async fn check_admin_left(transaction: &impl Database, before: &ApiKey) -> Result<(), ServiceError> {
    if !is_lasting_admin(before) || key_counts::count_admins(transaction).await? > 0 {
        return Ok(());
    }
    Err(last_admin(before.id))
}

/// Refuses to take `leaving` away, keys of `organization`, where no lasting admin key would be left. In a transaction
/// that has locked `system` what it finds stays so.
pub async fn check_admins_stay(
    db: &impl Database,
    organization: OrganizationId,
    leaving: &[KeyId],
) -> Result<(), ServiceError> {
    if organization != OrganizationId::SYSTEM {
        return Ok(());
    }
    let leaving: HashSet<KeyId> = leaving.iter().copied().collect();
    let admins = key_counts::list_admins(db).await?;
    match admins.first() {
        Some(last) if admins.iter().all(|admin| leaving.contains(admin)) => Err(last_admin(*last)),
        Some(_) | None => Ok(()),
    }
}

fn last_admin(key: KeyId) -> ServiceError {
    ServiceError::FailedPrecondition {
        reason: "LAST_ADMIN_KEY",
        resource: Resource::key(key),
        description: "this is the last key with keystead.admin that never expires; create another first".to_owned(),
    }
}

/// Writes the audit event of a mutation.
pub async fn audit(
    transaction: &impl Database,
    call: &Call,
    now: Timestamp,
    action: AuditAction,
    target_id: String,
    organization_id: OrganizationId,
    detail: &serde_json::Value,
) -> Result<(), ServiceError> {
    let event = NewAuditEvent {
        time: now,
        actor: call.actor(),
        action,
        target_id,
        organization_id,
        detail: detail.to_string(),
    };
    audit_events::insert(transaction, RecordId::new(now, random::bytes()), &event).await?;
    Ok(())
}

/// A key that is about to change, locked together with the keys that it replaced, and with the organization `system`
/// where it is one of its keys: two changes of admin keys must not each take the other for the last one.
/// Locks are taken in one order everywhere: organization, keys by id, change counter.
pub async fn find_for_change(
    transaction: &impl Database,
    call: &Call,
    id: KeyId,
    etag: Option<i64>,
) -> Result<ApiKey, ServiceError> {
    let missing = || ServiceError::NotFound(Resource::key(id));
    let reach = call.caller.reach();
    let unlocked = api_keys::find(transaction, reach, id).await?.ok_or_else(missing)?;
    if unlocked.organization_id == OrganizationId::SYSTEM {
        organizations::find_locked(transaction, Reach::All, OrganizationId::SYSTEM).await?;
    }
    rotations::lock_chain(transaction, id).await?;
    let key = api_keys::find(transaction, reach, id).await?.ok_or_else(missing)?;
    // Revoking is idempotent: on a revoked key the etag does not matter, and whatever else is refused anyway.
    if key.stored_status != StoredStatus::Revoked {
        check_etag(etag, key.etag, Resource::key(id))?;
    }
    Ok(key)
}

/// Keys as they are shown: one that was rotated shows the credits that the newest key of its chain holds.
pub async fn with_credits(db: &impl Database, mut keys: Vec<ApiKey>) -> Result<Vec<ApiKey>, ServiceError> {
    let holders: Vec<_> = keys.iter().filter(|key| key.credits.is_some()).filter_map(|key| key.successor_id).collect();
    let held = rotations::find_credits(db, &holders).await?;
    for key in &mut keys {
        let holder = held.iter().find(|(id, ..)| Some(*id) == key.successor_id && key.credits.is_some());
        if let Some((_, credits, refill_time)) = holder {
            (key.credits, key.refill_time) = (*credits, *refill_time);
        }
    }
    Ok(keys)
}

/// One key as it is shown.
pub async fn shown(db: &impl Database, key: ApiKey) -> Result<ApiKey, ServiceError> {
    let keys = with_credits(db, vec![key.clone()]).await?;
    Ok(keys.into_iter().next().unwrap_or(key))
}
