//! `RevokeKey`: final, idempotent, and written down: why, when, by whom, from which revision on.
//! That no verification passes afterwards is in `verify_freshness.rs`; the last admin key in `revoke_admins.rs`.
//! Invariant: the first revocation stands, whatever comes after it.

use keystead::proto::v1::{
    ApiKey, KeyStatus, ListAuditEventsRequest, Outcome, RevocationReason, RevokeKeyRequest, RevokeKeyResponse,
};
use tonic::Code;

use super::{Footprint, NOBODY, World, at_once, bad_fields, fields, from_now, micros, refused, with};
use crate::harness::{TestDatabase, create_organization, store_test};

fn revoking(key_id: &str, reason: RevocationReason, note: &str) -> RevokeKeyRequest {
    RevokeKeyRequest { key_id: key_id.to_owned(), reason: reason.into(), note: note.to_owned(), etag: String::new() }
}

impl World {
    async fn revoke_as(&self, caller: &str, request: RevokeKeyRequest) -> RevokeKeyResponse {
        self.server.keys_as(caller).revoke_key(request).await.expect("the key is revoked").into_inner()
    }
}

store_test!(a_revocation_is_written_down);
async fn a_revocation_is_written_down(database: TestDatabase) {
    let world = World::new(&database).await;
    let caller = world.caller(&world.organization, &["keystead.keys.revoke"]).await;
    let caller_id = world.key_of(&caller).await;
    let (key, _) = world.create(world.new_key()).await;
    let note = "leaked in a log\nticket 🔑 %_ '; --";
    let before = micros(Some(from_now(0)));
    let answer = world.revoke_as(&caller, revoking(&key.id, RevocationReason::KeyCompromise, note)).await;
    let after = micros(Some(from_now(0)));
    let revoked = answer.key.expect("the key");
    assert!((before..=after).contains(&micros(revoked.revoke_time)));
    assert!(answer.revision > 0);
    assert_ne!(revoked.etag, key.etag);
    let expected = ApiKey {
        status: KeyStatus::Revoked.into(),
        enabled: revoked.enabled,
        update_time: revoked.revoke_time,
        revoke_time: revoked.revoke_time,
        revoked_by: caller_id.clone(),
        revocation_reason: RevocationReason::KeyCompromise.into(),
        revocation_note: note.to_owned(),
        etag: revoked.etag.clone(),
        ..key.clone()
    };
    assert_eq!(revoked, expected);
    assert_eq!(world.get(&key.id).await, revoked);

    let filter =
        ListAuditEventsRequest { target_id: key.id.clone(), action: "key.revoke".to_owned(), ..Default::default() };
    let events = world.server.audit().list_audit_events(filter).await.expect("events").into_inner().events;
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0].actor_key_id, &events[0].organization_id), (&caller_id, &world.organization));
    assert!(events[0].detail.contains("key_compromise") && !events[0].detail.contains("ticket"), "{:?}", events[0]);
}

store_test!(every_reason_is_kept);
async fn every_reason_is_kept(database: TestDatabase) {
    let world = World::new(&database).await;
    for number in 0..7 {
        let reason = RevocationReason::try_from(number).expect("a reason");
        let (key, secret) = world.create(world.new_key()).await;
        let answer = world.server.keys().revoke_key(revoking(&key.id, reason, "")).await.expect("revoked");
        assert_eq!(answer.into_inner().key.expect("the key").revocation_reason(), reason);
        assert_eq!(world.get(&key.id).await.revocation_reason(), reason);
        assert_eq!(world.outcome(&secret).await, Outcome::Revoked);
    }
    assert!(RevocationReason::try_from(7).is_err(), "a new reason belongs in this test");
}

