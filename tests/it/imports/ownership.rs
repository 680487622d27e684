//! The first system: rows of PostgreSQL that belong to whoever holds a key, which stands in each of them in plaintext
//! and as SHA-256. Thousands of rows share a few hundred keys; rows without one are public. Here: expand and verify;
//! `contract` drops the plaintext. Invariant: nothing goes from the source before every row was verified as it is.

mod contract;

use std::collections::{BTreeMap, BTreeSet};

use keystead::proto::v1::Outcome;

use super::world::{Import, World, documented_slug, presenting, refused_rows, sha256_hex};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test};

/// The mapping in the documentation.
const MAPPING: &str = "1-ownership";
const SESSIONS: usize = 4000;
const ASSISTANTS: usize = 2000;
/// The row of `assistants` whose hash is another key's.
const WRONG: usize = 1234;

const TABLES: &str = "
CREATE TABLE sessions (
    id bigint PRIMARY KEY,
    title text NOT NULL,
    owner_api_key varchar(255),
    owner_api_key_hash varchar(64),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sessions_owner_api_key ON sessions (owner_api_key);
CREATE INDEX sessions_owner_api_key_hash ON sessions (owner_api_key_hash);
CREATE INDEX sessions_of_owner_by_time ON sessions (created_at DESC, owner_api_key) WHERE owner_api_key IS NOT NULL;
CREATE TABLE assistants (
    id uuid PRIMARY KEY,
    name varchar(100) NOT NULL,
    owner_api_key varchar(255),
    owner_api_key_hash varchar(64)
);
CREATE INDEX assistants_owner_api_key ON assistants (owner_api_key);
CREATE INDEX assistants_owner_api_key_hash ON assistants (owner_api_key_hash);
CREATE INDEX assistants_owner_in_small ON assistants (lower(owner_api_key));
";

/// The system before Keystead, and the keys in it.
struct Old {
    source: SourceDatabase,
    /// Those of the rows of `sessions`, by the number of the row; `None` where it is public.
    sessions: Vec<Option<String>>,
    assistants: Vec<Option<String>>,
}

impl Old {
    async fn build(world: &World) -> Self {
        let source = SourceDatabase::new(SourceEngine::Postgres).await;
        source.run(TABLES).await;
        let keys = world.keys.texts("owner", 400);
        let owned = |at: usize, key: usize| if at % 10 == 9 { None } else { Some(keys[key].clone()) };
        let sessions: Vec<Option<String>> = (0..SESSIONS).map(|at| owned(at, at % 300)).collect();
        let assistants: Vec<Option<String>> = (0..ASSISTANTS).map(|at| owned(at, at * 7 % 400)).collect();
        let rows = |owners: &[Option<String>], id: fn(usize) -> String| -> Vec<Vec<Cell>> {
            owners.iter().enumerate().map(|(at, owner)| row(at, owner.as_deref(), id(at))).collect()
        };
        let columns = |name: &str| format!("id, {name}, owner_api_key, owner_api_key_hash");
        source.insert("sessions", &columns("title"), &rows(&sessions, session_id)).await;
        source.insert("assistants", &columns("name"), &rows(&assistants, assistant_id)).await;
        let old = Self { source, sessions, assistants };
        old.set_hash(WRONG, &sha256_hex("another key")).await;
        old
    }

    async fn set_hash(&self, at: usize, hash: &str) {
        let id = assistant_id(at);
        self.source.run(&format!("UPDATE assistants SET owner_api_key_hash = '{hash}' WHERE id = '{id}'")).await;
    }

    /// Mends the row that is wrong.
    async fn mend(&self) {
        let key = self.assistants[WRONG].as_ref().expect("a row with a key");
        self.set_hash(WRONG, &sha256_hex(key)).await;
    }

    /// Gives every row with a key the hash that can stay in its place: NULL and capitals would not do.
    async fn complete(&self) {
        for table in ["sessions", "assistants"] {
            let hash = "encode(sha256(convert_to(btrim(owner_api_key, E' \\t\\n\\r\\f\\x0b'), 'UTF8')), 'hex')";
            let wrong = format!("owner_api_key_hash IS DISTINCT FROM '{}'", sha256_hex("another key"));
            let set = format!("UPDATE {table} SET owner_api_key_hash = {hash}");
            self.source.run(&format!("{set} WHERE owner_api_key IS NOT NULL AND {wrong}")).await;
        }
    }

    /// Every key once.
    fn keys(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.sessions.iter().chain(&self.assistants).flatten().collect();
        all.into_iter().cloned().collect()
    }
}

/// A row with what time has done to such tables.
fn row(at: usize, owner: Option<&str>, id: String) -> Vec<Cell> {
    let key = owner.map(|key| match at % 97 {
        13 => format!("{key}\n"),
        14 => format!("  {key}"),
        15 => format!("{key}\r\n"),
        16 => format!("\t{key}\u{b}"),
        _ => key.to_owned(),
    });
    let hash = owner.map(sha256_hex).filter(|_| at % 50 != 7);
    let hash = hash.map(|hash| if at % 31 == 3 { hash.to_uppercase() } else { hash });
    vec![cell(id), cell(format!("row {at}")), key, hash]
}

fn session_id(at: usize) -> String {
    (10_000 + at).to_string()
}

fn assistant_id(at: usize) -> String {
    // In no order of making.
    format!("{:08x}-0000-4000-8000-000000000000", at.wrapping_mul(2_654_435_761) % (1 << 32))
}

/// Reads as a role that may only select.
async fn reader<'a>(world: &'a World, old: &Old) -> Import<'a> {
    world.documented(&old.source.reader_url().await, MAPPING)
}

