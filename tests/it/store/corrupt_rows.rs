//! A row that cannot be read refuses itself and no other: a look-up of it says `Corrupt`, which is "we do not know"
//! and never "there is no such key", lists leave it out, and nothing repeats the value.

use keystead::domain::{
    key::{ApiKey, KeyFilter},
    organization::{OrganizationFilter, OrganizationSelector},
    permission::Reach,
};
use keystead::store::{StoreError, api_keys as keys, organizations};

use super::{World, find_record, page};
use crate::harness::{Engine, TestDatabase, samples, store_test};

/// Values that no version has ever written, each in its column of `api_keys`.
const KEY_NONSENSE: [(&str, &str); 17] = [
    ("status", "'nonsense'"),
    ("status", "''"),
    ("scopes", "'nonsense'"),
    ("scopes", "'[\"nonsense scope\"]'"),
    ("scopes", "'{\"nonsense\":1}'"),
    ("metadata", "'nonsense'"),
    ("metadata", "'{\"nonsense\":1}'"),
    ("environment", "'nonsense'"),
    ("allowed_cidrs", "'[\"nonsense/33\"]'"),
    ("rate_limits", "'[{\"nonsense\":1}]'"),
    ("rate_limits", "'[{\"name\":\"nonsense\",\"limit\":0,\"window_us\":1000000}]'"),
    ("credits_remaining", "-1"),
    ("credits_refill_interval", "'nonsense'"),
    ("counter_id", "'nonsense'"),
    ("successor_id", "'nonsense'"),
    ("rotated_from_id", "'nonsense'"),
    ("id", "'nonsense'"),
];

/// What a verification does not need, and so does not trip over.
const UNREAD_BY_VERIFICATIONS: [&str; 1] = ["rotated_from_id"];

const ORGANIZATION_NONSENSE: [(&str, &str); 5] = [
    ("plan", "'nonsense'"),
    ("metadata", "'nonsense'"),
    ("rate_limits", "'[nonsense'"),
    ("secret_prefix", "'NONSENSE nonsense'"),
    ("id", "'nonsense'"),
];

