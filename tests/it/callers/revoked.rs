//! A control-plane permission is read from the database at each call: what is taken away there by plain SQL, past the
//! service and its cache, is refused on the very next call of every rpc, without waiting for the change feed.
//! Verification alone may rest on the cache for the staleness bound.

use tonic::Code;

use super::{PERMISSIONS, SYSTEM, requests, rpcs};
use crate::harness::{Server, TestDatabase, create_key, create_organization, expect_error, store_test, wait_until};

/// Rpcs that take the caller from the cache.
fn rests_on_the_cache(rpc: &str) -> bool {
    PERMISSIONS.iter().any(|(permission, opened)| *permission == "keystead.keys.verify" && opened.contains(&rpc))
}

/// Takes a caller's right away by SQL after it has just been used, and calls every control-plane rpc.
async fn refused_at_once(
    server: &Server,
    database: &TestDatabase,
    organization: &str,
    sql: &str,
    expected: (Code, &str),
) {
    let channel = server.channel();
    for rpc in rpcs::rpcs().into_iter().filter(|rpc| !rests_on_the_cache(&rpc.name)) {
        let (key, secret) = create_key(server, organization, &["keystead.admin"]).await;
        let bearer = format!("Bearer {secret}");
        // Once this succeeds, the caller is in every cache there may be. It may have to wait for the change feed to
        // bring what the round before has undone.
        wait_until("the caller to be cached", async || {
            server.keys_as(&secret).verify_key(requests::verifying(&secret)).await.is_ok()
        })
        .await;
        let before = rpcs::call(&channel, &rpc.path(), Vec::new(), &[&bearer]).await.err().map(|status| status.code());
        // Creating organizations is for callers of `system` alone.
        let denied = organization != SYSTEM && rpc.name == "OrganizationService/CreateOrganization";
        assert_ne!(before, Some(Code::Unauthenticated), "{}", rpc.name);
        assert_eq!(before == Some(Code::PermissionDenied), denied, "{}", rpc.name);

        let changed = database.raw_sql(&sql.replace("KEY", &key.id).replace("ORGANIZATION", organization)).await;
        assert_eq!(changed, 1, "{sql}");

        let result = rpcs::call(&channel, &rpc.path(), Vec::new(), &[&bearer]).await;
        assert!(result.is_err(), "{} after {sql}", rpc.name);
        expect_error(result, expected.0, expected.1);
        let undo = "UPDATE organizations SET active = TRUE WHERE id = 'ORGANIZATION'";
        database.raw_sql(&undo.replace("ORGANIZATION", organization)).await;
    }
}

const UNAUTHENTICATED: (Code, &str) = (Code::Unauthenticated, "UNAUTHENTICATED");

store_test!(a_caller_revoked_by_sql_is_refused_on_the_very_next_call);
async fn a_caller_revoked_by_sql_is_refused_on_the_very_next_call(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let sql = "UPDATE api_keys SET status = 'revoked' WHERE id = 'KEY'";
    refused_at_once(&server, &database, SYSTEM, sql, UNAUTHENTICATED).await;
}

store_test!(a_caller_disabled_or_deleted_by_sql_is_refused_on_the_very_next_call);
async fn a_caller_disabled_or_deleted_by_sql_is_refused_on_the_very_next_call(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let sql = "UPDATE api_keys SET status = 'disabled' WHERE id = 'KEY'";
    refused_at_once(&server, &database, SYSTEM, sql, UNAUTHENTICATED).await;
    refused_at_once(&server, &database, SYSTEM, "DELETE FROM api_keys WHERE id = 'KEY'", UNAUTHENTICATED).await;
}

store_test!(a_caller_expired_by_sql_is_refused_on_the_very_next_call);
async fn a_caller_expired_by_sql_is_refused_on_the_very_next_call(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let sql = "UPDATE api_keys SET expire_time_us = 1 WHERE id = 'KEY'";
    refused_at_once(&server, &database, SYSTEM, sql, UNAUTHENTICATED).await;
}

store_test!(a_caller_of_an_organization_deactivated_by_sql_is_refused_on_the_very_next_call);
async fn a_caller_of_an_organization_deactivated_by_sql_is_refused_on_the_very_next_call(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let sql = "UPDATE organizations SET active = FALSE WHERE id = 'ORGANIZATION'";
    refused_at_once(&server, &database, &organization, sql, UNAUTHENTICATED).await;
}

store_test!(a_permission_taken_away_by_sql_is_refused_on_the_very_next_call);
async fn a_permission_taken_away_by_sql_is_refused_on_the_very_next_call(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let sql = "UPDATE api_keys SET scopes = '[\"invoices:read\"]' WHERE id = 'KEY'";
    refused_at_once(&server, &database, SYSTEM, sql, (Code::PermissionDenied, "PERMISSION_DENIED")).await;
}

store_test!(a_caller_moved_out_of_system_by_sql_reaches_its_own_organization_alone_on_the_very_next_call);
async fn a_caller_moved_out_of_system_by_sql_reaches_its_own_organization_alone_on_the_very_next_call(
    database: TestDatabase,
) {
    let server = Server::start(&database, &[]).await;
    let (own, other) = (create_organization(&server, "acme").await.id, create_organization(&server, "beta").await.id);
    let (key, secret) = create_key(&server, SYSTEM, &["keystead.admin"]).await;
    let listing = |organization: &str| keystead::proto::v1::ListKeysRequest {
        organization_id: organization.to_owned(),
        ..Default::default()
    };
    server.keys_as(&secret).list_keys(listing(&other)).await.expect("a caller of system");
    database.raw_sql(&format!("UPDATE api_keys SET organization_id = '{own}' WHERE id = '{}'", key.id)).await;
    let refused = server.keys_as(&secret).list_keys(listing(&other)).await;
    expect_error(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    server.keys_as(&secret).list_keys(listing(&own)).await.expect("its own");
}