async fn new_world(database: TestDatabase) -> World {
    World::new(database, &documented_slug(MAPPING)).await
}

store_test!(each_distinct_key_of_both_tables_becomes_one_key_and_public_rows_stay_public);
async fn each_distinct_key_of_both_tables_becomes_one_key_and_public_rows_stay_public(database: TestDatabase) {
    let world = new_world(database).await;
    let old = Old::build(&world).await;
    old.mend().await;
    let before = old.source.state().await;
    let import = reader(&world, &old).await;
    let keys = old.keys();
    let in_sessions: BTreeSet<&String> = old.sessions.iter().flatten().collect();
    let of_sessions = in_sessions.len() as u64;
    let of_assistants = keys.len() as u64 - of_sessions;

    for report in [import.plan(&[]), import.run(&[])] {
        let counts = |table: &str| report.table(table).counts(["rows", "created", "duplicates", "skipped", "refused"]);
        assert_eq!(counts("sessions"), [4000, of_sessions, 3600 - of_sessions, 400, 0]);
        assert_eq!(counts("assistants"), [2000, of_assistants, 1800 - of_assistants, 200, 0]);
        let schemes = report.table("sessions").by("schemes");
        assert_eq!(schemes, BTreeMap::from([("plaintext".to_owned(), of_sessions)]));
        assert!(report.table("sessions").by("notes")["TRIMMED"] > 50);
    }
    assert_eq!(world.key_count().await, i64::try_from(keys.len()).expect("few"));
    world.assert_all(&keys, Outcome::Valid).await;
    // Some rows have no hash that could stay, or one in capitals that nobody would look for.
    let incomplete = import.ran(&["verify", "--accept-refused"]);
    assert_eq!(incomplete.code, 1, "{incomplete:?}");
    for word in ["NO_HASH_STAYS", "HASH_MISMATCH"] {
        assert!(incomplete.stderr.contains(word), "{incomplete:?}");
    }
    assert_eq!(old.source.state().await, before, "the source is as it was");
    old.complete().await;
    let before = old.source.state().await;
    let verified = import.verify(&[]);
    assert!(verified.is("passed"));
    assert_eq!(verified.table("sessions").counts(["rows", "matched", "skipped", "mismatches"]), [4000, 3600, 400, 0]);
    assert_eq!(verified.table("sessions").by("outcomes"), BTreeMap::from([("VALID".to_owned(), 3600)]));
    assert_eq!(old.source.state().await, before, "the source is as it was");

    // As it stands in the source, and a little beside it.
    assert_eq!(world.outcome(&format!("{}x", keys[0])).await, Outcome::NotFound);
    assert_eq!(world.outcome(&format!("{}\n", keys[0])).await, Outcome::NotFound);
    assert_eq!(world.outcome(&sha256_hex(&keys[0])).await, Outcome::NotFound);
    world.assert_told_nobody(&keys);
}

