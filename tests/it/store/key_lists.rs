//! The filters of `store::api_keys::list`, each alone and all together. Paging has a file of its own.

use keystead::domain::{
    key::{Environment, KeyFilter, KeyStatus, StoredStatus},
    permission::Reach,
    text,
    time::Timestamp,
};
use keystead::store::api_keys as keys;

use super::{World, page};
use crate::harness::{TestDatabase, samples, store_test};

/// The names of the keys that a filter shows at `now`, sorted.
async fn shown_at(world: &World, now: Timestamp, change: impl FnOnce(&mut KeyFilter)) -> Vec<String> {
    let mut filter = KeyFilter::all_of(world.acme.id);
    change(&mut filter);
    let reach = Reach::Only(world.acme.id);
    let listed = keys::list(world.store.control(), reach, &filter, now, &page(100, None)).await.expect("a page");
    assert!(listed.next.is_none());
    let mut names: Vec<String> = listed.rows.into_iter().map(|key| key.name).collect();
    names.sort();
    names
}

async fn shown(world: &World, change: impl FnOnce(&mut KeyFilter)) -> Vec<String> {
    shown_at(world, samples::NOW, change).await
}

const NONE: [&str; 0] = [];

store_test!(a_list_shows_one_organizations_keys_newest_first);
async fn a_list_shows_one_organizations_keys_newest_first(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    world.add_key(|key| key.organization_id = other.id).await;
    let mut written = Vec::new();
    for age in [20, 10, 15] {
        let full = |key: &mut keystead::domain::key::ApiKey| *key = samples::full_key(key.organization_id);
        written.push(
            world
                .add_key(|key| {
                    full(key);
                    key.create_time = samples::seconds(-age);
                })
                .await,
        );
    }
    written.sort_by_key(|key| std::cmp::Reverse(key.create_time));
    for reach in [Reach::All, Reach::Only(world.acme.id)] {
        let filter = KeyFilter::all_of(world.acme.id);
        let listed = keys::list(world.db(), reach, &filter, samples::NOW, &page(10, None)).await.expect("a page");
        assert_eq!(listed.rows, written, "whole records, in order");
        assert!(listed.next.is_none());
    }
}

store_test!(status_is_told_by_row_and_clock_each_key_under_exactly_one);
async fn status_is_told_by_row_and_clock_each_key_under_exactly_one(database: TestDatabase) {
    let world = World::new(database).await;
    let kinds = [
        ("active", StoredStatus::Active, None),
        ("active until later", StoredStatus::Active, Some(1)),
        ("expired just now", StoredStatus::Active, Some(0)),
        ("expired long ago", StoredStatus::Active, Some(-1_000_000)),
        ("disabled", StoredStatus::Disabled, None),
        ("disabled, expired", StoredStatus::Disabled, Some(-1)),
        ("revoked", StoredStatus::Revoked, None),
        ("revoked, expired", StoredStatus::Revoked, Some(-1)),
    ];
    for (name, stored_status, expiry) in kinds {
        world
            .add_key(|key| {
                (key.name, key.stored_status) = (name.to_owned(), stored_status);
                key.expire_time = expiry.map(samples::seconds);
            })
            .await;
    }
    let with = |status| move |filter: &mut KeyFilter| filter.status = Some(status);
    assert_eq!(shown(&world, with(KeyStatus::Active)).await, ["active", "active until later"]);
    assert_eq!(shown(&world, with(KeyStatus::Expired)).await, ["expired just now", "expired long ago"]);
    assert_eq!(shown(&world, with(KeyStatus::Disabled)).await, ["disabled", "disabled, expired"]);
    assert_eq!(shown(&world, with(KeyStatus::Revoked)).await, ["revoked", "revoked, expired"]);
    assert_eq!(shown(&world, |_| {}).await.len(), kinds.len());
    // The clock alone moves a key from one to the other.
    let later = samples::seconds(1);
    assert_eq!(shown_at(&world, later, with(KeyStatus::Active)).await, ["active"]);
    let earlier = samples::seconds(-1);
    let active = shown_at(&world, earlier, with(KeyStatus::Active)).await;
    assert_eq!(active, ["active", "active until later", "expired just now"]);
}

store_test!(environment_and_owner_are_compared_exactly);
async fn environment_and_owner_are_compared_exactly(database: TestDatabase) {
    let world = World::new(database).await;
    let kinds =
        [("live", Environment::Live, "ann"), ("test", Environment::Test, "Ann"), ("nobody's", Environment::Live, "")];
    for (name, environment, owner) in kinds {
        world
            .add_key(|key| {
                (key.name, key.owner_id) = (name.to_owned(), owner.to_owned());
                key.environment = environment;
            })
            .await;
    }
    let environment = |environment| move |filter: &mut KeyFilter| filter.environment = Some(environment);
    assert_eq!(shown(&world, environment(Environment::Live)).await, ["live", "nobody's"]);
    assert_eq!(shown(&world, environment(Environment::Test)).await, ["test"]);
    let owner = |owner: &'static str| move |filter: &mut KeyFilter| filter.owner_id = Some(owner.to_owned());
    assert_eq!(shown(&world, owner("ann")).await, ["live"]);
    assert_eq!(shown(&world, owner("Ann")).await, ["test"]);
    assert_eq!(shown(&world, owner("a%")).await, NONE);
}

