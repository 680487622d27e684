//! Opening a database: what a connection of each engine must be set to, and who is kept out of a SQLite file.
//! The safeguard against cancelled transactions has a file of its own, `cancelled.rs`.

use keystead::store::{
    StoreError,
    connect::{self, ConnectError},
    organizations,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};

use super::{World, options};
use crate::harness::{Engine, TestDatabase, samples, store_test};

async fn setting(connection: &DatabaseConnection, name: &str) -> String {
    let statement = Statement::from_string(connection.get_database_backend(), format!("PRAGMA {name}"));
    let row = connection.query_one_raw(statement).await.expect("a pragma").expect("a value");
    let number = row.try_get_by_index::<i64>(0).map(|number| number.to_string());
    number.or_else(|_| row.try_get_by_index::<String>(0)).expect("a number or a word")
}

/// SQLite alone: PostgreSQL serves any number of processes.
#[tokio::test]
async fn a_second_process_is_kept_out_of_a_sqlite_file_for_as_long_as_the_first_lives() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await).await;
    let options = options(&world.database);

    let refused = connect::open(&options).await.err().expect("the file is in use");
    let file = world.database.folder().join("keystead.db");
    assert!(matches!(&refused, ConnectError::InUse(path) if *path == file), "{refused:?}");
    assert!(refused.to_string().contains("keystead.db"), "{refused}");

    let World { store, _lock: lock, database, .. } = world;
    store.close().await;
    drop(lock);
    let (store, _lock) = connect::open(&options).await.expect("the first has gone");
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, 1);
    store.close().await;
}

/// SQLite alone: the lock file is its own.
#[tokio::test]
async fn a_plain_connection_gets_into_a_sqlite_file_in_use_and_each_sees_what_the_other_wrote() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await).await;
    let key = world.add_key(|_| {}).await;
    assert_eq!(world.database.query_i64("SELECT count(*) FROM api_keys").await, 1);
    let statement = format!("UPDATE api_keys SET name = 'by hand' WHERE id = '{}'", key.id);
    assert_eq!(world.database.raw_sql(&statement).await, 1);
    assert_eq!(world.stored(&key).await.name, "by hand");
}

/// SQLite alone: these are its own settings.
#[tokio::test]
async fn every_sqlite_connection_is_durable_and_checks_references() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await).await;
    let control = world.store.control();
    for connection in [world.store.write(), control, world.store.verify()] {
        assert_eq!(setting(connection, "journal_mode").await, "wal");
        assert_eq!(setting(connection, "synchronous").await, "2", "FULL");
        assert_eq!(setting(connection, "foreign_keys").await, "1");
        assert_eq!(setting(connection, "busy_timeout").await, "5000");
    }
    let written = organizations::insert(control, &samples::organization("other"), None).await;
    assert!(matches!(written, Err(StoreError::Unavailable { .. } | StoreError::Unforeseen(_))), "{written:?}");
    assert_eq!(world.database.query_i64("SELECT count(*) FROM organizations").await, 1, "readers do not write");
}

/// PostgreSQL alone: SQLite's file is opened at once, so that what is wrong with it shows at the start.
#[tokio::test]
async fn a_postgres_that_is_away_at_the_start_is_reached_when_it_is_back() {
    let world = World::new(TestDatabase::new(Engine::Postgres).await).await;
    world.database.cut_off().await;
    let (store, _lock) = connect::open(&options(&world.database)).await.expect("opening asks for nothing");
    let other = samples::organization("other");
    let away = organizations::insert(store.write(), &other, None).await;
    assert!(matches!(away, Err(StoreError::Unavailable { .. })), "{away:?}");
    world.database.let_back().await;
    organizations::insert(store.write(), &other, None).await.expect("it is back");
}

store_test!(a_commit_that_cannot_be_answered_says_that_it_may_have_happened);
async fn a_commit_that_cannot_be_answered_says_that_it_may_have_happened(database: TestDatabase) {
    let source = sea_orm::DbErr::Conn(sea_orm::RuntimeErr::Internal("the line went dead".to_owned()));
    let StoreError::Unavailable { may_have_happened, .. } = StoreError::from(source).of_commit() else {
        panic!("a dead line is unavailable");
    };
    assert!(may_have_happened);
    // A commit that the database took says nothing of the kind.
    let world = World::new(database).await;
    let transaction = world.begin().await;
    organizations::insert(&transaction, &samples::organization("other"), None).await.expect("written");
    assert!(keystead::store::commit(transaction).await.is_ok());
}

store_test!(a_url_that_cannot_be_read_is_refused_without_repeating_it);
async fn a_url_that_cannot_be_read_is_refused_without_repeating_it(database: TestDatabase) {
    let mut options = options(&database);
    options.url = match database.engine {
        Engine::Sqlite => "sqlite://hunter2?mode=nonsense".to_owned(),
        Engine::Postgres => "postgres://user:hunter2@host:not-a-port/db".to_owned(),
    };
    let refused = connect::open(&options).await.err().expect("no such url");
    assert!(matches!(refused, ConnectError::Url(_)), "{refused:?}");
    assert!(!refused.to_string().contains("hunter2"), "{refused}");
}
