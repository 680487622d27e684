//! `VerifyKey`: the outcomes that record, request and clock decide, and the order in which all are decided.
//! `NOT_FOUND` has a file of its own, and so have limits, quota and credits.
//! Invariant: every answer but `NOT_FOUND` carries the key's record, whatever the outcome.

use std::collections::HashMap;

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::{
    ApiKey, Credits, Environment, Outcome, RateLimit, RequiredScopes, VerifyKeyRequest, VerifyKeyResponse,
};

use super::{World, days, from_now, micros, presenting, seconds, texts, with};
use crate::harness::{TestDatabase, store_test, wait_until};

/// Asserts that an answer carries what a key's record says, and returns its outcome.
fn outcome_of(answer: &VerifyKeyResponse, key: &ApiKey) -> Outcome {
    assert_eq!(answer.key_id, key.id);
    assert_eq!(answer.organization_id, key.organization_id);
    assert_eq!(answer.name, key.name);
    assert_eq!(answer.environment, key.environment);
    assert_eq!(answer.owner_id, key.owner_id);
    assert_eq!(answer.scopes, key.scopes);
    assert_eq!(answer.metadata, key.metadata);
    assert_eq!(answer.expire_time, key.expire_time);
    answer.outcome()
}

store_test!(a_valid_key_is_answered_with_its_record);
async fn a_valid_key_is_answered_with_its_record(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| {
        request.environment = Environment::Test.into();
        request.scopes = texts(&["invoices:read", "users:*"]);
        request.metadata = HashMap::from([("team".to_owned(), "مفتاح 🔑".to_owned())]);
        "user 1".clone_into(&mut request.owner_id);
        request.lifetime = Some(Lifetime::Ttl(days(1)));
    });
    let (key, secret) = world.create(request).await;
    for _ in 0..2 {
        let answer = world.ask(presenting(&secret)).await;
        assert_eq!(outcome_of(&answer, &key), Outcome::Valid);
        assert!(answer.rate_limits.is_empty());
        assert_eq!(answer.credits_remaining, None, "unlimited");
        let reuse_us = answer.reuse_for.map_or(0, |span| span.seconds * 1_000_000 + i64::from(span.nanos / 1000));
        assert!((0..=1_000_000).contains(&reuse_us), "reuse adds to the time that a revocation takes: {reuse_us}");
    }
}

store_test!(an_answer_is_never_to_be_reused_past_the_expiry_or_where_something_was_charged);
async fn an_answer_is_never_to_be_reused_past_the_expiry_or_where_something_was_charged(database: TestDatabase) {
    let world = World::new(&database).await;
    let none = |answer: &VerifyKeyResponse| answer.reuse_for.is_none_or(|span| span == seconds(0));
    let limit = RateLimit { name: "day".to_owned(), limit: 9, window: Some(days(1)), shadow: false };
    let limited = with(&world.new_key(), |request| request.rate_limits = vec![limit]);
    let (_, secret) = world.create(limited).await;
    assert!(none(&world.ask(presenting(&secret)).await), "limited");
    let credits = Credits { remaining: 9, ..Default::default() };
    let (_, secret) = world.create(with(&world.new_key(), |request| request.credits = Some(credits))).await;
    assert!(none(&world.ask(presenting(&secret)).await), "credits");
    let (key, secret) = world.create(world.new_key()).await;
    world.revoke(&key.id).await;
    assert!(none(&world.ask(presenting(&secret)).await), "denied");
    let soon = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::Ttl(seconds(1))));
    let (key, secret) = world.create(soon).await;
    let asked = micros(Some(from_now(0)));
    let answer = world.ask(presenting(&secret)).await;
    if answer.outcome() == Outcome::Valid {
        let reuse_us = answer.reuse_for.map_or(0, |span| span.seconds * 1_000_000 + i64::from(span.nanos / 1000));
        assert!(asked + reuse_us <= micros(key.expire_time), "{reuse_us}");
    }
}

