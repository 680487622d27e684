//! Requests of `KeyService` about keys, from wire to domain. Every bad field is named; nothing is looked up.

use std::{collections::BTreeMap, mem, time::Duration};

use zeroize::Zeroizing;

use super::fields::Fields;
use crate::{
    domain::{
        Invalid, address,
        ids::{KeyId, OrganizationId, RecordId},
        key::{Environment, KeyChanges, KeyFilter, KeyStatus, Lifetime, NewKey, RevocationReason},
        limits::{COST_MAX, parse_limit_name},
        outcome::{Outcome, Question},
        page::{self, PageToken},
        permission::Reach,
        scope::RequiredScopes,
        secret::{Secret, digest_of_presented},
        text,
        time::Timestamp,
        usage::UsageEvent,
    },
    proto::v1,
    service::{self, Freshness, RevokeKey, RevokeKeys, RotateKey, ServiceError, UpdateKey, Verification},
};

/// The longest lifetime of a key given as a span: 100 years.
const TTL_MAX: Duration = Duration::from_hours(36_500 * 24);
/// The longest overlap of a rotation: 30 days.
const OVERLAP_MAX: Duration = Duration::from_hours(30 * 24);
const LIMIT_NAMES_MAX: usize = 100;
const TAGS_MAX: usize = 20;
/// The most verifications in one call.
const BATCH_MAX: usize = 1000;
/// The longest endpoint, in characters, here and in reports of usage.
pub(super) const ENDPOINT_LENGTH_MAX: usize = 256;
/// The longest method, in characters, here and in reports of usage.
pub(super) const METHOD_LENGTH_MAX: usize = 16;
/// The longest user agent, in characters, here and in reports of usage.
pub(super) const USER_AGENT_LENGTH_MAX: usize = 512;
/// The longest id of a request, in characters, here and in reports of usage.
pub(super) const REQUEST_ID_LENGTH_MAX: usize = 128;

/// One list to read: filter, page size, page token.
pub type KeyList = (KeyFilter, u64, PageToken);

pub fn decode_create(request: v1::CreateKeyRequest, now: Timestamp) -> Result<NewKey, ServiceError> {
    let mut fields = Fields::default();
    let organization_id = fields.take("organization_id", OrganizationId::parse(&request.organization_id));
    let name = fields.take("name", text::parse_name(&request.name));
    let environment = fields.required_word("environment", request.environment, environment);
    let scopes = fields.scopes("scopes", &request.scopes);
    let metadata = fields.take("metadata", text::parse_metadata(request.metadata));
    let owner_id = fields.take("owner_id", text::parse_owner(&request.owner_id));
    let allowed_cidrs = fields.cidrs("allowed_cidrs", &request.allowed_cidrs);
    let rate_limits = fields.rate_limits("rate_limits", &request.rate_limits);
    let credits = fields.credits("credits", request.credits.as_ref());
    let lifetime = decode_lifetime(&mut fields, request.lifetime.as_ref(), now);
    let request_id = fields.optional("request_id", &request.request_id, RecordId::parse);
    let new = (|| {
        Some(NewKey {
            organization_id: organization_id?,
            name: name?,
            environment: environment?,
            scopes: scopes?,
            metadata: metadata?,
            owner_id: owner_id?,
            allowed_cidrs: allowed_cidrs?,
            rate_limits: rate_limits?,
            credits,
            lifetime: lifetime?,
            request_id,
        })
    })();
    fields.finish(new)
}

fn decode_lifetime(
    fields: &mut Fields,
    lifetime: Option<&v1::create_key_request::Lifetime>,
    now: Timestamp,
) -> Option<Lifetime> {
    use v1::create_key_request::Lifetime as Wire;
    match lifetime {
        None => Some(Lifetime::Unlimited),
        Some(Wire::ExpireTime(time)) => fields.future_time("expire_time", Some(time), now).map(Lifetime::Until),
        Some(Wire::Ttl(span)) => {
            let span = fields.span("ttl", Some(span))?;
            if !(Duration::from_secs(1)..=TTL_MAX).contains(&span) {
                fields.refuse("ttl", Invalid::new("must be 1 second to 36,500 days"));
                return None;
            }
            Some(Lifetime::For(span))
        }
    }
}

pub fn decode_verify_batch(
    request: v1::BatchVerifyKeysRequest,
    reach: Reach,
    now: Timestamp,
) -> Result<Vec<Verification>, ServiceError> {
    if request.requests.len() > BATCH_MAX {
        let reason = Invalid::new(format!("must have at most {BATCH_MAX} entries"));
        return Err(ServiceError::invalid("requests", reason));
    }
    service::all_or_violations(request.requests.into_iter().map(|request| decode_verify(request, reach, now)).collect())
}

