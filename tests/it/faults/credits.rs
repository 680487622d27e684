//! Credits and quotas over three replicas, through kills and cut connections: never one unit more is granted than there
//! was. What was neither granted nor is left was asked for by a call that got no answer; of a quota, it may also have
//! stood in a block that a process had taken when a mishap befell it. What is left is granted to the last unit by
//! replicas that were started again.
//! A mishap comes while units are being spent: one portion of them is handed out before it, and one while it lasts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keystead::clock::Clock;
use keystead::proto::v1::{CreateKeyRequest, CreateOrganizationRequest, Credits, Outcome, VerifyKeyRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::history::REPLICAS;
use super::replicas::{BACK_WITHIN, Clients, Replicas, create, expect_unavailable, is_refusal, lock, paced};
use crate::callers::requests::{creating, issuing, verifying};
use crate::harness::{Fault, create_organization, wait_until};

/// Clients of each replica.
const CLIENTS: usize = 8;

/// What befalls which replica: a fault of its network to the database, or `kill -9` and a start.
const MISHAPS: [(usize, Option<Fault>); 4] = [(0, None), (1, Some(Fault::Cut)), (2, None), (0, Some(Fault::Silence))];

/// A block of a quota is at most this part of what is left of it (`src/limits/quotas.rs`).
const BLOCK_PART: i64 = 64;

/// How often a client looks whether its replica is back.
const PEEK_PACE: Duration = Duration::from_millis(20);

const DAY_S: i64 = 86_400;

/// What is spent.
struct Purse {
    secret: String,
    units: i64,
    /// What whoever asks for more is told.
    empty: Outcome,
    /// The query for what is left.
    left: String,
    /// The most that a mishap takes away, besides what calls without an answer asked for.
    lost_at_a_mishap: i64,
}

/// How many calls were told what.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    valid: i64,
    empty: i64,
    unanswered: i64,
}

impl Counts {
    const fn all(self) -> i64 {
        self.valid + self.empty + self.unanswered
    }
}

/// Clients that spend on all replicas at once.
struct Spending {
    clients: Clients,
    purse: Purse,
    /// Calls that may be made.
    permits: Semaphore,
    counts: Mutex<Counts>,
    /// What was left of credits after each that was granted.
    rests: Mutex<BTreeSet<i64>>,
}

impl Spending {
    /// Spends one unit; gives the outcome, where there is an answer.
    async fn spend(&self, replica: usize) -> Option<Outcome> {
        let answer = self.clients.keys(replica).verify_key(verifying(&self.purse.secret)).await;
        let mut counts = lock(&self.counts);
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                counts.unanswered += 1;
                if is_refusal(&status) {
                    expect_unavailable(&status);
                }
                return None;
            }
        };
        if answer.outcome() != Outcome::Valid {
            assert_eq!(answer.outcome(), self.purse.empty);
            counts.empty += 1;
            return Some(answer.outcome());
        }
        counts.valid += 1;
        assert!(counts.valid <= self.purse.units, "more was granted than there was");
        if let Some(rest) = answer.credits_remaining {
            assert!(lock(&self.rests).insert(rest), "two were told that {rest} remain");
        }
        Some(Outcome::Valid)
    }

    /// Spends a unit for each permit, until there will be no more.
    async fn spend_permits(self: Arc<Self>, replica: usize) {
        while let Ok(permit) = self.permits.acquire().await {
            permit.forget();
            if self.spend(replica).await.is_none() {
                // Looking takes nothing, and tells when the replica is there again, and its database.
                let peek = VerifyKeyRequest { cost: Some(0), ..verifying(&self.purse.secret) };
                let answers = async {
                    let mut pace = paced(PEEK_PACE);
                    while self.clients.keys(replica).verify_key(peek.clone()).await.is_err() {
                        pace.tick().await;
                    }
                };
                timeout(BACK_WITHIN, answers).await.expect("the replica answers again");
            }
        }
    }

    /// Spends until nothing is left, where nothing is wrong with anything.
    async fn spend_all(self: Arc<Self>, replica: usize) {
        while self.spend(replica).await.expect("an answer") == Outcome::Valid {}
    }

    /// Lets so many calls be made, and waits until at most so many of them are left.
    async fn hand_out(&self, permits: usize, left: usize) {
        self.permits.add_permits(permits);
        wait_until("units to be spent", async || self.permits.available_permits() <= left).await;
    }

    fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    /// Spends three quarters of the purse while one mishap follows another.
    async fn go_through_mishaps(self: &Arc<Self>, replicas: &mut Replicas) {
        let mut clients = JoinSet::new();
        for client in 0..REPLICAS * CLIENTS {
            clients.spawn(self.clone().spend_permits(client % REPLICAS));
        }
        let units = usize::try_from(self.purse.units).expect("a count");
        let portion = (units * 3 / 4 / (2 * MISHAPS.len())).max(1);
        for (replica, mishap) in MISHAPS {
            self.hand_out(portion, portion / 4).await;
            match mishap {
                Some(fault) => replicas.networks[replica].set(fault),
                None => replicas.servers[replica].kill9(),
            }
            self.hand_out(portion, 0).await;
            if mishap.is_some() {
                replicas.networks[replica].set(Fault::None);
            } else {
                replicas.servers[replica].restart().await;
                self.clients.reconnect(replica, &replicas.servers[replica]);
            }
        }
        let made = i64::try_from(portion * 2 * MISHAPS.len()).expect("a count");
        wait_until("every call to end", async || self.counts().all() == made).await;
        self.permits.close();
        clients.join_all().await;
    }

    /// Spends what is left, after the replicas were started again.
    async fn go_to_the_end(self: &Arc<Self>, replicas: &Replicas) {
        let mut clients = JoinSet::new();
        for (replica, server) in replicas.servers.iter().enumerate() {
            self.clients.reconnect(replica, server);
            for _ in 0..CLIENTS {
                clients.spawn(self.clone().spend_all(replica));
            }
        }
        clients.join_all().await;
    }
}

