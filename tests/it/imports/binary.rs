//! Columns of bytes, which some systems keep keys and hashes in so that the database compares them exactly. Invariant:
//! the bytes of a text are that text, never a spelling of them, and what are no such bytes is refused: nobody's key
//! comes in as something that no client has.

use keystead::proto::v1::Outcome;
use sha2::{Digest as _, Sha256};

use super::world::{World, refused_rows};
use crate::harness::source::{SourceDatabase, SourceEngine};
use crate::harness::{TestDatabase, hex, store_test};

const MAPPING: &str = r#"
source = "bytes"
organization = "acme"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
sha256-hex = "digest"
bcrypt = "bcrypt_hash"
look-up-id = "public_part"
[keys.values]
environment = "live"
"#;

/// `k1` is a key, `k2` a digest, `k3` a bcrypt hash with the beginning of its key; the others are bytes of no text.
async fn build(world: &World, engine: SourceEngine) -> SourceDatabase {
    let source = SourceDatabase::new(engine).await;
    let (bytes, literal): (&str, fn(&[u8]) -> String) = match engine {
        SourceEngine::Postgres => ("bytea", |bytes| format!("'\\x{}'", hex(bytes))),
        SourceEngine::Sqlite => ("blob", |bytes| format!("x'{}'", hex(bytes))),
        SourceEngine::MariaDb => ("varbinary(255)", |bytes| format!("x'{}'", hex(bytes))),
    };
    let columns = ["secret", "digest", "bcrypt_hash", "public_part"].map(|name| format!("{name} {bytes}")).join(", ");
    source.run(&format!("CREATE TABLE client_keys (id varchar(20) PRIMARY KEY NOT NULL, {columns})")).await;
    let third = world.keys.text("third");
    let hash = bcrypt::hash(&third, 4).expect("a hash");
    let digest: [u8; 32] = Sha256::digest(world.keys.text("second")).into();
    let first = world.keys.text("first");
    let rows: [(&str, [Option<&[u8]>; 4]); 5] = [
        ("k1", [Some(first.as_bytes()), None, None, None]),
        ("k2", [None, Some(&digest), None, None]),
        ("k3", [None, None, Some(hash.as_bytes()), Some(&third.as_bytes()[..9])]),
        ("k4", [Some(b"sk_\xff\xfe_no_text_at_all_0123456789"), None, None, None]),
        ("k5", [Some(b"sk_padded_with_nothing_0123456789\0\0\0"), None, None, None]),
    ];
    for (id, values) in rows {
        let values = values.map(|value| value.map_or_else(|| "NULL".to_owned(), literal)).join(", ");
        source.run(&format!("INSERT INTO client_keys VALUES ('{id}', {values})")).await;
    }
    source
}

async fn come_in_as_the_text_that_they_are(database: TestDatabase, engine: SourceEngine) {
    let world = World::new(database, "acme").await;
    let source = build(&world, engine).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let file = world.path("refused.csv");
    let report = import.run(&["--refused-file", file.to_str().expect("text")]);
    assert_eq!(report.table("client_keys").counts(["rows", "created", "refused"]), [5, 3, 2]);
    let refused: Vec<(String, String)> = refused_rows(&file).into_iter().map(|((_, id), why)| (id, why)).collect();
    let bad = [("k4", "BAD_SECRET"), ("k5", "BAD_SECRET")].map(|(id, why)| (id.to_owned(), why.to_owned()));
    assert_eq!(refused, bad);
    assert!(import.verify(&["--accept-refused"]).is("passed"));
    let secrets = ["first", "second", "third"].map(|name| world.keys.text(name));
    world.assert_all(&secrets, Outcome::Valid).await;
    let spelled = format!("\\x{}", hex(secrets[0].as_bytes()));
    assert_eq!(world.outcome(&spelled).await, Outcome::NotFound);
    world.assert_told_nobody(&secrets);
}

store_test!(keys_in_a_column_of_bytes_come_in_as_the_text_that_they_are);
async fn keys_in_a_column_of_bytes_come_in_as_the_text_that_they_are(database: TestDatabase) {
    let engine = database.engine.into();
    come_in_as_the_text_that_they_are(database, engine).await;
}

store_test!(keys_in_a_column_of_bytes_of_mariadb_come_in_as_the_text_that_they_are);
async fn keys_in_a_column_of_bytes_of_mariadb_come_in_as_the_text_that_they_are(database: TestDatabase) {
    come_in_as_the_text_that_they_are(database, SourceEngine::MariaDb).await;
}
