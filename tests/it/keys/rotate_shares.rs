//! `RotateKey`: what the old key and the new one share while both live.
//! Credits are neither doubled nor lost, and rate limits go on counting.
//! Invariant: nobody gets a second helping by rotating, also while a key is being used.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use keystead::proto::v1::{ApiKey, Credits, Outcome, RateLimit, RefillInterval, RotateKeyRequest};
use tokio::task::JoinSet;
use tonic::Code;

use super::{Keys, World, answer_to, days, presenting, refused, updating, with};
use crate::harness::{TestDatabase, store_test, wait_until};

fn credits(remaining: i64) -> Credits {
    Credits { remaining, ..Default::default() }
}

impl World {
    async fn shown_credits(&self, key: &ApiKey) -> Option<i64> {
        self.get(&key.id).await.credits.map(|credits| credits.remaining)
    }
}

store_test!(credits_are_shared_along_a_chain_of_rotations);
async fn credits_are_shared_along_a_chain_of_rotations(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.credits = Some(credits(10)));
    let (first, secret) = world.create(request).await;
    assert_eq!(world.ask(presenting(&secret)).await.credits_remaining, Some(9));
    let mut keys = vec![first.clone()];
    let mut secrets = vec![secret];
    for left in [9, 7, 4] {
        let newest = keys.last().expect("a key").clone();
        let answer = world.rotate(&newest.id, Some(days(1))).await;
        let key = answer.key.expect("the new key");
        assert_eq!(key.credits, Some(credits(left)), "what was left is carried over");
        keys.push(key);
        secrets.push(answer.secret);
        let mut left = left;
        for secret in &secrets {
            left -= 1;
            let answer = world.ask(presenting(secret)).await;
            assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::Valid, Some(left)));
        }
        for key in &keys {
            assert_eq!(world.shown_credits(key).await, Some(left), "each shows what all of them share");
        }
    }
    for secret in &secrets {
        let answer = world.ask(presenting(secret)).await;
        assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::CreditsExhausted, Some(0)));
    }
}

/// Spends one credit after another until there are none.
async fn spend_all(keys: Keys, secret: String, spent: Arc<AtomicI64>) {
    loop {
        match answer_to(keys.clone(), presenting(&secret)).await.outcome() {
            Outcome::Valid => spent.fetch_add(1, Ordering::SeqCst),
            Outcome::CreditsExhausted => return,
            outcome => panic!("{outcome:?}"),
        };
    }
}

store_test!(credits_are_exact_while_a_key_is_rotated_under_load);
async fn credits_are_exact_while_a_key_is_rotated_under_load(database: TestDatabase) {
    let world = World::new(&database).await;
    let (rotations, each) = (8, 50);
    let total = (rotations + 1) * each;
    let request = with(&world.new_key(), |request| request.credits = Some(credits(total)));
    let (mut newest, secret) = world.create(request).await;
    let spent = Arc::new(AtomicI64::new(0));
    let mut spenders = JoinSet::new();
    for _ in 0..2 {
        spenders.spawn(spend_all(world.server.keys(), secret.clone(), spent.clone()));
    }
    for rotation in 1..=rotations {
        wait_until("some more spends", async || spent.load(Ordering::SeqCst) >= (rotation - 1) * each + 5).await;
        let answer = world.rotate(&newest.id, Some(days(1))).await;
        newest = answer.key.expect("the new key");
        spenders.spawn(spend_all(world.server.keys(), answer.secret, spent.clone()));
    }
    spenders.join_all().await;
    assert_eq!(spent.load(Ordering::SeqCst), total, "neither doubled nor lost");
    assert_eq!(world.shown_credits(&newest).await, Some(0));
}

store_test!(a_refill_comes_once_for_both);
async fn a_refill_comes_once_for_both(database: TestDatabase) {
    let world = World::new(&database).await;
    let refilled = Credits { remaining: 1, refill_amount: 4, refill_interval: RefillInterval::Day.into() };
    let request = with(&world.new_key(), |request| request.credits = Some(refilled));
    let (old, old_secret) = world.create(request).await;
    let answer = world.rotate(&old.id, Some(days(1))).await;
    assert_eq!(world.outcome(&old_secret).await, Outcome::Valid);
    assert_eq!(world.outcome(&answer.secret).await, Outcome::CreditsExhausted);
    database.raw_sql("UPDATE api_keys SET credits_refill_time_us = 1 WHERE credits_refill_amount > 0").await;
    assert_eq!(world.shown_credits(&old).await, Some(4));
    let mut valid = 0;
    for secret in [&old_secret, &answer.secret, &old_secret, &answer.secret, &old_secret, &answer.secret] {
        valid += usize::from(world.outcome(secret).await == Outcome::Valid);
    }
    assert_eq!(valid, 4);
}

