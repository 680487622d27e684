//! `UpdateKey`: what it refuses. Masks that name nothing or what cannot be changed, a stale etag, a revoked key,
//! scopes beyond the caller's own. The last admin key is in `revoke_admins.rs`.
//! Invariant: a refused update changes nothing and leaves no audit event.

use keystead::proto::v1::{ApiKey, ListAuditEventsRequest, Outcome, UpdateKeyRequest};
use prost_types::FieldMask;
use tonic::Code;

use super::{Footprint, NOBODY, World, at_once, bad_fields, fields, from_now, mask, refused, texts, updating, with};
use crate::harness::{TestDatabase, create_organization, store_test};

store_test!(a_mask_names_what_can_be_changed_or_is_refused);
async fn a_mask_names_what_can_be_changed_or_is_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let mut keys = world.server.keys();
    for update_mask in [None, Some(FieldMask { paths: vec![] })] {
        let request = UpdateKeyRequest { key: Some(key.clone()), update_mask, ..Default::default() };
        assert_eq!(bad_fields(keys.update_key(request).await), fields(&["update_mask"]));
    }
    for path in [
        "*",
        "",
        "nothing",
        "Name",
        "name ",
        "key.name",
        "name,scopes",
        "credits.remaining",
        "metadata.team",
        "rate_limits[0]",
        "id",
        "organization_id",
        "environment",
        "status",
        "etag",
        "revocation_note",
        "hint",
        "created_by",
        "request_count",
        "create_time",
        "rotated_from_id",
        "last_used_time",
        "\0",
        "🔑",
    ] {
        let request = updating(key.clone(), &["name", path]);
        assert_eq!(bad_fields(keys.update_key(request).await), fields(&["update_mask.paths[1]"]), "{path:?}");
    }
    let every = updating(key.clone(), &["*", "name", "status", "nothing"]);
    let paths = ["update_mask.paths[0]", "update_mask.paths[2]", "update_mask.paths[3]"];
    assert_eq!(bad_fields(keys.update_key(every).await), fields(&paths), "each of them is named");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(a_stale_etag_aborts_and_changes_nothing);
async fn a_stale_etag_aborts_and_changes_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let renamed = world.update(ApiKey { name: "second".to_owned(), ..key.clone() }, &["name"]).await;
    let before = Footprint::of(&database).await;
    let mut keys = world.server.keys();
    let with_etag = |etag: &str| UpdateKeyRequest {
        etag: etag.to_owned(),
        ..updating(ApiKey { name: "third".to_owned(), ..key.clone() }, &["name"])
    };
    for etag in [key.etag.as_str(), "nonsense", "-1", "9223372036854775807", "🔑", &"x".repeat(64)] {
        let details = refused(keys.update_key(with_etag(etag)).await, Code::Aborted, "ETAG_MISMATCH");
        assert_eq!(details.resource_info().expect("a ResourceInfo").resource_name, key.id);
    }
    assert_eq!(bad_fields(keys.update_key(with_etag(&"x".repeat(65))).await), fields(&["etag"]));
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(world.get(&key.id).await, renamed);
    let third = keys.update_key(with_etag(&renamed.etag)).await.expect("its own etag").into_inner().key;
    assert_eq!(third.expect("the key").name, "third");
}

store_test!(of_updates_at_once_with_one_etag_one_is_made);
async fn of_updates_at_once_with_one_etag_one_is_made(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let answers = at_once((0..20).map(|at| {
        let new = ApiKey { name: format!("writer {at}"), ..key.clone() };
        let request = UpdateKeyRequest { etag: key.etag.clone(), ..updating(new, &["name"]) };
        let mut keys = world.server.keys();
        async move { keys.update_key(request).await }
    }))
    .await;
    let (made, refusals): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refusals.len()), (1, 19));
    for refusal in refusals {
        refused(refusal, Code::Aborted, "ETAG_MISMATCH");
    }
    let winner = made.into_iter().flatten().next().and_then(|answer| answer.into_inner().key);
    assert_eq!(Some(world.get(&key.id).await), winner);
}

