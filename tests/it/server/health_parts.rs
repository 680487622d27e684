//! What health, `/readyz`, the metrics and the log say while the database or Redis is away, for each of them by its
//! name: calls may do without either for a while, so the whole goes on SERVING.

use std::net::SocketAddr;

use keystead::proto::v1::{CreateKeyRequest, Environment, Outcome, RateLimit};
use prost_types::Duration;
use tonic_health::pb::health_check_response::ServingStatus;

use super::metrics::{get, value};
use super::told_of;
use crate::callers::requests::verifying;
use crate::harness::{Engine, Fault, Proxy, Server, Setup, TestDatabase, create_organization, redis, wait_until};

const DATABASE: &str = "keystead.database";
const LIMITS: &str = "keystead.limits";

/// A server with a network of its own between it and each of its parts.
struct Behind {
    server: Server,
    database: Proxy,
    /// Of limits that are counted in Redis.
    redis: Option<Proxy>,
    _database: TestDatabase,
}

impl Behind {
    async fn start(with_redis: bool) -> Self {
        let behind = Self::launch(with_redis, Fault::None).await;
        wait_until("both parts to be there", async || behind.parts().await == (true, true)).await;
        assert_eq!(behind.ready().await, (200, "ready\n".to_owned()));
        behind
    }

