//! Audit events: every change to a key or an organization leaves exactly one, and a change whose event cannot be
//! written does not happen. Which rpcs change something is enumerated from the contract.
//! `mutations`: a good request for each of them. `chain`: what `keystead audit verify` finds. `list`: filters, pages
//! and who sees what.

mod chain;
mod list;
mod mutations;

use keystead::proto::v1::{
    ActivateOrganizationRequest, ApiKey, AuditEvent, CreateOrganizationRequest, DeactivateOrganizationRequest,
    ListAuditEventsRequest, Organization, RevokeKeyRequest, RotateKeyRequest, UpdateKeyRequest,
    UpdateOrganizationRequest,
};
use prost::Message as _;
use serde_json::Value;
use tonic::Code;

use crate::callers::NOT_BUILT;
use crate::harness::rpcs;
use crate::harness::{
    Engine, Server, TestDatabase, create_key, create_organization, expect_error, store_test, wait_until,
};
use mutations::{MUTATIONS, Prepared};

/// Rpcs that change neither a key nor an organization.
const READS: &[&str] = &[
    "KeyService/VerifyKey",
    "KeyService/GetKey",
    "KeyService/ListKeys",
    "KeyService/UsageStats",
    "OrganizationService/GetOrganization",
    "OrganizationService/ListOrganizations",
    "AuditService/ListAuditEvents",
    "KeyService/BatchVerifyKeys",
    "KeyService/ReportUsage",
];

async fn events(database: &TestDatabase) -> i64 {
    database.query_i64("SELECT count(*) FROM audit_events").await
}

/// The newest events, newest first.
async fn newest(server: &Server, count: i32) -> Vec<AuditEvent> {
    let request = ListAuditEventsRequest { page_size: count, ..Default::default() };
    server.audit().list_audit_events(request).await.expect("a list").into_inner().events
}

#[test]
fn every_rpc_either_reads_or_is_among_the_mutations_that_are_tested() {
    for rpc in rpcs::rpcs() {
        let name = rpc.name.as_str();
        let places = [READS, MUTATIONS, NOT_BUILT].iter().filter(|list| list.contains(&name)).count();
        assert_eq!(places, 1, "{name} must be in one of the lists");
    }
}

store_test!(each_mutation_writes_exactly_one_event_with_its_actor_target_and_request_id);
async fn each_mutation_writes_exactly_one_event_with_its_actor_target_and_request_id(database: TestDatabase) {
    let server = Server::start(&database, &["--log-format", "json"]).await;
    let admin_id = database.query_string("SELECT id FROM api_keys").await;
    for rpc in MUTATIONS {
        for prepared in mutations::prepare(&server, rpc).await {
            let before = events(&database).await;
            let answer = prepared.call(&server).await.expect("a good request").into_inner();
            let expected = prepared.expected(&answer);
            let written = usize::try_from(events(&database).await - before).expect("events are only added");
            assert_eq!(written, expected.len(), "{rpc}, {}", prepared.what);
            let seen = newest(&server, i32::try_from(written).expect("few")).await;
            for expected in expected {
                let found: Vec<&AuditEvent> = seen.iter().filter(|event| event.action == expected.action).collect();
                assert_eq!(found.len(), 1, "{rpc}, {}: one {} in {seen:?}", prepared.what, expected.action);
                let event = found[0];
                if expected.action == "key.import" {
                    // Its target is the import of the keys, of which no answer tells.
                    let import = format!("SELECT count(*) FROM imports WHERE id = '{}'", event.target_id);
                    assert_eq!((event.target_type.as_str(), database.query_i64(&import).await), ("import", 1));
                } else {
                    assert_eq!(event.target_type, expected.action.split('.').next().unwrap_or_default());
                    assert_eq!(event.target_id, expected.target_id, "{rpc}, {}", prepared.what);
                }
                assert_eq!(event.organization_id, expected.organization_id, "{rpc}, {}", prepared.what);
                assert_eq!((event.actor_key_id.as_str(), event.actor.as_str()), (&*admin_id, "first admin"));
                let detail: Value = serde_json::from_str(&event.detail).expect("the detail is JSON");
                assert!(detail.is_object(), "{detail}");
                expect_request_id(&server, rpc, event).await;
            }
        }
    }
}

/// The event's request id is that of exactly one line of the log, the one of this call.
async fn expect_request_id(server: &Server, rpc: &str, event: &AuditEvent) {
    assert!(!event.request_id.is_empty(), "{event:?}");
    wait_until("the call to be logged", async || server.log_text().contains(&event.request_id)).await;
    let log = server.log_text();
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.contains(&event.request_id))
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let methods: Vec<&str> = lines.iter().filter_map(|line| line["method"].as_str()).collect();
    assert_eq!(methods, [format!("keystead.v1.{rpc}")], "{event:?}");
}

