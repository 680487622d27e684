//! `store::api_keys`: finding by id, digest and request id, reach, writing, revoking, conflicts, and use.
//! Counts and statistics, list filters and paging have files of their own.

use keystead::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId},
    key::{ApiKey, KeyFilter, Revocation, RevocationReason, StoredStatus},
    permission::Reach,
};
use keystead::random;
use keystead::store::{Conflict, StoreError, api_keys as keys};

use super::{World, commit_all, find_record, is_refused, nobody, page};
use crate::harness::{TestDatabase, samples, store_test};

fn unknown_id() -> KeyId {
    KeyId::new(samples::NOW, random::bytes())
}

fn revocation(note: &str) -> Revocation {
    Revocation {
        time: samples::seconds(5),
        by: "somebody".to_owned(),
        reason: RevocationReason::KeyCompromise,
        note: note.to_owned(),
    }
}

store_test!(a_key_is_found_by_id_and_digest_with_every_setting_as_it_was_written);
async fn a_key_is_found_by_id_and_digest_with_every_setting_as_it_was_written(database: TestDatabase) {
    let world = World::new(database).await;
    let plain = world.add_key(|_| {}).await;
    let full = world.add_key(|key| *key = samples::full_key(key.organization_id)).await;
    for written in [&plain, &full] {
        let digest = samples::digest_of(written);
        for reach in [Reach::All, Reach::Only(world.acme.id)] {
            let found = keys::find(world.store.control(), reach, written.id).await.expect("a readable row");
            assert_eq!(found.as_ref(), Some(written));
        }
        let found = find_record(world.store.verify(), &digest).await.expect("a readable row");
        assert_eq!(found, Some(samples::record(written)));
        let found = keys::find_digest(world.db(), written.id).await.expect("no fault");
        assert_eq!(found, Some(digest));
    }
}

store_test!(a_key_that_is_not_there_is_absent_and_no_error);
async fn a_key_that_is_not_there_is_absent_and_no_error(database: TestDatabase) {
    let world = World::new(database).await;
    world.add_key(|_| {}).await;
    let (id, request) = (unknown_id(), samples::record_id());
    assert_eq!(keys::find(world.db(), Reach::All, id).await.expect("no fault"), None);
    assert_eq!(find_record(world.db(), &Digest::of("unknown")).await.expect("no fault"), None);
    assert_eq!(keys::find_digest(world.db(), id).await.expect("no fault"), None);
    assert_eq!(keys::find_by_request_id(world.db(), world.acme.id, request).await.expect("no fault"), None);
    assert_eq!(keys::find_names(world.db(), Reach::All, &[id]).await.expect("no fault"), []);
    assert_eq!(keys::find_names(world.db(), Reach::All, &[]).await.expect("no fault"), []);
    assert_eq!(keystead::store::rotations::find_credits(world.db(), &[id]).await.expect("no fault"), []);
    assert_eq!(keystead::store::rotations::find_credits(world.db(), &[]).await.expect("no fault"), []);
    let transaction = world.begin().await;
    assert_eq!(keys::find_locked(&transaction, Reach::All, id).await.expect("no fault"), None);
}

store_test!(a_key_out_of_reach_does_not_exist);
async fn a_key_out_of_reach_does_not_exist(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    let request = samples::record_id();
    let key = samples::key(world.acme.id);
    keys::insert(world.db(), &key, &samples::digest_of(&key), Some(request)).await.expect("written");

    let reach = Reach::Only(other.id);
    assert_eq!(keys::find(world.db(), reach, key.id).await.expect("no fault"), None);
    assert_eq!(keys::find_names(world.db(), reach, &[key.id]).await.expect("no fault"), []);
    assert_eq!(keys::find_by_request_id(world.db(), other.id, request).await.expect("no fault"), None);
    // A filter for another's organization does not widen the reach.
    let filter = KeyFilter::all_of(world.acme.id);
    let listed = keys::list(world.db(), reach, &filter, samples::NOW, &page(10, None)).await.expect("a page");
    assert!(listed.rows.is_empty() && listed.next.is_none());
    let transaction = world.begin().await;
    assert_eq!(keys::find_locked(&transaction, reach, key.id).await.expect("no fault"), None);
    let own = keys::find_locked(&transaction, Reach::Only(world.acme.id), key.id).await.expect("no fault");
    assert_eq!(own, Some(key));
}

store_test!(a_key_is_found_by_the_request_that_created_it_in_its_own_organization);
async fn a_key_is_found_by_the_request_that_created_it_in_its_own_organization(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    let request = samples::record_id();
    // Two organizations may choose the same request id: neither learns of the other by a conflict.
    let written = [samples::key(world.acme.id), samples::key(other.id)];
    for key in &written {
        keys::insert(world.db(), key, &samples::digest_of(key), Some(request)).await.expect("written");
    }
    for key in written {
        let found = keys::find_by_request_id(world.db(), key.organization_id, request).await.expect("a readable row");
        assert_eq!(found, Some(key));
    }
}

