//! The third phase: the plaintext goes from the table, from the disk and from the statistics, and every key works on;
//! owners are compared without it; and the way back gives empty columns.

use keystead::proto::v1::Outcome;

use super::ownership::{self, BEGINNING, ROWS};
use crate::harness::TestDatabase;
use crate::harness::page::{give_database, is_on_disk};

async fn columns(source: &TestDatabase) -> i64 {
    let sql = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'owner_api_key'";
    source.query_i64(sql).await
}

async fn indexes(source: &TestDatabase) -> i64 {
    source.query_i64("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%(owner_api_key)%'").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plaintext_is_nowhere_and_every_key_works_and_the_way_back_is_empty() {
    let migration = ownership::brought_in().await;
    let source = &migration.source;
    let keys = ownership::all_keys(source).await;
    let refused = migration.shell.try_run(&["contract"]);
    assert_eq!(refused.code, 1, "nothing was verified: {refused:?}");
    assert_eq!((columns(source).await, indexes(source).await), (2, 2));

    let told = migration.shell.run(&["verify-accepted", "contract"]);
    assert!(told.contains("sessions") && told.contains("assistants"), "{told}");
    assert_eq!((columns(source).await, indexes(source).await), (0, 0));
    for place in ["sessions", "assistants"] {
        assert!(is_on_disk(source, place, BEGINNING).await, "{place} would not have to be rewritten");
    }
    migration.shell.run(&["contract-rewrite"]);
    for place in ["sessions", "assistants", "pg_statistic"] {
        assert!(!is_on_disk(source, place, BEGINNING).await, "{place}");
    }
    assert_eq!(source.query_i64("SELECT count(*) FROM sessions").await, ROWS + 1);
    migration.all_are(&keys, Outcome::Valid).await;

    let told = migration.shell.try_run(&["rollback-contract"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.stderr.contains("cannot come back"), "{told:?}");
    assert_eq!((columns(source).await, indexes(source).await), (2, 2));
    assert_eq!(source.query_i64("SELECT count(owner_api_key) FROM sessions").await, 0, "every value is NULL");
    migration.all_are(&keys, Outcome::Valid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_are_compared_by_the_hash_that_stays_or_by_the_id_of_the_key() {
    let mut migration = ownership::brought_in().await;
    let secret = migration.source.query_string("SELECT owner_api_key FROM sessions WHERE id = 1").await;
    let rows = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM sessions";
    let owned = migration.source.query_string(&format!("{rows} WHERE owner_api_key = '{secret}'")).await;
    assert!(owned.contains(' '), "many rows share a key: {owned}");
    migration.shell.run(&["verify-accepted", "contract"]);

    migration.shell.set("SECRET", &secret);
    let printed = migration.shell.run(&["owner-by-hash"]);
    assert_eq!(printed.split_whitespace().collect::<Vec<_>>().join(" "), owned);
    migration.shell.run(&["owner-by-key-id"]);
    let id = migration.id_of("sessions", "1").await;
    assert_eq!(migration.source.query_string(&format!("{rows} WHERE owner_key_id = '{id}'")).await, owned);
    let without = "SELECT count(*) FROM sessions WHERE owner_key_id IS NULL AND owner_api_key_hash IS NOT NULL";
    assert_eq!(migration.source.query_i64(without).await, 1, "the row whose key was refused");
    assert!(!migration.shell.file("key-ids.tsv").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_that_were_not_rewritten_are_told_and_the_owner_of_the_database_may_rewrite_them() {
    let mut migration = ownership::start().await;
    // As the owner of the tables, and of the database until it is given away.
    migration.shell.set("SOURCE_ADMIN_URL", &migration.source.url);
    let owner =
        migration.source.query_string("SELECT tableowner::text FROM pg_tables WHERE tablename = 'sessions'").await;
    give_database(&migration.source, "postgres").await;
    let ran = migration.shell.try_run(&["contract-rewrite"]);
    assert!(ran.code != 0 && ran.stderr.contains("not rewritten: pg_statistic"), "{ran:?}");

    give_database(&migration.source, &owner).await;
    migration.shell.run(&["contract-rewrite"]);
}
