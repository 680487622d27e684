//! `verify::Feed` over the real store: in which history the database is, what an answer may rest on and for how long,
//! and whose word counts. `records` shows what an eviction does; `follow` shows the follower at work, with
//! notifications, without them, and while the database is away.
//! A change that the feed does not tell of shows whether the cache was emptied: only then is it seen.

mod follow;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use keystead::domain::{
    key::{ApiKey, StoredStatus},
    time::Timestamp,
};
use keystead::limits::TurnError;
use keystead::store::{Store, StoreError, connect, key_changes};
use keystead::verify::{CacheLimits, Feed, Freshness, Records};
use sea_orm::ConnectionTrait as _;

use super::{World, options};
use crate::harness::{Engine, TestDatabase, samples, store_test, wait_until};

/// As good as for ever.
const LONG: Duration = Duration::from_hours(1);
/// Long enough for a poll on a busy machine, and short enough to wait for.
const SHORT: Duration = Duration::from_millis(500);

const LIMITS: CacheLimits = CacheLimits {
    entries_max: 1000,
    entry_age_max: LONG,
    negative_entries_max: 1000,
    negative_age_max: LONG,
    query_timeout: Duration::from_secs(8),
};

const ACTIVE: Option<StoredStatus> = Some(StoredStatus::Active);
const REVOKED: Option<StoredStatus> = Some(StoredStatus::Revoked);

/// A cache that forgets nothing by itself within a test, and a follower that makes it forget.
struct Cache {
    world: World,
    records: Arc<Records>,
    feed: Arc<Feed>,
}

impl Cache {
    /// Over a new database; the feed has been heard once, and what it says holds for `bound`.
    async fn new(database: TestDatabase, bound: Duration) -> Self {
        let world = World::new(database).await;
        let store = world.store.clone();
        let cache = Self::over(world, store, bound);
        cache.poll().await;
        cache
    }

    /// Over another way to the same database; nothing has been heard yet.
    fn over(world: World, store: Store, bound: Duration) -> Self {
        let records = Arc::new(Records::new(store.clone(), LIMITS));
        let feed = Arc::new(Feed::new(store, records.clone(), bound));
        Self { world, records, feed }
    }

    async fn poll(&self) {
        self.feed.poll().await.expect("the feed answers");
    }

    async fn cached(&self, key: &ApiKey) -> Option<StoredStatus> {
        let found = self.records.find_key(&samples::digest_of(key), Freshness::Cached).await;
        found.expect("no fault").map(|key| key.stored_status)
    }

    /// Whether the organization is there, as far as the cache knows.
    async fn organization(&self) -> bool {
        let found = self.records.find_organization(self.world.acme.id, Freshness::Cached).await;
        found.expect("no fault").is_some()
    }

    /// Where an answer may come from now.
    fn basis(&self) -> Freshness {
        self.feed.basis(Freshness::Cached).freshness
    }

    async fn sql(&self, sql: &str) {
        self.world.database.raw_sql(sql).await;
    }

    async fn rename(&self, key: &ApiKey, name: &str) {
        self.sql(&format!("UPDATE api_keys SET name = '{name}' WHERE id = '{}'", key.id)).await;
    }

    async fn revoke(&self, key: &ApiKey) {
        self.sql(&format!("UPDATE api_keys SET status = 'revoked' WHERE id = '{}'", key.id)).await;
    }

    /// Takes the feed's tables back to this revision, with no trace of what came after it.
    async fn forget_after(&self, revision: i64) {
        self.sql(&format!("DELETE FROM key_changes WHERE revision > {revision}")).await;
        self.sql(&format!("UPDATE change_counter SET revision = {revision}")).await;
    }

    /// Revokes a key so that nothing tells of it.
    async fn revoke_untold(&self, key: &ApiKey) {
        self.revoke(key).await;
        self.forget_after(self.feed.position()).await;
    }
}

