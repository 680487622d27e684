//! Redis away: halted, silent, slower than the budget of a charge, cut off, or killed and back with nothing in it. Each
//! replica goes on with its share and says so, no call ends in an error, and all together admit no more than the limit
//! and one share. When Redis is back it is told what was charged alone, so that a Redis that has lost its data does not
//! admit the limit once more either.
//! Invariant: nothing is taken away before every replica knows how many there are, and has seen all that was charged.

use std::collections::BTreeSet;
use std::time::Duration;

use keystead::limits::redis::BUDGET;
use keystead::proto::v1::{ApiKey, Outcome};
use tonic_health::pb::health_check_response::ServingStatus;

use super::{ALONE, LIMITS, Sharing, peek, use_up};
use crate::faults::history::REPLICAS;
use crate::faults::replicas::{LONG_S, words};
use crate::harness::redis::ask;
use crate::harness::{Fault, OwnRedis, Proxy, verify, wait_until};
use crate::server::metrics::{get, value};

/// What the limits of these tests admit: enough for each replica to notice by its charges that Redis is away.
const LIMIT: i64 = 30;
/// A replica's share of it.
const SHARE: i64 = 10;
/// What is charged on each replica before.
const CHARGED_BEFORE: usize = 2;
/// The line of a replica that has found Redis again.
const BACK: &str = "Redis answers again";

/// How Redis is taken away.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Halted,
    Network(Fault),
    /// When it is back it knows nothing.
    Killed,
}

/// One after the other; the slow one takes several times the budget of a charge.
const OUTAGES: [Outage; 5] = [
    Outage::Halted,
    Outage::Network(Fault::Silence),
    Outage::Network(Fault::Delay(Duration::from_millis(300))),
    Outage::Network(Fault::Cut),
    Outage::Killed,
];

/// Replicas, and the Redis that they share.
struct Case {
    sharing: Sharing,
    /// Between each replica and Redis.
    networks: Vec<Proxy>,
    redis: OwnRedis,
}

impl Case {
    async fn start() -> Self {
        let redis = OwnRedis::start().await;
        let mut networks = Vec::new();
        for _ in 0..REPLICAS {
            networks.push(Proxy::start(redis.address()).await);
        }
        let sharing = Sharing::start(|replica| {
            let url = format!("redis://{}", networks[replica].address());
            words(&["--redis-url", &url, "--metrics-listen", "127.0.0.1:0"])
        })
        .await;
        let case = Self { sharing, networks, redis };
        wait_until("each replica to know of all", async || case.all_show("keystead_replicas_live", 3.0).await).await;
        case
    }

    /// Whether each replica's page of metrics shows this.
    async fn all_show(&self, metric: &str, wanted: f64) -> bool {
        for server in self.sharing.servers() {
            let (_, page) = get(server.metrics_address(), "/metrics").await;
            if value(&page, metric) != Some(wanted) {
                return false;
            }
        }
        true
    }

    fn set_networks(&self, fault: Fault) {
        for network in &self.networks {
            network.set(fault);
        }
    }

    fn begin(&mut self, outage: Outage) {
        match outage {
            Outage::Halted => self.redis.pause(),
            Outage::Network(fault) => self.set_networks(fault),
            Outage::Killed => self.redis.kill9(),
        }
    }

    async fn end(&mut self, outage: Outage) {
        match outage {
            Outage::Halted => self.redis.resume(),
            Outage::Network(_) => self.set_networks(Fault::None),
            Outage::Killed => self.redis.start_again().await,
        }
    }

    /// Charges a little on every replica, and waits until each has seen it all; gives how much it was.
    async fn charge_before(&self, secret: &str) -> i64 {
        let mut charged = 0;
        for server in self.sharing.servers() {
            for _ in 0..CHARGED_BEFORE {
                assert_eq!(verify(server, secret).await.outcome(), Outcome::Valid);
                charged += 1;
            }
        }
        wait_until("each replica to have seen all charges", async || {
            let mut remaining = BTreeSet::new();
            for server in self.sharing.servers() {
                remaining.insert(peek(server, secret).await.rate_limits[0].remaining);
            }
            remaining.len() == 1 && remaining.iter().all(|left| *left <= LIMIT - charged)
        })
        .await;
        charged
    }

