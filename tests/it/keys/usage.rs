//! `UsageStats`: the sums are those of the verifications that were answered, as seen by the caller who made
//! them: totals, outcomes, endpoints, consumers, for an organization and for one key. Also after a restart.
//! Spans and series are in `usage_span.rs`.

use std::collections::BTreeMap;

use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{
    Outcome, RateLimit, RequiredScopes, UsageStatsRequest, UsageStatsResponse, UsageTotals, VerifyKeyRequest,
};
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
use tonic::Code;

use super::{NOBODY, World, answer_to, at_once, bad_fields, days, fields, presenting, refused, texts, with};
use crate::harness::{Engine, TestDatabase, create_key, create_organization, store_test, wait_until};

pub(super) fn of_key(id: &str) -> UsageStatsRequest {
    UsageStatsRequest { subject: Some(Subject::KeyId(id.to_owned())), ..Default::default() }
}

pub(super) fn of_organization(id: &str) -> UsageStatsRequest {
    UsageStatsRequest { subject: Some(Subject::OrganizationId(id.to_owned())), ..Default::default() }
}

impl World {
    pub(super) async fn stats(&self, request: UsageStatsRequest) -> UsageStatsResponse {
        self.server.keys().usage_stats(request).await.expect("statistics").into_inner()
    }
}

/// Totals of verifications alone: nothing is reported here, so all else is 0 or absent.
fn totals(verifications: i64, valid: i64) -> UsageTotals {
    UsageTotals { verifications, valid, denied: verifications - valid, ..Default::default() }
}

fn outcomes(stats: &UsageStatsResponse) -> Vec<(Outcome, i64)> {
    stats.by_outcome.iter().map(|row| (row.outcome(), row.count)).collect()
}

pub(super) fn endpoints(stats: &UsageStatsResponse) -> Vec<(&str, UsageTotals)> {
    stats.by_endpoint.iter().map(|row| (row.endpoint.as_str(), row.totals.expect("totals"))).collect()
}

pub(super) fn consumers(stats: &UsageStatsResponse) -> Vec<(&str, &str, UsageTotals)> {
    let row = |row: &'_ keystead::proto::v1::UsageByKey| row.totals.expect("totals");
    stats.top_consumers.iter().map(|key| (key.key_id.as_str(), key.name.as_str(), row(key))).collect()
}

fn at_endpoint(secret: &str, endpoint: &str) -> VerifyKeyRequest {
    with(&presenting(secret), |request| {
        endpoint.clone_into(&mut request.endpoint);
        "POST".clone_into(&mut request.method);
        "tests".clone_into(&mut request.user_agent);
        "request 1".clone_into(&mut request.request_id);
        request.tags.insert("team".to_owned(), "billing".to_owned());
    })
}

/// Makes verifications of two keys of the world's organization, and others that must not count for it.
/// Returns the ids of both keys.
async fn make_usage(world: &World) -> (String, String) {
    let limit = RateLimit { name: "long".to_owned(), limit: 6, window: Some(days(400)), shadow: false };
    let (busy, busy_secret) = world.create(with(&world.new_key(), |request| request.rate_limits = vec![limit])).await;
    let (calm, calm_secret) =
        world.create(with(&world.new_key(), |request| "calm".clone_into(&mut request.name))).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let (_, foreign) = create_key(&world.server, &rival, &[]).await;
    for endpoint in ["/a", "/a", "/a", "/b", "/b", "", "/a", "/a"] {
        world.ask(at_endpoint(&busy_secret, endpoint)).await; // six VALID, then two RATE_LIMITED
    }
    let scopes = Some(RequiredScopes { all_of: texts(&["users:read"]), any_of: vec![] });
    world.ask(VerifyKeyRequest { required_scopes: scopes, ..at_endpoint(&calm_secret, "/b") }).await;
    world.ask(with(&at_endpoint(&calm_secret, "/c"), |request| request.cost = Some(0))).await;
    world.ask(with(&at_endpoint(&calm_secret, "/a"), |request| request.cost = Some(500))).await;
    // None of these is a verification of a key of this organization.
    world.outcome(&foreign).await;
    world.outcome("nobody's").await;
    world.ask(with(&at_endpoint(&calm_secret, "/a"), |request| request.key_id = Some(NOBODY.to_owned()))).await;
    let wrong = with(&at_endpoint(&calm_secret, "/a"), |request| request.cost = Some(-1));
    world.server.keys().verify_key(wrong).await.expect_err("refused, so not answered");
    world.get(&calm.id).await;
    (busy.id, calm.id)
}

