//! `VerifyKey`: the monthly quota of an organization and the outcome `QUOTA_EXCEEDED`.
//! No test waits for a month to end; that months begin at midnight UTC is in `src/domain/time.rs`.
//! Invariant: the quota is shared by all keys of the organization, and charged by what was `VALID` alone.

use keystead::proto::v1::{Credits, Outcome, RateLimit, VerifyKeyRequest};

use super::{World, answer_to, at_once, days, presenting, with};
use crate::harness::{TestDatabase, create_key, create_organization, store_test};

fn costing(secret: &str, cost: i64) -> VerifyKeyRequest {
    with(&presenting(secret), |request| request.cost = Some(cost))
}

store_test!(the_quota_is_shared_by_the_organizations_keys_alone);
async fn the_quota_is_shared_by_the_organizations_keys_alone(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_quota(5).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let (_, foreign) = create_key(&world.server, &rival, &[]).await;
    let (_, first) = world.create(world.new_key()).await;
    let (_, second) = world.create(world.new_key()).await;
    assert_eq!(world.ask(costing(&first, 3)).await.outcome(), Outcome::Valid);
    assert_eq!(world.ask(costing(&second, 3)).await.outcome(), Outcome::QuotaExceeded, "all of the cost or nothing");
    assert_eq!(world.ask(costing(&second, 2)).await.outcome(), Outcome::Valid);
    for secret in [&first, &second] {
        assert_eq!(world.outcome(secret).await, Outcome::QuotaExceeded);
        assert_eq!(world.ask(costing(secret, 0)).await.outcome(), Outcome::QuotaExceeded, "as a cost of 1 would be");
    }
    assert_eq!(world.outcome(&foreign).await, Outcome::Valid);
    world.set_quota(6).await;
    assert_eq!(world.outcome(&first).await, Outcome::Valid, "a raised quota counts on from where it was");
    world.set_quota(0).await;
    assert_eq!(world.outcome(&first).await, Outcome::Valid, "none");
}

store_test!(verifications_at_once_never_pass_the_quota);
async fn verifications_at_once_never_pass_the_quota(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_quota(20).await;
    let keys = world.create_many("quota", 4).await;
    let answers = at_once((0..60).map(|at| answer_to(world.server.keys(), presenting(&keys[at % 4].1)))).await;
    let count = |wanted: Outcome| answers.iter().filter(|answer| answer.outcome() == wanted).count();
    assert_eq!((count(Outcome::Valid), count(Outcome::QuotaExceeded)), (20, 40));
}

store_test!(what_is_denied_charges_no_quota);
async fn what_is_denied_charges_no_quota(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_quota(2).await;
    let limit = RateLimit { name: "long".to_owned(), limit: 1, window: Some(days(400)), shadow: false };
    let (_, limited) = world.create(with(&world.new_key(), |request| request.rate_limits = vec![limit])).await;
    let credits = Credits { remaining: 0, ..Default::default() };
    let (_, poor) = world.create(with(&world.new_key(), |request| request.credits = Some(credits))).await;
    assert_eq!(world.outcome(&limited).await, Outcome::Valid);
    for _ in 0..3 {
        assert_eq!(world.outcome(&limited).await, Outcome::RateLimited);
        assert_eq!(world.outcome(&poor).await, Outcome::CreditsExhausted);
    }
    let (_, plain) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&plain).await, Outcome::Valid, "one unit was left");
    assert_eq!(world.outcome(&plain).await, Outcome::QuotaExceeded);
}

store_test!(a_quota_that_denies_charges_no_limit);
async fn a_quota_that_denies_charges_no_limit(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_quota(1).await;
    let limit = RateLimit { name: "long".to_owned(), limit: 9, window: Some(days(400)), shadow: false };
    let (_, secret) = world.create(with(&world.new_key(), |request| request.rate_limits = vec![limit])).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    for _ in 0..3 {
        let answer = world.ask(presenting(&secret)).await;
        assert_eq!((answer.outcome(), answer.rate_limits[0].remaining), (Outcome::QuotaExceeded, 8));
    }
}

store_test!(limits_and_quota_are_charged_all_or_none);
async fn limits_and_quota_are_charged_all_or_none(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_quota(30).await;
    let limit = RateLimit { name: "long".to_owned(), limit: 12, window: Some(days(400)), shadow: false };
    let (_, limited) = world.create(with(&world.new_key(), |request| request.rate_limits = vec![limit])).await;
    let (_, plain) = world.create(world.new_key()).await;
    let (mut used, mut spent) = (0, 0);
    for (at, cost) in [5, 9, 4, 30, 3, 8, 2, 7, 1, 11, 3, 1, 1].into_iter().enumerate() {
        let is_limited = at % 2 == 0;
        let expected = match (is_limited && used + cost > 12, spent + cost > 30) {
            (true, _) => Outcome::RateLimited,
            (false, true) => Outcome::QuotaExceeded,
            (false, false) => Outcome::Valid,
        };
        let secret = if is_limited { &limited } else { &plain };
        assert_eq!(world.ask(costing(secret, cost)).await.outcome(), expected, "call {at} of cost {cost}");
        if expected == Outcome::Valid {
            spent += cost;
            used += if is_limited { cost } else { 0 };
        }
    }
    assert_eq!(world.ask(costing(&limited, 0)).await.rate_limits[0].remaining, 12 - used);
    assert_eq!((used, spent), (12, 30));
}

store_test!(the_quota_goes_on_counting_after_a_restart);
async fn the_quota_goes_on_counting_after_a_restart(database: TestDatabase) {
    let mut world = World::new(&database).await;
    world.set_quota(5).await;
    let (_, secret) = world.create(world.new_key()).await;
    assert_eq!(world.ask(costing(&secret, 4)).await.outcome(), Outcome::Valid);
    world.server.restart().await;
    assert_eq!(world.ask(costing(&secret, 2)).await.outcome(), Outcome::QuotaExceeded);
    assert_eq!(world.ask(costing(&secret, 1)).await.outcome(), Outcome::Valid);
}
