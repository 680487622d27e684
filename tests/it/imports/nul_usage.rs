//! A row of past requests whose id has a NUL, which no database can be told as a position: where it is the last one it
//! is met by every run. Invariant: it is refused and named each time, and is not taken for one that is gone.

use super::organizations::{now, written};
use super::world::{Report, World};
use crate::harness::source::{SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test};

const MAPPING: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
[keys.values]
environment = "live"

[[usage]]
table = "requests"
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"
"#;

/// A request with this id, as SQLite writes it.
async fn add(source: &SourceDatabase, id: &str) {
    let time = written(now() - 3600);
    source.run(&format!("INSERT INTO requests (id, key_id, made_at) VALUES ({id}, '1', '{time}')")).await;
}

async fn counts_each_row_once(database: TestDatabase, batch: &str) {
    let world = World::new(database, "acme").await;
    // No other engine has such texts.
    let source = SourceDatabase::new(SourceEngine::Sqlite).await;
    source
        .run(
            "CREATE TABLE client_keys (id text PRIMARY KEY NOT NULL, secret text);
             CREATE TABLE requests (id text PRIMARY KEY NOT NULL, key_id text, made_at text)",
        )
        .await;
    source.insert("client_keys", "id, secret", &[vec![cell("1"), cell(world.keys.text("key"))]]).await;
    // One between others, and two at the end.
    for id in ["'01'", "'02' || char(0)", "'03'", "'98' || char(0)", "'99' || char(0)"] {
        add(&source, id).await;
    }
    let import = world.import(source.url(), MAPPING);
    let run = |expected: [u64; 3]| {
        let ran = import.ran(&["run", "--batch", batch, "--output", "json"]);
        assert!(!ran.stderr.contains("taken"), "all rows were taken, and all are there: {ran:?}");
        assert_eq!(Report::of(&ran).table("requests").counts(["rows", "created", "refused"]), expected);
    };
    run([5, 2, 3]);
    run([2, 0, 2]);
    run([2, 0, 2]);
    add(&source, "'04'").await;
    run([3, 1, 2]);
    run([2, 0, 2]);
    let counted = "SELECT created_count * 100 + refused_count FROM imports WHERE table_name = 'requests'";
    assert_eq!(world.database.query_i64(counted).await, 301, "what the position stands behind");
}

store_test!(a_nul_at_the_end_of_usage_is_counted_once_in_batches_of_one_row);
async fn a_nul_at_the_end_of_usage_is_counted_once_in_batches_of_one_row(database: TestDatabase) {
    counts_each_row_once(database, "1").await;
}

store_test!(a_nul_at_the_end_of_usage_is_counted_once_in_one_batch);
async fn a_nul_at_the_end_of_usage_is_counted_once_in_one_batch(database: TestDatabase) {
    counts_each_row_once(database, "2000").await;
}
