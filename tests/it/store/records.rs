//! `verify::Records` and `verify::Feed` over the real store: once an eviction has returned, nothing that was loaded
//! before it is served, whoever made the change; absence is only what the database said; a gap empties everything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use keystead::domain::{
    digest::Digest,
    key::{ApiKey, StoredStatus},
    organization::Organization,
};
use keystead::store::{StoreError, api_keys as keys, organizations};
use keystead::verify::{CacheLimits, Feed, Freshness, Records};

use super::{World, commit_all};
use crate::harness::{Engine, TestDatabase, samples, store_test, wait_until};

/// How long what the feed has heard holds.
const BOUND: Duration = Duration::from_secs(5);

const LIMITS: CacheLimits = CacheLimits {
    entries_max: 10_000,
    entry_age_max: Duration::from_hours(1),
    negative_entries_max: 1000,
    negative_age_max: Duration::from_hours(1),
    query_timeout: Duration::from_secs(8),
};

/// A cache that forgets nothing by itself within a test, and the follower that makes it forget.
struct Cache {
    world: World,
    records: Arc<Records>,
    feed: Feed,
}

impl Cache {
    /// Over a new database; the feed has been heard once.
    async fn new(database: TestDatabase) -> Self {
        let world = World::new(database).await;
        let records = Arc::new(Records::new(world.store.clone(), LIMITS));
        let feed = Feed::new(world.store.clone(), records.clone(), BOUND);
        assert_eq!(feed.position(), -1);
        let cache = Self { world, records, feed };
        cache.poll().await;
        cache
    }

    async fn poll(&self) {
        self.feed.poll().await.expect("the feed answers");
    }

    async fn cached(&self, key: &ApiKey) -> Option<StoredStatus> {
        let found = self.records.find_key(&samples::digest_of(key), Freshness::Cached).await;
        found.expect("no fault").map(|key| key.stored_status)
    }

    async fn fresh(&self, key: &ApiKey) -> Option<StoredStatus> {
        let found = self.records.find_key(&samples::digest_of(key), Freshness::Fresh).await;
        found.expect("no fault").map(|key| key.stored_status)
    }

    async fn organization(&self) -> Organization {
        let found = self.records.find_organization(self.world.acme.id, Freshness::Cached).await;
        found.expect("no fault").expect("it is there").as_ref().clone()
    }

    async fn sql(&self, sql: &str) {
        assert!(self.world.database.raw_sql(sql).await > 0, "{sql} changes a row");
    }

    async fn revoke_by_sql(&self, key: &ApiKey) {
        self.sql(&format!("UPDATE api_keys SET status='revoked' WHERE id='{}'", key.id)).await;
    }
}

const ACTIVE: Option<StoredStatus> = Some(StoredStatus::Active);
const REVOKED: Option<StoredStatus> = Some(StoredStatus::Revoked);

store_test!(a_cached_key_is_served_until_it_is_evicted_and_then_as_the_database_has_it);
async fn a_cached_key_is_served_until_it_is_evicted_and_then_as_the_database_has_it(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let key = cache.world.add_key(|key| *key = samples::full_key(key.organization_id)).await;
    let digest = samples::digest_of(&key);
    let found = cache.records.find_key(&digest, Freshness::Cached).await.expect("no fault");
    assert_eq!(found.as_deref(), Some(&samples::record(&key)));
    cache.revoke_by_sql(&key).await;
    assert_eq!(cache.cached(&key).await, Some(StoredStatus::Disabled), "it came from the cache");
    assert_eq!(cache.fresh(&key).await, REVOKED);
    cache.records.evict_key(&digest);
    assert_eq!(cache.cached(&key).await, REVOKED);
    cache.sql(&format!("DELETE FROM api_keys WHERE id = '{}'", key.id)).await;
    cache.records.evict_key(&digest);
    assert_eq!(cache.cached(&key).await, None);
}

store_test!(a_key_revoked_by_sql_is_refused_after_the_next_poll_and_its_neighbours_stay);
async fn a_key_revoked_by_sql_is_refused_after_the_next_poll_and_its_neighbours_stay(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let (key, neighbour) = (cache.world.add_key(|_| {}).await, cache.world.add_key(|_| {}).await);
    assert_eq!((cache.cached(&key).await, cache.cached(&neighbour).await), (ACTIVE, ACTIVE));
    cache.revoke_by_sql(&key).await;
    cache.poll().await;
    assert_eq!((cache.cached(&key).await, cache.cached(&neighbour).await), (REVOKED, ACTIVE));
    assert_eq!(cache.feed.position(), 1);
    cache.poll().await;
    assert_eq!(cache.feed.position(), 1, "nothing is new");
    cache.sql(&format!("DELETE FROM api_keys WHERE id = '{}'", key.id)).await;
    cache.poll().await;
    assert_eq!(cache.cached(&key).await, None);
}

