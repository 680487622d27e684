//! Ready-made organizations and keys for tests that call the store itself, as values of the domain.
//! Nothing here touches a database. Ids are random, so that two samples never meet by accident; moments are
//! fixed, so that no test depends on the day that it runs on.

use std::collections::BTreeMap;
use std::time::Duration;

use keystead::domain::{
    address,
    digest::Digest,
    ids::{KeyId, OrganizationId, RecordId},
    key::{ApiKey, Environment, StoredStatus},
    limits::{Credits, RateLimit, Refill, RefillInterval},
    organization::{Organization, Plan},
    record::KeyRecord,
    scope::Scope,
    secret::SecretPrefix,
    time::Timestamp,
};
use keystead::random;

/// The present moment of every sample: 2027-01-15T08:00:00Z.
pub const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

/// A moment so many seconds after `NOW`, or before it.
pub const fn seconds(after: i64) -> Timestamp {
    Timestamp::from_micros(NOW.micros() + after * 1_000_000)
}

/// An active organization with nothing set that need not be.
pub fn organization(slug: &str) -> Organization {
    Organization {
        id: OrganizationId::new(NOW, random::bytes()),
        name: format!("Organization {slug}"),
        slug: slug.to_owned(),
        email: None,
        plan: Plan::Free,
        active: true,
        max_keys: 0,
        rate_limits: Vec::new(),
        monthly_quota: 0,
        secret_prefix: SecretPrefix::parse("").expect("no prefix is a legal prefix"),
        metadata: BTreeMap::new(),
        create_time: NOW,
        update_time: NOW,
        etag: 1,
    }
}

/// An organization with every setting away from its default.
pub fn full_organization(slug: &str) -> Organization {
    Organization {
        name: "Åcme „GmbH“ 💸".to_owned(),
        email: Some(format!("{slug}@example.com")),
        plan: Plan::Enterprise,
        active: false,
        max_keys: 7,
        rate_limits: vec![rate_limit("requests", 100, 60), rate_limit("slow", 3, 86_400)],
        monthly_quota: 1_000_000_000_000,
        secret_prefix: SecretPrefix::parse("acme").expect("a legal prefix"),
        metadata: metadata(&[("team", "billing"), ("quote", "'\"\\ \u{1f511}")]),
        create_time: seconds(-10),
        update_time: seconds(-5),
        etag: 42,
        ..organization(slug)
    }
}

/// An active live key with nothing set that need not be.
pub fn key(organization: OrganizationId) -> ApiKey {
    let id = KeyId::new(NOW, random::bytes());
    ApiKey {
        id,
        organization_id: organization,
        name: "A key of the tests".to_owned(),
        prefix: "pk_live_".to_owned(),
        hint: "abcd".to_owned(),
        environment: Environment::Live,
        stored_status: StoredStatus::Active,
        scopes: Vec::new(),
        metadata: BTreeMap::new(),
        owner_id: String::new(),
        allowed_cidrs: Vec::new(),
        rate_limits: Vec::new(),
        credits: None,
        refill_time: None,
        create_time: NOW,
        update_time: NOW,
        expire_time: None,
        last_used_time: None,
        request_count: 0,
        created_by: "init".to_owned(),
        revocation: None,
        rotated_from_id: None,
        successor_id: None,
        counter_id: id,
        etag: 1,
    }
}

/// A new key with every setting away from its default.
pub fn full_key(organization: OrganizationId) -> ApiKey {
    let cidr = |text| address::parse_cidr(text).expect("a legal block");
    ApiKey {
        name: "Ключ \u{1f511} '; DROP TABLE api_keys; --".to_owned(),
        prefix: "acme_test_".to_owned(),
        hint: "WxYz".to_owned(),
        environment: Environment::Test,
        stored_status: StoredStatus::Disabled,
        scopes: scopes(&["invoices:*", "users:read"]),
        metadata: metadata(&[("team", "billing"), ("quote", "'\"\\ \u{1f511}")]),
        owner_id: "owner-1".to_owned(),
        allowed_cidrs: vec![cidr("10.0.0.0/8"), cidr("2001:db8::/32")],
        rate_limits: vec![
            rate_limit("requests", 10, 1),
            RateLimit { shadow: true, ..rate_limit("watched", 1_000_000_000, 400 * 86_400) },
        ],
        credits: Some(Credits { remaining: 5, refill: Some(refill(10, RefillInterval::Month)) }),
        refill_time: Some(seconds(3600)),
        create_time: seconds(-10),
        update_time: seconds(-5),
        expire_time: Some(seconds(7200)),
        created_by: KeyId::new(NOW, [3; 10]).to_string(),
        rotated_from_id: Some(KeyId::new(NOW, [1; 10])),
        counter_id: KeyId::new(NOW, [2; 10]),
        etag: 42,
        ..key(organization)
    }
}

/// What a verification knows of a key.
pub fn record(key: &ApiKey) -> KeyRecord {
    key.clone().into()
}

/// The digest under which the tests store a key: its secret is its id.
pub fn digest_of(key: &ApiKey) -> Digest {
    Digest::of(&key.id.to_string())
}

/// Scopes of these texts.
pub fn scopes(texts: &[&str]) -> Vec<Scope> {
    texts.iter().map(|text| Scope::parse(text).expect("a legal scope")).collect()
}

/// A limit that denies.
pub fn rate_limit(name: &str, limit: i64, window_s: u64) -> RateLimit {
    RateLimit::parse(name, limit, Duration::from_secs(window_s), false).expect("a legal limit")
}

/// A refill.
pub const fn refill(amount: i64, interval: RefillInterval) -> Refill {
    Refill { amount, interval }
}

/// A fresh id for whatever is neither a key nor an organization.
pub fn record_id() -> RecordId {
    RecordId::new(NOW, random::bytes())
}

fn metadata(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
