//! `Feed::follow` at work. With notifications a change is evicted at once, and a listener that is lost comes back;
//! while the database is away whoever needs it is refused at once and nothing is taken for unknown; and what an outage
//! left hanging is given up, and nothing else.

use std::{
    future,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use keystead::domain::key::ApiKey;
use keystead::store::{StoreError, connect, organizations};
use keystead::verify::Freshness;
use sea_orm::ConnectionTrait as _;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{ACTIVE, Cache, LONG};
use crate::harness::{Engine, Fault, Proxy, TestDatabase, samples, wait_until};
use crate::store::{World, options};

/// How often the feed is polled at least.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Longer than anything may take that is not held back.
const SOON: Duration = Duration::from_secs(30);
/// A staleness bound that is over soon.
const BOUND: Duration = Duration::from_secs(2);

const LISTENER: &str = "SELECT coalesce(max(pid), 0) FROM pg_stat_activity \
                        WHERE application_name = 'keystead-listen' AND datname = current_database()";
const CUT_LISTENERS: &str = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity \
                             WHERE application_name = 'keystead-listen' AND datname = current_database()";
const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Follows until what this gives is dropped.
fn follow(cache: &Cache) -> AbortOnDropHandle<()> {
    let feed = cache.feed.clone();
    AbortOnDropHandle::new(tokio::spawn(async move { feed.follow().await }))
}

impl Cache {
    /// Renames a key so many times, each time once the cache has let go of the name before.
    async fn see_changes(&self, key: &ApiKey, what: &str, count: u32) {
        for round in 0..count {
            let name = format!("{what} {round}");
            self.rename(key, &name).await;
            wait_until("the change to be seen", async || {
                let found = self.records.find_key(&samples::digest_of(key), Freshness::Cached).await;
                found.expect("no fault").is_some_and(|key| *key.name == *name)
            })
            .await;
        }
    }

    /// The same in less time than polls alone would need: each brings one of these changes.
    async fn see_changes_at_once(&self, key: &ApiKey, what: &str) {
        const CHANGES: u32 = 20;
        let begun = Instant::now();
        self.see_changes(key, what, CHANGES).await;
        assert!(begun.elapsed() < POLL_INTERVAL * (CHANGES - 1), "{what}: {:?}", begun.elapsed());
    }
}

/// SQLite alone: it has no notifications.
#[tokio::test]
async fn without_notifications_polls_bring_every_change() {
    let cache = Cache::new(TestDatabase::new(Engine::Sqlite).await, LONG).await;
    let key = cache.world.add_key(|_| {}).await;
    let _follower = follow(&cache);
    cache.see_changes(&key, "by polls", 3).await;
    assert!(!cache.feed.is_listening());
}

/// In place of PostgreSQL's own: whoever listens hears nothing, as behind a pooler that hands its connection to others.
const DEAF: &str = "CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT';
ALTER FUNCTION keystead_record_change SET search_path = public, pg_catalog";

/// PostgreSQL alone: SQLite has no notifications.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_notifications_do_not_come_polls_bring_the_changes_and_they_are_listened_for_anew() {
    let cache = Cache::new(TestDatabase::new(Engine::Postgres).await, LONG).await;
    cache.sql(DEAF).await;
    let key = cache.world.add_key(|_| {}).await;
    let _follower = follow(&cache);
    wait_until("the feed to listen", async || cache.feed.is_listening()).await;
    let deaf = cache.world.database.query_i64(LISTENER).await;
    cache.see_changes(&key, "by polls", 6).await;
    wait_until("another listener", async || ![0, deaf].contains(&cache.world.database.query_i64(LISTENER).await)).await;
}

/// PostgreSQL alone: SQLite has no notifications.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_makes_a_change_seen_at_once_and_a_listener_that_is_cut_comes_back() {
    let cache = Cache::new(TestDatabase::new(Engine::Postgres).await, LONG).await;
    let database = &cache.world.database;
    let key = cache.world.add_key(|_| {}).await;
    assert!(!cache.feed.is_listening(), "nobody follows yet");
    let _follower = follow(&cache);
    wait_until("the feed to listen", async || cache.feed.is_listening()).await;
    cache.see_changes_at_once(&key, "by notifications").await;
    for cut in 0..2 {
        let lost = database.query_i64(LISTENER).await;
        assert!(database.query_i64(CUT_LISTENERS).await > 0, "a connection of its own listens");
        cache.see_changes(&key, &format!("after cut {cut}"), 1).await;
        wait_until("another listener", async || {
            ![0, lost].contains(&database.query_i64(LISTENER).await) && cache.feed.is_listening()
        })
        .await;
        cache.see_changes_at_once(&key, &format!("by listener {cut}")).await;
    }
}