store_test!(another_epoch_empties_the_cache);
async fn another_epoch_empties_the_cache(database: TestDatabase) {
    let cache = Cache::new(database, LONG).await;
    for epoch in ["backup of Monday", "backup of Tuesday", ""] {
        let key = cache.world.add_key(|_| {}).await;
        assert_eq!((cache.cached(&key).await, cache.organization().await), (ACTIVE, true));
        cache.revoke_untold(&key).await;
        cache.poll().await;
        assert_eq!(cache.cached(&key).await, ACTIVE, "nothing told of it");
        cache.sql(&format!("UPDATE change_counter SET epoch = '{epoch}'")).await;
        cache.poll().await;
        assert_eq!(cache.records.sizes(), (0, 0, 0), "{epoch:?}");
        assert_eq!((cache.cached(&key).await, cache.feed.position()), (REVOKED, 0));
    }
    assert_eq!(cache.feed.turns_of_history(), 3);
}

store_test!(another_change_at_the_position_empties_the_cache_though_the_revision_is_no_lower);
async fn another_change_at_the_position_empties_the_cache_though_the_revision_is_no_lower(database: TestDatabase) {
    let cache = Cache::new(database, LONG).await;
    for further in [0, 1] {
        let (lost, missed) = (cache.world.add_key(|_| {}).await, cache.world.add_key(|_| {}).await);
        cache.rename(&lost, "first").await;
        cache.rename(&lost, "second").await;
        cache.poll().await;
        let (position, turns) = (cache.feed.position(), cache.feed.turns_of_history());
        let bystander = cache.world.add_key(|_| {}).await;
        assert_eq!((cache.cached(&missed).await, cache.cached(&bystander).await), (ACTIVE, ACTIVE));
        cache.revoke_untold(&bystander).await;
        cache.poll().await;
        assert_eq!(cache.cached(&bystander).await, ACTIVE, "the same change stands at the position");

        // As where a standby takes over that lacks the last change, and goes on from there.
        cache.forget_after(position - 1).await;
        cache.revoke(&missed).await;
        for _ in 0..further {
            cache.rename(&lost, "third").await;
        }
        let db = cache.world.db();
        let head = key_changes::find_head(db, position).await.expect("a head");
        assert_eq!(head.revision, position + further, "by the revision alone nothing is amiss");
        let news = key_changes::list_after(db, position).await.expect("changes");
        assert_eq!(i64::try_from(news.len()).expect("few"), further, "and nothing tells of the key that was revoked");
        cache.poll().await;
        assert_eq!((cache.feed.position(), cache.feed.turns_of_history()), (position + further, 1 + turns));
        assert_eq!((cache.cached(&missed).await, cache.cached(&bystander).await), (REVOKED, REVOKED));
    }
}

store_test!(pruning_leaves_the_latest_change_so_that_an_idle_follower_keeps_its_cache);
async fn pruning_leaves_the_latest_change_so_that_an_idle_follower_keeps_its_cache(database: TestDatabase) {
    let cache = Cache::new(database, LONG).await;
    let key = cache.world.add_key(|_| {}).await;
    for name in ["one", "two", "three"] {
        cache.rename(&key, name).await;
    }
    cache.poll().await;
    assert_eq!((cache.cached(&key).await, cache.feed.position()), (ACTIVE, 3));
    cache.revoke_untold(&key).await;
    let deleted = key_changes::delete_before(cache.world.db(), Timestamp::LAST).await.expect("deleted");
    assert_eq!(deleted, 2);
    let loads = cache.records.queries();
    for _ in 0..3 {
        cache.poll().await;
        assert_eq!((cache.cached(&key).await, cache.records.queries()), (ACTIVE, loads), "it stayed cached");
    }
    // What the latest change is for.
    cache.sql("DELETE FROM key_changes").await;
    cache.poll().await;
    assert_eq!(cache.cached(&key).await, REVOKED);
}

store_test!(changes_beyond_what_is_worth_evicting_one_by_one_empty_the_cache);
async fn changes_beyond_what_is_worth_evicting_one_by_one_empty_the_cache(database: TestDatabase) {
    let cache = Cache::new(database, LONG).await;
    for (changes, told) in [(2500, ACTIVE), (6000, REVOKED)] {
        let key = cache.world.add_key(|_| {}).await;
        assert_eq!(cache.cached(&key).await, ACTIVE);
        cache.revoke_untold(&key).await;
        let position = cache.feed.position();
        // Of keys that no cache holds.
        let numbers = format!("SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {changes}");
        let rows = format!("SELECT {position} + n, 'key', '', 0 FROM numbers");
        let columns = "key_changes (revision, kind, organization_id, time_us)";
        cache.sql(&format!("WITH RECURSIVE numbers (n) AS ({numbers}) INSERT INTO {columns} {rows}")).await;
        cache.sql(&format!("UPDATE change_counter SET revision = {position} + {changes}")).await;
        let heard = cache.feed.poll().await.expect("the feed answers");
        assert!(heard > 0, "there was something new");
        assert_eq!(cache.feed.position(), position + changes);
        assert_eq!(cache.cached(&key).await, told, "{changes} changes");
    }
    assert_eq!(cache.feed.turns_of_history(), 0, "it is the same history");
}

