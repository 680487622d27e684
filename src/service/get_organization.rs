//! `GetOrganization`: reads one organization, by id, slug or email.

use super::{Call, Context, Resource, ServiceError};
use crate::{
    domain::organization::{Organization, OrganizationSelector},
    store::{api_keys, organizations},
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
    counted(context, organization).await
}

/// Counts an organization's keys.
pub(super) async fn counted(
    context: &Context,
    organization: Organization,
) -> Result<CountedOrganization, ServiceError> {
    let key_count = api_keys::count(context.store.control(), organization.id).await?;
    Ok(CountedOrganization { organization, key_count })
}
