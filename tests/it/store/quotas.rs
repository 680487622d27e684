//! `limits::Quotas` on a real database: monthly quotas that are taken in blocks, by one process or by two that stand
//! for replicas. Never one unit more is granted than there is, and the last one is; a process that ends without a word
//! loses a small part of what is left and no more.
//! How a block comes about depends on time. Where a test needs one it puts back what it took: that is kept as a block.

use std::sync::Arc;

use keystead::domain::{organization::Organization, time::Timestamp};
use keystead::limits::{Quotas, TurnError};
use keystead::store::StoreError;
use sea_orm::ConnectionTrait as _;
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::task::TaskTracker;

use super::World;
use crate::harness::{Engine, TestDatabase, samples, store_test, wait_until};

/// January of 2027.
const NOW: Timestamp = samples::NOW;

struct Bench {
    world: World,
    /// Has the quota.
    organization: Organization,
    quotas: Arc<Quotas>,
}

impl Bench {
    async fn new(database: TestDatabase, quota: i64) -> Self {
        let world = World::new(database).await;
        let organization = Organization { monthly_quota: quota, ..world.acme.clone() };
        let quotas = process(&world);
        Self { world, organization, quotas }
    }

    async fn take(&self, cost: i64) -> bool {
        self.take_by(&self.quotas, cost).await
    }

    async fn take_by(&self, quotas: &Quotas, cost: i64) -> bool {
        quotas.take(&self.organization, cost, NOW).await.expect("no fault")
    }

    fn put_back(&self, cost: i64) {
        self.quotas.put_back(&self.organization, cost, NOW);
    }

    /// What the database says was taken in the month of `now`.
    async fn taken_at(&self, now: Timestamp) -> i64 {
        let (id, month) = (self.organization.id, now.start_of_month().micros());
        let of_month = format!("subject_id = '{id}' AND limit_name = 'monthly quota' AND window_start_us = {month}");
        let sql = format!("SELECT coalesce(max(count), 0) FROM rate_limit_tracking WHERE {of_month}");
        self.world.database.query_i64(&sql).await
    }

    async fn taken(&self) -> i64 {
        self.taken_at(NOW).await
    }

    /// Gives back all that a process holds.
    async fn give_back(&self, quotas: &Quotas) {
        quotas.give_back(&self.world.store, true).await.expect("given back");
    }

    /// Starts taking one cost, whatever comes of it.
    fn begin_one(&self, cost: i64) -> JoinSet<Result<bool, TurnError>> {
        let (quotas, organization) = (self.quotas.clone(), self.organization.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { quotas.take(&organization, cost, NOW).await });
        tasks
    }

    /// Starts taking these costs, the first ones first, alternately by these processes.
    fn begin(&self, processes: &[&Arc<Quotas>], costs: &[i64]) -> JoinSet<(usize, bool)> {
        let mut tasks = JoinSet::new();
        for (at, cost) in costs.iter().copied().enumerate() {
            let (quotas, organization) = (processes[at % processes.len()].clone(), self.organization.clone());
            tasks.spawn(async move { (at, quotas.take(&organization, cost, NOW).await.expect("no fault")) });
        }
        tasks
    }
}

const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// The quotas of one process.
fn process(world: &World) -> Arc<Quotas> {
    Arc::new(Quotas::new(world.store.clone(), Handle::current(), TaskTracker::new()))
}

/// Who was granted what was asked for, in the order of asking.
async fn granted(tasks: JoinSet<(usize, bool)>) -> Vec<bool> {
    let mut answers = tasks.join_all().await;
    answers.sort_unstable();
    answers.into_iter().map(|(_, granted)| granted).collect()
}

