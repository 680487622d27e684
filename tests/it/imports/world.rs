//! What the tests of imports stand on: a server of Keystead with an organization, and the real command beside it.
//! Everything that a command prints is kept, so that a test can show that no key is in it. Keys are made here and are
//! of this run alone: what is found of one anywhere was put there by its own test.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use keystead::proto::v1::{
    ApiKey, BatchVerifyKeysRequest, GetKeyRequest, Outcome, VerifyKeyRequest, VerifyKeyResponse,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::organizations::now;
use crate::harness::cli::{self, Ran};
use crate::harness::tools::repository;
use crate::harness::{Server, TestDatabase, create_organization, hex, keystead_command, wait_until};

/// The most requests of one `BatchVerifyKeys`.
const BATCH_MAX: usize = 1000;
const DAY: i64 = 86_400;
/// Longer than any test takes that must not see midnight, on a machine that is busy with other tests, in seconds.
const BEFORE_MIDNIGHT: i64 = 180;
/// Less than one wait may take.
const PART_OF_WAIT: Duration = Duration::from_secs(20);

/// Keys of this run alone, by name.
pub struct Keys(String);

impl Keys {
    pub fn new() -> Self {
        Self(hex(&keystead::random::bytes::<16>()))
    }

    /// The key of a name, always the same: 35 characters.
    pub fn text(&self, name: &str) -> String {
        let digest = Sha256::digest(format!("{}/{name}", self.0));
        format!("sk_{}", URL_SAFE_NO_PAD.encode(&digest[..24]))
    }

    /// Keys called `NAME 0`, `NAME 1` ...
    pub fn texts(&self, name: &str, count: usize) -> Vec<String> {
        (0..count).map(|at| self.text(&format!("{name} {at}"))).collect()
    }
}

/// SHA-256 of a text, as hex.
pub fn sha256_hex(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// An Argon2 hash of a text, as cheap as it may be: what is shown with it does not depend on its costs.
pub fn argon2(text: &str) -> String {
    use argon2::{Algorithm, Argon2, Params, Version};
    let (salt, mut hash) = (keystead::random::bytes::<16>(), [0_u8; 32]);
    let costs = Params::new(64, 1, 1, Some(hash.len())).expect("legal costs");
    let function = Argon2::new(Algorithm::Argon2id, Version::V0x13, costs);
    function.hash_password_into(text.as_bytes(), &salt, &mut hash).expect("a hash");
    format!("$argon2id$v=19$m=64,t=1,p=1${}${}", STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash))
}

/// One server, and the organization that keys go to where nothing says otherwise.
pub struct World {
    pub database: TestDatabase,
    pub server: Server,
    /// Its id.
    pub organization: String,
    pub keys: Keys,
    folder: TempDir,
    printed: Mutex<String>,
}

impl World {
    /// A new database of Keystead's with the organization of this slug.
    pub async fn new(database: TestDatabase, slug: &str) -> Self {
        let server = Server::start(&database, &["--metrics-listen", "127.0.0.1:0"]).await;
        let organization = create_organization(&server, slug).await.id;
        let folder = tempfile::Builder::new().prefix("keystead-import-").tempdir().expect("a folder");
        Self { database, server, organization, keys: Keys::new(), folder, printed: Mutex::default() }
    }

