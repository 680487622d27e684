//! Keys that came without a hash: an id that once had a secret which nobody kept a trace of.
//! Such a key can never be valid. The first time that somebody names it, it is disabled, so that its owner learns of it
//! from the answer, and the operator from the audit log, the log and a metric. Rotating it gives a living key.

use std::sync::Arc;

use serde_json::json;

use super::{Searched, rehash::event, state::Ask};
use crate::{
    domain::{
        audit::AuditAction,
        ids::{KeyId, OrganizationId, RecordId},
        import::Scheme,
        key::StoredStatus,
        outcome::{self, Outcome},
        permission::Reach,
        record::KeyRecord,
        time::Timestamp,
    },
    random,
    service::{Context, ServiceError, verify_key::Verification},
    store::{api_keys, audit_events, commit, organizations, slow_keys},
};

/// Answers for a key that there is nothing to compare with, and disables it the first time.
pub(super) async fn answer(
    context: &Arc<Context>,
    ask: Ask,
    id: KeyId,
    verification: &Verification,
    now: Timestamp,
) -> Result<Searched, ServiceError> {
    context.metrics.imported.key_without_hash();
    let Some(key) = api_keys::find(context.store.verify(), verification.question.reach, id).await? else {
        return Ok(Searched::Nothing);
    };
    if key.stored_status == StoredStatus::Active {
        let (own, organization_id) = (context.clone(), key.organization_id);
        if context.run_to_end(async move { disable(&own, id, organization_id, now).await }).await? {
            tracing::warn!(
                key_id = %id, organization_id = %organization_id,
                "an imported key without a hash was presented and is disabled: rotate it"
            );
        }
    }
    let found = organizations::find_by_id(context.store.verify(), Reach::All, key.organization_id).await?;
    let Some(organization) = found else {
        return Ok(Searched::Nothing);
    };
    // It was read before the change.
    let mut record = KeyRecord::from(key);
    if record.stored_status == StoredStatus::Active {
        record.stored_status = StoredStatus::Disabled;
    }
    let outcome = outcome::decide(&record, &organization, &verification.question, now).err();
    let (outcome, record) = (outcome.unwrap_or(Outcome::Disabled), Arc::new(record));
    if outcome == Outcome::Disabled {
        context.slow_keys.note_without_hash(&ask, record.clone());
    }
    Ok(Searched::WithoutHash(outcome, record))
}

/// Says whether it was active until now.
async fn disable(
    context: &Context,
    id: KeyId,
    organization_id: OrganizationId,
    now: Timestamp,
) -> Result<bool, ServiceError> {
    let transaction = context.store.begin().await?;
    if !slow_keys::update_disabled(&transaction, id, now).await? {
        return Ok(false);
    }
    let detail = json!({"scheme": Scheme::Missing.as_str()}).to_string();
    let event = event(AuditAction::KeyDisable, id, organization_id, detail, now);
    audit_events::insert(&transaction, RecordId::new(now, random::bytes()), &event).await?;
    commit(transaction).await?;
    Ok(true)
}
