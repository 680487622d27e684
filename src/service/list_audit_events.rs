//! `ListAuditEvents`: who changed what, newest first. Seals what waits before it reads, so that a caller sees its own
//! change at once and every event that is shown is already part of the chain.

use std::sync::Arc;

use super::{Call, Context, Resource, ServiceError};
use crate::{
    domain::{
        audit::{AuditFilter, SealedEvent},
        page::{PageRequest, PageToken},
        permission::Reach,
    },
    store::audit_events,
};

/// Reads one page, and the token of the next one, empty after the last.
///
/// # Errors
/// `NotFound` for an organization that does not exist for the caller, `InvalidArgument` for a token of another list.
pub async fn list_audit_events(
    context: &Arc<Context>,
    call: &Call,
    mut filter: AuditFilter,
    size: u64,
    token: &PageToken,
) -> Result<(Vec<SealedEvent>, String), ServiceError> {
    let tokens = context.page_tokens()?;
    let list = format!("audit|{}|{filter:?}", call.caller.key_id());
    let after = tokens.decode(token, &list).map_err(|reason| ServiceError::invalid("page_token", reason))?;
    if let Reach::Only(own) = call.caller.reach() {
        match filter.organization_id {
            Some(wanted) if wanted != own => return Err(ServiceError::NotFound(Resource::organization(wanted))),
            Some(_) | None => filter.organization_id = Some(own),
        }
    }
    let sealer = context.clone();
    context.run_to_end(async move { Ok(audit_events::seal(&sealer.store).await?) }).await?;
    let page = audit_events::list(context.store.control(), &filter, &PageRequest { size, after }).await?;
    let next = page.next.map(|position| tokens.encode(&position, &list)).unwrap_or_default();
    Ok((page.rows, next))
}