fn assert_usage(stats: &UsageStatsResponse, busy: &str, calm: &str) {
    assert_eq!(stats.totals, Some(totals(11, 8)));
    let expected = [(Outcome::InsufficientScope, 1), (Outcome::RateLimited, 2), (Outcome::Valid, 8)];
    assert_eq!(outcomes(stats), expected, "in the order of the enum");
    let by_name = [("/a", totals(6, 4)), ("/b", totals(3, 2)), ("/c", totals(1, 1))];
    assert_eq!(endpoints(stats), by_name, "most used first; use without an endpoint is not listed");
    assert_eq!(
        consumers(stats),
        [(busy, "A key of the tests", totals(8, 6)), (calm, "calm", totals(3, 2))],
        "most used first"
    );
    assert!(stats.by_error.is_empty(), "{:?}", stats.by_error);
    let series = stats.series.iter().filter_map(|point| point.totals);
    let sum =
        series.fold((0, 0, 0), |sum, point| (sum.0 + point.verifications, sum.1 + point.valid, sum.2 + point.denied));
    assert_eq!(sum, (11, 8, 3), "the series adds up to the totals");
}

store_test!(the_sums_are_those_of_the_verifications_answered);
async fn the_sums_are_those_of_the_verifications_answered(database: TestDatabase) {
    let world = World::new(&database).await;
    let (busy, calm) = make_usage(&world).await;
    assert_usage(&world.stats(of_organization(&world.organization)).await, &busy, &calm);
    assert_usage(&world.stats(of_organization(&world.organization)).await, &busy, &calm);
}

store_test!(a_restart_loses_no_usage_and_counts_none_twice);
async fn a_restart_loses_no_usage_and_counts_none_twice(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let (busy, calm) = make_usage(&world).await;
    world.server.restart().await;
    assert_usage(&world.stats(of_organization(&world.organization)).await, &busy, &calm);
    world.server.restart().await;
    assert_usage(&world.stats(of_organization(&world.organization)).await, &busy, &calm);
}

store_test!(a_keys_usage_is_its_own);
async fn a_keys_usage_is_its_own(database: TestDatabase) {
    let world = World::new(&database).await;
    let (busy, calm) = make_usage(&world).await;
    let stats = world.stats(of_key(&calm)).await;
    assert_eq!(stats.totals, Some(totals(3, 2)));
    assert_eq!(outcomes(&stats), [(Outcome::InsufficientScope, 1), (Outcome::Valid, 2)]);
    let by_name = [("/a", totals(1, 1)), ("/b", totals(1, 0)), ("/c", totals(1, 1))];
    assert_eq!(endpoints(&stats), by_name);
    assert_eq!(consumers(&stats), [(calm.as_str(), "calm", totals(3, 2))], "that key alone");
    assert_eq!(world.stats(of_key(&busy)).await.totals, Some(totals(8, 6)));
    let (unused, _) = world.create(world.new_key()).await;
    let stats = world.stats(of_key(&unused.id)).await;
    assert_eq!(stats.totals, Some(totals(0, 0)));
    assert!(stats.by_outcome.is_empty() && stats.by_endpoint.is_empty());
}

store_test!(counts_are_exact_under_load);
async fn counts_are_exact_under_load(database: TestDatabase) {
    let world = World::new(&database).await;
    let keys = world.create_many("load", 5).await;
    let answers = at_once((0..200).map(|at| {
        let request = at_endpoint(&keys[at % 5].1, if at % 3 == 0 { "/third" } else { "/other" });
        let (mut client, stats) = (world.server.keys(), of_key(&keys[at % 5].0.id));
        async move {
            answer_to(client.clone(), request).await;
            if at % 20 == 0 {
                client.usage_stats(stats).await.expect("statistics, which also write what waits");
            }
            at % 5
        }
    }))
    .await;
    assert_eq!(answers.len(), 200);
    let stats = world.stats(of_organization(&world.organization)).await;
    assert_eq!(stats.totals, Some(totals(200, 200)));
    assert_eq!(endpoints(&stats), [("/other", totals(133, 133)), ("/third", totals(67, 67))]);
    let each: BTreeMap<&str, UsageTotals> = consumers(&stats).into_iter().map(|(id, _, sums)| (id, sums)).collect();
    for (key, _) in &keys {
        assert_eq!(each.get(key.id.as_str()), Some(&totals(40, 40)), "{}", key.id);
    }
    wait_until("the use to be written", async || {
        let mut counts = Vec::new();
        for (key, _) in &keys {
            counts.push(world.get(&key.id).await.request_count);
        }
        counts == [40; 5]
    })
    .await;
}

