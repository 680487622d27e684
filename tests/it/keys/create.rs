//! `CreateKey`: what the record holds, what the secret looks like, and what stands where nothing was asked for.
//! Bounds and refusals are in `create_bounds.rs`; bad input is in `bad_input.rs`.
//! Invariant: what is compared is the whole record, so that a field that is ever added cannot be forgotten.

use std::collections::{BTreeSet, HashMap};

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, CreateOrganizationRequest, Credits, Environment, KeyStatus, ListKeysRequest, Outcome,
    RateLimit, RefillInterval, RevocationReason,
};
use keystead::service::ADMIN_KEY_NAME;
use prost::Message;
use prost_types::Timestamp;

use super::{SYSTEM, World, bad_fields, days, fields, from_now, micros, seconds, texts, with};
use crate::harness::{TestDatabase, contains, create_key, store_test};

store_test!(a_key_is_created_as_asked);
async fn a_key_is_created_as_asked(database: TestDatabase) {
    let world = World::new(&database).await;
    let limit = RateLimit { name: "burst".to_owned(), limit: 7, window: Some(seconds(90)), shadow: true };
    let credits = Credits { remaining: 12, refill_amount: 40, refill_interval: RefillInterval::Month.into() };
    let metadata = HashMap::from([("team".to_owned(), "billing 💸".to_owned()), ("a.b-c_d".to_owned(), String::new())]);
    let request = CreateKeyRequest {
        organization_id: world.organization.clone(),
        name: "Production".to_owned(),
        environment: Environment::Test.into(),
        scopes: texts(&["invoices:read", "users:*", "*"]),
        metadata: metadata.clone(),
        owner_id: "user 1".to_owned(),
        allowed_cidrs: texts(&["192.0.2.0/24", "2001:db8::/32"]),
        rate_limits: vec![limit.clone()],
        credits: Some(credits),
        lifetime: Some(Lifetime::Ttl(seconds(3600))),
        request_id: String::new(),
    };
    let before = from_now(0);
    let (key, secret) = world.create(request).await;
    let after = from_now(0);

    let admins = world.list(ListKeysRequest { organization_id: SYSTEM.to_owned(), ..Default::default() }).await;
    let admin = admins.iter().find(|key| key.name == ADMIN_KEY_NAME).expect("the first admin");
    assert_eq!(key.id.len(), 36, "{}", key.id);
    assert!(!key.etag.is_empty());
    let created = micros(key.create_time);
    assert!((micros(Some(before))..=micros(Some(after))).contains(&created), "{created}");
    assert_eq!(micros(key.expire_time), created + 3_600_000_000, "the time to live counts from creation");
    let expected = ApiKey {
        id: key.id.clone(),
        organization_id: world.organization.clone(),
        name: "Production".to_owned(),
        prefix: "pk_test_".to_owned(),
        hint: secret[47..].to_owned(),
        environment: Environment::Test.into(),
        status: KeyStatus::Active.into(),
        enabled: true,
        scopes: texts(&["invoices:read", "users:*", "*"]),
        metadata,
        owner_id: "user 1".to_owned(),
        allowed_cidrs: texts(&["192.0.2.0/24", "2001:db8::/32"]),
        rate_limits: vec![limit],
        credits: Some(credits),
        create_time: key.create_time,
        update_time: key.create_time,
        expire_time: key.expire_time,
        last_used_time: None,
        request_count: 0,
        created_by: admin.id.clone(),
        revoke_time: None,
        revoked_by: String::new(),
        revocation_reason: RevocationReason::Unspecified.into(),
        revocation_note: String::new(),
        rotated_from_id: String::new(),
        etag: key.etag.clone(),
    };
    assert_eq!(key, expected);
    assert_eq!(world.get(&key.id).await, key, "what was answered is what was stored");
}

store_test!(what_is_not_asked_for_is_absent);
async fn what_is_not_asked_for_is_absent(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    assert_eq!(key.prefix, "pk_live_");
    assert_eq!(key.status(), KeyStatus::Active);
    assert!(key.enabled);
    assert!(key.scopes.is_empty() && key.metadata.is_empty() && key.owner_id.is_empty());
    assert!(key.allowed_cidrs.is_empty() && key.rate_limits.is_empty());
    assert_eq!(key.credits, None, "unlimited");
    assert_eq!(key.expire_time, None, "never expires");
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
}

