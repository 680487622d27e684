//! `RotateKey`: a new secret under the same settings, and the end of the old one.
//! What both keys share meanwhile is in `rotate_shares.rs`; the last admin key is in `revoke_admins.rs`.
//! Invariant: the old key never lives longer than it had, and a refused rotation makes no key.

use std::collections::HashMap;

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::{
    ApiKey, Credits, KeyStatus, Organization, Outcome, RateLimit, RefillInterval, RevocationReason, RotateKeyRequest,
};
use prost_types::Duration;
use tonic::Code;

use super::{
    Footprint, NOBODY, World, at_once, bad_fields, days, fields, from_now, micros, refused, seconds, texts, with,
};
use crate::harness::{TestDatabase, create_organization, store_test, wait_until};

fn rotating(key_id: &str, overlap: Option<Duration>) -> RotateKeyRequest {
    RotateKeyRequest { key_id: key_id.to_owned(), overlap, ..Default::default() }
}

store_test!(settings_are_carried_over_to_the_new_key);
async fn settings_are_carried_over_to_the_new_key(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| {
        request.scopes = texts(&["invoices:read"]);
        request.metadata = HashMap::from([("team".to_owned(), "billing 💸".to_owned())]);
        "anna".clone_into(&mut request.owner_id);
        request.rate_limits = vec![RateLimit { name: "day".to_owned(), limit: 5, window: Some(days(1)), shadow: true }];
        request.credits =
            Some(Credits { remaining: 7, refill_amount: 9, refill_interval: RefillInterval::Month.into() });
        request.allowed_cidrs = texts(&["10.0.0.0/8"]);
        request.lifetime = Some(Lifetime::Ttl(days(90)));
    });
    let (old, old_secret) = world.create(request).await;
    let caller = world.caller(&world.organization, &["keystead.keys.rotate"]).await;
    let answer = world.server.keys_as(&caller).rotate_key(rotating(&old.id, Some(days(1)))).await;
    let answer = answer.expect("the key is rotated").into_inner();
    let (new, previous) = (answer.key.expect("the new key"), answer.previous_key.expect("the old key"));
    assert!(answer.secret.len() == 51 && answer.secret.starts_with("pk_live_") && answer.secret != old_secret);
    let caller_id = world.key_of(&caller).await;
    let expected = ApiKey {
        id: new.id.clone(),
        hint: answer.secret[47..].to_owned(),
        create_time: new.create_time,
        update_time: new.create_time,
        created_by: caller_id,
        rotated_from_id: old.id.clone(),
        etag: new.etag.clone(),
        ..old.clone()
    };
    assert_eq!(new, expected, "expiry and remaining credits included");
    assert_ne!(new.id, old.id);
    assert_eq!(world.get(&new.id).await, new);
    let expected = ApiKey {
        expire_time: previous.expire_time,
        update_time: previous.update_time,
        etag: previous.etag.clone(),
        ..old.clone()
    };
    assert_eq!(previous, expected, "the old one but for its expiry");
    assert_ne!(previous.etag, old.etag);
    assert_eq!(micros(previous.expire_time), micros(previous.update_time) + 86_400_000_000);
    assert_eq!(world.get(&old.id).await, previous);
}

store_test!(without_overlap_the_old_secret_ends_at_once);
async fn without_overlap_the_old_secret_ends_at_once(database: TestDatabase) {
    let world = World::new(&database).await;
    for overlap in [None, Some(seconds(0))] {
        let (old, old_secret) = world.create(world.new_key()).await;
        assert_eq!(world.outcome(&old_secret).await, Outcome::Valid);
        let answer = world.rotate(&old.id, overlap).await;
        assert_eq!(world.outcome(&old_secret).await, Outcome::Revoked);
        assert_eq!(world.outcome(&answer.secret).await, Outcome::Valid);
        let previous = answer.previous_key.expect("the old key");
        assert_eq!(previous.status(), KeyStatus::Revoked);
        assert_eq!(previous.revocation_reason(), RevocationReason::Superseded);
        assert_eq!(previous.revoke_time, previous.update_time);
        assert_eq!(previous.revoked_by, world.key_of(world.server.admin_secret()).await);
        let read = world.get(&old.id).await;
        // What the verification above left behind may have been written since.
        let used = ApiKey { last_used_time: read.last_used_time, request_count: read.request_count, ..previous };
        assert_eq!(read, used);
    }
}

