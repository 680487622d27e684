//! The ledger of usage over three replicas: clients count what they are answered, while replicas are killed and their
//! database is cut off or silent, for one of them or for all. In the end each answered verification is counted once. A
//! call that a kill left without an answer may count or not; one that was refused does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use keystead::proto::v1::{GetKeyRequest, Outcome, VerifyKeyRequest};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::history::REPLICAS;
use super::replicas::{BACK_WITHIN, Clients, HASTY, Replicas, expect_unavailable, is_refusal, paced, totals, words};
use crate::callers::requests::verifying;
use crate::harness::{Fault, create_key, create_organization, wait_until};

/// Clients of each replica.
const CLIENTS: usize = 2;
/// The least time between two calls of one of them.
const PACE: Duration = Duration::from_millis(5);
/// How often a client looks whether its replica is back.
const LOOK_PACE: Duration = Duration::from_millis(20);
/// Answers that show that a replica goes on.
const ANSWERS_MIN: i64 = 30;
/// Refusals that show that a replica has lost its database.
const REFUSALS_MIN: i64 = 3;
/// Each replica once, and one more in the outage of all.
const KILLS: usize = REPLICAS + 1;

/// What the clients of one replica were told.
#[derive(Debug, Default)]
struct Column {
    answered: AtomicI64,
    refused: AtomicI64,
    lost: AtomicI64,
}

/// What all clients were told.
struct Ledger {
    clients: Clients,
    secret: String,
    columns: Vec<Column>,
    over: AtomicBool,
}

