//! Each treatment of the dirt that real tables have, as `docs/migrating.md` states it: a table of cases, brought in
//! from every kind of source with the same result. A case is a row and what must become of it: a key with an outcome, a
//! refusal with its reason, a row that is passed over. `material` is about keys and hashes, `settings` about all else.
//! Invariant: the report, the file of refused rows, `verify` and what a caller sees tell the same story of each row.

mod material;
mod settings;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use keystead::proto::v1::{ApiKey, Outcome, VerifyKeyResponse};

use super::world::{Import, Keys, Report, World, presenting, refused_rows};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine};
use crate::harness::{Engine, TestDatabase};

/// What else is asked of a key.
type Check = fn(&VerifyKeyResponse, &ApiKey);

/// A row of a source, and what must become of it.
pub struct Case {
    id: String,
    cells: BTreeMap<&'static str, String>,
    then: Then,
    notes: Vec<&'static str>,
}

enum Then {
    /// It holds no key.
    Skipped,
    Refused(&'static str),
    /// The same key stands in a row before.
    Duplicate(String),
    Key {
        secret: String,
        outcome: Outcome,
        check: Option<Check>,
    },
}

/// A row without anything but what says that it may be used: NULL would say nothing.
pub fn row(id: &str) -> Case {
    let cells = [("enabled", "true"), ("status", "active")].map(|(column, value)| (column, value.to_owned()));
    Case { id: id.to_owned(), cells: BTreeMap::from(cells), then: Then::Skipped, notes: Vec::new() }
}

impl Case {
    /// Sets a field.
    pub fn with(mut self, column: &'static str, value: impl Into<String>) -> Self {
        self.cells.insert(column, value.into());
        self
    }

    /// Makes a field NULL.
    pub fn without(mut self, column: &str) -> Self {
        self.cells.remove(column);
        self
    }

    /// Says a note of the report that it is counted under.
    pub fn noted(mut self, note: &'static str) -> Self {
        self.notes.push(note);
        self
    }

    pub fn refused(self, reason: &'static str) -> Self {
        Self { then: Then::Refused(reason), ..self }
    }

    pub fn duplicate_of(self, secret: &str) -> Self {
        Self { then: Then::Duplicate(secret.to_owned()), ..self }
    }

    /// Whoever presents `secret` has this outcome.
    pub fn gives(self, secret: &str, outcome: Outcome) -> Self {
        Self { then: Then::Key { secret: secret.to_owned(), outcome, check: None }, ..self }
    }

    /// The same, and more about the key.
    pub fn gives_with(self, secret: &str, outcome: Outcome, check: Check) -> Self {
        Self { then: Then::Key { secret: secret.to_owned(), outcome, check: Some(check) }, ..self }
    }

    fn reason(&self) -> Option<&'static str> {
        match &self.then {
            Then::Refused(reason) => Some(reason),
            Then::Skipped | Then::Duplicate(_) | Then::Key { .. } => None,
        }
    }

    /// Whether its plaintext and its hash contradict each other, which nobody accepts.
    fn contradicts_itself(&self) -> bool {
        let is_pair = self.cells.contains_key("secret")
            && ["sha256_hex", "sha256_base64", "bcrypt", "argon2"].iter().any(|hash| self.cells.contains_key(hash));
        let reason = self.reason();
        reason == Some("HASH_MISMATCH") || (is_pair && (reason == Some("STORED_HASH") || reason == Some("BAD_HASH")))
    }

    fn is_duplicate(&self) -> bool {
        matches!(self.then, Then::Duplicate(_))
    }

    fn is_skipped(&self) -> bool {
        matches!(self.then, Then::Skipped)
    }
}

/// The columns of the table, `id` aside, and what the mapping makes of them.
const COLUMNS: [(&str, &str); 23] = [
    ("secret", "secret"),
    ("sha256_hex", "sha256-hex"),
    ("sha256_base64", "sha256-base64"),
    ("bcrypt", "bcrypt"),
    ("argon2", "argon2"),
    ("name", "name"),
    ("environment", "environment"),
    ("owner", "owner-id"),
    ("scopes", "scopes"),
    ("metadata", "metadata"),
    ("cidrs", "allowed-cidrs"),
    ("credits", "credits-remaining"),
    ("enabled", "enabled"),
    ("status", "status"),
    ("created_at", "create-time"),
    ("expires_at", "expire-time"),
    ("last_used_at", "last-used-time"),
    ("uses", "request-count"),
    ("revoked_at", "revoke-time"),
    ("revoked_by", "revoked-by"),
    ("reason", "revocation-reason"),
    ("display", "display"),
    ("starts_with", "look-up-id"),
];