store_test!(a_repeat_keeps_the_first_revocation);
async fn a_repeat_keeps_the_first_revocation(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let first =
        world.revoke_as(world.server.admin_secret(), revoking(&key.id, RevocationReason::OwnerLeft, "first")).await;
    let before = Footprint::of(&database).await;
    let caller = world.caller(&world.organization, &["keystead.keys.revoke"]).await;
    let with_caller = Footprint::of(&database).await;
    assert_eq!(with_caller.keys, before.keys + 1);
    let repeat = revoking(&key.id, RevocationReason::KeyCompromise, "second");
    let stale = with(&repeat, |request| request.etag.clone_from(&key.etag));
    let foreign = with(&repeat, |request| "nonsense".clone_into(&mut request.etag));
    for request in [revoking(&key.id, RevocationReason::OwnerLeft, "first"), repeat, stale, foreign] {
        let again = world.revoke_as(&caller, request).await;
        assert_eq!(again.key, first.key, "reason, note, time, author and etag of the first");
        assert!(again.revision >= first.revision, "{} {}", again.revision, first.revision);
    }
    assert_eq!(Footprint::of(&database).await, with_caller, "nothing more is written");
}

store_test!(of_revocations_at_once_one_is_written_down);
async fn of_revocations_at_once_one_is_written_down(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let answers = at_once((0..10).map(|at| {
        let request = revoking(&key.id, RevocationReason::Other, &format!("caller {at}"));
        let mut keys = world.server.keys();
        async move { keys.revoke_key(request).await.expect("idempotent").into_inner().key.expect("the key") }
    }))
    .await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let after = Footprint::of(&database).await;
    assert_eq!((after.audit_events, after.revision), (before.audit_events + 1, before.revision + 1));
}

store_test!(revisions_rise_with_each_revocation);
async fn revisions_rise_with_each_revocation(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut last = 0;
    for (key, _) in world.create_many("rising", 5).await {
        let revision = world.revoke(&key.id).await.revision;
        assert!(revision > last, "{revision} after {last}");
        last = revision;
    }
}

store_test!(a_stale_etag_aborts_and_revokes_nothing);
async fn a_stale_etag_aborts_and_revokes_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let renamed = world.update(ApiKey { name: "second".to_owned(), ..key.clone() }, &["name"]).await;
    let before = Footprint::of(&database).await;
    let request = revoking(&key.id, RevocationReason::Other, "");
    let stale = with(&request, |request| request.etag.clone_from(&key.etag));
    refused(world.server.keys().revoke_key(stale).await, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    let right = with(&request, |request| request.etag = renamed.etag);
    world.server.keys().revoke_key(right).await.expect("its own etag");
    assert_eq!(world.outcome(&secret).await, Outcome::Revoked);
}

store_test!(a_key_that_does_not_exist_for_the_caller_is_not_found);
async fn a_key_that_does_not_exist_for_the_caller_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let foreign = world.caller(&rival, &["keystead.keys.revoke"]).await;
    let (key, secret) = world.create(world.new_key()).await;
    let (gone, _) = world.create(world.new_key()).await;
    world.revoke(&gone.id).await;
    let before = Footprint::of(&database).await;
    for id in [key.id.as_str(), gone.id.as_str(), NOBODY] {
        let request = revoking(id, RevocationReason::Other, "mine");
        refused(world.server.keys_as(&foreign).revoke_key(request).await, Code::NotFound, "KEY_NOT_FOUND");
    }
    let request = revoking(NOBODY, RevocationReason::Other, "");
    refused(world.server.keys().revoke_key(request).await, Code::NotFound, "KEY_NOT_FOUND");
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
}

store_test!(a_note_is_at_most_a_thousand_characters);
async fn a_note_is_at_most_a_thousand_characters(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    for note in ["x".repeat(1001), "🔑".repeat(1001), "a\0b".to_owned(), "a\tb".to_owned(), "\u{202e}".to_owned()] {
        let result = world.server.keys().revoke_key(revoking(&key.id, RevocationReason::Other, &note)).await;
        assert_eq!(bad_fields(result), fields(&["note"]), "{note:.20?}");
    }
    assert_eq!(Footprint::of(&database).await, before);
    let note = "🔑".repeat(1000);
    let answer = world.revoke_as(world.server.admin_secret(), revoking(&key.id, RevocationReason::Other, &note)).await;
    assert_eq!(answer.key.expect("the key").revocation_note, note);
}

store_test!(a_revocation_survives_a_restart);
async fn a_revocation_survives_a_restart(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let revoked = world.revoke(&key.id).await.key.expect("the key");
    world.server.restart().await;
    assert_eq!(world.outcome(&secret).await, Outcome::Revoked);
    assert_eq!(world.get(&key.id).await, revoked);
}