store_test!(a_revoked_key_is_revoked);
async fn a_revoked_key_is_revoked(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    world.revoke(&key.id).await;
    let answer = world.ask(presenting(&secret)).await;
    assert_eq!(outcome_of(&answer, &key), Outcome::Revoked);
}

store_test!(a_disabled_key_is_disabled_until_it_is_enabled);
async fn a_disabled_key_is_disabled_until_it_is_enabled(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    for _ in 0..3 {
        assert_eq!(world.outcome(&secret).await, Outcome::Valid);
        world.update(ApiKey { enabled: false, ..key.clone() }, &["enabled"]).await;
        assert_eq!(outcome_of(&world.ask(presenting(&secret)).await, &key), Outcome::Disabled, "at once");
        world.update(ApiKey { enabled: true, ..key.clone() }, &["enabled"]).await;
    }
    assert_eq!(world.outcome(&secret).await, Outcome::Valid, "at once");
}

store_test!(a_key_expires_also_while_it_is_cached);
async fn a_key_expires_also_while_it_is_cached(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::Ttl(seconds(2))));
    let (key, secret) = world.create(request).await;
    wait_until("the key to expire", async || {
        let asked = micros(Some(from_now(0)));
        let outcome = world.outcome(&secret).await;
        let answered = micros(Some(from_now(0)));
        match outcome {
            Outcome::Valid => assert!(asked < micros(key.expire_time), "VALID after the expiry"),
            outcome => {
                assert_eq!(outcome, Outcome::Expired);
                assert!(answered >= micros(key.expire_time), "EXPIRED before the expiry");
            }
        }
        outcome == Outcome::Expired
    })
    .await;
    assert_eq!(outcome_of(&world.ask(presenting(&secret)).await, &key), Outcome::Expired);
}

store_test!(keys_of_an_inactive_organization_are_denied_until_it_is_active);
async fn keys_of_an_inactive_organization_are_denied_until_it_is_active(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    world.deactivate().await;
    assert_eq!(outcome_of(&world.ask(presenting(&secret)).await, &key), Outcome::OrganizationInactive, "at once");
    world.activate().await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid, "at once");
}

store_test!(only_addresses_of_the_keys_networks_are_allowed);
async fn only_addresses_of_the_keys_networks_are_allowed(database: TestDatabase) {
    let world = World::new(&database).await;
    let request =
        with(&world.new_key(), |request| request.allowed_cidrs = texts(&["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]));
    let (key, secret) = world.create(request).await;
    let from = |address: &str| with(&presenting(&secret), |request| address.clone_into(&mut request.client_address));
    for address in ["10.255.0.1", "2001:db8::1", "2001:DB8:0::1", "192.0.2.7", "::ffff:10.1.2.3"] {
        assert_eq!(outcome_of(&world.ask(from(address)).await, &key), Outcome::Valid, "{address}");
    }
    for address in ["", "11.0.0.1", "127.0.0.1", "2001:db9::1", "192.0.2.8", "::ffff:11.0.0.1", "::10.0.0.1"] {
        assert_eq!(outcome_of(&world.ask(from(address)).await, &key), Outcome::AddressNotAllowed, "{address:?}");
    }
    let (_, free) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&free).await, Outcome::Valid, "without networks any address, or none, will do");
}

store_test!(the_key_must_have_the_required_scopes);
async fn the_key_must_have_the_required_scopes(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.scopes = texts(&["invoices:*", "users:read"]));
    let (key, secret) = world.create(request).await;
    let cases: [(&[&str], &[&str], Outcome); 11] = [
        (&[], &[], Outcome::Valid),
        (&["invoices:read", "users:read"], &[], Outcome::Valid),
        (&["invoices:*"], &[], Outcome::Valid),
        (&[], &["users:write", "invoices:x"], Outcome::Valid),
        (&["users:read"], &["users:read", "other"], Outcome::Valid),
        (&["users:write"], &[], Outcome::InsufficientScope),
        (&["users:*"], &[], Outcome::InsufficientScope),
        (&["*"], &[], Outcome::InsufficientScope),
        (&["Users:read"], &[], Outcome::InsufficientScope),
        (&[], &["users:write", "users:delete"], Outcome::InsufficientScope),
        (&["invoices:read"], &["users:write"], Outcome::InsufficientScope),
    ];
    for (all_of, any_of, expected) in cases {
        let scopes = RequiredScopes { all_of: texts(all_of), any_of: texts(any_of) };
        let request = with(&presenting(&secret), |request| request.required_scopes = Some(scopes));
        assert_eq!(outcome_of(&world.ask(request).await, &key), expected, "{all_of:?} {any_of:?}");
    }
}

