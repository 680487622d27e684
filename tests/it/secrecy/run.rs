//! The run: every rpc with good requests, every string field of every rpc with a secret in it, every command, and the
//! errors in which a database would like to show a whole row. Each answer that is a refusal is searched at once.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, CreateOrganizationRequest, Environment, ImportKey, ImportKeysRequest, KeyStatus,
    ListAuditEventsRequest, ListKeysRequest, ListOrganizationsRequest, Organization, Outcome, RevokeKeyRequest,
    RotateKeyRequest, UpdateOrganizationRequest, UsageStatsRequest, VerifyKeyRequest, usage_stats_request::Subject,
};
use prost::Message as _;
use prost_types::FieldMask;
use prost_types::field_descriptor_proto::Type;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Request};

use super::needles::Needles;
use crate::callers::requests::{creating, issuing, updating, verifying};
use crate::harness::{Engine, Server, TestDatabase, cli, contains, hex, rpcs};

/// What must not be found.
#[derive(Default)]
pub struct Known {
    /// Secrets that stand in no field that is stored.
    pub secrets: Vec<String>,
    /// Secrets that somebody put into a field that is stored, such as a name: still none of the log's business.
    pub planted: Vec<String>,
    /// Values of metadata and tags.
    pub metadata: Vec<String>,
}

impl Known {
    /// A new value of metadata.
    fn value(&mut self) -> String {
        let value = format!("metadata-value-{}", u128::from_ne_bytes(keystead::random::bytes()));
        self.metadata.push(value.clone());
        value
    }
}

/// An organization with keys of every status, verified and rotated; their secrets and metadata are noted.
pub async fn issue(server: &Server, slug: &str, known: &mut Known) -> (Organization, Vec<ApiKey>) {
    let metadata = [("team".to_owned(), known.value())].into();
    let request = CreateOrganizationRequest { metadata, ..creating(slug) };
    let made = server.organizations().create_organization(request).await.expect("created").into_inner();
    let organization = made.organization.expect("the organization");
    let mut keys = Vec::new();
    for at in 0..4 {
        let metadata = [("owner".to_owned(), known.value())].into();
        let scopes = ["keystead.keys.read", "a:b"];
        let request = CreateKeyRequest { metadata, ..issuing(&organization.id, &scopes) };
        let made = server.keys().create_key(request).await.expect("created").into_inner();
        let key = made.key.expect("the key");
        let tags = [("tag".to_owned(), known.value())].into();
        let verify = VerifyKeyRequest { tags, ..verifying(&made.secret) };
        let verified = server.keys().verify_key(verify.clone()).await.expect("an answer").into_inner();
        assert_eq!(verified.outcome(), Outcome::Valid);
        match at {
            0 => {
                let revoke = RevokeKeyRequest { key_id: key.id.clone(), ..Default::default() };
                server.keys().revoke_key(revoke).await.expect("revoked");
            }
            1 => {
                let off = ApiKey { id: key.id.clone(), ..Default::default() };
                server.keys().update_key(updating(off, "enabled")).await.expect("updated");
            }
            2 => {
                let overlap = Some(prost_types::Duration { seconds: 60, nanos: 0 });
                let rotate = RotateKeyRequest { key_id: key.id.clone(), overlap, ..Default::default() };
                let rotated = server.keys().rotate_key(rotate).await.expect("rotated").into_inner();
                known.secrets.push(rotated.secret);
            }
            _ => {
                let changed = ApiKey {
                    id: key.id.clone(),
                    metadata: [("new".to_owned(), known.value())].into(),
                    ..Default::default()
                };
                server.keys().update_key(updating(changed, "metadata")).await.expect("updated");
            }
        }
        server.keys().verify_key(verify).await.expect("an answer");
        // As a caller too, also where it is none any more.
        let listing = ListKeysRequest { organization_id: organization.id.clone(), ..Default::default() };
        let _ = server.keys_as(&made.secret).list_keys(listing).await;
        known.secrets.push(made.secret);
        keys.push(key);
    }
    (organization, keys)
}

