//! `RevokeKey`: ends a key for good. Idempotent: the first revocation stands, with its reason, time and author.

use std::sync::Arc;

use serde_json::json;

use super::{Call, Context, ServiceError, guards};
use crate::{
    domain::{
        audit::AuditAction,
        ids::KeyId,
        key::{ApiKey, Revocation, RevocationReason, StoredStatus},
        time::Timestamp,
    },
    store::{api_keys, commit, key_changes},
};

/// What to revoke, and why.
#[derive(Debug, Clone)]
pub struct RevokeKey {
    pub id: KeyId,
    pub reason: RevocationReason,
    pub note: String,
    pub etag: Option<i64>,
}

/// Revokes a key; gives it as it is now, and the revision from which on every replica refuses it.
///
/// # Errors
/// `NotFound`, `EtagMismatch`, and `FailedPrecondition` for the last admin key.
pub async fn revoke_key(context: &Arc<Context>, call: &Call, revoke: RevokeKey) -> Result<(ApiKey, i64), ServiceError> {
    let now = context.clock.now();
    context.run_to_end(end(context.clone(), call.clone(), revoke, now)).await
}

async fn end(
    context: Arc<Context>,
    call: Call,
    revoke: RevokeKey,
    now: Timestamp,
) -> Result<(ApiKey, i64), ServiceError> {
    let transaction = context.store.begin().await?;
    let before = guards::find_for_change(&transaction, &call, revoke.id, revoke.etag).await?;
    let digest = api_keys::find_digest(&transaction, before.id).await?;
    let mut after = before.clone();
    if before.stored_status != StoredStatus::Revoked {
        let by = call.caller.key_id().to_string();
        let revocation = Revocation { time: now, by, reason: revoke.reason, note: revoke.note };
        after.etag = before.etag + 1;
        api_keys::update_revoked(&transaction, before.id, &revocation, after.etag).await?;
        after.update_time = now;
        after.stored_status = StoredStatus::Revoked;
        after.revocation = Some(revocation);
        guards::check_admin_left(&transaction, &before).await?;
        let (id, organization) = (before.id.to_string(), before.organization_id);
        let detail = json!({"reason": revoke.reason.as_str()});
        guards::audit(&transaction, &call, now, AuditAction::KeyRevoke, id, organization, &detail).await?;
    }
    let after = guards::shown(&transaction, after).await?;
    let revision = key_changes::find_revision(&transaction).await?;
    let committed = commit(transaction).await;
    // Also after a repeat: what made this key revoked may have been SQL that the feed has not brought yet.
    if let Some(digest) = digest {
        context.records.evict_key(&digest);
    }
    committed?;
    Ok((after, revision))
}
