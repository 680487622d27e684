//! What a flood of unknown secrets can do to `verify::Records`, and what it cannot: real keys stay cached, look-ups are
//! gathered, those that wait are bounded, and whoever waits is told the truth or that nobody knows.

use std::{sync::Arc, time::Duration};

use keystead::domain::{digest::Digest, record::KeyRecord};
use keystead::store::StoreError;
use keystead::verify::{CacheLimits, Freshness, Records};
use tokio::task::JoinSet;

use super::World;
use crate::harness::{TestDatabase, samples, store_test};

const LIMITS: CacheLimits = CacheLimits {
    entries_max: 1000,
    entry_age_max: Duration::from_hours(1),
    negative_entries_max: 1000,
    negative_age_max: Duration::from_hours(1),
    query_timeout: Duration::from_secs(30),
};

type Answer = Result<Option<Arc<KeyRecord>>, StoreError>;

/// Looks up so many digests at the same time.
async fn look_up(records: &Arc<Records>, digests: Vec<Digest>) -> Vec<Answer> {
    let mut tasks = JoinSet::new();
    for digest in digests {
        let records = records.clone();
        tasks.spawn(async move { records.find_key(&digest, Freshness::Cached).await });
    }
    tasks.join_all().await
}

fn unknown(round: usize, count: usize) -> Vec<Digest> {
    (0..count).map(|at| Digest::of(&format!("unknown {round} {at}"))).collect()
}

store_test!(a_flood_of_unknown_secrets_evicts_no_key_and_is_gathered_into_few_queries);
async fn a_flood_of_unknown_secrets_evicts_no_key_and_is_gathered_into_few_queries(database: TestDatabase) {
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(samples::digest_of(&world.add_key(|_| {}).await));
    }
    for answer in look_up(&records, keys.clone()).await {
        assert!(answer.expect("no fault").is_some());
    }
    let before = records.queries();
    for round in 0..4 {
        for answer in look_up(&records, unknown(round, 4000)).await {
            assert_eq!(answer.expect("no fault"), None);
        }
    }
    let queries = records.queries() - before;
    assert!(queries <= 16_000 / 256 + 4 * 8, "{queries} queries for 16,000 look-ups");
    for answer in look_up(&records, keys).await {
        assert!(answer.expect("no fault").is_some());
    }
    assert_eq!(records.queries() - before, queries, "every key was still cached");
    let (_, remembered, _) = records.sizes();
    assert!(remembered <= 1250, "{remembered}");
}

store_test!(more_look_ups_than_can_wait_are_refused_and_never_told_that_there_is_no_key);
async fn more_look_ups_than_can_wait_are_refused_and_never_told_that_there_is_no_key(database: TestDatabase) {
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    let key = samples::digest_of(&world.add_key(|_| {}).await);
    // Polled once each before any can be answered: on one thread, nobody runs in between.
    let digests: Vec<Digest> = unknown(0, 20_000).into_iter().chain([key]).collect();
    let look_ups = digests.iter().map(|digest| records.find_key(digest, Freshness::Cached));
    let answers = futures_util::future::join_all(look_ups).await;
    let refused = answers.iter().filter(|answer| matches!(answer, Err(StoreError::Overloaded))).count();
    assert!(refused > 0, "not all can wait");
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Ok(None) | Err(StoreError::Overloaded)) || matches!(answer, Ok(Some(_))))
    );
    assert!(!matches!(answers.last(), Some(Ok(None))), "a key that exists is found, or nobody knows");
    // Afterwards all is as before.
    assert!(records.find_key(&key, Freshness::Cached).await.expect("no fault").is_some());
}

store_test!(the_same_secret_asked_for_by_many_is_looked_up_once);
async fn the_same_secret_asked_for_by_many_is_looked_up_once(database: TestDatabase) {
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    let key = samples::digest_of(&world.add_key(|_| {}).await);
    let look_ups = (0..100).map(|_| records.find_key(&key, Freshness::Cached));
    for answer in futures_util::future::join_all(look_ups).await {
        assert!(answer.expect("no fault").is_some());
    }
    assert_eq!(records.queries(), 1);
}
