//! What background jobs write, with the moment as an argument: leases, expiries that are told, refills that are made.
//! That processes share them is in `server/jobs.rs`. Invariant: running a job twice, or at once, is running it once.

use std::time::Duration;

use keystead::domain::{
    key::{ApiKey, StoredStatus},
    limits::{Credits, Refill, RefillInterval},
    time::Timestamp,
};
use keystead::jobs::{expire, refill};
use keystead::store::{credits, job_leases, job_leases::Schedule};

use super::World;
use crate::harness::{TestDatabase, samples, store_test};

const SCHEDULE: Schedule = Schedule { interval: Duration::from_mins(1), lease: Duration::from_secs(30) };

impl World {
    async fn take(&self, holder: &str, after: i64) -> bool {
        let now = samples::seconds(after);
        job_leases::take(self.db(), "expire", holder, SCHEDULE, now).await.expect("a lease is asked for")
    }

    async fn release(&self, holder: &str, after: i64) {
        job_leases::release(self.db(), "expire", holder, "ok", samples::seconds(after)).await.expect("a release");
    }

    async fn told(&self, key: &ApiKey) -> i64 {
        let sql = "SELECT count(*) FROM audit_events WHERE action = 'key.expire' AND target_id = ";
        self.database.query_i64(&format!("{sql}'{}'", key.id)).await
    }

    async fn expire(&self, after: i64) -> u64 {
        expire::run(&self.store, samples::seconds(after)).await.expect("expiries are told")
    }

    async fn add_expiring(&self, after: i64) -> ApiKey {
        self.add_key(|key| key.expire_time = Some(samples::seconds(after))).await
    }
}

store_test!(a_job_is_taken_by_one_once_for_each_time_that_it_is_due);
async fn a_job_is_taken_by_one_once_for_each_time_that_it_is_due(database: TestDatabase) {
    let world = World::new(database).await;
    let mut takers = Vec::new();
    for holder in 0..20 {
        let db = world.db().clone();
        takers.push(tokio::spawn(async move {
            job_leases::take(&db, "expire", &holder.to_string(), SCHEDULE, samples::NOW).await.expect("no fault")
        }));
    }
    let mut taken = 0;
    for taker in takers {
        taken += i32::from(taker.await.expect("no panic"));
    }
    assert_eq!(taken, 1, "the first");
    assert!(!world.take("b", 59).await, "not due, though the lease is over");
    assert!(world.take("b", 60).await, "due, and the lease of one that died is over");
    world.release("b", 61).await;
    assert!(!world.take("c", 62).await, "released, and not due");
    assert!(world.take("c", 120).await);
    world.release("b", 121).await;
    assert_eq!(
        database_text(&world, "SELECT holder FROM job_leases").await,
        "c",
        "whoever was taken over gives nothing back"
    );
    assert!(world.database.query_i64("SELECT lease_until_us FROM job_leases").await > samples::seconds(121).micros());
}

async fn database_text(world: &World, sql: &str) -> String {
    world.database.query_string(sql).await
}

store_test!(a_clock_that_stepped_back_does_not_hold_a_job_up);
async fn a_clock_that_stepped_back_does_not_hold_a_job_up(database: TestDatabase) {
    let world = World::new(database).await;
    assert!(world.take("a", 3600).await);
    assert!(world.take("b", 0).await, "an hour back");
    assert!(!world.take("a", 1).await, "and the job is held as ever");
}

store_test!(each_expiry_is_told_once);
async fn each_expiry_is_told_once(database: TestDatabase) {
    let world = World::new(database).await;
    let (soon, later, never) =
        (world.add_expiring(10).await, world.add_expiring(20).await, world.add_key(|_| ()).await);
    let revoked = world
        .add_key(|key| {
            key.expire_time = Some(samples::seconds(5));
            key.stored_status = StoredStatus::Revoked;
        })
        .await;
    assert_eq!(world.expire(9).await, 0);
    assert_eq!(world.expire(10).await, 1, "the moment of expiry is expired");
    assert_eq!((world.expire(11).await, world.told(&soon).await), (0, 1));
    assert_eq!(world.expire(10_000).await, 1, "also when the job was away");
    for (key, count) in [(&soon, 1), (&later, 1), (&never, 0), (&revoked, 0)] {
        assert_eq!(world.told(key).await, count, "{:?}", key.expire_time);
    }
}

store_test!(an_expiry_that_was_moved_is_told_when_it_comes);
async fn an_expiry_that_was_moved_is_told_when_it_comes(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_expiring(10).await;
    assert_eq!(world.expire(10).await, 1);
    world.update(&ApiKey { expire_time: Some(samples::seconds(100)), etag: 2, ..key.clone() }).await;
    assert_eq!(world.expire(99).await, 0);
    assert_eq!((world.expire(100).await, world.told(&key).await), (1, 2), "a second expiry");
    world.update(&ApiKey { expire_time: Some(samples::seconds(50)), etag: 3, ..key.clone() }).await;
    assert_eq!((world.expire(101).await, world.told(&key).await), (1, 3), "into the past, behind what was told");
}