/// Everything that can be read, as bytes.
pub async fn reads(server: &Server) -> Vec<(String, Vec<u8>)> {
    let organizations = server.organizations().list_organizations(ListOrganizationsRequest::default()).await;
    let organizations = organizations.expect("a list").into_inner();
    let mut calls = vec![
        ("OrganizationService/ListOrganizations", Vec::new()),
        (
            "AuditService/ListAuditEvents",
            ListAuditEventsRequest { page_size: 1000, ..Default::default() }.encode_to_vec(),
        ),
    ];
    for organization in organizations.organizations {
        let organization_id = organization.id;
        let subject = Some(Subject::OrganizationId(organization_id.clone()));
        calls.push(("KeyService/UsageStats", UsageStatsRequest { subject, ..Default::default() }.encode_to_vec()));
        calls.push(("KeyService/ListKeys", ListKeysRequest { organization_id, ..Default::default() }.encode_to_vec()));
    }
    let bearer = format!("Bearer {}", server.admin_secret());
    let mut answers = Vec::new();
    for (rpc, request) in calls {
        let answer = rpcs::call(&server.channel(), &rpcs::path_of(rpc), request, &[&bearer]).await.expect("an answer");
        answers.push((rpc.to_owned(), answer.into_inner()));
    }
    answers
}

/// The whole run. `slug` tells one run from another.
pub async fn through_everything(server: &Server, database: &TestDatabase, slug: &str, known: &mut Known) {
    let (organization, keys) = issue(server, slug, known).await;
    let (doomed, _) = issue(server, &format!("{slug}-doomed"), known).await;
    let values = Organization {
        id: organization.id.clone(),
        metadata: [("team".to_owned(), known.value())].into(),
        ..Default::default()
    };
    let request = UpdateOrganizationRequest {
        organization: Some(values),
        update_mask: Some(FieldMask { paths: vec!["metadata".to_owned()] }),
        ..Default::default()
    };
    server.organizations().update_organization(request).await.expect("updated");
    for rpc in ["DeactivateOrganization", "ActivateOrganization", "DeleteOrganization"] {
        // Field 1 is the id; field 3 of a deletion is `force`.
        let mut bytes = text_field(1, &doomed.id);
        bytes.extend([0x18, 1]);
        let bearer = format!("Bearer {}", server.admin_secret());
        let path = rpcs::path_of(&format!("OrganizationService/{rpc}"));
        rpcs::call(&server.channel(), &path, bytes, &[&bearer]).await.expect("an answer");
    }
    bring_in(server, &organization.id, known).await;
    reads(server).await;
    wrong_fields(server, known).await;
    stored_fields(server, &organization.id, known).await;
    wrong_headers_and_paths(server, known).await;
    commands(server, database, &organization.id, &keys, known);
    rows_in_errors(server, database, &organization.id, known).await;
}

/// Keys from elsewhere by each kind of material, presented afterwards; the last one is refused.
async fn bring_in(server: &Server, organization: &str, known: &mut Known) {
    let secrets: Vec<String> = (0..5).map(|_| random_secret()).collect();
    let digest = |at: usize| Sha256::digest(secrets[at].as_bytes());
    let materials = [
        Material::Secret(secrets[0].clone()),
        Material::Sha256Hex(hex(&digest(1))),
        Material::Sha256Base64(STANDARD.encode(digest(2))),
        Material::Bcrypt(bcrypt::hash(&secrets[3], 4).expect("a hash")),
        Material::Secret(secrets[4].clone()),
    ];
    let mut key = |(at, material): (usize, Material)| ImportKey {
        name: if at < 4 { "imported".to_owned() } else { String::new() },
        environment: Environment::Live.into(),
        material: Some(material),
        look_up_id: secrets[at][..12].to_owned(),
        metadata: [("owner".to_owned(), known.value())].into(),
        ..Default::default()
    };
    let keys = materials.into_iter().enumerate().map(&mut key).collect();
    let (organization_id, source) = (organization.to_owned(), "elsewhere".to_owned());
    let request = ImportKeysRequest { organization_id, keys, source, ..Default::default() };
    for dry_run in [true, false] {
        let request = ImportKeysRequest { dry_run, ..request.clone() };
        let results = server.keys().import_keys(request).await.expect("an answer").into_inner().results;
        assert_eq!(results.iter().filter(|result| result.reason.is_empty()).count(), 4, "{results:?}");
    }
    for (at, secret) in secrets.iter().enumerate() {
        let answer = server.keys().verify_key(verifying(secret)).await.expect("an answer").into_inner();
        assert_eq!(answer.outcome(), if at < 4 { Outcome::Valid } else { Outcome::NotFound });
    }
    known.secrets.extend(secrets);
}

