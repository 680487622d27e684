//! The last phase of the first system: the plaintext goes, with its indexes, in one transaction. Refused unless every
//! row was verified as it is now and the operator says so; `--down` gives the columns back, and nothing that was in
//! them.

use keystead::proto::v1::Outcome;
use sea_orm::ConnectionTrait as _;

use super::{MAPPING, Old, TestDatabase, World, new_world, presenting, reader, sha256_hex};
use crate::harness::source::SourceDatabase;
use crate::harness::store_test;

/// Columns of the tables, with their types.
const COLUMNS: &str = "SELECT string_agg(concat_ws(' ', table_name, column_name, data_type, character_maximum_length, \
     is_nullable), '; ' ORDER BY table_name, column_name) FROM information_schema.columns \
     WHERE table_schema = 'public' AND table_name IN ('sessions', 'assistants')";
const INDEXES: &str =
    "SELECT string_agg(indexdef, '; ' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'public'";
const PLAINTEXT_COLUMNS: &str = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'owner_api_key'";
const PLAINTEXT_INDEXES: &str = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public' \
     AND indexdef ~ 'owner_api_key([^_]|$)' ";

async fn shape(source: &SourceDatabase) -> (String, String) {
    (source.text(COLUMNS).await, source.text(INDEXES).await)
}

async fn plaintext_left(source: &SourceDatabase) -> (i64, i64) {
    (source.number(PLAINTEXT_COLUMNS).await, source.number(PLAINTEXT_INDEXES).await)
}

/// A world in which everything was brought in, and what the owner of the tables may do.
async fn expanded(database: TestDatabase) -> (World, Old) {
    let world = new_world(database).await;
    let old = Old::build(&world).await;
    old.mend().await;
    old.complete().await;
    reader(&world, &old).await.run(&[]);
    (world, old)
}

store_test!(contract_is_refused_until_every_row_was_verified_as_it_is_and_somebody_says_so);
async fn contract_is_refused_until_every_row_was_verified_as_it_is_and_somebody_says_so(database: TestDatabase) {
    let (world, old) = expanded(database).await;
    let owner = world.documented(old.source.url(), MAPPING);
    let refused = async |why: &str, arguments: &[&str]| {
        let before = old.source.state().await;
        let ran = owner.ran(arguments);
        assert_eq!(ran.code, 1, "{why}: {ran:?}");
        assert_eq!(old.source.state().await, before, "{why}: nothing was changed");
        assert_eq!(plaintext_left(&old.source).await, (2, 4), "{why}");
    };
    refused("not verified", &["contract", "--yes"]).await;

    old.set_hash(super::WRONG, &sha256_hex("another key")).await;
    assert_eq!(owner.ran(&["verify"]).code, 1);
    refused("verified as wrong", &["contract", "--yes"]).await;

    old.mend().await;
    assert_eq!(owner.ran(&["verify"]).code, 0);
    refused("nobody agrees", &["contract"]).await;

    // The data is another one than was verified: a value, a row more, a row less.
    for (change, undo) in [
        (
            "UPDATE sessions SET owner_api_key_hash = NULL WHERE id = 10000",
            Some(
                "UPDATE sessions SET owner_api_key_hash = encode(sha256(convert_to(owner_api_key, 'UTF8')), 'hex') \
                 WHERE id = 10000",
            ),
        ),
        ("INSERT INTO sessions (id, title) VALUES (1, 'public')", Some("DELETE FROM sessions WHERE id = 1")),
        ("DELETE FROM assistants WHERE name = 'row 0'", None),
    ] {
        assert_eq!(owner.ran(&["verify"]).code, 0);
        old.source.run(change).await;
        refused(change, &["contract", "--yes"]).await;
        if let Some(undo) = undo {
            old.source.run(undo).await;
        }
    }

    // What Keystead has is another thing by now.
    assert_eq!(owner.ran(&["verify"]).code, 0);
    let first = old.sessions[0].as_ref().expect("a row with a key");
    let id = world.present(first).await.key_id;
    let set = |status: &str| format!("UPDATE api_keys SET status = '{status}' WHERE id = '{id}'");
    world.database.raw_sql(&set("disabled")).await;
    refused("a key is disabled that should be valid", &["contract", "--yes"]).await;
    world.database.raw_sql(&set("active")).await;

    // A verification that fails takes back the one before it.
    assert_eq!(owner.ran(&["verify"]).code, 0);
    old.set_hash(super::WRONG, &sha256_hex("another key")).await;
    assert_eq!(owner.ran(&["verify"]).code, 1);
    old.mend().await;
    refused("the last verification failed", &["contract", "--yes"]).await;
    world.assert_told_nobody(&old.keys());
}