fn mapping(table: Option<&str>) -> String {
    let mut text = "source = \"dirt\"\norganization = \"acme\"\ntime-zone = \"+02:00\"\n\n[[keys]]\n".to_owned();
    if let Some(table) = table {
        let _ = writeln!(text, "table = \"{table}\"");
    }
    text.push_str("id = \"id\"\n\n[keys.columns]\n");
    for (column, name) in COLUMNS {
        let _ = writeln!(text, "{name} = \"{column}\"");
    }
    text.push_str("\n[keys.values]\nenvironment = \"live\"\n\n[keys.words]\nenvironment = { production = \"live\" }\n");
    text
}

/// All cases, in the order of their ids, which is that of every source.
fn cases(keys: &Keys) -> Vec<Case> {
    let mut cases: Vec<Case> = material::cases(keys).into_iter().chain(settings::cases(keys)).collect();
    // Later rows of a key depend on earlier ones.
    for (at, case) in cases.iter_mut().enumerate() {
        case.id = format!("{at:04} {}", case.id);
    }
    cases
}

fn cells_of(case: &Case) -> Vec<Cell> {
    let id = Some(case.id.clone());
    [id].into_iter().chain(COLUMNS.iter().map(|(column, _)| case.cells.get(column).cloned())).collect()
}

async fn database_of(cases: &[Case], engine: SourceEngine) -> SourceDatabase {
    let source = SourceDatabase::new(engine).await;
    let columns: Vec<&str> = COLUMNS.iter().map(|(column, _)| *column).collect();
    // MariaDB's longest text that can be a primary key.
    let (id, text) = if engine == SourceEngine::MariaDb { ("VARCHAR(190)", "LONGTEXT") } else { ("TEXT", "TEXT") };
    let definitions = columns.join(&format!(" {text}, "));
    source.run(&format!("CREATE TABLE dirt (id {id} NOT NULL PRIMARY KEY, {definitions} {text})")).await;
    let rows: Vec<Vec<Cell>> = cases.iter().map(cells_of).collect();
    source.insert("dirt", &format!("id, {}", columns.join(", ")), &rows).await;
    source
}

fn json_lines(cases: &[Case]) -> String {
    let mut text = String::new();
    for case in cases {
        let mut object: serde_json::Map<String, serde_json::Value> =
            case.cells.iter().map(|(column, value)| ((*column).to_owned(), value.clone().into())).collect();
        object.insert("id".to_owned(), case.id.clone().into());
        let _ = writeln!(text, "{}", serde_json::Value::Object(object));
    }
    text
}

fn comma_separated(cases: &[Case]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = ["id"].into_iter().chain(COLUMNS.iter().map(|(column, _)| *column));
    writer.write_record(header).expect("written");
    for case in cases {
        let cells: Vec<String> = cells_of(case).into_iter().map(Option::unwrap_or_default).collect();
        writer.write_record(cells).expect("written");
    }
    String::from_utf8(writer.into_inner().expect("flushed")).expect("text")
}

/// Every key and hash that stands in a row.
fn material_of(cases: &[Case]) -> Vec<String> {
    let columns = ["secret", "sha256_hex", "sha256_base64", "bcrypt", "argon2"];
    let cells = cases.iter().flat_map(|case| columns.iter().filter_map(|column| case.cells.get(column)));
    // What is shorter stands in many places by accident; and a weak one is a word of the report, maybe.
    cells.map(|text| text.trim().to_owned()).filter(|text| text.len() >= 20).collect()
}

fn assert_counts(report: &Report, table: &str, cases: &[Case]) {
    let count = |is: fn(&Case) -> bool| cases.iter().filter(|case| is(case)).count() as u64;
    let skipped = count(Case::is_skipped);
    let duplicates = count(Case::is_duplicate);
    let refused = count(|case| case.reason().is_some());
    let created = cases.len() as u64 - skipped - duplicates - refused;
    let seen = report.table(table).counts(["rows", "created", "existing", "duplicates", "skipped", "refused"]);
    assert_eq!(seen, [cases.len() as u64, created, 0, duplicates, skipped, refused]);
    let mut refusals: BTreeMap<String, u64> = BTreeMap::new();
    let mut notes: BTreeMap<String, u64> = BTreeMap::new();
    for case in cases {
        if let Some(reason) = case.reason() {
            *refusals.entry(reason.to_owned()).or_default() += 1;
        }
        for note in &case.notes {
            *notes.entry((*note).to_owned()).or_default() += 1;
        }
    }
    assert_eq!(report.table(table).by("refusals"), refusals);
    assert_eq!(report.table(table).by("notes"), notes);
}

fn assert_refused(file: &Path, table: &str, cases: &[Case]) {
    let expected: BTreeMap<(String, String), String> = cases
        .iter()
        .filter_map(|case| Some(((table.to_owned(), case.id.clone()), case.reason()?.to_owned())))
        .collect();
    assert_eq!(refused_rows(file), expected, "the rows that are refused, and why");
}

