//! `BatchVerifyKeys`: each decision is the one that `VerifyKey` would make, in the order of the requests; what cannot
//! be answered fails the whole call before anything is charged.

use keystead::proto::v1::{
    BatchVerifyKeysRequest, BatchVerifyKeysResponse, Credits, Outcome, RateLimit, RequiredScopes, UsageStatsRequest,
    VerifyKeyRequest, VerifyKeyResponse, usage_stats_request::Subject,
};
use sea_orm::ConnectionTrait as _;
use tonic::{Code, Response, Status};

use super::{World, bad_fields, copies, days, fields, presenting, texts, with};
use crate::harness::{Engine, TestDatabase, create_key, create_organization, expect_error, store_test, wait_until};
use crate::server::metrics;

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

    /// The value that the page of metrics shows of a series now.
    async fn shown(&self, series: &str) -> f64 {
        let (_, page) = metrics::get(self.server.metrics_address(), "/metrics").await;
        metrics::value(&page, series).unwrap_or_default()
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

/// PostgreSQL alone, where readers can be made to wait: while the first queries do, everything else comes to wait too,
/// and how many more there are does not depend on who is faster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cold_keys_take_few_queries() {
    const QUERIES: &str = "keystead_cache_queries";
    const ROUNDS: &str = "keystead_job_runs_total{job=\"audit\"}";
    let database = TestDatabase::new(Engine::Postgres).await;
    let arguments = ["--metrics-listen", "127.0.0.1:0", "--verify-timeout-ms", "60000"];
    let world = World::start(&database, &arguments).await;
    let (template, secret) = world.create(world.new_key()).await;
    let requests: Vec<_> = copies(&database, &template, 1000).await.iter().map(|secret| presenting(secret)).collect();
    assert_eq!(world.outcome(&secret).await, Outcome::Valid, "caller and organization are cached");
    let before = world.shown(QUERIES).await;
    let held = database.connect().await;
    held.execute_unprepared("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    let (mut keys, batch) = (world.server.keys(), BatchVerifyKeysRequest { requests: requests.clone() });
    let call = tokio::spawn(async move { keys.batch_verify_keys(batch).await });
    wait_until("as many queries as may run at once", async || world.shown(QUERIES).await >= before + 4.0).await;
    // To put a key among those that wait takes microseconds; rounds of a job are a second apart.
    let rounds = world.shown(ROUNDS).await;
    wait_until("all other keys to wait", async || world.shown(ROUNDS).await >= rounds + 2.0).await;
    held.execute_unprepared("ROLLBACK").await.expect("let go");
    held.close().await.expect("the connection closes");
    let answers = call.await.expect("no panic").expect("an answer").into_inner().responses;
    assert_eq!(outcomes(&answers), [Outcome::Valid; 1000]);
    let queries = world.shown(QUERIES).await - before;
    // Four lanes with a few keys each, and 256 keys in each query after that; 1000 keys take four at the least.
    assert!((4.0..=8.0).contains(&queries), "{queries} queries");
    assert_eq!(outcomes(&world.answers(requests).await), [Outcome::Valid; 1000]);
    let later = world.shown(QUERIES).await - before;
    assert!(later <= queries, "{later} queries: they are cached now");
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