store_test!(with_an_overlap_both_secrets_are_valid_until_it_ends);
async fn with_an_overlap_both_secrets_are_valid_until_it_ends(database: TestDatabase) {
    let world = World::new(&database).await;
    let (old, old_secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&old_secret).await, Outcome::Valid);
    let answer = world.rotate(&old.id, Some(seconds(3))).await;
    let end = micros(answer.previous_key.expect("the old key").expire_time);
    let outcome = world.outcome(&old_secret).await;
    assert!(outcome == Outcome::Valid || micros(Some(from_now(0))) >= end, "{outcome:?}");
    wait_until("the overlap to end", async || world.outcome(&old_secret).await == Outcome::Expired).await;
    assert!(micros(Some(from_now(0))) >= end);
    assert_eq!(world.outcome(&answer.secret).await, Outcome::Valid);
    assert_eq!(answer.key.expect("the new key").expire_time, None);
}

store_test!(the_old_key_never_lives_longer_than_it_had);
async fn the_old_key_never_lives_longer_than_it_had(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::Ttl(seconds(3600))));
    let (old, _) = world.create(request).await;
    let answer = world.rotate(&old.id, Some(days(30))).await;
    assert_eq!(answer.previous_key.expect("the old key").expire_time, old.expire_time);
    assert_eq!(answer.key.expect("the new key").expire_time, old.expire_time, "nor does the new one");
    let (old, _) = world.create(world.new_key()).await;
    let previous = world.rotate(&old.id, Some(days(30))).await.previous_key.expect("the old key");
    assert_eq!(micros(previous.expire_time), micros(previous.update_time) + 30 * 86_400_000_000);
}

store_test!(a_disabled_key_stays_disabled);
async fn a_disabled_key_stays_disabled(database: TestDatabase) {
    let world = World::new(&database).await;
    let (old, old_secret) = world.create(world.new_key()).await;
    world.update(ApiKey { enabled: false, ..old.clone() }, &["enabled"]).await;
    let answer = world.rotate(&old.id, Some(days(1))).await;
    assert_eq!(answer.key.expect("the new key").status(), KeyStatus::Disabled);
    assert_eq!(world.outcome(&answer.secret).await, Outcome::Disabled);
    assert_eq!(world.outcome(&old_secret).await, Outcome::Disabled);
}

store_test!(a_new_secret_has_the_prefix_of_today);
async fn a_new_secret_has_the_prefix_of_today(database: TestDatabase) {
    let world = World::new(&database).await;
    let (old, old_secret) = world.create(world.new_key()).await;
    let organization = Organization { secret_prefix: "acme".to_owned(), ..Default::default() };
    world.set(organization, &["secret_prefix"]).await;
    assert_eq!(world.outcome(&old_secret).await, Outcome::Valid);
    let answer = world.rotate(&old.id, Some(days(1))).await;
    assert!(answer.secret.starts_with("acme_live_"));
    assert_eq!(answer.key.expect("the new key").prefix, "acme_live_");
    assert_eq!(answer.previous_key.expect("the old key").prefix, "pk_live_");
}

