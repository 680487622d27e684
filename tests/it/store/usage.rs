//! `store::usage`: rows of detail and counts of verifications go in, sums come out: by hour and outcome, by endpoint,
//! by consumer. Sums are exact whatever was written at the same time, and of one organization or key alone.
//! Reports, and spans of every kind, are in `usage_sums.rs`.

use std::collections::BTreeMap;

use keystead::domain::{
    ids::{KeyId, OrganizationId},
    outcome::Outcome,
    time::Timestamp,
    usage::{UsageEvent, UsageSubject, UsageTotals},
    usage_span::{Granularity, UsageSpan},
};
use keystead::random;
use keystead::store::{
    commit,
    usage::{self, RollupKey},
    usage_sums,
};

use super::{World, nobody};
use crate::harness::{TestDatabase, samples, store_test};

const HOUR_S: i64 = 3600;

/// A key and its organization; neither has to be there, since history outlives both.
type Subject = (KeyId, OrganizationId);

fn subject(organization: OrganizationId) -> Subject {
    (KeyId::new(samples::NOW, random::bytes()), organization)
}

fn hour(number: i64) -> Timestamp {
    samples::seconds(number * HOUR_S).start_of_hour()
}

fn span(start: i64, end: i64) -> UsageSpan {
    UsageSpan { start: hour(start), end: hour(end), nothing_from: Timestamp::LAST }
}

fn rollup(key: Option<Subject>, hour_number: i64, endpoint: &str, outcome: Outcome) -> RollupKey {
    RollupKey { key, hour: hour(hour_number), endpoint: endpoint.to_owned(), outcome }
}

fn event(key: Option<Subject>, time: Timestamp) -> UsageEvent {
    UsageEvent {
        key,
        time,
        outcome: Outcome::Valid,
        endpoint: "/v1/invoices".to_owned(),
        method: "POST".to_owned(),
        client_address: "2001:db8::1".to_owned(),
        user_agent: "curl '\"🔑".to_owned(),
        request_id: "r-1".to_owned(),
        tags: BTreeMap::from([("team".to_owned(), "billing".to_owned())]),
    }
}

async fn add(world: &World, rollups: &[(RollupKey, i64)]) {
    usage::add_rollups(world.db(), rollups).await.expect("written");
}

fn verified(verifications: i64, valid: i64) -> UsageTotals {
    UsageTotals { verifications, valid, ..UsageTotals::default() }
}

/// Hour, outcome and verifications of every sum in `[start, end)`, in order.
async fn hours(world: &World, subject: UsageSubject, start: i64, end: i64) -> Vec<(i64, &'static str, UsageTotals)> {
    let span = span(start, end);
    let listed = usage_sums::list_points(world.store.control(), subject, &span, Granularity::Hour).await.expect("sums");
    assert!(listed.is_sorted_by_key(|sum| sum.start), "oldest first");
    let first = hour(0);
    let number = |at: Timestamp| (at.micros() - first.micros()) / (HOUR_S * 1_000_000);
    let name = |outcome: Option<Outcome>| outcome.map_or("", Outcome::as_str);
    let mut sums: Vec<_> = listed.into_iter().map(|sum| (number(sum.start), name(sum.outcome), sum.totals)).collect();
    sums.sort_by_key(|(hour, outcome, _)| (*hour, *outcome));
    sums
}

async fn endpoints(world: &World, subject: UsageSubject, top: u64) -> Vec<(String, UsageTotals)> {
    usage_sums::list_endpoints(world.store.control(), subject, &span(0, 24), top).await.expect("sums")
}

store_test!(verifications_add_up_by_hour_and_outcome_from_the_start_to_just_before_the_end);
async fn verifications_add_up_by_hour_and_outcome_from_the_start_to_just_before_the_end(database: TestDatabase) {
    let world = World::new(database).await;
    let (one, two) = (subject(world.acme.id), subject(world.acme.id));
    add(&world, &[]).await;
    add(
        &world,
        &[
            (rollup(Some(one), 0, "/a", Outcome::Valid), 3),
            (rollup(Some(one), 0, "/b", Outcome::Valid), 4),
            (rollup(Some(two), 0, "/a", Outcome::Valid), 5),
            (rollup(Some(one), 0, "/a", Outcome::Revoked), 6),
            (rollup(Some(one), 1, "/a", Outcome::Valid), 7),
            (rollup(Some(one), 2, "/a", Outcome::Valid), 8),
        ],
    )
    .await;
    // Again, on top of what stands.
    add(&world, &[(rollup(Some(one), 0, "/a", Outcome::Valid), 10)]).await;

    let acme = UsageSubject::Organization(world.acme.id);
    let first = [(0, "REVOKED", verified(6, 0)), (0, "VALID", verified(22, 22))];
    assert_eq!(hours(&world, acme, 0, 1).await, first);
    assert_eq!(hours(&world, acme, 1, 3).await, [(1, "VALID", verified(7, 7)), (2, "VALID", verified(8, 8))]);
    assert_eq!(hours(&world, acme, 3, 99).await, []);
    assert_eq!(hours(&world, acme, 1, 1).await, []);
    assert_eq!(hours(&world, UsageSubject::Key(two.0), 0, 99).await, [(0, "VALID", verified(5, 5))]);
}

