//! `VerifyKey`: rate limits of keys and organizations, the outcome `RATE_LIMITED`, and what answers say of limits.
//! Windows here are so long that none ends during a test. Invariant: a denied verification charges nothing,
//! and of several limits all are charged or none.

use keystead::proto::v1::{
    ApiKey, Organization, Outcome, RateLimit, RateLimitStatus, RequiredScopes, VerifyKeyResponse,
};
use tonic::Code;

use super::{World, answer_to, at_once, bad_fields, days, fields, presenting, seconds, texts, with};
use crate::harness::{TestDatabase, store_test, wait_until};

/// A limit of so many units in 400 days.
pub(super) fn limit(name: &str, limit: i64) -> RateLimit {
    RateLimit { name: name.to_owned(), limit, window: Some(days(400)), shadow: false }
}

fn shadow(name: &str, units: i64) -> RateLimit {
    RateLimit { shadow: true, ..limit(name, units) }
}

impl World {
    pub(super) async fn limited(&self, limits: &[RateLimit]) -> (ApiKey, String) {
        self.create(with(&self.new_key(), |request| request.rate_limits = limits.to_vec())).await
    }

    pub(super) async fn set_limits(&self, limits: &[RateLimit]) {
        let organization = Organization { rate_limits: limits.to_vec(), ..Default::default() };
        self.set(organization, &["rate_limits"]).await;
    }

    pub(super) async fn charge(&self, secret: &str, cost: i64) -> VerifyKeyResponse {
        self.ask(with(&presenting(secret), |request| request.cost = Some(cost))).await
    }
}

/// Each limit's name and what remains of it.
pub(super) fn remaining(answer: &VerifyKeyResponse) -> Vec<(&str, i64)> {
    answer.rate_limits.iter().map(|limit| (limit.name.as_str(), limit.remaining)).collect()
}

fn is_positive(status: &RateLimitStatus) -> bool {
    status.reset_after.is_some_and(|span| span.seconds > 0 || span.nanos > 0)
}

store_test!(a_limit_admits_exactly_its_number);
async fn a_limit_admits_exactly_its_number(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.limited(&[limit("long", 3)]).await;
    for left in [2, 1, 0] {
        let answer = world.ask(presenting(&secret)).await;
        assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::Valid, vec![("long", left)]));
        let status = &answer.rate_limits[0];
        assert!(status.limit == 3 && !status.exceeded && !status.shadow && is_positive(status), "{status:?}");
    }
    for _ in 0..3 {
        let answer = world.ask(presenting(&secret)).await;
        assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::RateLimited, vec![("long", 0)]));
        assert!(answer.rate_limits[0].exceeded && is_positive(&answer.rate_limits[0]), "{:?}", answer.rate_limits);
    }
}

store_test!(verifications_at_once_never_pass_a_limit);
async fn verifications_at_once_never_pass_a_limit(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_limits(&[limit("all", 25)]).await;
    let (_, first) = world.limited(&[limit("own", 15)]).await;
    let (_, second) = world.limited(&[]).await;
    let outcomes = at_once((0..80).map(|at| {
        let secret = if at % 2 == 0 { first.clone() } else { second.clone() };
        let keys = world.server.keys();
        async move { (at % 2, answer_to(keys, presenting(&secret)).await.outcome()) }
    }))
    .await;
    let valid = |key: usize| {
        let mine = outcomes.iter().filter(|(at, _)| *at == key);
        mine.filter(|(_, outcome)| *outcome == Outcome::Valid).count()
    };
    assert_eq!(valid(0) + valid(1), 25, "exactly what the organization admits");
    assert!(valid(0) <= 15, "{}", valid(0));
}

store_test!(several_limits_are_charged_all_or_none);
async fn several_limits_are_charged_all_or_none(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_limits(&[limit("org", 50)]).await;
    let (_, secret) = world.limited(&[limit("wide", 20), limit("narrow", 1)]).await;
    let answer = world.ask(presenting(&secret)).await;
    assert_eq!(answer.outcome(), Outcome::Valid);
    assert_eq!(remaining(&answer), [("wide", 19), ("narrow", 0), ("org", 49)], "the key's first");
    for _ in 0..5 {
        let answer = world.ask(presenting(&secret)).await;
        assert_eq!(answer.outcome(), Outcome::RateLimited);
        assert_eq!(remaining(&answer), [("wide", 19), ("narrow", 0), ("org", 49)], "none was charged");
        let exceeded: Vec<bool> = answer.rate_limits.iter().map(|limit| limit.exceeded).collect();
        assert_eq!(exceeded, [false, true, false]);
    }
}

