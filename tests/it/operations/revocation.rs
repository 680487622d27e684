//! Ending keys in a hurry, by each of the ways that the page gives, with two replicas that have the key in their caches:
//! once the page's own command says that a replica has it, that replica says `REVOKED`.

use keystead::proto::v1::Outcome;

use super::runbook::field;
use super::{Replicas, ask, key_of};
use crate::harness::{Engine, Fault, Proxy, TestDatabase, cli, create_key, create_organization, tools, wait_until};

async fn ends_everywhere(way: &str) {
    let mut replicas = Replicas::start().await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let (key, secret) = create_key(replicas.first(), &organization, &[]).await;
    let (_, other) = create_key(replicas.first(), &organization, &[]).await;
    replicas.all_say(&secret, Outcome::Valid).await;
    replicas.all_say(&other, Outcome::Valid).await;

    replicas.shell.set("KEY_ID", &key.id);
    let printed = replicas.shell.run(&[way]);
    assert!(printed.contains(&key.id), "{printed}");
    replicas.all_have_seen().await;
    replicas.all_say(&secret, Outcome::Revoked).await;
    replicas.all_say(&other, Outcome::Valid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_ended_by_rpc_ends_on_every_replica() {
    if tools::grpcurl().is_none() {
        eprintln!("!!! CLIENT NOT TRIED: grpcurl");
        return;
    }
    ends_everywhere("revoke-rpc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_ended_by_command_ends_on_every_replica() {
    ends_everywhere("revoke-command").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_ended_in_the_database_ends_on_every_replica() {
    ends_everywhere("revoke-sql").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_is_named_and_says_nothing_once_the_bound_is_over() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let proxy = Proxy::start(database.address()).await;
    let urls = [database.url.clone(), database.url_through(&proxy)];
    let mut replicas = Replicas::start_on(database, urls, &[]).await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let (key, secret) = create_key(replicas.first(), &organization, &[]).await;
    replicas.all_say(&secret, Outcome::Valid).await;

    proxy.set(Fault::Cut);
    replicas.shell.set("KEY_ID", &key.id);
    replicas.shell.run(&["revoke-command"]);
    let printed = replicas.shell.run(&["revoke-seen"]);
    let cut_off = replicas.servers[1].metrics_address();
    assert!(printed.contains(&format!("{cut_off} has NOT: 0")), "{printed}");
    let says_nothing = async || ask(&replicas.servers[1], &secret).await.is_err();
    wait_until("the bound to be over", says_nothing).await;

    proxy.set(Fault::None);
    replicas.all_have_seen().await;
    replicas.all_come_to_say(&secret, Outcome::Revoked).await;
    replicas.shell.set("REPLICAS", "127.0.0.1:9");
    assert_eq!(replicas.shell.run(&["revoke-seen"]), "127.0.0.1:9 has NOT: silent\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_keys_of_an_owner_end_and_those_of_an_organization_stop_and_go_on() {
    let mut replicas = Replicas::start().await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let (_, first) = key_of("ann", replicas.first(), &organization).await;
    let (_, second) = key_of("ann", replicas.first(), &organization).await;
    let (_, of_bob) = key_of("bob", replicas.first(), &organization).await;
    let of_ann = [first, second];
    for secret in of_ann.iter().chain([&of_bob]) {
        replicas.all_say(secret, Outcome::Valid).await;
    }

    replicas.shell.set("ORGANIZATION_ID", &organization);
    replicas.shell.set("OWNER", "ann");
    let printed = replicas.shell.run(&["revoke-owner"]);
    assert_eq!(field(&printed, "key_count"), "2");
    replicas.all_have_seen().await;
    for secret in &of_ann {
        replicas.all_say(secret, Outcome::Revoked).await;
    }
    replicas.all_say(&of_bob, Outcome::Valid).await;

    for way in ["stop-organization", "stop-organization-sql"] {
        let printed = replicas.shell.run(&[way]);
        assert!(printed.contains("acme"), "{printed}");
        replicas.all_have_seen().await;
        replicas.all_say(&of_bob, Outcome::OrganizationInactive).await;
        let active = cli::as_admin(replicas.first(), &["organizations", "activate", &organization]);
        assert_eq!(active.code, 0, "{active:?}");
        replicas.all_have_seen().await;
        replicas.all_say(&of_bob, Outcome::Valid).await;
    }
}
