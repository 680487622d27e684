//! Rate limits that three replicas share: clients on all of them at once are admitted exactly as often as the limit
//! says, over one Redis, over a cluster, and over the database where there is no Redis; and whoever is over a limit
//! costs Redis nothing. `away` takes Redis away.
//! Exactness is shown by rounds in which every answer came within the budget of a charge: a charge that outlasts it is
//! counted by its replica alone, which is `away`'s subject. The windows are so long that none ends during a test.

mod away;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keystead::limits::redis::BUDGET;
use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, CreateOrganizationRequest, Outcome, VerifyKeyRequest, VerifyKeyResponse,
};
use tokio::task::JoinSet;
use tonic_health::pb::health_check_response::ServingStatus;

use super::history::REPLICAS;
use super::replicas::{HASTY, Keys, Replicas, create, long_limit, words};
use crate::callers::requests::{creating, issuing, verifying};
use crate::harness::redis::ask;
use crate::harness::{OwnRedis, RedisCluster, Server, create_organization, wait_until};

/// Clients of each replica.
const CLIENTS: usize = 2;
/// What the limits of the rounds admit.
const LIMIT: i64 = 150;
/// Rounds without a slow answer, for each kind of limit.
const ROUNDS: usize = 2;
/// The budget of a charge to counters in the database (`src/limits/table.rs`).
const TABLE_BUDGET: Duration = Duration::from_millis(500);
/// What health calls the shared counters.
const LIMITS: &str = "keystead.limits";
/// The line of a replica that counts alone from now on.
const ALONE: &str = "does not answer: rate limits go on with this replica's share";

/// Replicas that share their limits.
struct Sharing {
    replicas: Replicas,
    organization: String,
    organizations: AtomicUsize,
}

/// What became of clients that used a limit up.
#[derive(Debug, Default)]
struct Round {
    /// By replica.
    admitted: [i64; REPLICAS],
    slowest: Duration,
}

impl Round {
    fn sum(&self) -> i64 {
        self.admitted.iter().sum()
    }
}

impl Sharing {
    /// Starts replicas with these arguments each, and waits until they have reached the shared counters.
    async fn start(arguments: impl Fn(usize) -> Vec<String>) -> Self {
        let replicas = Replicas::start(REPLICAS, |replica| [words(&HASTY), arguments(replica)].concat()).await;
        for server in &replicas.servers {
            wait_until("the shared counters", async || server.health(LIMITS).await == Some(ServingStatus::Serving))
                .await;
        }
        let organization = create_organization(&replicas.servers[0], "acme").await.id;
        Self { replicas, organization, organizations: AtomicUsize::new(0) }
    }

    /// The same with counters in the Redis of this URL.
    async fn over(redis_url: &str) -> Self {
        Self::start(|_| words(&["--redis-url", redis_url])).await
    }

    fn servers(&self) -> &[Server] {
        &self.replicas.servers
    }

    /// A new key with a limit.
    async fn limited_key(&self, limit: i64) -> (ApiKey, String) {
        let rate_limits = vec![long_limit(limit)];
        create(&self.servers()[0], CreateKeyRequest { rate_limits, ..issuing(&self.organization, &[]) }).await
    }

    /// The secrets of some new keys of a new organization with a limit.
    async fn keys_of_limited_organization(&self, limit: i64) -> Vec<String> {
        let slug = format!("limited-{}", self.organizations.fetch_add(1, Ordering::Relaxed));
        let request = CreateOrganizationRequest { rate_limits: vec![long_limit(limit)], ..creating(&slug) };
        let answer = self.servers()[0].organizations().create_organization(request).await;
        let organization = answer.expect("an organization").into_inner().organization.expect("the organization");
        let mut secrets = Vec::new();
        for _ in 0..REPLICAS {
            secrets.push(create(&self.servers()[0], issuing(&organization.id, &[])).await.1);
        }
        secrets
    }

    /// How often replicas have begun to count alone.
    fn times_alone(&self) -> usize {
        self.servers().iter().map(|server| server.log_text().matches(ALONE).count()).sum()
    }

    /// Has limits used up, each a new one, and asserts that exactly so many calls were admitted in each round in which
    /// every answer came within the budget of a charge.
    async fn admits_exactly(&self, rounds: usize, budget: Duration, new_limit: impl AsyncFn() -> Vec<String>) {
        let mut shown = 0;
        wait_until("rounds without an answer slower than a charge may be", async || {
            let secrets = new_limit().await;
            for server in self.servers() {
                for secret in &secrets {
                    // So that no call waits for the database to say what the key is.
                    peek(server, secret).await;
                }
            }
            let alone_before = self.times_alone();
            let round = use_up(self.servers(), &secrets).await;
            if round.slowest < budget && self.times_alone() == alone_before {
                assert_eq!(round.sum(), LIMIT, "{round:?}");
                shown += 1;
            }
            shown >= rounds
        })
        .await;
    }