store_test!(the_credits_of_a_rotated_key_are_those_of_the_newest);
async fn the_credits_of_a_rotated_key_are_those_of_the_newest(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.credits = Some(credits(5)));
    let (old, old_secret) = world.create(request).await;
    let answer = world.rotate(&old.id, Some(days(1))).await;
    let new = answer.key.expect("the new key");
    let more = updating(ApiKey { credits: Some(credits(50)), ..old.clone() }, &["credits"]);
    refused(world.server.keys().update_key(more).await, Code::FailedPrecondition, "KEY_ROTATED");
    let renamed = world.update(ApiKey { name: "still five".to_owned(), ..old.clone() }, &["name"]).await;
    assert_eq!(renamed.credits, Some(credits(5)));
    world.update(ApiKey { credits: Some(credits(2)), ..new.clone() }, &["credits"]).await;
    assert_eq!(world.ask(presenting(&old_secret)).await.credits_remaining, Some(1));
    world.update(ApiKey { credits: None, ..new.clone() }, &["credits"]).await;
    assert_eq!(world.ask(presenting(&answer.secret)).await.credits_remaining, None, "unlimited now");
    wait_until("the old key to be unlimited too", async || {
        let answer = world.ask(presenting(&old_secret)).await;
        answer.outcome() == Outcome::Valid && answer.credits_remaining.is_none()
    })
    .await;
}

store_test!(a_revoked_successor_does_not_take_the_credits_away);
async fn a_revoked_successor_does_not_take_the_credits_away(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.credits = Some(credits(3)));
    let (old, old_secret) = world.create(request).await;
    let answer = world.rotate(&old.id, Some(days(1))).await;
    world.revoke(&answer.key.expect("the new key").id).await;
    assert_eq!(world.outcome(&answer.secret).await, Outcome::Revoked);
    assert_eq!(world.ask(presenting(&old_secret)).await.credits_remaining, Some(2));
}

store_test!(rate_limits_go_on_counting_where_they_were);
async fn rate_limits_go_on_counting_where_they_were(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let limit = RateLimit { name: "long".to_owned(), limit: 5, window: Some(days(400)), shadow: false };
    let request = with(&world.new_key(), |request| request.rate_limits = vec![limit]);
    let (first, first_secret) = world.create(request).await;
    let left = async |world: &World, secret: &str| {
        let answer = world.ask(presenting(secret)).await;
        (answer.outcome(), answer.rate_limits[0].remaining)
    };
    assert_eq!(left(&world, &first_secret).await, (Outcome::Valid, 4));
    let second = world.rotate(&first.id, Some(days(1))).await;
    assert_eq!(left(&world, &second.secret).await, (Outcome::Valid, 3));
    assert_eq!(left(&world, &first_secret).await, (Outcome::Valid, 2), "both count in one window");
    let third = world.rotate(&second.key.expect("the second key").id, None).await;
    assert_eq!(left(&world, &third.secret).await, (Outcome::Valid, 1));
    world.server.restart().await;
    assert_eq!(left(&world, &third.secret).await, (Outcome::Valid, 0));
    for secret in [&first_secret, &third.secret] {
        assert_eq!(left(&world, secret).await, (Outcome::RateLimited, 0));
    }
}

store_test!(an_old_key_can_be_revoked_before_its_overlap_ends);
async fn an_old_key_can_be_revoked_before_its_overlap_ends(database: TestDatabase) {
    let world = World::new(&database).await;
    let (old, old_secret) = world.create(world.new_key()).await;
    let answer = world.rotate(&old.id, Some(days(30))).await;
    assert_eq!(world.outcome(&old_secret).await, Outcome::Valid);
    world.revoke(&old.id).await;
    assert_eq!(world.outcome(&old_secret).await, Outcome::Revoked);
    assert_eq!(world.outcome(&answer.secret).await, Outcome::Valid);
    let again = RotateKeyRequest { key_id: old.id, ..Default::default() };
    refused(world.server.keys().rotate_key(again).await, Code::FailedPrecondition, "KEY_REVOKED");
}
