//! The triggers behind `store::key_changes`: one row for each change that can alter a verification, with the digest
//! that caches hold, whoever made it and in whatever way; and none for anything else.

use keystead::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId},
    key::{ApiKey, Revocation, RevocationReason, StoredStatus},
    limits::Credits,
    organization::Organization,
    time::Timestamp,
};
use keystead::random;
use keystead::store::{
    api_keys as keys, credits,
    key_changes::{self, Changed},
    organizations,
};

use super::World;
use crate::harness::{TestDatabase, samples, store_test};

/// What the feed told, in a form that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Key(Digest),
    KeyWithoutDigest,
    Organization(OrganizationId),
    Unknown,
}

impl Told {
    fn of(key: &ApiKey) -> Self {
        Self::Key(samples::digest_of(key))
    }
}

/// What the feed has told since it was asked last. Revisions must follow one another without a gap.
struct Reader<'a> {
    world: &'a World,
    revision: i64,
}

impl<'a> Reader<'a> {
    async fn new(world: &'a World) -> Self {
        let revision = key_changes::find_revision(world.db()).await.expect("a revision");
        Self { world, revision }
    }

    async fn news(&mut self) -> Vec<Told> {
        let control = self.world.store.control();
        let changes = key_changes::list_after(control, self.revision).await.expect("changes");
        let mut told = Vec::new();
        for change in changes {
            self.revision += 1;
            assert_eq!(change.revision, self.revision, "no gap");
            told.push(match change.what {
                Changed::Key(digest) => Told::Key(digest),
                Changed::KeyWithoutDigest => Told::KeyWithoutDigest,
                Changed::Organization(id) => Told::Organization(id),
                Changed::Unknown => Told::Unknown,
            });
        }
        assert_eq!(key_changes::find_revision(control).await.expect("a revision"), self.revision);
        told
    }

    /// Runs SQL as an operator would, and gives what the feed told of it.
    async fn after(&mut self, sql: &str) -> Vec<Told> {
        assert!(self.world.database.raw_sql(sql).await > 0, "{sql} changes a row");
        self.news().await
    }
}

store_test!(the_feed_begins_at_revision_0_and_creating_tells_nothing);
async fn the_feed_begins_at_revision_0_and_creating_tells_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let mut reader = Reader::new(&world).await;
    assert_eq!(reader.revision, 0);
    world.add_organization("other").await;
    world.add_key(|key| *key = samples::full_key(key.organization_id)).await;
    assert_eq!(reader.news().await, []);
}

store_test!(each_column_that_matters_to_a_verification_tells_exactly_one_change_with_the_digest);
async fn each_column_that_matters_to_a_verification_tells_exactly_one_change_with_the_digest(database: TestDatabase) {
    let world = World::new(database).await;
    let other = world.add_organization("other").await;
    let key = world.add_key(|_| {}).await;
    world.add_key(|_| {}).await;
    let mut reader = Reader::new(&world).await;
    let newer = KeyId::new(samples::NOW, random::bytes());
    let values = [
        ("status", "'disabled'".to_owned()),
        ("status", "'revoked'".to_owned()),
        ("name", "'renamed'".to_owned()),
        ("scopes", "'[\"a\"]'".to_owned()),
        ("metadata", "'{\"a\":\"b\"}'".to_owned()),
        ("owner_id", "'ann'".to_owned()),
        ("allowed_cidrs", "'[\"10.0.0.0/8\"]'".to_owned()),
        ("rate_limits", "'[{\"name\":\"a\",\"limit\":1,\"window_us\":1000000}]'".to_owned()),
        ("environment", "'test'".to_owned()),
        ("expire_time_us", "5".to_owned()),
        ("expire_time_us", "NULL".to_owned()),
        ("credits_remaining", "5".to_owned()),
        ("credits_remaining", "NULL".to_owned()),
        ("credits_refill_amount", "5".to_owned()),
        ("credits_refill_interval", "'day'".to_owned()),
        ("successor_id", format!("'{newer}'")),
        ("counter_id", format!("'{newer}'")),
        ("scheme", "'bcrypt'".to_owned()),
        ("stored_hash", "'$2b$'".to_owned()),
        ("look_up_id", "'abc'".to_owned()),
        ("organization_id", format!("'{}'", other.id)),
    ];
    for (column, value) in values {
        let sql = format!("UPDATE api_keys SET {column} = {value} WHERE id = '{}'", key.id);
        assert_eq!(reader.after(&sql).await, [Told::of(&key)], "{sql}");
        assert_eq!(reader.after(&sql).await, [], "the same value again: {sql}");
    }
}

