//! Several processes on one spool: each has a slot to itself, and what a dead one left is written by whoever is there.

use std::fs;

use keystead::proto::v1::Outcome;

use super::ledger::{asking, totals};
use super::{World, entries, slots};
use crate::harness::{Engine, Server, TestDatabase, create_key, create_organization, store_test, verify, wait_until};

store_test!(the_slot_of_a_dead_process_is_adopted_and_that_of_a_living_one_is_not);
async fn the_slot_of_a_dead_process_is_adopted_and_that_of_a_living_one_is_not(database: TestDatabase) {
    let world = World::new(database).await;
    let (first, second, third) = (world.recorder().await, world.recorder().await, world.recorder().await);
    for (recorder, count) in [(&first, 1), (&second, 10), (&third, 100)] {
        world.record(recorder, count);
    }
    first.adopt(&world.store).await.expect("nothing to adopt");
    world.expect(0).await;

    drop(second);
    first.adopt(&world.store).await.expect("adopted");
    world.expect(10).await;
    first.adopt(&world.store).await.expect("nothing is left");
    world.expect(10).await;
    let left = entries(&slots(&world.database.spool())[1]);
    assert!(left.len() == 1 && left[0].ends_with("lock"), "no file stays in a slot that nobody has: {left:?}");

    // The slot is free for the next process, and goes on counting where it was.
    let second = world.recorder().await;
    world.record(&second, 1_000);
    for recorder in [&first, &second, &third] {
        world.flush(recorder).await;
    }
    world.expect(1_111).await;
}

store_test!(a_slot_that_cannot_be_opened_holds_up_no_other);
async fn a_slot_that_cannot_be_opened_holds_up_no_other(database: TestDatabase) {
    let world = World::new(database).await;
    let (first, second) = (world.recorder().await, world.recorder().await);
    world.record(&second, 10);
    drop(second);
    // They are listed in no order: some before the one that can be opened.
    let folder = entries(&world.database.spool()).remove(0);
    for number in 100..120 {
        fs::create_dir_all(folder.join(number.to_string()).join("lock")).expect("a folder where a file should be");
    }
    first.adopt(&world.store).await.expect("adopted");
    world.expect(10).await;
}

/// On PostgreSQL alone: a SQLite file has one server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_spool_have_a_slot_each_and_the_next_one_adopts_both() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut first = Server::start(&database, &["--migrate"]).await;
    let mut second = Server::start(&database, &["--migrate"]).await;
    let organization = create_organization(&first, "acme").await.id;
    let (_, secret) = create_key(&first, &organization, &[]).await;
    let ids: Vec<String> = slots(&database.spool())
        .iter()
        .map(|slot| fs::read_to_string(slot.join("lock")).expect("the lock file"))
        .collect();
    assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");

    database.cut_off().await;
    let (mut asked, mut answered) = (0, 0);
    for server in [&first, &second] {
        for _ in 0..50 {
            asked += 1;
            if server.keys().verify_key(asking(&secret)).await.is_ok() {
                answered += 1;
                break;
            }
        }
    }
    database.let_back().await;
    for server in [&first, &second] {
        wait_until("the database to be noticed again", async || {
            asked += 1;
            let is_answered = server.keys().verify_key(asking(&secret)).await.is_ok();
            answered += i64::from(is_answered);
            is_answered
        })
        .await;
    }
    for _ in 0..20 {
        assert_eq!(verify(&first, &secret).await.outcome(), Outcome::Valid);
        assert_eq!(verify(&second, &secret).await.outcome(), Outcome::Valid);
        (asked, answered) = (asked + 2, answered + 2);
    }
    first.kill9();
    second.kill9();
    first.restart().await;
    let other = slots(&database.spool()).remove(1);
    wait_until("the other's slot to be empty", async || entries(&other).len() == 1).await;
    // Asking writes what waits in its own.
    let counted = totals(&first, &organization).await.valid;
    assert!((answered..=asked).contains(&counted), "{counted}, answered {answered}, asked {asked}");
}