    /// A file of this test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of this test's own.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path
    }

    /// The command on a source, with a mapping of the test's own.
    pub fn import(&self, url: &str, mapping: &str) -> Import<'_> {
        self.import_by(url, self.write("mapping.toml", mapping))
    }

    /// The command on a source, with a mapping of the documentation.
    pub fn documented(&self, url: &str, name: &str) -> Import<'_> {
        self.import_by(url, documented(name))
    }

    fn import_by(&self, url: &str, mapping: PathBuf) -> Import<'_> {
        Import { world: self, url: url.to_owned(), mapping, stdin: String::new() }
    }

    /// `keystead import status`, as JSON.
    pub fn status(&self, arguments: &[&str]) -> Value {
        let mut command = keystead_command(&self.database);
        command.args(["import", "status", "--output", "json"]).args(arguments);
        self.ran(command, "").json()
    }

    /// Whether status says that the columns of a table are gone; null where it says nothing.
    pub fn told_dropped(&self, table: &str) -> Value {
        let status = self.status(&[]);
        let imports = status["imports"].as_array().expect("imports");
        let found = imports.iter().find(|import| import["table"] == table);
        found.expect("the table")["contracted"]["dropped"].clone()
    }

    /// Runs a command, and keeps what it prints.
    fn ran(&self, command: Command, stdin: &str) -> Ran {
        let ran = cli::run(command, stdin);
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        printed.push_str(&ran.stdout);
        printed.push_str(&ran.stderr);
        ran
    }

    /// Fails where any of these texts is in what commands printed, what the server logged, or the files of refused
    /// rows.
    pub fn assert_told_nobody(&self, texts: &[String]) {
        let mut told = self.printed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        told.push_str(&self.server.log_text());
        for entry in fs::read_dir(self.folder.path()).expect("the folder") {
            let entry = entry.expect("an entry");
            if entry.file_name().to_string_lossy().contains("refused") {
                told.push_str(&fs::read_to_string(entry.path()).expect("a file of text"));
            }
        }
        assert!(told.len() > 100, "there is something to be searched");
        let found = texts_in(told.as_bytes(), texts);
        assert!(found.is_empty(), "texts {found:?} were told");
    }

    /// How many keys there are besides the admin's.
    pub async fn key_count(&self) -> i64 {
        self.database.query_i64("SELECT count(*) FROM api_keys WHERE import_id IS NOT NULL").await
    }

    /// The id of the key that came from a row, or nothing.
    pub async fn id_of_row(&self, table: &str, row: &str) -> Option<String> {
        let row = row.replace('\'', "''");
        let sql = format!(
            "SELECT coalesce(max(id), '') FROM api_keys WHERE source_id = '{row}' \
             AND import_id IN (SELECT id FROM imports WHERE table_name = '{table}')"
        );
        Some(self.database.query_string(&sql).await).filter(|id| !id.is_empty())
    }

    /// The key with an id.
    pub async fn key(&self, id: &str) -> ApiKey {
        let request = GetKeyRequest { key_id: id.to_owned() };
        self.server.keys().get_key(request).await.expect("a key").into_inner().key.expect("the key")
    }

    /// What a verification answers.
    pub async fn ask(&self, request: VerifyKeyRequest) -> VerifyKeyResponse {
        self.server.keys().verify_key(request).await.expect("a verification answers").into_inner()
    }

    /// What presenting a secret answers.
    pub async fn present(&self, secret: &str) -> VerifyKeyResponse {
        self.ask(presenting(secret)).await
    }

    pub async fn outcome(&self, secret: &str) -> Outcome {
        self.present(secret).await.outcome()
    }

    /// What presenting each of these answers, in their order.
    pub async fn ask_all(&self, requests: Vec<VerifyKeyRequest>) -> Vec<VerifyKeyResponse> {
        let mut answers = Vec::new();
        for requests in requests.chunks(BATCH_MAX) {
            let request = BatchVerifyKeysRequest { requests: requests.to_vec() };
            let answer = self.server.keys().batch_verify_keys(request).await;
            answers.extend(answer.expect("verifications answer").into_inner().responses);
        }
        answers
    }

    /// Fails unless each of these secrets has this outcome.
    pub async fn assert_all(&self, secrets: &[String], outcome: Outcome) {
        let answers = self.ask_all(secrets.iter().map(|secret| presenting(secret)).collect()).await;
        assert_eq!(answers.len(), secrets.len());
        let seen = answers.iter().map(VerifyKeyResponse::outcome).enumerate();
        let others: Vec<(usize, Outcome)> = seen.filter(|(_, seen)| *seen != outcome).collect();
        assert!(others.is_empty(), "all are to be {outcome:?}: {others:?}");
    }
}

/// A request with nothing but a secret.
pub fn presenting(secret: &str) -> VerifyKeyRequest {
    VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() }
}

/// A request with a secret and the id of its key.
pub fn presenting_pair(key_id: &str, secret: &str) -> VerifyKeyRequest {
    VerifyKeyRequest { key_id: Some(key_id.to_owned()), ..presenting(secret) }
}

/// A mapping of the documentation, such as `1-ownership`.
pub fn documented(name: &str) -> PathBuf {
    repository().join(format!("docs/migrating/{name}.toml"))
}

/// The slug in a mapping of the documentation.
pub fn documented_slug(name: &str) -> String {
    let text = fs::read_to_string(documented(name)).expect("a mapping");
    let mapping: toml::Table = text.parse().expect("TOML");
    mapping.get("organization").and_then(toml::Value::as_str).unwrap_or("acme").to_owned()
}

/// The command `keystead import` on one source.
pub struct Import<'a> {
    world: &'a World,
    pub url: String,
    mapping: PathBuf,
    stdin: String,
}

