//! The ledger: clients count what they are answered, the server is killed at random moments and started again, and in
//! the end each answered verification is counted exactly once. A call whose answer was lost may count or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use keystead::proto::v1::key_service_client::KeyServiceClient;
use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{GetKeyRequest, Outcome, UsageStatsRequest, UsageTotals, VerifyKeyRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::{Authorized, Server, TestDatabase, create_key, create_organization, store_test, wait_until};

const KILLS: usize = 50;
const CLIENTS: usize = 4;

/// A request that leaves something in every column.
pub fn asking(secret: &str) -> VerifyKeyRequest {
    VerifyKeyRequest {
        secret: secret.to_owned(),
        endpoint: "/v1/invoices".to_owned(),
        method: "GET".to_owned(),
        user_agent: "ledger".to_owned(),
        tags: [("team".to_owned(), "billing".to_owned())].into(),
        ..Default::default()
    }
}

/// What the clients asked, and what they were answered.
#[derive(Debug, Default)]
pub struct Ledger {
    asked: AtomicI64,
    answered: AtomicI64,
}

impl Ledger {
    /// Asks until the server is gone.
    async fn ask(&self, mut keys: KeyServiceClient<Authorized>, secret: &str, answers: &Semaphore) {
        loop {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let Ok(answer) = keys.verify_key(asking(secret)).await else {
                return;
            };
            assert_eq!(answer.into_inner().outcome(), Outcome::Valid);
            self.answered.fetch_add(1, Ordering::Relaxed);
            answers.add_permits(1);
        }
    }

    /// Asserts that a count is one that these clients can have caused.
    pub fn expect(&self, what: &str, count: i64) {
        let (answered, asked) = (self.answered.load(Ordering::Relaxed), self.asked.load(Ordering::Relaxed));
        assert!((answered..=asked).contains(&count), "{what}: {count}, answered {answered}, asked {asked}");
    }
}

/// The sums of an organization, after everything that waits has been written.
pub async fn totals(server: &Server, organization: &str) -> UsageTotals {
    let subject = Some(Subject::OrganizationId(organization.to_owned()));
    let request = UsageStatsRequest { subject, ..Default::default() };
    server.keys().usage_stats(request).await.expect("statistics").into_inner().totals.expect("totals")
}

/// Waits until the job has written usage, but for a random time at most; says whether it has.
async fn wait_for_flush(database: &TestDatabase) -> bool {
    let applied = "SELECT CAST(coalesce(sum(applied_number), 0) AS bigint) FROM usage_spools";
    let before = database.query_i64(applied).await;
    let flush = wait_until("usage to be written", async || database.query_i64(applied).await > before);
    let most = Duration::from_millis(u64::from(u16::from_le_bytes(keystead::random::bytes())) % 1_500);
    tokio::time::timeout(most, flush).await.is_ok()
}

store_test!(every_answered_verification_counts_once_through_fifty_kills);
async fn every_answered_verification_counts_once_through_fifty_kills(database: TestDatabase) {
    let mut server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let (key, secret) = create_key(&server, &organization, &[]).await;
    let ledger = Arc::new(Ledger::default());
    let mut after_a_flush = 0;
    for round in 0..KILLS {
        let answers = Arc::new(Semaphore::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (ledger, keys, answers) = (ledger.clone(), server.keys_on_new_connection(), answers.clone());
            let secret = secret.clone();
            clients.spawn(async move { ledger.ask(keys, &secret, &answers).await });
        }
        // From the first answers on. Most of these kills come before the job's first flush after a start, so each fifth
        // comes right after one, or at a random moment.
        let wanted = 1 + u32::from(u16::from_le_bytes(keystead::random::bytes())) % 1_500;
        let enough = tokio::time::timeout(Duration::from_mins(1), answers.acquire_many(wanted)).await;
        assert!(enough.is_ok_and(|permits| permits.is_ok()), "waited for {wanted} answers in vain");
        if round % 5 == 0 {
            after_a_flush += usize::from(wait_for_flush(&database).await);
        }
        server.kill9();
        while let Some(client) = clients.join_next().await {
            client.expect("a client does not panic");
        }
        server.restart().await;
    }
    let totals = totals(&server, &organization).await;
    ledger.expect("rollups", totals.verifications);
    ledger.expect("valid", totals.valid);
    let request = GetKeyRequest { key_id: key.id };
    let key = server.keys().get_key(request).await.expect("an answer").into_inner().key.expect("the key");
    assert_eq!(key.request_count, totals.verifications, "the key's count is that of the sums");
    let weights =
        format!("SELECT CAST(sum(weight) AS bigint) FROM api_key_usage WHERE organization_id = '{organization}'");
    assert_eq!(database.query_i64(&weights).await, totals.verifications, "and so are the weights of the rows");
    println!("{ledger:?}, counted {}, {after_a_flush} kills right after a flush", totals.verifications);
}