/// Spends all that a purse holds, through all mishaps and a restart.
async fn spend_through_everything(replicas: &mut Replicas, purse: Purse) {
    let (clients, units) = (Clients::of(replicas), purse.units);
    let lost_at_mishaps = purse.lost_at_a_mishap * i64::try_from(MISHAPS.len()).expect("a few");
    let (counts, rests) = (Mutex::default(), Mutex::default());
    let spending = Arc::new(Spending { clients, purse, permits: Semaphore::new(0), counts, rests });
    spending.go_through_mishaps(replicas).await;
    replicas.stop().await;
    let left = replicas.database.query_i64(&spending.purse.left).await;
    let before = spending.counts();
    let missing = units - before.valid - left;
    eprintln!("{units} units through mishaps: {before:?}, {left} left, {missing} missing");
    assert!(missing >= 0, "{} were granted, and {left} of {units} are left", before.valid);
    assert!(missing <= before.unanswered + lost_at_mishaps, "{missing} are missing: {before:?}");
    assert!(before.empty == 0 || left == 0, "{} were told that nothing is left, and {left} are", before.empty);

    replicas.start_again().await;
    spending.go_to_the_end(replicas).await;
    let after = spending.counts();
    assert_eq!(after.valid - before.valid, left, "what was left is granted to the last unit");
    assert_eq!(replicas.database.query_i64(&spending.purse.left).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credits_are_never_overspent_through_kills_and_cuts_and_are_granted_to_the_last_one() {
    let mut replicas = Replicas::start(REPLICAS, |_| Vec::new()).await;
    let organization = create_organization(&replicas.servers[0], "acme").await.id;
    for units in [1, 100, 10_000] {
        let credits = Some(Credits { remaining: units, ..Default::default() });
        let request = CreateKeyRequest { credits, ..issuing(&organization, &[]) };
        let (key, secret) = create(&replicas.servers[0], request).await;
        let left = format!("SELECT credits_remaining FROM api_keys WHERE id = '{}'", key.id);
        let purse = Purse { secret, units, empty: Outcome::CreditsExhausted, left, lost_at_a_mishap: 0 };
        spend_through_everything(&mut replicas, purse).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_never_overspent_through_kills_and_cuts_and_a_mishap_costs_no_more_than_a_block() {
    const QUOTA: i64 = 6400;
    // It is the month's, and months end at midnight.
    wait_until("midnight to be over", async || Clock::default().now().micros() / 1_000_000 % DAY_S < DAY_S - 40).await;
    let mut replicas = Replicas::start(REPLICAS, |_| Vec::new()).await;
    let request = CreateOrganizationRequest { monthly_quota: QUOTA, ..creating("metered") };
    let answer = replicas.servers[0].organizations().create_organization(request).await;
    let organization = answer.expect("an organization").into_inner().organization.expect("the organization").id;
    let (_, secret) = create(&replicas.servers[0], issuing(&organization, &[])).await;
    let left = format!(
        "SELECT {QUOTA} - CAST(coalesce(sum(count), 0) AS bigint) FROM rate_limit_tracking \
         WHERE subject_id = '{organization}' AND limit_name = 'monthly quota'"
    );
    let lost_at_a_mishap = QUOTA / BLOCK_PART;
    let purse = Purse { secret, units: QUOTA, empty: Outcome::QuotaExceeded, left, lost_at_a_mishap };
    spend_through_everything(&mut replicas, purse).await;
}
