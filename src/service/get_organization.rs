//! `GetOrganization`: reads one organization, by id, slug or email.

use super::{Call, Context, Resource, ServiceError};
use crate::{
    domain::organization::{Organization, OrganizationSelector},
    store::{Database, key_counts, organizations},
};

/// An organization and how many keys it has that are not revoked.
#[derive(Debug, Clone)]
pub struct CountedOrganization {
    pub organization: Organization,
    pub key_count: i64,
}

/// Reads one organization.
///
/// # Errors
/// `NotFound` where there is none that the caller may know of.
pub async fn get_organization(
    context: &Context,
    call: &Call,
    selector: OrganizationSelector,
) -> Result<CountedOrganization, ServiceError> {
    let found = organizations::find(context.store.control(), call.caller.reach(), &selector).await?;
    let name = match selector {
        OrganizationSelector::Id(id) => id.to_string(),
        OrganizationSelector::Slug(text) | OrganizationSelector::Email(text) => text,
    };
    let organization = found.ok_or(ServiceError::NotFound(Resource { kind: "organization", name }))?;
    counted(context.store.control(), organization).await
}

/// Counts an organization's keys. A mutation does so within its transaction: what fails after the commit would be
/// reported as if nothing had been done.
pub(super) async fn counted(
    db: &impl Database,
    organization: Organization,
) -> Result<CountedOrganization, ServiceError> {
    let key_count = key_counts::count(db, organization.id).await?;
    Ok(CountedOrganization { organization, key_count })
}
