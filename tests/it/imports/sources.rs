//! Databases as sources: read by an account that may only select, left as they are to the byte, never waited for longer
//! than the mapping says; and the command's exit codes. Invariant: what the source looks like afterwards is what it
//! looked like before, whichever command read it.

use std::time::{Duration, Instant};

use keystead::proto::v1::Outcome;
use sqlx::{Connection as _, Executor as _, MySqlConnection};

use super::world::{Keys, World, presenting};
use crate::harness::cli::Ran;
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{Engine, TestDatabase, store_test};

/// Far longer than the mapping lets a statement run, and shorter than anybody would wait.
const PATIENCE: Duration = Duration::from_secs(30);

pub const MAPPING: &str = r#"
source = "shop"
organization = "acme"
time-zone = "+00:00"

[[keys]]
table = "keys"
id = "id"
[keys.columns]
secret = "secret"
name = "name"
enabled = "enabled"
metadata = "metadata"
expire-time = "expires_at"
scopes = "scopes"
[keys.values]
environment = "live"
[keys.contract]
drop = ["secret"]
"#;

/// A table in the types that an engine has for such columns.
pub async fn shop(engine: SourceEngine, keys: &Keys, rows: usize) -> (SourceDatabase, Vec<String>) {
    let source = SourceDatabase::new(engine).await;
    let [id, enabled, metadata, time, scopes] = match engine {
        SourceEngine::Sqlite => ["INTEGER", "BOOLEAN", "TEXT", "TIMESTAMP", "TEXT"],
        SourceEngine::Postgres => ["bigserial", "boolean", "jsonb", "timestamptz", "text[]"],
        SourceEngine::MariaDb => ["BIGINT UNSIGNED AUTO_INCREMENT", "TINYINT(1)", "JSON", "TIMESTAMP NULL", "TEXT"],
    };
    let create = format!(
        "CREATE TABLE keys (id {id} NOT NULL PRIMARY KEY, name VARCHAR(255), secret VARCHAR(255), enabled {enabled}, \
         metadata {metadata}, expires_at {time}, scopes {scopes})"
    );
    let quoted = if engine == SourceEngine::MariaDb { "`keys`" } else { "keys" };
    source.run(&create.replacen("keys", quoted, 1)).await;
    let secrets = keys.texts("shop", rows);
    let list = if engine == SourceEngine::Postgres { "{orders:read,users:*}" } else { r#"["orders:read","users:*"]"# };
    let row = |(at, secret): (usize, &String)| -> Vec<Cell> {
        vec![
            cell((at + 1).to_string()),
            cell(format!("it's no. {at}")),
            cell(secret),
            cell(if at % 10 == 3 { "0" } else { "1" }),
            cell(format!(r#"{{"shop": "{at}", "at": "/\\ ' \""}}"#)),
            cell(if at % 10 == 4 { "2020-02-03 04:05:06" } else { "2037-02-03 04:05:06" }),
            cell(list),
        ]
    };
    let rows: Vec<Vec<Cell>> = secrets.iter().enumerate().map(row).collect();
    source.run(&format!("CREATE INDEX keys_by_secret ON {quoted} (secret, name)")).await;
    source.insert(quoted, "id, name, secret, enabled, metadata, expires_at, scopes", &rows).await;
    (source, secrets)
}

fn expected(at: usize) -> Outcome {
    match at % 10 {
        3 => Outcome::Disabled,
        4 => Outcome::Expired,
        _ => Outcome::Valid,
    }
}

/// All that is done with a source by an account that may only select.
async fn is_read_and_never_written(engine: SourceEngine, keystead: Engine) {
    let world = World::new(TestDatabase::new(keystead).await, "acme").await;
    let (source, secrets) = shop(engine, &world.keys, 2500).await;
    let before = source.state().await;
    let import = world.import(&source.reader_url().await, MAPPING);
    assert_eq!(import.plan(&[]).table("keys").count("created"), 2500);
    let report = import.run(&["--batch", "700"]);
    assert_eq!(report.table("keys").counts(["rows", "created", "refused"]), [2500, 2500, 0]);
    assert_eq!(import.run(&[]).table("keys").count("existing"), 2500);
    assert!(import.verify(&[]).is("passed"));
    // It may not, and says so before it changes anything.
    if engine != SourceEngine::Sqlite {
        let refused = import.ran(&["contract", "--yes"]);
        assert!(refused.code != 0, "{refused:?}");
    }
    assert_eq!(source.state().await, before, "nothing was written");

    let requests = secrets.iter().map(|secret| presenting(secret)).collect();
    for (at, answer) in world.ask_all(requests).await.iter().enumerate() {
        assert_eq!(answer.outcome(), expected(at), "row {at}");
        assert_eq!(answer.name, format!("it's no. {at}"));
        assert_eq!(answer.scopes, ["orders:read", "users:*"]);
        assert_eq!(answer.metadata["at"], "/\\ ' \"");
        assert_eq!(answer.metadata["shop"], at.to_string());
    }
    world.assert_told_nobody(&secrets);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_is_read_and_never_written() {
    is_read_and_never_written(SourceEngine::Sqlite, Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_read_and_never_written() {
    is_read_and_never_written(SourceEngine::Postgres, Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_read_and_never_written() {
    is_read_and_never_written(SourceEngine::MariaDb, Engine::Sqlite).await;
}

store_test!(a_source_that_does_not_answer_is_given_up);
async fn a_source_that_does_not_answer_is_given_up(database: TestDatabase) {
    // SQLite waits for somebody else's lock as long as it always does: no statement is begun.
    let words = match database.engine {
        Engine::Sqlite => "database is locked",
        Engine::Postgres => "canceling statement due to statement timeout",
    };
    let world = World::new(database, "acme").await;
    let (source, url) = brought_in(&world, world.database.engine.into()).await;
    let locked = source.lock("keys").await;
    assert_given_up_in_its_words(&world, &url, words);
    locked.close().await.expect("the lock is let go");
    assert!(world.import(&url, MAPPING).verify(&[]).is("passed"), "the same, now that it answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_that_does_not_answer_is_given_up() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
    let (source, url) = brought_in(&world, SourceEngine::MariaDb).await;
    let mut locked = MySqlConnection::connect(source.url()).await.expect("the owner connects");
    locked.execute("LOCK TABLES `keys` WRITE").await.expect("nobody is in the way");
    assert_given_up_in_its_words(&world, &url, "max_statement_time exceeded");
    locked.close().await.expect("the lock is let go");
    assert!(world.import(&url, MAPPING).verify(&[]).is("passed"), "the same, now that it answers");
}

/// A source of which everything came in, so that nothing but its silence is in the way.
async fn brought_in(world: &World, engine: SourceEngine) -> (SourceDatabase, String) {
    let (source, _) = shop(engine, &world.keys, 10).await;
    let url = source.reader_url().await;
    assert_eq!(world.import(&url, MAPPING).run(&[]).table("keys").count("created"), 10);
    (source, url)
}

/// Fails unless the source itself ends the statement: that nobody waits for longer says less.
fn assert_given_up_in_its_words(world: &World, url: &str, words: &str) {
    let hasty = MAPPING.replacen("organization", "statement-timeout = \"1500ms\"\norganization", 1);
    let import = world.import(url, &hasty);
    for command in ["plan", "run", "verify"] {
        let began = Instant::now();
        let ran = import.ran(&[command]);
        assert_told(&ran, 1, &[words]);
        assert!(began.elapsed() < PATIENCE, "{command} waited {:?}", began.elapsed());
    }
}

fn assert_told(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "{part:?} is not in {ran:?}");
    }
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
}

store_test!(a_source_that_cannot_be_reached_ends_with_three_and_shows_no_password);
async fn a_source_that_cannot_be_reached_ends_with_three_and_shows_no_password(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let absent = world.path("absent.db");
    for url in [
        "postgres://ann:hunter2@127.0.0.1:1/shop".to_owned(),
        "mysql://ann:hunter2@127.0.0.1:1/shop".to_owned(),
        format!("sqlite://{}", absent.display()),
        format!("csv:{}", world.path("absent.csv").display()),
        format!("jsonl:{}", world.path("absent.jsonl").display()),
    ] {
        let mapping = if url.contains("absent.csv") || url.contains("absent.jsonl") {
            MAPPING.replace("table = \"keys\"\n", "").replace("[keys.contract]\ndrop = [\"secret\"]\n", "")
        } else {
            MAPPING.to_owned()
        };
        for command in ["plan", "run", "verify"] {
            let ran = world.import(&url, &mapping).ran(&[command]);
            assert_told(&ran, 3, &[]);
            assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
        }
    }
    assert!(!absent.exists(), "a source is not made");
    for url in ["", "oracle://ann:hunter2@h/d", "keys.db", "csv:"] {
        let ran = world.import(url, MAPPING).ran(&["plan"]);
        assert_told(&ran, 2, &["KEYSTEAD_SOURCE_URL"]);
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
}

/// Each with what must be told of it.
const BAD_MAPPINGS: &[(&str, &[&str])] = &[
    ("sauce = \"shop\"\n", &["sauce", "line 1"]),
    (
        "source = \"two words\"\nstatement-timeout = \"soon\"\ntime-zone = \"Mars\"\n",
        &["source", "statement-timeout", "time-zone"],
    ),
    (
        "source = \"shop\"\n[[keys]]\ntable = \"keys\"\nid = \"id\"\n\
         [keys.columns]\nsecret = \"secret\"\nsecrets = \"x\"\n",
        &["secrets", "line 7"],
    ),
    (
        "source = \"shop\"\norganization = \"acme\"\n[[keys]]\ntable = \"nowhere\"\nid = \"id\"\n\
         [keys.columns]\nsecret = \"secret\"\n[keys.values]\nenvironment = \"live\"\n",
        &["nowhere"],
    ),
    (
        "source = \"shop\"\norganization = \"acme\"\n[[keys]]\ntable = \"keys\"\nid = \"id\"\n\
         [keys.columns]\nsecret = \"absent1\"\nname = \"absent2\"\n[keys.values]\nenvironment = \"live\"\n",
        &["absent1", "absent2"],
    ),
    (
        "source = \"shop\"\norganization = \"acme\"\n[[keys]]\ntable = \"keys\"\nid = \"name\"\n\
         [keys.columns]\nsecret = \"secret\"\n[keys.values]\nenvironment = \"live\"\n",
        &["name", "unique"],
    ),
    (
        "source = \"shop\"\norganization = \"nobody\"\n[[keys]]\ntable = \"keys\"\nid = \"id\"\n\
         [keys.columns]\nsecret = \"secret\"\n[keys.values]\nenvironment = \"live\"\n",
        &["nobody"],
    ),
];

store_test!(a_mapping_that_does_not_fit_is_refused_before_anything_is_written);
async fn a_mapping_that_does_not_fit_is_refused_before_anything_is_written(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (source, _) = shop(world.database.engine.into(), &world.keys, 10).await;
    let url = source.reader_url().await;
    for (mapping, parts) in BAD_MAPPINGS {
        for command in ["plan", "run", "verify"] {
            assert_told(&world.import(&url, mapping).ran(&[command]), 2, parts);
        }
    }
    for flags in [["run", "--batch", "0"], ["run", "--batch", "10001"], ["plan", "--refused-file", "x"]] {
        assert_told(&world.import(&url, MAPPING).ran(&flags), 2, &[]);
    }
    assert_eq!(world.database.query_i64("SELECT count(*) FROM imports").await, 0);
    assert_eq!(world.key_count().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keystead_that_is_not_ready_for_it_takes_nothing() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let world = World::new(database, "acme").await;
    let (source, _) = shop(SourceEngine::Sqlite, &world.keys, 10).await;
    let import = world.import(source.url(), MAPPING);
    let mut command = import.command(&["run"]);
    command.env("KEYSTEAD_DATABASE_URL", "postgres://ann:hunter2@127.0.0.1:1/keystead");
    let ran = crate::harness::cli::run(command, "");
    assert_told(&ran, 3, &[]);
    assert!(!ran.stderr.contains("hunter2"), "{ran:?}");

    // A database that an older version made.
    let old = TestDatabase::new(Engine::Sqlite).await;
    let mut command = import.command(&["run"]);
    command.env("KEYSTEAD_DATABASE_URL", format!("sqlite://{}", old.folder().join("new.db").display()));
    let ran = crate::harness::cli::run(command, "");
    assert!(ran.code == 1 || ran.code == 3, "{ran:?}");
    assert!(ran.stderr.contains("keystead migrate up") || ran.stderr.contains("keystead init"), "{ran:?}");
}
