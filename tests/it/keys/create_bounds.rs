//! `CreateKey`: what it refuses although every field is well formed. Repeats, the key cap, an inactive or
//! unknown organization, scopes beyond the caller's own.
//! Invariant: each refusal leaves keys and audit events as they were, also when many calls come at once.

use keystead::proto::v1::{CreateKeyRequest, Environment, ListKeysRequest, Organization, RevokeKeyRequest};
use tonic::{Code, Response, Status};
use tonic_types::ErrorDetails;

use super::{Footprint, NOBODY, World, at_once, refused, texts, with};
use crate::harness::{TestDatabase, create_key, create_organization, store_test};

const REQUEST_ID: &str = "0198c7a4-5b7e-7c3a-9f00-00000000cafe";

/// Asserts that a creation was refused as a repeat, and returns the id of the key that it names.
fn named_by_repeat<T>(result: Result<Response<T>, Status>) -> String {
    let details = refused(result, Code::AlreadyExists, "REQUEST_ID_REUSED");
    let resource = details.resource_info().expect("a ResourceInfo names the key");
    assert_eq!(resource.resource_type, "key");
    let metadata = &details.error_info().expect("an ErrorInfo").metadata;
    assert!(metadata.values().any(|value| *value == resource.resource_name), "{metadata:?}");
    resource.resource_name.clone()
}