pub fn decode_verify(
    mut request: v1::VerifyKeyRequest,
    reach: Reach,
    now: Timestamp,
) -> Result<Verification, ServiceError> {
    // Wiped when the verification is over; what prost and the transport held of it is beyond our reach.
    let secret = Secret::presented(Zeroizing::new(mem::take(&mut request.secret)));
    let mut fields = Fields::default();
    let key_id = request.key_id.as_ref().and_then(|id| fields.take("key_id", KeyId::of_text(id)));
    let wanted = request.required_scopes.unwrap_or_default();
    let all_of = fields.scopes("required_scopes.all_of", &wanted.all_of);
    let any_of = fields.scopes("required_scopes.any_of", &wanted.any_of);
    let cost = request.cost.unwrap_or(1);
    if !(0..=COST_MAX).contains(&cost) {
        fields.refuse("cost", Invalid::new(format!("must be 0 to {COST_MAX}")));
    }
    let limit_names = fields.list("limit_names", &request.limit_names, LIMIT_NAMES_MAX, |name| parse_limit_name(name));
    if request.min_revision.is_some_and(|revision| revision < 0) {
        fields.refuse("min_revision", Invalid::new("must not be negative"));
    }
    let client_address = fields.optional("client_address", &request.client_address, address::parse_address);
    let freshness = fields.word("consistency", request.consistency, |word| match word {
        v1::Consistency::Unspecified | v1::Consistency::Cached => Some(Freshness::Cached),
        v1::Consistency::Fresh => Some(Freshness::Fresh),
    });
    let plain = [
        ("endpoint", &request.endpoint, ENDPOINT_LENGTH_MAX),
        ("method", &request.method, METHOD_LENGTH_MAX),
        ("user_agent", &request.user_agent, USER_AGENT_LENGTH_MAX),
        ("request_id", &request.request_id, REQUEST_ID_LENGTH_MAX),
    ];
    for (field, value, length_max) in plain {
        fields.take(field, text::check_plain(value, length_max));
    }
    if request.tags.len() > TAGS_MAX {
        fields.refuse("tags", Invalid::new(format!("must have at most {TAGS_MAX} entries")));
    }
    let tags: Option<BTreeMap<String, String>> = fields.take("tags", text::parse_metadata(request.tags));
    let verification = (|| {
        Some(Verification {
            digest: digest_of_presented(secret.expose()),
            secret,
            question: Question {
                reach,
                key_id,
                required_scopes: RequiredScopes { all_of: all_of?, any_of: any_of? },
                client_address,
            },
            cost,
            limit_names: limit_names?,
            freshness: freshness?,
            min_revision: request.min_revision,
            usage: UsageEvent {
                key: None,
                time: now,
                outcome: Outcome::NotFound,
                endpoint: request.endpoint,
                method: request.method,
                client_address: request.client_address,
                user_agent: request.user_agent,
                request_id: request.request_id,
                tags: tags?,
            },
        })
    })();
    fields.finish(verification)
}

pub fn decode_list(request: &v1::ListKeysRequest) -> Result<KeyList, ServiceError> {
    let mut fields = Fields::default();
    let organization_id = fields.take("organization_id", OrganizationId::parse(&request.organization_id));
    let size = fields.take("page_size", page::parse_page_size(request.page_size));
    let token = fields.take("page_token", PageToken::parse(&request.page_token));
    let status = fields.word("status", request.status, |word| match word {
        v1::KeyStatus::Unspecified => None,
        v1::KeyStatus::Active => Some(KeyStatus::Active),
        v1::KeyStatus::Disabled => Some(KeyStatus::Disabled),
        v1::KeyStatus::Revoked => Some(KeyStatus::Revoked),
        v1::KeyStatus::Expired => Some(KeyStatus::Expired),
    });
    let environment = fields.word("environment", request.environment, environment);
    let owner_id = fields.optional("owner_id", &request.owner_id, text::parse_owner);
    let name_contains = fields.optional("name_contains", &request.name_contains, parse_name_part);
    let expiring_before = fields.time("expiring_before", request.expiring_before.as_ref());
    let unused_since = fields.time("unused_since", request.unused_since.as_ref());
    let filter = (|| {
        Some(KeyFilter {
            organization_id: organization_id?,
            status,
            environment,
            owner_id,
            name_contains,
            expiring_before,
            unused_since,
        })
    })();
    fields.finish((|| Some((filter?, size?, token?)))())
}

