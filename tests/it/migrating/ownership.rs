//! The source of `docs/migrating/1-ownership.toml`: two tables whose rows belong to whoever holds a key, which stands
//! there in plaintext and as SHA-256. Many rows share a key, some have none, and one has a key that is too weak.

use super::Migration;
use crate::harness::TestDatabase;

/// Rows of each table.
pub const ROWS: i64 = 1500;
/// Different keys of each table that are good enough.
pub const KEYS: usize = 200;
/// The beginning of every key.
pub const BEGINNING: &str = "own_";
/// The key that is too weak, and the row of `sessions` that has it.
pub const WEAK: (&str, i64) = ("own_hunter2", ROWS + 1);

const MAPPING: &str = "1-ownership.toml";
const LABEL: &str = "ownership";

/// Its migration, before anything was brought in.
pub async fn start() -> Migration {
    let migration = Migration::start(MAPPING, LABEL).await;
    fill(&migration.source).await;
    migration
}

/// Its migration, with everything brought in.
pub async fn brought_in() -> Migration {
    let migration = start().await;
    migration.shell.run(&["run"]);
    migration
}

async fn fill(source: &TestDatabase) {
    for table in ["sessions", "assistants"] {
        let hash = "encode(sha256(convert_to(key, 'UTF8')), 'hex')";
        // Every tenth row is public.
        let key = format!("CASE WHEN n % 10 > 0 THEN '{BEGINNING}' || md5('{table} ' || n % {KEYS}) END");
        source
            .raw_sql(&format!(
                "CREATE TABLE {table} (id bigserial PRIMARY KEY, title text NOT NULL, owner_api_key varchar(255),
                    owner_api_key_hash varchar(64), created_at timestamptz NOT NULL DEFAULT now());
                 CREATE INDEX {table}_by_key ON {table} (owner_api_key);
                 CREATE INDEX {table}_by_hash ON {table} (owner_api_key_hash);
                 INSERT INTO {table} (title, owner_api_key, owner_api_key_hash)
                 SELECT 'title ' || n, key, {hash}
                 FROM (SELECT n, {key} AS key FROM generate_series(1, {ROWS}) AS n ORDER BY n) AS rows"
            ))
            .await;
    }
    let (weak, row) = WEAK;
    source
        .raw_sql(&format!(
            "INSERT INTO sessions (id, title, owner_api_key, owner_api_key_hash)
             VALUES ({row}, 'weak', '{weak}', encode(sha256('{weak}'), 'hex'));
             ANALYZE sessions; ANALYZE assistants"
        ))
        .await;
}

/// Every key of a table that is good enough.
pub async fn keys(source: &TestDatabase, table: &str) -> Vec<String> {
    let sql = format!("SELECT string_agg(DISTINCT owner_api_key, ' ') FROM {table} WHERE length(owner_api_key) > 20");
    let keys: Vec<String> = source.query_string(&sql).await.split(' ').map(str::to_owned).collect();
    assert_eq!(keys.len(), KEYS - KEYS / 10, "every tenth row has none");
    keys
}

/// Every key of both.
pub async fn all_keys(source: &TestDatabase) -> Vec<String> {
    [keys(source, "sessions").await, keys(source, "assistants").await].concat()
}
