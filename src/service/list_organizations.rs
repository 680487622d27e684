//! `ListOrganizations`: the organizations that exist for the caller, newest first, page by page.

use std::collections::HashMap;

use super::{Call, Context, CountedOrganization, ServiceError};
use crate::{
    domain::{
        organization::{Organization, OrganizationFilter},
        page::{PageRequest, PageToken, Position},
    },
    store::{key_counts, organizations},
};

/// Reads one page, and the token of the next one, empty after the last.
///
/// # Errors
/// `InvalidArgument` for a token of another list.
pub async fn list_organizations(
    context: &Context,
    call: &Call,
    filter: &OrganizationFilter,
    size: u64,
    token: &PageToken,
) -> Result<(Vec<CountedOrganization>, String), ServiceError> {
    let tokens = context.page_tokens()?;
    let list = format!("organizations|{}|{filter:?}", call.caller.key_id());
    let after = tokens.decode(token, &list).map_err(|reason| ServiceError::invalid("page_token", reason))?;
    let page = PageRequest { size, after };
    let page = organizations::list(context.store.control(), call.caller.reach(), filter, &page).await?;
    let page = page.bounded(bytes_of, |row| Position { sort: row.create_time.micros(), id: row.id.to_string() });
    let next = page.next.map(|position| tokens.encode(&position, &list)).unwrap_or_default();
    let ids: Vec<_> = page.rows.iter().map(|organization| organization.id).collect();
    let counts = key_counts::count_each(context.store.control(), &ids).await?;
    let counts: HashMap<_, _> = counts.into_iter().collect();
    let rows = page.rows.into_iter().map(|organization| CountedOrganization {
        key_count: counts.get(&organization.id).copied().unwrap_or(0),
        organization,
    });
    Ok((rows.collect(), next))
}

/// About what an organization takes on the wire.
fn bytes_of(organization: &Organization) -> usize {
    let metadata: usize = organization.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    600 + organization.name.len() + metadata + 90 * organization.rate_limits.len()
}
