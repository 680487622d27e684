//! `BatchVerifyKeys`: each decision is the one that `VerifyKey` would make, in the order of the requests; what cannot
//! be answered fails the whole call before anything is charged.

use keystead::proto::v1::{
    BatchVerifyKeysRequest, BatchVerifyKeysResponse, Credits, Outcome, RateLimit, RequiredScopes, UsageStatsRequest,
    VerifyKeyRequest, VerifyKeyResponse, usage_stats_request::Subject,
};
use tonic::{Code, Response, Status};

use super::{World, bad_fields, days, fields, presenting, texts, with};
use crate::harness::{TestDatabase, create_key, create_organization, expect_error, store_test, wait_until};

impl World {
    async fn batch(&self, requests: Vec<VerifyKeyRequest>) -> Result<Response<BatchVerifyKeysResponse>, Status> {
        self.server.keys().batch_verify_keys(BatchVerifyKeysRequest { requests }).await
    }

    async fn answers(&self, requests: Vec<VerifyKeyRequest>) -> Vec<VerifyKeyResponse> {
        self.batch(requests).await.expect("an answer").into_inner().responses
    }

    /// A key with a limit and credits, so many of each.
    async fn bounded(&self, limit: i64, credits: i64) -> String {
        let limit = RateLimit { name: "long".to_owned(), limit, window: Some(days(400)), shadow: false };
        let new = with(&self.new_key(), |request| {
            request.rate_limits = vec![limit];
            request.credits = Some(Credits { remaining: credits, ..Default::default() });
        });
        self.create(new).await.1
    }

    /// What a peek says of a key's limit and credits.
    async fn standing(&self, secret: &str) -> (i64, Option<i64>) {
        let peek = with(&presenting(secret), |request| request.cost = Some(0));
        let answer = self.ask(peek).await;
        (answer.rate_limits[0].remaining, answer.credits_remaining)
    }
}

fn outcomes(answers: &[VerifyKeyResponse]) -> Vec<Outcome> {
    answers.iter().map(VerifyKeyResponse::outcome).collect()
}

store_test!(every_answer_is_that_of_verify_key_in_the_order_of_the_requests);
async fn every_answer_is_that_of_verify_key_in_the_order_of_the_requests(database: TestDatabase) {
    let world = World::new(&database).await;
    let keys = world.create_many("batch", 3).await;
    world.revoke(&keys[1].0.id).await;
    let scopes = Some(RequiredScopes { all_of: texts(&["a:b"]), any_of: vec![] });
    let requests = vec![
        presenting(&keys[0].1),
        presenting("nobody's"),
        presenting(&keys[1].1),
        VerifyKeyRequest { required_scopes: scopes, ..presenting(&keys[2].1) },
        presenting(&keys[2].1),
        presenting(&keys[0].1),
    ];
    let answers = world.answers(requests.clone()).await;
    let names: Vec<&str> = answers.iter().map(|answer| answer.outcome().as_str_name()).collect();
    let expected = ["VALID", "NOT_FOUND", "REVOKED", "INSUFFICIENT_SCOPE", "VALID", "VALID"];
    assert_eq!(names, expected.map(|name| format!("OUTCOME_{name}")));
    for (request, answer) in requests.into_iter().zip(answers) {
        assert_eq!(world.ask(request).await, answer);
    }
}

store_test!(limits_and_credits_are_charged_in_order_as_one_by_one);
async fn limits_and_credits_are_charged_in_order_as_one_by_one(database: TestDatabase) {
    let world = World::new(&database).await;
    let (narrow, poor) = (world.bounded(3, 100).await, world.bounded(100, 2).await);
    let requests = [&narrow, &poor, &narrow, &poor, &narrow, &poor, &narrow].map(|secret| presenting(secret));
    let answers = world.answers(requests.to_vec()).await;
    let valid = [Outcome::Valid; 5].into_iter();
    let expected: Vec<Outcome> = valid.chain([Outcome::CreditsExhausted, Outcome::RateLimited]).collect();
    assert_eq!(outcomes(&answers), expected);
    let credits: Vec<Option<i64>> = answers.iter().map(|answer| answer.credits_remaining).collect();
    assert_eq!(credits, [Some(99), Some(1), Some(98), Some(0), Some(97), Some(0), None]);
    assert_eq!(world.standing(&narrow).await, (0, None));
}

