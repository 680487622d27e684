//! `store::replicas`: who is live, by the signs of life that the database has seen and by the database's clock.

use std::time::Duration;

use keystead::domain::ids::RecordId;
use keystead::store::{
    key_changes,
    replicas::{self, LIVE},
};

use super::World;
use crate::harness::{TestDatabase, samples, store_test};

const ROWS: &str = "SELECT count(*) FROM replicas";

impl World {
    /// Gives a sign of life of a replica; says how many the feed counts then.
    async fn beat(&self, id: RecordId) -> i64 {
        replicas::beat(self.db(), id).await.expect("a sign of life");
        self.live().await
    }

    async fn live(&self) -> i64 {
        key_changes::find_head(&self.store.feed(), 0).await.expect("a head").live
    }

    /// Makes a replica's last sign of life so much older.
    async fn age(&self, id: RecordId, by: Duration) {
        let micros = by.as_micros();
        let sql = format!("UPDATE replicas SET time_us = time_us - {micros} WHERE id = '{id}'");
        assert_eq!(self.database.raw_sql(&sql).await, 1);
    }
}

store_test!(each_replica_counts_once_until_it_leaves);
async fn each_replica_counts_once_until_it_leaves(database: TestDatabase) {
    let world = World::new(database).await;
    let [first, second, third] = [(); 3].map(|()| samples::record_id());
    assert_eq!(world.live().await, 0);
    assert_eq!((world.beat(first).await, world.beat(first).await), (1, 1));
    assert_eq!((world.beat(second).await, world.beat(third).await, world.beat(first).await), (2, 3, 3));
    replicas::leave(world.db(), second).await.expect("it leaves");
    replicas::leave(world.db(), second).await.expect("it has left");
    assert_eq!((world.live().await, world.beat(second).await), (2, 3));
    assert_eq!(world.database.query_i64(ROWS).await, 3, "a row each");
}

store_test!(a_replica_that_gave_no_sign_of_life_for_a_while_does_not_count_until_it_does);
async fn a_replica_that_gave_no_sign_of_life_for_a_while_does_not_count_until_it_does(database: TestDatabase) {
    let world = World::new(database).await;
    let (own, other) = (samples::record_id(), samples::record_id());
    world.beat(other).await;
    world.beat(own).await;
    // Half of it is more than any test lasts between two lines.
    world.age(other, LIVE / 2).await;
    assert_eq!(world.live().await, 2);
    world.age(other, LIVE / 2).await;
    assert_eq!(world.live().await, 1);
    world.age(own, 10 * LIVE).await;
    assert_eq!((world.live().await, world.beat(own).await, world.beat(other).await), (0, 1, 2), "back at once");
}

store_test!(the_rows_of_replicas_that_are_gone_for_a_day_are_deleted);
async fn the_rows_of_replicas_that_are_gone_for_a_day_are_deleted(database: TestDatabase) {
    const HOUR: Duration = Duration::from_hours(1);
    let world = World::new(database).await;
    let [live, away, gone] = [(); 3].map(|()| samples::record_id());
    for (id, since) in [(live, Duration::ZERO), (away, 23 * HOUR), (gone, 25 * HOUR)] {
        world.beat(id).await;
        world.age(id, since).await;
    }
    assert_eq!(replicas::delete_gone(world.db()).await.expect("deleted"), 1);
    let left = format!("SELECT count(*) FROM replicas WHERE id IN ('{live}', '{away}')");
    assert_eq!((world.database.query_i64(ROWS).await, world.database.query_i64(&left).await), (2, 2));
    assert_eq!(replicas::delete_gone(world.db()).await.expect("deleted"), 0);
}

store_test!(a_sign_of_life_is_dated_by_the_databases_clock);
async fn a_sign_of_life_is_dated_by_the_databases_clock(database: TestDatabase) {
    let world = World::new(database).await;
    let clock = keystead::clock::Clock::default();
    // Both are this machine's here; what is kept is less exact than a millisecond on SQLite.
    let before = clock.now().minus(Duration::from_millis(2)).micros();
    let id = samples::record_id();
    world.beat(id).await;
    let told = world.database.query_i64("SELECT time_us FROM replicas").await;
    let after = clock.now().plus(Duration::from_millis(2)).micros();
    assert!((before..=after).contains(&told), "{before} {told} {after}");
}