store_test!(an_organization_changed_by_sql_is_seen_after_the_next_poll);
async fn an_organization_changed_by_sql_is_seen_after_the_next_poll(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let acme = cache.world.acme.clone();
    assert_eq!(cache.organization().await, acme);
    cache.sql(&format!("UPDATE organizations SET active = false WHERE id = '{}'", acme.id)).await;
    assert!(cache.organization().await.active, "it came from the cache");
    let fresh = cache.records.find_organization(acme.id, Freshness::Fresh).await.expect("no fault");
    assert!(fresh.is_some_and(|organization| !organization.active));
    cache.poll().await;
    assert!(!cache.organization().await.active);

    organizations::update(cache.world.db(), &acme).await.expect("an update");
    cache.records.evict_organization(acme.id);
    assert!(cache.organization().await.active, "evicted by the one who changed it");
    let nobody = cache.records.find_organization(super::nobody(), Freshness::Cached).await.expect("no fault");
    assert!(nobody.is_none());
}

store_test!(an_unknown_digest_is_remembered_and_forgotten_when_its_key_is_evicted);
async fn an_unknown_digest_is_remembered_and_forgotten_when_its_key_is_evicted(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let key = samples::key(cache.world.acme.id);
    assert_eq!(cache.cached(&key).await, None);
    super::insert(cache.world.db(), &key).await;
    assert_eq!(cache.cached(&key).await, None, "it came from the cache");
    assert_eq!(cache.fresh(&key).await, ACTIVE);
    cache.records.evict_key(&samples::digest_of(&key));
    assert_eq!(cache.cached(&key).await, ACTIVE);

    let second = samples::key(cache.world.acme.id);
    assert_eq!(cache.cached(&second).await, None);
    super::insert(cache.world.db(), &second).await;
    cache.records.evict_all();
    assert_eq!(cache.cached(&second).await, ACTIVE);
}

store_test!(the_first_poll_empties_what_was_cached_before_anything_was_heard);
async fn the_first_poll_empties_what_was_cached_before_anything_was_heard(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let key = cache.world.add_key(|_| {}).await;
    cache.cached(&key).await;
    cache.revoke_by_sql(&key).await;
    let late = Feed::new(cache.world.store.clone(), cache.records.clone(), BOUND);
    late.poll().await.expect("the feed answers");
    assert_eq!((late.position(), cache.cached(&key).await), (1, REVOKED));
}

/// Changes that a follower cannot tell apart from others it missed, as SQL on the feed's tables.
const GAPS: [(&str, &str); 5] = [
    ("a change that is missing", "DELETE FROM key_changes WHERE revision = 1"),
    ("every change pruned", "DELETE FROM key_changes"),
    ("a kind of a newer version", "UPDATE key_changes SET kind = 'novelty'"),
    ("a backup that was put back", "UPDATE change_counter SET revision = -1"),
    ("a digest that is none", "UPDATE key_changes SET digest = NULL, kind = 'key?'"),
];

store_test!(a_gap_in_the_feed_empties_the_cache);
async fn a_gap_in_the_feed_empties_the_cache(database: TestDatabase) {
    let cache = Cache::new(database).await;
    for (what, sql) in GAPS {
        // As new: the position and the tables, and a feed of its own.
        cache.world.database.raw_sql("DELETE FROM key_changes").await;
        cache.sql("UPDATE change_counter SET revision = 0").await;
        let feed = Feed::new(cache.world.store.clone(), cache.records.clone(), BOUND);
        feed.poll().await.expect("the feed answers");
        let (missed, told) = (cache.world.add_key(|_| {}).await, cache.world.add_key(|_| {}).await);
        assert_eq!((cache.cached(&missed).await, cache.cached(&told).await), (ACTIVE, ACTIVE));
        assert!(cache.organization().await.active);
        cache.revoke_by_sql(&missed).await;
        cache.revoke_by_sql(&told).await;
        cache.sql(sql).await;
        feed.poll().await.expect("the feed answers");
        assert_eq!((cache.cached(&missed).await, cache.cached(&told).await), (REVOKED, REVOKED), "{what}");
    }
}

store_test!(more_changes_than_one_read_gives_are_all_evicted_and_the_position_reaches_the_last);
async fn more_changes_than_one_read_gives_are_all_evicted_and_the_position_reaches_the_last(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let transaction = cache.world.begin().await;
    let mut written = Vec::new();
    for _ in 0..2100 {
        let key = samples::key(cache.world.acme.id);
        super::insert(&transaction, &key).await;
        written.push(key);
    }
    commit_all(transaction).await;
    for key in &written {
        assert_eq!(cache.cached(key).await, ACTIVE);
    }
    cache.sql("UPDATE api_keys SET status = 'revoked'").await;
    // Each poll goes on where the one before it stopped.
    for _ in 0..3 {
        cache.poll().await;
    }
    assert_eq!(cache.feed.position(), 2100);
    for key in &written {
        assert_eq!(cache.cached(key).await, REVOKED);
    }
}

