//! `store::organizations`: finding by id, slug, email and request id, reach, writing, conflicts, and deletion,
//! which the database itself refuses while keys exist. Lists have a file of their own.

use keystead::domain::{
    ids::OrganizationId,
    organization::{Organization, OrganizationSelector, Plan},
    permission::Reach,
};
use keystead::store::{Conflict, StoreError, api_keys as keys, organizations};

use super::{World, commit_all, is_refused, nobody};
use crate::harness::{TestDatabase, samples, store_test};

fn selectors(organization: &Organization) -> Vec<OrganizationSelector> {
    let email = organization.email.clone().map(OrganizationSelector::Email);
    let others = [OrganizationSelector::Id(organization.id), OrganizationSelector::Slug(organization.slug.clone())];
    others.into_iter().chain(email).collect()
}

fn conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Conflict {
    match result {
        Err(StoreError::Conflict(conflict)) => conflict,
        other => panic!("expected a conflict: {other:?}"),
    }
}

store_test!(an_organization_is_found_by_id_slug_and_email_with_every_setting_as_it_was_written);
async fn an_organization_is_found_by_id_slug_and_email_with_every_setting_as_it_was_written(database: TestDatabase) {
    let world = World::new(database).await;
    let written = samples::full_organization("full");
    organizations::insert(world.db(), &written, None).await.expect("written");
    for reach in [Reach::All, Reach::Only(written.id)] {
        for selector in selectors(&written) {
            let found = organizations::find(world.db(), reach, &selector).await.expect("a readable row");
            assert_eq!(found.as_ref(), Some(&written), "{selector:?}");
        }
        let found = organizations::find_by_id(world.store.control(), reach, written.id).await.expect("a readable row");
        assert_eq!(found.as_ref(), Some(&written));
    }
    let plain = organizations::find_by_id(world.db(), Reach::All, world.acme.id).await.expect("a readable row");
    assert_eq!(plain, Some(world.acme.clone()));
}

store_test!(an_organization_that_is_not_there_is_absent_and_no_error);
async fn an_organization_that_is_not_there_is_absent_and_no_error(database: TestDatabase) {
    let world = World::new(database).await;
    let wanted = [
        OrganizationSelector::Id(nobody()),
        OrganizationSelector::Slug("acm".to_owned()),
        OrganizationSelector::Slug("%".to_owned()),
        OrganizationSelector::Email(String::new()),
        OrganizationSelector::Email("' OR '1'='1".to_owned()),
    ];
    for selector in wanted {
        let found = organizations::find(world.db(), Reach::All, &selector).await.expect("no fault");
        assert_eq!(found, None, "{selector:?}");
    }
    let found = organizations::find_by_request_id(world.db(), samples::record_id()).await.expect("no fault");
    assert_eq!(found, None);
}

store_test!(an_organization_out_of_reach_does_not_exist);
async fn an_organization_out_of_reach_does_not_exist(database: TestDatabase) {
    let world = World::new(database).await;
    let written = samples::full_organization("full");
    organizations::insert(world.db(), &written, None).await.expect("written");
    let reach = Reach::Only(world.acme.id);
    for selector in selectors(&written) {
        let found = organizations::find(world.db(), reach, &selector).await.expect("no fault");
        assert_eq!(found, None, "{selector:?}");
    }
    assert_eq!(organizations::find_by_id(world.db(), reach, written.id).await.expect("no fault"), None);
    let transaction = world.begin().await;
    assert_eq!(organizations::find_locked(&transaction, reach, written.id).await.expect("no fault"), None);
    assert!(organizations::find_locked(&transaction, Reach::All, written.id).await.expect("no fault").is_some());
}

store_test!(an_organization_is_found_by_the_request_that_created_it);
async fn an_organization_is_found_by_the_request_that_created_it(database: TestDatabase) {
    let world = World::new(database).await;
    let (written, request) = (samples::organization("other"), samples::record_id());
    organizations::insert(world.db(), &written, Some(request)).await.expect("written");
    let found = organizations::find_by_request_id(world.db(), request).await.expect("a readable row");
    assert_eq!(found, Some(written));
}

store_test!(a_taken_slug_email_or_request_id_is_told_apart_and_writes_nothing);
async fn a_taken_slug_email_or_request_id_is_told_apart_and_writes_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let request = samples::record_id();
    // The words of the columns as values: what was taken is not to be read from the values.
    let taken = Organization { email: Some("slug@request_id.digest".to_owned()), ..samples::organization("email") };
    organizations::insert(world.db(), &taken, Some(request)).await.expect("written");

    let same_slug = samples::organization("email");
    assert_eq!(conflict(organizations::insert(world.db(), &same_slug, None).await), Conflict::Slug);
    let same_email = Organization { email: taken.email.clone(), ..samples::organization("digest") };
    assert_eq!(conflict(organizations::insert(world.db(), &same_email, None).await), Conflict::Email);
    let same_request = samples::organization("slug");
    let repeated = organizations::insert(world.db(), &same_request, Some(request)).await;
    assert_eq!(conflict(repeated), Conflict::RequestId);

    assert_eq!(world.database.query_i64("SELECT count(*) FROM organizations").await, 2);
    // None of the three is unique where it is absent.
    world.add_organization("third").await;
}

store_test!(of_two_that_take_the_same_slug_at_once_one_gets_it_and_the_other_a_conflict);
async fn of_two_that_take_the_same_slug_at_once_one_gets_it_and_the_other_a_conflict(database: TestDatabase) {
    let world = World::new(database).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(
                async move { organizations::insert(store.write(), &samples::organization("raced"), None).await },
            )
        })
        .collect();
    let mut written = 0;
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(()) => written += 1,
            other => assert_eq!(conflict(other), Conflict::Slug),
        }
    }
    assert_eq!(written, 1);
}

