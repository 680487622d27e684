//! `ActivateOrganization` and `DeactivateOrganization`: one flag, under which all keys of an organization stand.
//! Idempotent: repeating one changes nothing and writes no audit event.

use std::sync::Arc;

use serde_json::json;

use super::{
    Call, Context, CountedOrganization, Resource, ServiceError, get_organization::counted, guards,
    update_organization::system_is_fixed,
};
use crate::{
    domain::{audit::AuditAction, ids::OrganizationId, organization::Organization, time::Timestamp},
    store::{commit, organizations},
};

/// Sets the active flag of an organization. Where it has that value already, the etag does not matter.
///
/// # Errors
/// `NotFound`, `EtagMismatch`, and `FailedPrecondition` for deactivating `system`.
pub async fn set_organization_active(
    context: &Arc<Context>,
    call: &Call,
    id: OrganizationId,
    active: bool,
    etag: Option<i64>,
) -> Result<CountedOrganization, ServiceError> {
    let now = context.clock.now();
    context.run_to_end(set(context.clone(), call.clone(), id, active, etag, now)).await
}

async fn set(
    context: Arc<Context>,
    call: Call,
    id: OrganizationId,
    active: bool,
    etag: Option<i64>,
    now: Timestamp,
) -> Result<CountedOrganization, ServiceError> {
    let resource = Resource::organization(id);
    let transaction = context.store.begin().await?;
    let found = organizations::find_locked(&transaction, call.caller.reach(), id).await?;
    let before = found.ok_or_else(|| ServiceError::NotFound(resource.clone()))?;
    if id == OrganizationId::SYSTEM && !active {
        return Err(system_is_fixed(resource, "the organization system cannot be deactivated"));
    }
    if before.active == active {
        return counted(&transaction, before).await;
    }
    guards::check_etag(etag, before.etag, resource)?;
    let after = Organization { active, update_time: now, etag: before.etag + 1, ..before };
    organizations::update(&transaction, &after).await?;
    let action = if active { AuditAction::OrganizationActivate } else { AuditAction::OrganizationDeactivate };
    guards::audit(&transaction, &call, now, action, id.to_string(), id, &json!({})).await?;
    let after = counted(&transaction, after).await?;
    let committed = commit(transaction).await;
    context.records.evict_organization(id);
    committed?;
    Ok(after)
}
