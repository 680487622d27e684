//! `docs/operations.md`, followed: each block of commands on it is run by a test here, as it stands, against real
//! servers and a real PostgreSQL, and what it is there for is seen to have happened.
//! `runbook` reads and runs the blocks, `address` is an address that moves; the others are chapters of the page.
//! Invariant: no block is without a name, and none without a test.

mod address;
mod admin;
mod compromise;
mod deploy;
mod failover;
mod restore;
mod revocation;
mod runbook;
mod states;

use std::collections::BTreeSet;
use std::fs;

use keystead::proto::v1::{ApiKey, CreateKeyRequest, Environment, Outcome, VerifyKeyRequest};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use self::runbook::{ARGUMENTS, Shell, blocks};
use crate::harness::tools::repository;
use crate::harness::{Engine, Server, Setup, TestDatabase, expect_error, verify, wait_until};
use crate::structure::document;

/// Two replicas, and the shell of whoever looks after them.
struct Replicas {
    servers: Vec<Server>,
    shell: Shell,
    database: TestDatabase,
}

impl Replicas {
    async fn start() -> Self {
        let database = TestDatabase::new(Engine::Postgres).await;
        let url = database.url.clone();
        Self::start_on(database, [url.clone(), url], &[]).await
    }

    /// The same on a database that each knows by a URL of its own, with further arguments.
    async fn start_on(database: TestDatabase, urls: [String; 2], arguments: &[&str]) -> Self {
        let mut servers = Vec::new();
        for url in urls {
            let arguments = ARGUMENTS.iter().chain(arguments).map(ToString::to_string).collect();
            let setup = Setup { database_url: Some(url), arguments, ..Setup::default() };
            servers.push(Server::start_with(&database, setup).await);
        }
        let shell = Shell::new(&database, &[&servers[0], &servers[1]]);
        Self { servers, shell, database }
    }

    fn first(&self) -> &Server {
        &self.servers[0]
    }

    /// Asserts that every replica answers so, now.
    async fn all_say(&self, secret: &str, outcome: Outcome) {
        for (replica, server) in self.servers.iter().enumerate() {
            assert_eq!(verify(server, secret).await.outcome(), outcome, "replica {replica}");
        }
    }

    /// Waits until every replica answers so.
    async fn all_come_to_say(&self, secret: &str, outcome: Outcome) {
        for server in &self.servers {
            let says = async || ask(server, secret).await.is_ok_and(|said| said == outcome);
            wait_until(&format!("{outcome:?}"), says).await;
        }
    }

    /// Waits until every replica says that it does not know, for want of the database.
    async fn none_knows(&self, secret: &str) {
        for server in &self.servers {
            let refused = async || ask(server, secret).await.is_err();
            wait_until("the bound to be over", refused).await;
            expect_error(ask(server, secret).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
        }
    }

    /// Waits until the page's own command says that every replica has come to the database's revision.
    async fn all_have_seen(&self) {
        wait_until("every replica to have it", async || {
            let printed = self.shell.run(&["revoke-seen"]);
            assert_eq!(printed.lines().count(), self.servers.len(), "{printed}");
            printed.lines().all(|line| line.ends_with(" has it"))
        })
        .await;
    }

    /// Waits until every replica says so of its database.
    async fn all_say_of_the_database(&self, status: ServingStatus) {
        for server in &self.servers {
            let says = async || server.health("keystead.database").await == Some(status);
            wait_until(&format!("the database to be {status:?}"), says).await;
        }
    }

    async fn stop(&mut self) {
        for server in &mut self.servers {
            server.sigterm();
            assert!(server.wait_exit().await.success(), "it drains");
        }
    }

    /// Starts the processes again that were stopped.
    async fn start_again(&mut self) {
        for server in &mut self.servers {
            server.restart().await;
        }
        let old = std::mem::replace(&mut self.shell, Shell::new(&self.database, &[&self.servers[0], &self.servers[1]]));
        self.shell.take_over(old);
    }
}

/// Creates a live key of an owner; gives the record and the secret.
async fn key_of(owner_id: &str, server: &Server, organization_id: &str) -> (ApiKey, String) {
    let request = CreateKeyRequest {
        organization_id: organization_id.to_owned(),
        name: "owned".to_owned(),
        environment: Environment::Live.into(),
        owner_id: owner_id.to_owned(),
        ..Default::default()
    };
    let answer = server.keys().create_key(request).await.expect("a key").into_inner();
    (answer.key.expect("the key"), answer.secret)
}

async fn ask(server: &Server, secret: &str) -> Result<Outcome, Status> {
    let request = VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() };
    server.keys().verify_key(request).await.map(|answer| answer.into_inner().outcome())
}

#[test]
fn every_block_of_the_page_has_a_name_of_its_own_and_a_test_that_runs_it() {
    let folder = fs::read_dir(repository().join("tests/it/operations")).expect("the folder of the tests");
    let files = folder.map(|entry| fs::read_to_string(entry.expect("an entry").path()).expect("a file of text"));
    let tests = fs::read_to_string(repository().join("tests/it/operations.rs")).expect("this file");
    let tests: String = files.chain([tests]).collect();
    let blocks = blocks();
    assert!(blocks.len() > 30, "{} blocks", blocks.len());
    let mut names = BTreeSet::new();
    for (name, _) in &blocks {
        assert!(tests.contains(&format!("\"{name}\"")), "no test runs the block {name}");
        assert!(names.insert(name), "two blocks are called {name}");
    }
}

#[test]
fn every_metric_that_the_page_speaks_of_is_in_its_table() {
    let page = document("docs/operations.md");
    let names = |text: &str| -> BTreeSet<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with("keystead_") && *word != "keystead_").map(str::to_owned).collect()
    };
    let rows = page.lines().filter(|line| line.starts_with("| `keystead_"));
    let table: BTreeSet<String> = rows.filter_map(|row| names(row).into_iter().next()).collect();
    let unknown: Vec<String> = names(&page).difference(&table).cloned().collect();
    assert!(table.len() > 20 && unknown.is_empty(), "{unknown:?}");
}

#[test]
fn every_link_within_the_page_leads_to_a_heading() {
    let page = document("docs/operations.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#'));
    let anchors: BTreeSet<String> = headings.map(|text| text.trim().to_lowercase().replace(' ', "-")).collect();
    let links = page.split("](#").skip(1).filter_map(|rest| rest.split(')').next());
    let dead: Vec<&str> = links.filter(|link| !anchors.contains(*link)).collect();
    assert!(dead.is_empty(), "{dead:?}");
}
