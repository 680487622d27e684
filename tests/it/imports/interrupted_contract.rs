//! `contract` that ends while its transaction waits for somebody else: by `kill -9`, by SIGINT, by a second one, and by
//! the end of its patience. It is held up before its first statement, and between two, when an index is gone already.
//! The source is PostgreSQL alone, which shows who waits for what. Must not rest on time: each end comes once the wait
//! is seen. Invariant: the source is what it was, to the last index, and the same command then does all of it.

use keystead::proto::v1::Outcome;
use sea_orm::{ConnectionTrait as _, DatabaseConnection};
use serde_json::{Value, json};

use super::under_way::{UnderWay, let_go};
use super::world::{Import, World};
use crate::harness::cli::Ran;
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test, wait_until};

const ROWS: usize = 300;

const MAPPING: &str = r#"
source = "waiting"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
secret = "api_key"
name = "name"
[keys.values]
environment = "live"
[keys.contract]
drop = ["api_key"]
"#;

/// No column has a default: to show one, PostgreSQL would wait for the table before anything is begun.
const TABLES: &str = "
CREATE TABLE clients (id bigint PRIMARY KEY, name text, api_key text);
CREATE INDEX clients_by_key ON clients (api_key);
CREATE TABLE gate (number bigint)";

/// Whoever alters a table goes through the gate.
const GATE: &str = "
CREATE OR REPLACE FUNCTION log_structure() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    IF tg_tag = 'ALTER TABLE' THEN LOCK TABLE gate IN ACCESS SHARE MODE; END IF;
END $$";

/// Sessions of the command on the source.
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE datname = current_database() AND application_name = 'keystead import'";

/// Where the transaction waits.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// For the table, which a service writes to.
    Lock,
    /// At the gate: the index has been dropped, and the column has not.
    Drop,
}

impl Wait {
    /// What begins the statement that waits.
    const fn statement(self) -> &'static str {
        match self {
            Self::Lock => "LOCK TABLE",
            Self::Drop => "ALTER TABLE",
        }
    }

    /// Makes it wait for as long as the connection lives.
    async fn hold(self, source: &SourceDatabase) -> DatabaseConnection {
        let held = source.lock("gate").await;
        match self {
            Self::Lock => {
                let lock = "LOCK TABLE clients IN ROW EXCLUSIVE MODE";
                held.execute_unprepared(lock).await.expect("nobody is in the way");
            }
            Self::Drop => {}
        }
        held
    }
}

/// A table that was brought in and verified.
struct Verified {
    world: World,
    source: SourceDatabase,
    secrets: Vec<String>,
    /// What the source is like.
    before: String,
}

impl Verified {
    async fn new(database: TestDatabase) -> Self {
        let world = World::new(database, "acme").await;
        let source = SourceDatabase::new(SourceEngine::Postgres).await;
        source.run(TABLES).await;
        source.log_structure().await;
        source.run(GATE).await;
        let secrets = world.keys.texts("client", ROWS);
        let row = |(at, secret): (usize, &String)| -> Vec<Cell> {
            vec![cell((at + 1).to_string()), cell(format!("client {at}")), cell(secret)]
        };
        let rows: Vec<Vec<Cell>> = secrets.iter().enumerate().map(row).collect();
        source.insert("clients", "id, name, api_key", &rows).await;
        let import = world.import(source.url(), MAPPING);
        import.run(&[]);
        assert!(import.verify(&[]).is("passed"));
        let before = source.state().await;
        Self { world, source, secrets, before }
    }