fn assert_corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>, what: &str) {
    match result {
        Err(error @ StoreError::Corrupt(_)) => {
            let column = what.split('=').next().unwrap_or_default().trim();
            assert!(error.to_string().contains(column), "{what}: {error}");
            assert!(!error.chain().contains("nonsense") || column == "id", "{what}: {error}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

/// The rows of the list, and whether `key` is among them.
async fn listed(world: &World) -> Vec<ApiKey> {
    let filter = KeyFilter::all_of(world.acme.id);
    let reach = Reach::Only(world.acme.id);
    keys::list(world.store.control(), reach, &filter, samples::NOW, &page(10, None)).await.expect("a page").rows
}

store_test!(a_key_that_cannot_be_read_is_refused_and_no_other_is);
async fn a_key_that_cannot_be_read_is_refused_and_no_other_is(database: TestDatabase) {
    let world = World::new(database).await;
    let good = world.add_key(|key| *key = samples::full_key(key.organization_id)).await;
    for (column, value) in KEY_NONSENSE {
        let bad = world.add_key(|key| *key = samples::full_key(key.organization_id)).await;
        let what = format!("{column} = {value}");
        world.database.raw_sql(&format!("UPDATE api_keys SET {what} WHERE id = '{}'", bad.id)).await;

        let found = find_record(world.store.verify(), &samples::digest_of(&bad)).await;
        if UNREAD_BY_VERIFICATIONS.contains(&column) {
            assert!(matches!(found, Ok(Some(_))), "{what}: {found:?}");
        } else {
            assert_corrupt(found, &what);
        }
        if column != "id" {
            for reach in [Reach::All, Reach::Only(world.acme.id)] {
                assert_corrupt(keys::find(world.db(), reach, bad.id).await, &what);
            }
            let transaction = world.begin().await;
            assert_corrupt(keys::find_locked(&transaction, Reach::All, bad.id).await, &what);
            drop(transaction);
            assert_eq!(
                keystead::store::rotations::find_credits(world.db(), &[bad.id, good.id]).await.expect("no fault").len(),
                1
            );
            let found = keys::find_digest(world.db(), bad.id).await.expect("what an eviction needs can be read");
            assert_eq!(found, Some(samples::digest_of(&bad)));
        }
        assert_eq!(world.stored(&good).await, good, "{what}");
        let found = find_record(world.db(), &samples::digest_of(&good)).await.expect("a readable row");
        assert_eq!(found, Some(samples::record(&good)), "{what}");
        assert_eq!(listed(&world).await, std::slice::from_ref(&good), "{what}");
        assert_eq!(
            keystead::store::key_counts::count_all(world.db(), world.acme.id).await.expect("a count"),
            2,
            "it is there all the same"
        );

        let digest_of_bad = format!("DELETE FROM api_keys WHERE id <> '{}'", good.id);
        world.database.raw_sql(&digest_of_bad).await;
    }
}

/// SQLite alone: PostgreSQL does not take a value of another type.
#[tokio::test]
async fn a_key_with_a_value_of_the_wrong_type_is_refused_and_no_other_is() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await).await;
    let good = world.add_key(|_| {}).await;
    for assignment in ["expire_time_us = 'soon'", "name = x'ff'", "credits_remaining = 'many'"] {
        let bad = world.add_key(|_| {}).await;
        world.database.raw_sql(&format!("UPDATE api_keys SET {assignment} WHERE id = '{}'", bad.id)).await;
        let found = find_record(world.store.verify(), &samples::digest_of(&bad)).await;
        assert!(matches!(found, Err(StoreError::Corrupt(_))), "{assignment}: {found:?}");
        assert_eq!(listed(&world).await, std::slice::from_ref(&good), "{assignment}");
        world.database.raw_sql(&format!("DELETE FROM api_keys WHERE id = '{}'", bad.id)).await;
    }
}

store_test!(a_key_that_cannot_be_read_does_not_end_the_paging_behind_it);
async fn a_key_that_cannot_be_read_does_not_end_the_paging_behind_it(database: TestDatabase) {
    let world = World::new(database).await;
    let mut written = Vec::new();
    for at in 0..9 {
        written.push(world.add_key(|key| key.create_time = samples::seconds(-at)).await);
    }
    // The whole second page, the first row of the first, the last of the third.
    for at in [0, 3, 4, 5, 8] {
        world.database.raw_sql(&format!("UPDATE api_keys SET scopes = 'x' WHERE id = '{}'", written[at].id)).await;
    }
    let (mut shown, mut after) = (Vec::new(), None);
    loop {
        let filter = KeyFilter::all_of(world.acme.id);
        let listed = keys::list(world.db(), Reach::All, &filter, samples::NOW, &page(3, after)).await.expect("a page");
        shown.extend(listed.rows);
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    let expected: Vec<_> = [1, 2, 6, 7].iter().map(|at| written[*at].clone()).collect();
    assert_eq!(shown, expected);
}

store_test!(a_corrupt_key_can_be_repaired_and_revoked);
async fn a_corrupt_key_can_be_repaired_and_revoked(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    world.database.raw_sql(&format!("UPDATE api_keys SET metadata = 'x' WHERE id = '{}'", key.id)).await;
    assert_corrupt(keys::find(world.db(), Reach::All, key.id).await, "metadata");
    world.database.raw_sql(&format!("UPDATE api_keys SET metadata = '{{}}' WHERE id = '{}'", key.id)).await;
    assert_eq!(world.stored(&key).await, key);
}

store_test!(an_organization_that_cannot_be_read_is_refused_and_no_other_is);
async fn an_organization_that_cannot_be_read_is_refused_and_no_other_is(database: TestDatabase) {
    let world = World::new(database).await;
    for (column, value) in ORGANIZATION_NONSENSE {
        let bad = world.add_organization("bad").await;
        let what = format!("{column} = {value}");
        world.database.raw_sql(&format!("UPDATE organizations SET {what} WHERE slug = 'bad'")).await;
        let selector = OrganizationSelector::Slug("bad".to_owned());
        assert_corrupt(organizations::find(world.db(), Reach::All, &selector).await, &what);
        if column != "id" {
            assert_corrupt(organizations::find_by_id(world.store.verify(), Reach::All, bad.id).await, &what);
        }
        let all = OrganizationFilter::default();
        let listed = organizations::list(world.db(), Reach::All, &all, &page(10, None)).await.expect("a page");
        assert_eq!(listed.rows, std::slice::from_ref(&world.acme), "{what}");
        let found = organizations::find_by_id(world.db(), Reach::All, world.acme.id).await.expect("a readable row");
        assert_eq!(found.as_ref(), Some(&world.acme), "{what}");
        world.database.raw_sql("DELETE FROM organizations WHERE slug = 'bad'").await;
    }
}
