//! `CreateKey`: issues a key. The secret leaves the process here, once.

use std::sync::Arc;

use serde_json::json;

use super::{Call, Context, Resource, ServiceError, guards};
use crate::{
    domain::{
        audit::{AuditAction, NewAuditEvent},
        ids::{KeyId, OrganizationId, RecordId},
        key::{ApiKey, NewKey, StoredStatus},
        organization::Organization,
        permission::Reach,
        secret::Secret,
        time::Timestamp,
    },
    random,
    store::{
        Conflict, Database, StoreError, api_keys, audit_events, commit, key_counts,
        new_keys::{self, NewRow},
        organizations,
    },
    verify::Freshness,
};

/// A new key, and its secret for the one answer that shows it.
pub struct IssuedKey {
    pub key: ApiKey,
    pub secret: Secret,
}

/// Issues a key.
///
/// # Errors
/// `NotFound` without such an organization, `FailedPrecondition` where it is inactive, `KeyCapReached`,
/// `PermissionDenied` for a scope beyond the caller's own, `AlreadyExists` for a repeated request id.
pub async fn create_key(context: &Arc<Context>, call: &Call, new: NewKey) -> Result<IssuedKey, ServiceError> {
    guards::check_scopes(call, &new.scopes)?;
    let now = context.clock.now();
    let expire_time = new.lifetime.expire_time(now);
    let (organization_id, request_id) = (new.organization_id, new.request_id);
    let work = issue(context.clone(), call.clone(), new, expire_time, now);
    match context.run_to_end(work).await {
        Err(ServiceError::AlreadyExists { reason, field, resource: None }) => {
            let resource = find_repeated(context, organization_id, request_id).await?;
            Err(ServiceError::AlreadyExists { reason, field, resource })
        }
        result => result,
    }
}

async fn issue(
    context: Arc<Context>,
    call: Call,
    new: NewKey,
    expire_time: Option<Timestamp>,
    now: Timestamp,
) -> Result<IssuedKey, ServiceError> {
    if let Some(issued) = issue_at_once(&context, &call, &new, expire_time, now).await? {
        return Ok(issued);
    }
    let transaction = context.store.begin().await?;
    let organization = find_open(&transaction, call.caller.reach(), new.organization_id).await?;
    if let Some(request_id) = new.request_id
        && api_keys::find_by_request_id(&transaction, organization.id, request_id).await?.is_some()
    {
        return Err(repeated());
    }
    check_cap(&transaction, &organization).await?;
    let secret = Secret::generate(&organization.secret_prefix, new.environment, &random::secret_bytes());
    let request_id = new.request_id;
    let key = record(new, &organization, &secret, &call, expire_time, now);
    let digest = secret.digest();
    api_keys::insert(&transaction, &key, &digest, request_id).await.map_err(of_insert)?;
    let event = event(&key, &call, now);
    audit_events::insert(&transaction, RecordId::new(now, random::bytes()), &event).await?;
    let committed = commit(transaction).await;
    context.records.evict_key(&digest);
    committed?;
    Ok(IssuedKey { key, secret })
}

/// Issues a key in one statement, where the database does that and nothing stands in the way; `None` where it was not
/// issued. What the cache knows of the organization only shapes the secret: the statement checks it, and a refusal is
/// left to the transaction.
async fn issue_at_once(
    context: &Context,
    call: &Call,
    new: &NewKey,
    expire_time: Option<Timestamp>,
    now: Timestamp,
) -> Result<Option<IssuedKey>, ServiceError> {
    if !new_keys::is_possible(&context.store) || !call.caller.reach().includes(new.organization_id) {
        return Ok(None);
    }
    let Some(organization) = context.records.find_organization(new.organization_id, Freshness::Cached).await? else {
        return Ok(None);
    };
    let secret = Secret::generate(&organization.secret_prefix, new.environment, &random::secret_bytes());
    let key = record(new.clone(), &organization, &secret, call, expire_time, now);
    let digest = secret.digest();
    let row = NewRow {
        key: &key,
        digest: &digest,
        request_id: new.request_id,
        secret_prefix: &organization.secret_prefix,
        event_id: RecordId::new(now, random::bytes()),
        event: &event(&key, call, now),
    };
    let inserted = new_keys::insert_at_once(&context.store, &row).await;
    context.records.evict_key(&digest);
    Ok(inserted.map_err(of_insert)?.then_some(IssuedKey { key, secret }))
}

