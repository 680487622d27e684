//! `contract` beside others on PostgreSQL: those who read and write the table while it compares every row, and a second
//! one that drops the same. It is held in the midst of its comparison by a gate that whoever reads a name goes through.
//! Must not rest on time: what others may do is tried once it is seen to wait. Invariant: what has been dropped is
//! noted in Keystead, whoever else gave up meanwhile.

use keystead::proto::v1::Outcome;
use sea_orm::{ConnectionTrait as _, DatabaseConnection};
use serde_json::{Value, json};

use super::under_way::{UnderWay, let_go};
use super::world::{Import, World};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test, wait_until};

const ROWS: usize = 300;

const MAPPING: &str = r#"
source = "busy"
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

/// A name becomes text by way of the gate, where nobody's patience ends. `other` and `another` are there to be locked
/// in place of `clients`.
const TABLES: &str = "
CREATE TYPE title AS (words text);
CREATE FUNCTION text_of(title) RETURNS text LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN ($1).words;
END $$;
CREATE CAST (title AS text) WITH FUNCTION text_of(title);
CREATE TABLE clients (id bigint PRIMARY KEY, name title, api_key text);
CREATE INDEX clients_by_key ON clients (api_key);
CREATE TABLE other (number bigint);
CREATE TABLE another (number bigint)";

/// Sessions of the command on the source that wait for somebody.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
     AND application_name = 'keystead import' AND wait_event_type = 'Lock'";
const COLUMN: &str = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'api_key'";

/// A table that was brought in and verified.
struct Old {
    world: World,
    source: SourceDatabase,
    secrets: Vec<String>,
}

impl Old {
    async fn new(database: TestDatabase) -> Self {
        let world = World::new(database, "acme").await;
        let source = SourceDatabase::new(SourceEngine::Postgres).await;
        source.run(TABLES).await;
        let secrets = world.keys.texts("client", ROWS);
        let row = |(at, secret): (usize, &String)| -> Vec<Cell> {
            vec![cell((at + 1).to_string()), cell(format!("(client {at})")), cell(secret)]
        };
        let rows: Vec<Vec<Cell>> = secrets.iter().enumerate().map(row).collect();
        source.insert("clients", "id, name, api_key", &rows).await;
        let import = world.import(source.url(), MAPPING);
        import.run(&[]);
        assert!(import.verify(&[]).is("passed"));
        Self { world, source, secrets }
    }

    fn import(&self) -> Import<'_> {
        self.world.import(self.source.url(), MAPPING)
    }

    /// A transaction of somebody else's that has done this, for as long as the connection lives.
    async fn holding(&self, table: &str, sql: &str) -> DatabaseConnection {
        let held = self.source.lock(table).await;
        held.execute_unprepared(sql).await.expect("nobody is in the way");
        held
    }

    async fn closed_gate(&self) -> DatabaseConnection {
        self.holding("other", "SELECT pg_advisory_xact_lock(1)").await
    }

    /// Whether somebody else would have this lock of the table at once.
    async fn may(&self, mode: &str) -> bool {
        let beside = self.source.lock("another").await;
        let locked = beside.execute_unprepared(&format!("LOCK TABLE clients IN {mode} MODE NOWAIT")).await;
        let_go(beside).await;
        locked.is_ok()
    }

    /// Starts a contract, and waits until it waits so.
    async fn waiting(&self, how: &str) -> UnderWay {
        let mut contract = UnderWay::start(self.import().command(&["contract", "--yes"]));
        self.wait_for(&mut contract, how).await;
        contract
    }

    async fn wait_for(&self, contract: &mut UnderWay, how: &str) {
        let waits = format!("{WAITING} AND {how}");
        wait_until("the transaction to wait", async || {
            contract.expect_running();
            self.source.number(&waits).await == 1
        })
        .await;
    }
}

store_test!(readers_go_on_while_contract_compares_and_writers_wait);
async fn readers_go_on_while_contract_compares_and_writers_wait(database: TestDatabase) {
    let old = Old::new(database).await;
    let gate = old.closed_gate().await;
    let mut contract = old.waiting("wait_event = 'advisory'").await;
    assert!(old.may("ACCESS SHARE").await, "as SELECT");
    assert!(!old.may("ROW EXCLUSIVE").await, "as UPDATE: what is compared is what is dropped");

    // One that reads on when all rows have been compared.
    let reader = old.holding("another", "LOCK TABLE clients IN ACCESS SHARE MODE").await;
    let_go(gate).await;
    old.wait_for(&mut contract, "wait_event = 'relation' AND query LIKE 'LOCK TABLE%ACCESS EXCLUSIVE%'").await;
    assert_eq!(old.source.number(COLUMN).await, 1, "nothing goes while somebody reads");
    let_go(reader).await;
    let ran = contract.ended().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(old.source.number(COLUMN).await, 0);
    assert_eq!(old.world.told_dropped("clients"), json!(true));
    old.world.assert_all(&old.secrets, Outcome::Valid).await;
    old.world.assert_told_nobody(&old.secrets);
}

store_test!(of_two_contracts_at_once_one_drops_and_what_it_dropped_stays_noted);
async fn of_two_contracts_at_once_one_drops_and_what_it_dropped_stays_noted(database: TestDatabase) {
    let old = Old::new(database).await;
    let gate = old.closed_gate().await;
    let first = old.waiting("wait_event = 'advisory'").await;
    let second = old.waiting("wait_event = 'relation' AND query LIKE 'LOCK TABLE%'").await;
    let_go(gate).await;
    let ran = first.ended().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = second.ended().await;
    assert!([1, 2].contains(&ran.code) && ran.stdout.is_empty(), "{ran:?}");
    assert_eq!(old.world.told_dropped("clients"), json!(true));

    let down = old.import().ran(&["contract", "--down", "--yes"]);
    assert_eq!(down.code, 0, "{down:?}");
    assert_eq!(old.source.number(COLUMN).await, 1, "it can be put back");
    assert_eq!(old.world.told_dropped("clients"), Value::Null);
}

store_test!(a_contract_that_drops_nothing_takes_back_its_own_note_alone);
async fn a_contract_that_drops_nothing_takes_back_its_own_note_alone(database: TestDatabase) {
    let old = Old::new(database).await;
    old.source.run("UPDATE clients SET api_key = 'another than was verified' WHERE id = 7").await;
    for is_noted_meanwhile in [false, true] {
        let gate = old.closed_gate().await;
        let contract = old.waiting("wait_event = 'advisory'").await;
        assert_eq!(old.world.told_dropped("clients"), json!(false), "begun");
        if is_noted_meanwhile {
            // As another one does that had the table before it.
            let note = "UPDATE imports SET contracted = replace(contracted, '\"dropped\":false', '\"dropped\":true')";
            old.world.database.raw_sql(note).await;
        }
        let_go(gate).await;
        let ran = contract.ended().await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
        assert_eq!(old.source.number(COLUMN).await, 1, "nothing was dropped");
        let stands = if is_noted_meanwhile { json!(true) } else { Value::Null };
        assert_eq!(old.world.told_dropped("clients"), stands);
    }
}
