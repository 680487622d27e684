//! What the tests of imports and of imported keys share: secrets and hashes as other systems have them, short ways to
//! import, and what a row at rest, the audit log and the page of metrics say of a key.
//! Invariant: every result of an import that passes here has its place, and holds neither material nor half an answer.

use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use keystead::domain::digest::Digest;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{
    Environment, ImportKey, ImportKeyResult, ImportKeysRequest, ImportResult, Outcome, VerifyKeyRequest,
    VerifyKeyResponse,
};
use prost::Message as _;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{Keys, World, with};
use crate::harness::{Engine, TestDatabase, hex};
use crate::server::metrics;

/// Where the keys of these tests come from.
pub(super) const SOURCE: &str = "portal";
/// Arguments after `serve` for tests that read the page of metrics.
pub(super) const METRICS: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];
/// The cheapest cost of bcrypt.
pub(super) const CHEAP: u32 = 4;
/// How many characters the look-up part of these tests has.
const LOOK_UP_LENGTH: usize = 12;
/// How long a check may wait for its turn.
const PATIENCE: Duration = Duration::from_mins(1);

/// The secret of this number: not weak, and of another shape than our own.
pub(super) fn secret(at: usize) -> String {
    format!("sk_{}", &hex(Digest::of(&format!("secret {at}")).as_bytes())[..32])
}

/// The public part of a secret.
pub(super) fn look_up_id(secret: &str) -> String {
    secret[..LOOK_UP_LENGTH].to_owned()
}

/// The digest of a secret as other systems write it.
pub(super) fn sha256_hex(secret: &str) -> String {
    hex(Digest::of(secret).as_bytes())
}

/// A hash of bcrypt that begins with this, such as `$2a$`.
pub(super) fn bcrypt_of(secret: &str, version: &str, cost: u32) -> String {
    let hash = bcrypt::hash(secret, cost).expect("a hash");
    hash.replacen("$2b$", version, 1)
}

/// A hash of Argon2, as cheap as one may be.
pub(super) fn argon2_of(secret: &str, algorithm: Algorithm) -> String {
    let name = match algorithm {
        Algorithm::Argon2d => "argon2d",
        Algorithm::Argon2i => "argon2i",
        Algorithm::Argon2id => "argon2id",
    };
    let (salt, mut hash): ([u8; 16], [u8; 32]) = (keystead::random::bytes(), [0; 32]);
    let costs = Params::new(64, 1, 1, None).expect("legal costs");
    let argon2 = Argon2::new(algorithm, Version::V0x13, costs);
    argon2.hash_password_into(secret.as_bytes(), &salt, &mut hash).expect("a hash");
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    format!("${name}$v=19$m=64,t=1,p=1${salt}${hash}")
}

/// A well-formed hash of bcrypt that is no secret's; each number has another one.
pub(super) fn forged(at: usize) -> String {
    const GENUINE: &str = "$2b$04$......L0e3bAq7v1nMtZTOuWn3kqdXbT0pKQJ9V5n3x1c8yHGsmIe";
    assert_eq!(GENUINE.len(), 60);
    GENUINE.replacen("......", &format!("{at:06}"), 1)
}

/// A key with nothing but what is required.
pub(super) fn of(material: Material) -> ImportKey {
    ImportKey {
        material: Some(material),
        name: "An imported key".to_owned(),
        environment: Environment::Live.into(),
        ..Default::default()
    }
}

/// A key that is given as it is.
pub(super) fn plain(secret: &str) -> ImportKey {
    of(Material::Secret(secret.to_owned()))
}

/// A key that is given as its digest.
pub(super) fn digest(secret: &str) -> ImportKey {
    of(Material::Sha256Hex(sha256_hex(secret)))
}

/// A key that is given as a cheap hash of bcrypt, and of which nothing else is known.
pub(super) fn bare_slow(secret: &str) -> ImportKey {
    of(Material::Bcrypt(bcrypt_of(secret, "$2b$", CHEAP)))
}

/// The same with a look-up part.
pub(super) fn slow(secret: &str) -> ImportKey {
    with(&bare_slow(secret), |key| key.look_up_id = look_up_id(secret))
}

/// The same with what it begins with alone, so that it is looked for among all that begin so.
pub(super) fn scanned(secret: &str) -> ImportKey {
    with(&bare_slow(secret), |key| "sk_".clone_into(&mut key.prefix))
}

/// What became of each key: created, already imported, or the reason of its refusal.
pub(super) fn told(results: &[ImportKeyResult]) -> Vec<&str> {
    results
        .iter()
        .map(|result| match result.result() {
            ImportResult::Created => "CREATED",
            ImportResult::AlreadyImported => "ALREADY_IMPORTED",
            ImportResult::Refused | ImportResult::Unspecified => result.reason.as_str(),
        })
        .collect()
}

/// Imports, and asserts that each key has its result.
pub(super) async fn import(mut keys: Keys, request: ImportKeysRequest) -> Vec<ImportKeyResult> {
    let results = keys.import_keys(request.clone()).await.expect("an answer").into_inner().results;
    assert_eq!(results.len(), request.keys.len(), "a result for each key");
    for (at, (key, result)) in request.keys.iter().zip(&results).enumerate() {
        assert_eq!(usize::try_from(result.index), Ok(at), "in the order of the request");
        expect_whole(key, result, request.dry_run);
    }
    results
}