store_test!(a_taken_digest_or_request_id_is_told_apart_and_writes_nothing);
async fn a_taken_digest_or_request_id_is_told_apart_and_writes_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let (taken, request) = (samples::key(world.acme.id), samples::record_id());
    let digest = samples::digest_of(&taken);
    keys::insert(world.db(), &taken, &digest, Some(request)).await.expect("written");

    let second = samples::key(world.acme.id);
    let same_digest = keys::insert(world.db(), &second, &digest, None).await;
    assert!(matches!(same_digest, Err(StoreError::Conflict(Conflict::Digest))), "{same_digest:?}");
    let same_request = keys::insert(world.db(), &second, &samples::digest_of(&second), Some(request)).await;
    assert!(matches!(same_request, Err(StoreError::Conflict(Conflict::RequestId))), "{same_request:?}");
    assert_eq!(keystead::store::key_counts::count_all(world.db(), world.acme.id).await.expect("a count"), 1);
}

store_test!(a_key_of_no_organization_is_refused);
async fn a_key_of_no_organization_is_refused(database: TestDatabase) {
    let world = World::new(database).await;
    let key = samples::key(nobody());
    let refused = keys::insert(world.db(), &key, &samples::digest_of(&key), None).await;
    assert!(is_refused(&refused), "{refused:?}");
    assert_eq!(world.database.query_i64("SELECT count(*) FROM api_keys").await, 0);
}

store_test!(an_update_writes_every_setting_and_nothing_else);
async fn an_update_writes_every_setting_and_nothing_else(database: TestDatabase) {
    let world = World::new(database).await;
    let before = world.add_key(|_| {}).await;
    let mut wanted = ApiKey { id: before.id, ..samples::full_key(world.acme.id) };
    wanted.request_count = 99;
    wanted.last_used_time = Some(samples::seconds(99));
    assert!(keys::update(world.db(), &wanted).await.expect("an update"));
    let expected = ApiKey {
        prefix: before.prefix.clone(),
        hint: before.hint.clone(),
        environment: before.environment,
        create_time: before.create_time,
        created_by: before.created_by.clone(),
        rotated_from_id: None,
        counter_id: before.counter_id,
        request_count: 0,
        last_used_time: None,
        ..wanted
    };
    assert_eq!(world.stored(&before).await, expected);
    assert_eq!(keys::find_digest(world.db(), before.id).await.expect("no fault"), Some(samples::digest_of(&before)));
    // And back again, so that nothing set is left behind.
    world.update(&before).await;
    assert_eq!(world.stored(&before).await, before);
}

store_test!(an_update_of_a_key_that_is_gone_says_so);
async fn an_update_of_a_key_that_is_gone_says_so(database: TestDatabase) {
    let world = World::new(database).await;
    let gone = samples::key(world.acme.id);
    assert!(!keys::update(world.db(), &gone).await.expect("no fault"));
    assert!(!keys::update_revoked(world.db(), gone.id, &revocation(""), 2).await.expect("no fault"));
    keys::update_used(world.db(), &[(gone.id, 1, samples::NOW)]).await.expect("passed over");
    assert_eq!(keystead::store::key_counts::count_all(world.db(), world.acme.id).await.expect("a count"), 0);
}

store_test!(the_first_revocation_stands);
async fn the_first_revocation_stands(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|key| *key = samples::full_key(key.organization_id)).await;
    let first = revocation("leaked in a log 💧\nsee ticket 7");
    assert!(keys::update_revoked(world.db(), key.id, &first, 43).await.expect("an update"));
    let second = Revocation { time: samples::seconds(60), reason: RevocationReason::Other, ..revocation("again") };
    assert!(!keys::update_revoked(world.db(), key.id, &second, 44).await.expect("no fault"));
    let expected = ApiKey {
        stored_status: StoredStatus::Revoked,
        update_time: first.time,
        revocation: Some(first),
        etag: 43,
        ..key.clone()
    };
    assert_eq!(world.stored(&key).await, expected);
}

store_test!(a_key_revoked_by_sql_alone_is_revoked_and_says_by_what);
async fn a_key_revoked_by_sql_alone_is_revoked_and_says_by_what(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    world.database.raw_sql(&format!("UPDATE api_keys SET status='revoked' WHERE id='{}'", key.id)).await;
    let found = world.stored(&key).await;
    assert_eq!(found.stored_status, StoredStatus::Revoked);
    let expected = Revocation {
        time: key.update_time,
        by: "sql".to_owned(),
        reason: RevocationReason::Unspecified,
        note: String::new(),
    };
    assert_eq!(found.revocation, Some(expected));
}

