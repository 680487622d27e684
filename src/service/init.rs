//! `keystead init`: the built-in organization `system` and the first admin key. Its secret is given once.

use std::sync::Arc;

use serde_json::json;

use super::{Context, ServiceError};
use crate::{
    domain::{
        audit::{Actor, AuditAction, NewAuditEvent},
        ids::{KeyId, OrganizationId, RecordId},
        key::{ApiKey, Environment, StoredStatus},
        organization::{Organization, Plan, SYSTEM_SLUG},
        permission::{ADMIN_SCOPE, Reach},
        scope::Scope,
        secret::{Secret, SecretPrefix},
        time::Timestamp,
    },
    random,
    store::{Conflict, StoreError, api_keys, audit_events, commit, organizations},
};

/// The name of the first admin key.
pub const ADMIN_KEY_NAME: &str = "first admin";
/// Who acts where no key does.
const ACTOR: &str = "init";

/// Whether the database has its `system` organization.
///
/// # Errors
/// The store's own.
pub async fn is_initialized(context: &Context) -> Result<bool, ServiceError> {
    let found = organizations::find_by_id(context.store.control(), Reach::All, OrganizationId::SYSTEM).await?;
    Ok(found.is_some())
}

/// Creates `system` and its first admin key.
///
/// # Errors
/// `FailedPrecondition` where the database has been initialized already, also by somebody else at the same time.
pub async fn init(context: &Arc<Context>) -> Result<Secret, ServiceError> {
    let now = context.clock.now();
    context.run_to_end(create(context.clone(), now)).await
}

async fn create(context: Arc<Context>, now: Timestamp) -> Result<Secret, ServiceError> {
    let transaction = context.store.begin().await?;
    let organization = system(now)?;
    if organizations::find_by_id(&transaction, Reach::All, organization.id).await?.is_some() {
        return Err(initialized());
    }
    organizations::insert(&transaction, &organization, None).await.map_err(|error| match error {
        StoreError::Conflict(Conflict::Slug | Conflict::Id) => initialized(),
        other => other.into(),
    })?;
    let secret = Secret::generate(&organization.secret_prefix, Environment::Live, &random::secret_bytes());
    let key = admin(&organization, &secret, now)?;
    api_keys::insert(&transaction, &key, &secret.digest(), None).await?;
    let targets =
        [(AuditAction::OrganizationCreate, organization.id.to_string()), (AuditAction::KeyCreate, key.id.to_string())];
    for (action, target_id) in targets {
        let actor = Actor { key_id: String::new(), name: ACTOR.to_owned(), request_id: String::new() };
        let (organization_id, detail) = (organization.id, json!({}).to_string());
        let event = NewAuditEvent { time: now, actor, action, target_id, organization_id, detail };
        audit_events::insert(&transaction, RecordId::new(now, random::bytes()), &event).await?;
    }
    commit(transaction).await?;
    Ok(secret)
}

fn system(now: Timestamp) -> Result<Organization, ServiceError> {
    Ok(Organization {
        id: OrganizationId::SYSTEM,
        name: "System".to_owned(),
        slug: SYSTEM_SLUG.to_owned(),
        email: None,
        plan: Plan::Enterprise,
        active: true,
        max_keys: 0,
        rate_limits: Vec::new(),
        monthly_quota: 0,
        secret_prefix: SecretPrefix::parse("").map_err(|reason| ServiceError::Internal(reason.0))?,
        metadata: std::collections::BTreeMap::new(),
        create_time: now,
        update_time: now,
        etag: 1,
    })
}

fn admin(organization: &Organization, secret: &Secret, now: Timestamp) -> Result<ApiKey, ServiceError> {
    let id = KeyId::new(now, random::bytes());
    Ok(ApiKey {
        id,
        organization_id: organization.id,
        name: ADMIN_KEY_NAME.to_owned(),
        prefix: organization.secret_prefix.with_environment(Environment::Live),
        hint: secret.hint(),
        environment: Environment::Live,
        stored_status: StoredStatus::Active,
        scopes: vec![Scope::parse(ADMIN_SCOPE).map_err(|reason| ServiceError::Internal(reason.0))?],
        metadata: std::collections::BTreeMap::new(),
        owner_id: String::new(),
        allowed_cidrs: Vec::new(),
        rate_limits: Vec::new(),
        credits: None,
        refill_time: None,
        create_time: now,
        update_time: now,
        expire_time: None,
        last_used_time: None,
        request_count: 0,
        created_by: ACTOR.to_owned(),
        revocation: None,
        rotated_from_id: None,
        successor_id: None,
        counter_id: id,
        etag: 1,
    })
}

fn initialized() -> ServiceError {
    ServiceError::FailedPrecondition {
        reason: "ALREADY_INITIALIZED",
        resource: super::Resource::organization(OrganizationId::SYSTEM),
        description: "the database has its system organization already".to_owned(),
    }
}