store_test!(two_processes_at_once_grant_no_more_than_the_quota_and_in_the_end_all_of_it);
async fn two_processes_at_once_grant_no_more_than_the_quota_and_in_the_end_all_of_it(database: TestDatabase) {
    const QUOTA: i64 = 2000;
    let bench = Bench::new(database, QUOTA).await;
    let second = process(&bench.world);
    let mut used = 0;
    // The first rounds fit, the last ones do not.
    for round in 0..6_usize {
        let costs: Vec<i64> = (0..200).map(|at| [1, 3, 1, 0, 2, 7][(at + round) % 6]).collect();
        let answers = granted(bench.begin(&[&bench.quotas, &second], &costs)).await;
        used += costs.iter().zip(&answers).filter(|(_, granted)| **granted).map(|(cost, _)| cost).sum::<i64>();
        let taken = bench.taken().await;
        assert!(used <= taken && taken <= QUOTA, "{used} granted, {taken} taken");
        assert!(round > 0 || answers.iter().all(|granted| *granted), "there was enough");
    }
    assert!(used > QUOTA / 2, "{used}");
    for quotas in [&bench.quotas, &second] {
        bench.give_back(quotas).await;
    }
    assert_eq!(bench.taken().await, used, "what nobody used is there again");
    // The two take turns until neither is granted anything: what one holds the other is not granted.
    let mut refused = 0;
    while refused < 2 {
        refused = 0;
        for quotas in [&bench.quotas, &second] {
            if bench.take_by(quotas, 1).await {
                used += 1;
            } else {
                refused += 1;
            }
        }
    }
    assert_eq!((used, bench.taken().await), (QUOTA, QUOTA), "to the last unit");
    for quotas in [&bench.quotas, &second] {
        assert!(!bench.take_by(quotas, 0).await, "a peek");
        bench.give_back(quotas).await;
    }
    assert_eq!(bench.taken().await, QUOTA, "nothing was left to give back");
}

/// The body of the next two, which run on one thread: what comes together then waits together for its turn.
async fn costs_that_do_not_fit(database: TestDatabase) {
    let bench = Bench::new(database, 10).await;
    let answers = granted(bench.begin(&[&bench.quotas], &[4, 7, 0, 6, 1])).await;
    assert_eq!(answers, [true, false, false, true, false], "in the order in which they came");
    assert_eq!(bench.taken().await, 10);
    let wider = Organization { monthly_quota: 12, ..bench.organization.clone() };
    for (cost, granted) in [(3, false), (2, true), (1, false), (0, false)] {
        assert_eq!(bench.quotas.take(&wider, cost, NOW).await.expect("no fault"), granted, "{cost}, one by one");
    }
}

#[tokio::test]
async fn a_cost_that_does_not_fit_keeps_no_other_from_fitting_on_sqlite() {
    costs_that_do_not_fit(TestDatabase::new(Engine::Sqlite).await).await;
}

#[tokio::test]
async fn a_cost_that_does_not_fit_keeps_no_other_from_fitting_on_postgres() {
    costs_that_do_not_fit(TestDatabase::new(Engine::Postgres).await).await;
}

store_test!(a_peek_takes_nothing_and_says_whether_one_more_would_be_granted);
async fn a_peek_takes_nothing_and_says_whether_one_more_would_be_granted(database: TestDatabase) {
    let bench = Bench::new(database, 5).await;
    let other = process(&bench.world);
    assert!(granted(bench.begin(&[&bench.quotas], &[0; 100])).await.iter().all(|granted| *granted));
    assert_eq!(bench.world.database.query_i64("SELECT count(*) FROM rate_limit_tracking").await, 0);
    assert!(bench.take(5).await);
    assert!(!bench.take(0).await && !bench.take_by(&other, 0).await);
    bench.put_back(2);
    assert!(bench.take(0).await, "this process holds two");
    assert!(!bench.take_by(&other, 0).await, "and the other none");
    assert!(bench.take(2).await && !bench.take(0).await);
}

