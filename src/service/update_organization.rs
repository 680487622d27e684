//! `UpdateOrganization`: new values for some settings of an organization.

use std::sync::Arc;

use serde_json::json;

use super::{
    Call, Context, CountedOrganization, Resource, ServiceError, create_organization::of_insert,
    get_organization::counted, guards,
};
use crate::{
    domain::{
        audit::AuditAction,
        ids::OrganizationId,
        organization::{Organization, OrganizationChanges},
        time::Timestamp,
    },
    store::{commit, organizations},
};

/// What to change.
#[derive(Debug, Clone)]
pub struct UpdateOrganization {
    pub id: OrganizationId,
    pub changes: OrganizationChanges,
    pub etag: Option<i64>,
}

/// Changes settings of an organization.
///
/// # Errors
/// `NotFound`, `EtagMismatch`, `AlreadyExists` for a slug or email that is taken, `FailedPrecondition` for the slug
/// of `system`.
pub async fn update_organization(
    context: &Arc<Context>,
    call: &Call,
    update: UpdateOrganization,
) -> Result<CountedOrganization, ServiceError> {
    let now = context.clock.now();
    context.run_to_end(change(context.clone(), call.clone(), update, now)).await
}

async fn change(
    context: Arc<Context>,
    call: Call,
    update: UpdateOrganization,
    now: Timestamp,
) -> Result<CountedOrganization, ServiceError> {
    let resource = Resource::organization(update.id);
    let transaction = context.store.begin().await?;
    let found = organizations::find_locked(&transaction, call.caller.reach(), update.id).await?;
    let before = found.ok_or_else(|| ServiceError::NotFound(resource.clone()))?;
    guards::check_etag(update.etag, before.etag, resource.clone())?;
    if before.id == OrganizationId::SYSTEM && update.changes.slug.is_some() {
        return Err(system_is_fixed(resource, "the slug of the organization system cannot change"));
    }
    let paths = update.changes.paths();
    let etag = before.etag + 1;
    let after = Organization { update_time: now, etag, ..update.changes.apply(before) };
    organizations::update(&transaction, &after).await.map_err(of_insert)?;
    let (id, detail) = (after.id.to_string(), json!({"changed": paths}));
    guards::audit(&transaction, &call, now, AuditAction::OrganizationUpdate, id, after.id, &detail).await?;
    let after = counted(&transaction, after).await?;
    let committed = commit(transaction).await;
    context.records.evict_organization(after.organization.id);
    committed?;
    Ok(after)
}

/// Refuses what would take the built-in organization away.
pub(super) fn system_is_fixed(resource: Resource, description: &str) -> ServiceError {
    ServiceError::FailedPrecondition { reason: "SYSTEM_ORGANIZATION", resource, description: description.to_owned() }
}