    /// How often each replica has written these words.
    fn lines(&self, words: &str) -> Vec<usize> {
        self.sharing.servers().iter().map(|server| server.log_text().matches(words).count()).collect()
    }

    /// Waits until each replica says in every place that it counts alone, and makes sure that it serves.
    async fn says_that_it_is_away(&self) {
        for server in self.sharing.servers() {
            let away = async || server.health(LIMITS).await == Some(ServingStatus::NotServing);
            wait_until("health to tell that Redis is away", away).await;
            assert_eq!(server.health("").await, Some(ServingStatus::Serving), "the whole serves");
            let (status, body) = get(server.metrics_address(), "/readyz").await;
            assert!(status == 200 && body.contains("limits: degraded\n"), "{status}: {body}");
        }
        assert!(self.all_show("keystead_limiter_degraded", 1.0).await, "and the metric");
    }

    async fn says_that_it_is_back(&self) {
        for server in self.sharing.servers() {
            let back = async || server.health(LIMITS).await == Some(ServingStatus::Serving);
            wait_until("health to tell that Redis is back", back).await;
            let (status, body) = get(server.metrics_address(), "/readyz").await;
            assert!(status == 200 && !body.contains("limits"), "{status}: {body}");
        }
        assert!(self.all_show("keystead_limiter_degraded", 0.0).await, "and the metric");
    }

    /// What Redis holds of a key's limit, see `src/limits/redis.rs`: the start of the window, its count, and the count
    /// of the window before.
    async fn count_in_redis(&self, key: &ApiKey) -> Option<i64> {
        let window_us = LONG_S * 1_000_000;
        let counter = format!("keystead:{{{}}}:{}:long:{window_us}", key.organization_id, key.id);
        let counts = ask(self.redis.address(), &["GET", &counter]).await.ok()?;
        counts.split(' ').nth(1)?.parse().ok()
    }

    /// Waits until Redis knows of so many charges, while each replica looks at the limit, by which it tells its own.
    async fn is_known(&self, key: &ApiKey, secret: &str, charged: i64) {
        wait_until("Redis to know what was charged", async || {
            for server in self.sharing.servers() {
                peek(server, secret).await;
            }
            self.count_in_redis(key).await >= Some(charged)
        })
        .await;
    }

    /// Takes Redis away and brings it back, while a limit is used up.
    async fn go_through(&mut self, outage: Outage) {
        let (key, secret) = self.sharing.limited_key(LIMIT).await;
        let secrets = [secret];
        let before = self.charge_before(&secrets[0]).await;
        let lines_before = (self.lines(ALONE), self.lines(BACK));

        self.begin(outage);
        let away = use_up(self.sharing.servers(), &secrets).await;
        assert!(away.sum() <= LIMIT + SHARE, "{outage:?}: {away:?}");
        assert!(
            away.admitted.iter().all(|admitted| *admitted > 0),
            "each goes on with its share: {outage:?}: {away:?}"
        );
        self.says_that_it_is_away().await;
        self.end(outage).await;
        self.says_that_it_is_back().await;
        let lines = (self.lines(ALONE), self.lines(BACK));
        let told = |now: &[usize], then: &[usize]| now.iter().zip(then).all(|(now, then)| now > then);
        assert!(told(&lines.0, &lines_before.0) && told(&lines.1, &lines_before.1), "{outage:?} is in each log");

        self.is_known(&key, &secrets[0], before + away.sum()).await;
        let after = use_up(self.sharing.servers(), &secrets).await;
        let all = before + away.sum() + after.sum();
        eprintln!("Redis {outage:?}: {before} admitted before, {:?} alone, {:?} after", away.admitted, after.admitted);
        assert!(all <= LIMIT + SHARE, "{outage:?}: {all} of {LIMIT} were admitted");
        self.sharing.admits_exactly(1, BUDGET, async || vec![self.sharing.limited_key(super::LIMIT).await.1]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_replicas_admit_the_limit_and_a_share_at_most_and_all_returns_with_it() {
    let mut case = Case::start().await;
    for outage in OUTAGES {
        case.go_through(outage).await;
    }
}