store_test!(contract_drops_the_plaintext_of_all_tables_in_one_transaction);
async fn contract_drops_the_plaintext_of_all_tables_in_one_transaction(database: TestDatabase) {
    let (world, old) = expanded(database).await;
    let keys = old.keys();
    let ids = |answers: Vec<keystead::proto::v1::VerifyKeyResponse>| -> Vec<String> {
        answers.into_iter().map(|answer| answer.key_id).collect()
    };
    let requests = || keys.iter().map(|key| presenting(key)).collect();
    let before = ids(world.ask_all(requests()).await);
    let shape_before = shape(&old.source).await;
    assert_eq!(plaintext_left(&old.source).await, (2, 4));
    assert_eq!(reader(&world, &old).await.ran(&["verify"]).code, 0);
    old.source.log_structure().await;

    let owner = world.documented(old.source.url(), MAPPING);
    let ran = owner.ran(&["contract", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for shown in ["sessions_owner_api_key", "DROP INDEX", "DROP COLUMN", "owner_api_key"] {
        assert!(ran.stderr.contains(shown), "the statements are shown first: {ran:?}");
    }
    assert_eq!(plaintext_left(&old.source).await, (0, 0));
    let log = |what: &str| format!("SELECT {what} FROM structure_log");
    assert_eq!(old.source.number(&log("count(DISTINCT transaction)")).await, 1, "one transaction");
    assert_eq!(old.source.text(&log("string_agg(DISTINCT statement_timeout, ',')")).await, "30s");
    assert_eq!(old.source.text(&log("string_agg(DISTINCT lock_timeout, ',')")).await, "5s");
    assert_eq!(old.source.number(&log("count(*) FILTER (WHERE command = 'DROP INDEX')")).await, 4);
    assert_eq!(old.source.number("SELECT count(*) FROM sessions").await, 4000, "rows stay");

    // Services compare by what stays.
    let first = old.sessions[0].as_ref().expect("a row with a key");
    let sessions = format!("SELECT count(*) FROM sessions WHERE owner_api_key_hash = '{}'", sha256_hex(first));
    assert!(old.source.number(&sessions).await > 0);
    assert_eq!(ids(world.ask_all(requests()).await), before, "each key is what it was");
    world.assert_all(&keys, Outcome::Valid).await;
    let status = world.status(&[]);
    let imports = status["imports"].as_array().expect("imports");
    assert!(imports.iter().all(|import| import["contracted"]["dropped"] == true), "{status}");

    // What went cannot be read again.
    let again = owner.ran(&["run"]);
    assert!(again.code == 1 || again.code == 2, "{again:?}");
    world.assert_all(&keys, Outcome::Valid).await;

    let down = owner.ran(&["contract", "--down", "--yes"]);
    assert_eq!(down.code, 0, "{down:?}");
    assert!(down.stderr.contains("cannot come back"), "{down:?}");
    assert_eq!(shape(&old.source).await, shape_before, "columns and indexes are as they were");
    for table in ["sessions", "assistants"] {
        let left = format!("SELECT count(*) FROM {table} WHERE owner_api_key IS NOT NULL");
        assert_eq!(old.source.number(&left).await, 0, "the keys themselves are gone");
    }
    world.assert_told_nobody(&keys);
}

store_test!(contract_that_cannot_have_one_table_leaves_all_of_them);
async fn contract_that_cannot_have_one_table_leaves_all_of_them(database: TestDatabase) {
    let (world, old) = expanded(database).await;
    let owner = world.documented(old.source.url(), MAPPING);
    assert_eq!(owner.ran(&["verify"]).code, 0);
    old.source.run("CREATE TABLE other (number bigint)").await;
    let before = old.source.state().await;
    // A service that reads the second table for a long time.
    let reading = old.source.lock("other").await;
    reading.execute_unprepared("LOCK TABLE assistants IN ACCESS SHARE MODE").await.expect("nobody is in the way");
    let ran = owner.ran(&["contract", "--yes"]);
    assert!([1, 3].contains(&ran.code), "{ran:?}");
    reading.close().await.expect("the lock is let go");
    assert_eq!(old.source.state().await, before, "nothing was changed");
    assert_eq!(owner.ran(&["contract", "--yes"]).code, 0, "the same, now that nobody is in its way");
    assert_eq!(plaintext_left(&old.source).await, (0, 0));
}
