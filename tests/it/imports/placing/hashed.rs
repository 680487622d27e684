//! A row that came with its key, and of which the source keeps only a bcrypt hash since: a half-migrated system goes on
//! migrating. Its key stays as it came. Whether the hash is of the same key nobody can tell who has not the key.
//! Invariant: such a row never counts as compared, and its column is not dropped unless somebody accepts it.

use keystead::proto::v1::Outcome;
use serde_json::json;

use super::{Cell, SourceDatabase, TestDatabase, World, cell};
use crate::harness::store_test;
use crate::imports::world::counts;

const MAPPING: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
secret = "api_key"
bcrypt = "api_key_hash"
[keys.values]
environment = "live"
[keys.contract]
drop = ["api_key"]
"#;

store_test!(a_row_that_was_hashed_since_it_came_passes_only_where_that_is_accepted);
async fn a_row_that_was_hashed_since_it_came_passes_only_where_that_is_accepted(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = SourceDatabase::new(world.database.engine).await;
    source.run("CREATE TABLE clients (id bigint PRIMARY KEY NOT NULL, api_key text, api_key_hash text)").await;
    let keys = world.keys.texts("client", 3);
    let row = |(at, key): (usize, &String)| -> Vec<Cell> { vec![cell(at.to_string()), cell(key), None] };
    source.insert("clients", "id, api_key, api_key_hash", &keys.iter().enumerate().map(row).collect::<Vec<_>>()).await;
    let import = world.import(source.url(), MAPPING);
    import.run(&[]);
    assert_eq!(import.verify(&[]).table("clients").by("outcomes"), counts(&[("VALID", 3)]));

    // One hash is of the key that came, and one of another: to Keystead both look alike.
    let hashes = [keys[1].clone(), world.keys.text("another")].map(|key| bcrypt::hash(key, 4).expect("a hash"));
    for (at, hash) in (1..).zip(&hashes) {
        let set = format!("UPDATE clients SET api_key = NULL, api_key_hash = '{hash}' WHERE id = {at}");
        source.run(&set).await;
    }
    assert_eq!(import.run(&[]).table("clients").counts(["created", "existing", "refused"]), [0, 3, 0]);
    // That somebody has changed the key here since says nothing about its hash.
    let id = world.present(&keys[1]).await.key_id;
    world.database.raw_sql(&format!("UPDATE api_keys SET etag = etag + 1 WHERE id = '{id}'")).await;

    let strict = import.ran(&["verify", "--output", "json"]);
    assert_eq!(strict.code, 1, "{strict:?}");
    let report = strict.any_json();
    let table = &report["tables"][0];
    assert_eq!((&table["matched"], &table["accepted"], &table["mismatches"]), (&json!(1), &json!(0), &json!(2)));
    assert_eq!(table["reasons"], json!({"HASHED_SINCE": 2}));
    for at in [1, 2] {
        let line = strict.stderr.lines().find(|line| line.contains(&format!("row {at}: HASHED_SINCE")));
        assert!(line.is_some_and(|line| line.contains("--accept-refused")), "row {at}: {strict:?}");
    }
    assert_eq!(import.ran(&["contract", "--yes"]).code, 1, "nobody has accepted it");
    assert_eq!(source.number("SELECT count(api_key) FROM clients").await, 1, "nothing was dropped");

    let accepted = import.verify(&["--accept-refused"]);
    assert!(accepted.is("passed"));
    let table = accepted.table("clients");
    assert_eq!(table.counts(["rows", "matched", "accepted", "mismatches"]), [3, 1, 2, 0]);
    assert_eq!((table.by("outcomes"), table.by("reasons")), (counts(&[("VALID", 1)]), counts(&[("HASHED_SINCE", 2)])));
    let dropped = import.ran(&["contract", "--yes"]);
    assert_eq!(dropped.code, 0, "{dropped:?}");
    world.assert_all(&keys, Outcome::Valid).await;
    world.assert_told_nobody(&[keys, hashes.to_vec()].concat());
}
