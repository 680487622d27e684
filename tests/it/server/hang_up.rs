//! Callers who leave: the service stops working for them at their deadline, but a mutation that has begun runs to its
//! end, so that nothing is left half-way and no connection goes back to its pool with an open transaction.

use std::time::Duration;

use serde_json::Value;
use tonic::{Code, Request};

use crate::callers::requests::{creating, issuing};
use crate::harness::{Engine, Server, TestDatabase, create_key, create_organization, store_test, wait_until};

/// Long enough for a call to arrive on a busy machine, and shorter than SQLite waits for a lock.
const TINY_DEADLINE: Duration = Duration::from_secs(2);

async fn keys_at_rest(database: &TestDatabase) -> i64 {
    database.query_i64("SELECT count(*) FROM api_keys").await
}

store_test!(a_mutation_goes_on_when_its_caller_hangs_up);
async fn a_mutation_goes_on_when_its_caller_hangs_up(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let before = keys_at_rest(&database).await;
    let blocked = database.block_writes().await;

    let mut request = Request::new(issuing(&organization, &["a:b"]));
    request.set_timeout(TINY_DEADLINE);
    let given_up = server.keys().create_key(request).await.expect_err("the database is slow");
    assert!(matches!(given_up.code(), Code::Cancelled | Code::DeadlineExceeded), "{given_up:?}");
    assert_eq!(keys_at_rest(&database).await, before);

    blocked.release().await;
    wait_until("the key to be there", async || keys_at_rest(&database).await == before + 1).await;
    let events = "SELECT count(*) FROM audit_events WHERE action = 'key.create'";
    assert_eq!(database.query_i64(events).await, 2, "the first admin's and this one's");
    // Every connection of the pool is as good as before.
    for at in 0..20 {
        create_organization(&server, &format!("later-{at}")).await;
    }
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, 22);
}

store_test!(many_callers_who_hang_up_at_once_lose_no_write_of_those_who_stay);
async fn many_callers_who_hang_up_at_once_lose_no_write_of_those_who_stay(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let mut ledger = Vec::new();
    for round in 0..10 {
        let mut leaving = Vec::new();
        for _ in 0..20 {
            let (mut keys, request) = (server.keys(), issuing(&organization, &[]));
            leaving.push(tokio::spawn(async move { keys.create_key(request).await }));
        }
        // Whatever they are doing, they are gone now.
        let (key, _) = create_key(&server, &organization, &[]).await;
        leaving.iter().for_each(tokio::task::JoinHandle::abort);
        ledger.push(key.id);
        let slug = format!("round-{round}");
        let answer = server.organizations().create_organization(creating(&slug)).await.expect("created");
        assert_eq!(answer.into_inner().organization.expect("the organization").slug, slug);
        let there = format!("SELECT count(*) FROM organizations WHERE slug = '{slug}'");
        assert_eq!(database.query_i64(&there).await, 1, "acknowledged and not there");
    }
    for id in ledger {
        assert_eq!(database.query_i64(&format!("SELECT count(*) FROM api_keys WHERE id = '{id}'")).await, 1);
    }
    let keys = keys_at_rest(&database).await;
    let created = database.query_i64("SELECT count(*) FROM audit_events WHERE action = 'key.create'").await;
    assert_eq!(keys, created, "a key for each event, and an event for each key");
}

#[tokio::test]
async fn a_client_that_is_killed_in_the_middle_of_a_mutation_leaves_no_open_transaction() {
    // PostgreSQL alone, where a waiting statement can be seen.
    let database = TestDatabase::new(Engine::Postgres).await;
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let before = keys_at_rest(&database).await;
    let blocked = database.block_writes().await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        let (mut keys, request) = (server.keys(), issuing(&organization, &[]));
        calls.push(tokio::spawn(async move { keys.create_key(request).await }));
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock' \
                   AND query LIKE '%INSERT INTO \"api_keys\"%' AND pid <> pg_backend_pid()";
    // A round of a job may wait as well, with another statement.
    wait_until("the mutations to wait for the lock", async || database.query_i64(waiting).await == 3).await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    blocked.release().await;
    wait_until("the keys to be there", async || keys_at_rest(&database).await == before + 3).await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    wait_until("no transaction to be open", async || database.query_i64(open).await == 0).await;
}

store_test!(the_callers_deadline_ends_the_services_work_for_it);
async fn the_callers_deadline_ends_the_services_work_for_it(database: TestDatabase) {
    let server = Server::start(&database, &["--log-format", "json"]).await;
    let organization = create_organization(&server, "acme").await.id;
    let blocked = database.block_writes().await;
    let mut request = Request::new(issuing(&organization, &[]));
    request.set_timeout(Duration::from_millis(500));
    server.keys().create_key(request).await.expect_err("the database is slow");
    // The lock is still held: what ended the call was its deadline, a tenth of the service's own time.
    let mut line = None;
    wait_until("the log to tell how the call ended", async || {
        line = calls(&server).into_iter().find(|line| line["method"] == "keystead.v1.KeyService/CreateKey");
        line.is_some()
    })
    .await;
    blocked.release().await;
    let line = line.expect("the condition held");
    let code = line["code"].as_str().expect("a code");
    assert!(["CANCELLED", "DEADLINE_EXCEEDED"].contains(&code), "{line}");
    let micros = line["duration_us"].as_u64().expect("a duration");
    assert!(micros < 4_000_000, "{line}");
}

store_test!(the_services_own_time_ends_a_call_that_has_no_deadline);
async fn the_services_own_time_ends_a_call_that_has_no_deadline(database: TestDatabase) {
    let server = Server::start(&database, &["--control-timeout-ms", "500"]).await;
    let organization = create_organization(&server, "acme").await.id;
    let before = keys_at_rest(&database).await;
    let blocked = database.block_writes().await;
    let refused = server.keys().create_key(issuing(&organization, &[])).await;
    let details = crate::harness::expect_error(refused, Code::Unavailable, "TIMED_OUT");
    assert!(details.retry_info().is_some());
    blocked.release().await;
    wait_until("the mutation to come through all the same", async || keys_at_rest(&database).await == before + 1).await;
}

fn calls(server: &Server) -> Vec<Value> {
    let log = server.log_text();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == "call").collect()
}