store_test!(what_changes_nothing_writes_no_event);
async fn what_changes_nothing_writes_no_event(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let (key, _) = create_key(&server, &organization.id, &[]).await;
    let (revoked, _) = create_key(&server, &organization.id, &[]).await;
    let revoke = RevokeKeyRequest { key_id: revoked.id.clone(), ..Default::default() };
    server.keys().revoke_key(revoke.clone()).await.expect("revoked");
    let before = events(&database).await;

    // Repeats of what is done already.
    server.keys().revoke_key(revoke).await.expect("idempotent");
    let named = ActivateOrganizationRequest { organization_id: organization.id.clone(), ..Default::default() };
    server.organizations().activate_organization(named).await.expect("idempotent");
    assert_eq!(events(&database).await, before, "repeats");

    // Refusals: bad fields, absent ids, other etags, wrong states, values that are taken, a missing permission.
    let (_, weak) = create_key(&server, &organization.id, &["invoices:read"]).await;
    let before = events(&database).await;
    let mut refused = Vec::new();
    for rpc in MUTATIONS {
        refused.push(("an empty request", *rpc, Vec::new()));
        for naming in crate::callers::requests::naming(rpc, crate::callers::requests::ABSENT) {
            refused.push(("an absent id", *rpc, naming.bytes));
        }
    }
    let rename = crate::callers::requests::updating(ApiKey { id: key.id.clone(), ..Default::default() }, "owner_id");
    let other_etag = UpdateKeyRequest { etag: "9".to_owned(), ..rename.clone() };
    let of_revoked =
        crate::callers::requests::updating(ApiKey { id: revoked.id.clone(), ..Default::default() }, "owner_id");
    let rotate_revoked = RotateKeyRequest { key_id: revoked.id, ..Default::default() };
    let other = RevokeKeyRequest { key_id: key.id, etag: "9".to_owned(), ..Default::default() };
    let taken = CreateOrganizationRequest { email: String::new(), ..crate::callers::requests::creating("acme") };
    let stop = DeactivateOrganizationRequest { etag: "9".to_owned(), organization_id: organization.id.clone() };
    let with_keys = keystead::proto::v1::DeleteOrganizationRequest {
        organization_id: organization.id.clone(),
        ..Default::default()
    };
    let system = UpdateOrganizationRequest {
        organization: Some(Organization {
            id: crate::callers::SYSTEM.to_owned(),
            slug: "renamed".to_owned(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["slug".to_owned()] }),
        ..Default::default()
    };
    refused.extend([
        ("another etag", "KeyService/UpdateKey", other_etag.encode_to_vec()),
        ("a revoked key", "KeyService/UpdateKey", of_revoked.encode_to_vec()),
        ("a revoked key", "KeyService/RotateKey", rotate_revoked.encode_to_vec()),
        ("another etag", "KeyService/RevokeKey", other.encode_to_vec()),
        ("a taken slug", "OrganizationService/CreateOrganization", taken.encode_to_vec()),
        ("another etag", "OrganizationService/DeactivateOrganization", stop.encode_to_vec()),
        ("with keys", "OrganizationService/DeleteOrganization", with_keys.encode_to_vec()),
        ("system's slug", "OrganizationService/UpdateOrganization", system.encode_to_vec()),
    ]);
    for (what, rpc, request) in refused {
        for secret in [server.admin_secret(), weak.as_str()] {
            let bearer = format!("Bearer {secret}");
            let answer = rpcs::call(&server.channel(), &rpcs::path_of(rpc), request.clone(), &[&bearer]).await;
            assert!(answer.is_err(), "{rpc} with {what} must be refused");
        }
    }
    assert_eq!(events(&database).await, before, "refusals");
}

store_test!(no_audit_event_no_change);
async fn no_audit_event_no_change(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let mut prepared: Vec<Prepared> = Vec::new();
    for rpc in MUTATIONS {
        prepared.extend(mutations::prepare(&server, rpc).await);
    }
    let before = mutations::state(&server, &database).await;

    database.raw_sql(refusing_trigger(database.engine)).await;
    for mutation in &prepared {
        let answer = mutation.call(&server).await;
        let Err(status) = &answer else {
            panic!("{} went through without its audit event", mutation.what);
        };
        let shown = format!("{} {:?}", status.message(), String::from_utf8_lossy(status.details()));
        for inner in ["audit_events", "refused by the test", "trigger", "sql"] {
            assert!(!shown.to_lowercase().contains(inner), "{shown}");
        }
        expect_error(answer, Code::Internal, "INTERNAL");
    }
    assert_eq!(mutations::state(&server, &database).await, before, "nothing has changed");

    // It was the trigger alone that stood in the way.
    database
        .raw_sql(match database.engine {
            Engine::Sqlite => "DROP TRIGGER refuse_audit",
            Engine::Postgres => "DROP TRIGGER refuse_audit ON audit_events",
        })
        .await;
    for mutation in &prepared {
        mutation.call(&server).await.unwrap_or_else(|status| panic!("{}: {status:?}", mutation.what));
    }
}

fn refusing_trigger(engine: Engine) -> &'static str {
    match engine {
        Engine::Sqlite => {
            "CREATE TRIGGER refuse_audit BEFORE INSERT ON audit_events \
             BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        }
        Engine::Postgres => {
            "CREATE FUNCTION refuse_audit() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'refused by the test'; END $$; \
             CREATE TRIGGER refuse_audit BEFORE INSERT ON audit_events \
             FOR EACH ROW EXECUTE FUNCTION refuse_audit()"
        }
    }
}

store_test!(initialising_a_database_writes_the_first_two_events);
async fn initialising_a_database_writes_the_first_two_events(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let seen: Vec<(i64, String, String, String)> = newest(&server, 10)
        .await
        .into_iter()
        .map(|event| (event.sequence, event.action, event.actor_key_id, event.actor))
        .collect();
    let actor = (String::new(), "init".to_owned());
    let of = |sequence, action: &str| (sequence, action.to_owned(), actor.0.clone(), actor.1.clone());
    let mut sorted = seen.clone();
    sorted.sort();
    assert_eq!(sorted.len(), 2, "{seen:?}");
    let actions: Vec<&str> = sorted.iter().map(|event| event.1.as_str()).collect();
    assert!(actions.contains(&"organization.create") && actions.contains(&"key.create"), "{seen:?}");
    assert_eq!(sorted[0], of(1, &sorted[0].1));
    assert_eq!(sorted[1], of(2, &sorted[1].1));
}