store_test!(what_has_ended_or_was_rotated_is_not_rotated);
async fn what_has_ended_or_was_rotated_is_not_rotated(database: TestDatabase) {
    let world = World::new(&database).await;
    let (revoked, _) = world.create(world.new_key()).await;
    world.revoke(&revoked.id).await;
    let request = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::Ttl(seconds(1))));
    let (expired, secret) = world.create(request).await;
    let (rotated, _) = world.create(world.new_key()).await;
    world.rotate(&rotated.id, Some(days(1))).await;
    wait_until("the expiry", async || world.outcome(&secret).await == Outcome::Expired).await;
    let (idle, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    for (key, reason) in [(&revoked, "KEY_REVOKED"), (&expired, "KEY_EXPIRED"), (&rotated, "KEY_ROTATED")] {
        let result = world.server.keys().rotate_key(rotating(&key.id, Some(days(1)))).await;
        let details = refused(result, Code::FailedPrecondition, reason);
        let failure = details.precondition_failure().expect("a PreconditionFailure");
        assert!(failure.violations[0].subject.contains(&key.id), "{failure:?}");
    }
    assert_eq!(Footprint::of(&database).await, before);
    world.deactivate().await;
    let before = Footprint::of(&database).await;
    let result = world.server.keys().rotate_key(rotating(&idle.id, None)).await;
    refused(result, Code::FailedPrecondition, "ORGANIZATION_INACTIVE");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(an_overlap_is_zero_to_thirty_days);
async fn an_overlap_is_zero_to_thirty_days(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let bad = [
        seconds(30 * 86_400 + 1),
        Duration { nanos: 1, ..days(30) },
        seconds(-1),
        Duration { seconds: 0, nanos: -1 },
        Duration { seconds: 1, nanos: 1_000_000_000 },
        Duration { seconds: i64::MAX, nanos: 999_999_999 },
        Duration { seconds: i64::MIN, nanos: i32::MIN },
    ];
    for overlap in bad {
        let result = world.server.keys().rotate_key(rotating(&key.id, Some(overlap))).await;
        assert_eq!(bad_fields(result), fields(&["overlap"]), "{overlap:?}");
    }
    assert_eq!(Footprint::of(&database).await, before);
    world.rotate(&key.id, Some(days(30))).await;
}

store_test!(a_stale_etag_aborts_and_rotates_nothing);
async fn a_stale_etag_aborts_and_rotates_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let renamed = world.update(ApiKey { name: "second".to_owned(), ..key.clone() }, &["name"]).await;
    let before = Footprint::of(&database).await;
    let request = rotating(&key.id, None);
    let stale = with(&request, |request| request.etag.clone_from(&key.etag));
    refused(world.server.keys().rotate_key(stale).await, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(Footprint::of(&database).await, before);
    let right = with(&request, |request| request.etag.clone_from(&renamed.etag));
    world.server.keys().rotate_key(right).await.expect("its own etag");
}

store_test!(of_rotations_at_once_one_is_made);
async fn of_rotations_at_once_one_is_made(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let answers = at_once((0..10).map(|_| {
        let (mut keys, request) = (world.server.keys(), rotating(&key.id, Some(days(1))));
        async move { keys.rotate_key(request).await }
    }))
    .await;
    let (made, refusals): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refusals.len()), (1, 9));
    for refusal in refusals {
        refused(refusal, Code::FailedPrecondition, "KEY_ROTATED");
    }
    assert_eq!(Footprint::of(&database).await.keys, before.keys + 1);
}

store_test!(only_a_caller_who_may_rotates_and_only_what_it_holds);
async fn only_a_caller_who_may_rotates_and_only_what_it_holds(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let foreign = world.caller(&rival, &["keystead.keys.rotate"]).await;
    let own = world.caller(&world.organization, &["keystead.keys.rotate"]).await;
    let request = with(&world.new_key(), |request| request.scopes = texts(&["keystead.keys.revoke"]));
    let (stronger, _) = world.create(request).await;
    let before = Footprint::of(&database).await;
    let request = rotating(&stronger.id, None);
    refused(world.server.keys_as(&foreign).rotate_key(request.clone()).await, Code::NotFound, "KEY_NOT_FOUND");
    refused(world.server.keys_as(&own).rotate_key(request).await, Code::PermissionDenied, "SCOPE_NOT_HELD");
    refused(world.server.keys().rotate_key(rotating(NOBODY, None)).await, Code::NotFound, "KEY_NOT_FOUND");
    assert_eq!(Footprint::of(&database).await, before);
}
