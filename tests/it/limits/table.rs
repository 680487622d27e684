//! Rate limits that replicas share without Redis: `limits::Limits` over the counters in `rate_limit_tracking`, charged
//! by replicas with connections of their own. Together they admit what one would, all limits of a charge or none, and
//! through restarts. `alone` is about what a replica decides without asking.
//! A charge that is not answered within its budget is made alone. Most tests are about the others: where a busy machine
//! is late they begin anew, with counters that nobody has charged. PostgreSQL alone: SQLite has no replicas.

mod alone;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keystead::clock::Clock;
use keystead::domain::key::ApiKey;
use keystead::domain::limits::{RateLimit, SlidingWindow};
use keystead::domain::organization::Organization;
use keystead::domain::record::KeyRecord;
use keystead::limits::{Charge, Charged, Limits};
use keystead::store::connect::{self, ConnectOptions};
use keystead::store::rate_limits::{self, TrackedWindow};
use keystead::store::{Store, migrate};
use proptest::prelude::{Just, Strategy as _, any};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::harness::{Engine, TestDatabase, samples, wait_until};

/// How long a charge waits for the database.
const BUDGET: Duration = Duration::from_millis(500);
/// 400 days: so long that no window ends during a test.
const LONG_S: u64 = 400 * 86_400;

/// A migrated database that replicas share.
struct Shared {
    database: TestDatabase,
    options: ConnectOptions,
}

struct Replica {
    store: Store,
    limits: Limits,
}

/// Who is charged. Neither has a row: limits count for any id.
struct Holder {
    key: KeyRecord,
    organization: Organization,
}

impl Shared {
    async fn new() -> Self {
        let database = TestDatabase::new(Engine::Postgres).await;
        let options = ConnectOptions {
            url: database.url.clone(),
            verify_connections_max: 8,
            control_connections_max: 2,
            usage_connections_max: 2,
            verify_timeout: Duration::from_secs(20),
        };
        migrate::up(&options).await.expect("an empty database can be migrated");
        Self { database, options }
    }

    async fn replica(&self) -> Arc<Replica> {
        let (store, _lock) = connect::open(&self.options).await.expect("the database opens");
        let limits = Limits::new(None, &store, Handle::current(), TaskTracker::new());
        // Connecting is no part of a charge.
        rate_limits::find_server_time(store.charge()).await.expect("the time");
        Arc::new(Replica { store, limits })
    }

    /// What all windows of a limit have counted.
    async fn count(&self, subject: impl Display + Copy, name: &str) -> i64 {
        let of_limit = format!("subject_id = '{subject}' AND limit_name = '{name}'");
        let sql = format!("SELECT coalesce(sum(count), 0)::int8 FROM rate_limit_tracking WHERE {of_limit}");
        self.database.query_i64(&sql).await
    }

    async fn rows(&self, subject: impl Display + Copy) -> i64 {
        let sql = format!("SELECT count(*) FROM rate_limit_tracking WHERE subject_id = '{subject}'");
        self.database.query_i64(&sql).await
    }
}

impl Replica {
    /// Charges all limits; `None` where the database may not have answered in time.
    async fn charge(&self, holder: &Holder, cost: i64) -> Option<Charged> {
        self.charge_named(holder, &[], cost).await
    }

    async fn charge_named(&self, holder: &Holder, names: &[String], cost: i64) -> Option<Charged> {
        let begun = Instant::now();
        let charged = self.limits.charge(&holder.charge(names, cost)).await;
        (begun.elapsed() < BUDGET).then_some(charged)
    }

    fn is_degraded(&self) -> bool {
        self.limits.shared().expect("replicas share the database").is_degraded()
    }
}

impl Holder {
    fn new(own: &[RateLimit], shared: &[RateLimit]) -> Self {
        let organization = Organization { rate_limits: shared.to_vec(), ..samples::organization("acme") };
        Self { key: key_of(&organization, own), organization }
    }

    fn charge<'a>(&'a self, names: &'a [String], cost: i64) -> Charge<'a> {
        let Self { key, organization } = self;
        Charge { key, limit_names: names, organization, cost, now: Clock::default().now() }
    }
}

fn key_of(organization: &Organization, limits: &[RateLimit]) -> KeyRecord {
    samples::record(&ApiKey { rate_limits: limits.to_vec(), ..samples::key(organization.id) })
}

fn limit(name: &str, limit: i64) -> RateLimit {
    samples::rate_limit(name, limit, LONG_S)
}

fn shadow(name: &str, units: i64) -> RateLimit {
    RateLimit { shadow: true, ..limit(name, units) }
}