store_test!(a_key_that_cannot_be_read_is_an_error_each_time_and_no_absence);
async fn a_key_that_cannot_be_read_is_an_error_each_time_and_no_absence(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let key = cache.world.add_key(|_| {}).await;
    cache.sql(&format!("UPDATE api_keys SET scopes = 'x' WHERE id = '{}'", key.id)).await;
    for freshness in [Freshness::Cached, Freshness::Cached, Freshness::Fresh] {
        let found = cache.records.find_key(&samples::digest_of(&key), freshness).await;
        assert!(matches!(found, Err(StoreError::Corrupt(_))), "{found:?}");
    }
    cache.sql(&format!("UPDATE api_keys SET scopes = '[]' WHERE id = '{}'", key.id)).await;
    assert_eq!(cache.cached(&key).await, ACTIVE, "nothing of the fault was remembered");
}

/// PostgreSQL alone: a file cannot be cut off.
#[tokio::test]
async fn a_database_that_is_away_is_an_error_and_no_absence_and_a_hit_needs_none() {
    let cache = Cache::new(TestDatabase::new(Engine::Postgres).await).await;
    let (known, unseen) = (cache.world.add_key(|_| {}).await, cache.world.add_key(|_| {}).await);
    cache.cached(&known).await;
    cache.world.database.cut_off().await;
    assert_eq!(cache.cached(&known).await, ACTIVE);
    for digest in [samples::digest_of(&unseen), Digest::of("unknown")] {
        let found = cache.records.find_key(&digest, Freshness::Cached).await;
        assert!(matches!(found, Err(StoreError::Unavailable { .. })), "{found:?}");
    }
    assert!(cache.feed.poll().await.is_err());
    cache.world.database.let_back().await;
    assert_eq!(cache.cached(&unseen).await, ACTIVE);
    cache.poll().await;
}

store_test!(after_an_eviction_nothing_older_is_served_however_many_loads_are_under_way);
async fn after_an_eviction_nothing_older_is_served_however_many_loads_are_under_way(database: TestDatabase) {
    let cache = Cache::new(database).await;
    let mut key = cache.world.add_key(|_| {}).await;
    let digest = samples::digest_of(&key);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|reader| {
            let (records, stop) = (cache.records.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    records.find_key(&digest, Freshness::Cached).await.expect("no fault").expect("it is there");
                    // Keeps loads coming: what one reader evicts, the others load.
                    if reader % 2 == 0 {
                        records.evict_key(&digest);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for round in 0..300 {
        key.name = format!("round {round}");
        keys::update(cache.world.db(), &key).await.expect("an update");
        cache.records.evict_key(&digest);
        let served = cache.records.find_key(&digest, Freshness::Cached).await.expect("no fault").expect("it is there");
        assert_eq!(*served.name, *key.name, "a load from before the eviction was served after it");
    }
    stop.store(true, Ordering::Release);
    for reader in readers {
        reader.await.expect("no panic");
    }
}

store_test!(what_is_in_use_is_loaded_again_before_it_is_too_old_and_never_waited_for);
async fn what_is_in_use_is_loaded_again_before_it_is_too_old_and_never_waited_for(database: TestDatabase) {
    // The last quarter of it is longer than any pause of a busy machine.
    const AGE: Duration = Duration::from_secs(20);
    let world = World::new(database).await;
    let records = Records::new(world.store.clone(), CacheLimits { entry_age_max: AGE, ..LIMITS });
    let (key, acme) = (world.add_key(|_| {}).await, world.acme.id);
    let digest = samples::digest_of(&key);
    let begun = Instant::now();
    records.find_key(&digest, Freshness::Cached).await.expect("no fault").expect("it is there");
    records.find_organization(acme, Freshness::Cached).await.expect("no fault").expect("it is there");
    // No feed is followed here, so that nothing but age makes a record go.
    world.database.raw_sql("UPDATE api_keys SET status = 'revoked'").await;
    world.database.raw_sql("UPDATE organizations SET active = false").await;
    let hits = || {
        let key = records.find_key(&digest, Freshness::Cached).now_or_never();
        let organization = records.find_organization(acme, Freshness::Cached).now_or_never();
        let key = key.expect("the key is there at once").expect("no fault").expect("it is there");
        let organization = organization.expect("the organization is there at once").expect("no fault");
        (key.stored_status, organization.expect("it is there").active)
    };
    assert_eq!((hits(), records.queries()), ((StoredStatus::Active, true), 1));
    let mut reloaded = None;
    wait_until("both to be loaded again", async || {
        let known = hits();
        if reloaded.is_none() && known != (StoredStatus::Active, true) {
            reloaded = Some(begun.elapsed());
        }
        known == (StoredStatus::Revoked, false)
    })
    .await;
    let reloaded = reloaded.expect("the condition held");
    assert!(reloaded >= AGE * 7 / 10, "nothing is loaded again while it is young: after {reloaded:?}");
    assert!(records.queries() >= 2, "the key came from the database");
}
