//! Retention: rows of detail go after their days, sums stay.

use keystead::domain::usage::UsageEvent;
use keystead::store::usage;
use keystead::usage::retention;

use super::World;
use crate::harness::{TestDatabase, samples, store_test};

const DAY_S: i64 = 86_400;

store_test!(rows_older_than_their_retention_are_deleted_and_sums_stay);
async fn rows_older_than_their_retention_are_deleted_and_sums_stay(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    let at = |seconds| UsageEvent { time: samples::seconds(seconds), ..world.event(0) };
    recorder.record(&at(-30 * DAY_S - 1));
    recorder.record(&at(-30 * DAY_S));
    recorder.record(&at(0));
    world.flush(&recorder).await;
    // More than one statement takes.
    let old: Vec<_> = (0..12_000).map(|_| (samples::record_id(), at(-40 * DAY_S), 1)).collect();
    usage::insert_events(world.store.write(), &old).await.expect("written");

    assert_eq!(retention::prune(&world.store, samples::NOW, 30).await.expect("pruned"), 12_001);
    assert_eq!((world.rows().await, world.counted().await, world.requests().await), (2, 3, 3));
    assert_eq!(retention::prune(&world.store, samples::NOW, 30).await.expect("nothing is left"), 0);
    assert_eq!(retention::prune(&world.store, samples::NOW, 1).await.expect("pruned"), 1);
}
