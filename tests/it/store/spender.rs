//! `limits::Spender` on a real database: spends of one key that come at once are gathered, and each gets the answer
//! that it would get alone. Never one credit more is granted than there was, by one spender or by two that stand for
//! two processes, and whoever is told `Charged` was charged.
//! Where it matters who has come before the statement begins, the test runs on one thread: then a future that is
//! polled once waits in its queue, and no statement begins before the test itself waits.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use keystead::domain::{key::ApiKey, limits::Credits};
use keystead::limits::{Spender, TurnError};
use keystead::store::{
    StoreError,
    credits::{self, Balance, Spent},
};
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::task::TaskTracker;

use super::World;
use crate::harness::{Engine, TestDatabase, samples, store_test, wait_until};

/// As `store_test!`, on one thread.
macro_rules! one_thread_test {
    ($name:ident) => {
        mod $name {
            #[tokio::test]
            async fn sqlite() {
                super::$name(super::TestDatabase::new(super::Engine::Sqlite).await).await;
            }

            #[tokio::test]
            async fn postgres() {
                super::$name(super::TestDatabase::new(super::Engine::Postgres).await).await;
            }
        }
    };
}

struct Bench {
    world: World,
    key: ApiKey,
    spender: Arc<Spender>,
    statements: TaskTracker,
}

impl Bench {
    /// A key with so many credits, and a spender.
    async fn new(database: TestDatabase, remaining: i64) -> Self {
        let world = World::new(database).await;
        let key = world.add_key(|key| key.credits = Some(Credits { remaining, refill: None })).await;
        let statements = TaskTracker::new();
        let spender = Arc::new(Spender::new(world.store.clone(), Handle::current(), statements.clone()));
        Self { world, key, spender, statements }
    }

    async fn spend(&self, cost: i64) -> Result<Spent, TurnError> {
        self.spender.spend(self.key.id, cost, samples::NOW).await
    }

    async fn stored(&self) -> i64 {
        self.world.stored(&self.key).await.credits.expect("credits").remaining
    }

    /// Starts a spend for each of these costs, the first ones first, alternately by these spenders.
    fn begin(&self, spenders: &[&Arc<Spender>], costs: &[i64]) -> JoinSet<(i64, Result<Spent, TurnError>)> {
        let mut tasks = JoinSet::new();
        for (at, cost) in costs.iter().copied().enumerate() {
            let (spender, id) = (spenders[at % spenders.len()].clone(), self.key.id);
            tasks.spawn(async move { (cost, spender.spend(id, cost, samples::NOW).await) });
        }
        tasks
    }

    /// Waits until no statement is under way.
    async fn settle(&self) {
        wait_until("all statements to end", async || self.statements.is_empty()).await;
    }
}

async fn answers(tasks: JoinSet<(i64, Result<Spent, TurnError>)>) -> Vec<(i64, Spent)> {
    let answers = tasks.join_all().await;
    answers.into_iter().map(|(cost, answer)| (cost, answer.expect("no fault"))).collect()
}

/// The costs that were charged, with what remained after each.
fn charged(answers: &[(i64, Spent)]) -> Vec<(i64, i64)> {
    let charge = |(cost, spent): &(i64, Spent)| match spent {
        Spent::Charged { remaining } => Some((*cost, *remaining)),
        Spent::Refused(_) => None,
    };
    answers.iter().filter_map(charge).collect()
}

store_test!(a_thousand_that_spend_at_once_are_granted_exactly_what_there_is);
async fn a_thousand_that_spend_at_once_are_granted_exactly_what_there_is(database: TestDatabase) {
    let mut bench = Bench::new(database, 1).await;
    let second = Arc::new(Spender::new(bench.world.store.clone(), Handle::current(), TaskTracker::new()));
    for granted in [1, 100, 1000] {
        let credits = Some(Credits { remaining: granted, refill: None });
        bench.key = bench.world.add_key(|key| key.credits = credits).await;
        let answers = answers(bench.begin(&[&bench.spender, &second], &[1; 1000])).await;
        let left: BTreeSet<i64> = charged(&answers).iter().map(|(_, left)| *left).collect();
        assert_eq!(left, (0..granted).collect(), "each was told another rest");
        assert_eq!(charged(&answers).len(), left.len());
        let refused = answers.iter().filter(|(_, spent)| *spent == Spent::Refused(Balance::Remaining(0))).count();
        assert_eq!(refused + left.len(), 1000);
        assert_eq!(bench.stored().await, 0);
    }
}

