//! Requests of `AuditService`, from wire to domain. Every bad field is named; nothing is looked up.

use super::fields::Fields;
use crate::{
    domain::{
        Invalid,
        audit::{AuditAction, AuditFilter},
        ids::{KeyId, OrganizationId},
        page::{self, PageToken},
    },
    proto::v1,
    service::ServiceError,
};

pub fn decode_audit_list(request: &v1::ListAuditEventsRequest) -> Result<(AuditFilter, u64, PageToken), ServiceError> {
    let mut fields = Fields::default();
    let organization_id = fields.optional("organization_id", &request.organization_id, OrganizationId::parse);
    // Keys and organizations share one form of id; a target may be either.
    let target_id = fields.optional("target_id", &request.target_id, |id| KeyId::parse(id).map(|id| id.to_string()));
    let actor_key_id =
        fields.optional("actor_key_id", &request.actor_key_id, |id| KeyId::parse(id).map(|id| id.to_string()));
    let action = fields.optional("action", &request.action, |word| {
        AuditAction::from_stored(word).ok_or_else(|| Invalid::new("must be an action such as key.create"))
    });
    let start_time = fields.time("start_time", request.start_time.as_ref());
    let end_time = fields.time("end_time", request.end_time.as_ref());
    if let (Some(start), Some(end)) = (start_time, end_time)
        && start >= end
    {
        fields.refuse("end_time", Invalid::new("must be after start_time"));
    }
    let size = fields.take("page_size", page::parse_page_size(request.page_size));
    let token = fields.take("page_token", PageToken::parse(&request.page_token));
    let filter = AuditFilter { organization_id, target_id, actor_key_id, action, start_time, end_time };
    fields.finish(size.zip(token).map(|(size, token)| (filter, size, token)))
}
