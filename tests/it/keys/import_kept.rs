//! `ImportKeys`: what is known of a key where it comes from is kept, shown by `GetKey`, and holds from the first
//! verification on: state, expiry, settings, what was spent, what was counted.
//! Invariant: nothing becomes looser by an import, and nothing is made up that was not given.

use keystead::proto::v1::{
    ApiKey, Credits, Environment, ImportKey, KeyStatus, ListKeysRequest, Outcome, RateLimit, RefillInterval,
    RequiredScopes, RevocationReason,
};
use prost_types::Timestamp;
use tonic::Code;

use super::import_samples::{digest, plain, secret, slow, told};
use super::{World, days, from_now, micros, presenting, refused, texts, updating, with};
use crate::harness::{TestDatabase, store_test, wait_until};

const DAY: i64 = 86_400;

/// A key of which everything is known.
fn full() -> ImportKey {
    let window = Some(days(400));
    with(&plain(&secret(0)), |key| {
        "Ключ 🔑 '; DROP TABLE api_keys; --".clone_into(&mut key.name);
        key.environment = Environment::Test.into();
        "sk_".clone_into(&mut key.prefix);
        secret(0)[31..].clone_into(&mut key.hint);
        key.enabled = Some(true);
        key.scopes = texts(&["invoices:*", "users:read"]);
        let metadata = [("team", "billing 💸"), ("empty", "")];
        key.metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        "owner 1".clone_into(&mut key.owner_id);
        key.allowed_cidrs = texts(&["192.0.2.0/24", "2001:db8::/32"]);
        key.rate_limits = vec![
            RateLimit { name: "long".to_owned(), limit: 9, window, shadow: false },
            RateLimit { name: "watched".to_owned(), limit: 1, window, shadow: true },
        ];
        key.credits = Some(Credits { remaining: 5, refill_amount: 3, refill_interval: RefillInterval::Month.into() });
        key.create_time = Some(from_now(-1000 * DAY));
        key.expire_time = Some(from_now(1000 * DAY));
        key.last_used_time = Some(from_now(-DAY));
        key.request_count = 41;
        "row 1".clone_into(&mut key.source_id);
    })
}

store_test!(what_is_known_of_a_key_is_kept_and_shown);
async fn what_is_known_of_a_key_is_kept_and_shown(database: TestDatabase) {
    let world = World::new(&database).await;
    let given = full();
    let before = micros(Some(from_now(0)));
    let id = world.import_one(given.clone()).await;
    let key = world.get(&id).await;
    let written = micros(key.update_time);
    assert!((before..=micros(Some(from_now(0)))).contains(&written), "{written}");
    let expected = ApiKey {
        id,
        organization_id: world.organization.clone(),
        name: given.name,
        prefix: given.prefix,
        hint: given.hint,
        environment: given.environment,
        status: KeyStatus::Active.into(),
        enabled: true,
        scopes: given.scopes,
        metadata: given.metadata,
        owner_id: given.owner_id,
        allowed_cidrs: given.allowed_cidrs,
        rate_limits: given.rate_limits,
        credits: given.credits,
        create_time: given.create_time,
        update_time: key.update_time,
        expire_time: given.expire_time,
        last_used_time: given.last_used_time,
        request_count: 41,
        created_by: world.key_of(world.server.admin_secret()).await,
        etag: key.etag.clone(),
        ..Default::default()
    };
    assert!(!key.etag.is_empty());
    assert_eq!(key, expected);
    let listing = ListKeysRequest { organization_id: world.organization.clone(), ..Default::default() };
    assert_eq!(world.list(listing).await, [expected]);
}

store_test!(counting_and_spending_go_on_from_where_they_were);
async fn counting_and_spending_go_on_from_where_they_were(database: TestDatabase) {
    let world = World::new(&database).await;
    let given = full();
    let id = world.import_one(given.clone()).await;
    let request = with(&presenting(&secret(0)), |request| {
        "192.0.2.7".clone_into(&mut request.client_address);
        request.required_scopes = Some(RequiredScopes { all_of: texts(&["invoices:read"]), any_of: vec![] });
    });
    let answer = world.ask(request).await;
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::Valid, Some(4)));
    assert_eq!((&answer.name, &answer.metadata, &answer.owner_id), (&given.name, &given.metadata, &given.owner_id));
    assert_eq!((answer.environment, answer.expire_time), (given.environment, given.expire_time));
    wait_until("the use to be counted", async || world.get(&id).await.request_count == 42).await;
    let key = world.get(&id).await;
    assert!(micros(key.last_used_time) > micros(given.last_used_time));
    assert_eq!((key.create_time, key.expire_time), (given.create_time, given.expire_time));
}

store_test!(what_is_not_known_of_a_key_is_not_made_up);
async fn what_is_not_known_of_a_key_is_not_made_up(database: TestDatabase) {
    let world = World::new(&database).await;
    let (before, shown) = (micros(Some(from_now(0))), secret(0));
    let results = world.import(vec![plain(&shown), digest(&secret(1)), slow(&secret(2))]).await;
    assert_eq!(told(&results), ["CREATED"; 3]);
    for (at, result) in results.iter().enumerate() {
        let key = world.get(&result.key_id).await;
        let created = micros(key.create_time);
        assert!((before..=micros(Some(from_now(0)))).contains(&created), "{created}");
        let hint = if at == 0 { &shown[31..] } else { "" };
        assert_eq!((key.prefix.as_str(), key.hint.as_str()), ("", hint), "a plain secret shows its end");
        assert_eq!((key.status(), key.enabled, key.request_count), (KeyStatus::Active, true, 0));
        assert_eq!((key.expire_time, key.last_used_time, key.revoke_time), (None, None, None));
        assert!(key.scopes.is_empty() && key.metadata.is_empty() && key.owner_id.is_empty());
        assert!(key.allowed_cidrs.is_empty() && key.rate_limits.is_empty() && key.credits.is_none());
    }
}

