//! The revisions of the change feed under concurrent transactions: no gap, commit order, nothing left by what was
//! rolled back. A follower reads while others write, and must never see a revision whose forerunner is still to come.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use keystead::domain::key::ApiKey;
use keystead::store::{Store, api_keys as keys, commit, key_changes};

use super::{World, commit_all};
use crate::harness::{Engine, TestDatabase, samples, store_test, wait_until};

async fn revisions_after(store: &Store, revision: i64) -> Vec<i64> {
    let changes = key_changes::list_after(store.verify(), revision).await.expect("changes");
    changes.into_iter().map(|change| change.revision).collect()
}

/// Follows the feed until told to stop, and gives how many changes it saw. Panics at a gap.
async fn follow(store: Store, stop: Arc<AtomicBool>) -> i64 {
    let mut position = 0;
    loop {
        let ends = stop.load(Ordering::Acquire);
        for revision in revisions_after(&store, position).await {
            assert_eq!(revision, position + 1, "a follower would have skipped a change for ever");
            position = revision;
        }
        if ends {
            return position;
        }
    }
}

fn renamed(key: &ApiKey, name: impl Into<String>) -> ApiKey {
    ApiKey { name: name.into(), ..key.clone() }
}

store_test!(a_rolled_back_transaction_leaves_no_revision);
async fn a_rolled_back_transaction_leaves_no_revision(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    for round in 0..3 {
        let transaction = world.begin().await;
        keys::update(&transaction, &renamed(&key, "dropped")).await.expect("an update");
        assert_eq!(key_changes::find_revision(&transaction).await.expect("a revision"), round + 1);
        drop(transaction);
        assert_eq!(revisions_after(&world.store, 0).await, (1..=round).collect::<Vec<_>>());

        world.update(&renamed(&key, format!("kept {round}"))).await;
        assert_eq!(revisions_after(&world.store, 0).await, (1..=round + 1).collect::<Vec<_>>());
    }
}

store_test!(a_change_is_not_told_before_it_is_committed);
async fn a_change_is_not_told_before_it_is_committed(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    let transaction = world.begin().await;
    keys::update(&transaction, &renamed(&key, "new")).await.expect("an update");
    assert_eq!(key_changes::find_revision(world.store.verify()).await.expect("a revision"), 0);
    assert_eq!(revisions_after(&world.store, 0).await, [] as [i64; 0]);
    commit_all(transaction).await;
    assert_eq!(revisions_after(&world.store, 0).await, [1]);
}

/// PostgreSQL alone: SQLite has one writer, so that two transactions are never open at once.
#[tokio::test]
async fn of_two_open_transactions_the_later_revision_waits_for_the_earlier_to_commit() {
    let world = World::new(TestDatabase::new(Engine::Postgres).await).await;
    let (first, second) = (world.add_key(|_| {}).await, world.add_key(|_| {}).await);
    for rolls_back in [false, true] {
        let start = key_changes::find_revision(world.db()).await.expect("a revision");
        let earlier = world.begin().await;
        keys::update(&earlier, &renamed(&first, format!("{rolls_back}"))).await.expect("an update");
        let later = {
            let (store, key) = (world.store.clone(), renamed(&second, format!("{rolls_back}")));
            tokio::spawn(async move {
                let transaction = store.begin().await.expect("a transaction begins");
                keys::update(&transaction, &key).await.expect("an update");
                commit(transaction).await.expect("a commit");
            })
        };
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        wait_until("the later transaction to wait for its revision", async || {
            world.database.query_i64(waiting).await == 1
        })
        .await;
        assert_eq!(revisions_after(&world.store, start).await, [] as [i64; 0], "neither is told");
        if rolls_back {
            drop(earlier);
        } else {
            commit_all(earlier).await;
        }
        later.await.expect("no panic");
        let expected: &[i64] = if rolls_back { &[start + 1] } else { &[start + 1, start + 2] };
        assert_eq!(revisions_after(&world.store, start).await, expected);
    }
}

/// The triggers' function with a sequence in place of the counter's row.
const WITH_A_SEQUENCE: &str = "CREATE SEQUENCE numbers;
CREATE OR REPLACE FUNCTION keystead_record_change(kind text, key_id text, organization_id text, digest bytea)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO key_changes (revision, kind, key_id, organization_id, digest, time_us)
    VALUES (nextval('numbers'), kind, key_id, organization_id, digest, 0);
END $$";

/// PostgreSQL alone: SQLite has no sequences. Shows what the counter's row is for.
#[tokio::test]
async fn without_the_counters_row_a_follower_skips_a_change_for_ever() {
    let world = World::new(TestDatabase::new(Engine::Postgres).await).await;
    let (first, second) = (world.add_key(|_| {}).await, world.add_key(|_| {}).await);
    world.database.raw_sql(WITH_A_SEQUENCE).await;
    let earlier = world.begin().await;
    keys::update(&earlier, &renamed(&first, "new")).await.expect("an update");
    world.update(&renamed(&second, "new")).await;
    assert_eq!(revisions_after(&world.store, 0).await, [2], "the follower goes on behind 2");
    commit_all(earlier).await;
    assert_eq!(revisions_after(&world.store, 2).await, [] as [i64; 0], "and never sees 1");
}

store_test!(a_follower_skips_nothing_while_many_commit_and_roll_back);
async fn a_follower_skips_nothing_while_many_commit_and_roll_back(database: TestDatabase) {
    let world = World::new(database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let followers: Vec<_> = (0..2).map(|_| tokio::spawn(follow(world.store.clone(), stop.clone()))).collect();
    let mut writers = Vec::new();
    for writer in 0..6_i64 {
        let (store, key) = (world.store.clone(), world.add_key(|_| {}).await);
        writers.push(tokio::spawn(async move {
            let mut committed = 0;
            for round in 0..30_i64 {
                let transaction = store.begin().await.expect("a transaction begins");
                // One to three changes in a transaction, so that numbers are handed out in runs.
                let changes = 1 + (writer + round) % 3;
                for change in 0..changes {
                    let name = format!("{round} {change}");
                    keys::update(&transaction, &renamed(&key, name)).await.expect("an update");
                    tokio::task::yield_now().await;
                }
                if (writer + round) % 4 == 0 {
                    drop(transaction);
                } else {
                    commit(transaction).await.expect("a commit");
                    committed += changes;
                }
            }
            committed
        }));
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.expect("no panic");
    }
    stop.store(true, Ordering::Release);
    for follower in followers {
        assert_eq!(follower.await.expect("no gap"), committed);
    }
    assert_eq!(key_changes::find_revision(world.db()).await.expect("a revision"), committed);
}

store_test!(one_read_gives_at_most_a_thousand_changes_and_the_next_goes_on_after_them);
async fn one_read_gives_at_most_a_thousand_changes_and_the_next_goes_on_after_them(database: TestDatabase) {
    let world = World::new(database).await;
    let transaction = world.begin().await;
    for _ in 0..1234 {
        super::insert(&transaction, &samples::key(world.acme.id)).await;
    }
    commit_all(transaction).await;
    assert_eq!(world.database.raw_sql("UPDATE api_keys SET status = 'revoked'").await, 1234);
    assert_eq!(revisions_after(&world.store, 0).await, (1..=1000).collect::<Vec<_>>());
    assert_eq!(revisions_after(&world.store, 1000).await, (1001..=1234).collect::<Vec<_>>());
    assert_eq!(revisions_after(&world.store, 1234).await, [] as [i64; 0]);
}