store_test!(a_revoked_key_cannot_be_changed);
async fn a_revoked_key_cannot_be_changed(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let revoked = world.revoke(&key.id).await.key.expect("the key");
    let before = Footprint::of(&database).await;
    for path in ["enabled", "name", "expire_time"] {
        let result = world.server.keys().update_key(updating(key.clone(), &[path])).await;
        let details = refused(result, Code::FailedPrecondition, "KEY_REVOKED");
        assert!(details.precondition_failure().is_some_and(|failure| failure.violations.len() == 1));
    }
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(world.get(&key.id).await, revoked);
    assert_eq!(world.outcome(&secret).await, Outcome::Revoked);
}

store_test!(a_key_that_does_not_exist_for_the_caller_is_not_found);
async fn a_key_that_does_not_exist_for_the_caller_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.update"]).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let nobody = ApiKey { id: NOBODY.to_owned(), ..key.clone() };
    let request = updating(key.clone(), &["name"]);
    refused(world.server.keys_as(&caller).update_key(request.clone()).await, Code::NotFound, "KEY_NOT_FOUND");
    let stale = with(&request, |request| "0".clone_into(&mut request.etag));
    refused(world.server.keys_as(&caller).update_key(stale).await, Code::NotFound, "KEY_NOT_FOUND");
    refused(world.server.keys().update_key(updating(nobody, &["name"])).await, Code::NotFound, "KEY_NOT_FOUND");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(nobody_gives_or_touches_a_scope_of_keystead_that_they_do_not_hold);
async fn nobody_gives_or_touches_a_scope_of_keystead_that_they_do_not_hold(database: TestDatabase) {
    let world = World::new(&database).await;
    let caller = world.caller(&world.organization, &["keystead.keys.update", "keystead.usage.read"]).await;
    let (plain, _) = world.create(world.new_key()).await;
    let stronger = with(&world.new_key(), |request| request.scopes = texts(&["keystead.keys.revoke"]));
    let (stronger, _) = world.create(stronger).await;
    let mut keys = world.server.keys_as(&caller);
    let before = Footprint::of(&database).await;
    for scope in ["keystead.admin", "keystead.*", "*", "keystead.keys.revoke"] {
        let request = updating(ApiKey { scopes: texts(&[scope]), ..plain.clone() }, &["scopes"]);
        refused(keys.update_key(request).await, Code::PermissionDenied, "SCOPE_NOT_HELD");
    }
    for path in ["name", "enabled", "scopes", "expire_time"] {
        let request = updating(ApiKey { name: "mine".to_owned(), scopes: vec![], ..stronger.clone() }, &[path]);
        refused(keys.update_key(request).await, Code::PermissionDenied, "SCOPE_NOT_HELD");
    }
    assert_eq!(Footprint::of(&database).await, before);
    let own = texts(&["keystead.usage.read", "invoices:*"]);
    let request = updating(ApiKey { scopes: own, ..plain }, &["scopes"]);
    keys.update_key(request).await.expect("scopes of its own, and of other systems, are free");
}

store_test!(an_expiry_in_the_past_is_refused);
async fn an_expiry_in_the_past_is_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let request = updating(ApiKey { expire_time: Some(from_now(-1)), ..key }, &["expire_time"]);
    assert_eq!(bad_fields(world.server.keys().update_key(request).await), fields(&["key.expire_time"]));
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(an_update_leaves_one_audit_event_that_names_the_paths);
async fn an_update_leaves_one_audit_event_that_names_the_paths(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let new = ApiKey { name: "not in the event".to_owned(), owner_id: "nor this".to_owned(), ..key.clone() };
    let request = UpdateKeyRequest { update_mask: Some(mask(&["owner_id", "name"])), ..updating(new, &[]) };
    world.server.keys().update_key(request).await.expect("the key is updated");
    let filter =
        ListAuditEventsRequest { target_id: key.id.clone(), action: "key.update".to_owned(), ..Default::default() };
    let events = world.server.audit().list_audit_events(filter).await.expect("events").into_inner().events;
    assert_eq!(events.len(), 1);
    let detail: serde_json::Value = serde_json::from_str(&events[0].detail).expect("JSON");
    assert_eq!(detail, serde_json::json!({"changed": ["name", "owner_id"]}));
}
