//! Keys that come from a file, through standard input or by the rpc, as the page shows it.

use std::ops::Range;

use keystead::proto::v1::Outcome;
use sha2::{Digest as _, Sha256};

use super::Migration;
use crate::harness::{hex, tools};

const MAPPING: &str = r#"
source = "export"
organization = "acme"

[[keys]]
id = "id"
[keys.columns]
secret = "api_key"
owner-id = "email"
[keys.values]
environment = "live"
"#;

fn keys(beginning: &str) -> Vec<String> {
    (0..30).map(|at| format!("{beginning}{}", &hex(&Sha256::digest(format!("{beginning}{at}")))[..32])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_from_a_file_and_through_standard_input() {
    let mut migration = Migration::start("1-ownership.toml", "export").await;
    let mapping = migration.shell.write("csv-mapping.toml", MAPPING);
    migration.shell.set_path("CSV_MAPPING", &mapping);
    let (of_file, of_query) = (keys("file_"), keys("query_"));
    let rows: Vec<String> =
        of_file.iter().enumerate().map(|(at, key)| format!("{at},{key},ann@example.com\n")).collect();
    migration.shell.write("keys.csv", &format!("id,api_key,email\n{}", rows.concat()));
    migration.shell.run(&["source-csv"]);
    migration.all_are(&of_file, Outcome::Valid).await;

    let rows: Vec<String> =
        of_query.iter().enumerate().map(|(at, key)| format!("({}, '{key}', 'bob@example.com')", at + 1000)).collect();
    migration.source.raw_sql("CREATE TABLE clients (id bigint PRIMARY KEY, api_key text, email text)").await;
    migration.source.raw_sql(&format!("INSERT INTO clients VALUES {}", rows.join(", "))).await;
    for _ in 0..2 {
        migration.shell.run(&["source-standard-input"]);
        migration.all_are(&[of_file.clone(), of_query.clone()].concat(), Outcome::Valid).await;
    }
    let count = "SELECT count(*) FROM api_keys WHERE import_id IS NOT NULL";
    assert_eq!(migration.database.query_i64(count).await, 60, "a repeat brings nothing in twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_the_last_row_of_a_killed_run_comes_in_behind_a_row_with_its_id_alone() {
    let mut migration = Migration::start("1-ownership.toml", "export").await;
    let mapping = migration.shell.write("csv-mapping.toml", MAPPING);
    migration.shell.set_path("CSV_MAPPING", &mapping);
    let all = keys("file_");
    let give = |first: &str, rows: Range<usize>| {
        let rows: Vec<String> = rows.map(|at| format!("{at},{},\n", all[at])).collect();
        migration.shell.write("keys.csv", &format!("id,api_key,email\n{first}{}", rows.concat()))
    };
    let existing = "SELECT existing_count FROM imports";
    give("", 0..10);
    migration.shell.run(&["source-csv"]);
    // As though it had been killed before it could note its end.
    migration.database.raw_sql("UPDATE imports SET state = 'running'").await;

    give("", 10..30);
    let ran = migration.shell.try_run(&["source-csv"]);
    assert!(ran.code == 1 && ran.stderr.contains("no row has the id \"9\""), "{ran:?}");
    give("9,,\n", 10..30);
    migration.shell.run(&["source-csv"]);
    migration.all_are(&all, Outcome::Valid).await;
    assert_eq!(migration.database.query_i64(existing).await, 0, "it went on");
    give("", 10..30);
    migration.shell.run(&["source-csv"]);
    assert_eq!(migration.database.query_i64(existing).await, 20, "it began anew");
    let count = "SELECT count(*) FROM api_keys WHERE import_id IS NOT NULL";
    assert_eq!(migration.database.query_i64(count).await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_by_the_rpc_and_a_repeat_does_no_harm() {
    if tools::grpcurl().is_none() {
        eprintln!("!!! CLIENT NOT TRIED: grpcurl");
        return;
    }
    let mut migration = Migration::start("1-ownership.toml", "billing").await;
    let secret = keys("rpc_")[0].clone();
    migration.shell.set("HASH", hex(&Sha256::digest(&secret)));
    let printed = migration.shell.run(&["source-rpc"]);
    assert!(printed.contains("IMPORT_RESULT_CREATED"), "{printed}");
    migration.all_are(&[secret], Outcome::Valid).await;
    let printed = migration.shell.run(&["source-rpc"]);
    assert!(printed.contains("IMPORT_RESULT_ALREADY_IMPORTED"), "{printed}");
}
