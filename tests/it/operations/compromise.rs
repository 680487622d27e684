//! A key in the wrong hands: found by its secret or its hint, ended, what was done with it seen, and issued anew, by the
//! commands of the page and in their order.

use keystead::proto::v1::{CreateKeyRequest, Environment, Outcome, VerifyKeyRequest};

use super::Replicas;
use super::runbook::field;
use crate::harness::{create_key, create_organization, expect_error, verify};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_key_is_found_ended_looked_into_and_issued_anew() {
    let mut replicas = Replicas::start().await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let scopes = ["keystead.keys.create", "invoices:read"];
    let (key, secret) = create_key(replicas.first(), &organization, &scopes).await;
    // What an intruder does with it: uses it, and makes a key that would outlive it.
    let used = VerifyKeyRequest {
        secret: secret.clone(),
        client_address: "203.0.113.7".to_owned(),
        user_agent: "intruder/1".to_owned(),
        endpoint: "/v1/invoices".to_owned(),
        ..Default::default()
    };
    let outcome = replicas.first().keys().verify_key(used).await.expect("an answer").into_inner().outcome();
    assert_eq!(outcome, Outcome::Valid);
    let made = CreateKeyRequest {
        organization_id: organization.clone(),
        name: "left behind".to_owned(),
        environment: Environment::Live.into(),
        ..Default::default()
    };
    let made = replicas.first().keys_as(&secret).create_key(made).await.expect("a key").into_inner();
    let made = made.key.expect("the key").id;

    replicas.shell.set("SECRET", &secret);
    let found = replicas.shell.run(&["compromise-find-by-secret"]);
    assert_eq!((field(&found, "key_id"), field(&found, "outcome")), (key.id.clone(), "VALID".to_owned()));
    replicas.shell.set("HINT", &key.hint);
    let found = replicas.shell.run(&["compromise-find-by-hint"]);
    assert!(found.contains(&key.id) && found.contains(&organization), "{found}");

    replicas.shell.set("KEY_ID", &key.id);
    replicas.shell.run(&["revoke-command"]);
    replicas.all_have_seen().await;
    replicas.all_say(&secret, Outcome::Revoked).await;

    replicas.shell.set("SINCE", "2000-01-01T00:00:00Z");
    let use_of_it = replicas.shell.run(&["compromise-use"]);
    for part in ["/v1/invoices", "203.0.113.7", "intruder/1", "VALID"] {
        assert!(use_of_it.contains(part), "{part} is not in {use_of_it}");
    }
    let audited = replicas.shell.run(&["compromise-audit"]);
    for part in ["key.revoke", "key.create", &made, "left behind", "head: "] {
        assert!(audited.contains(part), "{part} is not in {audited}");
    }

    replicas.shell.set("ORGANIZATION_ID", &organization);
    replicas.shell.set("NAME", &key.name);
    replicas.shell.set("SCOPE", "invoices:read");
    let issued = replicas.shell.run(&["compromise-reissue"]);
    assert!(issued.contains("KEY_COMPROMISE"), "the old one is shown: {issued}");
    replicas.all_say(&field(&issued, "secret"), Outcome::Valid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_without_overlap_ends_the_old_secret_and_gives_a_new_one_at_once() {
    let mut replicas = Replicas::start().await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let (key, secret) = create_key(replicas.first(), &organization, &["invoices:read"]).await;
    replicas.all_say(&secret, Outcome::Valid).await;
    replicas.shell.set("KEY_ID", &key.id);
    let rotated = replicas.shell.run(&["compromise-rotate"]);
    let new = verify(replicas.first(), &field(&rotated, "secret")).await;
    assert_eq!((new.outcome(), new.scopes.as_slice()), (Outcome::Valid, key.scopes.as_slice()));
    replicas.all_have_seen().await;
    replicas.all_say(&secret, Outcome::Revoked).await;
    let refused = replicas.first().keys_as(&secret).verify_key(VerifyKeyRequest::default()).await;
    expect_error(refused, tonic::Code::Unauthenticated, "UNAUTHENTICATED");
}