impl Ledger {
    /// Verifies on one replica to the end.
    async fn ask(self: Arc<Self>, replica: usize) {
        let (column, mut pace) = (&self.columns[replica], paced(PACE));
        let request = VerifyKeyRequest { endpoint: "/v1/invoices".to_owned(), ..verifying(&self.secret) };
        while !self.over.load(Ordering::SeqCst) {
            pace.tick().await;
            match self.clients.keys(replica).verify_key(request.clone()).await {
                Ok(answer) => {
                    assert_eq!(answer.into_inner().outcome(), Outcome::Valid);
                    column.answered.fetch_add(1, Ordering::SeqCst);
                }
                Err(status) if is_refusal(&status) => {
                    expect_unavailable(&status);
                    column.refused.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => {
                    column.lost.fetch_add(1, Ordering::SeqCst);
                    let is_there = async {
                        let mut pace = paced(LOOK_PACE);
                        while !self.is_there(replica).await {
                            pace.tick().await;
                        }
                    };
                    timeout(BACK_WITHIN, is_there).await.expect("the replica is there again");
                }
            }
        }
    }

    /// Whether a replica says anything, to a question that counts for no key.
    async fn is_there(&self, replica: usize) -> bool {
        let answer = self.clients.keys(replica).verify_key(verifying("nobody's")).await;
        answer.as_ref().err().is_none_or(is_refusal)
    }

    fn answered(&self, replica: usize) -> i64 {
        self.columns[replica].answered.load(Ordering::SeqCst)
    }

    fn refused(&self, replica: usize) -> i64 {
        self.columns[replica].refused.load(Ordering::SeqCst)
    }

    fn sum(&self, count: impl Fn(&Column) -> &AtomicI64) -> i64 {
        self.columns.iter().map(|column| count(column).load(Ordering::SeqCst)).sum()
    }

    /// Waits until each of these replicas has answered often enough from now on.
    async fn goes_on(&self, replicas: &[usize]) {
        let before: Vec<i64> = replicas.iter().map(|replica| self.answered(*replica)).collect();
        wait_until("answers", async || {
            replicas.iter().zip(&before).all(|(replica, before)| self.answered(*replica) >= before + ANSWERS_MIN)
        })
        .await;
    }

    /// Waits until each of these replicas has refused often enough from now on.
    async fn refuses(&self, replicas: &[usize]) {
        let before: Vec<i64> = replicas.iter().map(|replica| self.refused(*replica)).collect();
        wait_until("refusals", async || {
            replicas.iter().zip(&before).all(|(replica, before)| self.refused(*replica) >= before + REFUSALS_MIN)
        })
        .await;
    }
}

/// All replicas but one.
fn others(replica: usize) -> Vec<usize> {
    (0..REPLICAS).filter(|other| *other != replica).collect()
}

const ALL: [usize; REPLICAS] = [0, 1, 2];

/// Kills each replica once, and cuts another off its database.
async fn go_through_mishaps_of_one(replicas: &mut Replicas, ledger: &Ledger) {
    for replica in ALL {
        replicas.servers[replica].kill9();
        ledger.goes_on(&others(replica)).await;
        replicas.servers[replica].restart().await;
        ledger.clients.reconnect(replica, &replicas.servers[replica]);
        ledger.goes_on(&ALL).await;

        let cut = (replica + 1) % REPLICAS;
        replicas.networks[cut].set(Fault::Cut);
        ledger.refuses(&[cut]).await;
        ledger.goes_on(&others(cut)).await;
        replicas.networks[cut].set(Fault::None);
        ledger.goes_on(&ALL).await;
    }
}

/// Keeps the database silent for all of them, and kills one while what it answered last waits in its spool.
async fn go_through_an_outage(replicas: &mut Replicas, ledger: &Ledger) {
    const KILLED: usize = 0;
    for network in &replicas.networks {
        network.set(Fault::Silence);
    }
    ledger.refuses(&ALL).await;
    replicas.servers[KILLED].kill9();
    for network in &replicas.networks {
        network.set(Fault::None);
    }
    replicas.servers[KILLED].restart().await;
    ledger.clients.reconnect(KILLED, &replicas.servers[KILLED]);
    ledger.goes_on(&ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answered_verification_counts_once_on_three_replicas_through_kills_and_outages() {
    let mut replicas = Replicas::start(REPLICAS, |_| words(&HASTY)).await;
    let organization = create_organization(&replicas.servers[0], "acme").await.id;
    let (key, secret) = create_key(&replicas.servers[0], &organization, &[]).await;
    let columns = ALL.map(|_| Column::default()).into();
    let ledger = Arc::new(Ledger { clients: Clients::of(&replicas), secret, columns, over: AtomicBool::default() });
    let mut clients = JoinSet::new();
    for client in 0..REPLICAS * CLIENTS {
        clients.spawn(ledger.clone().ask(client % REPLICAS));
    }
    ledger.goes_on(&ALL).await;
    go_through_mishaps_of_one(&mut replicas, &ledger).await;
    go_through_an_outage(&mut replicas, &ledger).await;
    ledger.over.store(true, Ordering::SeqCst);
    clients.join_all().await;

    let (answered, lost) = (ledger.sum(|column| &column.answered), ledger.sum(|column| &column.lost));
    assert!(lost <= i64::try_from(KILLS * CLIENTS).expect("a few"), "only kills leave calls without an answer: {lost}");
    let totals = totals(&replicas.servers, &organization).await;
    let counted = totals.verifications;
    eprintln!("usage through kills and outages: {:?}, {counted} counted", ledger.columns);
    assert!((answered..=answered + lost).contains(&counted), "{counted} counted, {answered} answered, {lost} lost");
    assert_eq!(totals.valid, counted);
    let request = GetKeyRequest { key_id: key.id };
    let answer = replicas.servers[0].keys().get_key(request).await.expect("an answer");
    assert_eq!(answer.into_inner().key.expect("the key").request_count, counted, "the key's count is that of the sums");
    let weights =
        format!("SELECT CAST(sum(weight) AS bigint) FROM api_key_usage WHERE organization_id = '{organization}'");
    assert_eq!(replicas.database.query_i64(&weights).await, counted, "and so are the weights of the rows");
}
