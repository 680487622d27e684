//! Replicas that are replaced one by one while clients go on: by a restart (here), across a migration that the binary
//! knows or does not know yet (`migrations`). A client that sends again what no server took up, and no more than that,
//! must not see one call fail (`clients`); what is sent to a replica that ends is answered or was never taken up
//! (`attempts`); and all that was acknowledged is there afterwards, once.

mod attempts;
mod clients;
mod migrations;

use std::collections::BTreeMap;
use std::sync::Arc;

use keystead::proto::v1::{Consistency, KeyStatus, ListKeysRequest, Outcome, VerifyKeyRequest};

use self::clients::{Key, Load, Tally};
use crate::callers::requests::verifying;
use crate::harness::{Engine, Server, Setup, TestDatabase};

/// Starts so many replicas on a database.
async fn replicas(database: &TestDatabase, count: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(Server::start_with(database, Setup::default()).await);
    }
    servers
}

/// Ends a replica by SIGTERM, as a deployment does.
async fn end(server: &mut Server) {
    server.sigterm();
    let status = server.wait_exit().await;
    assert_eq!(status.code(), Some(0), "{}", server.log_text());
}

/// Ends one replica and starts it again, each while the load goes on.
async fn replace(load: &Load, servers: &mut [Server], replica: usize) {
    let untaken = load.untaken();
    end(&mut servers[replica]).await;
    load.goes_on(Some(replica)).await;
    servers[replica].restart().await;
    assert!(load.untaken() > untaken, "clients met the replica that was gone");
    load.reconnect(replica, &servers[replica]);
    load.goes_on(None).await;
}

/// The keys of an organization, from all pages.
async fn listed(server: &Server, organization: &str) -> BTreeMap<String, KeyStatus> {
    let organization_id = organization.to_owned();
    let mut request = ListKeysRequest { organization_id, page_size: 1000, ..Default::default() };
    let mut found = BTreeMap::new();
    loop {
        let page = server.keys().list_keys(request.clone()).await.expect("a page").into_inner();
        for key in page.keys {
            let status = key.status();
            assert_eq!(found.insert(key.id, status), None, "a key is listed once");
        }
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

/// Asserts that the keys and revocations that were acknowledged are there, no other key is, each has its audit event,
/// and every replica knows.
async fn assert_nothing_lost(database: &TestDatabase, servers: &[Server], organization: &str, keys: &[Arc<Key>]) {
    let status = |key: &Key| if key.is_revoked() { KeyStatus::Revoked } else { KeyStatus::Active };
    let expected: BTreeMap<String, KeyStatus> = keys.iter().map(|key| (key.id.clone(), status(key))).collect();
    assert_eq!(listed(&servers[0], organization).await, expected);

    let revoked = keys.iter().filter(|key| key.is_revoked()).count();
    for (action, count) in [("key.create", keys.len()), ("key.revoke", revoked)] {
        let events = format!(
            "SELECT count(*) FROM audit_events WHERE action = '{action}' AND organization_id = '{organization}'"
        );
        assert_eq!(usize::try_from(database.query_i64(&events).await), Ok(count), "{action}");
    }

    for (replica, server) in servers.iter().enumerate() {
        let mut client = server.keys();
        for key in keys {
            let request = VerifyKeyRequest { consistency: Consistency::Fresh.into(), ..verifying(&key.secret) };
            let outcome = client.verify_key(request).await.expect("an answer").into_inner().outcome();
            let expected = if key.is_revoked() { Outcome::Revoked } else { Outcome::Valid };
            assert_eq!(outcome, expected, "{} on replica {replica}", key.id);
        }
    }
}

/// Asserts that of all attempts only those failed that no server took up.
fn assert_no_attempt_failed(tally: &Tally) {
    let faults = &tally.faults;
    assert!(faults.is_empty(), "{} attempts failed, such as {:#?}", faults.len(), &faults[..faults.len().min(5)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_fails_no_call_of_a_client_that_tries_again_and_loses_nothing() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut servers = replicas(&database, 3).await;
    let load = Load::start(&servers).await;
    assert_eq!(load.untaken(), 0, "{:?}", load.tally());
    for replica in 0..servers.len() {
        replace(&load, &mut servers, replica).await;
    }
    let organization = load.organization().to_owned();
    let (tally, keys) = load.end().await;
    eprintln!("a rolling restart: {tally:?}");
    assert_no_attempt_failed(&tally);
    assert_eq!(tally.created, keys.len());
    assert_nothing_lost(&database, &servers, &organization, &keys).await;
}