fn event(key: &ApiKey, call: &Call, now: Timestamp) -> NewAuditEvent {
    let detail = json!({"environment": key.environment.as_str(), "scopes": key.scopes.len()});
    NewAuditEvent {
        time: now,
        actor: call.actor(),
        action: AuditAction::KeyCreate,
        target_id: key.id.to_string(),
        organization_id: key.organization_id,
        detail: detail.to_string(),
    }
}

fn of_insert(error: StoreError) -> ServiceError {
    match error {
        StoreError::Conflict(Conflict::RequestId) => repeated(),
        other => other.into(),
    }
}

/// The organization, if the caller may know of it and it is active; it stays so until the transaction ends.
/// One with a key cap is locked for this transaction alone, so that two creations cannot both take its last place;
/// those without share the lock, and do not queue.
pub(super) async fn find_open(
    transaction: &impl Database,
    reach: Reach,
    id: OrganizationId,
) -> Result<Organization, ServiceError> {
    let resource = Resource::organization(id);
    let missing = || ServiceError::NotFound(resource.clone());
    let unlocked = organizations::find_by_id(transaction, reach, id).await?.ok_or_else(missing)?;
    let locked = if unlocked.max_keys > 0 {
        organizations::find_locked(transaction, reach, id).await?
    } else {
        organizations::find_shared(transaction, reach, id).await?
    };
    let organization = locked.ok_or_else(missing)?;
    if organization.active {
        return Ok(organization);
    }
    Err(ServiceError::FailedPrecondition {
        reason: "ORGANIZATION_INACTIVE",
        resource,
        description: "the organization is not active".to_owned(),
    })
}

/// Refuses a key beyond the cap.
async fn check_cap(transaction: &impl Database, organization: &Organization) -> Result<(), ServiceError> {
    let max_keys = organization.max_keys;
    if max_keys > 0 && key_counts::count(transaction, organization.id).await? >= max_keys {
        return Err(ServiceError::KeyCapReached { organization: organization.id, max_keys });
    }
    Ok(())
}

fn record(
    new: NewKey,
    organization: &Organization,
    secret: &Secret,
    call: &Call,
    expire_time: Option<Timestamp>,
    now: Timestamp,
) -> ApiKey {
    let id = KeyId::new(now, random::bytes());
    ApiKey {
        id,
        organization_id: organization.id,
        name: new.name,
        prefix: organization.secret_prefix.with_environment(new.environment),
        hint: secret.hint(),
        environment: new.environment,
        stored_status: StoredStatus::Active,
        scopes: new.scopes,
        metadata: new.metadata,
        owner_id: new.owner_id,
        allowed_cidrs: new.allowed_cidrs,
        rate_limits: new.rate_limits,
        refill_time: new.credits.and_then(|credits| credits.refill).map(|refill| refill.interval.next_after(now)),
        credits: new.credits,
        create_time: now,
        update_time: now,
        expire_time,
        last_used_time: None,
        request_count: 0,
        created_by: call.caller.key_id().to_string(),
        revocation: None,
        rotated_from_id: None,
        successor_id: None,
        counter_id: id,
        etag: 1,
    }
}

fn repeated() -> ServiceError {
    ServiceError::AlreadyExists { reason: "REQUEST_ID_REUSED", field: "request_id", resource: None }
}

/// The key that the first call with this request id created.
async fn find_repeated(
    context: &Context,
    organization: OrganizationId,
    request_id: Option<RecordId>,
) -> Result<Option<Resource>, ServiceError> {
    let Some(request_id) = request_id else {
        return Ok(None);
    };
    let first = api_keys::find_by_request_id(context.store.write(), organization, request_id).await?;
    Ok(first.map(|key| Resource::key(key.id)))
}
