//! A key and an organization with nothing set that need not be, for unit tests.

use std::collections::BTreeMap;

use super::{
    ids::{KeyId, OrganizationId},
    key::{Environment, StoredStatus},
    organization::{Organization, Plan},
    record::KeyRecord,
    secret::SecretPrefix,
    time::Timestamp,
};

const NOW: Timestamp = Timestamp::from_micros(1_000_000);

/// An active organization.
pub(crate) fn organization() -> Organization {
    Organization {
        id: OrganizationId::new(NOW, [1; 10]),
        name: "Acme".to_owned(),
        slug: "acme".to_owned(),
        email: None,
        plan: Plan::Free,
        active: true,
        max_keys: 0,
        rate_limits: vec![],
        monthly_quota: 0,
        secret_prefix: SecretPrefix::parse("").unwrap(),
        metadata: BTreeMap::new(),
        create_time: NOW,
        update_time: NOW,
        etag: 0,
    }
}

/// An active key of that organization.
pub(crate) fn key_record() -> KeyRecord {
    let id = KeyId::new(NOW, [2; 10]);
    KeyRecord {
        id,
        organization_id: organization().id,
        counter_id: id,
        credits_id: None,
        environment: Environment::Live,
        stored_status: StoredStatus::Active,
        expire_time: None,
        name: "key".into(),
        owner_id: "".into(),
        scopes: Box::default(),
        metadata: Box::default(),
        allowed_cidrs: Box::default(),
        rate_limits: Box::default(),
        import_id: None,
    }
}