pub fn decode_update(request: v1::UpdateKeyRequest, now: Timestamp) -> Result<UpdateKey, ServiceError> {
    let mut fields = Fields::default();
    let key = request.key.unwrap_or_default();
    let id = fields.take("key.id", KeyId::parse(&key.id));
    let etag = fields.etag(&request.etag);
    let mut changes = KeyChanges::default();
    let paths = request.update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        fields.refuse("update_mask", Invalid::new("must name at least one field"));
    }
    for (at, path) in paths.iter().enumerate() {
        match path.as_str() {
            "name" => changes.name = fields.take("key.name", text::parse_name(&key.name)),
            "scopes" => changes.scopes = fields.scopes("key.scopes", &key.scopes),
            "metadata" => {
                changes.metadata = fields.take("key.metadata", text::parse_metadata(key.metadata.clone()));
            }
            "owner_id" => changes.owner_id = fields.take("key.owner_id", text::parse_owner(&key.owner_id)),
            "allowed_cidrs" => changes.allowed_cidrs = fields.cidrs("key.allowed_cidrs", &key.allowed_cidrs),
            "rate_limits" => changes.rate_limits = fields.rate_limits("key.rate_limits", &key.rate_limits),
            "credits" => changes.credits = Some(fields.credits("key.credits", key.credits.as_ref())),
            "expire_time" => {
                changes.expire_time = Some(fields.future_time("key.expire_time", key.expire_time.as_ref(), now));
            }
            "enabled" => changes.enabled = Some(key.enabled),
            _ => fields.refuse(&format!("update_mask.paths[{at}]"), Invalid::new(UPDATABLE)),
        }
    }
    fields.finish((|| Some(UpdateKey { id: id?, changes, etag }))())
}

const UPDATABLE: &str = "must be one of name, scopes, metadata, owner_id, allowed_cidrs, rate_limits, credits, \
                         expire_time, enabled";

pub fn decode_rotate(request: &v1::RotateKeyRequest) -> Result<RotateKey, ServiceError> {
    let mut fields = Fields::default();
    let id = fields.take("key_id", KeyId::parse(&request.key_id));
    let overlap = fields.span("overlap", request.overlap.as_ref()).unwrap_or_default();
    if overlap > OVERLAP_MAX {
        fields.refuse("overlap", Invalid::new("must be at most 30 days"));
    }
    let etag = fields.etag(&request.etag);
    fields.finish((|| Some(RotateKey { id: id?, overlap, etag }))())
}

pub fn decode_revoke(request: &v1::RevokeKeyRequest) -> Result<RevokeKey, ServiceError> {
    let mut fields = Fields::default();
    let id = fields.take("key_id", KeyId::parse(&request.key_id));
    let reason = fields.word("reason", request.reason, |word| Some(reason(word)));
    let note = fields.take("note", text::parse_note(&request.note));
    let etag = fields.etag(&request.etag);
    fields.finish((|| Some(RevokeKey { id: id?, reason: reason?, note: note?, etag }))())
}

pub fn decode_revoke_keys(request: &v1::RevokeKeysRequest) -> Result<RevokeKeys, ServiceError> {
    let mut fields = Fields::default();
    let organization_id = fields.take("organization_id", OrganizationId::parse(&request.organization_id));
    // An owner that was lost on the way must not select everything.
    let owner_id = match request.owner_id.as_deref() {
        None => None,
        Some("") => {
            fields.refuse("owner_id", Invalid::new("must not be empty; leave it out to revoke all keys"));
            None
        }
        Some(owner) => fields.take("owner_id", text::parse_owner(owner)),
    };
    let reason = fields.word("reason", request.reason, |word| Some(reason(word)));
    let note = fields.take("note", text::parse_note(&request.note));
    fields.finish((|| {
        Some(RevokeKeys {
            organization_id: organization_id?,
            owner_id,
            reason: reason?,
            note: note?,
            dry_run: request.dry_run,
        })
    })())
}

pub fn decode_key_id(field: &str, id: &str) -> Result<KeyId, ServiceError> {
    KeyId::parse(id).map_err(|reason| ServiceError::invalid(field, reason))
}

/// A part of a name to search for, folded as names are.
pub fn parse_name_part(part: &str) -> Result<String, Invalid> {
    text::parse_plain(part, text::NAME_LENGTH_MAX).map(|part| text::fold(&part))
}

pub(super) const fn environment(word: v1::Environment) -> Option<Environment> {
    match word {
        v1::Environment::Unspecified => None,
        v1::Environment::Live => Some(Environment::Live),
        v1::Environment::Test => Some(Environment::Test),
    }
}

pub(super) const fn reason(word: v1::RevocationReason) -> RevocationReason {
    match word {
        v1::RevocationReason::Unspecified => RevocationReason::Unspecified,
        v1::RevocationReason::KeyCompromise => RevocationReason::KeyCompromise,
        v1::RevocationReason::Superseded => RevocationReason::Superseded,
        v1::RevocationReason::OwnerLeft => RevocationReason::OwnerLeft,
        v1::RevocationReason::PrivilegeWithdrawn => RevocationReason::PrivilegeWithdrawn,
        v1::RevocationReason::Cessation => RevocationReason::Cessation,
        v1::RevocationReason::Other => RevocationReason::Other,
    }
}