store_test!(a_shadow_limit_counts_and_reports_and_never_denies);
async fn a_shadow_limit_counts_and_reports_and_never_denies(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.limited(&[shadow("trial", 2), limit("hard", 4)]).await;
    for (exceeded, left) in [(false, 1), (false, 0), (true, 0), (true, 0)] {
        let answer = world.ask(presenting(&secret)).await;
        assert_eq!(answer.outcome(), Outcome::Valid);
        let status = &answer.rate_limits[0];
        assert!(status.shadow && status.exceeded == exceeded && status.remaining == left, "{status:?}");
    }
    assert_eq!(world.outcome(&secret).await, Outcome::RateLimited, "the other one denies");
}

store_test!(limit_names_choose_among_the_keys_limits_only);
async fn limit_names_choose_among_the_keys_limits_only(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_limits(&[limit("org", 9)]).await;
    let (_, secret) = world.limited(&[limit("a", 5), limit("b", 5), limit("c", 5)]).await;
    let named = |names: &[&str]| with(&presenting(&secret), |request| request.limit_names = texts(names));
    let answer = world.ask(named(&["c", "a"])).await;
    assert_eq!(remaining(&answer), [("a", 4), ("c", 4), ("org", 8)], "named ones, and all of the organization's");
    let answer = world.ask(named(&["b", "b"])).await;
    assert_eq!(remaining(&answer), [("b", 4), ("org", 7)], "naming one twice charges it once");
    let answer = world.ask(named(&[])).await;
    assert_eq!(remaining(&answer), [("a", 3), ("b", 3), ("c", 3), ("org", 6)], "no name stands for all");
}

store_test!(a_limit_name_that_the_key_does_not_have_is_refused_and_charges_nothing);
async fn a_limit_name_that_the_key_does_not_have_is_refused_and_charges_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_limits(&[limit("org", 9)]).await;
    let (_, secret) = world.limited(&[limit("a", 5)]).await;
    for (names, at) in [(["a", "z"], "limit_names[1]"), (["org", "a"], "limit_names[0]")] {
        let request = with(&presenting(&secret), |request| request.limit_names = texts(&names));
        assert_eq!(bad_fields(world.server.keys().verify_key(request).await), fields(&[at]));
    }
    let request = with(&presenting(&secret), |request| request.limit_names = texts(&["y", "a", "z"]));
    let every = fields(&["limit_names[0]", "limit_names[2]"]);
    assert_eq!(bad_fields(world.server.keys().verify_key(request).await), every, "all of them");
    assert_eq!(remaining(&world.charge(&secret, 0).await), [("a", 5), ("org", 9)]);
}

store_test!(an_organizations_limit_is_shared_by_its_keys_alone);
async fn an_organizations_limit_is_shared_by_its_keys_alone(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_limits(&[limit("org", 3)]).await;
    let rival = crate::harness::create_organization(&world.server, "rival").await.id;
    let (_, foreign) = crate::harness::create_key(&world.server, &rival, &[]).await;
    let (_, first) = world.limited(&[limit("org", 100)]).await;
    let (_, second) = world.limited(&[]).await;
    let answer = world.ask(presenting(&first)).await;
    assert_eq!(remaining(&answer), [("org", 99), ("org", 2)], "a key's limit may have the same name");
    assert_eq!(remaining(&world.ask(presenting(&second)).await), [("org", 1)]);
    assert_eq!(world.outcome(&first).await, Outcome::Valid);
    assert_eq!(world.outcome(&second).await, Outcome::RateLimited);
    assert_eq!(world.outcome(&first).await, Outcome::RateLimited);
    assert_eq!(world.outcome(&foreign).await, Outcome::Valid);
}

