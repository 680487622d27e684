//! `RevokeKeys`: everything of an organization or an owner at once, all or none, and nothing in a dry run.
//! Invariant: once it has answered, no key that it was to revoke is `VALID`, and no successor that was begun meanwhile
//! lives on.

use std::collections::BTreeSet;

use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, ListAuditEventsRequest, Outcome, RevocationReason, RevokeKeyRequest, RevokeKeysRequest,
    RevokeKeysResponse, RotateKeyRequest,
};
use tonic::Code;

use super::{Footprint, Keys, NOBODY, SYSTEM, World, at_once, bad_fields, copies, fields, refused, with};
use crate::harness::{TestDatabase, cli, create_key, create_organization, store_test};

impl World {
    fn all(&self) -> RevokeKeysRequest {
        RevokeKeysRequest { organization_id: self.organization.clone(), ..Default::default() }
    }

    async fn revoke_all(&self, request: RevokeKeysRequest) -> RevokeKeysResponse {
        self.server.keys().revoke_keys(request).await.expect("keys are revoked").into_inner()
    }

    async fn create_of(&self, owner: &str) -> (ApiKey, String) {
        self.create(CreateKeyRequest { owner_id: owner.to_owned(), ..self.new_key() }).await
    }

    /// The keys that the audit log says were revoked in this organization.
    async fn audited(&self) -> Vec<String> {
        let filter = ListAuditEventsRequest {
            organization_id: self.organization.clone(),
            action: "key.revoke".to_owned(),
            page_size: 1000,
            ..Default::default()
        };
        let events = self.server.audit().list_audit_events(filter).await.expect("events").into_inner().events;
        let mut targets: Vec<String> = events.into_iter().map(|event| event.target_id).collect();
        targets.sort();
        targets
    }
}

fn ids(keys: &[&(ApiKey, String)]) -> Vec<String> {
    let mut ids: Vec<String> = keys.iter().map(|(key, _)| key.id.clone()).collect();
    ids.sort();
    ids
}

store_test!(an_owners_keys_end_and_no_others);
async fn an_owners_keys_end_and_no_others(database: TestDatabase) {
    let world = World::new(&database).await;
    let (first, second) = (world.create_of("w1").await, world.create_of("w1").await);
    let (other, similar, nobodys) =
        (world.create_of("w2").await, world.create_of("W1").await, world.create(world.new_key()).await);
    let elsewhere = create_organization(&world.server, "beta").await.id;
    let foreign = with(&world.new_key(), |request| {
        request.organization_id = elsewhere;
        "w1".clone_into(&mut request.owner_id);
    });
    let foreign = world.create(foreign).await;
    for key in [&first, &second, &other] {
        assert_eq!(world.outcome(&key.1).await, Outcome::Valid, "and cached");
    }
    let request = RevokeKeysRequest {
        owner_id: Some("w1".to_owned()),
        reason: RevocationReason::OwnerLeft.into(),
        note: "left on Friday".to_owned(),
        ..world.all()
    };
    let answer = world.revoke_all(request).await;
    assert_eq!((&answer.key_ids, answer.key_count), (&ids(&[&first, &second]), 2));
    assert!(answer.revision > 0);
    for key in [&first, &second] {
        assert_eq!(world.outcome(&key.1).await, Outcome::Revoked);
        let record = world.get(&key.0.id).await;
        assert_eq!(record.revocation_reason(), RevocationReason::OwnerLeft);
        assert_eq!((record.revocation_note.as_str(), record.revoke_time), ("left on Friday", record.update_time));
        assert_ne!(record.etag, key.0.etag);
    }
    for key in [&other, &similar, &nobodys, &foreign] {
        assert_eq!(world.outcome(&key.1).await, Outcome::Valid);
    }
    assert_eq!(world.audited().await, ids(&[&first, &second]));
}

store_test!(a_dry_run_tells_and_changes_nothing);
async fn a_dry_run_tells_and_changes_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let (first, second) = (world.create_of("w1").await, world.create_of("w2").await);
    let before = Footprint::of(&database).await;
    let told = world.revoke_all(RevokeKeysRequest { dry_run: true, ..world.all() }).await;
    assert_eq!(told, RevokeKeysResponse { key_ids: ids(&[&first, &second]), revision: 0, key_count: 2 });
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(world.outcome(&first.1).await, Outcome::Valid);
    assert_eq!(world.revoke_all(world.all()).await.key_ids, told.key_ids, "it was what it said");
}

