//! `store::usage_reports`: each report is new to exactly one transaction, however many name it at the same time and
//! in whatever order, and is forgotten when it is old enough.

use keystead::domain::{ids::KeyId, time::Timestamp};
use keystead::random;
use keystead::store::{commit, usage_reports};

use super::World;
use crate::harness::{Engine, TestDatabase, samples, store_test, wait_until};

fn key() -> KeyId {
    KeyId::new(samples::NOW, random::bytes())
}

async fn count(world: &World) -> i64 {
    world.database.query_i64("SELECT count(*) FROM usage_reports").await
}

store_test!(a_report_is_new_once_for_its_key_and_request_id);
async fn a_report_is_new_once_for_its_key_and_request_id(database: TestDatabase) {
    let world = World::new(database).await;
    let (one, other) = (key(), key());
    let named = |key: KeyId, id: &str| (key.to_string(), id.to_owned());
    let reports = [(one, "a", samples::NOW), (other, "a", samples::NOW), (one, "a", samples::seconds(9))];
    let new = usage_reports::insert_new(world.db(), &reports).await.expect("written");
    assert_eq!(new, [named(one, "a"), named(other, "a")].into());
    let more = [(one, "b", samples::NOW), (one, "a", samples::NOW), (one, "A", samples::NOW)];
    let new = usage_reports::insert_new(world.db(), &more).await.expect("written");
    assert_eq!(new, [named(one, "b"), named(one, "A")].into());
    assert!(usage_reports::insert_new(world.db(), &[]).await.expect("nothing to write").is_empty());
    assert_eq!(count(&world).await, 4);
}

store_test!(a_transaction_that_fails_notes_nothing);
async fn a_transaction_that_fails_notes_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let report = [(key(), "a", samples::NOW)];
    let transaction = world.begin().await;
    assert_eq!(usage_reports::insert_new(&transaction, &report).await.expect("written").len(), 1);
    drop(transaction);
    assert_eq!(usage_reports::insert_new(world.db(), &report).await.expect("written").len(), 1);
}

store_test!(transactions_that_name_the_same_reports_at_once_share_them_out_and_all_come_through);
async fn transactions_that_name_the_same_reports_at_once_share_them_out_and_all_come_through(database: TestDatabase) {
    let world = World::new(database).await;
    let key = key();
    let ids: Vec<String> = (0..200).map(|number| format!("request {number}")).collect();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (store, mut ids) = (world.store.clone(), ids.clone());
            // Each in an order of its own.
            ids.rotate_left(task * 25);
            if task % 2 == 1 {
                ids.reverse();
            }
            tokio::spawn(async move {
                let reports: Vec<_> = ids.iter().map(|id| (key, id.as_str(), samples::NOW)).collect();
                let transaction = store.begin().await.expect("a transaction begins");
                let mut new = 0;
                for half in reports.chunks(200) {
                    new += usage_reports::insert_new(&transaction, half).await.expect("written").len();
                }
                commit(transaction).await.expect("a commit");
                new
            })
        })
        .collect();
    let mut new = 0;
    for task in tasks {
        new += task.await.expect("no panic");
    }
    assert_eq!(new, 200, "each is new once");
    assert_eq!(count(&world).await, 200);
}

/// On PostgreSQL alone: SQLite has one writer at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_name_the_same_reports_in_opposite_orders_never_wait_in_a_circle() {
    let world = World::new(TestDatabase::new(Engine::Postgres).await).await;
    let key = key();
    // Who names the middle one waits for this transaction, with all that stands before it already noted.
    let middle = world.begin().await;
    usage_reports::insert_new(&middle, &[(key, "m", samples::NOW)]).await.expect("written");
    let tasks: Vec<_> = [["a", "m", "z"], ["z", "m", "a"]]
        .into_iter()
        .map(|ids| {
            let store = world.store.clone();
            tokio::spawn(async move {
                let transaction = store.begin().await.expect("a transaction begins");
                let reports = ids.map(|id| (key, id, samples::NOW));
                let new = usage_reports::insert_new(&transaction, &reports).await.expect("no deadlock");
                commit(transaction).await.expect("a commit");
                new.len()
            })
        })
        .collect();
    wait_until("both to wait", async || {
        world.database.query_i64("SELECT count(*) FROM pg_locks WHERE NOT granted").await == 2
    })
    .await;
    commit(middle).await.expect("a commit");
    let mut new = 0;
    for task in tasks {
        new += task.await.expect("no panic");
    }
    assert_eq!(new, 2);
}

store_test!(pruning_forgets_what_is_older_and_nothing_else);
async fn pruning_forgets_what_is_older_and_nothing_else(database: TestDatabase) {
    let world = World::new(database).await;
    let key = key();
    let ids: Vec<String> = (0..12_000).map(|number| number.to_string()).collect();
    let at = |number: usize| Timestamp::from_micros(1_000_000 * i64::try_from(number).expect("a small number"));
    let reports: Vec<_> = ids.iter().enumerate().map(|(number, id)| (key, id.as_str(), at(number))).collect();
    usage_reports::insert_new(world.db(), &reports).await.expect("written");
    assert_eq!(usage_reports::prune(world.db(), at(0)).await.expect("pruned"), 0);
    assert_eq!(usage_reports::prune(world.db(), at(11_000)).await.expect("pruned"), 11_000, "in several statements");
    let oldest = "SELECT CAST(min(time_us) / 1000000 AS bigint) FROM usage_reports";
    assert_eq!((count(&world).await, world.database.query_i64(oldest).await), (1000, 11_000));
}
