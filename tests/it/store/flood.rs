//! What a flood of unknown secrets can do to `verify::Records`, and what it cannot: real keys stay cached, look-ups are
//! gathered, fresh ones too, those that wait are bounded, queries are paced, and whoever waits is told the truth or
//! that nobody knows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead::domain::{digest::Digest, key::StoredStatus, record::KeyRecord};
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
async fn look_up(records: &Arc<Records>, digests: Vec<Digest>, freshness: Freshness) -> Vec<Answer> {
    let mut tasks = JoinSet::new();
    for digest in digests {
        let records = records.clone();
        tasks.spawn(async move { records.find_key(&digest, freshness).await });
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
    for answer in look_up(&records, keys.clone(), Freshness::Cached).await {
        assert!(answer.expect("no fault").is_some());
    }
    let (before, begun) = (records.queries(), Instant::now());
    for round in 0..4 {
        for answer in look_up(&records, unknown(round, 4000), Freshness::Cached).await {
            assert_eq!(answer.expect("no fault"), None);
        }
    }
    let queries = records.queries() - before;
    // How full a query is depends on how fast they come; that they are gathered and paced does not.
    let paced = begun.elapsed().as_millis() / 2 + 8;
    assert!(queries <= 250 && u128::from(queries) <= paced, "{queries} queries for 16,000 look-ups, {paced} by pace");
    for answer in look_up(&records, keys, Freshness::Cached).await {
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
    // All ask within far less time than 100,000 look-ups take at the pace of unknown secrets: 256 each 2 ms.
    let digests: Vec<Digest> = unknown(0, 100_000).into_iter().chain([key]).collect();
    let look_ups = digests.iter().map(|digest| records.find_key(digest, Freshness::Cached));
    let answers = tokio::task::unconstrained(futures_util::future::join_all(look_ups)).await;
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

store_test!(the_same_secret_asked_for_by_many_is_looked_up_together);
async fn the_same_secret_asked_for_by_many_is_looked_up_together(database: TestDatabase) {
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    let key = samples::digest_of(&world.add_key(|_| {}).await);
    let look_ups = (0..100).map(|_| records.find_key(&key, Freshness::Cached));
    for answer in futures_util::future::join_all(look_ups).await {
        assert!(answer.expect("no fault").is_some());
    }
    // Each of the four lanes may begin before all have asked.
    assert!(records.queries() <= 4, "{} queries for one secret", records.queries());
}

store_test!(fresh_look_ups_are_gathered_too);
async fn fresh_look_ups_are_gathered_too(database: TestDatabase) {
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    for answer in look_up(&records, unknown(0, 500), Freshness::Cached).await {
        assert_eq!(answer.expect("no fault"), None, "and remembered");
    }
    let before = records.queries();
    for answer in look_up(&records, unknown(0, 4000), Freshness::Fresh).await {
        assert_eq!(answer.expect("no fault"), None);
    }
    let queries = records.queries() - before;
    assert!(queries >= 4000_u64.div_ceil(256), "{queries} queries cannot have asked for all of them");
    assert!(queries <= 4000 / 10, "{queries} queries for 4,000 look-ups");
}

store_test!(fresh_look_ups_see_what_has_changed_whatever_the_cache_holds);
async fn fresh_look_ups_see_what_has_changed_whatever_the_cache_holds(database: TestDatabase) {
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(samples::digest_of(&world.add_key(|_| {}).await));
    }
    look_up(&records, keys.clone(), Freshness::Cached).await;
    assert_eq!(world.database.raw_sql("UPDATE api_keys SET status = 'revoked'").await, 20);
    let statuses = async |digests: Vec<Digest>, freshness| {
        let answers = look_up(&records, digests, freshness).await;
        let found = answers.into_iter().map(|answer| answer.expect("no fault").expect("it is there").stored_status);
        found.collect::<Vec<_>>()
    };
    assert_eq!(statuses(keys.clone(), Freshness::Cached).await, [StoredStatus::Active; 20], "the cache holds these");
    // Each of them asked for by many at once.
    assert_eq!(statuses(keys.repeat(10), Freshness::Fresh).await, [StoredStatus::Revoked; 200]);
}

store_test!(a_fresh_look_up_is_answered_by_a_query_that_began_after_it);
async fn a_fresh_look_up_is_answered_by_a_query_that_began_after_it(database: TestDatabase) {
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    let mut key = world.add_key(|_| {}).await;
    let digest = samples::digest_of(&key);
    let stop = Arc::new(AtomicBool::new(false));
    // Queries for the same key are under way all the time.
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (records, stop) = (records.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    records.find_key(&digest, Freshness::Fresh).await.expect("no fault").expect("it is there");
                }
            })
        })
        .collect();
    for round in 0..300 {
        key.name = format!("round {round}");
        world.update(&key).await;
        let found = records.find_key(&digest, Freshness::Fresh).await.expect("no fault").expect("it is there");
        assert_eq!(*found.name, *key.name, "it was told what a query found that began before the change");
    }
    stop.store(true, Ordering::Release);
    for reader in readers {
        reader.await.expect("no panic");
    }
}

store_test!(a_flood_that_goes_on_makes_at_most_a_query_each_two_milliseconds);
async fn a_flood_that_goes_on_makes_at_most_a_query_each_two_milliseconds(database: TestDatabase) {
    const FLOODERS: usize = 32;
    let world = World::new(database).await;
    let records = Arc::new(Records::new(world.store.clone(), LIMITS));
    let begun = Instant::now();
    let mut flood = JoinSet::new();
    for flooder in 0..FLOODERS {
        let records = records.clone();
        flood.spawn(async move {
            // Each as soon as the one before it is answered: a query gathers what has come in the meantime.
            for (at, digest) in unknown(flooder, 100).iter().enumerate() {
                let freshness = if at % 4 == 0 { Freshness::Fresh } else { Freshness::Cached };
                assert_eq!(records.find_key(digest, freshness).await.expect("no fault"), None);
            }
        });
    }
    flood.join_all().await;
    let (queries, passed) = (records.queries(), begun.elapsed());
    // Nothing is known of the first ones, one in each lane, when they begin.
    let most = u64::try_from(passed.as_micros() / 2000).expect("short") + 8;
    assert!(queries >= 100, "one after the other, a hundred take as many queries: {queries}");
    assert!(queries <= most, "{queries} queries in {passed:?}");
}
