//! `contract` on every engine that sources run on: the plaintext goes with its indexes, the keys stay, and `--down`
//! gives the columns back as NULL. What it does on PostgreSQL, and when it is refused, is in `ownership`. Invariant:
//! what depends on a column otherwise than as an index keeps it, and everything beside it, where it is.

use super::sources::{MAPPING, shop};
use super::world::{Import, World};
use crate::harness::source::{SourceDatabase, SourceEngine};
use crate::harness::{Engine, TestDatabase};

/// Whether the table has the column, and the index on it.
async fn has_plaintext(source: &SourceDatabase) -> (bool, bool) {
    let [columns, indexes] = match source.engine() {
        SourceEngine::Sqlite => [
            "SELECT count(*) FROM pragma_table_info('keys') WHERE name = 'secret'",
            "SELECT count(*) FROM sqlite_master WHERE name = 'keys_by_secret'",
        ],
        SourceEngine::Postgres => [
            "SELECT count(*) FROM information_schema.columns WHERE table_name = 'keys' AND column_name = 'secret'",
            "SELECT count(*) FROM pg_indexes WHERE indexname = 'keys_by_secret'",
        ],
        SourceEngine::MariaDb => [
            "SELECT count(*) FROM information_schema.columns \
             WHERE table_schema = database() AND table_name = 'keys' AND column_name = 'secret'",
            "SELECT count(DISTINCT index_name) FROM information_schema.statistics \
             WHERE table_schema = database() AND index_name = 'keys_by_secret'",
        ],
    };
    (source.number(columns).await == 1, source.number(indexes).await == 1)
}

fn table(source: &SourceDatabase) -> &'static str {
    if source.engine() == SourceEngine::MariaDb { "`keys`" } else { "keys" }
}

async fn expanded(world: &World, engine: SourceEngine) -> (SourceDatabase, Vec<String>) {
    let (source, secrets) = shop(engine, &world.keys, 1500).await;
    let import = world.import(source.url(), MAPPING);
    import.run(&[]);
    assert!(import.verify(&[]).is("passed"));
    (source, secrets)
}

fn assert_done(import: &Import<'_>, arguments: &[&str]) {
    let ran = import.ran(arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
}

async fn drops_the_plaintext_and_nothing_else(engine: SourceEngine, keystead: Engine) {
    let world = World::new(TestDatabase::new(keystead).await, "acme").await;
    let (source, secrets) = expanded(&world, engine).await;
    let outcomes = async || {
        let answers = world.ask_all(secrets.iter().map(|secret| super::world::presenting(secret)).collect()).await;
        answers.into_iter().map(|answer| (answer.outcome(), answer.key_id)).collect::<Vec<_>>()
    };
    let before = outcomes().await;
    assert_eq!(has_plaintext(&source).await, (true, true));
    let import = world.import(source.url(), MAPPING);

    assert_eq!(import.ran(&["contract"]).code, 1, "nobody agrees");
    let row = format!("UPDATE {} SET secret = 'another key of the same row' WHERE id = 7", table(&source));
    let old = format!("UPDATE {} SET secret = '{}' WHERE id = 7", table(&source), secrets[6]);
    source.run(&row).await;
    assert_eq!(import.ran(&["contract", "--yes"]).code, 1, "not what was verified");
    assert_eq!(has_plaintext(&source).await, (true, true));
    source.run(&old).await;

    assert_done(&import, &["contract", "--yes"]);
    assert_eq!(has_plaintext(&source).await, (false, false));
    assert_eq!(source.number(&format!("SELECT count(*) FROM {}", table(&source))).await, 1500, "rows stay");
    assert_eq!(outcomes().await, before, "and so do keys");

    assert_done(&import, &["contract", "--down", "--yes"]);
    assert_eq!(has_plaintext(&source).await, (true, true));
    let left = format!("SELECT count(*) FROM {} WHERE secret IS NOT NULL", table(&source));
    assert_eq!(source.number(&left).await, 0, "the keys themselves are gone");
    assert_eq!(outcomes().await, before);
    world.assert_told_nobody(&secrets);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_drops_the_plaintext_of_sqlite_and_nothing_else() {
    drops_the_plaintext_and_nothing_else(SourceEngine::Sqlite, Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_drops_the_plaintext_of_postgresql_and_nothing_else() {
    drops_the_plaintext_and_nothing_else(SourceEngine::Postgres, Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_drops_the_plaintext_of_mariadb_and_nothing_else() {
    drops_the_plaintext_and_nothing_else(SourceEngine::MariaDb, Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_a_view_shows_stays() {
    for engine in [SourceEngine::Sqlite, SourceEngine::Postgres] {
        let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
        let (source, secrets) = expanded(&world, engine).await;
        source.run("CREATE VIEW shown AS SELECT id, secret FROM keys").await;
        let before = source.state().await;
        let ran = world.import(source.url(), MAPPING).ran(&["contract", "--yes"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains("shown"), "what is in the way is named: {ran:?}");
        assert_eq!(source.state().await, before, "nothing was changed");
        world.assert_told_nobody(&secrets);
    }
}
