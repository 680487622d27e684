//! Requests of `OrganizationService`, from wire to domain. Every bad field is named; nothing is looked up.

use super::{decode_key::parse_name_part, fields::Fields};
use crate::{
    domain::{
        Invalid,
        ids::{OrganizationId, RecordId},
        organization::{
            NewOrganization, OrganizationChanges, OrganizationFilter, OrganizationSelector, Plan, parse_max_keys,
            parse_monthly_quota,
        },
        page::{self, PageToken},
        secret::SecretPrefix,
        text,
    },
    proto::v1,
    service::{ServiceError, UpdateOrganization},
};

pub fn decode_create(request: v1::CreateOrganizationRequest) -> Result<NewOrganization, ServiceError> {
    let mut fields = Fields::default();
    let name = fields.take("name", text::parse_name(&request.name));
    let slug = fields.take("slug", text::parse_slug(&request.slug));
    let email = fields.optional("email", &request.email, text::parse_email);
    let plan = fields.word("plan", request.plan, plan);
    let max_keys = fields.take("max_keys", parse_max_keys(request.max_keys));
    let rate_limits = fields.rate_limits("rate_limits", &request.rate_limits);
    let monthly_quota = fields.take("monthly_quota", parse_monthly_quota(request.monthly_quota));
    let secret_prefix = fields.take("secret_prefix", SecretPrefix::parse(&request.secret_prefix));
    let metadata = fields.take("metadata", text::parse_metadata(request.metadata));
    let request_id = fields.optional("request_id", &request.request_id, RecordId::parse);
    let new = (|| {
        Some(NewOrganization {
            name: name?,
            slug: slug?,
            email,
            plan: plan.unwrap_or(Plan::Free),
            max_keys: max_keys?,
            rate_limits: rate_limits?,
            monthly_quota: monthly_quota?,
            secret_prefix: secret_prefix?,
            metadata: metadata?,
            request_id,
        })
    })();
    fields.finish(new)
}

pub fn decode_get(request: v1::GetOrganizationRequest) -> Result<OrganizationSelector, ServiceError> {
    use v1::get_organization_request::Selector;
    let mut fields = Fields::default();
    let selector = match request.selector {
        Some(Selector::OrganizationId(id)) => {
            fields.take("organization_id", OrganizationId::parse(&id)).map(OrganizationSelector::Id)
        }
        Some(Selector::Slug(slug)) => fields.take("slug", text::parse_slug(&slug)).map(OrganizationSelector::Slug),
        Some(Selector::Email(email)) => {
            fields.take("email", text::parse_email(&email)).map(OrganizationSelector::Email)
        }
        None => {
            fields.refuse("selector", Invalid::new("must be one of organization_id, slug and email"));
            None
        }
    };
    fields.finish(selector)
}

pub fn decode_list(
    request: &v1::ListOrganizationsRequest,
) -> Result<(OrganizationFilter, u64, PageToken), ServiceError> {
    let mut fields = Fields::default();
    let size = fields.take("page_size", page::parse_page_size(request.page_size));
    let token = fields.take("page_token", PageToken::parse(&request.page_token));
    let name_contains = fields.optional("name_contains", &request.name_contains, parse_name_part);
    let filter = OrganizationFilter { active: request.active, name_contains };
    fields.finish(size.zip(token).map(|(size, token)| (filter, size, token)))
}

pub fn decode_update(request: v1::UpdateOrganizationRequest) -> Result<UpdateOrganization, ServiceError> {
    let mut fields = Fields::default();
    let wire = request.organization.unwrap_or_default();
    let id = fields.take("organization.id", OrganizationId::parse(&wire.id));
    let etag = fields.etag(&request.etag);
    let mut changes = OrganizationChanges::default();
    let paths = request.update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        fields.refuse("update_mask", Invalid::new("must name at least one field"));
    }
    for (at, path) in paths.iter().enumerate() {
        let field = format!("organization.{path}");
        match path.as_str() {
            "name" => changes.name = fields.take(&field, text::parse_name(&wire.name)),
            "slug" => changes.slug = fields.take(&field, text::parse_slug(&wire.slug)),
            "email" => changes.email = Some(fields.optional(&field, &wire.email, text::parse_email)),
            "plan" => changes.plan = fields.required_word(&field, wire.plan, plan),
            "max_keys" => changes.max_keys = fields.take(&field, parse_max_keys(wire.max_keys)),
            "rate_limits" => changes.rate_limits = fields.rate_limits(&field, &wire.rate_limits),
            "monthly_quota" => changes.monthly_quota = fields.take(&field, parse_monthly_quota(wire.monthly_quota)),
            "secret_prefix" => changes.secret_prefix = fields.take(&field, SecretPrefix::parse(&wire.secret_prefix)),
            "metadata" => changes.metadata = fields.take(&field, text::parse_metadata(wire.metadata.clone())),
            _ => fields.refuse(&format!("update_mask.paths[{at}]"), Invalid::new(UPDATABLE)),
        }
    }
    fields.finish((|| Some(UpdateOrganization { id: id?, changes, etag }))())
}

const UPDATABLE: &str = "must be one of name, slug, email, plan, max_keys, rate_limits, monthly_quota, secret_prefix, \
                         metadata";

/// The id and the etag that most requests consist of.
pub fn decode_named(id: &str, etag: &str) -> Result<(OrganizationId, Option<i64>), ServiceError> {
    let mut fields = Fields::default();
    let id = fields.take("organization_id", OrganizationId::parse(id));
    let etag = fields.etag(etag);
    fields.finish(id.map(|id| (id, etag)))
}

const fn plan(word: v1::Plan) -> Option<Plan> {
    match word {
        v1::Plan::Unspecified => None,
        v1::Plan::Free => Some(Plan::Free),
        v1::Plan::Pro => Some(Plan::Pro),
        v1::Plan::Enterprise => Some(Plan::Enterprise),
    }
}
