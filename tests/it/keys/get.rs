//! `GetKey`: the record of one key, and what use leaves on it.
//! What each field holds after a creation or a change is with those rpcs, which all read the key back.
//! Invariant: use is not a change of settings; it moves neither the etag nor the time of the last update.

use keystead::proto::v1::{GetKeyRequest, ListKeysRequest, Outcome};
use tonic::Code;

use super::{NOBODY, SYSTEM, World, bad_fields, fields, from_now, micros, presenting, refused, with};
use crate::harness::{TestDatabase, create_organization, store_test, wait_until};

store_test!(a_key_that_does_not_exist_for_the_caller_is_not_found);
async fn a_key_that_does_not_exist_for_the_caller_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.read"]).await;
    let (key, _) = world.create(world.new_key()).await;
    for (mut keys, id) in [
        (world.server.keys(), NOBODY),
        (world.server.keys(), SYSTEM),
        (world.server.keys_as(&caller), NOBODY),
        (world.server.keys_as(&caller), key.id.as_str()),
    ] {
        let result = keys.get_key(GetKeyRequest { key_id: id.to_owned() }).await;
        let details = refused(result, Code::NotFound, "KEY_NOT_FOUND");
        let resource = details.resource_info().expect("a ResourceInfo");
        assert_eq!((resource.resource_type.as_str(), resource.resource_name.as_str()), ("key", id));
    }
}

store_test!(ids_are_read_in_either_case);
async fn ids_are_read_in_either_case(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    assert_eq!(world.get(&key.id.to_uppercase()).await, key);
    for spelling in [key.id.replace('-', ""), format!("{{{}}}", key.id), format!("urn:uuid:{}", key.id)] {
        let result = world.server.keys().get_key(GetKeyRequest { key_id: spelling }).await;
        assert_eq!(bad_fields(result), fields(&["key_id"]), "other spellings are not");
    }
}

store_test!(use_shows_on_the_record_after_a_while_and_leaves_its_etag_alone);
async fn use_shows_on_the_record_after_a_while_and_leaves_its_etag_alone(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let before = micros(Some(from_now(0)));
    for _ in 0..7 {
        assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    }
    let after = micros(Some(from_now(0)));
    let inside = with(&presenting(&secret), |request| {
        request.required_scopes =
            Some(keystead::proto::v1::RequiredScopes { all_of: vec!["users:read".to_owned()], any_of: vec![] });
    });
    assert_eq!(world.ask(inside).await.outcome(), Outcome::InsufficientScope);
    wait_until("the use to be written", async || world.get(&key.id).await.request_count == 7).await;
    let used = world.get(&key.id).await;
    assert!((before..=after).contains(&micros(used.last_used_time)), "{:?}", used.last_used_time);
    assert_eq!((used.etag, used.update_time), (key.etag, key.update_time));
}

store_test!(use_of_the_last_moments_survives_a_restart);
async fn use_of_the_last_moments_survives_a_restart(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    for _ in 0..25 {
        assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    }
    world.server.restart().await;
    assert_eq!(world.get(&key.id).await.request_count, 25);
}

store_test!(the_first_admin_key_says_that_init_created_it);
async fn the_first_admin_key_says_that_init_created_it(database: TestDatabase) {
    let world = World::new(&database).await;
    let admins = world.list(ListKeysRequest { organization_id: SYSTEM.to_owned(), ..Default::default() }).await;
    assert_eq!(admins.len(), 1);
    assert_eq!(admins[0].created_by, "init");
}
