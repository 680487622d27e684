//! `UpdateKey`: what it changes. Each path changes its own field and nothing else; a mask unsets what the
//! message leaves out. Refusals are in `update_rules.rs`.
//! Invariant: the next verification on the same server knows the change.

use std::collections::HashMap;

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::{ApiKey, Credits, KeyStatus, Outcome, RateLimit, RefillInterval, RequiredScopes};

use super::{World, days, from_now, presenting, seconds, texts, with};
use crate::harness::{TestDatabase, store_test};

/// Every field that a mask may name.
const PATHS: [&str; 9] =
    ["name", "scopes", "metadata", "owner_id", "rate_limits", "credits", "allowed_cidrs", "expire_time", "enabled"];

fn limit(name: &str) -> RateLimit {
    RateLimit { name: name.to_owned(), limit: 5, window: Some(days(2)), shadow: false }
}

impl World {
    /// A key with something in every field.
    async fn full_key(&self) -> (ApiKey, String) {
        let request = with(&self.new_key(), |request| {
            request.scopes = texts(&["invoices:read"]);
            request.metadata = HashMap::from([("team".to_owned(), "billing".to_owned())]);
            "anna".clone_into(&mut request.owner_id);
            request.rate_limits = vec![limit("old")];
            request.credits = Some(Credits { remaining: 100, ..Default::default() });
            request.allowed_cidrs = texts(&["10.0.0.0/8"]);
            request.lifetime = Some(Lifetime::Ttl(days(1)));
        });
        self.create(request).await
    }
}