store_test!(jobs_that_run_at_once_tell_each_expiry_once);
async fn jobs_that_run_at_once_tell_each_expiry_once(database: TestDatabase) {
    let world = World::new(database).await;
    for _ in 0..30 {
        world.add_expiring(1).await;
    }
    let mut runs = Vec::new();
    for _ in 0..6 {
        let store = world.store.clone();
        runs.push(tokio::spawn(async move { expire::run(&store, samples::seconds(2)).await.expect("told") }));
    }
    let mut told = 0;
    for run in runs {
        told += run.await.expect("no panic");
    }
    assert_eq!(told, 30);
    let events = "SELECT count(*) FROM audit_events WHERE action = 'key.expire'";
    assert_eq!(world.database.query_i64(events).await, 30);
}

async fn add_refilled(world: &World, remaining: i64, interval: RefillInterval, due: Timestamp) -> ApiKey {
    world
        .add_key(|key| {
            key.credits = Some(Credits { remaining, refill: Some(Refill { amount: 10, interval }) });
            key.refill_time = Some(due);
        })
        .await
}

async fn remaining(world: &World, key: &ApiKey) -> (i64, Option<Timestamp>) {
    let stored = world.stored(key).await;
    (stored.credits.expect("credits").remaining, stored.refill_time)
}

store_test!(refills_are_made_at_midnight_and_on_the_first_once_however_long_they_are_due);
async fn refills_are_made_at_midnight_and_on_the_first_once_however_long_they_are_due(database: TestDatabase) {
    let world = World::new(database).await;
    let midnight = RefillInterval::Day.next_after(samples::NOW);
    let first = RefillInterval::Month.next_after(samples::NOW);
    let daily = add_refilled(&world, 3, RefillInterval::Day, midnight).await;
    let monthly = add_refilled(&world, 0, RefillInterval::Month, first).await;
    let rich = add_refilled(&world, 50, RefillInterval::Day, midnight).await;
    let run = async |now| refill::run(&world.store, now).await.expect("refills are made");
    assert_eq!(run(midnight.minus(Duration::from_micros(1))).await, 0);
    assert_eq!(run(midnight).await, 2);
    let next = RefillInterval::Day.next_after(midnight);
    assert_eq!(remaining(&world, &daily).await, (10, Some(next)));
    assert_eq!(remaining(&world, &rich).await, (50, Some(next)), "raised, never lowered");
    assert_eq!(remaining(&world, &monthly).await, (0, Some(first)));
    assert_eq!(run(midnight).await, 0, "once");
    let long_after = first.plus(Duration::from_hours(40 * 24));
    assert_eq!(run(long_after).await, 3, "several intervals were missed");
    assert_eq!(remaining(&world, &daily).await, (10, Some(RefillInterval::Day.next_after(long_after))));
    assert_eq!(remaining(&world, &monthly).await, (10, Some(RefillInterval::Month.next_after(long_after))));
}

store_test!(refills_and_spends_at_once_count_each_refill_once);
async fn refills_and_spends_at_once_count_each_refill_once(database: TestDatabase) {
    let world = World::new(database).await;
    let mut due = samples::NOW;
    let key = add_refilled(&world, 4, RefillInterval::Day, due).await;
    for _ in 0..5 {
        let mut tasks = Vec::new();
        for at in 0..20 {
            let (store, id) = (world.store.clone(), key.id);
            tasks.push(tokio::spawn(async move {
                if at % 2 == 0 {
                    refill::run(&store, due).await.expect("a refill");
                    return 0;
                }
                match credits::spend(store.write(), id, 1, due).await.expect("a spend") {
                    credits::Spent::Charged { .. } => 1,
                    credits::Spent::Refused(_) => 0,
                }
            }));
        }
        let mut spent = 0;
        for task in tasks {
            spent += task.await.expect("no panic");
        }
        assert_eq!(spent, 10, "ten spend, and ten were refilled");
        due = RefillInterval::Day.next_after(due);
        assert_eq!(remaining(&world, &key).await, (0, Some(due)));
    }
}

store_test!(a_rotated_keys_credits_are_not_refilled_where_they_no_longer_stand);
async fn a_rotated_keys_credits_are_not_refilled_where_they_no_longer_stand(database: TestDatabase) {
    let world = World::new(database).await;
    let old = add_refilled(&world, 3, RefillInterval::Day, samples::NOW).await;
    let newest = add_refilled(&world, 3, RefillInterval::Day, samples::NOW).await;
    keystead::store::rotations::update_successor(world.db(), old.id, newest.id).await.expect("an update");
    assert_eq!(refill::run(&world.store, samples::NOW).await.expect("a refill"), 1);
    assert_eq!(remaining(&world, &old).await, (0, Some(samples::NOW)));
    assert_eq!(remaining(&world, &newest).await.0, 10);
}