store_test!(what_a_verification_does_not_see_tells_nothing);
async fn what_a_verification_does_not_see_tells_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|key| key.credits = Some(Credits { remaining: 10, refill: None })).await;
    let mut reader = Reader::new(&world).await;
    let assignments = [
        "request_count = request_count + 1",
        "last_used_time_us = 5",
        "credits_remaining = credits_remaining - 1",
        "credits_refill_time_us = 5",
        "update_time_us = 5",
        "etag = etag + 1",
        "revoked_by = 'x', revocation_note = 'y', revocation_reason = 'other', revoke_time_us = 5",
        "prefix = 'x', hint = 'y', created_by = 'z'",
        "request_id = 'r', import_id = 'i', source_id = 's', rotated_from_id = 'f'",
    ];
    for assignment in assignments {
        let told = reader.after(&format!("UPDATE api_keys SET {assignment} WHERE id = '{}'", key.id)).await;
        assert_eq!(told, [], "{assignment}");
    }
    credits::spend(world.db(), key.id, 1, samples::NOW).await.expect("spent");
    keys::update_used(world.db(), &[(key.id, 5, samples::NOW)]).await.expect("an update");
    let values = "name = 'x', slug = 'y', email = 'z@z', plan = 'pro', max_keys = 1, secret_prefix = 'ab',
                  metadata = '{\"a\":\"b\"}', update_time_us = 5, etag = 9";
    reader.after(&format!("UPDATE organizations SET {values} WHERE id = '{}'", world.acme.id)).await;
    assert_eq!(reader.news().await, []);
}

store_test!(a_plain_update_of_the_status_by_an_operator_is_told);
async fn a_plain_update_of_the_status_by_an_operator_is_told(database: TestDatabase) {
    let world = World::new(database).await;
    let mut written = Vec::new();
    for _ in 0..5 {
        written.push(Told::of(&world.add_key(|_| {}).await));
    }
    let revoked = world.add_key(|key| key.stored_status = StoredStatus::Revoked).await;
    let mut reader = Reader::new(&world).await;
    let one = format!("UPDATE api_keys SET status='revoked' WHERE id='{}'", revoked.id);
    assert_eq!(reader.after(&one).await, [], "it is revoked already");
    let all = format!("UPDATE api_keys SET status='revoked' WHERE organization_id='{}'", world.acme.id);
    let told = reader.after(&all).await;
    assert_eq!(told.len(), 5, "one for each key that changed: {told:?}");
    assert!(written.iter().all(|key| told.contains(key)));
}

store_test!(a_new_digest_is_told_under_the_old_one_and_the_new_one);
async fn a_new_digest_is_told_under_the_old_one_and_the_new_one(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    let mut reader = Reader::new(&world).await;
    let hex = "ab".repeat(32);
    let literal = if keystead::store::connect::is_sqlite(&world.database.url) {
        format!("x'{hex}'")
    } else {
        format!("'\\x{hex}'")
    };
    let new = Told::Key(Digest::from_bytes(&[0xab; 32]).expect("32 bytes"));
    let set = |value: &str| format!("UPDATE api_keys SET digest = {value} WHERE id = '{}'", key.id);
    let told = reader.after(&set(&literal)).await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.contains(&Told::of(&key)) && told.contains(&new), "{told:?}");
    assert_eq!(reader.after(&set("NULL")).await, std::slice::from_ref(&new));
    assert_eq!(
        reader.after(&format!("UPDATE api_keys SET name = 'x' WHERE id = '{}'", key.id)).await,
        [Told::KeyWithoutDigest]
    );
    let told = reader.after(&set(&literal)).await;
    assert!(told.contains(&new), "who looked for it in vain may have remembered that: {told:?}");
}

