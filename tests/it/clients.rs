//! Two clients that share no code with Keystead: the real grpcurl, which knows the contract by server
//! reflection alone, and Python's grpcio with stubs made from `proto/`. Each goes the way of a newcomer:
//! create, verify, revoke, list, and read the details of a refusal.
//! A client is left out only where `tests/run` said so, loudly, and never with CI=true.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{Engine, Server, TestDatabase, tools};

/// grpcurl on one server, as its admin.
struct Grpcurl<'a> {
    program: PathBuf,
    server: &'a Server,
}

impl Grpcurl<'_> {
    /// Runs grpcurl with `arguments` after the address.
    fn run(&self, options: &[&str], arguments: &[&str]) -> Output {
        Command::new(&self.program)
            .args(["-plaintext", "-max-time", "30"])
            .args(["-H", &format!("authorization: Bearer {}", self.server.admin_secret())])
            .args(options)
            .arg(self.server.address().to_string())
            .args(arguments)
            .output()
            .expect("grpcurl runs")
    }

    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(&[], arguments);
        assert!(output.status.success(), "grpcurl {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn call(&self, rpc: &str, request: &Value) -> Value {
        let output = self.run(&["-d", &request.to_string()], &[&format!("keystead.v1.{rpc}")]);
        assert!(output.status.success(), "{rpc}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("grpcurl prints JSON")
    }
}

#[tokio::test]
async fn grpcurl_goes_the_whole_way_by_reflection_alone() {
    let Some(program) = tools::grpcurl() else {
        eprintln!("!!! CLIENT NOT TRIED: grpcurl");
        return;
    };
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, &[]).await;
    let grpcurl = Grpcurl { program, server: &server };

    let services = grpcurl.text(&["list"]);
    for service in ["KeyService", "OrganizationService", "AuditService"] {
        let name = format!("keystead.v1.{service}");
        assert!(services.lines().any(|line| line == name), "{name} is not in:\n{services}");
    }
    assert!(services.contains("grpc.health.v1.Health"), "{services}");
    let described = grpcurl.text(&["describe", "keystead.v1.VerifyKeyRequest"]);
    assert!(described.contains("string secret = 1"), "{described}");
    let health = grpcurl.text(&["grpc.health.v1.Health/Check"]);
    assert!(health.contains("SERVING") && !health.contains("NOT_SERVING"), "{health}");

    let created = grpcurl.call(
        "OrganizationService/CreateOrganization",
        &json!({"name": "Acme", "slug": "acme", "email": "keys@acme.example"}),
    );
    let organization_id = created["organization"]["id"].as_str().expect("an id");
    let created = grpcurl.call(
        "KeyService/CreateKey",
        &json!({
            "organizationId": organization_id,
            "name": "billing",
            "environment": "ENVIRONMENT_LIVE",
            "scopes": ["invoices:read"],
        }),
    );
    let (key_id, secret) = (&created["key"]["id"], &created["secret"]);
    assert!(secret.as_str().is_some_and(|secret| secret.starts_with("pk_live_")), "{:?}", created["key"]);

    let verify = json!({"secret": secret, "requiredScopes": {"allOf": ["invoices:read"]}});
    let verified = grpcurl.call("KeyService/VerifyKey", &verify);
    assert_eq!(verified["outcome"], "OUTCOME_VALID");
    assert_eq!(&verified["keyId"], key_id);

    let revoke = json!({"keyId": key_id, "reason": "REVOCATION_REASON_KEY_COMPROMISE", "note": "leaked"});
    let revoked = grpcurl.call("KeyService/RevokeKey", &revoke);
    assert_eq!(revoked["key"]["status"], "KEY_STATUS_REVOKED");
    let verified = grpcurl.call("KeyService/VerifyKey", &verify);
    assert_eq!(verified["outcome"], "OUTCOME_REVOKED");

    let listed = grpcurl.call("KeyService/ListKeys", &json!({"organizationId": organization_id}));
    let keys = listed["keys"].as_array().expect("keys");
    assert_eq!(keys.len(), 1);
    assert_eq!(&keys[0]["id"], key_id);
    assert_eq!(keys[0]["revocationNote"], "leaked");
}

#[tokio::test]
async fn grpcurl_shows_the_details_of_a_refusal() {
    let Some(program) = tools::grpcurl() else {
        eprintln!("!!! CLIENT NOT TRIED: grpcurl");
        return;
    };
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, &[]).await;
    let grpcurl = Grpcurl { program, server: &server };

    let request = json!({"organizationId": "no UUID", "name": ""}).to_string();
    let refused = grpcurl.run(&["-d", &request], &["keystead.v1.KeyService/CreateKey"]);
    let shown = text(&refused.stderr);
    assert!(!refused.status.success(), "{shown}");
    for part in [
        "Code: InvalidArgument",
        "google.rpc.ErrorInfo",
        "\"keystead\"",
        "google.rpc.BadRequest",
        "organization_id",
        "environment",
    ] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
}

#[tokio::test]
async fn a_python_client_with_stubs_from_the_contract_goes_the_whole_way() {
    let Some(program) = tools::python() else {
        eprintln!("!!! CLIENT NOT TRIED: Python grpcio");
        return;
    };
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, &[]).await;

    let output = Command::new(program)
        .arg(tools::repository().join("tests/clients/check_client.py"))
        .arg(tools::repository().join("proto"))
        .arg(server.address().to_string())
        .env("KEYSTEAD_TOKEN", server.admin_secret())
        .output()
        .expect("Python runs");
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "check_client.py: {}\n{printed}\n{errors}", output.status);
    assert!(printed.ends_with("all steps passed\n"), "{printed}\n{errors}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