store_test!(faulty_requests_are_all_named_and_nothing_is_charged);
async fn faulty_requests_are_all_named_and_nothing_is_charged(database: TestDatabase) {
    let world = World::new(&database).await;
    let secret = world.bounded(10, 10).await;
    let costly = with(&presenting(&secret), |request| request.cost = Some(-1));
    let misnamed = with(&presenting(&secret), |request| request.limit_names = texts(&["short"]));
    let sound = presenting(&secret);
    let answer = world.batch(vec![sound.clone(), costly.clone(), costly]).await;
    assert_eq!(bad_fields(answer), fields(&["requests[1].cost", "requests[2].cost"]));
    let answer = world.batch(vec![sound.clone(), misnamed, sound]).await;
    assert_eq!(bad_fields(answer), fields(&["requests[1].limit_names[0]"]));
    assert_eq!(world.standing(&secret).await, (10, Some(10)));
}

store_test!(one_key_that_cannot_be_told_fails_the_call_before_anything_is_charged);
async fn one_key_that_cannot_be_told_fails_the_call_before_anything_is_charged(database: TestDatabase) {
    let world = World::new(&database).await;
    let secret = world.bounded(10, 10).await;
    let (broken, broken_secret) = world.create(world.new_key()).await;
    database.raw_sql(&format!("UPDATE api_keys SET scopes = 'x' WHERE id = '{}'", broken.id)).await;
    let requests = vec![presenting(&secret), presenting(&broken_secret), presenting(&secret)];
    expect_error(world.batch(requests).await, Code::Unavailable, "ROW_UNREADABLE");
    assert_eq!(world.standing(&secret).await, (10, Some(10)));
}

store_test!(a_batch_is_none_to_a_thousand_requests);
async fn a_batch_is_none_to_a_thousand_requests(database: TestDatabase) {
    let world = World::new(&database).await;
    assert!(world.answers(vec![]).await.is_empty());
    let (key, secret) = world.create(world.new_key()).await;
    let answers = world.answers(vec![presenting(&secret); 1000]).await;
    assert_eq!(answers.len(), 1000);
    assert!(answers.iter().all(|answer| answer.outcome() == Outcome::Valid));
    let answer = world.batch(vec![presenting(&secret); 1001]).await;
    assert_eq!(bad_fields(answer), fields(&["requests"]));
    // Each answered one is a verification, and those of the refused call are not.
    let counted = async || {
        let subject = Some(Subject::KeyId(key.id.clone()));
        let request = UsageStatsRequest { subject, ..Default::default() };
        let stats = world.server.keys().usage_stats(request).await.expect("statistics").into_inner();
        stats.totals.expect("totals").verifications
    };
    wait_until("the batch to be counted", async || counted().await == 1000).await;
}

store_test!(keys_of_other_tenants_do_not_exist_for_a_restricted_caller);
async fn keys_of_other_tenants_do_not_exist_for_a_restricted_caller(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, own) = world.create(world.new_key()).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let (_, foreign) = create_key(&world.server, &rival, &[]).await;
    let caller = world.caller(&world.organization, &["keystead.keys.verify"]).await;
    let requests = [&own, &foreign].map(|secret| presenting(secret)).to_vec();
    let answer = world.server.keys_as(&caller).batch_verify_keys(BatchVerifyKeysRequest { requests }).await;
    let answers = answer.expect("an answer").into_inner().responses;
    assert_eq!(outcomes(&answers), [Outcome::Valid, Outcome::NotFound]);
    assert_eq!(answers[1], VerifyKeyResponse { outcome: Outcome::NotFound.into(), ..Default::default() });
}