/// Every text field of every rpc, alone, with a secret in it.
async fn wrong_fields(server: &Server, known: &mut Known) {
    let refused = random_secret();
    let stored = random_secret();
    let bearer = format!("Bearer {}", server.admin_secret());
    for rpc in rpcs::rpcs() {
        // What a verification says of its request is recorded as usage, whoever writes it.
        let verifies = ["KeyService/VerifyKey", "KeyService/BatchVerifyKeys"].contains(&rpc.name.as_str());
        let secret = if verifies { &stored } else { &refused };
        for bytes in with_text_everywhere(&rpc.input, secret, 0) {
            for headers in [vec![bearer.as_str()], vec![]] {
                let answer = rpcs::call(&server.channel(), &rpc.path(), bytes.clone(), &headers).await;
                if let Err(status) = answer {
                    let shown = [status.message().as_bytes(), status.details()].concat();
                    assert!(!contains(&shown, secret.as_bytes()), "{}: {status:?}", rpc.name);
                }
            }
        }
    }
    known.secrets.push(refused);
    known.planted.push(stored);
}

/// Requests that have `text` in one text field each.
fn with_text_everywhere(message: &str, text: &str, depth: usize) -> Vec<Vec<u8>> {
    let mut requests = Vec::new();
    for field in rpcs::fields(message) {
        let number = u32::try_from(field.number()).expect("a field's number");
        match field.r#type() {
            Type::String => requests.push(text_field(number, text)),
            Type::Message if depth < 3 => {
                for inner in with_text_everywhere(field.type_name(), text, depth + 1) {
                    let mut bytes = Vec::new();
                    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
                    prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
                    bytes.extend(inner);
                    requests.push(bytes);
                }
            }
            _ => {}
        }
    }
    requests
}

fn text_field(number: u32, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::string::encode(number, &text.to_owned(), &mut bytes);
    bytes
}

fn random_secret() -> String {
    // Hex digits are legal in a secret, and 43 of them are no accident.
    let bytes: [u8; 22] = keystead::random::bytes();
    format!("pk_live_{}", &hex(&bytes)[..43])
}

/// Good requests with a secret where people put their own words.
async fn stored_fields(server: &Server, organization: &str, known: &mut Known) {
    let planted = random_secret();
    let request = CreateKeyRequest {
        name: planted.clone(),
        owner_id: planted.clone(),
        metadata: [("oops".to_owned(), planted.clone())].into(),
        ..issuing(organization, &[])
    };
    let made = server.keys().create_key(request).await.expect("created").into_inner();
    let verify = VerifyKeyRequest {
        endpoint: planted.clone(),
        user_agent: planted.clone(),
        request_id: planted.clone(),
        tags: [("oops".to_owned(), planted.clone())].into(),
        ..verifying(&made.secret)
    };
    server.keys().verify_key(verify).await.expect("an answer");
    let key_id = made.key.expect("the key").id;
    let revoke = RevokeKeyRequest { key_id, note: planted.clone(), ..Default::default() };
    let revoked = server.keys().revoke_key(revoke).await.expect("revoked").into_inner().key.expect("the key");
    assert_eq!(revoked.status(), KeyStatus::Revoked);
    known.secrets.push(made.secret);
    known.planted.push(planted);
}

/// Secrets in headers and paths where none belongs.
async fn wrong_headers_and_paths(server: &Server, known: &mut Known) {
    let secret = random_secret();
    for authorization in [secret.clone(), format!("Basic {secret}"), format!("Bearer {secret} {secret}")] {
        let path = "/keystead.v1.KeyService/GetKey";
        let refused = rpcs::call(&server.channel(), path, Vec::new(), &[&authorization]).await;
        assert_eq!(refused.expect_err("no credential").code(), Code::Unauthenticated);
    }
    let mut request = Request::new(Vec::new());
    for name in ["x-api-key", "x-request-id", "user-agent", "cookie"] {
        request.metadata_mut().insert(name, secret.parse().expect("ASCII"));
    }
    let _ = rpcs::call_with(&server.channel(), "/keystead.v1.KeyService/GetKey", request).await;
    for path in [
        format!("/{secret}"),
        format!("/keystead.v1.KeyService/{secret}"),
        format!("/keystead.v1.KeyService/VerifyKey?secret={secret}"),
        format!("/grpc.health.v1.Health/{secret}"),
    ] {
        let _ = rpcs::call(&server.channel(), &path, Vec::new(), &[]).await;
    }
    let _ = server.health(&secret).await;
    known.secrets.push(secret);
}

