//! `store::credits`: exact under any concurrency. Never below zero, a due refill counts once, and credits that
//! moved to a newer key are not spent where they stood.

use keystead::domain::{
    ids::KeyId,
    key::ApiKey,
    limits::{Credits, Refill, RefillInterval},
    permission::Reach,
    time::Timestamp,
};
use keystead::store::{
    Store, api_keys as keys, commit,
    credits::{self, Balance, Spent},
};

use super::{World, commit_all, insert};
use crate::harness::{TestDatabase, samples, store_test};

async fn add_key(world: &World, remaining: i64, refill: Option<(Refill, Timestamp)>) -> ApiKey {
    world
        .add_key(|key| {
            key.credits = Some(Credits { remaining, refill: refill.map(|(refill, _)| refill) });
            key.refill_time = refill.map(|(_, due)| due);
        })
        .await
}

async fn spend(world: &World, key: &ApiKey, cost: i64, now: Timestamp) -> Spent {
    credits::spend(world.db(), key.id, cost, now).await.expect("no fault")
}

async fn remaining(world: &World, key: &ApiKey, now: Timestamp) -> Balance {
    credits::balance(world.store.verify(), key.id, now).await.expect("no fault")
}

/// What stands in the row.
async fn stored(world: &World, key: &ApiKey) -> i64 {
    world.stored(key).await.credits.expect("credits").remaining
}

/// Spends `cost` in so many tasks at once, all at the same moment.
async fn spend_at_once(world: &World, key: &ApiKey, tasks: usize, cost: i64, now: Timestamp) -> Vec<Spent> {
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (store, id) = (world.store.clone(), key.id);
            tokio::spawn(async move { credits::spend(store.write(), id, cost, now).await })
        })
        .collect();
    let mut spent = Vec::new();
    for task in tasks {
        spent.push(task.await.expect("no panic").expect("no fault"));
    }
    spent
}

fn charged(spent: &[Spent]) -> Vec<i64> {
    let mut remaining: Vec<i64> = spent
        .iter()
        .filter_map(|spent| match spent {
            Spent::Charged { remaining } => Some(*remaining),
            Spent::Refused(_) => None,
        })
        .collect();
    remaining.sort_unstable_by_key(|remaining| std::cmp::Reverse(*remaining));
    remaining
}

store_test!(a_spend_is_charged_whole_or_not_at_all);
async fn a_spend_is_charged_whole_or_not_at_all(database: TestDatabase) {
    let world = World::new(database).await;
    let key = add_key(&world, 10, None).await;
    assert_eq!(spend(&world, &key, 7, samples::NOW).await, Spent::Charged { remaining: 3 });
    assert_eq!(spend(&world, &key, 4, samples::NOW).await, Spent::Refused(Balance::Remaining(3)));
    assert_eq!(spend(&world, &key, 3, samples::NOW).await, Spent::Charged { remaining: 0 });
    assert_eq!(spend(&world, &key, 1, samples::NOW).await, Spent::Refused(Balance::Remaining(0)));
    assert_eq!(remaining(&world, &key, samples::NOW).await, Balance::Remaining(0));
    assert_eq!(stored(&world, &key).await, 0);
}

store_test!(fifty_that_spend_at_once_never_overspend_and_each_sees_another_rest);
async fn fifty_that_spend_at_once_never_overspend_and_each_sees_another_rest(database: TestDatabase) {
    let world = World::new(database).await;
    let key = add_key(&world, 100, None).await;
    let spent = spend_at_once(&world, &key, 50, 3, samples::NOW).await;
    let expected: Vec<i64> = (1..=33).map(|times| 100 - 3 * times).collect();
    assert_eq!(charged(&spent), expected);
    let others = spent.iter().filter(|spent| **spent == Spent::Refused(Balance::Remaining(1))).count();
    assert_eq!(others, 17);
    assert_eq!(stored(&world, &key).await, 1);
}

store_test!(spending_leaves_every_other_key_alone);
async fn spending_leaves_every_other_key_alone(database: TestDatabase) {
    let world = World::new(database).await;
    let key = add_key(&world, 10, None).await;
    let other = add_key(&world, 10, None).await;
    spend(&world, &key, 4, samples::NOW).await;
    let after = ApiKey { credits: Some(Credits { remaining: 6, refill: None }), ..key.clone() };
    assert_eq!(world.stored(&key).await, after);
    assert_eq!(world.stored(&other).await, other);
}

