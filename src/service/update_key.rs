//! `UpdateKey`: new values for some settings of a key.

use std::sync::Arc;

use serde_json::json;

use super::{Call, Context, Resource, ServiceError, guards};
use crate::{
    domain::{
        audit::AuditAction,
        digest::Digest,
        ids::KeyId,
        key::{ApiKey, KeyChanges, StoredStatus},
        time::Timestamp,
    },
    store::{api_keys, commit, rotations},
};

/// What to change.
#[derive(Debug, Clone)]
pub struct UpdateKey {
    pub id: KeyId,
    pub changes: KeyChanges,
    pub etag: Option<i64>,
}

/// Changes settings of a key.
///
/// # Errors
/// `NotFound`; `PermissionDenied` where the key has, or is to get, a scope beyond the caller's own; `EtagMismatch`;
/// `FailedPrecondition` for a revoked key, for the credits of a rotated one, and for the last admin key.
pub async fn update_key(context: &Arc<Context>, call: &Call, update: UpdateKey) -> Result<ApiKey, ServiceError> {
    if let Some(scopes) = &update.changes.scopes {
        guards::check_scopes(call, scopes)?;
    }
    let now = context.clock.now();
    context.run_to_end(change(context.clone(), call.clone(), update, now)).await
}

async fn change(context: Arc<Context>, call: Call, update: UpdateKey, now: Timestamp) -> Result<ApiKey, ServiceError> {
    let transaction = context.store.begin().await?;
    let before = guards::find_for_change(&transaction, &call, update.id, update.etag).await?;
    guards::check_scopes(&call, &before.scopes)?;
    check_state(&before, &update.changes)?;
    let paths = update.changes.paths();
    let sets_credits = update.changes.credits.is_some();
    let mut after = update.changes.apply(before.clone());
    after.update_time = now;
    after.etag = before.etag + 1;
    if sets_credits {
        let refill = after.credits.and_then(|credits| credits.refill);
        after.refill_time = refill.map(|refill| refill.interval.next_after(now));
    }
    api_keys::update(&transaction, &after).await?;
    guards::check_admin_left(&transaction, &before).await?;
    let mut digests: Vec<Digest> = api_keys::find_digest(&transaction, before.id).await?.into_iter().collect();
    if sets_credits {
        digests.extend(rotations::update_predecessors(&transaction, after.id, after.credits.is_some()).await?);
    }
    let (id, organization) = (before.id.to_string(), before.organization_id);
    let detail = json!({"changed": paths});
    guards::audit(&transaction, &call, now, AuditAction::KeyUpdate, id, organization, &detail).await?;
    let after = guards::shown(&transaction, after).await?;
    let committed = commit(transaction).await;
    for digest in &digests {
        context.records.evict_key(digest);
    }
    committed?;
    Ok(after)
}

fn check_state(key: &ApiKey, changes: &KeyChanges) -> Result<(), ServiceError> {
    let resource = Resource::key(key.id);
    if key.stored_status == StoredStatus::Revoked {
        return Err(ServiceError::FailedPrecondition {
            reason: "KEY_REVOKED",
            resource,
            description: "the key is revoked, which is final".to_owned(),
        });
    }
    if changes.credits.is_some() && key.successor_id.is_some() {
        return Err(ServiceError::FailedPrecondition {
            reason: "KEY_ROTATED",
            resource,
            description: "the key was rotated; its credits are those of the newest key of the rotation".to_owned(),
        });
    }
    Ok(())
}