store_test!(an_update_writes_every_setting_and_says_whether_there_was_such_a_row);
async fn an_update_writes_every_setting_and_says_whether_there_was_such_a_row(database: TestDatabase) {
    let world = World::new(database).await;
    let changed = Organization {
        id: world.acme.id,
        create_time: world.acme.create_time,
        ..samples::full_organization("renamed")
    };
    assert!(organizations::update(world.db(), &changed).await.expect("an update"));
    let found = organizations::find_by_id(world.db(), Reach::All, changed.id).await.expect("a readable row");
    assert_eq!(found, Some(changed.clone()));
    // And back again, so that nothing set is left behind.
    assert!(organizations::update(world.db(), &world.acme).await.expect("an update"));
    let found = organizations::find_by_id(world.db(), Reach::All, changed.id).await.expect("a readable row");
    assert_eq!(found, Some(world.acme.clone()));

    let gone = Organization { id: nobody(), ..samples::full_organization("gone") };
    assert!(!organizations::update(world.db(), &gone).await.expect("no fault"));
}

store_test!(an_update_never_moves_the_creation_time);
async fn an_update_never_moves_the_creation_time(database: TestDatabase) {
    let world = World::new(database).await;
    let moved = Organization { create_time: samples::seconds(99), ..world.acme.clone() };
    organizations::update(world.db(), &moved).await.expect("an update");
    let found = organizations::find_by_id(world.db(), Reach::All, moved.id).await.expect("no fault").expect("a row");
    assert_eq!(found.create_time, world.acme.create_time);
}

store_test!(an_update_to_a_taken_slug_or_email_is_a_conflict_and_writes_nothing);
async fn an_update_to_a_taken_slug_or_email_is_a_conflict_and_writes_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let taken = Organization { email: Some("ops@taken.example".to_owned()), ..samples::organization("taken") };
    organizations::insert(world.db(), &taken, None).await.expect("written");
    let slug = Organization { slug: "taken".to_owned(), plan: Plan::Pro, ..world.acme.clone() };
    assert_eq!(conflict(organizations::update(world.db(), &slug).await), Conflict::Slug);
    let email = Organization { email: taken.email.clone(), plan: Plan::Pro, ..world.acme.clone() };
    assert_eq!(conflict(organizations::update(world.db(), &email).await), Conflict::Email);
    let found = organizations::find_by_id(world.db(), Reach::All, world.acme.id).await.expect("a readable row");
    assert_eq!(found, Some(world.acme.clone()));
}

store_test!(an_organization_is_deactivated_and_activated_by_its_update);
async fn an_organization_is_deactivated_and_activated_by_its_update(database: TestDatabase) {
    let world = World::new(database).await;
    for active in [false, true, false] {
        let changed = Organization { active, etag: 2, ..world.acme.clone() };
        assert!(organizations::update(world.db(), &changed).await.expect("an update"));
        let found = organizations::find_by_id(world.db(), Reach::All, changed.id).await.expect("a readable row");
        assert_eq!(found, Some(changed));
    }
}

store_test!(of_many_that_change_an_organization_under_its_lock_none_is_lost);
async fn of_many_that_change_an_organization_under_its_lock_none_is_lost(database: TestDatabase) {
    let world = World::new(database).await;
    let id = world.acme.id;
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move {
                let transaction = store.begin().await.expect("a transaction begins");
                let found = organizations::find_locked(&transaction, Reach::All, id).await.expect("a readable row");
                let mut organization = found.expect("a row");
                organization.etag += 1;
                organizations::update(&transaction, &organization).await.expect("an update");
                commit_all(transaction).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let found = organizations::find_by_id(world.db(), Reach::All, id).await.expect("no fault").expect("a row");
    assert_eq!(found.etag, world.acme.etag + 20);
}

store_test!(an_organization_cannot_be_deleted_while_it_has_keys_even_revoked_ones);
async fn an_organization_cannot_be_deleted_while_it_has_keys_even_revoked_ones(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    let refused = organizations::delete(world.db(), world.acme.id).await;
    assert!(is_refused(&refused), "{refused:?}");
    world.database.raw_sql(&format!("UPDATE api_keys SET status = 'revoked' WHERE id = '{}'", key.id)).await;
    let refused = organizations::delete(world.db(), world.acme.id).await;
    assert!(is_refused(&refused), "{refused:?}");
    let found = organizations::find_by_id(world.db(), Reach::All, world.acme.id).await.expect("a readable row");
    assert_eq!(found, Some(world.acme.clone()));

    let transaction = world.begin().await;
    assert_eq!(keys::delete_of_organization(&transaction, world.acme.id).await.expect("deleted"), 1);
    assert!(organizations::delete(&transaction, world.acme.id).await.expect("deleted"));
    commit_all(transaction).await;
    let found = organizations::find_by_id(world.db(), Reach::All, world.acme.id).await.expect("no fault");
    assert_eq!(found, None);
}

store_test!(deleting_says_whether_there_was_one_and_leaves_the_others);
async fn deleting_says_whether_there_was_one_and_leaves_the_others(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    assert!(organizations::delete(world.db(), other.id).await.expect("deleted"));
    assert!(!organizations::delete(world.db(), other.id).await.expect("no fault"));
    assert!(!organizations::delete(world.db(), OrganizationId::SYSTEM).await.expect("no fault"));
    let found = organizations::find_by_id(world.db(), Reach::All, world.acme.id).await.expect("a readable row");
    assert_eq!(found, Some(world.acme.clone()));
}