/// Refused rows can be accepted; but never that a key is another one than its hash says, or is a hash beside one.
fn assert_only_hashes_disagree(import: &Import<'_>, cases: &[Case]) {
    let ran = import.ran(&["verify", "--accept-refused"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let mismatches: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("mismatch:")).collect();
    let expected: Vec<&Case> = cases.iter().filter(|case| case.contradicts_itself()).collect();
    assert!(expected.iter().all(|case| mismatches.iter().any(|line| line.contains(&case.id))), "{mismatches:?}");
    assert_eq!(mismatches.len(), expected.len(), "{mismatches:?}");
}

async fn assert_keys(world: &World, table: &str, cases: &[Case]) {
    for case in cases {
        let id = world.id_of_row(table, &case.id).await;
        let (secret, outcome, check) = match &case.then {
            Then::Skipped | Then::Refused(_) => {
                assert_eq!(id, None, "{} is no key", case.id);
                continue;
            }
            Then::Duplicate(secret) => {
                assert_eq!(id, None, "{} is a key of another row", case.id);
                (secret, Outcome::Valid, None)
            }
            Then::Key { secret, outcome, check } => {
                assert!(id.is_some(), "{} is a key", case.id);
                (secret, *outcome, *check)
            }
        };
        let answer = world.ask(presenting(secret)).await;
        assert_eq!(answer.outcome(), outcome, "{}", case.id);
        if let Some(id) = &id {
            assert_eq!(&answer.key_id, id, "{}", case.id);
        }
        if let Some(check) = check {
            let key = world.key(&answer.key_id).await;
            // Shown where the check fails.
            eprintln!("row {}", case.id);
            check(&answer, &key);
        }
    }
}

/// What the cases are brought in from.
enum From {
    /// With the table's name in the mapping.
    Database(SourceEngine, &'static str),
    Csv,
    JsonLines,
}

impl From {
    /// Writes the cases, and gives the URL; a database lives as long as the value beside it.
    async fn write(&self, world: &World, cases: &[Case]) -> (String, Option<SourceDatabase>) {
        match self {
            Self::Database(engine, _) => {
                let source = database_of(cases, *engine).await;
                (source.reader_url().await, Some(source))
            }
            Self::Csv => (format!("csv:{}", world.write("dirt.csv", &comma_separated(cases)).display()), None),
            Self::JsonLines => (format!("jsonl:{}", world.write("dirt.jsonl", &json_lines(cases)).display()), None),
        }
    }

    fn table(&self) -> Option<&'static str> {
        match self {
            Self::Database(_, table) => Some(table),
            Self::Csv | Self::JsonLines => None,
        }
    }
}

/// Brings all cases in, on an engine of Keystead's own.
async fn treats_every_row(engine: Engine, from: From) {
    let world = World::new(TestDatabase::new(engine).await, "acme").await;
    let cases = cases(&world.keys);
    let (url, _source) = from.write(&world, &cases).await;
    let import = world.import(&url, &mapping(from.table()));
    let table = from.table().unwrap_or_default();

    let plan = import.plan(&[]);
    assert_counts(&plan, table, &cases);
    assert_eq!(world.key_count().await, 0, "a plan writes nothing");
    assert_eq!(world.database.query_i64("SELECT count(*) FROM imports").await, 0);

    let file = world.path("refused.csv");
    let report = import.run(&["--refused-file", file.to_str().expect("text")]);
    assert_counts(&report, table, &cases);
    assert_refused(&file, table, &cases);

    let strict = import.ran(&["verify"]);
    assert_eq!(strict.code, 1, "rows that were refused are not in Keystead: {strict:?}");
    for case in cases.iter().filter(|case| case.reason().is_some()) {
        assert!(strict.stderr.contains(&case.id), "{} is named: {strict:?}", case.id);
    }
    assert_only_hashes_disagree(&import, &cases);
    assert_keys(&world, table, &cases).await;
    // Keys that were upgraded meanwhile are as they should be.
    assert_only_hashes_disagree(&import, &cases);
    world.assert_told_nobody(&material_of(&cases));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_sqlite_is_treated_as_stated() {
    treats_every_row(Engine::Sqlite, From::Database(SourceEngine::Sqlite, "dirt")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_postgresql_is_treated_as_stated() {
    treats_every_row(Engine::Postgres, From::Database(SourceEngine::Postgres, "public.dirt")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_mariadb_is_treated_as_stated() {
    treats_every_row(Engine::Sqlite, From::Database(SourceEngine::MariaDb, "dirt")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_a_csv_file_is_treated_as_stated() {
    treats_every_row(Engine::Sqlite, From::Csv).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_a_json_lines_file_is_treated_as_stated() {
    treats_every_row(Engine::Postgres, From::JsonLines).await;
}
