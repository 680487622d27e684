//! Reading tables of SQLite: order, paging, what values become, and what is refused before anything is read.
//!
//! SQLite is the engine that needs no server; `tests/it` reads the others. Invariant: each test has a file of its own.

use sqlx::{ConnectOptions as _, Connection as _, Executor as _, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A file with these tables, which lives as long as the first half of the answer.
pub(super) async fn database(sql: &'static str) -> (TempDir, SourceUrl) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("source.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = options.connect().await.expect("a file");
    connection.execute(sql).await.expect("tables");
    connection.close().await.expect("closed");
    let url = SourceUrl::parse(&format!("sqlite://{}", path.display())).expect("a url");
    (directory, url)
}

pub(super) fn ask(table: &str, id: &str, columns: &[(&str, u32)]) -> Ask {
    let columns = columns.iter().map(|(name, length_max)| AskColumn {
        name: (*name).to_owned(),
        length_max: *length_max,
        is_text: false,
    });
    Ask { table: table.to_owned(), id: id.to_owned(), columns: columns.collect() }
}

/// All rows in batches, as id and values.
pub(super) async fn all(source: &mut Source, ask: &Ask, limit: usize) -> Vec<(String, Vec<Option<String>>)> {
    let mut all: Vec<(String, Vec<Option<String>>)> = Vec::new();
    loop {
        let after = all.last().map(|(id, _)| id.clone());
        let rows = source.read(ask, after.as_deref(), limit).await.expect("rows");
        let count = rows.len();
        for row in rows {
            let values = row.values.into_iter().map(|value| value.map(|text| text.as_str().to_owned()));
            all.push((row.id, values.collect()));
        }
        if count < limit {
            return all;
        }
    }
}

fn ids(rows: &[(String, Vec<Option<String>>)]) -> Vec<&str> {
    rows.iter().map(|(id, _)| id.as_str()).collect()
}

#[tokio::test]
async fn values_of_every_kind_come_as_text_and_cut() {
    let (_directory, url) = database(
        "CREATE TABLE \"Cli\"\"ents\" (id INTEGER PRIMARY KEY, v, \"odd \"\"name\" TEXT);
         INSERT INTO \"Cli\"\"ents\" VALUES (1, 'text', 'a'), (2, x'00ffab', NULL), (3, 7, ''), (4, 1.5, 'äöüß'),
         (5, NULL, 'c'), (6, 'a' || char(0) || 'b', 'd'), (7, CAST(x'61ff' AS TEXT), 'e');",
    )
    .await;
    let mut source = Source::open(&url, TIMEOUT).await.expect("open");
    let ask = ask("Cli\"ents", "id", &[("v", 3), ("odd \"name", 2)]);
    source.check(&ask).await.expect("good");
    assert_eq!(source.count(&ask).await, Ok(Some(7)));
    let rows = all(&mut source, &ask, 2).await;
    let values: Vec<(Option<&str>, Option<&str>)> =
        rows.iter().map(|(_, values)| (values[0].as_deref(), values[1].as_deref())).collect();
    assert_eq!(
        values,
        [
            (Some("text"), Some("a")),
            (Some("\\x00"), None),
            (Some("7"), Some("")),
            (Some("1.5"), Some("äöü")),
            (None, Some("c")),
            (Some("\0a"), Some("d")),
            (Some("\0a\u{fffd}"), Some("e")),
        ]
    );
    source.close().await;
}

#[tokio::test]
async fn ids_are_compared_by_their_kind_and_collation() {
    let (_directory, url) = database(
        "CREATE TABLE numbers (n INTEGER PRIMARY KEY); INSERT INTO numbers VALUES (10), (9), (-3), (100);
         CREATE TABLE texts (t TEXT PRIMARY KEY NOT NULL); INSERT INTO texts VALUES ('10'), ('9'), ('B'), ('a');
         CREATE TABLE folded (t TEXT COLLATE NOCASE NOT NULL); CREATE UNIQUE INDEX f ON folded (t COLLATE BINARY);
         INSERT INTO folded VALUES ('a'), ('A'), ('b');
         CREATE TABLE blobs (b BLOB PRIMARY KEY NOT NULL); INSERT INTO blobs VALUES (x'02'), (x'0100'), (x'01');",
    )
    .await;
    let mut source = Source::open(&url, TIMEOUT).await.expect("open");
    let expected: [(&str, &str, &[&str]); 4] = [
        ("numbers", "n", &["-3", "9", "10", "100"]),
        ("main.texts", "t", &["10", "9", "B", "a"]),
        ("folded", "T", &["A", "a", "b"]),
        ("blobs", "b", &["\\x01", "\\x0100", "\\x02"]),
    ];
    for (table, id, expected) in expected {
        let ask = ask(table, id, &[]);
        source.check(&ask).await.expect(table);
        for limit in [1, 2, 10] {
            assert_eq!(ids(&all(&mut source, &ask, limit).await), expected, "{table} by {limit}");
        }
    }
}

async fn problem(source: &mut Source, table: &str, id: &str, columns: &[(&str, u32)]) -> String {
    match source.check(&ask(table, id, columns)).await {
        Err(SourceError::Mapping(words)) => words,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_table_that_cannot_be_read_in_order_is_refused_with_every_problem() {
    let (_directory, url) = database(
        "CREATE TABLE t (id INTEGER, k TEXT UNIQUE, p TEXT, mixed UNIQUE); CREATE UNIQUE INDEX i ON t(p) WHERE p > '';
         INSERT INTO t VALUES (1, 'a', 'a', 1), (2, NULL, 'b', 'x'); CREATE VIEW v AS SELECT k FROM t;",
    )
    .await;
    let mut source = Source::open(&url, TIMEOUT).await.expect("open");
    let words = problem(&mut source, "t", "id", &[("K", 1), ("nope", 1)]).await;
    assert_eq!(words.lines().count(), 2, "{words}");
    assert!(words.contains("no column \"nope\"") && words.contains("no unique index"), "{words}");
    for (table, id, expected) in [
        ("t", "k", "NULL in some rows"),
        ("t", "p", "no unique index"),
        ("t", "mixed", "integer, text"),
        ("v", "k", "not a table"),
        ("x", "k", "no table"),
        ("temp.t", "k", "schema"),
    ] {
        let words = problem(&mut source, table, id, &[]).await;
        assert!(words.contains(expected), "{table}, {id}: {words}");
    }
}

#[tokio::test]
async fn a_source_is_read_only_and_one_that_is_not_there_is_told() {
    let (directory, url) = database("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1);").await;
    let mut source = SqliteSource::open(&url, TIMEOUT).await.expect("open");
    let refused = source.run("DELETE FROM t".to_owned()).await;
    assert!(matches!(refused, Err(SourceError::Refused(_))), "{refused:?}");
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let mut source = SqliteSource::open(&url, Duration::from_millis(50)).await.expect("open");
    let refused = source.run(endless.to_owned()).await;
    assert_eq!(refused, Err(SourceError::Refused("a statement took longer than its timeout".to_owned())));

    let text = "no database, but long enough to look at".repeat(100);
    std::fs::write(directory.path().join("other"), text).expect("a file");
    for name in ["missing.db", "other"] {
        let url = SourceUrl::parse(&format!("sqlite://{}", directory.path().join(name).display())).expect("a url");
        let opened = Source::open(&url, TIMEOUT).await.err();
        assert!(matches!(opened, Some(SourceError::Unreachable(_))), "{name}: {opened:?}");
    }
    assert!(!directory.path().join("missing.db").exists());
}