store_test!(a_key_without_credits_is_unlimited_and_one_that_is_gone_has_nothing_to_spend);
async fn a_key_without_credits_is_unlimited_and_one_that_is_gone_has_nothing_to_spend(database: TestDatabase) {
    let world = World::new(database).await;
    let without = world.add_key(|_| {}).await;
    let gone = samples::key(world.acme.id);
    for (key, balance) in [(&without, Balance::Unlimited), (&gone, Balance::Gone)] {
        assert_eq!(spend(&world, key, 1, samples::NOW).await, Spent::Refused(balance));
        assert_eq!(remaining(&world, key, samples::NOW).await, balance);
    }
    assert_eq!(world.stored(&without).await, without);
}

store_test!(a_due_refill_counts_once_however_many_spend_at_that_moment);
async fn a_due_refill_counts_once_however_many_spend_at_that_moment(database: TestDatabase) {
    let world = World::new(database).await;
    for interval in [RefillInterval::Day, RefillInterval::Month] {
        let refill = samples::refill(20, interval);
        let key = add_key(&world, 3, Some((refill, samples::NOW))).await;
        let spent = spend_at_once(&world, &key, 50, 1, samples::NOW).await;
        assert_eq!(charged(&spent), (0..20).rev().collect::<Vec<i64>>(), "raised to 20, by one of them");
        let after = world.stored(&key).await;
        assert_eq!(after.credits.expect("credits").remaining, 0);
        assert_eq!(after.refill_time, Some(refill.interval.next_after(samples::NOW)));
        // Due again at the next one, not a microsecond before.
        let next = refill.interval.next_after(samples::NOW);
        let just_before = Timestamp::from_micros(next.micros() - 1);
        assert_eq!(spend(&world, &key, 1, just_before).await, Spent::Refused(Balance::Remaining(0)));
        assert_eq!(spend(&world, &key, 1, next).await, Spent::Charged { remaining: 19 });
    }
}

store_test!(a_refill_that_is_long_overdue_counts_once_too);
async fn a_refill_that_is_long_overdue_counts_once_too(database: TestDatabase) {
    let world = World::new(database).await;
    let refill = samples::refill(5, RefillInterval::Day);
    let key = add_key(&world, 0, Some((refill, samples::NOW))).await;
    let later = samples::seconds(10 * 86_400 + 7);
    assert_eq!(spend(&world, &key, 2, later).await, Spent::Charged { remaining: 3 });
    assert_eq!(world.stored(&key).await.refill_time, Some(refill.interval.next_after(later)));
    assert_eq!(spend(&world, &key, 4, later).await, Spent::Refused(Balance::Remaining(3)));
}

store_test!(months_of_downtime_raise_once);
async fn months_of_downtime_raise_once(database: TestDatabase) {
    let world = World::new(database).await;
    for (interval, next_after_days) in [(RefillInterval::Day, 177), (RefillInterval::Month, 198)] {
        let refill = samples::refill(5, interval);
        let key = add_key(&world, 2, Some((refill, interval.next_after(samples::NOW)))).await;
        // The 10th of July, 08:00; the next refills are on the 11th, and on the 1st of August.
        let later = samples::seconds(176 * 86_400);
        let next = Timestamp::from_micros(samples::NOW.start_of_day().micros() + next_after_days * 86_400_000_000);
        assert_eq!(spend(&world, &key, 5, later).await, Spent::Charged { remaining: 0 });
        assert_eq!(world.stored(&key).await.refill_time, Some(next));
        assert_eq!(spend(&world, &key, 1, later).await, Spent::Refused(Balance::Remaining(0)));
    }
}

store_test!(a_clock_that_steps_back_over_a_refill_gets_it_once);
async fn a_clock_that_steps_back_over_a_refill_gets_it_once(database: TestDatabase) {
    let world = World::new(database).await;
    for interval in [RefillInterval::Day, RefillInterval::Month] {
        let refill = samples::refill(5, interval);
        let midnight = interval.next_after(samples::NOW);
        let key = add_key(&world, 0, Some((refill, midnight))).await;
        let hour = std::time::Duration::from_hours(1);
        let half_past = midnight.plus(hour / 2);
        assert_eq!(spend(&world, &key, 5, half_past).await, Spent::Charged { remaining: 0 });
        for again in [half_past.minus(hour), midnight, half_past, interval.next_after(midnight).minus(hour)] {
            assert_eq!(spend(&world, &key, 1, again).await, Spent::Refused(Balance::Remaining(0)), "{again:?}");
            assert_eq!(remaining(&world, &key, again).await, Balance::Remaining(0));
        }
        assert_eq!(world.stored(&key).await.refill_time, Some(interval.next_after(midnight)));
        assert_eq!(spend(&world, &key, 1, interval.next_after(midnight)).await, Spent::Charged { remaining: 4 });
    }
}

