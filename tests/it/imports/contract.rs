//! `contract` on every engine that sources run on: the plaintext goes with its indexes, the keys stay, and `--down`
//! gives the columns back as NULL. What it does on PostgreSQL, and when it is refused, is in `ownership`. Invariant:
//! what depends on a column otherwise than as an index or UNIQUE keeps it, and everything beside it, where it is; so
//! does what could not come back over NULL.

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
    let again = import.ran(&["contract", "--yes"]);
    assert_eq!(again.code, 2, "{again:?}");
    assert!(again.stderr.contains("were dropped before: create them again"), "it says what to do: {again:?}");

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
async fn a_unique_constraint_goes_with_its_column_and_comes_back() {
    for engine in [SourceEngine::Postgres, SourceEngine::MariaDb] {
        let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
        let (source, secrets) = expanded(&world, engine).await;
        let constraint = "CONSTRAINT secret_once UNIQUE (secret)";
        source.run(&format!("ALTER TABLE {} ADD {constraint}", table(&source))).await;
        let is_there = async || {
            let constraints = "SELECT count(*) FROM information_schema.table_constraints \
                               WHERE constraint_name = 'secret_once' AND constraint_type = 'UNIQUE'";
            source.number(constraints).await == 1
        };
        let import = world.import(source.url(), MAPPING);
        if engine == SourceEngine::Postgres {
            source.run("CREATE TABLE used (secret VARCHAR(255) REFERENCES keys (secret))").await;
            let refused = import.ran(&["contract", "--yes"]);
            assert_eq!(refused.code, 1, "{refused:?}");
            assert!(refused.stderr.contains("used_secret_fkey"), "what is in the way is named: {refused:?}");
            source.run("DROP TABLE used").await;
        }
        assert!(is_there().await, "{engine:?}");

        assert_done(&import, &["contract", "--yes"]);
        assert_eq!(has_plaintext(&source).await, (false, false), "{engine:?}");
        assert!(!is_there().await, "{engine:?}");
        assert_done(&import, &["contract", "--down", "--yes"]);
        assert_eq!(has_plaintext(&source).await, (true, true), "{engine:?}");
        assert!(is_there().await, "NULL in every row does not offend it: {engine:?}");
        world.assert_told_nobody(&secrets);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_stays_where_null_in_every_row_would_keep_its_index_from_coming_back() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
    let (source, secrets) = expanded(&world, SourceEngine::Postgres).await;
    let import = world.import(source.url(), MAPPING);
    for (make, unmake) in [
        ("CREATE UNIQUE INDEX one_null ON keys (secret) NULLS NOT DISTINCT", "DROP INDEX one_null"),
        (
            "ALTER TABLE keys ADD CONSTRAINT one_null UNIQUE NULLS NOT DISTINCT (secret)",
            "ALTER TABLE keys DROP CONSTRAINT one_null",
        ),
    ] {
        source.run(make).await;
        let before = source.state().await;
        let ran = import.ran(&["contract", "--yes"]);
        assert_eq!(ran.code, 1, "{make}: {ran:?}");
        assert!(ran.stderr.contains("one_null"), "what is in the way is named: {ran:?}");
        assert_eq!(source.state().await, before, "nothing was changed: {make}");
        source.run(unmake).await;
    }
    // Nothing else was in the way.
    assert_done(&import, &["contract", "--yes"]);
    assert_eq!(has_plaintext(&source).await, (false, false));
    world.assert_told_nobody(&secrets);
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