store_test!(one_hash_that_is_not_its_keys_fails_the_verification_and_names_the_row);
async fn one_hash_that_is_not_its_keys_fails_the_verification_and_names_the_row(database: TestDatabase) {
    let world = new_world(database).await;
    let old = Old::build(&world).await;
    old.complete().await;
    let import = reader(&world, &old).await;
    let file = world.path("refused.csv");
    let id = assistant_id(WRONG);

    assert_eq!(import.plan(&[]).table("assistants").by("refusals"), one("HASH_MISMATCH"));
    let report = import.run(&["--refused-file", file.to_str().expect("text")]);
    assert_eq!(report.table("assistants").by("refusals"), one("HASH_MISMATCH"));
    let expected = BTreeMap::from([(("assistants".to_owned(), id.clone()), "HASH_MISMATCH".to_owned())]);
    assert_eq!(refused_rows(&file), expected);

    let verified = import.ran(&["verify"]);
    assert_eq!(verified.code, 1, "{verified:?}");
    let named: Vec<&str> = verified.stderr.lines().filter(|line| line.contains("HASH_MISMATCH")).collect();
    assert_eq!(named.len(), 1, "{verified:?}");
    assert!(named[0].contains("assistants") && named[0].contains(&id), "{named:?}");
    world.assert_told_nobody(&old.keys());

    // The other rows of the same key brought it in.
    let key = old.assistants[WRONG].as_ref().expect("a row with a key");
    assert_eq!(world.outcome(key).await, Outcome::Valid);
    old.mend().await;
    assert_eq!(import.run(&[]).table("assistants").by("refusals"), BTreeMap::new());
    assert_eq!(import.ran(&["verify"]).code, 0);
}

fn one(reason: &str) -> BTreeMap<String, u64> {
    BTreeMap::from([(reason.to_owned(), 1)])
}

store_test!(a_key_that_keystead_does_not_have_fails_the_verification);
async fn a_key_that_keystead_does_not_have_fails_the_verification(database: TestDatabase) {
    let world = new_world(database).await;
    let old = Old::build(&world).await;
    old.mend().await;
    old.complete().await;
    let import = reader(&world, &old).await;
    import.run(&[]);
    assert_eq!(import.ran(&["verify"]).code, 0);
    let added = world.keys.text("came later");
    let hash = sha256_hex(&added);
    let row = format!("(99999, 'later', '{added}', '{hash}')");
    old.source.run(&format!("INSERT INTO sessions (id, title, owner_api_key, owner_api_key_hash) VALUES {row}")).await;
    let verified = import.ran(&["verify"]);
    assert_eq!(verified.code, 1, "{verified:?}");
    assert!(verified.stderr.contains("sessions") && verified.stderr.contains("99999"), "{verified:?}");
    world.assert_told_nobody(&[added, hash]);

    // One that is expected to be good, and is not.
    import.run(&[]);
    assert_eq!(import.ran(&["verify"]).code, 0);
    let first = old.sessions[0].as_ref().expect("a row with a key");
    let id = world.present(first).await.key_id;
    world.database.raw_sql(&format!("UPDATE api_keys SET status = 'disabled' WHERE id = '{id}'")).await;
    let verified = import.ran(&["verify"]);
    assert_eq!(verified.code, 1, "{verified:?}");
    let rows = old.sessions.iter().chain(&old.assistants).filter(|key| key.as_ref() == Some(first)).count();
    let named = verified.stderr.lines().filter(|line| line.contains("DISABLED")).count();
    assert_eq!(named, rows, "each row of the key is named: {verified:?}");
}

store_test!(services_compare_owners_by_the_hash_that_stays_or_by_the_keys_id);
async fn services_compare_owners_by_the_hash_that_stays_or_by_the_keys_id(database: TestDatabase) {
    let world = new_world(database).await;
    let old = Old::build(&world).await;
    old.mend().await;
    reader(&world, &old).await.run(&[]);
    let keys = old.keys();
    let answers = world.ask_all(keys.iter().map(|key| presenting(key)).collect()).await;
    let ids: BTreeSet<&String> = answers.iter().map(|answer| &answer.key_id).collect();
    assert_eq!(ids.len(), keys.len(), "an id for each owner");
    for (key, answer) in keys.iter().zip(&answers).step_by(40) {
        let owned = old.sessions.iter().enumerate().filter(|(at, owner)| owner.as_ref() == Some(key) && at % 50 != 7);
        let sql = format!("SELECT count(*) FROM sessions WHERE lower(owner_api_key_hash) = '{}'", sha256_hex(key));
        assert_eq!(old.source.number(&sql).await, i64::try_from(owned.count()).expect("few"));
        assert_eq!(world.present(key).await.key_id, answer.key_id, "the same each time");
    }
}
