//! The one connection of the change feed, dead without a word at any moment of a poll: the feed has to go on with a new
//! one. Changes come one after the other here, so that polls follow each other closely and the fault falls into one of
//! them: while the database is asked, or while the connection is put back into its pool, which asks it once more.
//! A replica whose feed stands still refuses everything once the bound has passed, until somebody starts it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keystead::proto::v1::RevokeKeyRequest;
use sea_orm::{ConnectionTrait as _, DatabaseConnection};

use crate::callers::requests::issuing;
use crate::faults::replicas::{HASTY, Replicas, create, paced, words};
use crate::harness::{Fault, Server, create_organization, wait_until};
use crate::server::metrics::{get, value};

/// Replicas that lose their connections at the same time, each at another moment of its polls.
const FAR: usize = 4;
/// How often they do.
const ROUNDS: usize = 5;
/// The least time between two changes.
const PACE: Duration = Duration::from_millis(10);

/// Changes a key by SQL over and over.
async fn change_on_and_on(connection: DatabaseConnection, key_id: String, over: Arc<AtomicBool>) {
    let mut pace = paced(PACE);
    for status in ["disabled", "active"].into_iter().cycle() {
        if over.load(Ordering::SeqCst) {
            break;
        }
        pace.tick().await;
        let statement = format!("UPDATE api_keys SET status = '{status}' WHERE id = '{key_id}'");
        connection.execute_unprepared(&statement).await.expect("SQL changes a key");
    }
    connection.close().await.expect("the connection closes");
}

/// The revision that a replica's feed has reached.
async fn reached(server: &Server) -> f64 {
    let (_, page) = get(server.metrics_address(), "/metrics").await;
    value(&page, "keystead_feed_revision").expect("the metric")
}

/// Makes one more change, and waits until the feeds of these replicas have brought it.
async fn feeds_go_on(near: &Server, far: &[Server], organization: &str) {
    let (key, _) = create(near, issuing(organization, &[])).await;
    let request = RevokeKeyRequest { key_id: key.id, ..Default::default() };
    let revoked = near.keys().revoke_key(request).await.expect("the key is revoked").into_inner();
    let revision = f64::from(u32::try_from(revoked.revision).expect("few changes"));
    for server in far {
        wait_until("the feed to bring a change", async || reached(server).await >= revision).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_feed_whose_connection_dies_at_any_moment_goes_on_with_a_new_one() {
    let arguments = |_| words(&[&HASTY[..], &["--metrics-listen", "127.0.0.1:0"]].concat());
    let replicas = Replicas::start(FAR + 1, arguments).await;
    let (far, near) = (&replicas.servers[..FAR], &replicas.servers[FAR]);
    let organization = create_organization(near, "acme").await.id;
    let (key, _) = create(near, issuing(&organization, &[])).await;
    let over = Arc::new(AtomicBool::new(false));
    let changes = tokio::spawn(change_on_and_on(replicas.database.connect().await, key.id, over.clone()));
    for _ in 0..ROUNDS {
        feeds_go_on(near, far, &organization).await;
        for network in &replicas.networks[..FAR] {
            network.set(Fault::HalfOpen);
        }
        feeds_go_on(near, far, &organization).await;
        // PostgreSQL would keep the other ends of the dead connections, and it does not take more and more.
        for network in &replicas.networks[..FAR] {
            network.set(Fault::Cut);
            network.set(Fault::None);
        }
    }
    over.store(true, Ordering::SeqCst);
    changes.await.expect("the changes end");
}