/// Of each limit the name, what remains, and whether the cost did not fit.
fn told(charged: &Charged) -> Vec<(String, i64, bool)> {
    charged.statuses.iter().map(|status| (status.name.clone(), status.remaining, status.exceeded)).collect()
}

/// Runs a scenario to its end without a charge that is late.
async fn undisturbed(scenario: impl AsyncFn(&Shared) -> Option<()>) {
    let shared = Shared::new().await;
    wait_until("the database to answer each charge in time", async || scenario(&shared).await.is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_charge_at_once_admit_exactly_the_limit() {
    undisturbed(async |shared: &Shared| {
        let replicas = [shared.replica().await, shared.replica().await];
        let holder = Arc::new(Holder::new(&[limit("hundred", 100)], &[]));
        let mut charges = JoinSet::new();
        for at in 0..300 {
            let (replica, holder) = (replicas[at % 2].clone(), holder.clone());
            charges.spawn(async move { replica.charge(&holder, 1).await });
        }
        let answers: Vec<Charged> = charges.join_all().await.into_iter().collect::<Option<_>>()?;
        assert_eq!(answers.iter().filter(|charged| charged.denied.is_none()).count(), 100);
        assert_eq!(shared.count(holder.key.counter_id, "hundred").await, 100);
        Some(())
    })
    .await;
}

/// What each limit has counted, by the id that it counts for and its name.
#[derive(Default)]
struct Model(BTreeMap<(String, String), i64>);

impl Model {
    fn count(&self, id: &str, limit: &RateLimit) -> i64 {
        self.0.get(&(id.to_owned(), limit.name.clone())).copied().unwrap_or(0)
    }

    /// Whether the charge is denied, and what is told of each limit.
    fn charge(&mut self, holder: &Holder, names: &[String], cost: i64) -> (bool, Vec<(String, i64, bool)>) {
        let Holder { key, organization } = holder;
        let own = key.rate_limits.iter().filter(|limit| names.is_empty() || names.contains(&limit.name));
        let own = own.map(|limit| (key.counter_id.to_string(), limit));
        let shared = organization.rate_limits.iter().map(|limit| (organization.id.to_string(), limit));
        let limits: Vec<(String, &RateLimit)> = own.chain(shared).collect();
        let is_exceeded = |(id, limit): &(String, &RateLimit)| self.count(id, limit) + cost.max(1) > limit.limit;
        let exceeded: Vec<bool> = limits.iter().map(is_exceeded).collect();
        let denied = limits.iter().zip(&exceeded).any(|((_, limit), exceeded)| *exceeded && !limit.shadow);
        for (id, limit) in &limits {
            *self.0.entry((id.clone(), limit.name.clone())).or_default() += if denied { 0 } else { cost };
        }
        let remaining = |id: &str, limit: &RateLimit| (limit.limit - self.count(id, limit)).max(0);
        let told = limits.iter().zip(exceeded);
        let told = told.map(|((id, limit), exceeded)| (limit.name.clone(), remaining(id, limit), exceeded));
        (denied, told.collect())
    }
}

#[tokio::test]
async fn charges_of_several_limits_by_turns_are_what_adding_up_says() {
    let step = (any::<bool>(), any::<bool>(), 0..4_usize, proptest::prop_oneof![Just(0_i64), Just(1), 1..=3_i64]);
    let steps =
        proptest::collection::vec(step, 80).new_tree(&mut TestRunner::deterministic()).expect("steps").current();
    undisturbed(async |shared: &Shared| {
        let replicas = [shared.replica().await, shared.replica().await];
        let first = Holder::new(&[limit("a", 15), limit("b", 30)], &[limit("all", 60), shadow("watched", 10)]);
        let organization = first.organization.clone();
        let second = Holder { key: key_of(&organization, &[shadow("a", 20), limit("c", 9)]), organization };
        let (mut model, mut denials) = (Model::default(), 0);
        for (replica, is_first, names, cost) in &steps {
            let holder = if *is_first { &first } else { &second };
            // None of its names, which stands for all, one or the other, or both.
            let own = holder.key.rate_limits.iter().map(|limit| limit.name.clone());
            let names: Vec<String> =
                own.enumerate().filter(|(at, _)| (names >> at) & 1 == 1).map(|(_, name)| name).collect();
            let charged = replicas[usize::from(*replica)].charge_named(holder, &names, *cost).await?;
            let expected = model.charge(holder, &names, *cost);
            assert_eq!((charged.denied.is_some(), told(&charged)), expected, "{cost} for {names:?}");
            denials += usize::from(expected.0);
        }
        assert!((10..70).contains(&denials), "both happened: {denials} denials");
        for ((id, name), count) in &model.0 {
            assert_eq!(shared.count(id, name).await, *count, "{name}");
        }
        Some(())
    })
    .await;
}

#[tokio::test]
async fn all_limits_are_charged_or_none_and_what_charges_nothing_leaves_no_row() {
    undisturbed(async |shared: &Shared| {
        let replica = shared.replica().await;
        let holder = Holder::new(&[limit("wide", 10)], &[limit("narrow", 3), shadow("watched", 1)]);
        let (key, organization) = (holder.key.counter_id, holder.organization.id);
        // A peek; more than ever fits; then what fits, what does not, and what just does.
        for (cost, is_denied, wide) in
            [(0, false, 0), (4, true, 0), (2, false, 2), (2, true, 2), (0, false, 2), (1, false, 3)]
        {
            let charged = replica.charge(&holder, cost).await?;
            assert_eq!(charged.denied.is_some(), is_denied, "{cost}");
            let counts = [
                shared.count(key, "wide").await,
                shared.count(organization, "narrow").await,
                shared.count(organization, "watched").await,
            ];
            assert_eq!(counts, [wide; 3], "after {cost}");
            let rows = (shared.rows(key).await, shared.rows(organization).await);
            assert_eq!(rows, if wide == 0 { (0, 0) } else { (1, 2) }, "after {cost}");
        }
        Some(())
    })
    .await;
}

#[tokio::test]
async fn a_charge_stands_in_the_window_of_the_databases_clock_and_outlives_every_replica() {
    undisturbed(async |shared: &Shared| {
        let holder = Holder::new(&[samples::rate_limit("monthly", 5, 30 * 86_400), limit("long", 9)], &[]);
        let key = holder.key.counter_id;
        let first = shared.replica().await;
        first.charge(&holder, 4).await?;
        first.store.clone().close().await;
        let now = "(extract(epoch FROM now()) * 1000000)::int8";
        for (name, length_s) in [("monthly", 30 * 86_400), ("long", LONG_S)] {
            let window = format!(
                "SELECT count FROM rate_limit_tracking WHERE subject_id = '{key}' AND limit_name = '{name}'
                 AND window_start_us % {length_s}000000 = 0 AND window_end_us = window_start_us + {length_s}000000
                 AND window_start_us <= {now} AND window_end_us > {now}"
            );
            assert_eq!(shared.database.query_i64(&window).await, 4, "{name}");
        }
        let second = shared.replica().await;
        let peeked = second.charge(&holder, 0).await?;
        assert_eq!(told(&peeked), [("monthly".to_owned(), 1, false), ("long".to_owned(), 5, false)]);
        assert!(second.charge(&holder, 2).await?.denied.is_some());
        assert!(second.charge(&holder, 1).await?.denied.is_none());
        assert!(shared.replica().await.charge(&holder, 1).await?.denied.is_some());
        Some(())
    })
    .await;
}

#[tokio::test]
async fn of_the_windows_of_the_past_only_the_one_before_counts_by_the_part_that_is_covered() {
    const UNITS: i64 = 1_000_000;
    undisturbed(async |shared: &Shared| {
        let replica = shared.replica().await;
        let long = limit("long", UNITS);
        let holder = Holder::new(std::slice::from_ref(&long), &[]);
        let now = async || rate_limits::find_server_time(replica.store.charge()).await.expect("the time");
        let before = now().await;
        let present = SlidingWindow::empty(&long, before).start_us;
        let row = |window_start_us, length_us, count| TrackedWindow {
            subject_id: holder.key.counter_id.to_string(),
            limit_name: "long".to_owned(),
            window_start_us,
            window_end_us: window_start_us + length_us,
            count,
        };
        let (length, hour) = (long.window_us(), 3_600_000_000);
        // The last is of a limit with the same name, before its window was changed.
        let rows = [
            row(present - 2 * length, length, UNITS),
            row(present - length, length, 600_000),
            row(before.micros() - before.micros() % hour, hour, UNITS),
        ];
        rate_limits::upsert(replica.store.control(), &rows).await.expect("written");
        let window = SlidingWindow { start_us: present, current: 0, previous: 600_000 };
        let least = window.status(&long, before, 1, false).remaining;
        let remaining = replica.charge(&holder, 0).await?.statuses[0].remaining;
        let most = window.status(&long, now().await, 1, false).remaining;
        assert!((least..=most).contains(&remaining) && least < UNITS, "{least} {remaining} {most}");

        assert!(replica.charge(&holder, 5).await?.denied.is_none());
        let counts = rate_limits::list_counting_at(replica.store.control(), before).await.expect("windows");
        let of = |start| counts.iter().find(|row| row.window_start_us == start).map(|row| row.count);
        assert_eq!((of(present), of(present - length)), (Some(5), Some(600_000)));
        Some(())
    })
    .await;
}