store_test!(cost_is_charged_in_full_or_not_at_all);
async fn cost_is_charged_in_full_or_not_at_all(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.limited(&[limit("long", 10)]).await;
    assert_eq!(remaining(&world.charge(&secret, 7).await), [("long", 3)]);
    let answer = world.charge(&secret, 4).await;
    assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::RateLimited, vec![("long", 3)]));
    let answer = world.charge(&secret, 1_000_000).await;
    assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::RateLimited, vec![("long", 3)]));
    assert_eq!(answer.rate_limits[0].reset_after, None, "it will never fit");
    let answer = world.charge(&secret, 3).await;
    assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::Valid, vec![("long", 0)]));
}

store_test!(a_cost_of_zero_looks_and_charges_nothing);
async fn a_cost_of_zero_looks_and_charges_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.limited(&[limit("long", 2)]).await;
    for _ in 0..5 {
        let answer = world.charge(&secret, 0).await;
        assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::Valid, vec![("long", 2)]));
        assert!(!is_positive(&answer.rate_limits[0]), "free now: {:?}", answer.rate_limits);
    }
    world.charge(&secret, 2).await;
    for _ in 0..3 {
        assert_eq!(world.charge(&secret, 0).await.outcome(), Outcome::RateLimited, "as a cost of 1 would be");
    }
}

store_test!(what_is_denied_before_the_limits_charges_none);
async fn what_is_denied_before_the_limits_charges_none(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| {
        request.rate_limits = vec![limit("long", 5)];
        request.allowed_cidrs = texts(&["10.0.0.0/8"]);
    });
    let (key, secret) = world.create(request).await;
    let inside = with(&presenting(&secret), |request| "10.0.0.1".clone_into(&mut request.client_address));
    let scopes = RequiredScopes { all_of: texts(&["users:read"]), any_of: vec![] };
    let beyond = with(&inside, |request| request.required_scopes = Some(scopes));
    for _ in 0..3 {
        let answer = world.ask(presenting(&secret)).await;
        assert_eq!((answer.outcome(), answer.rate_limits.len()), (Outcome::AddressNotAllowed, 0));
        assert_eq!(world.ask(beyond.clone()).await.outcome(), Outcome::InsufficientScope);
        world.update(ApiKey { enabled: false, ..key.clone() }, &["enabled"]).await;
        assert_eq!(world.ask(inside.clone()).await.outcome(), Outcome::Disabled);
        world.update(ApiKey { enabled: true, ..key.clone() }, &["enabled"]).await;
    }
    assert_eq!(remaining(&world.ask(inside).await), [("long", 4)]);
}

store_test!(a_limit_admits_again_when_its_window_has_passed);
async fn a_limit_admits_again_when_its_window_has_passed(database: TestDatabase) {
    let world = World::new(&database).await;
    let short = RateLimit { window: Some(seconds(1)), ..limit("short", 1) };
    let (_, secret) = world.limited(&[short]).await;
    // Two verifications within a second, however slow the machine is now and then.
    wait_until("the limit to deny", async || world.outcome(&secret).await == Outcome::RateLimited).await;
    let answer = world.charge(&secret, 0).await;
    let reset = answer.rate_limits[0].reset_after.expect("it will fit again");
    assert!(reset.seconds <= 2, "two windows at the most: {reset:?}");
    wait_until("the window to pass", async || world.outcome(&secret).await == Outcome::Valid).await;
}

store_test!(a_changed_limit_keeps_its_count_and_a_changed_window_begins_anew);
async fn a_changed_limit_keeps_its_count_and_a_changed_window_begins_anew(database: TestDatabase) {
    let world = World::new(&database).await;
    world.set_limits(&[limit("org", 10)]).await;
    let (key, secret) = world.limited(&[limit("own", 3)]).await;
    let set_own = async |limit: RateLimit| {
        world.update(ApiKey { rate_limits: vec![limit], ..key.clone() }, &["rate_limits"]).await;
    };
    assert_eq!(remaining(&world.charge(&secret, 3).await), [("own", 0), ("org", 7)]);
    set_own(limit("own", 5)).await;
    world.set_limits(&[limit("org", 4)]).await;
    assert_eq!(remaining(&world.charge(&secret, 1).await), [("own", 1), ("org", 0)], "raised and lowered");
    world.set_limits(&[limit("org", 2)]).await;
    let answer = world.charge(&secret, 1).await;
    assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::RateLimited, vec![("own", 1), ("org", 0)]));
    set_own(shadow("own", 5)).await;
    world.set_limits(&[limit("org", 100)]).await;
    assert_eq!(remaining(&world.charge(&secret, 1).await), [("own", 0), ("org", 95)], "a shadow of the same count");
    set_own(RateLimit { window: Some(days(399)), ..limit("own", 5) }).await;
    assert_eq!(remaining(&world.charge(&secret, 1).await), [("own", 4), ("org", 94)], "another window");
    set_own(limit("own", 5)).await;
    assert_eq!(remaining(&world.charge(&secret, 0).await), [("own", 0), ("org", 94)], "the first one still counts");
}

