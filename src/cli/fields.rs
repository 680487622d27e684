//! Messages as named fields, for tables and for JSON.
//!
//! The names are the contract's, in its order; enum values lose their prefix (`LIVE`), times are RFC 3339, spans
//! are seconds (`60s`), what is absent is null. Decides nothing and prints nothing. Invariant: a secret is in no
//! function here but the caller's own, so that a record can be shown without a thought.

use std::collections::{BTreeMap, HashMap};

use prost_types::{Duration, Timestamp};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::output::{Fields, object};
use crate::proto::v1::{
    ApiKey, AuditEvent, Credits, Environment, KeyStatus, Organization, Outcome, Plan, RateLimit, RateLimitStatus,
    RefillInterval, RevocationReason, UsageStatsResponse, UsageTotals, VerifyKeyResponse,
};

/// A list of messages as JSON.
pub(super) fn array<T>(messages: &[T], fields: impl Fn(&T) -> Fields) -> Value {
    messages.iter().map(|message| object(fields(message))).collect()
}

/// A message as JSON, null where the server left it out.
pub(super) fn one<T>(message: Option<&T>, fields: impl Fn(&T) -> Fields) -> Value {
    message.map_or(Value::Null, |message| object(fields(message)))
}

pub(super) fn key(key: &ApiKey) -> Fields {
    vec![
        ("id", json!(key.id)),
        ("organization_id", json!(key.organization_id)),
        ("name", json!(key.name)),
        ("prefix", json!(key.prefix)),
        ("hint", json!(key.hint)),
        ("environment", name::<Environment>(key.environment, Environment::as_str_name, "ENVIRONMENT_")),
        ("status", name::<KeyStatus>(key.status, KeyStatus::as_str_name, "KEY_STATUS_")),
        ("enabled", json!(key.enabled)),
        ("scopes", json!(key.scopes)),
        ("metadata", map(&key.metadata)),
        ("owner_id", json!(key.owner_id)),
        ("allowed_cidrs", json!(key.allowed_cidrs)),
        ("rate_limits", array(&key.rate_limits, rate_limit)),
        ("credits", one(key.credits.as_ref(), credits)),
        ("create_time", moment(key.create_time.as_ref())),
        ("update_time", moment(key.update_time.as_ref())),
        ("expire_time", moment(key.expire_time.as_ref())),
        ("last_used_time", moment(key.last_used_time.as_ref())),
        ("request_count", json!(key.request_count)),
        ("created_by", json!(key.created_by)),
        ("revoke_time", moment(key.revoke_time.as_ref())),
        ("revoked_by", json!(key.revoked_by)),
        ("revocation_reason", reason(key.revocation_reason)),
        ("revocation_note", json!(key.revocation_note)),
        ("rotated_from_id", json!(key.rotated_from_id)),
        ("etag", json!(key.etag)),
    ]
}

pub(super) fn organization(organization: &Organization) -> Fields {
    vec![
        ("id", json!(organization.id)),
        ("name", json!(organization.name)),
        ("slug", json!(organization.slug)),
        ("email", json!(organization.email)),
        ("plan", name::<Plan>(organization.plan, Plan::as_str_name, "PLAN_")),
        ("active", json!(organization.active)),
        ("max_keys", json!(organization.max_keys)),
        ("rate_limits", array(&organization.rate_limits, rate_limit)),
        ("monthly_quota", json!(organization.monthly_quota)),
        ("secret_prefix", json!(organization.secret_prefix)),
        ("metadata", map(&organization.metadata)),
        ("create_time", moment(organization.create_time.as_ref())),
        ("update_time", moment(organization.update_time.as_ref())),
        ("key_count", json!(organization.key_count)),
        ("etag", json!(organization.etag)),
    ]
}

pub(super) fn verification(answer: &VerifyKeyResponse) -> Fields {
    vec![
        ("outcome", name::<Outcome>(answer.outcome, Outcome::as_str_name, "OUTCOME_")),
        ("key_id", json!(answer.key_id)),
        ("organization_id", json!(answer.organization_id)),
        ("name", json!(answer.name)),
        ("environment", name::<Environment>(answer.environment, Environment::as_str_name, "ENVIRONMENT_")),
        ("owner_id", json!(answer.owner_id)),
        ("scopes", json!(answer.scopes)),
        ("metadata", map(&answer.metadata)),
        ("expire_time", moment(answer.expire_time.as_ref())),
        ("rate_limits", array(&answer.rate_limits, rate_limit_status)),
        ("credits_remaining", json!(answer.credits_remaining)),
        ("reuse_for", span(answer.reuse_for.as_ref())),
    ]
}