store_test!(the_revision_is_told_as_the_database_has_it_and_never_as_it_was_before_asking);
async fn the_revision_is_told_as_the_database_has_it_and_never_as_it_was_before_asking(database: TestDatabase) {
    let cache = Cache::new(database, LONG).await;
    let key = cache.world.add_key(|_| {}).await;
    for revision in 1..=20 {
        cache.rename(&key, &format!("name {revision}")).await;
        let asked = (0..10).map(|_| cache.feed.find_revision());
        for told in futures_util::future::join_all(asked).await {
            assert_eq!(told.expect("no fault"), revision);
        }
    }
    assert_eq!(cache.feed.position(), 0, "the feed itself has not been heard again");
    cache.world.store.set_away(true);
    let refused = cache.feed.find_revision().now_or_never().expect("at once");
    assert!(matches!(refused, Err(TurnError::Store(StoreError::Unavailable { .. }))), "{refused:?}");
}

/// PostgreSQL alone: SQLite has no `TRUNCATE`, and its `DELETE` without a condition runs the triggers of each row.
#[tokio::test]
async fn truncate_empties_the_cache() {
    let cache = Cache::new(TestDatabase::new(Engine::Postgres).await, LONG).await;
    let key = cache.world.add_key(|_| {}).await;
    assert_eq!((cache.cached(&key).await, cache.organization().await), (ACTIVE, true));
    cache.sql("TRUNCATE api_keys").await;
    assert_eq!(cache.cached(&key).await, ACTIVE, "it came from the cache");
    cache.poll().await;
    assert_eq!((cache.cached(&key).await, cache.organization().await), (None, true));
    cache.sql("TRUNCATE organizations CASCADE").await;
    cache.poll().await;
    assert!(!cache.organization().await);
}

store_test!(the_cache_is_answered_from_only_while_the_feed_was_heard_within_the_bound);
async fn the_cache_is_answered_from_only_while_the_feed_was_heard_within_the_bound(database: TestDatabase) {
    let world = World::new(database).await;
    let store = world.store.clone();
    let cache = Cache::over(world, store, SHORT);
    let mut begun = Instant::now();
    wait_until("a poll that is in time", async || {
        begun = Instant::now();
        cache.poll().await;
        cache.basis() == Freshness::Cached
    })
    .await;
    let (cached, fresh) = (cache.feed.basis(Freshness::Cached), cache.feed.basis(Freshness::Fresh));
    assert_eq!(fresh.freshness, Freshness::Fresh, "as was asked for");
    wait_until("what was heard to be too old", async || cache.basis() == Freshness::Fresh).await;
    // What is kept of the moment is whole microseconds.
    assert!(begun.elapsed() + Duration::from_micros(1) > SHORT, "{:?}", begun.elapsed());
    wait_until("the answers to be too old", async || !cache.feed.holds(cached) && !cache.feed.holds(fresh)).await;
    let asked_now = cache.feed.basis(Freshness::Cached);
    assert_eq!(asked_now.freshness, Freshness::Fresh, "the database has to be asked");
    wait_until("what the database says to be too old as well", async || !cache.feed.holds(asked_now)).await;
    wait_until("another poll that is in time", async || {
        cache.poll().await;
        cache.basis() == Freshness::Cached
    })
    .await;
    assert!(!cache.feed.holds(cached), "what was too old stays so");
}