    fn import(&self) -> Import<'_> {
        self.world.import(self.source.url(), MAPPING)
    }

    /// A contract that waits there, and what it waits for.
    async fn waiting(&self, wait: Wait) -> (UnderWay, DatabaseConnection) {
        let held = wait.hold(&self.source).await;
        let mut contract = UnderWay::start(self.import().command(&["contract", "--yes"]));
        let waits = format!("{SESSIONS} AND wait_event_type = 'Lock' AND query LIKE '{}%'", wait.statement());
        wait_until("the transaction to wait", async || {
            contract.expect_running();
            self.source.number(&waits).await == 1
        })
        .await;
        (contract, held)
    }

    /// Fails unless the source is as before, once nobody is at work on it any more.
    async fn assert_untouched(&self, wait: Wait) {
        wait_until("the session to end", async || self.source.number(SESSIONS).await == 0).await;
        assert_eq!(self.source.state().await, self.before, "{wait:?}");
    }

    async fn assert_done_by_a_repeat(&self) {
        let ran = self.import().ran(&["contract", "--yes"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        for (what, sql, left) in [
            ("column", "SELECT count(*) FROM information_schema.columns WHERE column_name = 'api_key'", 0),
            ("index", "SELECT count(*) FROM pg_indexes WHERE indexname = 'clients_by_key'", 0),
            ("rows", "SELECT count(*) FROM clients", 300),
        ] {
            assert_eq!(self.source.number(sql).await, left, "{what}");
        }
        assert_eq!(self.world.told_dropped("clients"), json!(true));
        self.world.assert_all(&self.secrets, Outcome::Valid).await;
        self.world.assert_told_nobody(&self.secrets);
    }
}

fn assert_given_up(ran: &Ran) {
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("given up"), "{ran:?}");
}

store_test!(a_contract_that_is_killed_while_it_waits_changes_nothing_and_a_repeat_does_it);
async fn a_contract_that_is_killed_while_it_waits_changes_nothing_and_a_repeat_does_it(database: TestDatabase) {
    let old = Verified::new(database).await;
    for wait in [Wait::Lock, Wait::Drop] {
        let (mut contract, held) = old.waiting(wait).await;
        contract.kill9();
        let_go(held).await;
        old.assert_untouched(wait).await;
        assert_eq!(
            old.world.told_dropped("clients"),
            json!(false),
            "that it was begun is known, whatever became of it: {wait:?}"
        );
        old.world.assert_all(&old.secrets, Outcome::Valid).await;
    }
    old.assert_done_by_a_repeat().await;
}

store_test!(a_contract_that_is_interrupted_while_it_waits_changes_nothing_and_a_repeat_does_it);
async fn a_contract_that_is_interrupted_while_it_waits_changes_nothing_and_a_repeat_does_it(database: TestDatabase) {
    let old = Verified::new(database).await;
    let (mut contract, held) = old.waiting(Wait::Lock).await;
    contract.interrupt();
    // It has the table now, and is told to stop.
    let_go(held).await;
    assert_given_up(&contract.ended().await);
    old.assert_untouched(Wait::Lock).await;
    assert_eq!(old.world.told_dropped("clients"), Value::Null, "it knows that nothing went");

    for wait in [Wait::Lock, Wait::Drop] {
        let (mut contract, held) = old.waiting(wait).await;
        // The second one does not wait for the end of the wait.
        wait_until("two signals to end it", async || {
            contract.interrupt();
            contract.has_ended()
        })
        .await;
        assert_given_up(&contract.ended().await);
        let_go(held).await;
        old.assert_untouched(wait).await;
    }
    old.assert_done_by_a_repeat().await;
}

store_test!(a_contract_that_cannot_go_on_in_its_midst_puts_the_index_back);
async fn a_contract_that_cannot_go_on_in_its_midst_puts_the_index_back(database: TestDatabase) {
    let old = Verified::new(database).await;
    let (contract, held) = old.waiting(Wait::Drop).await;
    let ran = contract.ended().await;
    assert!([1, 3].contains(&ran.code) && ran.stdout.is_empty(), "{ran:?}");
    let_go(held).await;
    old.assert_untouched(Wait::Drop).await;
    assert_eq!(old.world.told_dropped("clients"), Value::Null, "it knows that nothing went");
    old.assert_done_by_a_repeat().await;
}