pub(super) fn audit_event(event: &AuditEvent) -> Fields {
    vec![
        ("sequence", json!(event.sequence)),
        ("id", json!(event.id)),
        ("time", moment(event.time.as_ref())),
        ("actor_key_id", json!(event.actor_key_id)),
        ("actor", json!(event.actor)),
        ("action", json!(event.action)),
        ("target_type", json!(event.target_type)),
        ("target_id", json!(event.target_id)),
        ("organization_id", json!(event.organization_id)),
        ("request_id", json!(event.request_id)),
        ("detail", json!(event.detail)),
        ("previous_hash", json!(event.previous_hash)),
        ("hash", json!(event.hash)),
    ]
}

pub(super) fn totals(totals: &UsageTotals) -> Fields {
    vec![
        ("verifications", json!(totals.verifications)),
        ("valid", json!(totals.valid)),
        ("denied", json!(totals.denied)),
        ("requests_reported", json!(totals.requests_reported)),
        ("errors", json!(totals.errors)),
        ("response_time_mean", span(totals.response_time_mean.as_ref())),
        ("response_time_p50", span(totals.response_time_p50.as_ref())),
        ("response_time_p95", span(totals.response_time_p95.as_ref())),
        ("response_time_p99", span(totals.response_time_p99.as_ref())),
        ("tokens", json!(totals.tokens)),
        ("cost_micro_usd", json!(totals.cost_micro_usd)),
    ]
}

/// The parts of a usage answer that tables show, each a list of records.
pub(super) struct UsageParts {
    pub(super) by_endpoint: Vec<Fields>,
    pub(super) by_outcome: Vec<Fields>,
    pub(super) by_error: Vec<Fields>,
    pub(super) top_consumers: Vec<Fields>,
}

/// A usage answer with the totals of each part flattened into its record, which is how a table shows them.
pub(super) fn usage_parts(answer: &UsageStatsResponse) -> UsageParts {
    let with_totals = |mut fields: Fields, sums: Option<&UsageTotals>| {
        fields.extend(sums.map(totals).unwrap_or_default());
        fields
    };
    let endpoints = answer.by_endpoint.iter();
    let keys = answer.top_consumers.iter();
    UsageParts {
        by_endpoint: endpoints
            .map(|part| with_totals(vec![("endpoint", json!(part.endpoint))], part.totals.as_ref()))
            .collect(),
        by_outcome: answer
            .by_outcome
            .iter()
            .map(|part| {
                vec![
                    ("outcome", name::<Outcome>(part.outcome, Outcome::as_str_name, "OUTCOME_")),
                    ("count", json!(part.count)),
                ]
            })
            .collect(),
        by_error: answer
            .by_error
            .iter()
            .map(|part| vec![("error_code", json!(part.error_code)), ("count", json!(part.count))])
            .collect(),
        top_consumers: keys
            .map(|part| {
                with_totals(vec![("key_id", json!(part.key_id)), ("name", json!(part.name))], part.totals.as_ref())
            })
            .collect(),
    }
}

/// A usage answer as the contract nests it.
pub(super) fn usage(answer: &UsageStatsResponse) -> Fields {
    let nested = |head: Fields, sums: Option<&UsageTotals>| {
        let mut fields = head;
        fields.push(("totals", one(sums, totals)));
        fields
    };
    let parts = usage_parts(answer);
    vec![
        ("totals", one(answer.totals.as_ref(), totals)),
        (
            "series",
            array(&answer.series, |point| {
                nested(vec![("start_time", moment(point.start_time.as_ref()))], point.totals.as_ref())
            }),
        ),
        (
            "by_endpoint",
            array(&answer.by_endpoint, |part| nested(vec![("endpoint", json!(part.endpoint))], part.totals.as_ref())),
        ),
        ("by_outcome", array(&parts.by_outcome, Clone::clone)),
        ("by_error", array(&parts.by_error, Clone::clone)),
        (
            "top_consumers",
            array(&answer.top_consumers, |part| {
                nested(vec![("key_id", json!(part.key_id)), ("name", json!(part.name))], part.totals.as_ref())
            }),
        ),
    ]
}