store_test!(every_outcome_can_be_written_and_read_back);
async fn every_outcome_can_be_written_and_read_back(database: TestDatabase) {
    let world = World::new(database).await;
    let outcomes = [
        Outcome::NotFound,
        Outcome::Revoked,
        Outcome::Disabled,
        Outcome::Expired,
        Outcome::OrganizationInactive,
        Outcome::AddressNotAllowed,
        Outcome::InsufficientScope,
        Outcome::RateLimited,
        Outcome::QuotaExceeded,
        Outcome::CreditsExhausted,
        Outcome::Valid,
    ];
    let key = subject(world.acme.id);
    let rollups: Vec<_> = outcomes.map(|outcome| (rollup(Some(key), 0, "", outcome), 1)).into();
    add(&world, &rollups).await;
    let found = hours(&world, UsageSubject::Key(key.0), 0, 1).await;
    let mut words: Vec<_> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
    words.sort_unstable();
    assert_eq!(found.iter().map(|(_, outcome, _)| *outcome).collect::<Vec<_>>(), words);
}

store_test!(sums_are_of_one_organization_or_key_and_unknown_secrets_belong_to_none);
async fn sums_are_of_one_organization_or_key_and_unknown_secrets_belong_to_none(database: TestDatabase) {
    let world = World::new(database).await;
    let (own, foreign) = (subject(world.acme.id), subject(nobody()));
    let rollups = [
        (rollup(Some(own), 0, "/a", Outcome::Valid), 1),
        (rollup(Some(foreign), 0, "/a", Outcome::Valid), 10),
        (rollup(None, 0, "/a", Outcome::NotFound), 100),
    ];
    add(&world, &rollups).await;
    add(&world, &rollups[2..]).await;
    for subject in [UsageSubject::Organization(world.acme.id), UsageSubject::Key(own.0)] {
        assert_eq!(hours(&world, subject, 0, 1).await, [(0, "VALID", verified(1, 1))]);
        assert_eq!(endpoints(&world, subject, 10).await, [("/a".to_owned(), verified(1, 1))]);
    }
    let unknown = "SELECT CAST(sum(verifications) AS bigint) FROM usage_rollups WHERE key_id = ''";
    assert_eq!(world.database.query_i64(unknown).await, 200, "counted all the same");
}

store_test!(endpoints_and_consumers_come_most_used_first_and_no_more_than_asked);
async fn endpoints_and_consumers_come_most_used_first_and_no_more_than_asked(database: TestDatabase) {
    let world = World::new(database).await;
    let keys = [subject(world.acme.id), subject(world.acme.id), subject(world.acme.id)];
    add(
        &world,
        &[
            (rollup(Some(keys[0]), 0, "/rare", Outcome::Valid), 1),
            (rollup(Some(keys[0]), 1, "/often", Outcome::Valid), 5),
            (rollup(Some(keys[1]), 2, "/often", Outcome::RateLimited), 5),
            (rollup(Some(keys[1]), 2, "/some", Outcome::Valid), 4),
            (rollup(Some(keys[2]), 3, "", Outcome::Valid), 100),
        ],
    )
    .await;
    let acme = UsageSubject::Organization(world.acme.id);
    let all = [
        ("/often".to_owned(), verified(10, 5)),
        ("/some".to_owned(), verified(4, 4)),
        ("/rare".to_owned(), verified(1, 1)),
    ];
    assert_eq!(endpoints(&world, acme, 10).await, all, "verifications without an endpoint are not listed");
    assert_eq!(endpoints(&world, acme, 2).await, all[..2]);
    let consumers = usage_sums::list_consumers(world.store.control(), acme, &span(0, 24), 2).await.expect("sums");
    let expected = [(keys[2].0.to_string(), verified(100, 100)), (keys[1].0.to_string(), verified(9, 4))];
    assert_eq!(consumers, expected);
}