/// PostgreSQL alone: a file cannot be cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_whoever_needs_it_is_refused_at_once_and_nothing_is_taken_for_unknown() {
    let cache = Cache::new(TestDatabase::new(Engine::Postgres).await, BOUND).await;
    let (world, records) = (&cache.world, &cache.records);
    let (known, unseen) = (world.add_key(|_| {}).await, world.add_key(|_| {}).await);
    let digest = samples::digest_of(&unseen);
    let _follower = follow(&cache);
    assert_eq!(cache.cached(&known).await, ACTIVE);
    world.database.cut_off().await;
    wait_until("the database to count as away", async || world.store.is_away()).await;
    let asked = records.queries();
    let is_refusal = |error: StoreError| matches!(error, StoreError::Unavailable { may_have_happened: false, .. });
    for freshness in [Freshness::Cached, Freshness::Fresh] {
        let key = records.find_key(&digest, freshness).now_or_never().expect("at once");
        assert!(key.is_err_and(is_refusal), "{freshness:?}");
        let organization = records.find_organization(world.acme.id, freshness).now_or_never().expect("at once");
        assert!(organization.is_err_and(is_refusal), "{freshness:?}");
    }
    let begun = world.store.begin().now_or_never().expect("at once");
    assert!(begun.map(drop).is_err_and(is_refusal), "a mutation");
    assert_eq!((records.queries(), records.sizes()), (asked, (1, 0, 0)), "the database was not asked");
    wait_until("the cache to be too old", async || cache.basis() == Freshness::Fresh).await;
    assert_eq!(cache.cached(&known).await, ACTIVE, "it is still there, for when the feed has been heard");

    world.database.let_back().await;
    wait_until("the database to be back", async || !world.store.is_away()).await;
    wait_until("a look-up", async || records.find_key(&digest, Freshness::Cached).await.is_ok()).await;
    assert_eq!((cache.cached(&unseen).await, cache.cached(&known).await), (ACTIVE, ACTIVE));
    assert!(cache.organization().await);
    drop(world.store.begin().await.expect("a mutation begins"));
    wait_until("the cache to be young", async || cache.basis() == Freshness::Cached).await;
    wait_until("the feed to listen", async || cache.feed.is_listening()).await;
    cache.see_changes(&unseen, "after the outage", 3).await;
}

/// On one engine: nothing here asks the database.
#[tokio::test]
async fn work_that_an_outage_left_hanging_is_given_up_and_no_other() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await).await;
    let store = &world.store;
    let ((end_one, one), (end_other, other)) = (oneshot::channel(), oneshot::channel());
    let mut hangs = pin!(store.unless_stuck(future::pending::<()>()));
    let mut ends = pin!(store.unless_stuck(one));
    // Each change of what is known is looked at, as it is where an outage lasts for a moment.
    for away in [false, true, false] {
        store.set_away(away);
        assert!(hangs.as_mut().now_or_never().is_none() && ends.as_mut().now_or_never().is_none(), "{away}");
    }
    let mut later = pin!(store.unless_stuck(other));
    assert!(later.as_mut().now_or_never().is_none());
    end_one.send("before").expect("it waits");
    assert!(matches!(ends.await, Ok(Ok("before"))), "it ended soon enough");
    let given_up = timeout(SOON, hangs).await.expect("it is given up");
    assert!(matches!(given_up, Err(StoreError::Unavailable { may_have_happened: true, .. })), "{given_up:?}");
    assert!(later.as_mut().now_or_never().is_none(), "it began when the database was back");
    end_other.send("after").expect("it waits");
    assert!(matches!(later.await, Ok(Ok("after"))));
}

/// PostgreSQL alone: there is no network before a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_an_outage_of_the_network_swallowed_is_given_up_and_may_have_happened() {
    let world = World::new(TestDatabase::new(Engine::Postgres).await).await;
    let proxy = Proxy::start(world.database.address()).await;
    let far = connect::ConnectOptions { url: world.database.url_through(&proxy), ..options(&world.database) };
    let (store, _lock) = connect::open(&far).await.expect("it opens");
    let cache = Cache::over(world, store.clone(), LONG);
    let _follower = follow(&cache);
    wait_until("the feed to be heard", async || cache.feed.position() == 0).await;

    // Its row is locked, so that it waits when it has been sent to its end.
    let blocked = cache.world.database.connect().await;
    let lock = "BEGIN; SELECT id FROM organizations FOR UPDATE";
    blocked.execute_unprepared(lock).await.expect("locked");
    let mut renamed = cache.world.acme.clone();
    "renamed".clone_into(&mut renamed.name);
    let write = tokio::spawn({
        let store = store.clone();
        async move { store.unless_stuck(organizations::update(store.write(), &renamed)).await.flatten() }
    });
    wait_until("the write to wait", async || cache.world.database.query_i64(WAITING).await == 1).await;
    proxy.set(Fault::Silence);
    blocked.execute_unprepared("ROLLBACK").await.expect("unlocked");
    wait_until("the database to count as away", async || store.is_away()).await;
    // The network is back, and knows nothing of the connections that there were.
    proxy.set(Fault::HalfOpen);
    wait_until("the database to be back", async || !store.is_away()).await;
    let given_up = timeout(SOON, write).await.expect("it is given up").expect("no panic");
    assert!(matches!(given_up, Err(StoreError::Unavailable { may_have_happened: true, .. })), "{given_up:?}");
    let name = "SELECT name FROM organizations";
    assert_eq!(cache.world.database.query_string(name).await, "renamed", "as it did");
    let again = organizations::update(store.write(), &cache.world.acme).await;
    assert!(matches!(again, Ok(true)), "others are served: {again:?}");
}