/// Another value for every field, output fields included.
fn changed(key: &ApiKey) -> ApiKey {
    ApiKey {
        name: "مفتاح 🔑".to_owned(),
        scopes: texts(&["users:*", "*"]),
        metadata: HashMap::from([("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())]),
        owner_id: "bertha".to_owned(),
        rate_limits: vec![limit("new"), RateLimit { shadow: true, ..limit("newer") }],
        credits: Some(Credits { remaining: 7, refill_amount: 9, refill_interval: RefillInterval::Day.into() }),
        allowed_cidrs: texts(&["192.0.2.0/24", "2001:db8::/32"]),
        expire_time: Some(from_now(3600)),
        enabled: false,
        organization_id: super::NOBODY.to_owned(),
        prefix: "no_".to_owned(),
        hint: "none".to_owned(),
        environment: 0,
        status: KeyStatus::Revoked.into(),
        create_time: Some(from_now(0)),
        update_time: None,
        last_used_time: Some(from_now(0)),
        request_count: 99,
        created_by: "nobody".to_owned(),
        revoke_time: Some(from_now(0)),
        revoked_by: "nobody".to_owned(),
        revocation_reason: 6,
        revocation_note: "none".to_owned(),
        rotated_from_id: super::NOBODY.to_owned(),
        etag: "ignored".to_owned(),
        ..key.clone()
    }
}

/// `target` with the field that `path` names taken from `source`.
fn take(path: &str, source: &ApiKey, target: &mut ApiKey) {
    match path {
        "name" => target.name.clone_from(&source.name),
        "scopes" => target.scopes.clone_from(&source.scopes),
        "metadata" => target.metadata.clone_from(&source.metadata),
        "owner_id" => target.owner_id.clone_from(&source.owner_id),
        "rate_limits" => target.rate_limits.clone_from(&source.rate_limits),
        "credits" => target.credits = source.credits,
        "allowed_cidrs" => target.allowed_cidrs.clone_from(&source.allowed_cidrs),
        "expire_time" => target.expire_time = source.expire_time,
        "enabled" => {
            target.enabled = source.enabled;
            target.status = if source.enabled { KeyStatus::Active } else { KeyStatus::Disabled }.into();
        }
        other => panic!("{other} is no path"),
    }
}

store_test!(each_path_changes_its_own_field_alone);
async fn each_path_changes_its_own_field_alone(database: TestDatabase) {
    let world = World::new(&database).await;
    let (mut before, _) = world.full_key().await;
    let new = changed(&before);
    for path in PATHS {
        let after = world.update(new.clone(), &[path]).await;
        assert_ne!(after.etag, before.etag, "{path}");
        assert!(super::micros(after.update_time) > super::micros(before.update_time), "{path}");
        let mut expected = ApiKey { etag: after.etag.clone(), update_time: after.update_time, ..before.clone() };
        take(path, &new, &mut expected);
        assert_ne!(expected, ApiKey { etag: after.etag.clone(), update_time: after.update_time, ..before }, "{path}");
        assert_eq!(after, expected, "{path}");
        assert_eq!(world.get(&after.id).await, after, "{path}");
        before = after;
    }
}

store_test!(all_paths_change_in_one_call);
async fn all_paths_change_in_one_call(database: TestDatabase) {
    let world = World::new(&database).await;
    let (before, _) = world.full_key().await;
    let new = changed(&before);
    let after = world.update(new.clone(), &PATHS).await;
    let mut expected = ApiKey { etag: after.etag.clone(), update_time: after.update_time, ..before };
    for path in PATHS {
        take(path, &new, &mut expected);
    }
    assert_eq!(after, expected);
    let twice = world.update(ApiKey { name: "twice".to_owned(), ..after }, &["name", "name"]).await;
    assert_eq!(twice.name, "twice", "a path that is named twice counts once");
}

store_test!(a_mask_unsets_what_the_message_leaves_out);
async fn a_mask_unsets_what_the_message_leaves_out(database: TestDatabase) {
    let world = World::new(&database).await;
    let (before, secret) = world.full_key().await;
    let bare = ApiKey { id: before.id.clone(), ..Default::default() };
    let paths: Vec<&str> = PATHS.into_iter().filter(|path| !["name", "enabled"].contains(path)).collect();
    let after = world.update(bare, &paths).await;
    assert_eq!(after.name, before.name, "not in the mask");
    assert!(after.enabled, "not in the mask");
    assert!(after.scopes.is_empty() && after.metadata.is_empty() && after.owner_id.is_empty());
    assert!(after.rate_limits.is_empty() && after.allowed_cidrs.is_empty());
    assert_eq!((after.credits, after.expire_time), (None, None), "unlimited, for ever");
    let answer = world.ask(presenting(&secret)).await;
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::Valid, None), "from any address");
    assert!(answer.rate_limits.is_empty());
}

store_test!(the_next_verification_knows_the_change);
async fn the_next_verification_knows_the_change(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let scopes = RequiredScopes { all_of: texts(&["invoices:read"]), any_of: vec![] };
    let asking = with(&presenting(&secret), |request| request.required_scopes = Some(scopes));
    for round in 0..20 {
        let name = format!("round {round}");
        let metadata = HashMap::from([("round".to_owned(), round.to_string())]);
        let new = ApiKey { name: name.clone(), metadata: metadata.clone(), ..key.clone() };
        world.update(new, &["name", "metadata"]).await;
        let answer = world.ask(asking.clone()).await;
        assert_eq!((answer.outcome(), &answer.name), (Outcome::InsufficientScope, &name));
        assert_eq!(answer.metadata, metadata);
        world.update(ApiKey { scopes: texts(&["invoices:*"]), ..key.clone() }, &["scopes"]).await;
        assert_eq!(world.ask(asking.clone()).await.outcome(), Outcome::Valid);
        world.update(ApiKey { scopes: vec![], ..key.clone() }, &["scopes"]).await;
    }
}

store_test!(an_expired_key_lives_again_when_its_expiry_is_moved);
async fn an_expired_key_lives_again_when_its_expiry_is_moved(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.lifetime = Some(Lifetime::Ttl(seconds(1))));
    let (key, secret) = world.create(request).await;
    crate::harness::wait_until("the expiry", async || world.outcome(&secret).await == Outcome::Expired).await;
    assert_eq!(world.get(&key.id).await.status(), KeyStatus::Expired);
    let later = world.update(ApiKey { expire_time: Some(from_now(3600)), ..key.clone() }, &["expire_time"]).await;
    assert_eq!(later.status(), KeyStatus::Active);
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
}

store_test!(new_credits_count_from_their_new_number);
async fn new_credits_count_from_their_new_number(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    assert_eq!(world.ask(presenting(&secret)).await.credits_remaining, None);
    let credits = |remaining: i64| Some(Credits { remaining, ..Default::default() });
    world.update(ApiKey { credits: credits(2), ..key.clone() }, &["credits"]).await;
    assert_eq!(world.ask(presenting(&secret)).await.credits_remaining, Some(1));
    let renamed = world.update(ApiKey { name: "still one".to_owned(), ..key.clone() }, &["name"]).await;
    assert_eq!(renamed.credits, credits(1), "another path leaves what was spent as it is");
    assert_eq!(world.ask(presenting(&secret)).await.credits_remaining, Some(0));
    assert_eq!(world.outcome(&secret).await, Outcome::CreditsExhausted);
    world.update(ApiKey { credits: credits(1), ..key.clone() }, &["credits"]).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
}