store_test!(the_first_outcome_that_applies_wins);
async fn the_first_outcome_that_applies_wins(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_quota(1).await;
    let limit = |limit: i64| vec![RateLimit { name: "long".to_owned(), limit, window: Some(days(400)), shadow: false }];
    let request = with(&world.new_key(), |request| {
        request.rate_limits = limit(1);
        request.credits = Some(Credits { remaining: 1, ..Default::default() });
    });
    let (key, secret) = world.create(request).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid, "which uses up limit, quota and credits");

    let faulty =
        ApiKey { enabled: false, expire_time: Some(from_now(3)), allowed_cidrs: texts(&["10.0.0.0/8"]), ..key.clone() };
    let expiry = micros(faulty.expire_time);
    world.update(faulty, &["enabled", "expire_time", "allowed_cidrs"]).await;
    wait_until("the expiry", async || micros(Some(from_now(0))) > expiry).await;
    world.deactivate().await;
    let scopes = Some(RequiredScopes { all_of: texts(&["invoices:read"]), any_of: vec![] });
    let bare = VerifyKeyRequest { required_scopes: scopes, ..presenting(&secret) };
    let from_inside = with(&bare, |request| "10.0.0.1".clone_into(&mut request.client_address));

    let misnamed = with(&bare, |request| request.key_id = Some(super::NOBODY.to_owned()));
    assert_eq!(world.ask(misnamed).await.outcome(), Outcome::NotFound);
    assert_eq!(world.ask(bare.clone()).await.outcome(), Outcome::Disabled);
    world.update(ApiKey { enabled: true, ..key.clone() }, &["enabled"]).await;
    assert_eq!(world.ask(bare.clone()).await.outcome(), Outcome::Expired);
    world.update(ApiKey { expire_time: None, ..key.clone() }, &["expire_time"]).await;
    assert_eq!(world.ask(bare.clone()).await.outcome(), Outcome::OrganizationInactive);
    world.activate().await;
    assert_eq!(world.ask(bare.clone()).await.outcome(), Outcome::AddressNotAllowed);
    assert_eq!(world.ask(from_inside.clone()).await.outcome(), Outcome::InsufficientScope);
    world.update(ApiKey { scopes: texts(&["invoices:*"]), ..key.clone() }, &["scopes"]).await;
    assert_eq!(world.ask(from_inside.clone()).await.outcome(), Outcome::RateLimited);
    world.update(ApiKey { rate_limits: limit(3), ..key.clone() }, &["rate_limits"]).await;
    assert_eq!(world.ask(from_inside.clone()).await.outcome(), Outcome::QuotaExceeded);
    world.set_quota(2).await;
    assert_eq!(world.ask(from_inside.clone()).await.outcome(), Outcome::CreditsExhausted);
    let credits = Some(Credits { remaining: 1, ..Default::default() });
    world.update(ApiKey { credits, ..key.clone() }, &["credits"]).await;
    assert_eq!(world.ask(from_inside.clone()).await.outcome(), Outcome::Valid);

    world.update(ApiKey { enabled: false, ..key.clone() }, &["enabled"]).await;
    world.deactivate().await;
    world.revoke(&key.id).await;
    assert_eq!(world.ask(bare).await.outcome(), Outcome::Revoked);
}