store_test!(within_the_bound_an_answer_may_be_given_and_without_one_never);
async fn within_the_bound_an_answer_may_be_given_and_without_one_never(database: TestDatabase) {
    let cache = Cache::new(database, LONG).await;
    for freshness in [Freshness::Cached, Freshness::Fresh] {
        let basis = cache.feed.basis(freshness);
        assert_eq!((basis.freshness, cache.feed.holds(basis)), (freshness, true));
    }
    let strict = Feed::new(cache.world.store.clone(), cache.records.clone(), Duration::ZERO);
    strict.poll().await.expect("the feed answers");
    let basis = strict.basis(Freshness::Cached);
    assert_eq!(basis.freshness, Freshness::Fresh, "a poll takes time");
    wait_until("time to pass", async || !strict.holds(basis)).await;
}

/// PostgreSQL alone: on SQLite a reader waits for nobody.
#[tokio::test]
async fn what_a_poll_heard_is_as_old_as_its_beginning() {
    let cache = Cache::new(TestDatabase::new(Engine::Postgres).await, LONG).await;
    let database = &cache.world.database;
    let locked = database.connect().await;
    locked.execute_unprepared("BEGIN; LOCK TABLE change_counter IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    let feed = cache.feed.clone();
    let poll = tokio::spawn(async move { feed.poll().await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until("the poll to wait", async || database.query_i64(waiting).await == 1).await;
    let began_before = Instant::now();
    wait_until("a while to pass", async || began_before.elapsed() >= SHORT).await;
    locked.execute_unprepared("ROLLBACK").await.expect("unlocked");
    poll.await.expect("no panic").expect("the feed answers");
    let at_least = began_before.elapsed();
    assert!(cache.feed.age() >= at_least, "what was committed meanwhile it need not have seen");
}

/// Hides PostgreSQL's own function from whoever has this path, so that the database says what a test wants.
const HIDE: &str = "CREATE SCHEMA hiding;
CREATE FUNCTION hiding.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT false';
ALTER ROLE CURRENT_USER SET search_path = hiding, pg_catalog, public";
const STANDBY: &str =
    "CREATE OR REPLACE FUNCTION hiding.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'";
const PRIMARY: &str =
    "CREATE OR REPLACE FUNCTION hiding.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT false'";

/// PostgreSQL alone: SQLite has no standbys.
#[tokio::test]
async fn what_a_standby_says_counts_for_nothing() {
    let world = World::new(TestDatabase::new(Engine::Postgres).await).await;
    world.database.raw_sql(HIDE).await;
    // A connection that is refused is asked for again until this is over.
    let hasty = connect::ConnectOptions { verify_timeout: Duration::from_secs(2), ..options(&world.database) };
    let (store, _lock) = connect::open(&hasty).await.expect("it opens");
    let cache = Cache::over(world, store, LONG);
    cache.poll().await;
    let (key, unseen) = (cache.world.add_key(|_| {}).await, cache.world.add_key(|_| {}).await);
    assert_eq!((cache.cached(&key).await, cache.feed.position()), (ACTIVE, 0));

    cache.sql(STANDBY).await;
    cache.revoke(&key).await;
    let (age, measured) = (cache.feed.age(), Instant::now());
    let refusal = cache.feed.poll().await.expect_err("a standby follows at a distance");
    let grown = age + measured.elapsed();
    assert!(matches!(refusal, StoreError::Unavailable { may_have_happened: false, .. }), "{refusal:?}");
    assert!(refusal.chain().contains("standby"), "{}", refusal.chain());
    assert!(cache.feed.age() >= grown, "it was not heard");
    assert_eq!((cache.feed.position(), cache.cached(&key).await), (0, ACTIVE));

    // Nor does whoever connects to one learn anything from it.
    let (store, _lock) = connect::open(&hasty).await.expect("it opens");
    let other = Records::new(store, LIMITS);
    let found = other.find_key(&samples::digest_of(&unseen), Freshness::Cached).await;
    assert!(matches!(found, Err(StoreError::Unavailable { .. })), "{found:?}");
    assert_eq!(other.sizes(), (0, 0, 0));

    cache.sql(PRIMARY).await;
    cache.poll().await;
    assert_eq!((cache.feed.position(), cache.cached(&key).await), (1, REVOKED));
    let found = other.find_key(&samples::digest_of(&unseen), Freshness::Cached).await;
    assert!(found.is_ok_and(|key| key.is_some()));
}