impl Import<'_> {
    /// The same with something on standard input.
    pub fn reading(self, stdin: &str) -> Self {
        Self { stdin: stdin.to_owned(), ..self }
    }

    /// The command, to be started by the test itself.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = keystead_command(&self.world.database);
        // A refused file that nobody named goes to the folder that the command runs in.
        command.current_dir(self.world.folder.path()).env("KEYSTEAD_SOURCE_URL", &self.url);
        command.arg("import").args(arguments).arg("--mapping").arg(&self.mapping);
        command
    }

    /// Runs it to its end.
    pub fn ran(&self, arguments: &[&str]) -> Ran {
        self.world.ran(self.command(arguments), &self.stdin)
    }

    fn report(&self, arguments: &[&str]) -> Report {
        Report::of(&self.ran(&[arguments, ["--output", "json"].as_slice()].concat()))
    }

    /// What `plan` says.
    pub fn plan(&self, arguments: &[&str]) -> Report {
        self.report(&[["plan"].as_slice(), arguments].concat())
    }

    /// What `run` did.
    pub fn run(&self, arguments: &[&str]) -> Report {
        self.report(&[["run"].as_slice(), arguments].concat())
    }

    /// What `verify` found, of one that passes.
    pub fn verify(&self, arguments: &[&str]) -> Report {
        self.report(&[["verify"].as_slice(), arguments].concat())
    }
}

/// What the file of refused rows names: table and id of each row, with the reason.
pub fn refused_rows(file: &Path) -> BTreeMap<(String, String), String> {
    let mut reader = csv::Reader::from_path(file).expect("a file of refused rows");
    let header: Vec<String> = reader.headers().expect("a header").iter().map(str::to_owned).collect();
    assert_eq!(header, ["table", "id", "reason", "message"]);
    let mut refused = BTreeMap::new();
    for record in reader.records() {
        let record = record.expect("a record");
        assert!(!record[3].is_empty(), "a reason has words: {record:?}");
        refused.insert((record[0].to_owned(), record[1].to_owned()), record[2].to_owned());
    }
    refused
}

/// The one report of a command.
#[derive(Debug)]
pub struct Report(Value);

impl Report {
    /// That of a command that ended with 0.
    pub fn of(ran: &Ran) -> Self {
        Self(ran.json())
    }

    /// One table of it; that of a file has no name.
    pub fn table(&self, name: &str) -> Table<'_> {
        let tables = self.0["tables"].as_array().expect("tables");
        let found = tables.iter().find(|table| table["table"] == name);
        Table(found.unwrap_or_else(|| panic!("no table {name} in {}", self.0)))
    }

    pub fn is(&self, flag: &str) -> bool {
        self.0[flag].as_bool().unwrap_or_else(|| panic!("no flag {flag} in {}", self.0))
    }
}

/// What a report says of one table.
pub struct Table<'a>(&'a Value);

impl Table<'_> {
    /// Such as `created`.
    pub fn count(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("no count {name} in {}", self.0))
    }

    /// Several of them.
    pub fn counts<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        names.map(|name| self.count(name))
    }

    /// Such as `refusals`, by reason.
    pub fn by(&self, name: &str) -> BTreeMap<String, u64> {
        let counts = self.0[name].as_object().unwrap_or_else(|| panic!("no {name} in {}", self.0));
        counts.iter().map(|(word, count)| (word.clone(), count.as_u64().expect("a count"))).collect()
    }
}

/// As [`Table::by`] gives them.
pub fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
}

/// Waits until what begins now ends on the same day: quotas turn over at the end of a month, and windows are those of
/// one day.
pub async fn far_from_midnight() {
    let is_far = || now() % DAY < DAY - BEFORE_MIDNIGHT;
    while !is_far() {
        let begun = Instant::now();
        let is_over = async || is_far() || begun.elapsed() > PART_OF_WAIT;
        wait_until("midnight to be over", is_over).await;
    }
}

/// Which of these texts are in these bytes, by their place in the list: one pass, however many there are.
pub fn texts_in(bytes: &[u8], texts: &[String]) -> Vec<usize> {
    // The end of a text tells it from others that begin alike.
    const END: usize = 12;
    let mut begins = vec![false; 1 << 16];
    let mut ends: HashMap<&[u8], usize> = HashMap::new();
    for (at, text) in texts.iter().enumerate() {
        assert!(text.len() >= END, "too short to mean anything");
        let end = &text.as_bytes()[text.len() - END..];
        begins[usize::from(end[0]) << 8 | usize::from(end[1])] = true;
        ends.insert(end, at);
    }
    let likely = |window: &&[u8]| begins[usize::from(window[0]) << 8 | usize::from(window[1])];
    let mut found: Vec<usize> =
        bytes.windows(END).filter(likely).filter_map(|window| ends.get(window).copied()).collect();
    found.sort_unstable();
    found.dedup();
    found
}
