//! Counting keys: the cap's count, the count that protects from deletion, statistics of an organization, and the
//! admin keys that keep an operator from being locked out.

use keystead::domain::{
    ids::OrganizationId,
    key::{ApiKey, StoredStatus},
    organization::Organization,
};
use keystead::store::{api_keys as keys, key_counts::KeyStatistics, organizations};

use super::{World, nobody};
use crate::harness::{TestDatabase, samples, store_test};

/// Keys of one organization, in every status that the clock and the row can make.
async fn add_one_of_each(world: &World, organization: OrganizationId) {
    let (past, future) = (Some(samples::seconds(-1)), Some(samples::seconds(1)));
    let kinds = [
        (StoredStatus::Active, None),
        (StoredStatus::Active, future),
        (StoredStatus::Active, past),
        // The first moment at which a key has expired.
        (StoredStatus::Active, Some(samples::NOW)),
        (StoredStatus::Disabled, None),
        (StoredStatus::Disabled, past),
        (StoredStatus::Revoked, None),
        (StoredStatus::Revoked, past),
        (StoredStatus::Revoked, future),
    ];
    for (stored_status, expire_time) in kinds {
        world.add_key(|key| *key = ApiKey { stored_status, expire_time, ..samples::key(organization) }).await;
    }
}

store_test!(the_key_count_leaves_revoked_keys_out_and_the_count_that_protects_from_deletion_does_not);
async fn the_key_count_leaves_revoked_keys_out_and_the_count_that_protects_from_deletion_does_not(
    database: TestDatabase,
) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    let empty = world.add_organization("empty").await;
    add_one_of_each(&world, world.acme.id).await;
    world.add_key(|key| key.organization_id = other.id).await;

    let control = world.store.control();
    for (organization, living, all) in [(&world.acme, 6, 9), (&other, 1, 1), (&empty, 0, 0)] {
        assert_eq!(keystead::store::key_counts::count(control, organization.id).await.expect("a count"), living);
        assert_eq!(keystead::store::key_counts::count_all(control, organization.id).await.expect("a count"), all);
    }
    let asked = [world.acme.id, other.id, empty.id, nobody()];
    let mut counts = keystead::store::key_counts::count_each(control, &asked).await.expect("counts");
    counts.sort();
    let mut expected = [(world.acme.id, 6), (other.id, 1)];
    expected.sort();
    assert_eq!(counts, expected);
    assert_eq!(keystead::store::key_counts::count_each(control, &[]).await.expect("counts"), []);
}

store_test!(statistics_tell_status_by_the_clock_and_use_of_one_organization_alone);
async fn statistics_tell_status_by_the_clock_and_use_of_one_organization_alone(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    add_one_of_each(&world, world.acme.id).await;
    let used = world.add_key(|_| {}).await;
    let revoked = world.add_key(|key| key.stored_status = StoredStatus::Revoked).await;
    let foreign = world.add_key(|key| key.organization_id = other.id).await;
    for (key, requests, at) in [(&used, 5, 10), (&revoked, 2, 30), (&foreign, 100, 99)] {
        keys::update_used(world.db(), &[(key.id, requests, samples::seconds(at))]).await.expect("an update");
    }

    let control = world.store.control();
    let found =
        keystead::store::key_counts::statistics(control, world.acme.id, samples::NOW).await.expect("statistics");
    let expected = KeyStatistics {
        active: 3,
        disabled: 2,
        revoked: 4,
        expired: 2,
        requests: 7,
        last_used_time: Some(samples::seconds(30)),
    };
    assert_eq!(found, expected);
    let before = keystead::store::key_counts::statistics(control, world.acme.id, samples::seconds(-2))
        .await
        .expect("statistics");
    assert_eq!(before, KeyStatistics { active: 5, expired: 0, ..expected });
    let none = keystead::store::key_counts::statistics(control, nobody(), samples::NOW).await.expect("statistics");
    assert_eq!(none, KeyStatistics::default());
}

store_test!(only_usable_lasting_keys_of_system_with_every_permission_count_as_admins);
async fn only_usable_lasting_keys_of_system_with_every_permission_count_as_admins(database: TestDatabase) {
    let world = World::new(database).await;
    let system = Organization { id: OrganizationId::SYSTEM, ..samples::organization("system") };
    organizations::insert(world.db(), &system, None).await.expect("written");
    assert_eq!(keystead::store::key_counts::count_admins(world.db()).await.expect("a count"), 0);

    let admin = || ApiKey { scopes: samples::scopes(&["keystead.admin"]), ..samples::key(system.id) };
    let not_admins = [
        ApiKey { organization_id: world.acme.id, ..admin() },
        ApiKey { stored_status: StoredStatus::Disabled, ..admin() },
        ApiKey { stored_status: StoredStatus::Revoked, ..admin() },
        ApiKey { expire_time: Some(samples::seconds(99)), ..admin() },
        ApiKey { scopes: samples::scopes(&["keystead.keys.*", "keystead.administrator"]), ..admin() },
        ApiKey { scopes: Vec::new(), ..admin() },
    ];
    for key in not_admins {
        super::insert(world.db(), &key).await;
    }
    assert_eq!(keystead::store::key_counts::count_admins(world.db()).await.expect("a count"), 0);
    for scopes in [&["keystead.admin"][..], &["x", "keystead.*"], &["*"]] {
        super::insert(world.db(), &ApiKey { scopes: samples::scopes(scopes), ..admin() }).await;
    }
    assert_eq!(keystead::store::key_counts::count_admins(world.db()).await.expect("a count"), 3);
}
