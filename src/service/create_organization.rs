//! `CreateOrganization`: a new tenant. For callers of `system` alone, as its permission says.

use std::sync::Arc;

use serde_json::json;

use super::{Call, Context, CountedOrganization, Resource, ServiceError, guards};
use crate::{
    domain::{
        audit::AuditAction,
        ids::OrganizationId,
        organization::{NewOrganization, Organization},
        time::Timestamp,
    },
    random,
    store::{Conflict, StoreError, commit, organizations},
};

/// Creates an organization.
///
/// # Errors
/// `AlreadyExists` for a slug or email that is taken, or a repeated request id.
pub async fn create_organization(
    context: &Arc<Context>,
    call: &Call,
    new: NewOrganization,
) -> Result<CountedOrganization, ServiceError> {
    let now = context.clock.now();
    let request_id = new.request_id;
    match context.run_to_end(insert(context.clone(), call.clone(), new, now)).await {
        Err(ServiceError::AlreadyExists { reason, field, resource }) => {
            // A repeat that races its first call may find the slug taken before it finds its own request id.
            let first = match request_id {
                Some(id) => organizations::find_by_request_id(context.store.write(), id).await?,
                None => None,
            };
            Err(match first {
                Some(first) => ServiceError::AlreadyExists {
                    reason: "REQUEST_ID_REUSED",
                    field: "request_id",
                    resource: Some(Resource::organization(first.id)),
                },
                None => ServiceError::AlreadyExists { reason, field, resource },
            })
        }
        Err(error) => Err(error),
        Ok(organization) => Ok(CountedOrganization { organization, key_count: 0 }),
    }
}

async fn insert(
    context: Arc<Context>,
    call: Call,
    new: NewOrganization,
    now: Timestamp,
) -> Result<Organization, ServiceError> {
    let transaction = context.store.begin().await?;
    if let Some(request_id) = new.request_id
        && organizations::find_by_request_id(&transaction, request_id).await?.is_some()
    {
        return Err(taken(Conflict::RequestId));
    }
    let request_id = new.request_id;
    let organization = Organization {
        id: OrganizationId::new(now, random::bytes()),
        name: new.name,
        slug: new.slug,
        email: new.email,
        plan: new.plan,
        active: true,
        max_keys: new.max_keys,
        rate_limits: new.rate_limits,
        monthly_quota: new.monthly_quota,
        secret_prefix: new.secret_prefix,
        metadata: new.metadata,
        create_time: now,
        update_time: now,
        etag: 1,
    };
    organizations::insert(&transaction, &organization, request_id).await.map_err(of_insert)?;
    let detail = json!({"slug": organization.slug, "plan": organization.plan.as_str()});
    let id = organization.id.to_string();
    guards::audit(&transaction, &call, now, AuditAction::OrganizationCreate, id, organization.id, &detail).await?;
    commit(transaction).await?;
    Ok(organization)
}

/// A conflict in the words of the contract.
pub(super) fn of_insert(error: StoreError) -> ServiceError {
    match error {
        StoreError::Conflict(conflict) => taken(conflict),
        other => other.into(),
    }
}

fn taken(conflict: Conflict) -> ServiceError {
    let (reason, field) = match conflict {
        Conflict::Slug => ("SLUG_TAKEN", "slug"),
        Conflict::Email => ("EMAIL_TAKEN", "email"),
        Conflict::RequestId => ("REQUEST_ID_REUSED", "request_id"),
        Conflict::Digest => ("DIGEST_TAKEN", "digest"),
        Conflict::Id => ("ID_TAKEN", "id"),
    };
    ServiceError::AlreadyExists { reason, field, resource: None }
}
