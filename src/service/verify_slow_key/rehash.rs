//! The first success under a slow hash: the secret's digest takes its place, and from then on the key is like any other.
//! Invariant: the hash that was checked is the one that is replaced; where another stands there by now nothing is.

use std::sync::Arc;

use serde_json::json;

use super::state::Found;
use crate::{
    domain::{
        audit::{Actor, AuditAction, NewAuditEvent},
        digest::Digest,
        ids::{KeyId, OrganizationId, RecordId},
        import::{self, SlowHash},
        time::Timestamp,
    },
    random,
    service::{Context, ServiceError},
    store::{Conflict, Database, StoreError, audit_events, commit, imported_keys, slow_keys},
};

/// Who acts in the audit events of a verification.
const ACTOR: &str = "verification";

/// Stores the digest in the place of the slow hash, with an audit event. Where the secret reads as a digest itself
/// (`read_as`), the SHA-256 of what it says stands beside it, so that no key comes in later whose stored hash it would
/// be; and where a key is here whose stored hash it is, or the other way round, the slow hash stays and opens nothing.
pub(super) async fn store_digest(
    context: &Arc<Context>,
    (digest, read_as): (Digest, Option<Digest>),
    (id, organization_id): (KeyId, OrganizationId),
    hash: SlowHash,
    now: Timestamp,
) -> Result<Found, ServiceError> {
    let own = context.clone();
    let scheme = hash.scheme().scheme();
    let work = async move {
        let transaction = own.store.begin().await?;
        if is_of_stored_hash(&transaction, &digest, read_as).await? {
            tracing::warn!(key_id = %id, "a slow hash stays, since its secret and the stored hash of a key are one");
            return Ok(Found::Nothing);
        }
        let decoded_digest = read_as.as_ref().map(import::decoded_digest);
        match slow_keys::update_to_digest(&transaction, id, &hash, &digest, decoded_digest.as_ref()).await {
            // Somebody else has stored it, or the key is gone: whoever looks again sees.
            Ok(false) => return Ok(Found::Rehashed(scheme)),
            Ok(true) => {}
            Err(StoreError::Conflict(Conflict::Digest)) => {
                tracing::warn!(key_id = %id, "a slow hash stays, since another key has the same secret");
                return Ok(Found::Nothing);
            }
            Err(error) => return Err(error.into()),
        }
        let detail = json!({"scheme": scheme.as_str()}).to_string();
        let event = event(AuditAction::KeyRehash, id, organization_id, detail, now);
        audit_events::insert(&transaction, RecordId::new(now, random::bytes()), &event).await?;
        let committed = commit(transaction).await;
        own.records.evict_key(&digest);
        committed?;
        Ok(Found::Rehashed(scheme))
    };
    context.run_to_end(work).await
}

/// Whether a secret is what a key's digest looks like, or its own digest looks like the secret of a key. As for keys
/// that come in, see `import_keys/places.rs`.
async fn is_of_stored_hash(db: &impl Database, digest: &Digest, read_as: Option<Digest>) -> Result<bool, StoreError> {
    let digests: Vec<Digest> = read_as.into_iter().chain([import::digest_of_hex(digest)]).collect();
    let is_known = !imported_keys::list_by_digests(db, &digests).await?.is_empty();
    let decoded = [import::decoded_digest(digest)];
    Ok(is_known || !imported_keys::list_by_decoded_digests(db, &decoded).await?.is_empty())
}

/// An audit event of something that a verification did to a key.
pub(super) fn event(
    action: AuditAction,
    id: KeyId,
    organization_id: OrganizationId,
    detail: String,
    time: Timestamp,
) -> NewAuditEvent {
    let actor = Actor { key_id: String::new(), name: ACTOR.to_owned(), request_id: String::new() };
    NewAuditEvent { time, actor, action, target_id: id.to_string(), organization_id, detail }
}
