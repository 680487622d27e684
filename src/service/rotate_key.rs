//! `RotateKey`: a new secret with the same settings; the old one lives on for the overlap, never longer than it had.
//! Credits move to the new key and are shared by both, so that rotating never doubles them; rate limits go on
//! counting where they were.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{Call, Context, Resource, ServiceError, create_key::find_open, guards};
use crate::{
    domain::{
        audit::AuditAction,
        ids::KeyId,
        key::{ApiKey, KeyStatus, Revocation, RevocationReason, StoredStatus},
        secret::Secret,
        time::Timestamp,
    },
    random,
    store::{Database, api_keys, commit, rotations, slow_keys},
};

/// What to rotate.
#[derive(Debug, Clone)]
pub struct RotateKey {
    pub id: KeyId,
    /// For how long the old secret lives on; zero revokes it at once.
    pub overlap: Duration,
    pub etag: Option<i64>,
}

/// The new key with its secret for the one answer that shows it, and the old key as it is now.
pub struct RotatedKey {
    pub key: ApiKey,
    pub secret: Secret,
    pub previous: ApiKey,
}

/// Rotates a key.
///
/// # Errors
/// `NotFound`; `PermissionDenied` where the key has a scope beyond the caller's own; `EtagMismatch`;
/// `FailedPrecondition` for a key that is revoked, expired or rotated already, or whose organization is inactive.
pub async fn rotate_key(context: &Arc<Context>, call: &Call, rotate: RotateKey) -> Result<RotatedKey, ServiceError> {
    let now = context.clock.now();
    context.run_to_end(replace(context.clone(), call.clone(), rotate, now)).await
}

async fn replace(
    context: Arc<Context>,
    call: Call,
    rotate: RotateKey,
    now: Timestamp,
) -> Result<RotatedKey, ServiceError> {
    let transaction = context.store.begin().await?;
    let reach = call.caller.reach();
    let found = api_keys::find(&transaction, reach, rotate.id).await?;
    let owner = found.ok_or_else(|| ServiceError::NotFound(Resource::key(rotate.id)))?.organization_id;
    let organization = find_open(&transaction, reach, owner).await;
    let before = guards::find_for_change(&transaction, &call, rotate.id, rotate.etag).await?;
    guards::check_scopes(&call, &before.scopes)?;
    check_state(&before, now)?;
    let organization = organization?;
    let secret = Secret::generate(&organization.secret_prefix, before.environment, &random::secret_bytes());
    let prefix = organization.secret_prefix.with_environment(before.environment);
    let mut key = successor(&before, prefix, &secret, &call, now);
    // One that was disabled for want of a hash alone gets what it lacked.
    if before.stored_status == StoredStatus::Disabled
        && slow_keys::find(&transaction, reach, before.id).await?.is_some_and(|held| held.was_presented)
    {
        key.stored_status = StoredStatus::Active;
    }
    api_keys::insert(&transaction, &key, &secret.digest(), None).await?;
    let previous = retire(&transaction, &before, &key, rotate.overlap, &call, now).await?;
    guards::check_admin_left(&transaction, &before).await?;
    let old_digest = api_keys::find_digest(&transaction, before.id).await?;
    let (old, new) = (before.id.to_string(), key.id.to_string());
    let detail = json!({"new_key_id": new, "overlap_seconds": rotate.overlap.as_secs()});
    guards::audit(&transaction, &call, now, AuditAction::KeyRotate, old.clone(), owner, &detail).await?;
    let detail = json!({"rotated_from_id": old});
    guards::audit(&transaction, &call, now, AuditAction::KeyCreate, new, owner, &detail).await?;
    let previous = guards::shown(&transaction, previous).await?;
    let committed = commit(transaction).await;
    context.records.evict_key(&secret.digest());
    if let Some(digest) = old_digest {
        context.records.evict_key(&digest);
    }
    committed?;
    Ok(RotatedKey { key, secret, previous })
}

fn check_state(key: &ApiKey, now: Timestamp) -> Result<(), ServiceError> {
    let (reason, description) = match key.status(now) {
        KeyStatus::Revoked => ("KEY_REVOKED", "the key is revoked, which is final"),
        KeyStatus::Expired => ("KEY_EXPIRED", "the key has expired"),
        KeyStatus::Active | KeyStatus::Disabled if key.successor_id.is_some() => {
            ("KEY_ROTATED", "the key was rotated already; rotate the newest key of the rotation")
        }
        KeyStatus::Active | KeyStatus::Disabled => return Ok(()),
    };
    let resource = Resource::key(key.id);
    Err(ServiceError::FailedPrecondition { reason, resource, description: description.to_owned() })
}

fn successor(before: &ApiKey, prefix: String, secret: &Secret, call: &Call, now: Timestamp) -> ApiKey {
    ApiKey {
        id: KeyId::new(now, random::bytes()),
        prefix,
        hint: secret.hint(),
        create_time: now,
        update_time: now,
        last_used_time: None,
        request_count: 0,
        created_by: call.caller.key_id().to_string(),
        rotated_from_id: Some(before.id),
        etag: 1,
        ..before.clone()
    }
}

/// Ends the old key, at once or after the overlap.
async fn retire(
    transaction: &impl Database,
    before: &ApiKey,
    newest: &ApiKey,
    overlap: Duration,
    call: &Call,
    now: Timestamp,
) -> Result<ApiKey, ServiceError> {
    let etag = before.etag + 1;
    let mut previous = ApiKey { etag, update_time: now, successor_id: Some(newest.id), ..before.clone() };
    if overlap.is_zero() {
        let revocation = Revocation {
            time: now,
            by: call.caller.key_id().to_string(),
            reason: RevocationReason::Superseded,
            note: String::new(),
        };
        api_keys::update_revoked(transaction, before.id, &revocation, etag).await?;
        previous.stored_status = StoredStatus::Revoked;
        previous.revocation = Some(revocation);
    } else {
        let end = now.plus(overlap);
        previous.expire_time = Some(before.expire_time.map_or(end, |own| own.min(end)));
        api_keys::update(transaction, &previous).await?;
    }
    rotations::update_successor(transaction, before.id, newest.id).await?;
    Ok(previous)
}
