//! `KeyService`, rpc by rpc, through a real channel against the real binary, on both databases.
//! A file is one rpc, or one subject of one; a test function is one guarantee, said by its name, with one
//! server of its own. Here is what they share: a world of a server and an organization, short ways to call,
//! and `refused`, which every refusal has to pass. Invariant: nothing here waits but on a condition.

mod bad_input;
mod bad_input_changes;
mod bad_input_use;
mod batch_verify;
mod create;
mod create_bounds;
mod get;
mod import;
mod import_again;
mod import_at_once;
mod import_bounds;
mod import_kept;
mod import_refused;
mod import_samples;
mod list;
mod list_pages;
mod messages;
mod revoke;
mod revoke_admins;
mod revoke_keys;
mod revoke_keys_hang_up;
mod rotate;
mod rotate_shares;
mod update;
mod update_rules;
mod usage;
mod usage_report;
mod usage_report_refused;
mod usage_span;
mod verify_credits;
mod verify_credits_at_once;
mod verify_faults;
mod verify_freshness;
mod verify_limits;
mod verify_limits_killed;
mod verify_not_found;
mod verify_outcomes;
mod verify_pairs;
mod verify_quota;
mod verify_slow;
mod verify_slow_load;
mod verify_slow_many;
mod verify_slow_refused;
mod verify_slow_twins;

use std::collections::BTreeSet;