/// On PostgreSQL alone, where a table can be locked against writers and not against readers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn use_that_is_just_being_written_is_not_missed() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let connection = sea_orm::Database::connect(&database.url).await.expect("a connection");
    let lock = connection.begin().await.expect("a transaction");
    let sql = "LOCK TABLE usage_rollups IN SHARE ROW EXCLUSIVE MODE";
    lock.execute_unprepared(sql).await.expect("the table is locked");
    world.outcome(&secret).await;
    wait_until("the service to be writing", async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'usage_rollups'::regclass";
        database.query_i64(sql).await > 0
    })
    .await;
    let mut client = world.server.keys();
    let mut stats = tokio::spawn(async move { client.usage_stats(of_key(&key.id)).await });
    // An answer that does not wait for what is being written comes at once; one that does has to be let go on.
    let early = tokio::time::timeout(std::time::Duration::from_secs(1), &mut stats).await;
    lock.rollback().await.expect("the table is free again");
    let stats = match early {
        Ok(stats) => stats,
        Err(_) => stats.await,
    };
    let stats = stats.expect("the call ends").expect("statistics").into_inner();
    assert_eq!(stats.totals, Some(totals(1, 1)));
}

store_test!(only_as_many_are_named_as_were_asked_for);
async fn only_as_many_are_named_as_were_asked_for(database: TestDatabase) {
    let world = World::new(&database).await;
    for (at, (_, secret)) in world.create_many("consumer", 12).await.into_iter().enumerate() {
        for _ in 0..=at {
            world.ask(at_endpoint(&secret, &format!("/{at:02}"))).await;
        }
    }
    let stats = world.stats(of_organization(&world.organization)).await;
    assert_eq!((stats.by_endpoint.len(), stats.top_consumers.len()), (10, 10), "ten where nothing is said");
    assert_eq!(stats.totals, Some(totals(78, 78)), "all of it counts");
    let stats = world.stats(UsageStatsRequest { top: 2, ..of_organization(&world.organization) }).await;
    assert_eq!(endpoints(&stats), [("/11", totals(12, 12)), ("/10", totals(11, 11))]);
    let names: Vec<&str> = stats.top_consumers.iter().map(|consumer| consumer.name.as_str()).collect();
    assert_eq!(names, ["consumer 00011", "consumer 00010"]);
    for (top, shown) in [(1, 1), (100, 12)] {
        let stats = world.stats(UsageStatsRequest { top, ..of_organization(&world.organization) }).await;
        assert_eq!((stats.by_endpoint.len(), stats.top_consumers.len()), (shown, shown));
    }
    for top in [-1, 101, i32::MIN, i32::MAX] {
        let request = UsageStatsRequest { top, ..of_organization(&world.organization) };
        assert_eq!(bad_fields(world.server.keys().usage_stats(request).await), fields(&["top"]));
    }
}

store_test!(usage_of_what_does_not_exist_for_the_caller_is_not_found);
async fn usage_of_what_does_not_exist_for_the_caller_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let (busy, _) = make_usage(&world).await;
    let outsider = create_organization(&world.server, "outsider").await.id;
    let caller = world.caller(&outsider, &["keystead.usage.read"]).await;
    let mut keys = world.server.keys_as(&caller);
    for id in [busy.as_str(), NOBODY] {
        refused(keys.usage_stats(of_key(id)).await, Code::NotFound, "KEY_NOT_FOUND");
    }
    for id in [world.organization.as_str(), super::SYSTEM, NOBODY] {
        refused(keys.usage_stats(of_organization(id)).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    }
    keys.usage_stats(of_organization(&outsider)).await.expect("its own");
    refused(world.server.keys().usage_stats(of_key(NOBODY)).await, Code::NotFound, "KEY_NOT_FOUND");
}
