//! The promise on revocations over three replicas, kept while parts fail: three real servers over one PostgreSQL, each
//! behind a proxy of its own, clients on all of them (`clients`), and the checker of `history` over every answer.
//! A case is one fault, always of the same replica; the others must not notice. Each makes sure that it shows much:
//! enough revocations, and enough answers of both kinds, of every replica, while the fault lasts or after it.
//! One case switches the safeguard off, and the checker has to find it.

mod clients;

use std::time::{Duration, Instant};

use keystead::clock::Clock;
use tonic::Code;

use self::clients::Load;
use super::history::{Counts, History, REPLICAS, Rule, Via};
use crate::harness::{Engine, FakeClock, Fault, Proxy, Server, Setup, TestDatabase, create_key, wait_until};

/// The staleness bound of the service and of the checker: the shortest that can be set.
const BOUND: Duration = Duration::from_secs(2);
const BOUND_FLAG: &str = "2s";
/// As good as none.
const BOUND_FLAG_OFF: &str = "60m";
/// The replica that a fault befalls.
const FAULTY: usize = 2;
/// Acknowledged revocations in each case.
const REVOCATIONS_MIN: usize = 200;
/// Of those, while a fault lasts.
const REVOCATIONS_DURING_MIN: usize = 60;
/// Answers of each kind, of every replica that can answer.
const ANSWERS_MIN: usize = 40;
/// How long a replica stands still.
const STOPPED: Duration = Duration::from_secs(10);

const CUT_LISTENERS: &str = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity \
                             WHERE application_name = 'keystead-listen' AND datname = current_database()";

/// Errors that claim to know something. A fault may lead to none of them.
const CERTAIN: [Code; 5] =
    [Code::NotFound, Code::Unauthenticated, Code::PermissionDenied, Code::FailedPrecondition, Code::InvalidArgument];

/// Three replicas and their clients.
struct Case {
    load: Load,
    servers: Vec<Server>,
    proxies: Vec<Proxy>,
    database: TestDatabase,
}

impl Case {
    async fn start() -> Self {
        Self::start_on(TestDatabase::new(Engine::Postgres).await, BOUND_FLAG, &[]).await
    }

    /// The same with another bound and another environment for the replica that the fault befalls.
    async fn start_on(database: TestDatabase, bound: &str, environment: &[(String, String)]) -> Self {
        let (mut servers, mut proxies) = (Vec::new(), Vec::new());
        for replica in 0..REPLICAS {
            let proxy = Proxy::start(database.address()).await;
            let (bound, environment) =
                if replica == FAULTY { (bound, environment.to_vec()) } else { (BOUND_FLAG, Vec::new()) };
            let setup = Setup {
                database_url: Some(database.url_through(&proxy)),
                environment,
                // What the harness sets for the others, 8 s, is longer than a fault lasts here.
                arguments: ["--staleness-bound", bound, "--verify-timeout-ms", "2000"].map(str::to_owned).to_vec(),
                ..Setup::default()
            };
            servers.push(Server::start_with(&database, setup).await);
            proxies.push(proxy);
        }
        let load = Load::start(&database, &servers).await;
        let case = Self { load, servers, proxies, database };
        case.goes_on("the first keys to be verified and revoked").await;
        case
    }

    /// Waits until revocations have gone on, and every replica has said VALID and REVOKED, often enough from now on.
    async fn goes_on(&self, what: &str) {
        let before = self.load.counts();
        wait_until(what, async || {
            let since = self.load.counts().since(&before);
            since.revoked >= REVOCATIONS_DURING_MIN / 2 && (0..REPLICAS).all(|replica| says_both(&since, replica))
        })
        .await;
    }

    /// Waits until a fault that begins now has lasted well beyond the bound, while the others went on as ever, and the
    /// replica that it befalls has answered so many errors.
    async fn lasts(&self, what: &str, errors_min: usize) {
        let (before, begun) = (self.load.counts(), Instant::now());
        wait_until(what, async || {
            let since = self.load.counts().since(&before);
            begun.elapsed() > 3 * BOUND
                && since.revoked >= REVOCATIONS_DURING_MIN
                && since.replicas[FAULTY].errors >= errors_min
                && (0..REPLICAS).filter(|replica| *replica != FAULTY).all(|replica| says_both(&since, replica))
        })
        .await;
    }

    /// Ends the clients once there were enough revocations, and gives what all were told.
    async fn finish(self, name: &str) -> History {
        let enough = async || self.load.counts().revoked >= REVOCATIONS_MIN;
        wait_until("enough revocations", enough).await;
        let history = self.load.end().await;
        eprintln!("revocations under {name}: {}; errors: {:?}", history.counts(), history.errors());
        history
    }
}

fn says_both(since: &Counts, replica: usize) -> bool {
    let told = &since.replicas[replica];
    told.valid >= ANSWERS_MIN && told.revoked >= ANSWERS_MIN
}