store_test!(a_part_of_a_name_is_found_in_any_case_of_any_script_and_wildcards_stand_for_themselves);
async fn a_part_of_a_name_is_found_in_any_case_of_any_script_and_wildcards_stand_for_themselves(
    database: TestDatabase,
) {
    let world = World::new(database).await;
    for name in
        ["100% sure", "100 sure", "a_b", "axb", "back\\slash", "ÄRGER Straße", "ΣΟΦΙΑ", "مفتاح الإنتاج", "🔑 密钥"]
    {
        world.add_named(name).await;
    }
    let expected: [(&str, &[&str]); 14] = [
        ("%", &["100% sure"]),
        ("100%", &["100% sure"]),
        ("0% S", &["100% sure"]),
        ("SURE", &["100 sure", "100% sure"]),
        ("_", &["a_b"]),
        ("A_B", &["a_b"]),
        ("\\", &["back\\slash"]),
        ("\\%", &[]),
        ("ärger", &["ÄRGER Straße"]),
        ("STRAßE", &["ÄRGER Straße"]),
        ("σοφ", &["ΣΟΦΙΑ"]),
        ("الإنتاج", &["مفتاح الإنتاج"]),
        ("🔑", &["🔑 密钥"]),
        ("'; DROP TABLE api_keys; --", &[]),
    ];
    for (part, names) in expected {
        let found = shown(&world, |filter| filter.name_contains = Some(text::fold(part))).await;
        assert_eq!(found, names, "{part:?}");
    }
}

store_test!(a_renamed_key_is_found_by_its_new_name_alone);
async fn a_renamed_key_is_found_by_its_new_name_alone(database: TestDatabase) {
    let world = World::new(database).await;
    let mut key = world.add_named("Old").await;
    "NEU".clone_into(&mut key.name);
    world.update(&key).await;
    assert_eq!(shown(&world, |filter| filter.name_contains = Some("neu".to_owned())).await, ["NEU"]);
    assert_eq!(shown(&world, |filter| filter.name_contains = Some("old".to_owned())).await, NONE);
}

store_test!(expiring_before_shows_what_expires_strictly_before_and_never_what_lasts);
async fn expiring_before_shows_what_expires_strictly_before_and_never_what_lasts(database: TestDatabase) {
    let world = World::new(database).await;
    for (name, expiry) in [("lasts", None), ("past", Some(-1)), ("soon", Some(10)), ("later", Some(20))] {
        world
            .add_key(|key| {
                name.clone_into(&mut key.name);
                key.expire_time = expiry.map(samples::seconds);
            })
            .await;
    }
    let before = |at| move |filter: &mut KeyFilter| filter.expiring_before = Some(samples::seconds(at));
    assert_eq!(shown(&world, before(10)).await, ["past"]);
    assert_eq!(shown(&world, before(11)).await, ["past", "soon"]);
    assert_eq!(shown(&world, before(1000)).await, ["later", "past", "soon"]);
    // Expiring within so many days: not expired yet, and before the end.
    let within = |filter: &mut KeyFilter| {
        filter.status = Some(KeyStatus::Active);
        filter.expiring_before = Some(samples::seconds(11));
    };
    assert_eq!(shown(&world, within).await, ["soon"]);
}

store_test!(unused_since_shows_what_was_never_used_or_not_from_that_moment_on);
async fn unused_since_shows_what_was_never_used_or_not_from_that_moment_on(database: TestDatabase) {
    let world = World::new(database).await;
    for (name, used) in [("never", None), ("long ago", Some(-100)), ("just now", Some(0))] {
        let key = world.add_named(name).await;
        if let Some(used) = used {
            keys::update_used(world.db(), &[(key.id, 1, samples::seconds(used))]).await.expect("an update");
        }
    }
    let since = |at| move |filter: &mut KeyFilter| filter.unused_since = Some(samples::seconds(at));
    assert_eq!(shown(&world, since(-100)).await, ["never"]);
    assert_eq!(shown(&world, since(-99)).await, ["long ago", "never"]);
    assert_eq!(shown(&world, since(0)).await, ["long ago", "never"]);
    assert_eq!(shown(&world, since(1)).await, ["just now", "long ago", "never"]);
}

store_test!(filters_together_show_what_passes_all_of_them);
async fn filters_together_show_what_passes_all_of_them(database: TestDatabase) {
    let world = World::new(database).await;
    let (ann, soon) = ("ann".to_owned(), Some(samples::seconds(10)));
    let wanted = world
        .add_key(|key| {
            (key.name, key.owner_id, key.expire_time) = ("Wanted one".to_owned(), ann.clone(), soon);
        })
        .await;
    // Each of these fails one filter alone.
    let near_misses: [fn(&mut keystead::domain::key::ApiKey); 6] = [
        |key| "other".clone_into(&mut key.name),
        |key| "bob".clone_into(&mut key.owner_id),
        |key| key.expire_time = Some(samples::seconds(99)),
        |key| key.expire_time = Some(samples::seconds(-1)),
        |key| key.environment = Environment::Test,
        |key| key.stored_status = StoredStatus::Disabled,
    ];
    for miss in near_misses {
        world
            .add_key(|key| {
                (key.name, key.owner_id, key.expire_time) = ("Wanted two".to_owned(), ann.clone(), soon);
                miss(key);
            })
            .await;
    }
    let used = world
        .add_key(|key| {
            (key.name, key.owner_id, key.expire_time) = ("Wanted three".to_owned(), ann.clone(), soon);
        })
        .await;
    keys::update_used(world.db(), &[(used.id, 1, samples::NOW)]).await.expect("an update");
    let all = |filter: &mut KeyFilter| {
        filter.status = Some(KeyStatus::Active);
        filter.environment = Some(Environment::Live);
        filter.owner_id = Some(ann.clone());
        filter.name_contains = Some("wanted".to_owned());
        filter.expiring_before = Some(samples::seconds(50));
        filter.unused_since = Some(samples::NOW);
    };
    assert_eq!(shown(&world, all).await, [wanted.name.as_str()]);
}