/// Limits by name and by how much of each is used, as a slow and obviously right counter keeps them.
fn charge_in_model(limits: &[RateLimit], used: &mut [i64], cost: i64) -> (Outcome, Vec<i64>) {
    let fits = |(limit, used): (&RateLimit, &i64)| limit.shadow || used + cost.max(1) <= limit.limit;
    let valid = limits.iter().zip(&*used).all(fits);
    for used in used.iter_mut() {
        *used += if valid { cost } else { 0 };
    }
    let left = limits.iter().zip(&*used).map(|(limit, used)| (limit.limit - used).max(0)).collect();
    (if valid { Outcome::Valid } else { Outcome::RateLimited }, left)
}

store_test!(charges_of_any_cost_to_several_limits_are_all_or_none);
async fn charges_of_any_cost_to_several_limits_are_all_or_none(database: TestDatabase) {
    let world = World::new(&database).await;
    let own = [limit("wide", 90), shadow("watched", 20), limit("narrow", 40)];
    let organizations = limit("org", 60);
    world.set_limits(std::slice::from_ref(&organizations)).await;
    let (_, first) = world.limited(&own).await;
    let (_, second) = world.limited(&[]).await;
    let limits = [&own[..], &[organizations]].concat();
    let mut used = [0; 4];
    for at in 0..60 {
        let cost = [3, 0, 7, 1, 25, 2, 4][at % 7];
        // The second key has the organization's limit alone.
        let (secret, from) = if at % 3 == 2 { (&second, 3) } else { (&first, 0) };
        let answer = world.charge(secret, cost).await;
        let left: Vec<i64> = answer.rate_limits.iter().map(|limit| limit.remaining).collect();
        let expected = charge_in_model(&limits[from..], &mut used[from..], cost);
        assert_eq!((answer.outcome(), left), expected, "call {at} of cost {cost}");
    }
    assert_eq!(used[3], 60, "the organization's was used up");
}

store_test!(limits_go_on_counting_after_a_restart);
async fn limits_go_on_counting_after_a_restart(database: TestDatabase) {
    let mut world = World::new(&database).await;
    world.set_limits(&[limit("org", 10)]).await;
    let (_, secret) = world.limited(&[limit("long", 3)]).await;
    assert_eq!(world.charge(&secret, 2).await.outcome(), Outcome::Valid);
    world.server.restart().await;
    let answer = world.ask(presenting(&secret)).await;
    assert_eq!((answer.outcome(), remaining(&answer)), (Outcome::Valid, vec![("long", 0), ("org", 7)]));
    assert_eq!(world.outcome(&secret).await, Outcome::RateLimited);
}

store_test!(costs_out_of_range_are_refused);
async fn costs_out_of_range_are_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.limited(&[limit("long", 1_000_000)]).await;
    for cost in [-1, 1_000_001, i64::MAX, i64::MIN] {
        let request = with(&presenting(&secret), |request| request.cost = Some(cost));
        assert_eq!(bad_fields(world.server.keys().verify_key(request).await), fields(&["cost"]));
    }
    let unknown = with(&presenting("nobody's"), |request| request.cost = Some(-1));
    let refusal = world.server.keys().verify_key(unknown).await;
    assert_eq!(refusal.expect_err("refused whatever the secret").code(), Code::InvalidArgument);
    assert_eq!(remaining(&world.charge(&secret, 1_000_000).await), [("long", 0)]);
}