use keystead::clock::Clock;
use keystead::domain::digest::Digest;
use keystead::proto::v1::key_service_client::KeyServiceClient;
use keystead::proto::v1::{
    ActivateOrganizationRequest, ApiKey, CreateKeyRequest, DeactivateOrganizationRequest, Environment, GetKeyRequest,
    ListKeysRequest, Organization, Outcome, RevokeKeyRequest, RevokeKeyResponse, RotateKeyRequest, RotateKeyResponse,
    UpdateKeyRequest, UpdateOrganizationRequest, VerifyKeyRequest, VerifyKeyResponse,
};
use prost_types::{Duration, FieldMask, Timestamp};
use tokio::task::JoinSet;
use tonic::{Code, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::harness::{
    self, Authorized, Engine, Server, TestDatabase, create_organization, expect_error, hex, wait_until,
};

/// A client that a task can own.
type Keys = KeyServiceClient<Authorized>;

/// The id of the organization `system`.
const SYSTEM: &str = "00000000-0000-0000-0000-000000000001";
/// A well-formed id that nothing has.
const NOBODY: &str = "0198c7a4-5b7e-7c3a-9f00-000000000bad";
/// The reason of every refusal for bad fields.
const INVALID: &str = "INVALID_FIELDS";

/// One server, and the organization that most tests work in.
struct World {
    server: Server,
    organization: String,
}

impl World {
    /// No test begins in the last moments of a day in UTC, when refills fall due and quotas and windows turn over.
    async fn new(database: &TestDatabase) -> Self {
        Self::start(database, &[]).await
    }

    /// The same, with arguments after `serve`.
    async fn start(database: &TestDatabase, arguments: &[&str]) -> Self {
        wait_until("midnight to be over", async || from_now(30).seconds % 86_400 >= 30).await;
        let server = Server::start(database, arguments).await;
        let organization = create_organization(&server, "acme").await.id;
        Self { server, organization }
    }

    /// A request for a live key with nothing but what is required.
    fn new_key(&self) -> CreateKeyRequest {
        CreateKeyRequest {
            organization_id: self.organization.clone(),
            name: "A key of the tests".to_owned(),
            environment: Environment::Live.into(),
            ..Default::default()
        }
    }

    /// Creates a key as the admin. Returns the record and the secret.
    async fn create(&self, request: CreateKeyRequest) -> (ApiKey, String) {
        let answer = self.server.keys().create_key(request).await.expect("a key is created").into_inner();
        (answer.key.expect("the key"), answer.secret)
    }

    /// Creates so many keys, named `NAME 00000`, `NAME 00001` ...
    async fn create_many(&self, name: &str, count: usize) -> Vec<(ApiKey, String)> {
        let mut created = Vec::new();
        for at in 0..count {
            let name = format!("{name} {at:05}");
            created.push(self.create(CreateKeyRequest { name, ..self.new_key() }).await);
        }
        created
    }

    /// The secret of a new caller in an organization.
    async fn caller(&self, organization: &str, scopes: &[&str]) -> String {
        harness::create_key(&self.server, organization, scopes).await.1
    }

    async fn get(&self, key_id: &str) -> ApiKey {
        let request = GetKeyRequest { key_id: key_id.to_owned() };
        self.server.keys().get_key(request).await.expect("the key is read").into_inner().key.expect("the key")
    }

    /// All keys of an organization that a request selects, page by page.
    async fn list(&self, mut request: ListKeysRequest) -> Vec<ApiKey> {
        let mut keys = Vec::new();
        loop {
            let page = self.server.keys().list_keys(request.clone()).await.expect("keys are listed").into_inner();
            keys.extend(page.keys);
            if page.next_page_token.is_empty() {
                return keys;
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Verifies as the admin.
    async fn ask(&self, request: VerifyKeyRequest) -> VerifyKeyResponse {
        self.server.keys().verify_key(request).await.expect("a verification answers").into_inner()
    }

    /// The outcome of verifying a secret with nothing required of it.
    async fn outcome(&self, secret: &str) -> Outcome {
        self.ask(presenting(secret)).await.outcome()
    }

    /// The id of the key that a secret belongs to.
    async fn key_of(&self, secret: &str) -> String {
        self.ask(presenting(secret)).await.key_id
    }

    /// Sets the fields that `paths` name to the values in `key`.
    async fn update(&self, key: ApiKey, paths: &[&str]) -> ApiKey {
        let answer = self.server.keys().update_key(updating(key, paths)).await;
        answer.expect("the key is updated").into_inner().key.expect("the key")
    }

    async fn revoke(&self, key_id: &str) -> RevokeKeyResponse {
        let request = RevokeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
        self.server.keys().revoke_key(request).await.expect("the key is revoked").into_inner()
    }

    /// Sets the fields of the organization that `paths` name.
    async fn set(&self, organization: Organization, paths: &[&str]) {
        let organization = Some(Organization { id: self.organization.clone(), ..organization });
        let request = UpdateOrganizationRequest { organization, update_mask: Some(mask(paths)), ..Default::default() };
        self.server.organizations().update_organization(request).await.expect("the organization is updated");
    }

    async fn deactivate(&self) {
        let request =
            DeactivateOrganizationRequest { organization_id: self.organization.clone(), ..Default::default() };
        self.server.organizations().deactivate_organization(request).await.expect("it is deactivated");
    }

    async fn activate(&self) {
        let request = ActivateOrganizationRequest { organization_id: self.organization.clone(), ..Default::default() };
        self.server.organizations().activate_organization(request).await.expect("it is activated");
    }

    async fn set_quota(&self, monthly_quota: i64) {
        self.set(Organization { monthly_quota, ..Default::default() }, &["monthly_quota"]).await;
    }

    async fn rotate(&self, key_id: &str, overlap: Option<Duration>) -> RotateKeyResponse {
        let request = RotateKeyRequest { key_id: key_id.to_owned(), overlap, ..Default::default() };
        self.server.keys().rotate_key(request).await.expect("the key is rotated").into_inner()
    }
}

/// What must not move where a call is refused.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    keys: i64,
    /// The sum of all etags of keys, which every change of a key raises.
    etags: i64,
    audit_events: i64,
    revision: i64,
}

impl Footprint {
    async fn of(database: &TestDatabase) -> Self {
        Self {
            keys: database.query_i64("SELECT count(*) FROM api_keys").await,
            etags: database.query_i64("SELECT CAST(sum(etag) AS bigint) FROM api_keys").await,
            audit_events: database.query_i64("SELECT count(*) FROM audit_events").await,
            revision: database.query_i64("SELECT revision FROM change_counter WHERE id = 1").await,
        }
    }
}

/// Writes so many copies of a key past the service, each with an id and a secret of its own. Returns the secrets.
async fn copies(database: &TestDatabase, key: &ApiKey, count: usize) -> Vec<String> {
    let columns = "organization_id, name, name_folded, scheme, prefix, hint, environment, status, scopes, metadata,
        allowed_cidrs, rate_limits, create_time_us, update_time_us, created_by, counter_id, etag";
    let secrets: Vec<String> = (0..count).map(|at| format!("pk_live_{at:043}")).collect();
    let row = |(at, secret): (usize, &String)| {
        let digest = hex(Digest::of(secret).as_bytes());
        let digest = match database.engine {
            Engine::Sqlite => format!("X'{digest}'"),
            Engine::Postgres => format!("'\\x{digest}'::bytea"),
        };
        format!("('0198c7a4-5b7e-7c3a-9f00-{at:012}', {digest})")
    };
    let rows: Vec<String> = secrets.iter().enumerate().map(row).collect();
    for rows in rows.chunks(500) {
        let sql = format!(
            "WITH copies (copy_id, copy_digest) AS (VALUES {})
             INSERT INTO api_keys (id, digest, {columns})
             SELECT copy_id, copy_digest, {columns} FROM api_keys, copies WHERE id = '{}'",
            rows.join(", "),
            key.id
        );
        database.raw_sql(&sql).await;
    }
    secrets
}

/// A verification with nothing required.
fn presenting(secret: &str) -> VerifyKeyRequest {
    VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() }
}

/// An update without an etag.
fn updating(key: ApiKey, paths: &[&str]) -> UpdateKeyRequest {
    UpdateKeyRequest { key: Some(key), update_mask: Some(mask(paths)), ..Default::default() }
}

fn mask(paths: &[&str]) -> FieldMask {
    FieldMask { paths: texts(paths) }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// A span of whole seconds.
fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

/// A span of whole days.
fn days(days: i64) -> Duration {
    seconds(days * 86_400)
}

/// The present moment, moved by so many seconds; the service reads the same machine's clock.
fn from_now(seconds: i64) -> Timestamp {
    let now = Clock::default().now().micros();
    Timestamp { seconds: now / 1_000_000 + seconds, nanos: i32::try_from(now % 1_000_000).expect("in range") * 1000 }
}

/// A moment in microseconds since the epoch.
fn micros(time: Option<Timestamp>) -> i64 {
    let time = time.expect("a moment");
    time.seconds * 1_000_000 + i64::from(time.nanos / 1000)
}

/// A copy of `request` with one thing changed.
fn with<T: Clone>(request: &T, change: impl FnOnce(&mut T)) -> T {
    let mut request = request.clone();
    change(&mut request);
    request
}

/// Runs calls at the same time.
async fn at_once<T: Send + 'static>(
    calls: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks = JoinSet::new();
    for call in calls {
        tasks.spawn(call);
    }
    tasks.join_all().await
}

/// Verifies.
async fn answer_to(mut keys: Keys, request: VerifyKeyRequest) -> VerifyKeyResponse {
    keys.verify_key(request).await.expect("an answer").into_inner()
}

/// Asserts a refusal as `expect_error` does, and that message and metadata tell the same: each value in the
/// metadata stands in the message, and each id in the message, but for an example, stands in the metadata.
fn refused<T>(result: Result<Response<T>, Status>, code: Code, reason: &str) -> ErrorDetails {
    let message = result.as_ref().err().map(|status| status.message().to_owned()).unwrap_or_default();
    let details = expect_error(result, code, reason);
    assert!(!message.is_empty(), "{reason} without a message");
    let metadata = &details.error_info().expect("an ErrorInfo").metadata;
    for (name, value) in metadata {
        assert!(message.contains(value), "{name} = {value:?} is not in {message:?}");
    }
    let is_id = |word: &&str| word.len() == 36 && word.bytes().filter(|byte| *byte == b'-').count() == 4;
    let message = message.split("such as").next().unwrap_or_default();
    for id in message.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '-').filter(is_id) {
        assert!(metadata.values().any(|value| value == id), "{id} is not in the metadata of {message:?}");
    }
    details
}

/// Asserts that a call was refused for bad fields, each named once. Returns their paths.
fn bad_fields<T>(result: Result<Response<T>, Status>) -> BTreeSet<String> {
    let details = refused(result, Code::InvalidArgument, INVALID);
    let violations = &details.bad_request().expect("a BadRequest").field_violations;
    let fields: BTreeSet<String> = violations.iter().map(|violation| violation.field.clone()).collect();
    assert_eq!(fields.len(), violations.len(), "each field once: {violations:?}");
    assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{violations:?}");
    fields
}

/// What is wrong with the refusal of a value, if anything: exactly `field` must be named. `case` shows the value.
fn fault_of<T>(result: Result<Response<T>, Status>, field: &str, case: &impl std::fmt::Debug) -> Option<String> {
    let named = match &result {
        Ok(_) => None,
        Err(status) => status.get_details_bad_request(),
    };
    let named = named.map(|bad| bad.field_violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>());
    if named.as_deref() != Some(&[field.to_owned()]) {
        return Some(format!("{field}, but named was {named:?}: {:.1000}", format!("{case:?}")));
    }
    refused(result, Code::InvalidArgument, INVALID);
    None
}

/// The paths of fields as `bad_fields` returns them.
fn fields(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(ToString::to_string).collect()
}
