//! What the log says: one line per call, with the method, the outcome or code, the ids of key, organization and
//! caller, the duration in microseconds and the request id that the caller was given; as JSON for programs and as
//! text for people.

use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{
    ApiKey, DeactivateOrganizationRequest, GetKeyRequest, GetOrganizationRequest, ListAuditEventsRequest,
    ListKeysRequest, RevokeKeyRequest, RotateKeyRequest, UsageStatsRequest,
};
use prost::Message as _;
use serde_json::Value;
use tonic::Code;

use crate::callers::requests::{issuing, updating, verifying};
use crate::harness::{Server, TestDatabase, create_key, create_organization, rpcs, store_test, wait_until};

/// A call, and what its line must say.
struct Expected {
    rpc: &'static str,
    request: Vec<u8>,
    outcome: &'static str,
    key_id: String,
    organization_id: String,
}

/// One good call of most rpcs, in an order in which each is good.
fn good_calls(organization: &str, key: &str, secret: &str) -> Vec<Expected> {
    let call = |rpc, request: Vec<u8>, outcome, key_id: &str, organization_id: &str| Expected {
        rpc,
        request,
        outcome,
        key_id: key_id.to_owned(),
        organization_id: organization_id.to_owned(),
    };
    let named = || organization.to_owned();
    let unknown = format!("pk_live_{}", "0".repeat(43));
    let changed = ApiKey { id: key.to_owned(), name: "New".to_owned(), ..Default::default() };
    let selector = Some(Selector::Slug("acme".to_owned()));
    let subject = Some(Subject::OrganizationId(named()));
    let of_key = Some(Subject::KeyId(key.to_owned()));
    vec![
        call("KeyService/VerifyKey", verifying(secret).encode_to_vec(), "VALID", key, organization),
        call("KeyService/VerifyKey", verifying(&unknown).encode_to_vec(), "NOT_FOUND", "", ""),
        call("KeyService/GetKey", GetKeyRequest { key_id: key.to_owned() }.encode_to_vec(), "", key, organization),
        call(
            "KeyService/ListKeys",
            ListKeysRequest { organization_id: named(), ..Default::default() }.encode_to_vec(),
            "",
            "",
            organization,
        ),
        call("KeyService/UpdateKey", updating(changed, "name").encode_to_vec(), "", key, organization),
        call(
            "KeyService/UsageStats",
            UsageStatsRequest { subject, ..Default::default() }.encode_to_vec(),
            "",
            "",
            organization,
        ),
        call(
            "KeyService/UsageStats",
            UsageStatsRequest { subject: of_key, ..Default::default() }.encode_to_vec(),
            "",
            key,
            "",
        ),
        call(
            "KeyService/RevokeKey",
            RevokeKeyRequest { key_id: key.to_owned(), ..Default::default() }.encode_to_vec(),
            "",
            key,
            organization,
        ),
        call("KeyService/VerifyKey", verifying(secret).encode_to_vec(), "REVOKED", key, organization),
        call(
            "OrganizationService/GetOrganization",
            GetOrganizationRequest { selector }.encode_to_vec(),
            "",
            "",
            organization,
        ),
        call(
            "AuditService/ListAuditEvents",
            ListAuditEventsRequest { organization_id: named(), ..Default::default() }.encode_to_vec(),
            "",
            "",
            organization,
        ),
        call(
            "OrganizationService/DeactivateOrganization",
            DeactivateOrganizationRequest { organization_id: named(), ..Default::default() }.encode_to_vec(),
            "",
            "",
            organization,
        ),
    ]
}

fn lines_of(server: &Server, request_id: &str) -> Vec<Value> {
    let log = server.log_text();
    let lines = log.lines().filter(|line| line.contains(request_id));
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    lines.into_iter().filter(|line| line["message"] == "call").collect()
}

async fn the_line(server: &Server, request_id: &str) -> Value {
    wait_until("the call to be logged", async || !lines_of(server, request_id).is_empty()).await;
    let mut lines = lines_of(server, request_id);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

store_test!(each_call_is_one_json_line_with_everything_that_is_promised);
async fn each_call_is_one_json_line_with_everything_that_is_promised(database: TestDatabase) {
    let server = Server::start(&database, &["--log-format", "json", "--log-level", "debug"]).await;
    let admin_id = database.query_string("SELECT id FROM api_keys").await;
    let organization = create_organization(&server, "acme").await.id;
    let (key, secret) = create_key(&server, &organization, &[]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    for expected in good_calls(&organization, &key.id, &secret) {
        let path = rpcs::path_of(expected.rpc);
        let answer = rpcs::call(&server.channel(), &path, expected.request, &[&bearer]).await.expect("a good call");
        let request_id = answer.metadata().get("x-request-id").expect("a request id").to_str().expect("text");
        let line = the_line(&server, request_id).await;
        assert_eq!(line["method"], format!("keystead.v1.{}", expected.rpc), "{line}");
        assert_eq!(line["code"], "OK", "{line}");
        assert_eq!(line["outcome"].as_str().unwrap_or_default(), expected.outcome, "{line}");
        assert_eq!(line["key_id"].as_str().unwrap_or_default(), expected.key_id, "{line}");
        assert_eq!(line["organization_id"].as_str().unwrap_or_default(), expected.organization_id, "{line}");
        assert_eq!(line["caller_key_id"], admin_id, "{line}");
        assert_eq!(line["request_id"], request_id, "{line}");
        assert!(line["duration_us"].as_u64().is_some_and(|micros| (1..60_000_000).contains(&micros)), "{line}");
        let level = if expected.rpc.ends_with("VerifyKey") { "DEBUG" } else { "INFO" };
        assert_eq!((&line["level"], line["timestamp"].is_string()), (&Value::from(level), true), "{line}");
    }
    for line in server.log_text().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()), "not JSON: {line}");
    }
}

