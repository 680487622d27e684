//! Requests about usage and audit events, from wire to domain. Every bad field is named; nothing is looked up.

use super::fields::Fields;
use crate::{
    domain::{
        Invalid,
        audit::{AuditAction, AuditFilter},
        ids::{KeyId, OrganizationId},
        page::{self, PageToken},
        time::Timestamp,
        usage::{Granularity, UsageQuestion, UsageSubject},
    },
    proto::v1,
    service::ServiceError,
};

/// How many endpoints, errors and consumers where no number is given.
const TOP_DEFAULT: u64 = 10;
const TOP_MAX: i32 = 100;

/// The span is the current month where none is given.
pub fn decode_stats(request: v1::UsageStatsRequest, now: Timestamp) -> Result<UsageQuestion, ServiceError> {
    use v1::usage_stats_request::Subject;
    let mut fields = Fields::default();
    let subject = match request.subject {
        Some(Subject::OrganizationId(id)) => {
            fields.take("organization_id", OrganizationId::parse(&id)).map(UsageSubject::Organization)
        }
        Some(Subject::KeyId(id)) => fields.take("key_id", KeyId::parse(&id)).map(UsageSubject::Key),
        None => {
            fields.refuse("subject", Invalid::new("must be one of organization_id and key_id"));
            None
        }
    };
    let start = fields.time("start_time", request.start_time.as_ref());
    let end = fields.time("end_time", request.end_time.as_ref());
    let granularity = fields.word("granularity", request.granularity, |word| {
        Some(match word {
            v1::Granularity::Hour => Granularity::Hour,
            v1::Granularity::Unspecified | v1::Granularity::Day => Granularity::Day,
            v1::Granularity::Month => Granularity::Month,
        })
    });
    if !(0..=TOP_MAX).contains(&request.top) {
        fields.refuse("top", Invalid::new(format!("must be 0 to {TOP_MAX}")));
    }
    let top = u64::try_from(request.top).ok().filter(|top| *top > 0).unwrap_or(TOP_DEFAULT);
    let question = (|| {
        let end = end.unwrap_or_else(|| now.plus(std::time::Duration::from_micros(1)));
        Some(UsageQuestion {
            subject: subject?,
            start: start.unwrap_or_else(|| end.minus(std::time::Duration::from_micros(1)).start_of_month()),
            end,
            granularity: granularity?,
            top,
        })
    })();
    fields.finish(question)
}

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
