//! What the page's commands show of connections, and of a database or a Redis that is away: each replica says by itself
//! what it misses, and says so no longer when it is back.

use keystead::proto::v1::{CreateKeyRequest, Environment, Outcome, RateLimit};
use tonic_health::pb::health_check_response::ServingStatus;

use super::Replicas;
use crate::harness::{Engine, Fault, OwnRedis, Proxy, TestDatabase, create_organization, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_away_shows_on_every_replica_and_ends_no_key() {
    let mut redis = OwnRedis::start().await;
    let database = TestDatabase::new(Engine::Postgres).await;
    let urls = [database.url.clone(), database.url.clone()];
    let replicas = Replicas::start_on(database, urls, &["--redis-url", &redis.url()]).await;
    let request = CreateKeyRequest {
        organization_id: create_organization(replicas.first(), "acme").await.id,
        name: "limited".to_owned(),
        environment: Environment::Live.into(),
        rate_limits: vec![RateLimit {
            name: "calls".to_owned(),
            limit: 1_000_000,
            window: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
            shadow: false,
        }],
        ..Default::default()
    };
    let secret = replicas.first().keys().create_key(request).await.expect("a key").into_inner().secret;
    let degraded = |printed: &str, value: u8| {
        let line = format!("keystead_limiter_degraded {value}");
        printed.lines().filter(|printed| **printed == line).count() == replicas.servers.len()
    };
    let with_redis = || {
        let printed = replicas.shell.run(&["limits-state"]);
        degraded(&printed, 0) && printed.ends_with("\nSERVING\n")
    };
    wait_until("both to charge in Redis", async || with_redis()).await;

    redis.kill9();
    wait_until("both to count alone", async || {
        replicas.all_say(&secret, Outcome::Valid).await;
        let printed = replicas.shell.run(&["limits-state"]);
        degraded(&printed, 1) && printed.ends_with("NOT_SERVING\nthis replica counts alone\n")
    })
    .await;
    assert_eq!(replicas.shell.run(&["state"]).matches("ready\nlimits: degraded\n").count(), 2);
    for server in &replicas.servers {
        assert_eq!(server.health("").await, Some(ServingStatus::Serving));
        assert!(server.log_text().contains("Redis does not answer"), "{}", server.log_text());
    }

    redis.start_again().await;
    wait_until("both to charge in Redis again", async || with_redis()).await;
    replicas.all_say(&secret, Outcome::Valid).await;
    assert!(!replicas.shell.run(&["state"]).contains("degraded"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_shows_on_the_replica_that_lost_it() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let proxy = Proxy::start(database.address()).await;
    let urls = [database.url.clone(), database.url_through(&proxy)];
    let replicas = Replicas::start_on(database, urls, &[]).await;
    let away = format!("{}\nready\ndatabase: away\n", replicas.servers[1].metrics_address());
    assert!(!replicas.shell.run(&["state"]).contains("away"));
    proxy.set(Fault::Cut);
    wait_until("the page to name it", async || replicas.shell.run(&["state"]).contains(&away)).await;
    assert!(replicas.shell.run(&["state"]).contains(&format!("{}\nready\n", replicas.first().metrics_address())));
    assert_eq!(replicas.servers[1].health("").await, Some(ServingStatus::Serving));
    assert_eq!(replicas.first().health("keystead.database").await, Some(ServingStatus::Serving));
    proxy.set(Fault::None);
    replicas.all_say_of_the_database(ServingStatus::Serving).await;
    wait_until("the page to name nobody", async || !replicas.shell.run(&["state"]).contains("away")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_no_more_than_the_page_counts_on_and_their_timeouts_can_stand_on_the_role() {
    let replicas = Replicas::start().await;
    let count = |printed: &str, name: &str| -> usize {
        let rows = printed.lines().filter_map(|line| line.split_once('|')).filter(|(first, _)| first.trim() == name);
        rows.map(|(_, count)| count.trim().parse::<usize>().expect("a number")).sum()
    };
    wait_until("both to listen", async || count(&replicas.shell.run(&["connections"]), "keystead-listen") == 2).await;
    let printed = replicas.shell.run(&["connections"]);
    assert!((2..=2 * 20).contains(&count(&printed, "keystead")), "{printed}");

    replicas.shell.run(&["pooler-timeouts"]);
    assert_eq!(replicas.database.query_string("SHOW lock_timeout").await, "5s");
    assert_eq!(replicas.database.query_string("SHOW statement_timeout").await, "30s");
    assert_eq!(replicas.database.query_string("SHOW idle_in_transaction_session_timeout").await, "3s");
}