fn expect_whole(key: &ImportKey, result: &ImportKeyResult, dry_run: bool) {
    let is_upper_snake = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    match result.result() {
        ImportResult::Refused => {
            assert_eq!(result.key_id, "", "{result:?}");
            assert!(!result.reason.is_empty() && result.reason.bytes().all(is_upper_snake), "{result:?}");
            assert!(!result.message.is_empty(), "{result:?}");
            let material = key.material.as_ref().map(text_of).unwrap_or_default();
            assert!(material.len() < 8 || !result.message.contains(material), "{} shows the material", result.reason);
        }
        ImportResult::Created | ImportResult::AlreadyImported => {
            // In a dry run there is no id of what is to be created yet.
            let length = if result.key_id.is_empty() && dry_run { 0 } else { 36 };
            assert_eq!(result.key_id.len(), length, "{result:?}");
            assert_eq!((result.reason.as_str(), result.message.as_str()), ("", ""), "{result:?}");
        }
        ImportResult::Unspecified => panic!("nothing is told: {result:?}"),
    }
}

fn text_of(material: &Material) -> &str {
    match material {
        Material::Secret(text)
        | Material::Sha256Hex(text)
        | Material::Sha256Base64(text)
        | Material::Bcrypt(text)
        | Material::Argon2(text) => text,
    }
}

impl World {
    /// A request to import keys into the world's organization.
    pub(super) fn importing(&self, keys: Vec<ImportKey>) -> ImportKeysRequest {
        let (organization_id, source) = (self.organization.clone(), SOURCE.to_owned());
        ImportKeysRequest { organization_id, keys, source, ..Default::default() }
    }

    /// Imports as the admin.
    pub(super) async fn import(&self, keys: Vec<ImportKey>) -> Vec<ImportKeyResult> {
        import(self.server.keys(), self.importing(keys)).await
    }

    /// Imports a key that is new, and gives its id.
    pub(super) async fn import_one(&self, key: ImportKey) -> String {
        let results = self.import(vec![key]).await;
        assert_eq!(told(&results), ["CREATED"]);
        results[0].key_id.clone()
    }

    /// Asserts that a secret is VALID, and whose.
    pub(super) async fn expect_valid(&self, request: VerifyKeyRequest, key_id: &str) {
        let answer = self.ask(request).await;
        assert_eq!((answer.outcome(), answer.key_id.as_str()), (Outcome::Valid, key_id));
    }

    /// What the page of metrics says now of all series of a metric that have this label.
    pub(super) async fn counted(&self, metric: &str, label: &str) -> u64 {
        let (_, page) = metrics::get(self.server.metrics_address(), "/metrics").await;
        let series = page.lines().filter(|line| line.starts_with(metric) && line.contains(label));
        let values = series.filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.trim_end_matches(".0").parse::<u64>().expect("a whole number")).sum()
    }

    /// How many slow checks the present process has done.
    pub(super) async fn slow_checks(&self) -> u64 {
        self.counted("keystead_slow_checks_total", "").await
    }
}

/// A request that presents a secret as that of a key.
pub(super) fn naming(secret: &str, key_id: &str) -> VerifyKeyRequest {
    let (secret, key_id) = (secret.to_owned(), Some(key_id.to_owned()));
    VerifyKeyRequest { secret, key_id, ..Default::default() }
}

/// Asserts that a request is answered as one for a key that nobody has, byte for byte.
pub(super) async fn expect_unknown(mut keys: Keys, request: VerifyKeyRequest, case: &str) {
    let bare = VerifyKeyResponse { outcome: Outcome::NotFound.into(), ..Default::default() }.encode_to_vec();
    let answer = keys.verify_key(request).await.unwrap_or_else(|status| panic!("{case}: {status:?}"));
    assert_eq!(answer.into_inner().encode_to_vec(), bare, "{case}");
}

/// Verifies as often as it takes until the slow checks have room for this one.
pub(super) async fn patiently(mut keys: Keys, request: VerifyKeyRequest) -> VerifyKeyResponse {
    let asked = async {
        loop {
            match keys.verify_key(request.clone()).await {
                Ok(answer) => return answer.into_inner(),
                Err(status) => assert_eq!(reason_of(&status), "SLOW_CHECKS_BUSY", "{status:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("a turn within a minute")
}

/// The reason of an error.
pub(super) fn reason_of(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// Whether a key stands under the digest of this secret, with nothing left of a slow hash.
pub(super) async fn is_upgraded(database: &TestDatabase, key_id: &str, secret: &str) -> bool {
    let digest = match database.engine {
        Engine::Sqlite => format!("X'{}'", sha256_hex(secret)),
        Engine::Postgres => format!("'\\x{}'::bytea", sha256_hex(secret)),
    };
    let sql = format!(
        "SELECT count(*) FROM api_keys
         WHERE id = '{key_id}' AND scheme = 'sha256' AND stored_hash LIKE 'sha256:%' AND digest = {digest}"
    );
    database.query_i64(&sql).await == 1
}

/// Whether a key stands under a slow hash still.
pub(super) async fn is_slow(database: &TestDatabase, key_id: &str) -> bool {
    let sql = format!(
        "SELECT count(*) FROM api_keys WHERE id = '{key_id}' AND scheme IN ('bcrypt', 'argon2')
         AND stored_hash IS NOT NULL AND digest IS NULL"
    );
    database.query_i64(&sql).await == 1
}

/// How many audit events say that this was done to a key.
pub(super) async fn events(database: &TestDatabase, action: &str, key_id: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM audit_events WHERE action = '{action}' AND target_id = '{key_id}'");
    database.query_i64(&sql).await
}
