//! Nobody hands out a `keystead.` scope that they do not hold: not by creating, not by updating, not by rotating, and
//! not through a wildcard that reaches into `keystead.`. Scopes of other systems are free.
//! Every refusal leaves everything as it was.

use keystead::proto::v1::{ApiKey, CreateKeyRequest, RevokeKeyRequest, RotateKeyRequest, UpdateKeyRequest};
use tonic::Code;

use super::{SYSTEM, requests};
use crate::harness::{Server, TestDatabase, create_key, create_organization, expect_error, store_test};

/// Scopes beyond a caller with [`HELD`].
const BEYOND: &[&str] = &[
    "*",
    "k*",
    "keystead*",
    "keystead.*",
    "keystead.keys.*",
    "keystead.keys.r*",
    "keystead.admin",
    "keystead.audit.read",
    "keystead.keys.read",
    "keystead.something.new",
];

/// What the caller of these tests holds.
const HELD: &[&str] = &[
    "keystead.keys.create",
    "keystead.keys.update",
    "keystead.keys.rotate",
    "keystead.keys.revoke",
    "keystead.usage.*",
];

/// Scopes that such a caller may hand out.
const WITHIN: &[&str] =
    &["keystead.keys.create", "keystead.usage.*", "keystead.usage.read", "invoices:*", "keystone.admin", "i*"];

/// A caller with [`HELD`] in `system`, and one in an organization of its own.
async fn callers(server: &Server) -> [(String, String); 2] {
    let organization = create_organization(server, "acme").await.id;
    let (_, of_system) = create_key(server, SYSTEM, HELD).await;
    let (_, restricted) = create_key(server, &organization, HELD).await;
    [(organization.clone(), of_system), (organization, restricted)]
}

async fn keys_at_rest(database: &TestDatabase) -> (i64, i64) {
    let count = database.query_i64("SELECT count(*) FROM api_keys").await;
    (count, database.query_i64("SELECT count(*) FROM audit_events").await)
}

store_test!(nobody_creates_a_key_with_a_permission_that_they_do_not_hold);
async fn nobody_creates_a_key_with_a_permission_that_they_do_not_hold(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    for (organization, caller) in callers(&server).await {
        let before = keys_at_rest(&database).await;
        for scope in BEYOND {
            // Alone, and behind one that is free.
            for scopes in [vec![*scope], vec!["invoices:read", scope]] {
                let refused = server.keys_as(&caller).create_key(requests::issuing(&organization, &scopes)).await;
                let details = expect_error(refused, Code::PermissionDenied, "SCOPE_NOT_HELD");
                let named = &details.error_info().expect("an ErrorInfo").metadata;
                assert!(named.values().any(|value| value == scope), "{scope}: {named:?}");
            }
        }
        assert_eq!(keys_at_rest(&database).await, before);
        let answer = server.keys_as(&caller).create_key(requests::issuing(&organization, WITHIN)).await;
        assert_eq!(answer.expect("within its own").into_inner().key.expect("the key").scopes, WITHIN);
    }
}

store_test!(nobody_updates_a_key_to_or_from_a_permission_that_they_do_not_hold);
async fn nobody_updates_a_key_to_or_from_a_permission_that_they_do_not_hold(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    for (organization, caller) in callers(&server).await {
        let (weak, _) = create_key(&server, &organization, &["invoices:read"]).await;
        let (strong, _) = create_key(&server, &organization, &["keystead.audit.read"]).await;
        let before = keys_at_rest(&database).await;
        let mut keys = server.keys_as(&caller);
        for scope in BEYOND {
            let changed = ApiKey { id: weak.id.clone(), scopes: vec![scope.to_string()], ..Default::default() };
            let refused = keys.update_key(requests::updating(changed, "scopes")).await;
            expect_error(refused, Code::PermissionDenied, "SCOPE_NOT_HELD");
        }
        // Whoever could change a stronger key could lift its limits, or take it over by its metadata.
        let fields = ["name", "scopes", "metadata", "owner_id", "rate_limits", "credits", "allowed_cidrs", "enabled"];
        for field in fields {
            let changed = ApiKey { id: strong.id.clone(), name: "Mine".to_owned(), ..Default::default() };
            let refused = keys.update_key(requests::updating(changed, field)).await;
            expect_error(refused, Code::PermissionDenied, "SCOPE_NOT_HELD");
        }
        assert_eq!(keys_at_rest(&database).await, before);
        let scopes: Vec<String> = WITHIN.iter().map(ToString::to_string).collect();
        let changed = ApiKey { id: weak.id, scopes: scopes.clone(), ..Default::default() };
        let answer = keys.update_key(requests::updating(changed, "scopes")).await.expect("within its own");
        assert_eq!(answer.into_inner().key.expect("the key").scopes, scopes);
    }
}