store_test!(a_refill_taken_before_a_rotation_is_not_taken_again_after_it);
async fn a_refill_taken_before_a_rotation_is_not_taken_again_after_it(database: TestDatabase) {
    let world = World::new(database).await;
    let refill = samples::refill(5, RefillInterval::Day);
    let old = add_key(&world, 0, Some((refill, samples::NOW))).await;
    assert_eq!(spend(&world, &old, 5, samples::NOW).await, Spent::Charged { remaining: 0 });
    let newest = rotate(&world.store, old.id).await;
    assert_eq!(spend(&world, &newest, 1, samples::NOW).await, Spent::Refused(Balance::Remaining(0)));
    let next = RefillInterval::Day.next_after(samples::NOW);
    assert_eq!(spend(&world, &newest, 1, next).await, Spent::Charged { remaining: 4 });
}

store_test!(a_refill_raises_and_never_lowers_what_remains);
async fn a_refill_raises_and_never_lowers_what_remains(database: TestDatabase) {
    let world = World::new(database).await;
    let refill = samples::refill(10, RefillInterval::Day);
    let key = add_key(&world, 25, Some((refill, samples::NOW))).await;
    assert_eq!(spend(&world, &key, 1, samples::NOW).await, Spent::Charged { remaining: 24 });
    assert_eq!(world.stored(&key).await.refill_time, Some(refill.interval.next_after(samples::NOW)));
}

store_test!(a_due_refill_that_is_not_enough_charges_nothing_and_stays_due);
async fn a_due_refill_that_is_not_enough_charges_nothing_and_stays_due(database: TestDatabase) {
    let world = World::new(database).await;
    let refill = samples::refill(10, RefillInterval::Day);
    let key = add_key(&world, 0, Some((refill, samples::NOW))).await;
    assert_eq!(spend(&world, &key, 11, samples::NOW).await, Spent::Refused(Balance::Remaining(10)));
    assert_eq!(world.stored(&key).await, key, "nothing was written");
    assert_eq!(spend(&world, &key, 10, samples::NOW).await, Spent::Charged { remaining: 0 });
}

store_test!(asking_what_remains_counts_a_due_refill_and_charges_nothing);
async fn asking_what_remains_counts_a_due_refill_and_charges_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let refill = samples::refill(10, RefillInterval::Day);
    let key = add_key(&world, 4, Some((refill, samples::seconds(60)))).await;
    assert_eq!(remaining(&world, &key, samples::NOW).await, Balance::Remaining(4));
    assert_eq!(remaining(&world, &key, samples::seconds(60)).await, Balance::Remaining(10));
    assert_eq!(world.stored(&key).await, key);
}

/// Rotates as the service does: a new key takes the credits over, under the old one's lock.
async fn rotate(store: &Store, id: KeyId) -> ApiKey {
    let transaction = store.begin().await.expect("a transaction begins");
    let before = keys::find_locked(&transaction, Reach::All, id).await.expect("a readable row").expect("a row");
    let fresh = samples::key(before.organization_id);
    let newest = ApiKey { id: fresh.id, rotated_from_id: Some(id), ..before };
    insert(&transaction, &newest).await;
    keystead::store::rotations::update_successor(&transaction, id, newest.id).await.expect("an update");
    commit(transaction).await.expect("a commit");
    newest
}

store_test!(after_a_rotation_the_credits_stand_in_the_newest_key_for_every_key_of_the_chain);
async fn after_a_rotation_the_credits_stand_in_the_newest_key_for_every_key_of_the_chain(database: TestDatabase) {
    let world = World::new(database).await;
    let bystander = add_key(&world, 10, None).await;
    let first = add_key(&world, 10, None).await;
    let second = rotate(&world.store, first.id).await;
    assert_eq!(spend(&world, &first, 1, samples::NOW).await, Spent::Refused(Balance::Moved { to: second.id }));
    let third = rotate(&world.store, second.id).await;
    for old in [&first, &second] {
        assert_eq!(spend(&world, old, 1, samples::NOW).await, Spent::Refused(Balance::Moved { to: third.id }));
        assert_eq!(remaining(&world, old, samples::NOW).await, Balance::Moved { to: third.id });
        let old = world.stored(old).await;
        assert_eq!((old.successor_id, old.credits_id()), (Some(third.id), third.id));
    }
    assert_eq!(spend(&world, &third, 1, samples::NOW).await, Spent::Charged { remaining: 9 });
    let held = keystead::store::rotations::find_credits(world.store.control(), &[third.id]).await.expect("credits");
    assert_eq!(held, [(third.id, Some(Credits { remaining: 9, refill: None }), None)]);
    assert_eq!(world.stored(&bystander).await, bystander);
}