/// What a revoked key looks like in its source.
fn revoked(key: &ImportKey, time: Timestamp) -> ImportKey {
    with(key, |key| {
        key.revoke_time = Some(time);
        key.revocation_reason = RevocationReason::KeyCompromise.into();
        "leaked\non Friday".clone_into(&mut key.revocation_note);
    })
}

store_test!(a_key_that_has_ended_comes_in_ended);
async fn a_key_that_has_ended_comes_in_ended(database: TestDatabase) {
    let world = World::new(&database).await;
    let past = from_now(-10 * DAY);
    let expired = |at: usize| with(&digest(&secret(at)), |key| key.expire_time = Some(past));
    let disabled = |key: &ImportKey| with(key, |key| key.enabled = Some(false));
    let keys = vec![
        expired(0),
        disabled(&digest(&secret(1))),
        revoked(&digest(&secret(2)), past),
        disabled(&expired(3)),
        revoked(&disabled(&expired(4)), past),
    ];
    let results = world.import(keys).await;
    let expected = [
        (KeyStatus::Expired, Outcome::Expired),
        (KeyStatus::Disabled, Outcome::Disabled),
        (KeyStatus::Revoked, Outcome::Revoked),
        (KeyStatus::Disabled, Outcome::Disabled),
        (KeyStatus::Revoked, Outcome::Revoked),
    ];
    assert_eq!(told(&results), ["CREATED"; 5]);
    for (at, (result, (status, outcome))) in results.iter().zip(expected).enumerate() {
        let key = world.get(&result.key_id).await;
        assert_eq!((key.status(), key.enabled), (status, status == KeyStatus::Expired), "{at}");
        assert_eq!(key.expire_time, [0, 3, 4].contains(&at).then_some(past), "{at}");
        assert_eq!(world.outcome(&secret(at)).await, outcome, "{at}");
        let is_revoked = status == KeyStatus::Revoked;
        assert_eq!(key.revoke_time, is_revoked.then_some(past), "when it ended is kept, not when it came in");
        assert_eq!(key.revoked_by, if is_revoked { "import" } else { "" });
        let reason = if is_revoked { RevocationReason::KeyCompromise } else { RevocationReason::Unspecified };
        assert_eq!(key.revocation_reason(), reason);
        assert_eq!(key.revocation_note, if is_revoked { "leaked\non Friday" } else { "" });
    }
    let enabling = |at: usize| ApiKey { id: results[at].key_id.clone(), enabled: true, ..Default::default() };
    for (at, outcome) in [(1, Outcome::Valid), (3, Outcome::Expired)] {
        world.update(enabling(at), &["enabled"]).await;
        assert_eq!(world.outcome(&secret(at)).await, outcome);
    }
    let update = world.server.keys().update_key(updating(enabling(2), &["enabled"])).await;
    refused(update, Code::FailedPrecondition, "KEY_REVOKED");
}

store_test!(the_settings_of_an_imported_key_hold_from_the_first_verification);
async fn the_settings_of_an_imported_key_hold_from_the_first_verification(database: TestDatabase) {
    let world = World::new(&database).await;
    let limit = RateLimit { name: "long".to_owned(), limit: 1, window: Some(days(400)), shadow: false };
    let soon = from_now(2);
    let keys = vec![
        with(&digest(&secret(0)), |key| key.credits = Some(Credits { remaining: 2, ..Default::default() })),
        with(&digest(&secret(1)), |key| key.rate_limits = vec![limit]),
        with(&digest(&secret(2)), |key| key.allowed_cidrs = texts(&["192.0.2.0/24"])),
        with(&digest(&secret(3)), |key| key.credits = Some(Credits::default())),
        with(&digest(&secret(4)), |key| key.expire_time = Some(soon)),
        digest(&secret(5)),
    ];
    assert_eq!(told(&world.import(keys).await), ["CREATED"; 6]);
    for (at, outcome) in [
        (0, Outcome::Valid),
        (0, Outcome::Valid),
        (0, Outcome::CreditsExhausted),
        (1, Outcome::Valid),
        (1, Outcome::RateLimited),
        (2, Outcome::AddressNotAllowed),
        (3, Outcome::CreditsExhausted),
    ] {
        assert_eq!(world.outcome(&secret(at)).await, outcome, "{at}");
    }
    let allowed = with(&presenting(&secret(2)), |request| "192.0.2.1".clone_into(&mut request.client_address));
    assert_eq!(world.ask(allowed).await.outcome(), Outcome::Valid);
    let wanted = Some(RequiredScopes { all_of: texts(&["a:b"]), any_of: vec![] });
    let scoped = with(&presenting(&secret(5)), |request| request.required_scopes = wanted);
    assert_eq!(world.ask(scoped).await.outcome(), Outcome::InsufficientScope);
    wait_until("the key to expire", async || world.outcome(&secret(4)).await == Outcome::Expired).await;
    assert!(micros(Some(from_now(0))) >= micros(Some(soon)));
    world.deactivate().await;
    assert_eq!(world.outcome(&secret(5)).await, Outcome::OrganizationInactive);
}
