//! The tail: weak keys are listed, owners get a new secret while the old one lives on, and what nobody uses ends.

use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{Environment, ImportKey, ImportKeysRequest, Outcome};
use sha2::{Digest as _, Sha256};

use super::Migration;
use crate::harness::page::field;
use crate::harness::{hex, verify};

/// Keys of an owner, as the rpc brings them in: the ids, and the secrets.
async fn bring_in(migration: &Migration, owner_id: &str, secrets: &[String]) -> Vec<String> {
    let keys = secrets.iter().map(|secret| ImportKey {
        material: Some(Material::Secret(secret.clone())),
        name: format!("of {owner_id}"),
        environment: Environment::Live.into(),
        owner_id: owner_id.to_owned(),
        ..Default::default()
    });
    let request = ImportKeysRequest {
        organization_id: migration.organization.clone(),
        keys: keys.collect(),
        source: "tail".to_owned(),
        allow_weak: true,
        ..Default::default()
    };
    let answer = migration.server.keys().import_keys(request).await.expect("brought in").into_inner();
    answer.results.into_iter().map(|result| result.key_id).collect()
}

fn strong(name: &str) -> String {
    format!("tail_{}", &hex(&Sha256::digest(name))[..32])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weak_keys_are_listed_by_owner() {
    let migration = Migration::start("1-ownership.toml", "tail").await;
    let ids = bring_in(&migration, "ann", &["letmein".to_owned(), strong("one")]).await;
    let listed = migration.shell.run(&["tail-weak"]);
    assert!(listed.contains(&ids[0]) && listed.contains("ann") && !listed.contains(&ids[1]), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_rotation_leaves_the_old_secret_its_overlap_and_the_rest_ends() {
    let mut migration = Migration::start("1-ownership.toml", "tail").await;
    let secrets = ["one", "two", "three", "four"].map(strong);
    let of_ann = bring_in(&migration, "ann", &secrets[..2]).await;
    let of_bob = bring_in(&migration, "bob", &secrets[2..]).await;
    migration.all_are(&secrets, Outcome::Valid).await;

    migration.shell.set("KEY_ID", &of_ann[0]);
    let new = field(&migration.shell.run(&["tail-rotate"]), "secret");
    for secret in [&new, &secrets[0]] {
        assert_eq!(verify(&migration.server, secret).await.outcome(), Outcome::Valid, "both work");
    }
    migration.shell.set("SINCE", "2999-01-01T00:00:00Z");
    let listed = migration.shell.run(&["tail-unused"]);
    assert!(of_ann.iter().chain(&of_bob).all(|id| listed.contains(id)), "{listed}");

    migration.shell.set("OWNER", "bob");
    let ended = migration.shell.run(&["tail-revoke"]);
    assert_eq!(field(&ended, "key_count"), "2");
    migration.all_are(&secrets[2..], Outcome::Revoked).await;
    migration.all_are(&secrets[..2], Outcome::Valid).await;
}
