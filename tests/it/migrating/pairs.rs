//! Pairs of id and secret: the page's way to present one, and what becomes of a key whose hash nobody has.

use keystead::proto::v1::{GetKeyRequest, KeyStatus, Outcome, VerifyKeyRequest};
use sha2::{Digest as _, Sha256};

use super::Migration;
use crate::harness::cli::Ran;
use crate::harness::page::field;
use crate::harness::{hex, verify};

/// A secret as callers send it.
const SECRET: &str = "cO8vRfYw1kXbT2hQz7LmNp3a";

/// The pairs of `docs/migrating/3-id-and-secret.toml`: one with a hash, one of another owner without.
async fn brought_in() -> Migration {
    let migration = Migration::start("3-id-and-secret.toml", "pairs").await;
    let hash = hex(&Sha256::digest(SECRET));
    migration
        .source
        .raw_sql(&format!(
            "CREATE TABLE api_keys (key_id varchar(64) PRIMARY KEY, secret_fragment_hash varchar(64),
                secret_prefix varchar(20), owner varchar(200), status varchar(20), enabled boolean NOT NULL,
                created_at timestamp NOT NULL, expires_at timestamp);
             INSERT INTO api_keys VALUES
                ('ak_live_1', '{hash}', 'cO8...Np3a', 'ann', 'active', true, '2024-05-06 07:08:09', NULL),
                ('ak_live_2', NULL, 'x9Y...1234', 'bob', 'active', true, '2024-05-06 07:08:09', NULL)"
        ))
        .await;
    migration.shell.run(&["run"]);
    migration
}

fn present(migration: &mut Migration, id: &str, secret: &str) -> Ran {
    migration.shell.set("API_KEY_ID", id);
    migration.shell.set("API_KEY_SECRET", secret);
    migration.shell.try_run(&["pair"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_is_verified_by_the_id_that_its_caller_has_always_sent() {
    let mut migration = brought_in().await;
    let ran = present(&mut migration, "ak_live_1", SECRET);
    assert_eq!((ran.code, field(&ran.stdout, "outcome").as_str()), (0, "VALID"), "{ran:?}");
    let id = field(&ran.stdout, "key_id");
    assert_eq!(present(&mut migration, &id, SECRET).code, 0, "or by the one that Keystead gave it");
    for (id, secret) in [("ak_live_1", "another-secret-of-24-chr"), ("ak_live_3", SECRET)] {
        let ran = present(&mut migration, id, secret);
        assert_eq!((ran.code, field(&ran.stdout, "outcome").as_str()), (1, "NOT_FOUND"), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_without_a_hash_is_listed_by_owner_and_lives_again_by_a_rotation() {
    let mut migration = brought_in().await;
    let id = migration.id_of("api_keys", "ak_live_2").await;
    let listed = migration.shell.run(&["missing"]);
    assert!(listed.lines().any(|line| line.contains("bob") && line.contains(&id)), "{listed}");
    let ran = present(&mut migration, "ak_live_2", SECRET);
    assert_eq!((ran.code, field(&ran.stdout, "outcome").as_str()), (1, "DISABLED"), "{ran:?}");
    let request = GetKeyRequest { key_id: id.clone() };
    let key = migration.server.keys().get_key(request).await.expect("a key").into_inner().key.expect("the key");
    assert_eq!(key.status(), KeyStatus::Disabled);
    assert!(migration.shell.run(&["missing"]).contains(&id), "and after it");

    migration.shell.set("KEY_ID", &id);
    let rotated = migration.shell.run(&["missing-rotate"]);
    let (new, secret) = (field(&rotated, "id"), field(&rotated, "secret"));
    assert_eq!(verify(&migration.server, &secret).await.outcome(), Outcome::Valid);
    let request = VerifyKeyRequest { secret, key_id: Some(new), ..Default::default() };
    let answer = migration.server.keys().verify_key(request).await.expect("an answer").into_inner();
    assert_eq!((answer.outcome(), answer.owner_id.as_str()), (Outcome::Valid, "bob"));
}