    /// One that waits until it listens alone, with this fault before its database.
    async fn launch(with_redis: bool, fault: Fault) -> Self {
        let test_database = TestDatabase::new(Engine::Postgres).await;
        let database = Proxy::start(test_database.address()).await;
        let mut arguments = ["--metrics-listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
        let redis = if with_redis { Some(Proxy::start(redis().await.address()).await) } else { None };
        if let Some(proxy) = &redis {
            arguments.extend(["--redis-url".to_owned(), format!("redis://{}", proxy.address())]);
        }
        database.set(fault);
        let database_url = Some(test_database.url_through(&database));
        let mut server = Server::launch_with(&test_database, Setup { database_url, arguments, ..Setup::default() });
        if fault == Fault::None {
            server.wait_until_serving().await;
        } else {
            server.wait_until_listening().await;
        }
        Self { server, database, redis, _database: test_database }
    }

    async fn is_there(&self, part: &str) -> bool {
        self.server.health(part).await == Some(ServingStatus::Serving)
    }

    /// Whether database and limits are there, as health says.
    async fn parts(&self) -> (bool, bool) {
        (self.is_there(DATABASE).await, self.is_there(LIMITS).await)
    }

    /// Whether the whole and every service is there.
    async fn serves(&self) -> bool {
        for service in told_of() {
            if !self.is_there(&service).await {
                return false;
            }
        }
        true
    }

    fn metrics_address(&self) -> SocketAddr {
        self.server.metrics_address()
    }

    async fn ready(&self) -> (u16, String) {
        get(self.metrics_address(), "/readyz").await
    }

    async fn metric(&self, name: &str) -> Option<f64> {
        value(&get(self.metrics_address(), "/metrics").await.1, name)
    }

    /// Waits until a line was logged so many times.
    async fn has_logged(&self, line: &str, times: usize) {
        wait_until("the log to say so", async || self.server.log_text().matches(line).count() == times).await;
    }

    /// The secret of a key with a limit that nothing here reaches.
    async fn limited_key(&self) -> String {
        let window = Some(Duration { seconds: 3600, nanos: 0 });
        let rate_limits = vec![RateLimit { name: "wide".to_owned(), limit: 1_000_000, window, shadow: false }];
        let new = CreateKeyRequest {
            organization_id: create_organization(&self.server, "acme").await.id,
            name: "limited".to_owned(),
            environment: Environment::Live.into(),
            rate_limits,
            ..Default::default()
        };
        self.server.keys().create_key(new).await.expect("a key").into_inner().secret
    }

    async fn is_valid(&self, secret: &str) -> bool {
        let answer = self.server.keys().verify_key(verifying(secret)).await;
        answer.is_ok_and(|answer| answer.into_inner().outcome() == Outcome::Valid)
    }
}

#[tokio::test]
async fn while_redis_is_away_the_limits_are_degraded_and_nothing_else() {
    const AWAY: &str = "Redis does not answer: rate limits go on with this replica's share";
    const BACK: &str = "Redis answers again";
    let behind = Behind::start(true).await;
    let redis = behind.redis.as_ref().expect("a network to Redis");
    let secret = behind.limited_key().await;
    assert!(behind.is_valid(&secret).await);
    assert_eq!(behind.metric("keystead_limiter_degraded").await, Some(0.0));
    behind.has_logged(AWAY, 0).await;
    for outage in 1..=2 {
        redis.set(Fault::Cut);
        wait_until("the limits to be degraded", async || {
            assert!(behind.is_valid(&secret).await, "no verification notices");
            !behind.is_there(LIMITS).await
        })
        .await;
        assert_eq!(behind.parts().await, (true, false));
        assert!(behind.serves().await);
        assert_eq!(behind.ready().await, (200, "ready\nlimits: degraded\n".to_owned()));
        assert_eq!(behind.metric("keystead_limiter_degraded").await, Some(1.0));
        behind.has_logged(AWAY, outage).await;
        redis.set(Fault::None);
        wait_until("the limits to be back", async || behind.is_there(LIMITS).await).await;
        assert_eq!(behind.ready().await, (200, "ready\n".to_owned()));
        assert_eq!(behind.metric("keystead_limiter_degraded").await, Some(0.0));
        behind.has_logged(BACK, outage).await;
        assert!(behind.is_valid(&secret).await);
    }
}

#[tokio::test]
async fn while_the_database_is_away_health_says_so_and_the_whole_goes_on() {
    const AWAY: &str = "the change feed cannot be read";
    const BACK: &str = "the change feed answers again";
    const AGE: &str = "keystead_feed_age_seconds";
    let behind = Behind::start(true).await;
    assert_eq!(behind.metric("keystead_database_away").await, Some(0.0));
    behind.has_logged(AWAY, 0).await;
    for outage in 1..=2 {
        behind.database.set(Fault::Cut);
        wait_until("the database to be away", async || !behind.is_there(DATABASE).await).await;
        assert_eq!(behind.parts().await, (false, true));
        assert!(behind.serves().await);
        assert_eq!(behind.ready().await, (200, "ready\ndatabase: away\n".to_owned()));
        assert_eq!(behind.metric("keystead_database_away").await, Some(1.0));
        behind.has_logged(AWAY, outage).await;
        wait_until("the age to grow", async || behind.metric(AGE).await > Some(6.0)).await;
        behind.database.set(Fault::None);
        wait_until("the database to be back", async || behind.is_there(DATABASE).await).await;
        assert_eq!(behind.ready().await, (200, "ready\n".to_owned()));
        assert_eq!(behind.metric("keystead_database_away").await, Some(0.0));
        behind.has_logged(BACK, outage).await;
        wait_until("the age to be small", async || behind.metric(AGE).await < Some(2.0)).await;
    }
}

#[tokio::test]
async fn where_the_database_counts_the_limits_they_are_degraded_while_it_is_away() {
    let behind = Behind::start(false).await;
    let secret = behind.limited_key().await;
    assert!(behind.is_valid(&secret).await);
    behind.database.set(Fault::Silence);
    wait_until("both parts to be away", async || {
        // From the cache, as long as it may be; what is answered does not matter here.
        let _ = behind.is_valid(&secret).await;
        behind.parts().await == (false, false)
    })
    .await;
    assert!(behind.serves().await);
    assert_eq!(behind.ready().await, (200, "ready\ndatabase: away\nlimits: degraded\n".to_owned()));
    behind.database.set(Fault::None);
    wait_until("both parts to be back", async || behind.parts().await == (true, true)).await;
    assert_eq!(behind.ready().await, (200, "ready\n".to_owned()));
    wait_until("the key to be valid", async || behind.is_valid(&secret).await).await;
}

#[tokio::test]
async fn before_the_database_has_answered_no_part_is_there() {
    let mut behind = Behind::launch(true, Fault::Silence).await;
    assert_eq!((behind.parts().await, behind.serves().await), ((false, false), false));
    assert_eq!(behind.ready().await.0, 503);
    behind.database.set(Fault::None);
    behind.server.wait_until_serving().await;
    wait_until("both parts to be there", async || behind.parts().await == (true, true)).await;
}