store_test!(a_key_that_is_made_is_in_its_line_with_its_new_id);
async fn a_key_that_is_made_is_in_its_line_with_its_new_id(database: TestDatabase) {
    let server = Server::start(&database, &["--log-format", "json", "--log-level", "debug"]).await;
    let organization = create_organization(&server, "acme").await.id;
    let answer = server.keys().create_key(issuing(&organization, &[])).await.expect("created");
    let request_id = answer.metadata().get("x-request-id").expect("an id").to_str().expect("text").to_owned();
    let id = answer.into_inner().key.expect("the key").id;
    let line = the_line(&server, &request_id).await;
    assert_eq!((&line["key_id"], &line["organization_id"]), (&Value::from(id.clone()), &Value::from(organization)));
    let rotate = RotateKeyRequest { key_id: id, ..Default::default() };
    let answer = server.keys().rotate_key(rotate).await.expect("rotated");
    let request_id = answer.metadata().get("x-request-id").expect("an id").to_str().expect("text").to_owned();
    let line = the_line(&server, &request_id).await;
    assert_eq!(line["key_id"], answer.into_inner().key.expect("the key").id);
}

/// Method, request, credentials, and the code in both of its spellings.
type Refused<'a> = (&'a str, Vec<u8>, &'a [&'a str], Code, &'a str);

store_test!(a_refused_call_is_one_json_line_with_its_code);
async fn a_refused_call_is_one_json_line_with_its_code(database: TestDatabase) {
    let server = Server::start(&database, &["--log-format", "json", "--log-level", "debug"]).await;
    let organization = create_organization(&server, "acme").await.id;
    let (_, weak) = create_key(&server, &organization, &[]).await;
    let (admin, weak) = (format!("Bearer {}", server.admin_secret()), format!("Bearer {weak}"));
    let absent = GetKeyRequest { key_id: "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d".to_owned() }.encode_to_vec();
    let taken = crate::callers::requests::creating("acme").encode_to_vec();
    let calls: [Refused<'_>; 8] = [
        ("keystead.v1.KeyService/GetKey", absent.clone(), &[], Code::Unauthenticated, "UNAUTHENTICATED"),
        ("keystead.v1.KeyService/GetKey", absent.clone(), &[&weak], Code::PermissionDenied, "PERMISSION_DENIED"),
        ("keystead.v1.KeyService/GetKey", absent, &[&admin], Code::NotFound, "NOT_FOUND"),
        ("keystead.v1.KeyService/GetKey", vec![], &[&admin], Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("keystead.v1.KeyService/GetKey", vec![0xff], &[&admin], Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("keystead.v1.OrganizationService/CreateOrganization", taken, &[&admin], Code::AlreadyExists, "ALREADY_EXISTS"),
        ("keystead.v1.KeyService/ImportKeys", vec![], &[&admin], Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("keystead.v1.KeyService/Nothing", vec![], &[&admin], Code::Unimplemented, "UNIMPLEMENTED"),
    ];
    for (method, request, headers, code, name) in calls {
        let refused =
            rpcs::call(&server.channel(), &format!("/{method}"), request, headers).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{refused:?}");
        let request_id = refused.metadata().get("x-request-id").expect("an id").to_str().expect("text");
        let line = the_line(&server, request_id).await;
        assert_eq!(line["code"], name, "{line}");
        if !method.ends_with("Nothing") {
            assert_eq!(line["method"], method, "{line}");
        }
        assert!(line["duration_us"].is_u64(), "{line}");
    }
}

store_test!(each_call_is_one_line_of_text_for_people);
async fn each_call_is_one_line_of_text_for_people(database: TestDatabase) {
    let server = Server::start(&database, &["--log-format", "text", "--log-level", "debug"]).await;
    let organization = create_organization(&server, "acme").await.id;
    let (key, secret) = create_key(&server, &organization, &[]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let request = verifying(&secret).encode_to_vec();
    let answer = rpcs::call(&server.channel(), "/keystead.v1.KeyService/VerifyKey", request, &[&bearer]).await;
    let answer = answer.expect("an answer");
    let request_id = answer.metadata().get("x-request-id").expect("an id").to_str().expect("text");
    wait_until("the call to be logged", async || server.log_text().contains(request_id)).await;
    let log = server.log_text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(request_id)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["keystead.v1.KeyService/VerifyKey", "VALID", "OK", &key.id, &organization, "duration_us="] {
        assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
    }
    assert!(!lines[0].contains('\u{1b}'), "no colours where nobody sees them");
}
