//! Who may call what, over every rpc of the descriptor set, so that none can be forgotten.
//! Here: no call without a credential that holds, and none without its permission, both before anything of the
//! request is looked at. `foreign`: what belongs to others does not exist. `scopes`: nobody hands out more than
//! they hold. `revoked`: a control-plane permission rests on the database and not on a cache.

mod foreign;
pub mod requests;
mod revoked;
mod scopes;

use std::collections::BTreeSet;

use keystead::proto::v1::{DeactivateOrganizationRequest, RevokeKeyRequest};
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::rpcs::{self, Rpc};
use crate::harness::{
    Server, TestDatabase, create_key, create_organization, expect_error, hex, store_test, wait_until,
};

pub const SYSTEM: &str = "00000000-0000-0000-0000-000000000001";

/// The table of permissions: each permission and the rpcs that it opens.
pub const PERMISSIONS: &[(&str, &[&str])] = &[
    ("keystead.keys.verify", &["KeyService/VerifyKey", "KeyService/BatchVerifyKeys"]),
    ("keystead.keys.create", &["KeyService/CreateKey"]),
    ("keystead.keys.import", &["KeyService/ImportKeys"]),
    ("keystead.keys.update", &["KeyService/UpdateKey"]),
    ("keystead.keys.rotate", &["KeyService/RotateKey"]),
    ("keystead.keys.read", &["KeyService/GetKey", "KeyService/ListKeys"]),
    ("keystead.keys.revoke", &["KeyService/RevokeKey", "KeyService/RevokeKeys"]),
    ("keystead.usage.read", &["KeyService/UsageStats"]),
    ("keystead.usage.report", &["KeyService/ReportUsage"]),
    ("keystead.organizations.read", &["OrganizationService/GetOrganization", "OrganizationService/ListOrganizations"]),
    (
        "keystead.organizations.write",
        &[
            "OrganizationService/CreateOrganization",
            "OrganizationService/UpdateOrganization",
            "OrganizationService/ActivateOrganization",
            "OrganizationService/DeactivateOrganization",
            "OrganizationService/DeleteOrganization",
        ],
    ),
    ("keystead.audit.read", &["AuditService/ListAuditEvents"]),
];

/// Rpcs of the contract that this version does not have yet: none.
pub const NOT_BUILT: &[&str] = &[];

/// The permission that opens an rpc.
fn permission_of(rpc: &Rpc) -> &'static str {
    let opening: Vec<&str> =
        PERMISSIONS.iter().filter(|(_, opened)| opened.contains(&rpc.name.as_str())).map(|(name, _)| *name).collect();
    assert_eq!(opening.len(), 1, "{} must stand once in the table of permissions", rpc.name);
    opening[0]
}

#[test]
fn every_rpc_of_the_contract_has_its_permission_in_the_table_and_the_table_names_no_other() {
    let known: BTreeSet<String> = rpcs::rpcs().iter().map(|rpc| rpc.name.clone()).collect();
    let listed: BTreeSet<String> =
        PERMISSIONS.iter().flat_map(|(_, opened)| opened.iter()).map(ToString::to_string).collect();
    assert_eq!(known, listed);
}

store_test!(no_rpc_answers_without_a_credential_that_holds_and_none_tells_why);
async fn no_rpc_answers_without_a_credential_that_holds_and_none_tells_why(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let admin = server.admin_secret();
    let hex = hex(&Sha256::digest(admin.as_bytes()));
    let mut credentials: Vec<(&str, Vec<String>)> = vec![
        ("none", vec![]),
        ("an empty one", vec![String::new()]),
        ("the word alone", vec!["Bearer".to_owned()]),
        ("an empty secret", vec!["Bearer ".to_owned()]),
        ("an unknown secret", vec![format!("Bearer pk_live_{}", "0".repeat(43))]),
        ("a malformed secret", vec![format!("Bearer {admin}0")]),
        ("a cut secret", vec![format!("Bearer {}", &admin[..50])]),
        ("the digest of a secret", vec![format!("Bearer {hex}")]),
        ("another scheme", vec![format!("Basic {admin}")]),
        ("no scheme", vec![admin.to_owned()]),
        ("two secrets in one", vec![format!("Bearer {admin} {admin}")]),
        ("two headers", vec![format!("Bearer {admin}"), format!("Bearer {admin}")]),
        ("a good header and a bad one", vec![format!("Bearer {admin}"), "Bearer x".to_owned()]),
        ("a bad header and a good one", vec!["Bearer x".to_owned(), format!("Bearer {admin}")]),
    ];
    for (what, secret) in retired_credentials(&server, &database).await {
        credentials.push((what, vec![format!("Bearer {secret}")]));
    }
    let channel = server.channel();
    let mut first: Option<(Code, String, Vec<u8>)> = None;
    for rpc in rpcs::rpcs() {
        for (what, headers) in &credentials {
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            let result = rpcs::call(&channel, &rpc.path(), Vec::new(), &headers).await;
            let Err(status) = result else {
                panic!("{} answered a caller with {what}", rpc.name);
            };
            assert_eq!(status.code(), Code::Unauthenticated, "{}, {what}: {status:?}", rpc.name);
            let seen = (status.code(), status.message().to_owned(), status.details().to_vec());
            assert_eq!(&seen, first.get_or_insert_with(|| seen.clone()), "{}, {what}", rpc.name);
            expect_error::<()>(Err(status), Code::Unauthenticated, "UNAUTHENTICATED");
        }
    }
}