store_test!(mixed_costs_at_once_are_charged_whole_or_not_at_all);
async fn mixed_costs_at_once_are_charged_whole_or_not_at_all(database: TestDatabase) {
    let bench = Bench::new(database, 700).await;
    let second = Arc::new(Spender::new(bench.world.store.clone(), Handle::current(), TaskTracker::new()));
    let costs: Vec<i64> = (0..400).map(|at| [3, 0, 11, 1, 900, 5][at % 6]).collect();
    let answers = answers(bench.begin(&[&bench.spender, &second], &costs)).await;
    let charged = charged(&answers);
    let sum: i64 = charged.iter().map(|(cost, _)| cost).sum();
    assert_eq!(sum + bench.stored().await, 700);
    let left: BTreeSet<i64> = charged.iter().map(|(_, left)| *left).collect();
    assert_eq!(left.len(), charged.len(), "no two were told the same rest");
    for (cost, spent) in &answers {
        match spent {
            Spent::Charged { .. } => assert!(*cost > 0 && *cost < 900),
            Spent::Refused(Balance::Remaining(left)) => assert!(*cost == 0 || left < cost, "{left} was enough"),
            Spent::Refused(other) => panic!("{other:?}"),
        }
    }
}

one_thread_test!(those_who_come_together_are_answered_in_order_and_written_once);
async fn those_who_come_together_are_answered_in_order_and_written_once(database: TestDatabase) {
    let bench = Bench::new(database, 10).await;
    let rows = "SELECT count(*) FROM key_changes";
    let before = bench.world.database.query_i64(rows).await;
    let tasks = bench.begin(&[&bench.spender], &[4, 7, 0, 6, 1]);
    let mut answers = answers(tasks).await;
    answers.sort_by_key(|(cost, _)| [4, 7, 0, 6, 1].iter().position(|one| one == cost));
    let rest = |left| Spent::Refused(Balance::Remaining(left));
    let charged = |remaining| Spent::Charged { remaining };
    assert_eq!(answers, [(4, charged(6)), (7, rest(6)), (0, rest(6)), (6, charged(0)), (1, rest(0))]);
    assert_eq!(bench.stored().await, 0);
    assert_eq!(bench.world.database.query_i64(rows).await, before, "a spend is no change of settings");
}

store_test!(peeks_write_nothing_and_are_exact);
async fn peeks_write_nothing_and_are_exact(database: TestDatabase) {
    let bench = Bench::new(database, 3).await;
    let blocked = bench.world.database.block_writes().await;
    for (_, answer) in answers(bench.begin(&[&bench.spender], &[0; 1000])).await {
        assert_eq!(answer, Spent::Refused(Balance::Remaining(3)), "while nobody can write");
    }
    blocked.release().await;
    bench.spend(2).await.expect("no fault");
    assert_eq!(bench.spend(0).await.expect("no fault"), Spent::Refused(Balance::Remaining(1)));
}

