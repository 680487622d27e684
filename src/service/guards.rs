//! Checks that several mutations share: etags, expiry, scopes handed out, and the last admin key.
//! Those about rows belong inside the mutation's transaction, after the row has been locked.

use super::{Call, Context, Resource, ServiceError};
use crate::{
    domain::{
        Invalid,
        audit::{AuditAction, NewAuditEvent},
        ids::{OrganizationId, RecordId},
        key::{ApiKey, StoredStatus},
        permission::{Reach, is_admin},
        scope::Scope,
        time::Timestamp,
    },
    random,
    store::{Database, api_keys, audit_events, organizations},
};

/// Refuses where the caller read another version. No etag means that the caller does not mind.
pub fn check_etag(wanted: Option<i64>, found: i64, resource: Resource) -> Result<(), ServiceError> {
    if wanted.is_none_or(|wanted| wanted == found) { Ok(()) } else { Err(ServiceError::EtagMismatch(resource)) }
}

/// Refuses an expiry that is not ahead.
pub fn check_expiry(expire_time: Option<Timestamp>, now: Timestamp, field: &str) -> Result<(), ServiceError> {
    if expire_time.is_none_or(|end| end > now) {
        return Ok(());
    }
    Err(ServiceError::invalid(field, Invalid::new("must be in the future")))
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
        && is_admin(&key.scopes)
}

/// Makes changes to keys of `system` queue, so that two of them cannot each take the other for the last admin key.
pub async fn lock_admins(transaction: &impl Database, key: &ApiKey) -> Result<(), ServiceError> {
    if key.organization_id == OrganizationId::SYSTEM {
        organizations::find_locked(transaction, Reach::All, OrganizationId::SYSTEM).await?;
    }
    Ok(())
}

/// Refuses a change, already made in this transaction, that leaves no lasting admin key. `before` is the key as it
/// was; call [`lock_admins`] first.
pub async fn check_admin_left(transaction: &impl Database, before: &ApiKey) -> Result<(), ServiceError> {
    if !is_lasting_admin(before) || api_keys::count_admins(transaction).await? > 0 {
        return Ok(());
    }
    Err(ServiceError::FailedPrecondition {
        reason: "LAST_ADMIN_KEY",
        resource: Resource::key(before.id),
        description: "this is the last key with keystead.admin that never expires; create another first".to_owned(),
    })
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

/// Keys as they are shown: one that was rotated shows the credits that the newest key of its chain holds.
pub async fn with_credits(context: &Context, mut keys: Vec<ApiKey>) -> Result<Vec<ApiKey>, ServiceError> {
    let holders: Vec<_> = keys.iter().filter(|key| key.credits.is_some()).filter_map(|key| key.successor_id).collect();
    let held = api_keys::find_credits(context.store.control(), &holders).await?;
    for key in &mut keys {
        let holder = held.iter().find(|(id, ..)| Some(*id) == key.successor_id && key.credits.is_some());
        if let Some((_, credits, refill_time)) = holder {
            (key.credits, key.refill_time) = (*credits, *refill_time);
        }
    }
    Ok(keys)
}
