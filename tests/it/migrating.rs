//! `docs/migrating.md`, followed: each block of commands on it is run by a test here, as it stands, against a source on
//! a real PostgreSQL and a real server, and what it is there for is seen to have happened.
//! `ownership` is the source of most; `expand`, `shadow`, `contract`, `rollback`, `sources`, `pairs` and `tail` are
//! chapters of the page; `reference` holds the page against the code. (`harness::page` runs the blocks; the four
//! systems themselves, with all their dirt, are the subject of `imports`.)
//! Invariant: no block of commands is without a name, and none without a test.

mod contract;
mod expand;
mod ownership;
mod pairs;
mod reference;
mod rollback;
mod shadow;
mod sources;
mod tail;

use keystead::proto::v1::{BatchVerifyKeysRequest, Outcome, VerifyKeyRequest, VerifyKeyResponse};

use crate::harness::page::{Page, Shell, administrators_url, field};
use crate::harness::tools::repository;
use crate::harness::{Engine, Server, Setup, TestDatabase};

const PAGE: Page = Page("docs/migrating.md");

/// A source, Keystead with an organization called `acme`, and the shell of whoever brings the one to the other.
struct Migration {
    source: TestDatabase,
    database: TestDatabase,
    server: Server,
    shell: Shell,
    /// Id of the organization.
    organization: String,
}

impl Migration {
    /// With one of the mappings of the documentation, whose label is `label`.
    async fn start(mapping: &str, label: &str) -> Self {
        let source = TestDatabase::new(Engine::Postgres).await;
        let database = TestDatabase::new(Engine::Postgres).await;
        let arguments = ["--metrics-listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
        let server = Server::start_with(&database, Setup { arguments, ..Setup::default() }).await;
        let mut shell = Shell::new(PAGE, &database, &server);
        shell.set("KEYSTEAD_SOURCE_URL", &source.url);
        shell.set("SOURCE_ADMIN_URL", administrators_url(&source));
        shell.set_path("MAPPING", &repository().join("docs/migrating").join(mapping));
        shell.set("SOURCE", label);
        let organization = field(&shell.run(&["organization"]), "id");
        shell.set("ORGANIZATION_ID", &organization);
        Self { source, database, server, shell, organization }
    }

    /// What Keystead says of each of these secrets.
    async fn outcomes(&self, secrets: &[String]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for secrets in secrets.chunks(500) {
            let requests =
                secrets.iter().map(|secret| VerifyKeyRequest { secret: secret.clone(), ..Default::default() });
            let request = BatchVerifyKeysRequest { requests: requests.collect() };
            let answer = self.server.keys().batch_verify_keys(request).await.expect("answers").into_inner();
            outcomes.extend(answer.responses.iter().map(VerifyKeyResponse::outcome));
        }
        assert_eq!(outcomes.len(), secrets.len());
        outcomes
    }

    /// Asserts that Keystead says the same of each of these secrets.
    async fn all_are(&self, secrets: &[String], outcome: Outcome) {
        let outcomes = self.outcomes(secrets).await;
        let others = outcomes.iter().filter(|said| **said != outcome).count();
        assert_eq!(others, 0, "of {} secrets", secrets.len());
    }

    /// The id of the key that came from a row of a table.
    async fn id_of(&self, table: &str, row: &str) -> String {
        let import = format!("SELECT id FROM imports WHERE table_name = '{table}'");
        let sql = format!("SELECT max(id) FROM api_keys WHERE source_id = '{row}' AND import_id IN ({import})");
        self.database.query_string(&sql).await
    }
}