    /// The same for a key's limit, and for an organization's over several keys.
    async fn admits_exactly_of_both_kinds(&self, budget: Duration) {
        self.admits_exactly(ROUNDS, budget, async || vec![self.limited_key(LIMIT).await.1]).await;
        self.admits_exactly(ROUNDS, budget, async || self.keys_of_limited_organization(LIMIT).await).await;
    }
}

/// Verifies these keys on all replicas at once, until each client is told that the limit is reached.
async fn use_up(servers: &[Server], secrets: &[String]) -> Round {
    let mut clients = JoinSet::new();
    for (replica, server) in servers.iter().enumerate() {
        for client in 0..CLIENTS {
            let secret = secrets[(replica + client) % secrets.len()].clone();
            clients.spawn(use_up_alone(replica, server.keys(), secret));
        }
    }
    let mut round = Round::default();
    for (replica, admitted, slowest) in clients.join_all().await {
        round.admitted[replica] += admitted;
        round.slowest = round.slowest.max(slowest);
    }
    round
}

/// One client: its replica, how often it was admitted, and its slowest answer. An answer that took longer than the
/// service's own time, 2 s here, would be an error, and no error may come of limits.
async fn use_up_alone(replica: usize, mut keys: Keys, secret: String) -> (usize, i64, Duration) {
    let (mut admitted, mut slowest) = (0, Duration::ZERO);
    loop {
        let begun = Instant::now();
        let answer = keys.verify_key(verifying(&secret)).await.expect("limits never keep an answer from coming");
        slowest = slowest.max(begun.elapsed());
        let outcome = answer.into_inner().outcome();
        if outcome != Outcome::Valid {
            assert_eq!(outcome, Outcome::RateLimited);
            return (replica, admitted, slowest);
        }
        admitted += 1;
        assert!(admitted <= 2 * LIMIT, "the limit has no end");
    }
}

/// Looks where the limits of a key stand, and charges nothing.
async fn peek(server: &Server, secret: &str) -> VerifyKeyResponse {
    let request = VerifyKeyRequest { cost: Some(0), ..verifying(secret) };
    server.keys().verify_key(request).await.expect("a look is always answered").into_inner()
}

/// How many scripts a Redis has run.
async fn scripts_run(redis: SocketAddr) -> i64 {
    let stats = ask(redis, &["INFO", "commandstats"]).await.expect("statistics");
    let calls = |line: &str| {
        let (_, calls) = line.strip_prefix("cmdstat_eval")?.split_once(":calls=")?;
        calls.split(',').next()?.parse::<i64>().ok()
    };
    stats.lines().filter_map(calls).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_over_one_redis_admit_exactly_the_limit() {
    let redis = OwnRedis::start().await;
    let sharing = Sharing::over(&redis.url()).await;
    sharing.admits_exactly_of_both_kinds(BUDGET).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_over_a_redis_cluster_admit_exactly_the_limit() {
    let cluster = RedisCluster::start().await;
    let sharing = Sharing::over(&cluster.url()).await;
    sharing.admits_exactly_of_both_kinds(BUDGET).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_over_the_database_alone_admit_exactly_the_limit() {
    let sharing = Sharing::start(|_| Vec::new()).await;
    sharing.admits_exactly_of_both_kinds(TABLE_BUDGET).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_over_a_limit_costs_redis_nothing() {
    const DENIALS: i64 = 200;
    let redis = OwnRedis::start().await;
    let sharing = Sharing::over(&redis.url()).await;
    let (_, secret) = sharing.limited_key(LIMIT).await;
    let charging = scripts_run(redis.address()).await;
    use_up(sharing.servers(), std::slice::from_ref(&secret)).await;
    let (before, begun) = (scripts_run(redis.address()).await, Instant::now());
    assert!(before - charging >= LIMIT / 2, "a charge is a script: {charging}, {before}");
    for server in sharing.servers() {
        let mut keys = server.keys();
        for _ in 0..DENIALS {
            let answer = keys.verify_key(verifying(&secret)).await.expect("an answer").into_inner();
            assert_eq!(answer.outcome(), Outcome::RateLimited);
        }
    }
    let run = scripts_run(redis.address()).await - before;
    // What was seen denies for 5 s. A replica that was kept waiting for its last charges may not have seen yet that the
    // limit is reached.
    let replicas = sharing.servers().len() as u64;
    let most = i64::try_from(replicas * (3 + begun.elapsed().as_secs() / 5)).expect("few");
    assert!(run <= most, "{run} scripts for {DENIALS} denials on each replica, {most} at most");
}
