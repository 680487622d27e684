//! Who calls: the bearer secret of Keystead's own API, resolved to a caller with a permission.
//! Control-plane calls read the database each time, so that a cache is never what a permission rests on;
//! verification takes the caller from the same cache as the keys that it verifies.

use std::{net::IpAddr, sync::Arc};

use super::{Context, ServiceError};
use crate::{
    domain::{
        digest::Digest,
        organization::Organization,
        outcome::{self, Question},
        permission::{Caller, Permission, Reach},
        record::KeyRecord,
        scope::RequiredScopes,
        secret::digest_of_presented,
    },
    store::callers,
    verify::Freshness,
};

/// What a caller shows of itself.
pub struct Credential<'a> {
    /// The bearer secret, `None` where there was none or several.
    pub secret: Option<&'a str>,
    /// The address that the connection comes from.
    pub peer: Option<IpAddr>,
}

/// Resolves a credential, and checks that it grants `permission`.
///
/// # Errors
/// `Unauthenticated` for every credential that does not hold, whatever the reason; `PermissionDenied`; or
/// `Unavailable` where the database cannot say.
pub async fn authenticate(
    context: &Context,
    credential: &Credential<'_>,
    permission: Permission,
    freshness: Freshness,
) -> Result<Caller, ServiceError> {
    let digest = credential.secret.and_then(digest_of_presented).ok_or(ServiceError::Unauthenticated)?;
    let found = find_caller(context, &digest, freshness).await?;
    let (key, organization) = found.ok_or(ServiceError::Unauthenticated)?;
    let question = Question {
        reach: Reach::All,
        key_id: None,
        required_scopes: RequiredScopes::default(),
        client_address: credential.peer,
    };
    let now = context.clock.now();
    if outcome::decide(&key, &organization, &question, now).is_err() {
        return Err(ServiceError::Unauthenticated);
    }
    context.recorder.record_caller(key.id, now);
    let caller = Caller::new(key);
    if !caller.may(permission) {
        return Err(ServiceError::PermissionDenied {
            reason: "PERMISSION_DENIED",
            permission: permission.as_str().to_owned(),
        });
    }
    if permission == Permission::OrganizationsCreate && caller.reach() != Reach::All {
        return Err(ServiceError::PermissionDenied {
            reason: "SYSTEM_ORGANIZATION_REQUIRED",
            permission: permission.as_str().to_owned(),
        });
    }
    Ok(caller)
}

/// The caller's key and its organization; fresh ones come in one read of the database. What is cached counts only while
/// the feed was heard within the staleness bound, as for the keys that the caller asks about.
async fn find_caller(
    context: &Context,
    digest: &Digest,
    freshness: Freshness,
) -> Result<Option<(Arc<KeyRecord>, Arc<Organization>)>, ServiceError> {
    if freshness == Freshness::Fresh {
        context.store.check_there()?;
        let found = Box::pin(callers::find(context.store.control(), digest)).await?;
        return Ok(found.map(|(key, organization)| (Arc::new(key), Arc::new(organization))));
    }
    let basis = context.feed.basis(freshness);
    let found = find_record(context, digest, basis.freshness).await?;
    if basis.freshness == Freshness::Fresh || context.feed.holds(basis) {
        return Ok(found);
    }
    Box::pin(find_record(context, digest, Freshness::Fresh)).await
}

/// As a verification finds the key that it is about: those that ask together share a query.
async fn find_record(
    context: &Context,
    digest: &Digest,
    freshness: Freshness,
) -> Result<Option<(Arc<KeyRecord>, Arc<Organization>)>, ServiceError> {
    let Some(key) = context.records.find_key(digest, freshness).await? else {
        return Ok(None);
    };
    let organization = context.records.find_organization(key.organization_id, freshness).await?;
    Ok(organization.map(|organization| (key, organization)))
}
