//! A key and an organization with nothing set that need not be, for unit tests.

use std::collections::BTreeMap;

use super::{
    ids::{KeyId, OrganizationId},
    import::{GivenScheme, ImportedKey, Material, SlowHash, SlowScheme},
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

/// A key from elsewhere that says nothing but its row, its name and its material.
pub(crate) fn imported_key(source_id: &str, given: GivenScheme, material: Material) -> ImportedKey {
    ImportedKey {
        kept_id: None,
        source_id: source_id.to_owned(),
        given,
        material,
        plaintext_as_digest: None,
        look_up_id: None,
        prefix: String::new(),
        hint: String::new(),
        name: "a key".to_owned(),
        environment: Environment::Live,
        status: StoredStatus::Active,
        scopes: Vec::new(),
        metadata: BTreeMap::new(),
        owner_id: String::new(),
        allowed_cidrs: Vec::new(),
        rate_limits: Vec::new(),
        credits: None,
        create_time: None,
        expire_time: None,
        last_used_time: None,
        request_count: 0,
        revocation: None,
    }
}

/// As long as a hash of bcrypt, and of no secret that anybody knows; another one for each letter.
pub(crate) fn slow_hash(letter: char) -> SlowHash {
    let text = format!("$2b$04${}", letter.to_string().repeat(53));
    SlowHash::parse(SlowScheme::Bcrypt, &text).expect("a hash")
}
