//! Rows with far more metadata than Keystead keeps: 10 MB of JSON in one field, in every kind of source. Invariant:
//! what a row holds besides its key never costs the key, and is never fetched whole.

use keystead::proto::v1::Outcome;
use serde_json::json;

use super::world::World;
use crate::harness::source::{SourceDatabase, SourceEngine, cell};
use crate::harness::{Engine, TestDatabase};

const MAPPING: &str = r#"
source = "heavy"
organization = "acme"

[[keys]]
TABLE
id = "id"
[keys.columns]
secret = "secret"
name = "name"
metadata = "metadata"
[keys.values]
environment = "live"
"#;

const MEGABYTE: usize = 1 << 20;
const HEAVY_ROWS: usize = 3;

/// 10 MB of JSON, and a field that would fit by itself.
fn heavy() -> String {
    json!({"team": "billing", "blob": "x".repeat(10 * MEGABYTE)}).to_string()
}

fn mapping(table: &str) -> String {
    MAPPING.replace("TABLE", table)
}

/// Brings in rows with 10 MB of metadata each, and light ones among them.
async fn keeps_the_key(world: &World, url: &str, mapping: &str, table: &str, keys: &[String]) {
    let import = world.import(url, mapping);
    assert_eq!(import.plan(&[]).table(table).count("created"), keys.len() as u64);
    let report = import.run(&[]);
    assert_eq!(report.table(table).counts(["created", "refused"]), [keys.len() as u64, 0]);
    assert_eq!(report.table(table).by("notes").get("METADATA_CUT"), Some(&(HEAVY_ROWS as u64)));
    for (at, key) in keys.iter().enumerate() {
        let answer = world.present(key).await;
        assert_eq!((answer.outcome(), answer.name), (Outcome::Valid, format!("row {at}")));
        let expected = if at % 2 == 0 { None } else { Some("billing") };
        assert_eq!(answer.metadata.get("team").map(String::as_str), expected, "row {at}");
        assert!(answer.metadata.len() <= 1);
    }
    assert!(import.verify(&[]).is("passed"));
}

fn metadata_of(at: usize, heavy: &str) -> String {
    if at.is_multiple_of(2) { heavy.to_owned() } else { r#"{"team": "billing"}"#.to_owned() }
}

async fn of_database(engine: SourceEngine, keystead: Engine) {
    let world = World::new(TestDatabase::new(keystead).await, "acme").await;
    let source = SourceDatabase::new(engine).await;
    let (key, text) = match engine {
        SourceEngine::Sqlite => ("INTEGER PRIMARY KEY NOT NULL", "TEXT"),
        SourceEngine::Postgres => ("bigint PRIMARY KEY", "jsonb"),
        SourceEngine::MariaDb => ("BIGINT NOT NULL PRIMARY KEY", "LONGTEXT"),
    };
    source.run(&format!("CREATE TABLE heavy (id {key}, name VARCHAR(99), secret VARCHAR(99), metadata {text})")).await;
    let keys = world.keys.texts("heavy", 2 * HEAVY_ROWS);
    let heavy = heavy();
    for (at, key) in keys.iter().enumerate() {
        let row = vec![cell((at + 1).to_string()), cell(format!("row {at}")), cell(key), cell(metadata_of(at, &heavy))];
        source.insert("heavy", "id, name, secret, metadata", &[row]).await;
    }
    let url = source.reader_url().await;
    keeps_the_key(&world, &url, &mapping("table = \"heavy\""), "heavy", &keys).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_of_metadata_in_sqlite_cost_no_key() {
    of_database(SourceEngine::Sqlite, Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_of_metadata_in_postgresql_cost_no_key() {
    of_database(SourceEngine::Postgres, Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_of_metadata_in_mariadb_cost_no_key() {
    of_database(SourceEngine::MariaDb, Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_of_metadata_in_csv_cost_no_key() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
    let keys = world.keys.texts("heavy", 2 * HEAVY_ROWS);
    let heavy = heavy();
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["id", "name", "secret", "metadata"]).expect("written");
    for (at, key) in keys.iter().enumerate() {
        let record = [at.to_string(), format!("row {at}"), key.clone(), metadata_of(at, &heavy)];
        writer.write_record(record).expect("written");
    }
    let text = String::from_utf8(writer.into_inner().expect("flushed")).expect("text");
    let path = world.write("heavy.csv", &text);
    keeps_the_key(&world, &format!("csv:{}", path.display()), &mapping(""), "", &keys).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_of_metadata_in_json_lines_cost_no_key() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
    let keys = world.keys.texts("heavy", 2 * HEAVY_ROWS);
    let heavy = heavy();
    let lines = keys.iter().enumerate().map(|(at, key)| {
        let metadata: serde_json::Value = serde_json::from_str(&metadata_of(at, &heavy)).expect("JSON");
        json!({"id": at, "name": format!("row {at}"), "secret": key, "metadata": metadata}).to_string()
    });
    let path = world.write("heavy.jsonl", &lines.collect::<Vec<String>>().join("\n"));
    keeps_the_key(&world, &format!("jsonl:{}", path.display()), &mapping(""), "", &keys).await;
}
