//! What is stored of a key lets nobody in, and what lets somebody in is stored nowhere: after everything that an import
//! does, no plaintext is in Keystead's database, the logs, the reports or the file of refused rows, and no stored hash,
//! in whatever spelling, is ever taken for the key. Invariant: the search finds what is there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use keystead::proto::v1::{CreateKeyRequest, Environment, Outcome};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::world::{World, argon2, presenting, presenting_pair, refused_rows, sha256_hex, texts_in};
use crate::harness::{TestDatabase, expect_error, hex, store_test};

const MAPPING: &str = r#"
source = "vault"
organization = "acme"

[[keys]]
id = "id"
[keys.columns]
secret = "secret"
sha256-hex = "hex"
sha256-base64 = "base64"
bcrypt = "bcrypt"
argon2 = "argon2"
look-up-id = "starts_with"
name = "name"
scopes = "scopes"
[keys.values]
environment = "live"
"#;

const SCHEMES: [&str; 5] = ["secret", "hex", "base64", "bcrypt", "argon2"];

/// What a source may hold of a key.
fn material(scheme: &str, key: &str) -> String {
    match scheme {
        "secret" => key.to_owned(),
        "hex" => sha256_hex(key),
        "base64" => STANDARD.encode(Sha256::digest(key)),
        "bcrypt" => bcrypt::hash(key, 4).expect("a hash"),
        "argon2" => argon2(key),
        _ => panic!("no such scheme"),
    }
}

/// Rows of every scheme; the last ones are refused.
fn vault(world: &World, rows: usize) -> (Vec<Value>, Vec<String>) {
    let keys = world.keys.texts("vault", rows);
    let row = |(at, key): (usize, &String)| {
        let scheme = SCHEMES[at % SCHEMES.len()];
        let mut row = json!({"id": at, "name": format!("vault key no. {at}"), "starts_with": &key[..9]});
        for other in SCHEMES {
            row[other] = Value::Null;
        }
        row[scheme] = material(scheme, key).into();
        row["scopes"] = if at + 50 >= rows { "not a scope!".into() } else { Value::Null };
        row
    };
    (keys.iter().enumerate().map(row).collect(), keys)
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(ToString::to_string).collect::<Vec<String>>().join("\n")
}

store_test!(no_key_that_was_brought_in_is_in_the_database_or_in_what_anybody_is_told);
async fn no_key_that_was_brought_in_is_in_the_database_or_in_what_anybody_is_told(database: TestDatabase) {
    let mut world = World::new(database, "acme").await;
    let (rows, keys) = vault(&world, 500);
    let path = world.write("vault.jsonl", &lines(&rows));
    let import = world.import(&format!("jsonl:{}", path.display()), MAPPING);
    import.plan(&[]);
    let refused = world.path("refused.csv");
    let report = import.run(&["--refused-file", refused.to_str().expect("text"), "--batch", "64"]);
    assert_eq!(report.table("").counts(["created", "refused"]), [450, 50]);
    // Once as people see it, too.
    for command in [["run"].as_slice(), &["verify"], &["verify", "--accept-refused"], &["contract", "--yes"]] {
        import.ran(command);
    }
    world.status(&["--unseen"]);
    for key in keys.iter().step_by(7) {
        world.present(key).await;
    }
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());

    let hashes: Vec<String> = keys.iter().map(|key| sha256_hex(key)).collect();
    let slow = rows.iter().filter_map(|row| row["bcrypt"].as_str().or(row["argon2"].as_str())).map(str::to_owned);
    let told = [keys.clone(), hashes.clone(), slow.collect()].concat();
    world.assert_told_nobody(&told);

    let bytes = world.database.bytes_at_rest().await;
    let at_rest = [keys, hashes].concat();
    assert_eq!(texts_in(&bytes, &at_rest), Vec::<usize>::new(), "in the database's files");
    let names = ["vault key no. 0", "vault key no. 444"].map(str::to_owned);
    assert_eq!(texts_in(&bytes, &names), [0, 1], "the search finds what is there");
}

store_test!(of_a_key_whose_text_reads_as_a_digest_nothing_is_kept_that_it_can_be_told_from);
async fn of_a_key_whose_text_reads_as_a_digest_nothing_is_kept_that_it_can_be_told_from(database: TestDatabase) {
    let mut world = World::new(database, "acme").await;
    let drawn: Vec<[u8; 32]> = world.keys.texts("drawn", 4).iter().map(|text| Sha256::digest(text).into()).collect();
    let spell = |(at, bytes): (usize, &[u8; 32])| match at {
        0 => STANDARD.encode(bytes),
        1 => URL_SAFE_NO_PAD.encode(bytes),
        2 => hex(bytes),
        _ => hex(bytes).to_uppercase(),
    };
    let keys: Vec<String> = drawn.iter().enumerate().map(spell).collect();
    let row = |(at, key): (usize, &String)| {
        let mut row = json!({"id": at, "name": format!("drawn key no. {at}"), "starts_with": null, "scopes": null});
        for scheme in SCHEMES {
            row[scheme] = Value::Null;
        }
        row["secret"] = key.as_str().into();
        row
    };
    let path = world.write("drawn.jsonl", &lines(&keys.iter().enumerate().map(row).collect::<Vec<Value>>()));
    let report = world.import(&format!("jsonl:{}", path.display()), MAPPING).run(&[]);
    assert_eq!(report.table("").counts(["created"]), [4]);
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());

    let bytes = world.database.bytes_at_rest().await;
    assert_eq!(texts_in(&bytes, &keys), Vec::<usize>::new(), "in the database's files");
    assert_eq!(texts_in(&bytes, &["drawn key no. 3".to_owned()]), [0], "the search finds what is there");
    for (key, drawn) in keys.iter().zip(&drawn) {
        let is_there = |wanted: &[u8]| bytes.windows(32).any(|part| part == wanted);
        assert!(!is_there(drawn), "the bytes that the text says are the key");
        assert!(is_there(&Sha256::digest(key)), "the search finds the digest");
    }
}