store_test!(a_row_of_detail_holds_what_was_recorded);
async fn a_row_of_detail_holds_what_was_recorded(database: TestDatabase) {
    let world = World::new(database).await;
    let key = subject(world.acme.id);
    let unknown = UsageEvent { tags: BTreeMap::new(), outcome: Outcome::NotFound, ..event(None, samples::NOW) };
    let events = [(samples::record_id(), event(Some(key), samples::NOW), 1), (samples::record_id(), unknown, 1)];
    usage::insert_events(world.db(), &[]).await.expect("nothing to write");
    usage::insert_events(world.db(), &events).await.expect("written");
    let columns = "key_id || '|' || organization_id || '|' || outcome || '|' || endpoint || '|' || method || '|' ||
                   client_address || '|' || user_agent || '|' || request_id || '|' || tags";
    let row = |id: String| {
        format!("SELECT {columns} FROM api_key_usage WHERE id = '{id}' AND time_us = {}", samples::NOW.micros())
    };
    let found = world.database.query_string(&row(events[0].0.to_string())).await;
    let ids = format!("{}|{}", key.0, key.1);
    let rest = "/v1/invoices|POST|2001:db8::1|curl '\"🔑|r-1";
    assert_eq!(found, format!("{ids}|VALID|{rest}|{{\"team\":\"billing\"}}"));
    let found = world.database.query_string(&row(events[1].0.to_string())).await;
    assert_eq!(found, format!("||NOT_FOUND|{rest}|"));
}

store_test!(batches_beyond_one_statement_are_written_whole);
async fn batches_beyond_one_statement_are_written_whole(database: TestDatabase) {
    let world = World::new(database).await;
    let key = subject(world.acme.id);
    let events: Vec<_> = (0..1203).map(|_| (samples::record_id(), event(Some(key), samples::NOW), 1)).collect();
    let rollups: Vec<_> = (0..1203).map(|at| (rollup(Some(key), 0, &format!("/{at}"), Outcome::Valid), 1)).collect();
    let transaction = world.store.begin_usage().await.expect("a transaction begins");
    usage::insert_events(&transaction, &events).await.expect("written");
    usage::add_rollups(&transaction, &rollups).await.expect("written");
    commit(transaction).await.expect("a commit");
    assert_eq!(world.database.query_i64("SELECT count(*) FROM api_key_usage").await, 1203);
    assert_eq!(hours(&world, UsageSubject::Key(key.0), 0, 1).await, [(0, "VALID", verified(1203, 1203))]);
}

store_test!(replicas_that_write_the_same_rollup_at_once_lose_nothing);
async fn replicas_that_write_the_same_rollup_at_once_lose_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let keys: Vec<_> = (0..5).map(|_| subject(world.acme.id)).collect();
    let mut rollups: Vec<_> = keys.iter().map(|key| (rollup(Some(*key), 0, "/a", Outcome::Valid), 1)).collect();
    rollups.sort_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (store, rollups) = (world.store.clone(), rollups.clone());
            tokio::spawn(async move {
                let transaction = store.begin_usage().await.expect("a transaction begins");
                usage::add_rollups(&transaction, &rollups).await.expect("written");
                commit(transaction).await.expect("a commit");
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let acme = UsageSubject::Organization(world.acme.id);
    assert_eq!(hours(&world, acme, 0, 1).await, [(0, "VALID", verified(100, 100))]);
}

store_test!(deleting_an_organizations_usage_leaves_everybody_elses);
async fn deleting_an_organizations_usage_leaves_everybody_elses(database: TestDatabase) {
    let world = World::new(database).await;
    let (own, foreign) = (subject(world.acme.id), subject(nobody()));
    for key in [Some(own), Some(foreign), None] {
        add(&world, &[(rollup(key, 0, "/a", Outcome::Valid), 1)]).await;
        let events = [(samples::record_id(), event(key, samples::NOW), 1)];
        usage::insert_events(world.db(), &events).await.expect("written");
    }
    usage::delete_of_organization(world.db(), world.acme.id).await.expect("deleted");
    assert_eq!(world.database.query_i64("SELECT count(*) FROM usage_totals").await, 3, "one for each granularity");
    for table in ["usage_rollups", "api_key_usage"] {
        let left = |key: &str| format!("SELECT count(*) FROM {table} WHERE key_id = '{key}'");
        assert_eq!(world.database.query_i64(&left(&own.0.to_string())).await, 0);
        assert_eq!(world.database.query_i64(&left(&foreign.0.to_string())).await, 1);
        assert_eq!(world.database.query_i64(&left("")).await, 1, "an unknown secret's use is nobody's");
    }
}
