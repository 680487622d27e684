//! From domain to wire. Decides nothing, but that a `NOT_FOUND` carries nothing else.

use std::time::Duration;

use crate::{
    domain::{
        audit::SealedEvent,
        key::{ApiKey, Environment, KeyStatus, RevocationReason, StoredStatus},
        limits::{Credits, LimitStatus, RateLimit, RefillInterval},
        organization::Plan,
        outcome::Outcome,
        scope::Scope,
        time::Timestamp,
    },
    proto::v1,
    service::{CountedOrganization, RevokedKeys, Verified},
};

/// The most ids that an answer names: 38 bytes each, so that it stays below the 4 MiB which gRPC clients take.
const REVOKED_IDS_MAX: usize = 50_000;

/// Keys that were revoked together: all of them counted, the first of them named.
pub fn encode_revoked(revoked: &RevokedKeys) -> v1::RevokeKeysResponse {
    v1::RevokeKeysResponse {
        key_ids: revoked.ids.iter().take(REVOKED_IDS_MAX).map(ToString::to_string).collect(),
        revision: revoked.revision,
        key_count: i64::try_from(revoked.ids.len()).unwrap_or(i64::MAX),
    }
}

/// A key as it stands at `now`.
pub fn encode_key(key: ApiKey, now: Timestamp) -> v1::ApiKey {
    let credits = key.credits_at(now);
    let revocation = key.revocation.as_ref();
    v1::ApiKey {
        id: key.id.to_string(),
        organization_id: key.organization_id.to_string(),
        environment: encode_environment(key.environment).into(),
        status: encode_status(key.status(now)).into(),
        enabled: key.stored_status == StoredStatus::Active,
        scopes: encode_scopes(&key.scopes),
        allowed_cidrs: key.allowed_cidrs.iter().map(ToString::to_string).collect(),
        rate_limits: key.rate_limits.iter().map(encode_rate_limit).collect(),
        credits: credits.map(encode_credits),
        create_time: Some(encode_time(key.create_time)),
        update_time: Some(encode_time(key.update_time)),
        expire_time: key.expire_time.map(encode_time),
        last_used_time: key.last_used_time.map(encode_time),
        request_count: key.request_count,
        revoke_time: revocation.map(|revocation| encode_time(revocation.time)),
        revoked_by: revocation.map(|revocation| revocation.by.clone()).unwrap_or_default(),
        revocation_reason: revocation.map_or(v1::RevocationReason::Unspecified, |r| encode_reason(r.reason)).into(),
        revocation_note: revocation.map(|revocation| revocation.note.clone()).unwrap_or_default(),
        rotated_from_id: key.rotated_from_id.map(|id| id.to_string()).unwrap_or_default(),
        etag: key.etag.to_string(),
        name: key.name,
        prefix: key.prefix,
        hint: key.hint,
        metadata: key.metadata.into_iter().collect(),
        owner_id: key.owner_id,
        created_by: key.created_by,
    }
}

/// The answer to a verification.
pub fn encode_verified(verified: Verified) -> v1::VerifyKeyResponse {
    let outcome = encode_outcome(verified.outcome).into();
    let Some(key) = verified.key else {
        return v1::VerifyKeyResponse { outcome, ..Default::default() };
    };
    v1::VerifyKeyResponse {
        outcome,
        key_id: key.id.to_string(),
        organization_id: key.organization_id.to_string(),
        name: key.name.to_string(),
        environment: encode_environment(key.environment).into(),
        owner_id: key.owner_id.to_string(),
        scopes: encode_scopes(&key.scopes),
        metadata: key.metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        expire_time: key.expire_time.map(encode_time),
        rate_limits: verified.rate_limits.into_iter().map(encode_limit_status).collect(),
        credits_remaining: verified.credits_remaining,
        reuse_for: Some(encode_span(verified.reuse_for)),
    }
}

/// An organization with its key count.
pub fn encode_organization(counted: CountedOrganization) -> v1::Organization {
    let CountedOrganization { organization, key_count } = counted;
    v1::Organization {
        id: organization.id.to_string(),
        name: organization.name,
        slug: organization.slug,
        email: organization.email.unwrap_or_default(),
        plan: encode_plan(organization.plan).into(),
        active: organization.active,
        max_keys: organization.max_keys,
        rate_limits: organization.rate_limits.iter().map(encode_rate_limit).collect(),
        monthly_quota: organization.monthly_quota,
        secret_prefix: organization.secret_prefix.as_str().to_owned(),
        metadata: organization.metadata.into_iter().collect(),
        create_time: Some(encode_time(organization.create_time)),
        update_time: Some(encode_time(organization.update_time)),
        key_count,
        etag: organization.etag.to_string(),
    }
}