store_test!(a_repeat_names_nobody_and_keeps_the_first_revocation);
async fn a_repeat_names_nobody_and_keeps_the_first_revocation(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let first = world.revoke_all(RevokeKeysRequest { note: "first".to_owned(), ..world.all() }).await;
    let before = Footprint::of(&database).await;
    let again = world.revoke_all(RevokeKeysRequest { note: "second".to_owned(), ..world.all() }).await;
    assert_eq!((again.key_ids, again.key_count), (vec![], 0));
    assert!(again.revision >= first.revision);
    assert_eq!(world.get(&key.id).await.revocation_note, "first");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(a_key_revoked_by_sql_is_not_valid_either_once_it_has_answered);
async fn a_key_revoked_by_sql_is_not_valid_either_once_it_has_answered(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    for _ in 0..5 {
        assert_eq!(world.outcome(&secret).await, Outcome::Valid, "and cached");
        database.raw_sql(&format!("UPDATE api_keys SET status = 'revoked' WHERE id = '{}'", key.id)).await;
        world.revoke_all(world.all()).await;
        assert_eq!(world.outcome(&secret).await, Outcome::Revoked);
        database.raw_sql(&format!("UPDATE api_keys SET status = 'active' WHERE id = '{}'", key.id)).await;
        crate::harness::wait_until("the feed to bring it", async || world.outcome(&secret).await == Outcome::Valid)
            .await;
    }
}

store_test!(bad_fields_and_absent_or_foreign_organizations_change_nothing);
async fn bad_fields_and_absent_or_foreign_organizations_change_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    world.create(world.new_key()).await;
    let elsewhere = create_organization(&world.server, "beta").await.id;
    let foreigner = world.caller(&elsewhere, &["keystead.keys.revoke"]).await;
    let before = Footprint::of(&database).await;
    let mut keys = world.server.keys();
    let bad = RevokeKeysRequest {
        organization_id: "x".to_owned(),
        owner_id: Some(String::new()),
        reason: 99,
        note: "n".repeat(1001),
        dry_run: false,
    };
    assert_eq!(bad_fields(keys.revoke_keys(bad).await), fields(&["organization_id", "owner_id", "reason", "note"]));
    let empty = RevokeKeysRequest { owner_id: Some(String::new()), ..world.all() };
    assert_eq!(bad_fields(keys.revoke_keys(empty).await), fields(&["owner_id"]));
    for dry_run in [false, true] {
        let nobody = RevokeKeysRequest { organization_id: NOBODY.to_owned(), dry_run, ..Default::default() };
        refused(keys.revoke_keys(nobody).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
        let mut foreign = world.server.keys_as(&foreigner);
        let request = RevokeKeysRequest { dry_run, ..world.all() };
        refused(foreign.revoke_keys(request).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    }
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(the_last_admin_keys_cannot_be_revoked_away_together);
async fn the_last_admin_keys_cannot_be_revoked_away_together(database: TestDatabase) {
    let world = World::new(&database).await;
    create_key(&world.server, SYSTEM, &["keystead.admin"]).await;
    let before = Footprint::of(&database).await;
    let all = RevokeKeysRequest { organization_id: SYSTEM.to_owned(), ..Default::default() };
    let mut keys = world.server.keys();
    for dry_run in [true, false] {
        let request = RevokeKeysRequest { dry_run, ..all.clone() };
        refused(keys.revoke_keys(request).await, Code::FailedPrecondition, "LAST_ADMIN_KEY");
    }
    assert_eq!(Footprint::of(&database).await, before, "none of them was revoked");
    let owned = with(&world.new_key(), |request| {
        SYSTEM.clone_into(&mut request.organization_id);
        "w1".clone_into(&mut request.owner_id);
        request.scopes = super::texts(&["keystead.admin"]);
    });
    let (owned, _) = world.create(owned).await;
    let answer = world.revoke_all(RevokeKeysRequest { owner_id: Some("w1".to_owned()), ..all }).await;
    assert_eq!(answer.key_ids, [owned.id], "others are left");
}

/// How often each of the tasks that go on meanwhile does its part at the most.
const ROUNDS: usize = 40;

/// Rotates a key, then its successor and so on, until it is refused; gives every secret.
async fn rotate_on(mut keys: Keys, first: String) -> Vec<String> {
    let mut secrets = Vec::new();
    let mut newest = first;
    for _ in 0..ROUNDS {
        let request = RotateKeyRequest { key_id: newest, ..Default::default() };
        let Ok(answer) = keys.rotate_key(request).await else {
            return secrets;
        };
        let answer = answer.into_inner();
        newest = answer.key.expect("the key").id;
        secrets.push(answer.secret);
    }
    secrets
}

/// Issues keys one after the other; gives every secret.
async fn create_on(mut keys: Keys, request: CreateKeyRequest) -> Vec<String> {
    let mut secrets = Vec::new();
    for _ in 0..ROUNDS {
        secrets.push(keys.create_key(request.clone()).await.expect("a key is created").into_inner().secret);
    }
    secrets
}

store_test!(rotations_and_creations_at_the_same_time_leave_no_successor_alive);
async fn rotations_and_creations_at_the_same_time_leave_no_successor_alive(database: TestDatabase) {
    let world = World::new(&database).await;
    for _ in 0..3 {
        let mut chains = Vec::new();
        for _ in 0..4 {
            chains.push(world.create_of("w1").await);
        }
        let keys = world.server.keys();
        let rotations: Vec<_> =
            chains.iter().map(|(key, _)| tokio::spawn(rotate_on(keys.clone(), key.id.clone()))).collect();
        let creations = tokio::spawn(create_on(keys.clone(), world.new_key()));
        let owned = RevokeKeysRequest { owner_id: Some("w1".to_owned()), ..world.all() };
        world.revoke_all(owned).await;
        for rotation in rotations {
            for secret in rotation.await.expect("no panic") {
                assert_eq!(world.outcome(&secret).await, Outcome::Revoked, "every successor ended with its chain");
            }
        }
        for secret in creations.await.expect("no panic") {
            assert_eq!(world.outcome(&secret).await, Outcome::Valid, "creating goes on, for others");
        }
    }
    let living =
        database.query_i64("SELECT count(*) FROM api_keys WHERE owner_id = 'w1' AND status <> 'revoked'").await;
    assert_eq!(living, 0);
}

store_test!(single_and_common_revocations_at_once_end_each_key_once);
async fn single_and_common_revocations_at_once_end_each_key_once(database: TestDatabase) {
    let world = World::new(&database).await;
    let created = world.create_many("key", 12).await;
    let all: Vec<_> = (0..4).map(|_| (world.server.keys(), world.all())).collect();
    let common = tokio::spawn(at_once(all.into_iter().map(|(mut keys, request)| async move {
        keys.revoke_keys(request).await.expect("revoked").into_inner().key_ids
    })));
    let singles: Vec<_> = created.iter().map(|(key, _)| (world.server.keys(), key.id.clone())).collect();
    at_once(singles.into_iter().map(|(mut keys, key_id)| async move {
        keys.revoke_key(RevokeKeyRequest { key_id, ..Default::default() }).await.expect("revoked");
    }))
    .await;
    let named: Vec<String> = common.await.expect("no panic").into_iter().flatten().collect();
    let distinct: BTreeSet<&String> = named.iter().collect();
    assert_eq!(distinct.len(), named.len(), "no key is revoked by two calls");
    assert_eq!(world.audited().await, ids(&created.iter().collect::<Vec<_>>()), "one event each");
}

store_test!(thousands_of_keys_end_in_one_go);
async fn thousands_of_keys_end_in_one_go(database: TestDatabase) {
    const COUNT: usize = 2500;
    let world = World::new(&database).await;
    let (template, secret) = world.create(world.new_key()).await;
    copies(&database, &template, COUNT - 1).await;
    let before = Footprint::of(&database).await;
    let answer = world.revoke_all(world.all()).await;
    assert_eq!((answer.key_ids.len(), answer.key_count), (COUNT, i64::try_from(COUNT).expect("small")));
    let distinct: BTreeSet<&String> = answer.key_ids.iter().collect();
    assert_eq!(distinct.len(), COUNT);
    assert_eq!(world.outcome(&secret).await, Outcome::Revoked);
    let after = Footprint::of(&database).await;
    let count = i64::try_from(COUNT).expect("small");
    assert_eq!(after.audit_events, before.audit_events + count);
    assert_eq!((after.revision, answer.revision), (before.revision + count, after.revision));
}

store_test!(the_command_counts_and_asks_before_it_revokes);
async fn the_command_counts_and_asks_before_it_revokes(database: TestDatabase) {
    let world = World::new(&database).await;
    world.create_of("w1").await;
    let before = Footprint::of(&database).await;
    let command = ["keys", "revoke-all", "--organization", &world.organization, "--owner", "w1"];
    let asked = cli::as_admin(&world.server, &command);
    assert_eq!(asked.code, 1, "nobody is there to ask: {asked:?}");
    assert!(asked.stderr.contains("1 keys") && asked.stderr.contains("--yes"), "{asked:?}");
    let told = cli::as_admin(&world.server, &[&command[..], &["--dry-run", "--output", "json"]].concat()).json();
    assert_eq!(told["key_count"], 1);
    assert_eq!(Footprint::of(&database).await, before);
    let done = cli::as_admin(&world.server, &[&command[..], &["--yes", "--output", "json"]].concat()).json();
    assert_eq!(done["key_ids"], told["key_ids"]);
    assert_eq!(cli::as_admin(&world.server, &[&command[..], &["--yes"]].concat()).code, 0);
}