one_thread_test!(whoever_leaves_before_the_statement_begins_is_not_charged);
async fn whoever_leaves_before_the_statement_begins_is_not_charged(database: TestDatabase) {
    let bench = Bench::new(database, 10).await;
    {
        let (mut leaves, mut stays) = (pin!(bench.spend(3)), pin!(bench.spend(2)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(leaves.as_mut().poll(&mut context).is_pending() && stays.as_mut().poll(&mut context).is_pending());
        leaves.set(bench.spend(9));
        assert_eq!(stays.await.expect("no fault"), Spent::Charged { remaining: 8 });
    }
    // Where everybody has left, nothing is charged, and the next one is served.
    {
        let mut leaves = pin!(bench.spend(3));
        assert!(leaves.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    bench.settle().await;
    assert_eq!(bench.spend(1).await.expect("no fault"), Spent::Charged { remaining: 7 });
    assert_eq!(bench.stored().await, 7);
}

one_thread_test!(no_more_than_ten_thousand_wait_and_one_who_leaves_makes_room);
async fn no_more_than_ten_thousand_wait_and_one_who_leaves_makes_room(database: TestDatabase) {
    let bench = Bench::new(database, 100_000).await;
    let mut context = Context::from_waker(Waker::noop());
    let mut waiting: Vec<_> = (0..10_000).map(|_| Box::pin(bench.spend(1))).collect();
    assert!(waiting.iter_mut().all(|spend| spend.as_mut().poll(&mut context).is_pending()));
    let refused = |poll| matches!(poll, Poll::Ready(Err(TurnError::Overloaded)));
    assert!(refused(pin!(bench.spend(1)).as_mut().poll(&mut context)));
    waiting.pop();
    let mut last = Box::pin(bench.spend(1));
    assert!(last.as_mut().poll(&mut context).is_pending());
    assert!(refused(pin!(bench.spend(1)).as_mut().poll(&mut context)));
    assert_eq!(last.await.expect("no fault"), Spent::Charged { remaining: 90_000 }, "the last of ten thousand");
    assert_eq!(bench.stored().await, 90_000);
    assert_eq!(bench.spend(1).await.expect("room again"), Spent::Charged { remaining: 89_999 });
}

store_test!(a_spend_may_come_from_any_runtime);
async fn a_spend_may_come_from_any_runtime(database: TestDatabase) {
    let bench = Bench::new(database, 10).await;
    for left in [9, 8] {
        let (spender, id) = (bench.spender.clone(), bench.key.id);
        let elsewhere = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(spender.spend(id, 1, samples::NOW))
        });
        let answer = elsewhere.await.expect("no panic").expect("no fault");
        assert_eq!(answer, Spent::Charged { remaining: left }, "and no connection went with its runtime");
    }
}

store_test!(a_rotated_unlimited_or_absent_key_is_told_to_all);
async fn a_rotated_unlimited_or_absent_key_is_told_to_all(database: TestDatabase) {
    let mut bench = Bench::new(database, 10).await;
    let gone = samples::key(bench.world.acme.id);
    let without = bench.world.add_key(|_| {}).await;
    for (key, balance) in [(gone, Balance::Gone), (without, Balance::Unlimited)] {
        bench.key = key;
        for (_, answer) in answers(bench.begin(&[&bench.spender], &[1, 0, 5])).await {
            assert_eq!(answer, Spent::Refused(balance));
        }
    }
}

const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

#[tokio::test]
async fn a_statement_that_has_begun_runs_to_its_end_and_a_shutdown_waits_for_it() {
    // PostgreSQL alone, where a waiting statement can be seen.
    let bench = Bench::new(TestDatabase::new(Engine::Postgres).await, 100).await;
    let database = &bench.world.database;
    let blocked = database.block_writes().await;
    let first = bench.begin(&[&bench.spender], &[1, 2]);
    wait_until("the statement to wait for the lock", async || database.query_i64(WAITING).await == 1).await;
    let mut next = bench.begin(&[&bench.spender], &[4, 8]);
    tokio::task::yield_now().await;
    drop(first);
    next.abort_all();
    while next.join_next().await.is_some() {}
    let last = bench.begin(&[&bench.spender], &[16]);
    tokio::task::yield_now().await;
    assert_eq!(database.query_i64(WAITING).await, 1, "one statement for a key at a time");
    bench.statements.close();
    let mut shutdown = pin!(bench.statements.wait());
    assert!(shutdown.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    blocked.release().await;
    shutdown.await;
    // 1 and 2 were under way; 4 and 8 had left their places.
    assert_eq!(answers(last).await, [(16, Spent::Charged { remaining: 81 })]);
    assert_eq!(bench.stored().await, 81);
}

#[tokio::test]
async fn a_fault_reaches_all_who_wait_and_says_whether_it_may_have_charged() {
    // PostgreSQL alone: a file cannot be cut off.
    let bench = Bench::new(TestDatabase::new(Engine::Postgres).await, 100).await;
    let database = &bench.world.database;
    let _blocked = database.block_writes().await;
    let under_way = bench.begin(&[&bench.spender], &[1, 1, 1]);
    wait_until("the statement to wait for the lock", async || database.query_i64(WAITING).await == 1).await;
    let waiting = bench.begin(&[&bench.spender], &[1; 20]);
    tokio::task::yield_now().await;
    database.cut_off().await;
    for (tasks, may) in [(under_way, Some(true)), (waiting, None)] {
        for (_, answer) in tasks.join_all().await {
            let Err(TurnError::Store(error)) = answer else { panic!("{answer:?}") };
            let StoreError::Unavailable { may_have_happened, .. } = error else { panic!("{error:?}") };
            assert!(may.is_none_or(|may| may == may_have_happened));
        }
    }
    database.let_back().await;
    let mut spent = None;
    wait_until("the database to be back", async || {
        spent = credits::spend(bench.world.db(), bench.key.id, 0, samples::NOW).await.ok();
        spent.is_some()
    })
    .await;
    assert_eq!(spent, Some(Spent::Charged { remaining: 100 }), "what was cut off had not come through");
    assert_eq!(bench.spend(1).await.expect("no fault"), Spent::Charged { remaining: 99 });
}
