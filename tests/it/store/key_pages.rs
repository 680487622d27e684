//! Keyset paging of `store::api_keys::list`: thousands of keys of one moment, each shown once and in one order,
//! while others are created, revoked and deleted around it.

use std::collections::HashSet;

use keystead::domain::{
    ids::KeyId,
    key::{ApiKey, KeyFilter},
    page::{Page, Position},
    permission::Reach,
};
use keystead::store::api_keys as keys;

use super::{World, commit_all, insert, page};
use crate::harness::{TestDatabase, samples, store_test};

/// Writes so many keys, all of one moment, in one transaction.
async fn add_keys(world: &World, count: usize) -> HashSet<KeyId> {
    let transaction = world.begin().await;
    let mut ids = HashSet::new();
    for _ in 0..count {
        let key = samples::key(world.acme.id);
        insert(&transaction, &key).await;
        ids.insert(key.id);
    }
    commit_all(transaction).await;
    ids
}

async fn read(world: &World, size: u64, after: Option<Position>) -> Page<ApiKey> {
    let filter = KeyFilter::all_of(world.acme.id);
    let reach = Reach::Only(world.acme.id);
    keys::list(world.store.control(), reach, &filter, samples::NOW, &page(size, after)).await.expect("a page")
}

store_test!(two_and_a_half_thousand_keys_of_one_moment_are_each_shown_once_in_one_order);
async fn two_and_a_half_thousand_keys_of_one_moment_are_each_shown_once_in_one_order(database: TestDatabase) {
    let world = World::new(database).await;
    let written = add_keys(&world, 2500).await;
    for size in [1000, 77] {
        let (mut shown, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let listed = read(&world, size, after).await;
            pages += 1;
            let rows = u64::try_from(listed.rows.len()).expect("a small number");
            assert!(rows == size || listed.next.is_none(), "only the last page is short");
            shown.extend(listed.rows.into_iter().map(|key| key.id));
            after = listed.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(pages, 2500_u64.div_ceil(size));
        assert!(shown.is_sorted_by(|a, b| a > b), "one order, and nothing twice");
        assert_eq!(shown.into_iter().collect::<HashSet<_>>(), written);
    }
}

store_test!(a_page_that_holds_exactly_what_is_left_is_the_last);
async fn a_page_that_holds_exactly_what_is_left_is_the_last(database: TestDatabase) {
    let world = World::new(database).await;
    assert!(read(&world, 1, None).await.next.is_none(), "nothing is a page too");
    add_keys(&world, 6).await;
    let first = read(&world, 3, None).await;
    let second = read(&world, 3, first.next.clone()).await;
    assert_eq!((first.rows.len(), second.rows.len()), (3, 3));
    assert!(first.next.is_some() && second.next.is_none());
    assert!(read(&world, 6, None).await.next.is_none());
    assert!(read(&world, 5, None).await.next.is_some());
}

store_test!(pages_show_every_key_that_stays_while_others_come_and_go);
async fn pages_show_every_key_that_stays_while_others_come_and_go(database: TestDatabase) {
    let world = World::new(database).await;
    let stay = add_keys(&world, 300).await;
    let (mut shown, mut after) = (Vec::new(), None);
    loop {
        let listed = read(&world, 20, after).await;
        // A key of the same moment and a newer one come; the row that the next page begins after goes.
        add_keys(&world, 3).await;
        world.add_key(|key| key.create_time = samples::seconds(5)).await;
        if let Some(last) = listed.rows.last() {
            let id = last.id;
            let sql = format!("UPDATE api_keys SET status = 'revoked' WHERE id = '{id}'");
            world.database.raw_sql(&sql).await;
            if !stay.contains(&id) {
                world.database.raw_sql(&format!("DELETE FROM api_keys WHERE id = '{id}'")).await;
            }
        }
        shown.extend(listed.rows.into_iter().map(|key| key.id));
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    assert!(shown.is_sorted_by(|a, b| a > b), "nothing is shown twice");
    let shown: HashSet<KeyId> = shown.into_iter().collect();
    assert!(stay.is_subset(&shown), "{} were skipped", stay.difference(&shown).count());
}

store_test!(a_page_goes_by_moment_first_and_by_id_within_one);
async fn a_page_goes_by_moment_first_and_by_id_within_one(database: TestDatabase) {
    let world = World::new(database).await;
    let mut written = Vec::new();
    for at in [3, 1, 2, 2, 3, 1, 2] {
        written.push(world.add_key(|key| key.create_time = samples::seconds(at)).await);
    }
    written.sort_by_key(|key| std::cmp::Reverse((key.create_time, key.id)));
    let (mut shown, mut after) = (Vec::new(), None);
    for _ in 0..7 {
        let listed = read(&world, 1, after).await;
        shown.extend(listed.rows);
        after = listed.next;
    }
    assert_eq!(shown, written);
    assert!(after.is_none());
}
