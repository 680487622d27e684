//! Dropping columns and bringing them back, on SQLite; `tests/it` does it on servers.
//!
//! What is refused, what is printed before anybody confirms, and that a plan changes nothing. Invariant: each test has
//! a file of its own.

use super::super::{
    Source,
    tests::{all, ask, database},
};
use super::*;

const TABLES: &str = "CREATE TABLE clients (id INTEGER PRIMARY KEY, name TEXT, api_key VARCHAR(255), hash TEXT);
    CREATE UNIQUE INDEX c_key ON clients (api_key); CREATE INDEX c_low ON clients (lower(api_key));
    CREATE INDEX c_part ON clients (name) WHERE api_key IS NOT NULL; CREATE INDEX c_hash ON clients (hash);
    INSERT INTO clients VALUES (1, 'a', 'key one', 'h1'), (2, 'b', 'key two', 'h2');";

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn columns_go_with_their_indexes_and_come_back_empty() {
    let (_directory, url) = database(TABLES).await;
    let drops = [("clients".to_owned(), columns(&["api_key"])), ("clients".to_owned(), columns(&["api_key"]))];
    let plans = describe(&url, &drops).await.expect("a plan");
    assert_eq!(plans.len(), 1);
    let expected = [
        "DROP INDEX \"main\".\"c_key\"",
        "DROP INDEX \"main\".\"c_low\"",
        "DROP INDEX \"main\".\"c_part\"",
        "ALTER TABLE \"main\".\"clients\" DROP COLUMN \"api_key\"",
    ];
    assert_eq!(plans[0].statements, expected);

    let whole = ask("clients", "id", &[("api_key", 99), ("hash", 99)]);
    let mut contract = Contract::begin(&url, &["clients"]).await.expect("the lock");
    assert!(!contract.commits_each_statement());
    assert_eq!(contract.read(&whole, None, 10).await.expect("rows").len(), 2);
    let plan = contract.plan_drop("clients", &columns(&["api_key"])).await.expect("a plan");
    assert_eq!(plan, plans[0]);
    contract.execute(&plan.statements).await.expect("dropped");
    contract.commit().await.expect("committed");

    let mut source = Source::open(&url, STATEMENT_TIMEOUT).await.expect("open");
    assert!(source.check(&whole).await.is_err());
    let left = all(&mut source, &ask("clients", "id", &[("hash", 99)]), 10).await;
    assert_eq!(left.len(), 2);
    source.close().await;

    let text = serde_json::to_string(&plan.undo).expect("text");
    let undo: Undo = serde_json::from_str(&text).expect("an undo");
    assert_eq!(undo, plan.undo);
    assert_eq!(down(&url, std::slice::from_ref(&undo)).await.expect("back"), undo.statements());
    assert_eq!(down(&url, std::slice::from_ref(&undo)).await.expect("nothing to do"), Vec::<String>::new());
    let mut source = Source::open(&url, STATEMENT_TIMEOUT).await.expect("open");
    let rows = all(&mut source, &whole, 10).await;
    assert_eq!(rows[0].1, [None, Some("h1".to_owned())]);
    source.close().await;
    assert_eq!(describe(&url, &drops[..1]).await.expect("a plan")[0].statements, expected);
}

#[tokio::test]
async fn nothing_is_dropped_without_a_commit_or_after_a_failure() {
    let (_directory, url) = database(TABLES).await;
    let whole = ask("clients", "id", &[("api_key", 99)]);
    for fails in [false, true] {
        let mut contract = Contract::begin(&url, &["clients"]).await.expect("the lock");
        let plan = contract.plan_drop("clients", &columns(&["api_key"])).await.expect("a plan");
        contract.execute(&plan.statements).await.expect("dropped");
        if fails {
            contract.execute(&["DROP TABLE nowhere".to_owned()]).await.expect_err("no such table");
            contract.commit().await.expect_err("nothing is committed");
        } else {
            contract.rollback().await;
        }
        let mut source = Source::open(&url, STATEMENT_TIMEOUT).await.expect("open");
        assert_eq!(all(&mut source, &whole, 10).await[1].1, [Some("key two".to_owned())]);
        source.close().await;
    }
}

#[tokio::test]
async fn what_something_depends_on_is_refused_in_words() {
    let (_directory, url) = database(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE, k TEXT, f TEXT REFERENCES o(id), v TEXT, h TEXT,
         g TEXT GENERATED ALWAYS AS (upper(h)) VIRTUAL); CREATE TABLE o (id TEXT PRIMARY KEY, k TEXT REFERENCES t(k));
         CREATE UNIQUE INDEX t_k ON t (k); CREATE VIEW seen AS SELECT v FROM t;",
    )
    .await;
    for (column, words) in [
        ("id", "the primary key"),
        ("u", "a UNIQUE constraint"),
        ("k", "a foreign key of o"),
        ("f", "a foreign key"),
        ("v", "view seen"),
        ("h", "no such column: h"),
    ] {
        match describe(&url, &[("t".to_owned(), columns(&[column]))]).await {
            Err(SourceError::Refused(told)) => assert!(told.contains(words), "{column}: {told}"),
            other => panic!("{column}: {other:?}"),
        }
    }
    let missing = describe(&url, &[("t".to_owned(), columns(&["nope"]))]).await;
    assert!(matches!(missing, Err(SourceError::Mapping(_))), "{missing:?}");
    let file = SourceUrl::parse("csv:keys.csv").expect("a url");
    assert_eq!(Contract::begin(&file, &[]).await.err(), Some(of_file()));
}

#[test]
fn an_undo_of_each_engine_is_told_in_its_own_words() {
    let undo = |engine| Undo {
        engine,
        table: "s.t".to_owned(),
        columns: vec![DroppedColumn {
            name: "k".to_owned(),
            definition: "varchar(9)".to_owned(),
            default: None,
            position: 2,
        }],
        indexes: vec![DroppedIndex { name: "i".to_owned(), definition: "INDEX `i` (`k`)".to_owned() }],
    };
    assert_eq!(
        undo(Engine::Postgres).statements(),
        ["ALTER TABLE \"s\".\"t\" ADD COLUMN \"k\" varchar(9)", "INDEX `i` (`k`)"]
    );
    assert_eq!(
        undo(Engine::MySql).statements(),
        ["ALTER TABLE `s`.`t` ADD COLUMN `k` varchar(9) NULL, ADD INDEX `i` (`k`)"]
    );
}