/// A sealed audit event.
pub fn encode_audit_event(event: SealedEvent) -> v1::AuditEvent {
    let SealedEvent { record, previous_hash, hash } = event;
    v1::AuditEvent {
        sequence: record.sequence,
        id: record.id,
        time: Some(encode_time(Timestamp::from_micros(record.time_us))),
        actor_key_id: record.actor_key_id,
        actor: record.actor,
        action: record.action,
        target_type: record.target_type,
        target_id: record.target_id,
        organization_id: record.organization_id,
        request_id: record.request_id,
        detail: record.detail,
        previous_hash,
        hash,
    }
}

/// A moment.
pub fn encode_time(time: Timestamp) -> prost_types::Timestamp {
    let (seconds, nanos) = time.to_parts();
    prost_types::Timestamp { seconds, nanos }
}

pub(super) fn encode_span(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

fn encode_scopes(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(|scope| scope.as_str().to_owned()).collect()
}

fn encode_rate_limit(limit: &RateLimit) -> v1::RateLimit {
    v1::RateLimit {
        name: limit.name.clone(),
        limit: limit.limit,
        window: Some(encode_span(limit.window)),
        shadow: limit.shadow,
    }
}

pub(super) fn encode_limit_status(status: LimitStatus) -> v1::RateLimitStatus {
    v1::RateLimitStatus {
        name: status.name,
        limit: status.limit,
        remaining: status.remaining,
        reset_after: status.reset_after.map(encode_span),
        exceeded: status.exceeded,
        shadow: status.shadow,
    }
}

fn encode_credits(credits: Credits) -> v1::Credits {
    let interval = credits.refill.map_or(v1::RefillInterval::Unspecified, |refill| match refill.interval {
        RefillInterval::Day => v1::RefillInterval::Day,
        RefillInterval::Month => v1::RefillInterval::Month,
    });
    v1::Credits {
        remaining: credits.remaining,
        refill_amount: credits.refill.map_or(0, |refill| refill.amount),
        refill_interval: interval.into(),
    }
}

pub(super) const fn encode_environment(environment: Environment) -> v1::Environment {
    match environment {
        Environment::Live => v1::Environment::Live,
        Environment::Test => v1::Environment::Test,
    }
}

const fn encode_status(status: KeyStatus) -> v1::KeyStatus {
    match status {
        KeyStatus::Active => v1::KeyStatus::Active,
        KeyStatus::Disabled => v1::KeyStatus::Disabled,
        KeyStatus::Revoked => v1::KeyStatus::Revoked,
        KeyStatus::Expired => v1::KeyStatus::Expired,
    }
}

const fn encode_plan(plan: Plan) -> v1::Plan {
    match plan {
        Plan::Free => v1::Plan::Free,
        Plan::Pro => v1::Plan::Pro,
        Plan::Enterprise => v1::Plan::Enterprise,
    }
}

const fn encode_reason(reason: RevocationReason) -> v1::RevocationReason {
    match reason {
        RevocationReason::Unspecified => v1::RevocationReason::Unspecified,
        RevocationReason::KeyCompromise => v1::RevocationReason::KeyCompromise,
        RevocationReason::Superseded => v1::RevocationReason::Superseded,
        RevocationReason::OwnerLeft => v1::RevocationReason::OwnerLeft,
        RevocationReason::PrivilegeWithdrawn => v1::RevocationReason::PrivilegeWithdrawn,
        RevocationReason::Cessation => v1::RevocationReason::Cessation,
        RevocationReason::Other => v1::RevocationReason::Other,
    }
}

pub(super) const fn encode_outcome(outcome: Outcome) -> v1::Outcome {
    match outcome {
        Outcome::NotFound => v1::Outcome::NotFound,
        Outcome::Revoked => v1::Outcome::Revoked,
        Outcome::Disabled => v1::Outcome::Disabled,
        Outcome::Expired => v1::Outcome::Expired,
        Outcome::OrganizationInactive => v1::Outcome::OrganizationInactive,
        Outcome::AddressNotAllowed => v1::Outcome::AddressNotAllowed,
        Outcome::InsufficientScope => v1::Outcome::InsufficientScope,
        Outcome::RateLimited => v1::Outcome::RateLimited,
        Outcome::QuotaExceeded => v1::Outcome::QuotaExceeded,
        Outcome::CreditsExhausted => v1::Outcome::CreditsExhausted,
        Outcome::Valid => v1::Outcome::Valid,
    }
}