store_test!(an_organization_without_a_quota_is_asked_for_nothing);
async fn an_organization_without_a_quota_is_asked_for_nothing(database: TestDatabase) {
    let bench = Bench::new(database, 0).await;
    // Whoever asked would be refused.
    bench.world.store.set_away(true);
    assert!(bench.take(1_000_000).await && bench.take(0).await);
    bench.put_back(1_000_000);
    bench.world.store.set_away(false);
    bench.give_back(&bench.quotas).await;
    assert_eq!(bench.taken().await, 0);
}

store_test!(a_process_that_ends_without_a_word_loses_a_64th_of_what_is_left_at_most);
async fn a_process_that_ends_without_a_word_loses_a_64th_of_what_is_left_at_most(database: TestDatabase) {
    const QUOTA: i64 = 64 * 20;
    let mut bench = Bench::new(database, QUOTA).await;
    let mut used = 0;
    // Many at a time, as a block is no more than what was used lately.
    wait_until("more to be taken than was asked for", async || {
        let answers = granted(bench.begin(&[&bench.quotas], &[1; 20])).await;
        used += i64::try_from(answers.into_iter().filter(|granted| *granted).count()).expect("few");
        bench.taken().await > used
    })
    .await;
    let lost = bench.taken().await - used;
    assert!(lost <= (QUOTA - used) / 64, "{lost} of {}", QUOTA - used);
    bench.quotas = process(&bench.world);
    while bench.take(1).await {
        used += 1;
    }
    assert_eq!((used, bench.taken().await), (QUOTA - lost, QUOTA), "the next process gets all the rest");
}

store_test!(what_is_put_back_is_granted_again_and_given_back_when_it_is_idle);
async fn what_is_put_back_is_granted_again_and_given_back_when_it_is_idle(database: TestDatabase) {
    let bench = Bench::new(database, 6).await;
    assert!(bench.take(6).await && !bench.take(1).await);
    bench.put_back(5);
    assert!(bench.take(2).await);
    assert_eq!(bench.taken().await, 6, "two of the five that are held");
    assert!(!bench.take(4).await, "three are held, and no other is left");
    assert!(bench.take(1).await, "they are not lost with that");
    let mut given = 0;
    wait_until("what is not used to be given back", async || {
        given += bench.quotas.give_back(&bench.world.store, false).await.expect("given back");
        given > 0
    })
    .await;
    assert_eq!((given, bench.taken().await), (1, 4), "one block, of two units");
    let other = process(&bench.world);
    assert!(bench.take_by(&other, 2).await && !bench.take(1).await);
}

store_test!(while_the_database_is_away_nothing_is_granted_and_nothing_that_is_held_is_lost);
async fn while_the_database_is_away_nothing_is_granted_and_nothing_that_is_held_is_lost(database: TestDatabase) {
    let bench = Bench::new(database, 6).await;
    assert!(bench.take(6).await);
    bench.put_back(3);
    bench.world.store.set_away(true);
    for cost in [0, 1, 5] {
        let taken = bench.quotas.take(&bench.organization, cost, NOW).await;
        assert!(matches!(taken, Err(TurnError::Store(StoreError::Unavailable { .. }))), "not known: {taken:?}");
        // As the job does each second; it may fail, as long as it loses nothing.
        let _ = bench.quotas.give_back(&bench.world.store, true).await;
    }
    bench.world.store.set_away(false);
    assert_eq!(bench.taken().await, 6);
    assert!(bench.take(3).await && !bench.take(1).await);
}

store_test!(what_the_database_knows_nothing_of_any_more_is_forgotten);
async fn what_the_database_knows_nothing_of_any_more_is_forgotten(database: TestDatabase) {
    let bench = Bench::new(database, 6).await;
    assert!(bench.take(6).await);
    bench.put_back(3);
    bench.quotas.forget();
    assert!(!bench.take(1).await, "of the three that were held");
    bench.give_back(&bench.quotas).await;
    assert_eq!(bench.taken().await, 6);
}

