//! A primary that dies, by the commands of the page: two replicas over a PostgreSQL with a standby, and the address that
//! they know it by. What a demanded standby is for is shown from both sides: with it no acknowledged revocation is lost,
//! and without it one is.

use keystead::proto::v1::{Outcome, RevokeKeyRequest};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::Replicas;
use super::address::Address;
use super::runbook::block;
use crate::harness::{Postgres, TestDatabase, create_key, create_organization, expect_error, wait_until};

struct Pair {
    replicas: Replicas,
    /// What they know.
    address: Address,
    /// What the standby knows of the primary.
    replication: Address,
    primary: Postgres,
    standby: Postgres,
}

impl Pair {
    async fn start(arguments: &[&str]) -> Self {
        let primary = Postgres::start();
        let database = TestDatabase::on(&primary).await;
        let address = Address::of(primary.address()).await;
        let url = address.in_place_of(primary.address(), &database.url);
        let mut replicas = Replicas::start_on(database, [url.clone(), url.clone()], arguments).await;

        let replication = Address::of(primary.address()).await;
        let from = replication.in_place_of(primary.address(), &primary.admin_url());
        let variables = [("REPLICATION_URL", from.as_str()), ("STANDBY_NAME", "standby1")];
        let standby = primary.start_copy(&block("standby-make"), &variables);
        for (variable, value) in [
            ("KEYSTEAD_DATABASE_URL", url),
            ("POSTGRES_ADMIN_URL", primary.admin_url()),
            ("OLD_DATA", primary.data().to_string_lossy().into_owned()),
            ("STANDBY_URLS", standby.admin_url()),
            ("NEW_PRIMARY_URL", standby.admin_url()),
        ] {
            replicas.shell.set(variable, value);
        }
        let pair = Self { replicas, address, replication, primary, standby };
        wait_until("the standby to stream", async || pair.streams()).await;
        pair
    }

    /// Whether the standby gets what the primary writes, as the page's command tells.
    fn streams(&self) -> bool {
        self.replicas.shell.run(&["standby-look"]).contains("streaming")
    }

    /// Has no commit acknowledged without the standby from here on.
    async fn demand(&self) {
        self.replicas.shell.run(&["standby-demand"]);
        let quorum = async || self.replicas.shell.run(&["standby-look"]).contains("quorum");
        wait_until("the standby to be demanded", quorum).await;
    }

    /// Two keys that every replica has in its cache: ids and secrets.
    async fn two_keys(&self) -> [(String, String); 2] {
        let organization = create_organization(self.replicas.first(), "acme").await.id;
        let mut keys = Vec::new();
        for _ in 0..2 {
            let (key, secret) = create_key(self.replicas.first(), &organization, &[]).await;
            self.replicas.all_say(&secret, Outcome::Valid).await;
            keys.push((key.id, secret));
        }
        keys.try_into().expect("two")
    }

    /// Revokes a key until that is acknowledged: a repeat is harmless.
    async fn revoke(&self, key_id: &str) {
        let request = RevokeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
        let acknowledged = async || self.replicas.first().keys().revoke_key(request.clone()).await.is_ok();
        wait_until("a revocation to be acknowledged", acknowledged).await;
    }

    /// Ends the primary and promotes the standby, and waits until every replica has found it.
    async fn fail_over(&self) {
        let shell = &self.replicas.shell;
        shell.run_beside(&self.primary, &["failover-fence"]);
        let chosen = shell.run(&["failover-choose"]);
        assert!(chosen.trim_end().ends_with(&format!(" bytes at {}", self.standby.address())), "{chosen}");
        assert_eq!(shell.run(&["failover-promote"]), "t\nf\n");
        self.address.lead_to(self.standby.address());
        assert!(shell.run(&["failover-see"]).contains("SERVING\nf|"));
        self.replicas.all_say_of_the_database(ServingStatus::Serving).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_revocation_survives_a_failover_to_a_demanded_standby() {
    let mut pair = Pair::start(&[]).await;
    let [(id, revoked), (other, kept)] = pair.two_keys().await;
    pair.demand().await;
    pair.replicas.shell.set("KEY_ID", &id);
    pair.replicas.shell.run(&["revoke-command"]);
    pair.fail_over().await;
    pair.replicas.all_have_seen().await;
    pair.replicas.all_come_to_say(&revoked, Outcome::Revoked).await;
    pair.replicas.all_come_to_say(&kept, Outcome::Valid).await;

    // Changes go on too, in the same processes.
    pair.revoke(&other).await;
    pair.replicas.all_come_to_say(&kept, Outcome::Revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_demanded_standby_an_acknowledged_revocation_is_lost_in_a_failover() {
    let pair = Pair::start(&[]).await;
    let [(id, revoked), _] = pair.two_keys().await;
    pair.replication.lead_nowhere();
    wait_until("the standby to be cut off", async || !pair.streams()).await;
    pair.revoke(&id).await;
    pair.replicas.all_come_to_say(&revoked, Outcome::Revoked).await;

    pair.fail_over().await;
    // Followers find that the history is another one, and so say what the database says.
    pair.replicas.all_come_to_say(&revoked, Outcome::Valid).await;
    pair.revoke(&id).await;
    pair.replicas.all_come_to_say(&revoked, Outcome::Revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_the_standby_that_is_demanded_and_verifications_do_not() {
    let pair = Pair::start(&["--control-timeout-ms", "5000"]).await;
    let [(id, revoked), (_, kept)] = pair.two_keys().await;
    pair.demand().await;
    pair.replication.lead_nowhere();
    wait_until("the standby to be cut off", async || !pair.streams()).await;

    let request = RevokeKeyRequest { key_id: id.clone(), ..Default::default() };
    let waited = pair.replicas.first().keys().revoke_key(request).await;
    expect_error(waited, Code::Unavailable, "TIMED_OUT");
    pair.replicas.all_say(&kept, Outcome::Valid).await;

    pair.replication.lead_to(pair.primary.address());
    pair.revoke(&id).await;
    pair.replicas.all_come_to_say(&revoked, Outcome::Revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_led_to_a_standby_trusts_nothing_there() {
    let pair = Pair::start(&[]).await;
    let [(_, secret), _] = pair.two_keys().await;
    let says_why = || pair.replicas.servers.iter().all(|server| server.log_text().contains("it is a standby"));
    // The first poll that fails is told: it may also be one that was under way when the address moved.
    wait_until("each replica to say why", async || {
        pair.address.lead_to(pair.standby.address());
        pair.replicas.all_say_of_the_database(ServingStatus::NotServing).await;
        if !says_why() {
            pair.address.lead_to(pair.primary.address());
            pair.replicas.all_say_of_the_database(ServingStatus::Serving).await;
        }
        says_why()
    })
    .await;
    pair.replicas.none_knows(&secret).await;
    pair.address.lead_to(pair.primary.address());
    pair.replicas.all_come_to_say(&secret, Outcome::Valid).await;
}