fn of_request(organization: &str, request_id: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        organization_id: organization.to_owned(),
        name: "Once".to_owned(),
        environment: Environment::Live.into(),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

async fn set_cap(world: &World, max_keys: i64) {
    world.set(Organization { max_keys, ..Default::default() }, &["max_keys"]).await;
}

fn assert_cap_details(details: &ErrorDetails, organization: &str) {
    let quota = details.quota_failure().expect("a QuotaFailure");
    assert_eq!(quota.violations.len(), 1);
    assert!(quota.violations[0].subject.contains(organization), "{:?}", quota.violations);
    assert!(!quota.violations[0].description.is_empty());
}

store_test!(a_repeated_request_id_names_the_first_key_and_makes_no_second);
async fn a_repeated_request_id_names_the_first_key_and_makes_no_second(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = of_request(&world.organization, REQUEST_ID);
    let (first, _) = world.create(request.clone()).await;
    let before = Footprint::of(&database).await;
    assert_eq!(named_by_repeat(world.server.keys().create_key(request.clone()).await), first.id);
    let other = with(&request, |request| "Not the same".clone_into(&mut request.name));
    assert_eq!(named_by_repeat(world.server.keys().create_key(other).await), first.id);
    let upper = with(&request, |request| request.request_id = REQUEST_ID.to_uppercase());
    assert_eq!(named_by_repeat(world.server.keys().create_key(upper).await), first.id, "case does not count");
    world.revoke(&first.id).await;
    assert_eq!(named_by_repeat(world.server.keys().create_key(request).await), first.id, "also once revoked");
    let after = Footprint::of(&database).await;
    assert_eq!((after.keys, after.audit_events), (before.keys, before.audit_events + 1), "one event: the revocation");
}

store_test!(a_request_id_of_another_organization_is_no_repeat);
async fn a_request_id_of_another_organization_is_no_repeat(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let (first, _) = world.create(of_request(&world.organization, REQUEST_ID)).await;
    let (second, _) = world.create(of_request(&rival, REQUEST_ID)).await;
    assert_ne!(first.id, second.id);
    let (third, _) = world.create(of_request(&rival, "")).await;
    let (fourth, _) = world.create(of_request(&rival, "")).await;
    assert_ne!(third.id, fourth.id, "without an id every call is a request of its own");
}

store_test!(twenty_repeats_at_once_make_one_key);
async fn twenty_repeats_at_once_make_one_key(database: TestDatabase) {
    let world = World::new(&database).await;
    let before = Footprint::of(&database).await;
    let answers = at_once((0..20).map(|_| {
        let (mut keys, request) = (world.server.keys(), of_request(&world.organization, REQUEST_ID));
        async move { keys.create_key(request).await }
    }))
    .await;
    let (created, repeats): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(created.len(), 1, "one call creates the key");
    let only = world.list(ListKeysRequest { organization_id: world.organization.clone(), ..Default::default() }).await;
    assert_eq!(only.len(), 1);
    for repeat in repeats {
        assert_eq!(named_by_repeat(repeat), only[0].id);
    }
    let after = Footprint::of(&database).await;
    assert_eq!((after.keys, after.audit_events), (before.keys + 1, before.audit_events + 1));
}

store_test!(the_key_cap_counts_keys_that_are_not_revoked);
async fn the_key_cap_counts_keys_that_are_not_revoked(database: TestDatabase) {
    let world = World::new(&database).await;
    set_cap(&world, 2).await;
    let (first, _) = world.create(world.new_key()).await;
    world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let result = world.server.keys().create_key(world.new_key()).await;
    let details = refused(result, Code::ResourceExhausted, "KEY_CAP_REACHED");
    assert_cap_details(&details, &world.organization);
    assert_eq!(Footprint::of(&database).await, before);
    world.revoke(&first.id).await;
    world.create(world.new_key()).await;
    refused(world.server.keys().create_key(world.new_key()).await, Code::ResourceExhausted, "KEY_CAP_REACHED");
    set_cap(&world, 0).await;
    world.create(world.new_key()).await;
}

store_test!(thirty_creations_at_once_never_pass_the_cap);
async fn thirty_creations_at_once_never_pass_the_cap(database: TestDatabase) {
    let world = World::new(&database).await;
    // Each round raises the cap and finds the connections of the round before open: where creations did not
    // queue, several of them would find the last place free.
    for round in 1..=4 {
        set_cap(&world, 7 * round).await;
        let answers = at_once((0..30).map(|_| {
            let (mut keys, request) = (world.server.keys(), world.new_key());
            async move { keys.create_key(request).await }
        }))
        .await;
        let (created, beyond): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!((created.len(), beyond.len()), (7, 23), "round {round}");
        for refusal in beyond {
            assert_cap_details(&refused(refusal, Code::ResourceExhausted, "KEY_CAP_REACHED"), &world.organization);
        }
    }
    let sql = format!("SELECT count(*) FROM api_keys WHERE organization_id = '{}'", world.organization);
    assert_eq!(database.query_i64(&sql).await, 28);
}

store_test!(an_inactive_organization_gets_no_key);
async fn an_inactive_organization_gets_no_key(database: TestDatabase) {
    let world = World::new(&database).await;
    world.deactivate().await;
    let before = Footprint::of(&database).await;
    let result = world.server.keys().create_key(world.new_key()).await;
    let details = refused(result, Code::FailedPrecondition, "ORGANIZATION_INACTIVE");
    let precondition = details.precondition_failure().expect("a PreconditionFailure");
    assert!(precondition.violations[0].subject.contains(&world.organization), "{precondition:?}");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(an_organization_that_does_not_exist_for_the_caller_is_not_found);
async fn an_organization_that_does_not_exist_for_the_caller_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.create"]).await;
    let before = Footprint::of(&database).await;
    for (mut keys, organization) in [
        (world.server.keys(), NOBODY),
        (world.server.keys_as(&caller), NOBODY),
        (world.server.keys_as(&caller), world.organization.as_str()),
    ] {
        let result = keys.create_key(of_request(organization, "")).await;
        let details = refused(result, Code::NotFound, "ORGANIZATION_NOT_FOUND");
        let resource = details.resource_info().expect("a ResourceInfo");
        assert_eq!((resource.resource_type.as_str(), resource.resource_name.as_str()), ("organization", organization));
    }
    assert_eq!(Footprint::of(&database).await, before);
    let (own, _) = create_key(&world.server, &rival, &[]).await;
    assert_eq!(own.organization_id, rival);
}

store_test!(nobody_hands_out_a_scope_of_keystead_that_they_do_not_hold);
async fn nobody_hands_out_a_scope_of_keystead_that_they_do_not_hold(database: TestDatabase) {
    let world = World::new(&database).await;
    let caller = world.caller(&world.organization, &["keystead.keys.create", "keystead.usage.*"]).await;
    let mut keys = world.server.keys_as(&caller);
    let before = Footprint::of(&database).await;
    for scope in ["keystead.admin", "keystead.*", "*", "k*", "keystead.keys.*", "keystead.keys.revoke"] {
        let request = with(&world.new_key(), |request| request.scopes = texts(&["invoices:read", scope]));
        let details = refused(keys.create_key(request).await, Code::PermissionDenied, "SCOPE_NOT_HELD");
        let metadata = &details.error_info().expect("an ErrorInfo").metadata;
        assert!(metadata.values().any(|value| value == scope), "{metadata:?}");
    }
    assert_eq!(Footprint::of(&database).await, before);
    let own = ["keystead.keys.create", "keystead.usage.read", "keystead.usage.*", "invoices:*", "keystone.admin"];
    let request = with(&world.new_key(), |request| request.scopes = texts(&own));
    keys.create_key(request).await.expect("scopes of its own, and of other systems, are free");
    let revoke = RevokeKeyRequest { key_id: NOBODY.to_owned(), ..Default::default() };
    refused(keys.revoke_key(revoke).await, Code::PermissionDenied, "PERMISSION_DENIED");
}