store_test!(a_key_without_credits_stays_unlimited_over_a_rotation);
async fn a_key_without_credits_stays_unlimited_over_a_rotation(database: TestDatabase) {
    let world = World::new(database).await;
    let old = world.add_key(|_| {}).await;
    let newest = rotate(&world.store, old.id).await;
    assert_eq!(world.stored(&old).await.credits, None);
    assert_eq!(spend(&world, &newest, 1, samples::NOW).await, Spent::Refused(Balance::Unlimited));
    assert_eq!(spend(&world, &old, 1, samples::NOW).await, Spent::Refused(Balance::Moved { to: newest.id }));
}

store_test!(every_key_of_a_chain_follows_when_the_newest_becomes_unlimited_or_limited_again);
async fn every_key_of_a_chain_follows_when_the_newest_becomes_unlimited_or_limited_again(database: TestDatabase) {
    let world = World::new(database).await;
    let bystander = add_key(&world, 10, None).await;
    let first = add_key(&world, 10, None).await;
    let second = rotate(&world.store, first.id).await;
    let third = rotate(&world.store, second.id).await;
    for limited in [false, true, false] {
        let mut digests =
            keystead::store::rotations::update_predecessors(world.db(), third.id, limited).await.expect("an update");
        let mut expected = vec![samples::digest_of(&first), samples::digest_of(&second)];
        digests.sort_by_key(|digest| *digest.as_bytes());
        expected.sort_by_key(|digest| *digest.as_bytes());
        assert_eq!(digests, expected);
        for old in [&first, &second] {
            let none = limited.then_some(Credits { remaining: 0, refill: None });
            assert_eq!(world.stored(old).await.credits, none);
            assert_eq!(spend(&world, old, 1, samples::NOW).await, Spent::Refused(Balance::Moved { to: third.id }));
        }
    }
    assert_eq!(
        keystead::store::rotations::update_predecessors(world.db(), bystander.id, false).await.expect("no fault"),
        []
    );
    assert_eq!(world.stored(&bystander).await, bystander);
    assert_eq!(world.stored(&third).await, third);
}

store_test!(a_refill_that_falls_due_on_a_rotated_key_is_not_spent_there);
async fn a_refill_that_falls_due_on_a_rotated_key_is_not_spent_there(database: TestDatabase) {
    let world = World::new(database).await;
    let refill = samples::refill(10, RefillInterval::Day);
    let old = add_key(&world, 4, Some((refill, samples::seconds(60)))).await;
    let newest = rotate(&world.store, old.id).await;
    // A replica that has not heard of the rotation yet spends against the row that it knows.
    for now in [samples::NOW, samples::seconds(60), samples::seconds(999_999)] {
        assert_eq!(spend(&world, &old, 1, now).await, Spent::Refused(Balance::Moved { to: newest.id }));
        assert_eq!(spend(&world, &old, 0, now).await, Spent::Refused(Balance::Moved { to: newest.id }));
    }
    assert_eq!(spend(&world, &newest, 10, samples::seconds(60)).await, Spent::Charged { remaining: 0 });
}

store_test!(a_rotation_in_the_midst_of_spends_neither_loses_nor_doubles_a_credit);
async fn a_rotation_in_the_midst_of_spends_neither_loses_nor_doubles_a_credit(database: TestDatabase) {
    let world = World::new(database).await;
    let refill = samples::refill(30, RefillInterval::Day);
    let key = add_key(&world, 3, Some((refill, samples::NOW))).await;
    let spenders: Vec<_> = (0..50)
        .map(|_| {
            let (store, mut holder) = (world.store.clone(), key.id);
            tokio::spawn(async move {
                loop {
                    let spent = credits::spend(store.write(), holder, 1, samples::NOW).await;
                    match spent.expect("no fault") {
                        Spent::Charged { .. } => return 1,
                        Spent::Refused(Balance::Remaining(_)) => return 0,
                        Spent::Refused(Balance::Moved { to }) => holder = to,
                        Spent::Refused(Balance::Unlimited | Balance::Gone) => panic!("the credits vanished"),
                    }
                }
            })
        })
        .collect();
    let mut newest = key.clone();
    for _ in 0..3 {
        newest = rotate(&world.store, newest.id).await;
    }
    let mut spent = 0;
    for spender in spenders {
        spent += spender.await.expect("no panic");
    }
    assert_eq!(spent, 30, "raised to 30 once, and all of it spent");
    assert_eq!(stored(&world, &newest).await, 0);
    let transaction = world.begin().await;
    assert_eq!(keystead::store::key_counts::count_all(&transaction, world.acme.id).await.expect("a count"), 4);
    commit_all(transaction).await;
}