/// PostgreSQL alone, where a waiting statement can be seen.
#[tokio::test]
async fn a_turn_that_is_under_way_when_the_database_goes_away_is_not_waited_for() {
    let bench = Bench::new(TestDatabase::new(Engine::Postgres).await, 6).await;
    let locked = bench.world.database.connect().await;
    let lock = "BEGIN; LOCK TABLE rate_limit_tracking IN EXCLUSIVE MODE";
    locked.execute_unprepared(lock).await.expect("locked");
    let mut asking = bench.begin_one(4);
    wait_until("the statement to wait", async || bench.world.database.query_i64(WAITING).await == 1).await;
    bench.world.store.set_away(true);
    let answer = asking.join_next().await.expect("one").expect("no panic");
    let Err(TurnError::Store(StoreError::Unavailable { may_have_happened, .. })) = answer else {
        panic!("{answer:?}");
    };
    assert!(may_have_happened);
    bench.world.store.set_away(false);
    locked.execute_unprepared("ROLLBACK").await.expect("unlocked");
    wait_until("the statement to end", async || bench.taken().await == 4).await;
    assert!(!bench.take(3).await && bench.take(2).await, "what nobody was told of stays taken");
}

/// PostgreSQL alone: a file cannot be cut off.
#[tokio::test]
async fn a_turn_that_fails_says_so_and_loses_nothing_that_is_held() {
    let bench = Bench::new(TestDatabase::new(Engine::Postgres).await, 6).await;
    assert!(bench.take(6).await);
    bench.put_back(2);
    bench.world.database.cut_off().await;
    let more = bench.quotas.take(&bench.organization, 3, NOW).await;
    assert!(matches!(more, Err(TurnError::Store(StoreError::Unavailable { .. }))), "{more:?}");
    assert!(bench.take(2).await, "it is held here");
    bench.world.database.let_back().await;
    wait_until("the database to be back", async || {
        let more = bench.quotas.take(&bench.organization, 1, NOW).await;
        more.is_ok_and(|granted| !granted)
    })
    .await;
    assert_eq!(bench.taken().await, 6);
}

store_test!(each_month_has_its_quota_and_nothing_passes_from_one_to_the_next);
async fn each_month_has_its_quota_and_nothing_passes_from_one_to_the_next(database: TestDatabase) {
    let bench = Bench::new(database, 5).await;
    let organization = &bench.organization;
    let february = NOW.start_of_next_month();
    let last_of_january = Timestamp::from_micros(february.micros() - 1);
    let take = async |cost, now| bench.quotas.take(organization, cost, now).await.expect("no fault");
    assert!(take(3, NOW).await && take(2, last_of_january).await && !take(1, last_of_january).await);
    bench.put_back(4);
    assert!(take(1, february).await, "not of what January has left");
    assert_eq!((bench.taken().await, bench.taken_at(february).await), (5, 1));
    bench.put_back(4);
    assert!(take(4, february).await && !take(1, february).await, "what was January's is nobody's");
    assert_eq!((bench.taken().await, bench.taken_at(february).await), (5, 5));
    bench.give_back(&bench.quotas).await;
    assert_eq!(bench.taken_at(february).await, 5, "nor is it given back to February");
}

store_test!(a_lowered_quota_holds_at_once_and_a_raised_one_counts_on);
async fn a_lowered_quota_holds_at_once_and_a_raised_one_counts_on(database: TestDatabase) {
    let mut bench = Bench::new(database, 10).await;
    assert!(bench.take(8).await);
    for (quota, cost, granted) in
        [(5, 1, false), (5, 0, false), (8, 1, false), (9, 1, true), (12, 4, false), (12, 3, true)]
    {
        bench.organization.monthly_quota = quota;
        assert_eq!(bench.take(cost).await, granted, "{cost} of {quota}");
    }
    assert_eq!(bench.taken().await, 12);
}