/// What somebody could present who has seen the source or Keystead's database.
fn spellings(key: &str, stored: &str) -> Vec<String> {
    let (hex, digest) = (sha256_hex(key), Sha256::digest(key));
    let mut spellings = vec![
        hex.to_uppercase(),
        format!("\\x{hex}"),
        format!("0x{hex}"),
        format!("sha256:{hex}"),
        STANDARD.encode(digest),
        STANDARD_NO_PAD.encode(digest),
        URL_SAFE.encode(digest),
        URL_SAFE_NO_PAD.encode(digest),
        hex,
    ];
    if stored != key {
        spellings.push(stored.to_owned());
    }
    spellings
}

store_test!(a_stored_hash_that_is_presented_lets_nobody_in);
async fn a_stored_hash_that_is_presented_lets_nobody_in(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (rows, keys) = vault(&world, 100);
    let path = world.write("vault.jsonl", &lines(&rows));
    world.import(&format!("jsonl:{}", path.display()), MAPPING).run(&[]);
    // Before and after the first success of those with a slow hash.
    for round in ["before", "after"] {
        for at in 0..10 {
            let stored = rows[at][SCHEMES[at % SCHEMES.len()]].as_str().expect("material");
            let id = world.id_of_row("", &at.to_string()).await.expect("a key");
            for spelling in spellings(&keys[at], stored) {
                for request in [presenting(&spelling), presenting_pair(&id, &spelling)] {
                    let answer = world.ask(request).await;
                    assert_eq!(answer.outcome(), Outcome::NotFound, "row {at}, {round}");
                }
            }
        }
        for (at, key) in keys.iter().enumerate().take(10) {
            assert_eq!(world.outcome(key).await, Outcome::Valid, "row {at}, {round}");
        }
    }
}

store_test!(a_stored_hash_is_no_credential_of_a_caller);
async fn a_stored_hash_is_no_credential_of_a_caller(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (rows, keys) = vault(&world, 100);
    let path = world.write("vault.jsonl", &lines(&rows));
    world.import(&format!("jsonl:{}", path.display()), MAPPING).run(&[]);
    let request = CreateKeyRequest {
        organization_id: world.organization.clone(),
        name: "stolen".to_owned(),
        environment: Environment::Live.into(),
        ..Default::default()
    };
    for at in 0..5 {
        let stored = rows[at][SCHEMES[at]].as_str().expect("material");
        for spelling in spellings(&keys[at], stored) {
            let called = world.server.keys_as(&spelling).create_key(request.clone()).await;
            assert_eq!(called.expect_err("refused").code(), Code::Unauthenticated, "row {at}");
        }
    }
    // A key that was brought in is a caller's as any other, and may nothing until it is let.
    let called = world.server.keys_as(&keys[0]).create_key(request).await;
    expect_error(called, Code::PermissionDenied, "PERMISSION_DENIED");
}

store_test!(an_id_that_is_the_key_itself_is_told_to_nobody);
async fn an_id_that_is_the_key_itself_is_told_to_nobody(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (mut rows, keys) = vault(&world, 2);
    for (row, id) in rows.iter_mut().zip([keys[0].as_str(), "zz"]) {
        row["id"] = id.into();
        row["scopes"] = Value::Null;
    }
    let path = world.write("vault.jsonl", &lines(&rows));
    let url = format!("jsonl:{}", path.display());
    let import = world.import(&url, MAPPING);
    let file = world.path("refused.csv");
    let report = import.run(&["--refused-file", file.to_str().expect("text")]);
    assert_eq!(report.table("").counts(["created", "refused"]), [1, 1]);
    let expected = BTreeMap::from([((String::new(), "-".to_owned()), "BAD_SOURCE_ID".to_owned())]);
    assert_eq!(refused_rows(&file), expected);
    assert_eq!(import.ran(&["verify"]).code, 1);
    world.assert_told_nobody(&keys);
    let bytes = world.database.bytes_at_rest().await;
    assert_eq!(texts_in(&bytes, &keys), Vec::<usize>::new());

    let told = world.import(&url, &MAPPING.replace("id = \"id\"", "id = \"secret\"")).ran(&["run"]);
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.stderr.contains("holds secrets or hashes"), "{told:?}");
}