/// Every command, right and wrong. What they print is searched for the secrets that they must not print.
fn commands(server: &Server, database: &TestDatabase, organization: &str, keys: &[ApiKey], known: &mut Known) {
    let admin = server.admin_secret();
    let made = cli::as_admin(
        server,
        &[
            "keys",
            "create",
            "--organization",
            organization,
            "--name",
            "cli",
            "--environment",
            "live",
            "--output",
            "json",
        ],
    );
    let secret = made.json()["secret"].as_str().expect("a secret").to_owned();
    let id = made.json()["key"]["id"].as_str().expect("an id").to_owned();
    let typed = random_secret();
    let mut needles = Needles::default();
    for secret in [admin, &secret, &typed] {
        needles.add_secret(secret);
        needles.add_digest(secret);
    }
    let runs: [(&[&str], &str); 10] = [
        (&["keys", "verify"], &secret),
        (&["keys", "verify", "--output", "json"], &typed),
        (&["keys", "get", &id], ""),
        (&["keys", "list", "--organization", organization, "--all"], ""),
        (&["keys", "get", &keys[0].id, "--output", "json"], ""),
        (&["keys", "revoke", &id, "--reason", "other", "--note", "done"], ""),
        (&["organizations", "get", organization], ""),
        (&["usage", "--organization", organization], ""),
        (&["audit", "list", "--all"], ""),
        (&["health"], ""),
    ];
    for (arguments, stdin) in runs {
        let ran = cli::as_caller(server, admin, arguments, stdin);
        let printed = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(needles.found_in(printed.as_bytes()), Vec::<String>::new(), "{arguments:?}");
    }
    // Typed where it does not belong; the process list has it then, and nobody else.
    for arguments in [["keys", "get", &typed], ["organizations", "get", &typed]] {
        let ran = cli::as_admin(server, &arguments);
        assert_eq!(ran.code, 1);
        assert_eq!(needles.found_in(ran.stderr.as_bytes()), Vec::<String>::new(), "{arguments:?}");
    }
    let refused = cli::as_caller(server, &typed, &["organizations", "list"], "");
    assert_eq!(needles.found_in(refused.stderr.as_bytes()), Vec::<String>::new());
    let again = cli::on_database(database, &["init"]);
    assert_eq!((again.code, again.stdout.as_str()), (1, ""));
    known.secrets.extend([secret, typed]);
}

/// Errors in which the database has the whole row at hand, digest and metadata included, and a row that cannot be read.
async fn rows_in_errors(server: &Server, database: &TestDatabase, organization: &str, known: &mut Known) {
    let forbid = match database.engine {
        Engine::Sqlite => {
            "CREATE TRIGGER forbid BEFORE INSERT ON api_keys WHEN NEW.name = 'forbidden' \
             BEGIN SELECT RAISE(ABORT, 'forbidden') ; END"
        }
        Engine::Postgres => "ALTER TABLE api_keys ADD CONSTRAINT forbid CHECK (name <> 'forbidden')",
    };
    let allow = match database.engine {
        Engine::Sqlite => "DROP TRIGGER forbid",
        Engine::Postgres => "ALTER TABLE api_keys DROP CONSTRAINT forbid",
    };
    database.raw_sql(forbid).await;
    let metadata = [("owner".to_owned(), known.value())].into();
    let request = CreateKeyRequest { name: "forbidden".to_owned(), metadata, ..issuing(organization, &[]) };
    let refused = server.keys().create_key(request).await.expect_err("the database refuses");
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    database.raw_sql(allow).await;

    let made = server.keys().create_key(issuing(organization, &[])).await.expect("created").into_inner();
    let id = made.key.expect("the key").id;
    let broken = known.value();
    database.raw_sql(&format!("UPDATE api_keys SET metadata = '{{\"{broken}' WHERE id = '{id}'")).await;
    let unreadable = server.keys().verify_key(verifying(&made.secret)).await.expect_err("nobody knows");
    assert_eq!(unreadable.code(), Code::Unavailable, "{unreadable:?}");
    let listing = ListKeysRequest { organization_id: organization.to_owned(), ..Default::default() };
    server.keys().list_keys(listing).await.expect("the others");
    database.raw_sql(&format!("DELETE FROM api_keys WHERE id = '{id}'")).await;
    known.secrets.push(made.secret);
}