store_test!(nobody_rotates_a_key_with_a_permission_that_they_do_not_hold);
async fn nobody_rotates_a_key_with_a_permission_that_they_do_not_hold(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    for (organization, caller) in callers(&server).await {
        let mut keys = server.keys_as(&caller);
        for scope in BEYOND {
            let (strong, _) = create_key(&server, &organization, &["invoices:read", scope]).await;
            let before = keys_at_rest(&database).await;
            let request = RotateKeyRequest { key_id: strong.id, ..Default::default() };
            expect_error(keys.rotate_key(request).await, Code::PermissionDenied, "SCOPE_NOT_HELD");
            assert_eq!(keys_at_rest(&database).await, before, "{scope}");
        }
        let (weak, _) = create_key(&server, &organization, WITHIN).await;
        let request = RotateKeyRequest { key_id: weak.id, ..Default::default() };
        let answer = keys.rotate_key(request).await.expect("within its own").into_inner();
        assert_eq!(answer.key.expect("the key").scopes, WITHIN);
    }
}

store_test!(the_last_admin_key_cannot_be_revoked_disabled_limited_or_stripped);
async fn the_last_admin_key_cannot_be_revoked_disabled_limited_or_stripped(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let id = database.query_string("SELECT id FROM api_keys").await;
    // An admin key that will expire, and one of another organization, keep nobody from being locked out.
    let expiring = CreateKeyRequest {
        lifetime: Some(keystead::proto::v1::create_key_request::Lifetime::Ttl(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        })),
        ..requests::issuing(SYSTEM, &["keystead.admin"])
    };
    server.keys().create_key(expiring).await.expect("created");
    let acme = create_organization(&server, "acme").await;
    create_key(&server, &acme.id, &["keystead.admin"]).await;
    let before = keys_at_rest(&database).await;

    let revoke = RevokeKeyRequest { key_id: id.clone(), ..Default::default() };
    expect_error(server.keys().revoke_key(revoke.clone()).await, Code::FailedPrecondition, "LAST_ADMIN_KEY");
    let expire_time = Some(prost_types::Timestamp { seconds: 32_503_680_000, nanos: 0 });
    let changes = [
        ("enabled", ApiKey::default()),
        ("scopes", ApiKey { scopes: vec!["keystead.keys.*".to_owned()], ..Default::default() }),
        ("expire_time", ApiKey { expire_time, ..Default::default() }),
    ];
    for (path, change) in changes {
        let request = requests::updating(ApiKey { id: id.clone(), ..change }, path);
        expect_error(server.keys().update_key(request).await, Code::FailedPrecondition, "LAST_ADMIN_KEY");
    }
    assert_eq!(keys_at_rest(&database).await, before);

    create_key(&server, SYSTEM, &["keystead.admin"]).await;
    server.keys().revoke_key(revoke).await.expect("no longer the last one");
}

store_test!(two_admins_who_revoke_each_other_at_once_leave_one);
async fn two_admins_who_revoke_each_other_at_once_leave_one(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let first = database.query_string("SELECT id FROM api_keys").await;
    let (second, second_secret) = create_key(&server, SYSTEM, &["keystead.admin"]).await;
    let revoke = |key_id: String| RevokeKeyRequest { key_id, ..Default::default() };
    let (mut one, mut other) = (server.keys(), server.keys_as(&second_secret));
    let (a, b) = tokio::join!(one.revoke_key(revoke(second.id)), other.revoke_key(revoke(first)));
    assert!(a.is_ok() != b.is_ok(), "exactly one comes through: {a:?}, {b:?}");
    let left = "SELECT count(*) FROM api_keys WHERE status = 'active'";
    assert_eq!(database.query_i64(left).await, 1);
}

store_test!(a_request_cannot_name_a_field_twice_to_slip_a_scope_past_the_check);
async fn a_request_cannot_name_a_field_twice_to_slip_a_scope_past_the_check(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let [(organization, caller), _] = callers(&server).await;
    let (weak, _) = create_key(&server, &organization, &["invoices:read"]).await;
    // Scopes that stand in the message but not in the mask must not arrive.
    let changed = ApiKey {
        id: weak.id.clone(),
        name: "New name".to_owned(),
        scopes: vec!["keystead.admin".to_owned()],
        ..Default::default()
    };
    let request = UpdateKeyRequest { ..requests::updating(changed, "name") };
    let answer = server.keys_as(&caller).update_key(request).await.expect("the name alone").into_inner();
    assert_eq!(answer.key.expect("the key").scopes, ["invoices:read"]);
}
