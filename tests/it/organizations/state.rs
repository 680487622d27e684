//! Deactivating, activating and deleting an organization, and what becomes of its keys: at once, also for a secret
//! whose verdict was cached a moment ago.

use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::{
    ActivateOrganizationRequest, Consistency, DeactivateOrganizationRequest, DeleteOrganizationRequest, GetKeyRequest,
    Organization, Outcome, RevokeKeyRequest, VerifyKeyRequest,
};
use tonic::{Code, Status};

use super::{get, get_by_id, resource};
use crate::callers::SYSTEM;
use crate::callers::requests::{issuing, verifying};
use crate::harness::{Server, TestDatabase, create_key, create_organization, expect_error, store_test, verify};

async fn deactivate(server: &Server, id: &str, etag: &str) -> Result<Organization, Status> {
    let request = DeactivateOrganizationRequest { organization_id: id.to_owned(), etag: etag.to_owned() };
    let answer = server.organizations().deactivate_organization(request).await?;
    Ok(answer.into_inner().organization.expect("the organization"))
}

async fn activate(server: &Server, id: &str, etag: &str) -> Result<Organization, Status> {
    let request = ActivateOrganizationRequest { organization_id: id.to_owned(), etag: etag.to_owned() };
    let answer = server.organizations().activate_organization(request).await?;
    Ok(answer.into_inner().organization.expect("the organization"))
}

async fn delete(server: &Server, id: &str, etag: &str, force: bool) -> Result<Organization, Status> {
    let request = DeleteOrganizationRequest { organization_id: id.to_owned(), etag: etag.to_owned(), force };
    let answer = server.organizations().delete_organization(request).await?;
    Ok(answer.into_inner().organization.expect("the organization"))
}

async fn outcomes(server: &Server, secret: &str) -> [Outcome; 2] {
    let fresh = VerifyKeyRequest { consistency: Consistency::Fresh.into(), ..verifying(secret) };
    let fresh = server.keys().verify_key(fresh).await.expect("an answer").into_inner().outcome();
    [verify(server, secret).await.outcome(), fresh]
}

store_test!(deactivating_and_activating_reach_every_key_at_once);
async fn deactivating_and_activating_reach_every_key_at_once(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let beside = create_organization(&server, "beta").await;
    let (_, secret) = create_key(&server, &organization.id, &[]).await;
    let (_, other) = create_key(&server, &beside.id, &[]).await;
    for _ in 0..10 {
        assert_eq!(outcomes(&server, &secret).await, [Outcome::Valid; 2]);
        assert!(!deactivate(&server, &organization.id, "").await.expect("deactivated").active);
        assert_eq!(outcomes(&server, &secret).await, [Outcome::OrganizationInactive; 2]);
        assert_eq!(outcomes(&server, &other).await, [Outcome::Valid; 2], "nobody else's");
        assert!(activate(&server, &organization.id, "").await.expect("activated").active);
    }
    assert_eq!(outcomes(&server, &secret).await, [Outcome::Valid; 2]);
}

store_test!(an_inactive_organization_takes_no_new_key_and_keeps_those_that_it_has);
async fn an_inactive_organization_takes_no_new_key_and_keeps_those_that_it_has(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let (key, secret) = create_key(&server, &organization.id, &[]).await;
    deactivate(&server, &organization.id, "").await.expect("deactivated");
    let refused = server.keys().create_key(issuing(&organization.id, &[])).await;
    let details = expect_error(refused, Code::FailedPrecondition, "ORGANIZATION_INACTIVE");
    assert_eq!(resource(&details), ("organization", organization.id.as_str()));
    let kept = server.keys().get_key(GetKeyRequest { key_id: key.id.clone() }).await.expect("an answer").into_inner();
    assert_eq!(kept.key.expect("the key").status(), key.status(), "the keys themselves stay as they are");
    // A key can be ended while its organization sleeps, and that outcome comes first.
    server.keys().revoke_key(RevokeKeyRequest { key_id: key.id, ..Default::default() }).await.expect("revoked");
    assert_eq!(outcomes(&server, &secret).await, [Outcome::Revoked; 2]);
}

store_test!(activating_and_deactivating_are_idempotent);
async fn activating_and_deactivating_are_idempotent(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    assert_eq!(activate(&server, &organization.id, "").await.expect("idempotent"), organization);
    let stopped = deactivate(&server, &organization.id, &organization.etag).await.expect("deactivated");
    assert_ne!(stopped.etag, organization.etag);
    assert_eq!(deactivate(&server, &organization.id, "").await.expect("idempotent"), stopped);
    assert_eq!(get_by_id(&server, &organization.id).await, stopped);
}