fn rate_limit(limit: &RateLimit) -> Fields {
    vec![
        ("name", json!(limit.name)),
        ("limit", json!(limit.limit)),
        ("window", span(limit.window.as_ref())),
        ("shadow", json!(limit.shadow)),
    ]
}

fn rate_limit_status(status: &RateLimitStatus) -> Fields {
    vec![
        ("name", json!(status.name)),
        ("limit", json!(status.limit)),
        ("remaining", json!(status.remaining)),
        ("reset_after", span(status.reset_after.as_ref())),
        ("exceeded", json!(status.exceeded)),
        ("shadow", json!(status.shadow)),
    ]
}

fn credits(credits: &Credits) -> Fields {
    vec![
        ("remaining", json!(credits.remaining)),
        ("refill_amount", json!(credits.refill_amount)),
        (
            "refill_interval",
            name::<RefillInterval>(credits.refill_interval, RefillInterval::as_str_name, "REFILL_INTERVAL_"),
        ),
    ]
}

fn reason(number: i32) -> Value {
    name::<RevocationReason>(number, RevocationReason::as_str_name, "REVOCATION_REASON_")
}

/// Name of an enum value without its prefix. Unspecified is absent; a value of a newer contract is its number.
fn name<E: TryFrom<i32>>(number: i32, full_name: impl Fn(&E) -> &'static str, prefix: &str) -> Value {
    if number == 0 {
        return Value::Null;
    }
    E::try_from(number).map_or_else(
        |_| json!(number),
        |value| {
            let full = full_name(&value);
            json!(full.strip_prefix(prefix).unwrap_or(full))
        },
    )
}

fn map(pairs: &HashMap<String, String>) -> Value {
    json!(pairs.iter().collect::<BTreeMap<_, _>>())
}

fn moment(timestamp: Option<&Timestamp>) -> Value {
    let Some(timestamp) = timestamp else {
        return Value::Null;
    };
    let nanos = i64::from(timestamp.nanos);
    OffsetDateTime::from_unix_timestamp(timestamp.seconds)
        .ok()
        .and_then(|moment| moment.checked_add(time::Duration::nanoseconds(nanos)))
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .map_or_else(|| json!(format!("{} s after 1970", timestamp.seconds)), Value::String)
}

/// Seconds, as protobuf's JSON writes them.
fn span(duration: Option<&Duration>) -> Value {
    let Some(duration) = duration else {
        return Value::Null;
    };
    let sign = if duration.seconds < 0 || duration.nanos < 0 { "-" } else { "" };
    let seconds = duration.seconds.unsigned_abs();
    let fraction = format!("{:09}", duration.nanos.unsigned_abs());
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    json!(format!("{sign}{seconds}{dot}{fraction}s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_times_and_spans_read_as_the_contract_says() {
        assert_eq!(reason(2), json!("SUPERSEDED"));
        assert_eq!((reason(0), reason(99)), (Value::Null, json!(99)));
        let stamp = Timestamp { seconds: 1_769_860_800, nanos: 250_000_000 };
        assert_eq!(moment(Some(&stamp)), json!("2026-01-31T12:00:00.25Z"));
        assert_eq!(
            moment(Some(&Timestamp { seconds: i64::MAX, nanos: 0 })),
            json!(format!("{} s after 1970", i64::MAX))
        );
        assert_eq!(span(Some(&Duration { seconds: 60, nanos: 0 })), json!("60s"));
        assert_eq!(span(Some(&Duration { seconds: 0, nanos: 1_500_000 })), json!("0.0015s"));
        assert_eq!(span(Some(&Duration { seconds: 0, nanos: -500_000_000 })), json!("-0.5s"));
    }

    #[test]
    fn every_field_of_a_key_is_shown_under_its_name() {
        let fields = key(&ApiKey { id: "k".to_owned(), ..ApiKey::default() });
        assert_eq!(fields.len(), 26);
        let value = object(fields);
        assert_eq!(value.get("id"), Some(&json!("k")));
        assert_eq!(value.get("credits"), Some(&Value::Null));
    }
}
