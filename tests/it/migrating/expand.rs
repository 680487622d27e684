//! The first phase: a reader is made, the import is planned, run, repeated and verified, by the commands of the page and
//! in their order, and the source keeps every row.

use std::fs;

use keystead::proto::v1::Outcome;

use super::ownership::{self, ROWS, WEAK};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_comes_in_through_a_reader_and_is_verified_and_a_repeat_changes_nothing() {
    let mut migration = ownership::start().await;
    let (source, keys) = (&migration.source, ownership::all_keys(&migration.source).await);
    migration.shell.set("READER_PASSWORD", "only-to-read");
    migration.shell.run(&["reader"]);
    let (_, place) = source.url.split_once('@').expect("a URL with a user");
    migration.shell.set("KEYSTEAD_SOURCE_URL", format!("postgres://keystead_reader:only-to-read@{place}"));

    let planned = migration.shell.run(&["plan"]);
    for part in ["sessions", "assistants", "plaintext", "WEAK_SECRET"] {
        assert!(planned.contains(part), "{part} is not in {planned}");
    }
    let count = "SELECT count(*) FROM api_keys WHERE import_id IS NOT NULL";
    assert_eq!(migration.database.query_i64(count).await, 0, "a plan writes nothing");

    let ran = migration.shell.run(&["run"]);
    assert!(ran.contains("WEAK_SECRET"), "{ran}");
    let refused = fs::read_to_string(migration.shell.file("refused.csv")).expect("the file of refused rows");
    let row = format!("sessions,{},WEAK_SECRET,", WEAK.1);
    assert_eq!(refused.lines().filter(|line| line.starts_with(&row)).count(), 1, "{refused}");
    assert!(!refused.contains(WEAK.0), "no key is in it: {refused}");
    migration.all_are(&keys, Outcome::Valid).await;
    migration.all_are(&[WEAK.0.to_owned()], Outcome::NotFound).await;
    assert_eq!(migration.database.query_i64(count).await, i64::try_from(keys.len()).expect("few"));

    let differs = migration.shell.try_run(&["verify"]);
    assert_eq!(differs.code, 1, "{differs:?}");
    let row = format!("row {}: REFUSED: WEAK_SECRET", WEAK.1);
    assert!(differs.stderr.contains(&row) && !differs.stderr.contains(WEAK.0), "{differs:?}");
    let verified = migration.shell.run(&["verify-accepted"]);
    assert!(verified.contains("VALID"), "{verified}");
    let clear = format!("UPDATE sessions SET owner_api_key = NULL, owner_api_key_hash = NULL WHERE id = {}", WEAK.1);
    source.raw_sql(&clear).await;
    migration.shell.run(&["run", "verify"]);
    assert_eq!(migration.database.query_i64(count).await, i64::try_from(keys.len()).expect("few"));
    assert_eq!(source.query_i64("SELECT count(*) FROM sessions").await, ROWS + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_named_by_its_row_and_never_by_its_key() {
    let migration = ownership::brought_in().await;
    let other = "UPDATE sessions SET owner_api_key_hash = encode(sha256('another'), 'hex') WHERE id = 1";
    migration.source.raw_sql(other).await;
    let ran = migration.shell.try_run(&["verify-accepted"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("table sessions, row 1: REFUSED: HASH_MISMATCH"), "{}", ran.stderr);
    let told = format!("{}{}", ran.stdout, ran.stderr);
    assert!(!told.contains(ownership::BEGINNING), "{told}");
}
