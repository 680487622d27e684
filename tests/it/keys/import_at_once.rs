//! `ImportKeys` in calls at the same time, and in calls whose caller is gone: each key is made once, each call is
//! answered, and an import that has begun comes to its end as a whole.
//! Invariant: at no moment are some keys of a call here and others not.

use std::time::Duration;

use keystead::proto::v1::{ImportKey, ImportKeyResult, ImportKeysRequest, ImportResult};
use tonic::{Code, Request};

use super::import_samples::{digest, import, plain, secret, slow, told};
use super::{Keys, World, at_once, presenting, with};
use crate::harness::{Engine, Server, Setup, TestDatabase, store_test, wait_until};

/// Long enough for a call to arrive on a busy machine, and shorter than a database waits for a lock.
const TINY_DEADLINE: Duration = Duration::from_secs(2);

const COUNT: usize = 100;

/// Keys of each kind, some of them with the id of a row.
fn keys() -> Vec<ImportKey> {
    let of_place = |at: usize| {
        let key = match at % 4 {
            0 => plain(&secret(at)),
            1 if at < 20 => slow(&secret(at)),
            _ => digest(&secret(at)),
        };
        if at.is_multiple_of(3) { key } else { with(&key, |key| key.source_id = format!("row {at}")) }
    };
    (0..COUNT).map(of_place).collect()
}

/// Imports the same keys by all of these clients at once, every second one in the opposite order. Gives the answers in
/// one order.
async fn import_by_all(clients: Vec<Keys>, request: &ImportKeysRequest) -> Vec<Vec<ImportKeyResult>> {
    let backwards = with(request, |request| request.keys.reverse());
    let calls = clients.into_iter().enumerate().map(|(at, keys)| {
        let (is_backwards, request) = (at % 2 == 1, if at % 2 == 1 { backwards.clone() } else { request.clone() });
        async move {
            let mut results = import(keys, request).await;
            if is_backwards {
                results.reverse();
            }
            results
        }
    });
    at_once(calls).await
}

fn assert_each_was_made_once(answers: &[Vec<ImportKeyResult>]) {
    for at in 0..COUNT {
        let of_key: Vec<&ImportKeyResult> = answers.iter().map(|results| &results[at]).collect();
        let made = of_key.iter().filter(|result| result.result() == ImportResult::Created).count();
        let known = of_key.iter().filter(|result| result.result() == ImportResult::AlreadyImported).count();
        assert_eq!((made, known), (1, answers.len() - 1), "key {at}: {of_key:?}");
        assert!(of_key.iter().all(|result| result.key_id == of_key[0].key_id), "key {at}: {of_key:?}");
    }
}

async fn keys_at_rest(database: &TestDatabase, world: &World) -> usize {
    let sql = format!("SELECT count(*) FROM api_keys WHERE organization_id = '{}'", world.organization);
    usize::try_from(database.query_i64(&sql).await).expect("a count")
}

async fn events(database: &TestDatabase) -> i64 {
    database.query_i64("SELECT count(*) FROM audit_events WHERE action = 'key.import'").await
}

async fn assert_all_valid(world: &World, results: &[ImportKeyResult]) {
    for (at, result) in results.iter().enumerate() {
        world.expect_valid(presenting(&secret(at)), &result.key_id).await;
    }
}

store_test!(the_same_keys_in_eight_calls_at_once_are_made_once);
async fn the_same_keys_in_eight_calls_at_once_are_made_once(database: TestDatabase) {
    let world = World::new(&database).await;
    // The source is known already, and nothing of it keeps the calls apart.
    world.import_one(digest(&secret(COUNT))).await;
    let clients = (0..8).map(|_| world.server.keys_on_new_connection()).collect();
    let answers = import_by_all(clients, &world.importing(keys())).await;
    assert_each_was_made_once(&answers);
    assert_eq!(keys_at_rest(&database, &world).await, COUNT + 1);
    assert_all_valid(&world, &answers[0]).await;
}

/// PostgreSQL alone: a file has one server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_keys_on_two_replicas_at_once_are_made_once() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let world = World::new(&database).await;
    let second = Server::start_with(&database, Setup::default()).await;
    world.import_one(digest(&secret(COUNT))).await;
    let clients = vec![world.server.keys(), second.keys(), second.keys(), world.server.keys()];
    let answers = import_by_all(clients, &world.importing(keys())).await;
    assert_each_was_made_once(&answers);
    assert_eq!(keys_at_rest(&database, &world).await, COUNT + 1);
    assert_all_valid(&world, &answers[0]).await;
    let other = World { server: second, organization: world.organization.clone() };
    assert_all_valid(&other, &answers[0]).await;
}

store_test!(an_import_goes_on_when_its_caller_hangs_up);
async fn an_import_goes_on_when_its_caller_hangs_up(database: TestDatabase) {
    let world = World::new(&database).await;
    let (keys, blocked) = (keys(), database.block_writes().await);
    let mut request = Request::new(world.importing(keys.clone()));
    request.set_timeout(TINY_DEADLINE);
    let given_up = world.server.keys().import_keys(request).await.expect_err("the database is slow");
    assert!(matches!(given_up.code(), Code::Cancelled | Code::DeadlineExceeded), "{given_up:?}");
    assert_eq!((keys_at_rest(&database, &world).await, events(&database).await), (0, 0));
    blocked.release().await;
    wait_until("the keys to be there", async || {
        let count = keys_at_rest(&database, &world).await;
        assert!([0, COUNT].contains(&count), "{count} of {COUNT}");
        count == COUNT
    })
    .await;
    assert_eq!(events(&database).await, 1);
    let results = world.import(keys).await;
    assert!(told(&results).iter().all(|told| *told == "ALREADY_IMPORTED"), "{results:?}");
    assert_all_valid(&world, &results).await;
    assert_eq!(events(&database).await, 1);
}

store_test!(callers_who_hang_up_at_any_moment_leave_whole_imports_or_none);
async fn callers_who_hang_up_at_any_moment_leave_whole_imports_or_none(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut imported = 0;
    for round in 0..10 {
        let keys = (0..10).map(|at| digest(&secret(1000 * (round + 1) + at))).collect();
        let (mut client, request) = (world.server.keys(), world.importing(keys));
        let leaving = tokio::spawn(async move { client.import_keys(request).await });
        // Whatever it is doing, its caller is gone once this one has its answer.
        world.import_one(digest(&secret(round))).await;
        leaving.abort();
        imported += 1;
        let count = keys_at_rest(&database, &world).await;
        assert_eq!((count - imported) % 10, 0, "{count} keys in round {round}");
    }
    world.import_one(digest(&secret(100))).await;
    wait_until("each event to have its keys", async || {
        let count = keys_at_rest(&database, &world).await;
        let calls = usize::try_from(events(&database).await).expect("a count") - (imported + 1);
        count == imported + 1 + 10 * calls
    })
    .await;
}