store_test!(a_stale_etag_aborts_every_change_of_state);
async fn a_stale_etag_aborts_every_change_of_state(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let refused = deactivate(&server, &organization.id, "9").await;
    expect_error(refused, Code::Aborted, "ETAG_MISMATCH");
    expect_error(delete(&server, &organization.id, "9", true).await, Code::Aborted, "ETAG_MISMATCH");
    let stopped = deactivate(&server, &organization.id, &organization.etag).await.expect("deactivated");
    expect_error(activate(&server, &organization.id, &organization.etag).await, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(get_by_id(&server, &organization.id).await, stopped);
    activate(&server, &organization.id, &stopped.etag).await.expect("activated");
}

store_test!(an_organization_with_keys_is_deleted_by_force_alone);
async fn an_organization_with_keys_is_deleted_by_force_alone(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let (live, secret) = create_key(&server, &organization.id, &[]).await;
    let (revoked, revoked_secret) = create_key(&server, &organization.id, &[]).await;
    let revoke = RevokeKeyRequest { key_id: revoked.id.clone(), ..Default::default() };
    server.keys().revoke_key(revoke).await.expect("revoked");
    assert_eq!(outcomes(&server, &secret).await, [Outcome::Valid; 2]);
    assert_eq!(outcomes(&server, &revoked_secret).await, [Outcome::Revoked; 2]);

    let refused = delete(&server, &organization.id, "", false).await;
    let details = expect_error(refused, Code::FailedPrecondition, "ORGANIZATION_HAS_KEYS");
    assert_eq!(resource(&details), ("organization", organization.id.as_str()));
    let violation = &details.precondition_failure().expect("a PreconditionFailure").violations[0];
    assert!(violation.description.contains("force"), "what to do is said: {violation:?}");
    assert_eq!(outcomes(&server, &secret).await, [Outcome::Valid; 2]);

    let deleted = delete(&server, &organization.id, "", true).await.expect("deleted");
    assert_eq!((deleted.id.as_str(), deleted.key_count), (organization.id.as_str(), 1), "as it was");
    assert_eq!(outcomes(&server, &secret).await, [Outcome::NotFound; 2]);
    assert_eq!(outcomes(&server, &revoked_secret).await, [Outcome::NotFound; 2]);
    for key_id in [live.id, revoked.id] {
        let gone = server.keys().get_key(GetKeyRequest { key_id }).await;
        expect_error(gone, Code::NotFound, "KEY_NOT_FOUND");
    }
    let gone = get(&server, Selector::Slug("acme".to_owned())).await;
    expect_error(gone, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    expect_error(delete(&server, &organization.id, "", true).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    for table in ["api_keys", "usage_rollups", "usage_totals", "usage_consumers", "api_key_usage"] {
        let left = format!("SELECT count(*) FROM {table} WHERE organization_id = '{}'", organization.id);
        assert_eq!(database.query_i64(&left).await, 0, "{table}");
    }
    create_organization(&server, "acme").await;
}

store_test!(an_organization_whose_keys_are_all_revoked_still_has_keys);
async fn an_organization_whose_keys_are_all_revoked_still_has_keys(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let (key, _) = create_key(&server, &organization.id, &[]).await;
    server.keys().revoke_key(RevokeKeyRequest { key_id: key.id, ..Default::default() }).await.expect("revoked");
    assert_eq!(get_by_id(&server, &organization.id).await.key_count, 0, "revoked keys do not count");
    let refused = delete(&server, &organization.id, "", false).await;
    expect_error(refused, Code::FailedPrecondition, "ORGANIZATION_HAS_KEYS");
}

store_test!(an_organization_without_keys_is_deleted_without_force);
async fn an_organization_without_keys_is_deleted_without_force(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    assert_eq!(delete(&server, &organization.id, &organization.etag, false).await.expect("deleted"), organization);
    for again in [activate(&server, &organization.id, "").await, deactivate(&server, &organization.id, "").await] {
        expect_error(again, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    }
}

store_test!(system_can_be_neither_deleted_nor_deactivated);
async fn system_can_be_neither_deleted_nor_deactivated(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let before = get_by_id(&server, SYSTEM).await;
    for refused in [
        delete(&server, SYSTEM, "", false).await,
        delete(&server, SYSTEM, "", true).await,
        delete(&server, SYSTEM, &before.etag, true).await,
        deactivate(&server, SYSTEM, "").await,
        deactivate(&server, SYSTEM, &before.etag).await,
    ] {
        let details = expect_error(refused, Code::FailedPrecondition, "SYSTEM_ORGANIZATION");
        assert_eq!(resource(&details), ("organization", SYSTEM));
        assert!(details.precondition_failure().is_some());
    }
    assert_eq!(get_by_id(&server, SYSTEM).await, before);
}

store_test!(a_key_created_while_its_organization_is_deleted_is_not_left_behind);
async fn a_key_created_while_its_organization_is_deleted_is_not_left_behind(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    for round in 0..10 {
        let organization = create_organization(&server, &format!("round-{round}")).await.id;
        let mut keys = server.keys();
        let (created, deleted) = tokio::join!(
            keys.create_key(issuing(&organization, &[])),
            delete(&server, &organization, "", round % 2 == 0)
        );
        if let Err(status) = &created {
            assert_eq!(status.code(), Code::NotFound, "{status:?}");
        }
        if let Err(status) = &deleted {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        }
        let left = format!("SELECT count(*) FROM api_keys WHERE organization_id = '{organization}'");
        let there = format!("SELECT count(*) FROM organizations WHERE id = '{organization}'");
        let (keys, there) = (database.query_i64(&left).await, database.query_i64(&there).await);
        assert!(keys <= there, "round {round}: {keys} keys of {there} organizations");
    }
}