store_test!(every_secret_has_the_shape_and_is_new);
async fn every_secret_has_the_shape_and_is_new(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut seen = BTreeSet::new();
    for environment in [Environment::Live, Environment::Test] {
        let request = with(&world.new_key(), |request| request.environment = environment.into());
        for _ in 0..20 {
            let (key, secret) = world.create(request.clone()).await;
            let start = if environment == Environment::Live { "pk_live_" } else { "pk_test_" };
            let random = secret.strip_prefix(start).expect("the environment is in the secret");
            assert_eq!(secret.len(), 51);
            assert!(random.len() == 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            assert_eq!((key.prefix.as_str(), key.hint.as_str()), (start, &secret[47..]));
            assert!(seen.insert(secret), "no secret comes twice");
        }
    }
}

store_test!(an_organizations_own_prefix_stands_in_place_of_pk);
async fn an_organizations_own_prefix_stands_in_place_of_pk(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = CreateOrganizationRequest {
        name: "Globex".to_owned(),
        slug: "globex".to_owned(),
        email: "globex@example.com".to_owned(),
        secret_prefix: "globex1".to_owned(),
        ..Default::default()
    };
    let created = world.server.organizations().create_organization(request).await.expect("an organization");
    let organization = created.into_inner().organization.expect("the organization");
    let (key, secret) = create_key(&world.server, &organization.id, &[]).await;
    assert_eq!(key.prefix, "globex1_live_");
    let random = secret.strip_prefix("globex1_live_").expect("its own prefix");
    assert!(random.len() == 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    assert_eq!(world.outcome(&secret.replacen("globex1", "pk", 1)).await, Outcome::NotFound);
}

store_test!(the_expiry_is_kept_as_given);
async fn the_expiry_is_kept_as_given(database: TestDatabase) {
    let world = World::new(&database).await;
    let last = Timestamp { seconds: 253_402_300_799, nanos: 999_999_000 };
    let soon = Timestamp { nanos: 123_456_000, ..from_now(3600) };
    for moment in [soon, last] {
        let request = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::ExpireTime(moment)));
        let (key, _) = world.create(request).await;
        assert_eq!(key.expire_time, Some(moment), "to the microsecond");
    }
    for span in [seconds(1), days(36_500)] {
        let request = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::Ttl(span)));
        let (key, _) = world.create(request).await;
        assert_eq!(micros(key.expire_time) - micros(key.create_time), span.seconds * 1_000_000);
    }
    for past in [from_now(-1), Timestamp { seconds: 0, nanos: 0 }] {
        let request = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::ExpireTime(past)));
        assert_eq!(bad_fields(world.server.keys().create_key(request).await), fields(&["expire_time"]));
    }
}

store_test!(networks_are_shown_as_the_blocks_that_they_are);
async fn networks_are_shown_as_the_blocks_that_they_are(database: TestDatabase) {
    let world = World::new(&database).await;
    let given = ["10.1.2.3/8", "192.0.2.7", "2001:DB8::1/32", "::1", "0.0.0.0/0"];
    let request = with(&world.new_key(), |request| request.allowed_cidrs = texts(&given));
    let (key, _) = world.create(request).await;
    let shown = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "::1/128", "0.0.0.0/0"];
    assert_eq!(key.allowed_cidrs, texts(&shown));
}

store_test!(the_secret_is_in_the_answer_and_nowhere_else);
async fn the_secret_is_in_the_answer_and_nowhere_else(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let random = &secret.as_bytes()[8..47];
    let read = world.get(&key.id).await.encode_to_vec();
    let verified = world.ask(super::presenting(&secret)).await.encode_to_vec();
    for bytes in [key.encode_to_vec(), read, verified, database.bytes_at_rest().await, world.server.logs()] {
        assert!(!contains(&bytes, random));
    }
}
