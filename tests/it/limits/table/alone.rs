//! What a replica decides without the counters in the database: it denies what cannot fit by what it saw of them, and
//! it charges alone what they do not answer in time, with its share while the database is away.

use std::time::{Duration, Instant};

use sea_orm::ConnectionTrait as _;

use super::{BUDGET, Holder, Shared, limit, told, undisturbed};
use crate::harness::wait_until;

/// Longer than anything may take that is not held back.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn whoever_is_over_a_limit_is_denied_without_asking_for_as_long_as_that_is_known() {
    undisturbed(async |shared: &Shared| {
        let (replica, other) = (shared.replica().await, shared.replica().await);
        let holder = Holder::new(&[limit("only", 3)], &[]);
        let is_certain = |cost| replica.limits.denied_for_certain(&holder.charge(&[], cost)).is_some();
        assert!(!is_certain(4), "nobody has been asked");
        replica.charge(&holder, 2).await?;
        assert_eq!([0, 1, 2].map(is_certain), [false, false, true]);
        other.charge(&holder, 1).await?;
        assert!(!is_certain(1), "this one does not know of it");
        assert!(replica.charge(&holder, 1).await?.denied.is_some());
        assert_eq!([0, 1].map(is_certain), [true, true]);
        // An operator clears what stands against the key.
        let sql = format!("DELETE FROM rate_limit_tracking WHERE subject_id = '{}'", holder.key.counter_id);
        assert_eq!(shared.database.raw_sql(&sql).await, 1);
        wait_until("what was seen to be too old", async || !is_certain(1)).await;
        for _ in 0..3 {
            assert!(!is_certain(1), "what was cleared counts no more");
            assert!(replica.charge(&holder, 1).await?.denied.is_none());
        }
        assert!(replica.charge(&holder, 1).await?.denied.is_some());
        Some(())
    })
    .await;
}

#[tokio::test]
async fn while_the_database_is_away_each_replica_has_its_share_and_tells_of_it_afterwards() {
    undisturbed(async |shared: &Shared| {
        let replicas = [shared.replica().await, shared.replica().await];
        let holder = Holder::new(&[limit("ten", 10)], &[]);
        for replica in &replicas {
            replica.limits.shared().expect("shared").set_live(2);
            replica.store.set_away(true);
            let mut admitted = 0;
            for _ in 0..8 {
                admitted += i32::from(replica.charge(&holder, 1).await?.denied.is_none());
            }
            assert_eq!((admitted, replica.is_degraded()), (5, true), "half of it");
        }
        assert_eq!(shared.count(holder.key.counter_id, "ten").await, 0);
        for replica in &replicas {
            replica.store.set_away(false);
            let limits = replica.limits.shared().expect("shared");
            wait_until("the counters to be back", async || {
                limits.probe().await;
                !limits.is_degraded()
            })
            .await;
        }
        // With whatever comes next, here a peek.
        for (replica, standing) in replicas.iter().zip([5, 0]) {
            let charged = replica.charge(&holder, 0).await?;
            assert_eq!(told(&charged), [("ten".to_owned(), standing, standing == 0)]);
        }
        assert!(replicas[0].charge(&holder, 1).await?.denied.is_some());
        assert_eq!(shared.count(holder.key.counter_id, "ten").await, 10, "told once");
        Some(())
    })
    .await;
}

#[tokio::test]
async fn a_charge_that_waits_in_vain_is_made_alone_and_keeps_no_other_from_the_counters() {
    let shared = Shared::new().await;
    let replica = shared.replica().await;
    let holder = Holder::new(&[limit("two", 2)], &[]);
    let locked = shared.database.connect().await;
    let lock = "BEGIN; LOCK TABLE rate_limit_tracking IN EXCLUSIVE MODE";
    locked.execute_unprepared(lock).await.expect("locked");
    for is_denied in [false, false, true] {
        let begun = Instant::now();
        let charged = replica.limits.charge(&holder.charge(&[], 1)).await;
        assert_eq!(charged.denied.is_some(), is_denied);
        assert!((BUDGET..SOON).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
    assert!(!replica.is_degraded(), "it says nothing of other organizations");
    locked.execute_unprepared("ROLLBACK").await.expect("unlocked");
    wait_until("what was charged alone to be told", async || {
        let _ = replica.charge(&holder, 0).await;
        shared.count(holder.key.counter_id, "two").await >= 2
    })
    .await;
}
