//! `ListKeys`: an organization's keys, newest first, page by page.

use super::{Call, Context, Resource, ServiceError, guards};
use crate::{
    domain::{
        key::{ApiKey, KeyFilter},
        page::{PageRequest, PageToken, Position},
    },
    store::{api_keys, organizations},
};

/// Reads one page, and the token of the next one, empty after the last.
///
/// # Errors
/// `NotFound` without such an organization, `InvalidArgument` for a token of another list.
pub async fn list_keys(
    context: &Context,
    call: &Call,
    filter: &KeyFilter,
    size: u64,
    token: &PageToken,
) -> Result<(Vec<ApiKey>, String), ServiceError> {
    let tokens = context.page_tokens()?;
    let list = format!("keys|{}|{filter:?}", call.caller.key_id());
    let after = tokens.decode(token, &list).map_err(|reason| ServiceError::invalid("page_token", reason))?;
    let reach = call.caller.reach();
    if organizations::find_by_id(context.store.control(), reach, filter.organization_id).await?.is_none() {
        return Err(ServiceError::NotFound(Resource::organization(filter.organization_id)));
    }
    let page = PageRequest { size, after };
    let page = api_keys::list(context.store.control(), reach, filter, context.clock.now(), &page).await?;
    let page = page.bounded(bytes_of, |key| Position { sort: key.create_time.micros(), id: key.id.to_string() });
    let next = page.next.map(|position| tokens.encode(&position, &list)).unwrap_or_default();
    Ok((guards::with_credits(context.store.control(), page.rows).await?, next))
}

/// About what a key takes on the wire.
fn bytes_of(key: &ApiKey) -> usize {
    let metadata: usize = key.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    let scopes: usize = key.scopes.iter().map(|scope| scope.as_str().len()).sum();
    let texts = key.name.len() + key.owner_id.len() + key.revocation.as_ref().map_or(0, |end| end.note.len());
    400 + metadata + scopes + texts + 50 * key.allowed_cidrs.len() + 90 * key.rate_limits.len()
}
