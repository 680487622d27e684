//! Every state of the database with every state of Redis: up, cut off, silent, half-open and slow with up, cut off,
//! silent and killed. In each cell a known key, one with a rate limit, a revoked one, a new one and a secret that
//! nobody has are asked for over and over, while the database has its fault and when it is over; and each answer is one
//! of the table of `super`: the truth where it can be known, or that it is not known, and nothing else.
//! Redis never decides about that: its state lasts from the first cell to the last.

use std::time::Duration;

use futures_util::future::join_all;
use keystead::proto::v1::{CreateKeyRequest, RevokeKeyRequest};
use tonic_health::pb::health_check_response::ServingStatus;

use super::{Kind, Outage};
use crate::callers::requests::{issuing, verifying};
use crate::faults::replicas::{HASTY, Replicas, Told, Watch, create, hear, long_limit, words};
use crate::harness::{Fault, OwnRedis, Proxy, create_organization, redis, wait_until};

/// What befalls the database, one after the other; the cut also ends what the one before left half-open.
const FAULTS: [Fault; 5] =
    [Fault::None, Fault::HalfOpen, Fault::Cut, Fault::Silence, Fault::Delay(Duration::from_secs(5))];

/// The states of Redis, each that of one replica.
const REDIS: [&str; 4] = ["up", "cut", "silent", "killed"];

/// The replica that nothing befalls, and that creates what the others are asked for.
const NEAR: usize = REDIS.len();

/// One replica, with one state of Redis.
struct Cell<'a> {
    replicas: &'a Replicas,
    organization: &'a str,
    replica: usize,
}

impl Cell<'_> {
    /// A new key that the replica has in its cache; gives its secret.
    async fn known(&self, kind: Kind) -> String {
        let rate_limits = if kind == Kind::Limited { vec![long_limit(1_000_000)] } else { Vec::new() };
        let near = &self.replicas.servers[NEAR];
        let (key, secret) = create(near, CreateKeyRequest { rate_limits, ..issuing(self.organization, &[]) }).await;
        if kind == Kind::Revoked {
            let request = RevokeKeyRequest { key_id: key.id, ..Default::default() };
            near.keys().revoke_key(request).await.expect("the key is revoked");
        }
        let mut keys = self.replicas.servers[self.replica].keys();
        // What the fault of the cell before left behind may take a while.
        wait_until("the replica to know the key", async || hear(&mut keys, verifying(&secret)).await == kind.truth())
            .await;
        secret
    }

    /// Asks for secrets that nobody has, each time for another: those that were not found are remembered.
    fn watch_nobody(&self) -> Watch {
        let mut number = u64::from_ne_bytes(keystead::random::bytes());
        Watch::start(&self.replicas.servers[self.replica], move || {
            number = number.wrapping_add(1);
            verifying(&format!("pk_live_{number:043}"))
        })
    }

    /// Has a fault befall the database of this replica, and checks what is told meanwhile and when it is over.
    async fn go_through(&self, fault: Fault) {
        let (server, network) = (&self.replicas.servers[self.replica], &self.replicas.networks[self.replica]);
        let mut known = Vec::new();
        for kind in [Kind::Known, Kind::Limited, Kind::Revoked] {
            known.push((kind, verifying(&self.known(kind).await)));
        }
        let outage = Outage::begin(network, fault);
        let (_, new) = create(&self.replicas.servers[NEAR], issuing(self.organization, &[])).await;
        known.push((Kind::Meanwhile, verifying(&new)));
        let mut watches: Vec<(Kind, Watch)> =
            known.into_iter().map(|(kind, request)| (kind, Watch::of(server, request))).collect();
        watches.push((Kind::Nobody, self.watch_nobody()));
        for (kind, watch) in &watches {
            let told = if outage.is_total() { Told::Unavailable } else { kind.truth() };
            watch.hears(told, &self.name(*kind, fault)).await;
        }
        let over = outage.end(network);
        for (kind, watch) in watches {
            watch.hears(kind.truth(), &self.name(kind, fault)).await;
            over.check(kind, &watch.end().await);
        }
    }

    fn name(&self, kind: Kind, fault: Fault) -> String {
        format!("{kind:?}, database: {fault:?}, Redis: {}", REDIS[self.replica])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_no_state_of_database_and_redis_is_anything_told_that_is_not_so() {
    let shared = redis().await;
    let (cut, silent) = (Proxy::start(shared.address()).await, Proxy::start(shared.address()).await);
    let mut killed = OwnRedis::start().await;
    let through = |proxy: &Proxy| format!("redis://{}", proxy.address());
    let urls = [shared.url(), through(&cut), through(&silent), killed.url()];
    let replicas = Replicas::start(REDIS.len() + 1, |replica| {
        let redis = urls.get(replica).map(|url| words(&["--redis-url", url])).unwrap_or_default();
        [words(&HASTY), redis].concat()
    })
    .await;
    for server in &replicas.servers {
        wait_until("the shared counters", async || {
            server.health("keystead.limits").await == Some(ServingStatus::Serving)
        })
        .await;
    }
    cut.set(Fault::Cut);
    silent.set(Fault::Silence);
    killed.kill9();
    let organization = create_organization(&replicas.servers[NEAR], "acme").await.id;
    for fault in FAULTS {
        let cell = |replica| Cell { replicas: &replicas, organization: &organization, replica };
        let cells: Vec<Cell<'_>> = (0..REDIS.len()).map(cell).collect();
        join_all(cells.iter().map(|cell| cell.go_through(fault))).await;
    }
}
