//! The job `expire`: tells the audit log of each key whose expiry has passed, once (`key.expire`), so that an auditor
//! sees when a key ceased to work though nobody did anything. Whether a key has expired is decided at each
//! verification from the clock; this job decides nothing. Harmless if two processes run it at once.

use serde_json::json;

use crate::{
    domain::{
        audit::{Actor, AuditAction, NewAuditEvent},
        ids::RecordId,
        time::Timestamp,
    },
    random,
    store::{Store, StoreError, audit_events, commit, expiries, expiries::Expiry},
};

/// Keys per transaction.
const CHUNK: u64 = 500;

/// Tells every expiry that has passed by `now`; gives how many were told.
///
/// # Errors
/// The store's own; what was committed before stays told.
pub async fn run(store: &Store, now: Timestamp) -> Result<u64, StoreError> {
    let mut told = 0;
    loop {
        let ids = expiries::list_untold(store.control(), now, CHUNK).await?;
        if ids.is_empty() {
            return Ok(told);
        }
        let transaction = store.begin().await?;
        let expired = expiries::update_told(&transaction, &ids, now).await?;
        let events: Vec<_> = expired.iter().map(|expiry| event(expiry, now)).collect();
        audit_events::insert_many(&transaction, &events).await?;
        commit(transaction).await?;
        told += u64::try_from(events.len()).unwrap_or(0);
    }
}

fn event(expiry: &Expiry, now: Timestamp) -> (RecordId, NewAuditEvent) {
    let event = NewAuditEvent {
        time: now,
        actor: Actor::job("expire"),
        action: AuditAction::KeyExpire,
        target_id: expiry.key_id.clone(),
        organization_id: expiry.organization_id,
        detail: json!({"expire_time": expiry.expire_time.to_string()}).to_string(),
    };
    (RecordId::new(now, random::bytes()), event)
}
