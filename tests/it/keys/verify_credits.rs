//! `VerifyKey`: credits and the outcome `CREDITS_EXHAUSTED`.
//! Refills are brought about by SQL that puts their moment into the past, since no test waits for midnight.
//! Invariant: each credit is spent once, under any concurrency, and by what was `VALID` alone.

use std::collections::BTreeSet;

use keystead::proto::v1::{
    ApiKey, Credits, Organization, Outcome, RateLimit, RefillInterval, RequiredScopes, VerifyKeyRequest,
};

use super::{World, answer_to, at_once, days, presenting, texts, with};
use crate::harness::{TestDatabase, store_test};

impl World {
    async fn credited(&self, credits: Credits) -> (ApiKey, String) {
        self.create(with(&self.new_key(), |request| request.credits = Some(credits))).await
    }

    async fn credits(&self, key: &ApiKey) -> i64 {
        self.get(&key.id).await.credits.expect("credits").remaining
    }
}

fn credits(remaining: i64) -> Credits {
    Credits { remaining, ..Default::default() }
}

fn daily(remaining: i64, refill_amount: i64) -> Credits {
    Credits { remaining, refill_amount, refill_interval: RefillInterval::Day.into() }
}

fn costing(secret: &str, cost: i64) -> VerifyKeyRequest {
    with(&presenting(secret), |request| request.cost = Some(cost))
}

store_test!(a_hundred_spends_at_once_of_forty_credits_pass_forty_times);
async fn a_hundred_spends_at_once_of_forty_credits_pass_forty_times(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.credited(credits(40)).await;
    let answers = at_once((0..100).map(|_| answer_to(world.server.keys(), presenting(&secret)))).await;
    let (valid, denied): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.outcome() == Outcome::Valid);
    let left: BTreeSet<i64> = valid.iter().map(|answer| answer.credits_remaining.expect("credits")).collect();
    assert_eq!(left, (0..40).collect(), "each credit was spent once");
    assert_eq!((valid.len(), denied.len()), (40, 60));
    for answer in denied {
        assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::CreditsExhausted, Some(0)));
    }
    assert_eq!(world.credits(&key).await, 0);
}

store_test!(a_cost_that_the_credits_do_not_cover_takes_none_of_them);
async fn a_cost_that_the_credits_do_not_cover_takes_none_of_them(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.credited(credits(5)).await;
    let answer = world.ask(costing(&secret, 6)).await;
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::CreditsExhausted, Some(5)));
    let answer = world.ask(costing(&secret, 5)).await;
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::Valid, Some(0)));
    let answer = world.ask(presenting(&secret)).await;
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::CreditsExhausted, Some(0)));
    assert_eq!(world.credits(&key).await, 0);
}

store_test!(a_cost_of_zero_spends_no_credit);
async fn a_cost_of_zero_spends_no_credit(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.credited(credits(1)).await;
    for _ in 0..3 {
        let answer = world.ask(costing(&secret, 0)).await;
        assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::Valid, Some(1)));
    }
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    let answer = world.ask(costing(&secret, 0)).await;
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::CreditsExhausted, Some(0)), "as a cost of 1");
}

store_test!(a_denied_request_spends_no_credit);
async fn a_denied_request_spends_no_credit(database: TestDatabase) {
    let world = World::new(&database).await;
    let limit = |limit: i64| vec![RateLimit { name: "long".to_owned(), limit, window: Some(days(400)), shadow: false }];
    let request = with(&world.new_key(), |request| {
        request.credits = Some(credits(9));
        request.rate_limits = limit(1);
        request.allowed_cidrs = texts(&["10.0.0.0/8"]);
    });
    let (key, secret) = world.create(request).await;
    let inside = with(&presenting(&secret), |request| "10.0.0.1".clone_into(&mut request.client_address));
    let scopes = RequiredScopes { all_of: texts(&["users:read"]), any_of: vec![] };
    assert_eq!(world.ask(inside.clone()).await.credits_remaining, Some(8));
    for (request, expected) in [
        (with(&inside, |request| request.key_id = Some(super::NOBODY.to_owned())), Outcome::NotFound),
        (presenting(&secret), Outcome::AddressNotAllowed),
        (with(&inside, |request| request.required_scopes = Some(scopes)), Outcome::InsufficientScope),
        (inside.clone(), Outcome::RateLimited),
    ] {
        let answer = world.ask(request).await;
        assert_eq!((answer.outcome(), answer.credits_remaining), (expected, None), "not looked at");
    }
    world.update(ApiKey { rate_limits: vec![], ..key.clone() }, &["rate_limits"]).await;
    world.set(Organization { monthly_quota: 1, ..Default::default() }, &["monthly_quota"]).await;
    world.ask(inside.clone()).await;
    assert_eq!(world.ask(inside.clone()).await.outcome(), Outcome::QuotaExceeded);
    world.deactivate().await;
    assert_eq!(world.ask(inside.clone()).await.outcome(), Outcome::OrganizationInactive);
    world.update(ApiKey { enabled: false, ..key.clone() }, &["enabled"]).await;
    assert_eq!(world.ask(inside.clone()).await.outcome(), Outcome::Disabled);
    assert_eq!(world.credits(&key).await, 7, "two were VALID");
}

store_test!(a_refill_that_is_due_counts_once_and_is_seen_before_it_is_used);
async fn a_refill_that_is_due_counts_once_and_is_seen_before_it_is_used(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.credited(daily(1, 5)).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    assert_eq!(world.outcome(&secret).await, Outcome::CreditsExhausted, "the refill is not due yet");
    let sql = format!("UPDATE api_keys SET credits_refill_time_us = 1 WHERE id = '{}'", key.id);
    database.raw_sql(&sql).await;
    assert_eq!(world.credits(&key).await, 5, "it counts from its moment on, used or not");
    assert_eq!(world.ask(costing(&secret, 0)).await.credits_remaining, Some(5));
    let left = at_once((0..12).map(|_| answer_to(world.server.keys(), presenting(&secret)))).await;
    assert_eq!(left.iter().filter(|answer| answer.outcome() == Outcome::Valid).count(), 5, "and only once");
    assert_eq!(world.credits(&key).await, 0);
    let next = format!("SELECT credits_refill_time_us FROM api_keys WHERE id = '{}'", key.id);
    let next = database.query_i64(&next).await;
    let now = super::micros(Some(super::from_now(0)));
    assert!(next > now && next <= now + 86_400_000_000 && next % 86_400_000_000 == 0, "the next midnight: {next}");
}

store_test!(a_refill_never_lowers_what_remains);
async fn a_refill_never_lowers_what_remains(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.credited(daily(10, 5)).await;
    let sql = format!("UPDATE api_keys SET credits_refill_time_us = 1 WHERE id = '{}'", key.id);
    database.raw_sql(&sql).await;
    assert_eq!(world.credits(&key).await, 10);
    assert_eq!(world.ask(presenting(&secret)).await.credits_remaining, Some(9));
    assert_eq!(world.credits(&key).await, 9);
}

store_test!(credits_survive_a_restart_and_do_not_change_the_etag);
async fn credits_survive_a_restart_and_do_not_change_the_etag(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let (key, secret) = world.credited(credits(10)).await;
    assert_eq!(world.ask(costing(&secret, 4)).await.credits_remaining, Some(6));
    world.server.restart().await;
    assert_eq!(world.ask(presenting(&secret)).await.credits_remaining, Some(5));
    let read = world.get(&key.id).await;
    assert_eq!((read.etag, read.update_time), (key.etag, key.update_time), "use is no change of settings");
}