/// Asserts that the promise was kept, and that no answer was one that nothing here can lead to.
fn assert_kept(history: &History) {
    let violations = history.violations(BOUND);
    let shown: Vec<String> = violations.iter().take(5).map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{} violations, such as {shown:#?}", violations.len());
    let counts = history.counts();
    assert!(counts.revoked >= REVOCATIONS_MIN && counts.reactivated > 0, "{counts}");
    assert!(counts.replicas.iter().all(|told| told.otherwise_denied == 0), "{counts}");
    let errors = history.errors();
    assert!(CERTAIN.iter().all(|code| !errors.contains_key(code)), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_on_all_replicas_under_load() {
    let case = Case::start().await;
    let history = case.finish("load alone").await;
    assert_kept(&history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_while_the_listeners_are_cut_over_and_over() {
    let case = Case::start().await;
    let (before, mut cut) = (case.load.counts(), 0);
    wait_until("revocations without listeners", async || {
        cut += case.database.query_i64(CUT_LISTENERS).await;
        let since = case.load.counts().since(&before);
        let told = (0..REPLICAS).all(|replica| says_both(&since, replica));
        cut >= 10 && since.revoked >= REVOCATIONS_MIN && told
    })
    .await;
    let history = case.finish("cut listeners").await;
    assert_kept(&history);
}

/// Lets a fault befall the proxy of one replica for longer than the bound, and ends it. The replica answers at least
/// `errors_min` errors meanwhile.
async fn without_a_database(name: &str, fault: Fault, bound: &str, errors_min: usize) -> History {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut case = Case::start_on(database, bound, &[]).await;
    case.load.watch_living(FAULTY).await;
    case.proxies[FAULTY].set(fault);
    case.lasts("the fault to last, and the others to go on", errors_min).await;
    if bound == BOUND_FLAG_OFF {
        wait_until("an answer that the bound would have kept back", async || case.load.violations(BOUND) > 0).await;
    }
    if fault == Fault::HalfOpen {
        // What is new works: it comes back by itself.
        case.goes_on("the replica to come back on new connections").await;
    }
    case.proxies[FAULTY].set(Fault::None);
    case.goes_on("the replica to come back").await;
    case.finish(name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_on_a_replica_whose_database_is_cut() {
    let history = without_a_database("a cut database", Fault::Cut, BOUND_FLAG, ANSWERS_MIN).await;
    assert_kept(&history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_on_a_replica_whose_database_is_silent() {
    let history = without_a_database("a silent database", Fault::Silence, BOUND_FLAG, 10).await;
    assert_kept(&history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_on_a_replica_whose_connections_are_half_open() {
    let history = without_a_database("half-open connections", Fault::HalfOpen, BOUND_FLAG, 0).await;
    assert_kept(&history);
}

/// The safeguard is the bound; this is the case of the silent database without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_finds_a_replica_whose_bound_is_switched_off() {
    let history = without_a_database("a silent database and no bound", Fault::Silence, BOUND_FLAG_OFF, 10).await;
    let violations = history.violations(BOUND);
    assert!(!violations.is_empty(), "a replica that knows nothing said VALID, and was not found: {}", history.counts());
    for violation in &violations {
        assert_eq!((violation.rule, violation.verified.via), (Rule::Bound, Via::Replica(FAULTY)), "{violation}");
    }
    eprintln!("found {} violations, such as {}", violations.len(), violations[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_on_a_replica_that_stood_still() {
    let mut case = Case::start().await;
    let witnesses = case.load.watch_living(FAULTY).await;
    let before = case.load.counts();
    case.servers[FAULTY].sigstop();
    // Most of these begin when the keys have been revoked elsewhere for longer than the bound, and the replica finds
    // them, beside a cache in which all of these keys are valid, in the moment in which it goes on.
    let calls = case.load.begin_calls(FAULTY, &witnesses, STOPPED).await;
    let during = case.load.counts().since(&before);
    case.servers[FAULTY].sigcont();
    let waiting = calls.len();
    calls.join_all().await;
    assert!(waiting >= 100 && during.revoked >= REVOCATIONS_DURING_MIN, "{waiting} calls waited: {during}");
    case.goes_on("the replica to go on").await;
    let history = case.finish("a stopped replica").await;
    assert_kept(&history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_on_a_replica_that_is_killed_and_started_again() {
    let mut case = Case::start().await;
    for _ in 0..2 {
        case.servers[FAULTY].kill9();
        case.lasts("the others to go on without the killed one", 1).await;
        case.servers[FAULTY].restart().await;
        case.load.reconnect(FAULTY, &case.servers[FAULTY]);
        case.goes_on("the replica to come back").await;
    }
    let history = case.finish("kill -9 and restart").await;
    assert_kept(&history);
}

/// How many minutes a replica's wall clock is ahead of the true one.
async fn minutes_ahead(server: &Server, organization: &str) -> i64 {
    let (key, _) = create_key(server, organization, &[]).await;
    let created = key.create_time.expect("the time of creation").seconds;
    (created - Clock::default().now().micros() / 1_000_000) / 60
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_hold_on_a_replica_whose_clock_steps_by_an_hour() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let clock = FakeClock::new(database.folder());
    let mut case = Case::start_on(database, BOUND_FLAG, &clock.environment()).await;
    case.load.watch_living(FAULTY).await;
    for hours in [1, -1, 0] {
        clock.step(hours * 3600);
        wait_until("the clock to step", async || {
            let ahead = minutes_ahead(&case.servers[FAULTY], case.load.organization()).await;
            (ahead - hours * 60).abs() <= 1
        })
        .await;
        if hours != 0 {
            case.lasts("the others to go on after the step", 0).await;
        }
        case.goes_on("the replica whose clock stepped to go on").await;
    }
    let history = case.finish("clock steps").await;
    assert_kept(&history);
}