/// Secrets of keys with all permissions that hold no longer, each for another reason.
async fn retired_credentials(server: &Server, database: &TestDatabase) -> Vec<(&'static str, String)> {
    let admin = &["keystead.admin"];
    let (key, revoked) = create_key(server, SYSTEM, admin).await;
    let request = RevokeKeyRequest { key_id: key.id, ..Default::default() };
    server.keys().revoke_key(request).await.expect("revoked");
    let (key, disabled) = create_key(server, SYSTEM, admin).await;
    database.raw_sql(&format!("UPDATE api_keys SET status = 'disabled' WHERE id = '{}'", key.id)).await;
    let (key, expired) = create_key(server, SYSTEM, admin).await;
    database.raw_sql(&format!("UPDATE api_keys SET expire_time_us = 1 WHERE id = '{}'", key.id)).await;
    let (key, elsewhere) = create_key(server, SYSTEM, admin).await;
    let blocks = format!("UPDATE api_keys SET allowed_cidrs = '[\"203.0.113.0/24\"]' WHERE id = '{}'", key.id);
    database.raw_sql(&blocks).await;
    let organization = create_organization(server, "sleeping").await;
    let (_, inactive) = create_key(server, &organization.id, admin).await;
    let request = DeactivateOrganizationRequest { organization_id: organization.id, ..Default::default() };
    server.organizations().deactivate_organization(request).await.expect("deactivated");
    vec![
        ("a revoked key", revoked),
        ("a disabled key", disabled),
        ("an expired key", expired),
        ("a key for other addresses", elsewhere),
        ("a key of an inactive organization", inactive),
    ]
}

store_test!(every_rpc_opens_to_its_permission_alone_before_existence_and_validation);
async fn every_rpc_opens_to_its_permission_alone_before_existence_and_validation(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let channel = server.channel();
    for (held, opened) in PERMISSIONS {
        let (_, secret) = create_key(&server, SYSTEM, &[held, "invoices:*"]).await;
        let bearer = format!("Bearer {secret}");
        for rpc in rpcs::rpcs() {
            // Nothing in the first request is valid, nothing that the others name exists.
            let mut bodies = vec![Vec::new()];
            bodies.extend(requests::naming(&rpc.name, requests::ABSENT).into_iter().map(|request| request.bytes));
            for body in bodies {
                let result = rpcs::call(&channel, &rpc.path(), body, &[&bearer]).await;
                if opened.contains(&rpc.name.as_str()) {
                    expect_opened(&rpc, held, result.err());
                } else {
                    let details = expect_error(result, Code::PermissionDenied, "PERMISSION_DENIED");
                    let named = &details.error_info().expect("an ErrorInfo").metadata;
                    let needed = permission_of(&rpc);
                    assert!(named.values().any(|value| value == needed), "{}: {named:?}", rpc.name);
                }
            }
        }
    }
}

store_test!(wildcards_and_admin_open_every_rpc_and_lookalikes_open_none);
async fn wildcards_and_admin_open_every_rpc_and_lookalikes_open_none(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let channel = server.channel();
    for scope in ["keystead.admin", "keystead.*", "k*", "*"] {
        let (_, secret) = create_key(&server, SYSTEM, &[scope]).await;
        for rpc in rpcs::rpcs() {
            let result = rpcs::call(&channel, &rpc.path(), Vec::new(), &[&format!("Bearer {secret}")]).await;
            expect_opened(&rpc, scope, result.err());
        }
    }
    for scope in ["keystead", "keystead:admin", "Keystead.admin", "xkeystead.*", "keystone*", "keystead.admins"] {
        let (_, secret) = create_key(&server, SYSTEM, &[scope]).await;
        for rpc in rpcs::rpcs() {
            let result = rpcs::call(&channel, &rpc.path(), Vec::new(), &[&format!("Bearer {secret}")]).await;
            expect_error(result, Code::PermissionDenied, "PERMISSION_DENIED");
        }
    }
}

/// The caller got through to the rpc: whatever was refused, it was not the caller.
fn expect_opened(rpc: &Rpc, held: &str, refusal: Option<Status>) {
    let code = refusal.as_ref().map_or(Code::Ok, Status::code);
    assert!(!matches!(code, Code::PermissionDenied | Code::Unauthenticated), "{held} and {}: {refusal:?}", rpc.name);
    let not_built = NOT_BUILT.contains(&rpc.name.as_str());
    assert_eq!(code == Code::Unimplemented, not_built, "{}: {refusal:?}", rpc.name);
    if let Some(status) = refusal {
        assert!(status.get_details_error_info().is_some_and(|info| info.domain == "keystead"), "{status:?}");
    }
}

store_test!(creating_organizations_is_for_callers_of_system_alone);
async fn creating_organizations_is_for_callers_of_system_alone(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let (_, secret) = create_key(&server, &organization.id, &["keystead.admin"]).await;
    let before = database.query_i64("SELECT count(*) FROM organizations").await;
    // A slug that is taken, one that is free, and a request that is not valid: the answer does not tell.
    for slug in ["acme", "fresh", ""] {
        let request = requests::creating(slug);
        let result = server.organizations_as(&secret).create_organization(request).await;
        expect_error(result, Code::PermissionDenied, "SYSTEM_ORGANIZATION_REQUIRED");
    }
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, before);
}

store_test!(verification_too_refuses_a_caller_whose_key_was_revoked_by_sql_within_seconds);
async fn verification_too_refuses_a_caller_whose_key_was_revoked_by_sql_within_seconds(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let (key, secret) = create_key(&server, SYSTEM, &["keystead.keys.verify"]).await;
    let verify = || server.keys_as(&secret);
    verify().verify_key(requests::verifying("x")).await.expect("the caller is cached");
    database.raw_sql(&format!("UPDATE api_keys SET status = 'revoked' WHERE id = '{}'", key.id)).await;
    wait_until("the change feed to evict the caller", async || {
        let answer = verify().verify_key(requests::verifying("x")).await;
        answer.is_err_and(|status| status.code() == Code::Unauthenticated)
    })
    .await;
}