store_test!(every_way_in_which_the_service_changes_a_key_is_told);
async fn every_way_in_which_the_service_changes_a_key_is_told(database: TestDatabase) {
    let world = World::new(database).await;
    let mut key = world.add_key(|key| key.credits = Some(Credits { remaining: 10, refill: None })).await;
    let bystander = world.add_key(|_| {}).await;
    let mut reader = Reader::new(&world).await;
    world.update(&key).await;
    assert_eq!(reader.news().await, [], "nothing changed");
    key.stored_status = StoredStatus::Disabled;
    (key.name, key.etag) = ("changed".to_owned(), 2);
    world.update(&key).await;
    assert_eq!(reader.news().await, [Told::of(&key)], "one for all that one statement changed");

    let newest = world.add_key(|_| {}).await;
    keystead::store::rotations::update_successor(world.db(), key.id, newest.id).await.expect("an update");
    assert_eq!(reader.news().await, [Told::of(&key)]);
    let evicted =
        keystead::store::rotations::update_predecessors(world.db(), newest.id, false).await.expect("an update");
    assert_eq!((evicted, reader.news().await), (vec![samples::digest_of(&key)], vec![Told::of(&key)]));
    let evicted =
        keystead::store::rotations::update_predecessors(world.db(), newest.id, false).await.expect("an update");
    assert_eq!((evicted, reader.news().await), (vec![samples::digest_of(&key)], vec![]));

    let revocation = Revocation {
        time: samples::NOW,
        by: "somebody".to_owned(),
        reason: RevocationReason::Other,
        note: String::new(),
    };
    keys::update_revoked(world.db(), key.id, &revocation, 3).await.expect("an update");
    assert_eq!(reader.news().await, [Told::of(&key)]);
    keys::update_revoked(world.db(), key.id, &revocation, 4).await.expect("no fault");
    assert_eq!(reader.news().await, []);

    keys::delete_of_organization(world.db(), world.acme.id).await.expect("deleted");
    let told = reader.news().await;
    let deleted = [&key, &bystander, &newest].map(Told::of);
    assert!(told.len() == 3 && deleted.iter().all(|key| told.contains(key)), "{told:?}");
}

store_test!(what_an_organization_decides_for_its_keys_is_told_and_its_end_too);
async fn what_an_organization_decides_for_its_keys_is_told_and_its_end_too(database: TestDatabase) {
    let world = World::new(database).await;
    let mut reader = Reader::new(&world).await;
    let told = [Told::Organization(world.acme.id)];
    let changes: [fn(&mut Organization); 4] = [
        |organization| organization.active = false,
        |organization| organization.active = true,
        |organization| organization.rate_limits = vec![samples::rate_limit("requests", 1, 60)],
        |organization| organization.monthly_quota = 5,
    ];
    let mut organization = world.acme.clone();
    for change in changes {
        change(&mut organization);
        organizations::update(world.db(), &organization).await.expect("an update");
        assert_eq!(reader.news().await, told);
        organizations::update(world.db(), &organization).await.expect("an update");
        assert_eq!(reader.news().await, [], "nothing changed");
    }
    let sql = format!("UPDATE organizations SET active = false WHERE id = '{}'", world.acme.id);
    assert_eq!(reader.after(&sql).await, told, "by an operator too");
    organizations::delete(world.db(), world.acme.id).await.expect("deleted");
    assert_eq!(reader.news().await, told);
}

store_test!(a_kind_of_change_that_this_version_does_not_know_is_told_as_such);
async fn a_kind_of_change_that_this_version_does_not_know_is_told_as_such(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    for novelty in ["kind = 'novelty'", "kind = 'organization', organization_id = 'nonsense'"] {
        let mut reader = Reader::new(&world).await;
        let sql = format!("UPDATE api_keys SET name = '{}' WHERE id = '{}'", novelty.len(), key.id);
        world.database.raw_sql(&sql).await;
        let sql = format!("UPDATE key_changes SET {novelty} WHERE revision = {}", reader.revision + 1);
        assert_eq!(reader.after(&sql).await, [Told::Unknown]);
    }
}

store_test!(pruning_deletes_what_is_older_and_leaves_the_revision_where_it_is);
async fn pruning_deletes_what_is_older_and_leaves_the_revision_where_it_is(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|_| {}).await;
    for name in 0..4 {
        world.database.raw_sql(&format!("UPDATE api_keys SET name = 'n{name}' WHERE id = '{}'", key.id)).await;
    }
    let times = "SELECT count(*) FROM key_changes WHERE time_us > 1600000000000000 AND time_us < 10000000000000000";
    assert_eq!(world.database.query_i64(times).await, 4, "microseconds since the epoch");
    world.database.raw_sql("UPDATE key_changes SET time_us = revision").await;
    let deleted = key_changes::delete_before(world.db(), Timestamp::from_micros(3)).await.expect("deleted");
    assert_eq!(deleted, 2);
    let left = key_changes::list_after(world.db(), 0).await.expect("changes");
    assert_eq!(left.iter().map(|change| change.revision).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(key_changes::find_revision(world.db()).await.expect("a revision"), 4);
    key_changes::delete_before(world.db(), Timestamp::LAST).await.expect("deleted");
    world.database.raw_sql(&format!("UPDATE api_keys SET name = 'last' WHERE id = '{}'", key.id)).await;
    assert_eq!(key_changes::find_revision(world.db()).await.expect("a revision"), 5, "never a number twice");
}
