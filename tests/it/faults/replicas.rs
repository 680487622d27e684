//! Replicas of the service over one PostgreSQL, each behind a proxy of its own, and what tests of faults ask them:
//! clients that outlive a restart, answers told apart into what the service knows and what it does not, and watches
//! that ask the same over and over while something happens. Knows no single fault.
//! Invariant: an error that does not say in the contract's words that the service does not know, with when to ask
//! again, ends the test, wherever it was the service that answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keystead::proto::v1::key_service_client::KeyServiceClient;
use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, Outcome, RateLimit, UsageStatsRequest, UsageTotals, VerifyKeyRequest,
};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Authorized, Engine, Proxy, Server, Setup, TestDatabase, wait_until};

/// A client that a task can own.
pub type Keys = KeyServiceClient<Authorized>;

/// Arguments that keep outages short: the shortest staleness bound, and the service's usual time for a verification,
/// for which the harness sets a longer one.
pub const HASTY: [&str; 4] = ["--staleness-bound", "2s", "--verify-timeout-ms", "2000"];
/// That bound.
pub const BOUND: Duration = Duration::from_secs(2);

/// Seconds of a window so long that none ends during a test: 400 days.
pub const LONG_S: i64 = 400 * 86_400;

/// The least time between two calls of a watch.
const WATCH_PACE: Duration = Duration::from_millis(40);

/// Why the service may not know: the database is away or slow, or was for so long that nothing can rest on it.
const UNKNOWN: [&str; 3] = ["DATABASE_UNAVAILABLE", "TIMED_OUT", "GROWN_STALE"];

/// How many connections the service has to the database.
const CONNECTED: &str = "SELECT count(*) FROM pg_stat_activity \
                         WHERE datname = current_database() AND application_name LIKE 'keystead%'";

/// Arguments as `Setup` takes them.
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Replicas, from the first on.
pub struct Replicas {
    pub servers: Vec<Server>,
    /// Between each of them and PostgreSQL.
    pub networks: Vec<Proxy>,
    pub database: TestDatabase,
}

impl Replicas {
    /// Starts so many, each with its arguments after `serve`.
    pub async fn start(count: usize, arguments: impl Fn(usize) -> Vec<String>) -> Self {
        let database = TestDatabase::new(Engine::Postgres).await;
        let (mut servers, mut networks) = (Vec::new(), Vec::new());
        for replica in 0..count {
            let network = Proxy::start(database.address()).await;
            let database_url = Some(database.url_through(&network));
            let setup = Setup { database_url, arguments: arguments(replica), ..Setup::default() };
            servers.push(Server::start_with(&database, setup).await);
            networks.push(network);
        }
        Self { servers, networks, database }
    }

    /// Ends all in the orderly way, and waits until the database has none of their connections any more.
    pub async fn stop(&mut self) {
        for server in &self.servers {
            server.sigterm();
        }
        for server in &mut self.servers {
            let status = server.wait_exit().await;
            assert!(status.success(), "after SIGTERM: {status}\n{}", server.log_text());
        }
        wait_until("all statements to end", async || self.database.query_i64(CONNECTED).await == 0).await;
    }

    /// Starts all again that were stopped.
    pub async fn start_again(&mut self) {
        for server in &mut self.servers {
            server.restart().await;
        }
    }
}

/// A client of each replica; a new one once the replica has been started again, on another port.
pub struct Clients(Vec<Mutex<Keys>>);

impl Clients {
    pub fn of(replicas: &Replicas) -> Self {
        Self(replicas.servers.iter().map(|server| Mutex::new(server.keys())).collect())
    }

    /// The present client of a replica.
    pub fn keys(&self, replica: usize) -> Keys {
        lock(&self.0[replica]).clone()
    }

    /// Goes on with the replica's new process.
    pub fn reconnect(&self, replica: usize, server: &Server) {
        *lock(&self.0[replica]) = server.keys();
    }
}

/// What a verification came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Outcome(Outcome),
    /// The service does not know, and says when to ask again.
    Unavailable,
}