store_test!(use_adds_up_and_a_clock_that_steps_back_never_turns_the_last_use_back);
async fn use_adds_up_and_a_clock_that_steps_back_never_turns_the_last_use_back(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    let mut total = 0;
    for (requests, at, expected) in [(3, 10, 10), (1, 5, 10), (2, 20, 20), (1, 20, 20), (1, -99, 20)] {
        keys::update_used(world.db(), &[(key.id, requests, samples::seconds(at))]).await.expect("an update");
        total += requests;
        let found = world.stored(&key).await;
        assert_eq!((found.request_count, found.last_used_time), (total, Some(samples::seconds(expected))));
        assert_eq!((found.etag, found.update_time), (key.etag, key.update_time), "use is no change");
    }
}

store_test!(use_of_more_keys_than_one_statement_takes_reaches_each_and_no_other);
async fn use_of_more_keys_than_one_statement_takes_reaches_each_and_no_other(database: TestDatabase) {
    let world = World::new(database).await;
    let transaction = world.begin().await;
    let mut keys = Vec::new();
    for _ in 0..700 {
        let key = samples::key(world.acme.id);
        super::insert(&transaction, &key).await;
        keys.push(key.id);
    }
    super::commit_all(transaction).await;
    let unused = world.add_key(|_| {}).await;
    keys.sort_unstable();
    let used: Vec<_> = (1..).zip(&keys).map(|(at, id)| (*id, at, samples::seconds(at))).collect();
    for _ in 0..2 {
        keys::update_used(world.db(), &used).await.expect("an update");
    }
    let wrong = "SELECT count(*) FROM api_keys WHERE last_used_time_us - request_count * 500000 <> 1800000000000000";
    assert_eq!(world.database.query_i64(wrong).await, 0, "the n-th key was used 2n times, the last time at second n");
    assert_eq!(world.database.query_i64("SELECT count(*) FROM api_keys WHERE request_count > 0").await, 700);
    assert_eq!(world.stored(&unused).await, unused);
    keys::update_used(world.db(), &[]).await.expect("nothing to update");
}

store_test!(use_recorded_by_many_at_once_adds_up);
async fn use_recorded_by_many_at_once_adds_up(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    let tasks: Vec<_> = (0..30)
        .map(|at| {
            let (store, id) = (world.store.clone(), key.id);
            tokio::spawn(async move { keys::update_used(store.write(), &[(id, 2, samples::seconds(at))]).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("an update");
    }
    let found = world.stored(&key).await;
    assert_eq!((found.request_count, found.last_used_time), (60, Some(samples::seconds(29))));
}

store_test!(of_many_that_change_a_key_under_its_lock_none_is_lost);
async fn of_many_that_change_a_key_under_its_lock_none_is_lost(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (store, id) = (world.store.clone(), key.id);
            tokio::spawn(async move {
                let transaction = store.begin().await.expect("a transaction begins");
                let found = keys::find_locked(&transaction, Reach::All, id).await.expect("a readable row");
                let mut key = found.expect("a row");
                key.etag += 1;
                keys::update(&transaction, &key).await.expect("an update");
                commit_all(transaction).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    assert_eq!(world.stored(&key).await.etag, key.etag + 20);
}

store_test!(names_are_given_for_the_keys_in_reach_alone);
async fn names_are_given_for_the_keys_in_reach_alone(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    let own = world.add_named("own 🔑").await;
    let foreign = world.add_key(|key| key.organization_id = other.id).await;
    let ids = [own.id, foreign.id, unknown_id()];
    let names = |reach| keys::find_names(world.store.control(), reach, &ids);
    let in_reach = names(Reach::Only(world.acme.id)).await.expect("names");
    assert_eq!(in_reach, [(own.id, "own 🔑".to_owned())]);
    let mut all = names(Reach::All).await.expect("names");
    all.sort();
    let mut expected = [(own.id, own.name.clone()), (foreign.id, foreign.name.clone())];
    expected.sort();
    assert_eq!(all, expected);
}

store_test!(deleting_an_organizations_keys_leaves_every_other_organizations);
async fn deleting_an_organizations_keys_leaves_every_other_organizations(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    for _ in 0..3 {
        world.add_key(|_| {}).await;
    }
    let foreign = world.add_key(|key| key.organization_id = other.id).await;
    assert_eq!(keys::delete_of_organization(world.db(), world.acme.id).await.expect("deleted"), 3);
    assert_eq!(keys::delete_of_organization(world.db(), world.acme.id).await.expect("no fault"), 0);
    assert_eq!(keys::delete_of_organization(world.db(), OrganizationId::SYSTEM).await.expect("no fault"), 0);
    assert_eq!(world.stored(&foreign).await, foreign);
}
