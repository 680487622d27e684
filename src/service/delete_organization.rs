//! `DeleteOrganization`: takes an organization away, and with `force` its keys and usage too. Audit events stay.

use std::sync::Arc;

use serde_json::json;

use super::{Call, Context, CountedOrganization, Resource, ServiceError, guards, update_organization::system_is_fixed};
use crate::{
    domain::{audit::AuditAction, ids::OrganizationId, time::Timestamp},
    store::{api_keys, commit, key_counts, organizations, rate_limits, rotations, usage},
};

/// Deletes an organization; gives it as it was.
///
/// # Errors
/// `NotFound`, `EtagMismatch`, `FailedPrecondition` for `system`, and for one with keys of any status unless `force`.
pub async fn delete_organization(
    context: &Arc<Context>,
    call: &Call,
    id: OrganizationId,
    force: bool,
    etag: Option<i64>,
) -> Result<CountedOrganization, ServiceError> {
    let now = context.clock.now();
    context.run_to_end(delete(context.clone(), call.clone(), id, force, etag, now)).await
}

async fn delete(
    context: Arc<Context>,
    call: Call,
    id: OrganizationId,
    force: bool,
    etag: Option<i64>,
    now: Timestamp,
) -> Result<CountedOrganization, ServiceError> {
    let resource = Resource::organization(id);
    let transaction = context.store.begin().await?;
    let found = organizations::find_locked(&transaction, call.caller.reach(), id).await?;
    let organization = found.ok_or_else(|| ServiceError::NotFound(resource.clone()))?;
    if id == OrganizationId::SYSTEM {
        return Err(system_is_fixed(resource, "the organization system cannot be deleted"));
    }
    guards::check_etag(etag, organization.etag, resource.clone())?;
    let keys = key_counts::count_all(&transaction, id).await?;
    if keys > 0 && !force {
        return Err(ServiceError::FailedPrecondition {
            reason: "ORGANIZATION_HAS_KEYS",
            resource,
            description: "the organization has keys, revoked ones included; force deletes them too".to_owned(),
        });
    }
    rotations::lock_organization(&transaction, id).await?;
    let key_count = key_counts::count(&transaction, id).await?;
    api_keys::delete_of_organization(&transaction, id).await?;
    usage::delete_of_organization(&transaction, id).await?;
    rate_limits::delete_of_organization(&transaction, id).await?;
    organizations::delete(&transaction, id).await?;
    let detail = json!({"slug": organization.slug, "deleted_keys": keys});
    guards::audit(&transaction, &call, now, AuditAction::OrganizationDelete, id.to_string(), id, &detail).await?;
    let committed = commit(transaction).await;
    context.records.evict_organization(id);
    committed?;
    Ok(CountedOrganization { organization, key_count })
}