/// Verifies, and asserts that what is no outcome says that the service does not know.
pub async fn hear(keys: &mut Keys, request: VerifyKeyRequest) -> Told {
    match keys.verify_key(request).await {
        Ok(answer) => Told::Outcome(answer.into_inner().outcome()),
        Err(status) => {
            expect_unavailable(&status);
            Told::Unavailable
        }
    }
}

/// Asserts that an error says that the service does not know, why, and when to ask again.
pub fn expect_unavailable(status: &Status) {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    assert!(status.code() == Code::Unavailable && UNKNOWN.contains(&reason.as_str()), "{reason}: {status:?}");
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert!(retry.is_some_and(|delay| !delay.is_zero()), "without a RetryInfo: {status:?}");
}

/// Whether an error is the service's own, and not one of a connection that broke.
pub fn is_refusal(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.domain == "keystead")
}

/// An answer, with the moments of its call.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub told: Told,
    /// Taken before the request was sent.
    pub begun: Instant,
    /// Taken after the answer had come.
    pub ended: Instant,
}

/// Asks one replica over and over.
pub struct Watch {
    seen: Arc<Mutex<Vec<Seen>>>,
    over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Asks the same each time.
    pub fn of(server: &Server, request: VerifyKeyRequest) -> Self {
        Self::start(server, move || request.clone())
    }

    /// Asks what `next` gives.
    pub fn start(server: &Server, mut next: impl FnMut() -> VerifyKeyRequest + Send + 'static) -> Self {
        let mut keys = server.keys();
        let (seen, over) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(AtomicBool::new(false)));
        let (all, ended) = (seen.clone(), over.clone());
        let task = tokio::spawn(async move {
            let mut pace = paced(WATCH_PACE);
            while !ended.load(Ordering::SeqCst) {
                pace.tick().await;
                let request = next();
                let begun = Instant::now();
                let told = hear(&mut keys, request).await;
                lock(&all).push(Seen { told, begun, ended: Instant::now() });
            }
        });
        Self { seen, over, task }
    }

    /// Waits until it is told this by a call that begins after this one.
    pub async fn hears(&self, told: Told, what: &str) {
        let since = Instant::now();
        wait_until(&format!("{told:?} of {what}"), async || {
            assert!(!self.task.is_finished(), "an answer that must not be ended the watch of {what}");
            lock(&self.seen).iter().any(|seen| seen.begun > since && seen.told == told)
        })
        .await;
    }

    /// Ends it with the answer that it waits for, and gives all.
    pub async fn end(self) -> Vec<Seen> {
        self.over.store(true, Ordering::SeqCst);
        self.task.await.expect("every answer was one that may be");
        std::mem::take(&mut *lock(&self.seen))
    }
}

/// Creates a key as the admin. Returns the record and the secret.
pub async fn create(server: &Server, request: CreateKeyRequest) -> (ApiKey, String) {
    let answer = server.keys().create_key(request).await.expect("a key is created").into_inner();
    (answer.key.expect("the key"), answer.secret)
}

/// A limit of so many in that window.
pub fn long_limit(limit: i64) -> RateLimit {
    let window = Some(prost_types::Duration { seconds: LONG_S, nanos: 0 });
    RateLimit { name: "long".to_owned(), limit, window, shadow: false }
}

/// The sums of an organization, once each replica has written what waits in its spool.
pub async fn totals(servers: &[Server], organization: &str) -> UsageTotals {
    let subject = Some(Subject::OrganizationId(organization.to_owned()));
    let request = UsageStatsRequest { subject, ..Default::default() };
    let mut totals = None;
    // Each writes what waits in it before it answers, and the last one answers when all have.
    for server in servers {
        wait_until("usage to be written", async || {
            let answer = server.keys().usage_stats(request.clone()).await;
            totals = answer.ok().and_then(|answer| answer.into_inner().totals);
            totals.is_some()
        })
        .await;
    }
    totals.expect("a replica")
}

/// How long a replica may take to come back, on a machine that is busy with other tests.
pub const BACK_WITHIN: Duration = Duration::from_mins(1);

/// Ticks at most that often, however long it takes between two ticks.
pub fn paced(pace: Duration) -> Interval {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
