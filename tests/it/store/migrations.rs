//! Migrations: up on an empty database, every step down and up again, what going down loses, and several at once.
//! A schema is compared as the database itself tells it, word for word, so that nothing is left behind unseen.

use std::process::Stdio;

use keystead::domain::{audit::AuditHead, key::ApiKey, permission::Reach};
use keystead::store::{StoreError, api_keys as keys, audit_events, connect, migrate, organizations, state};

use super::{World, by_engine, options};
use crate::harness::{Engine, TestDatabase, keystead_command, samples, store_test};

/// Everything in the schema but the table in which sea-orm notes the migrations.
const SQLITE_SCHEMA: &str =
    "SELECT coalesce(group_concat(type || ' ' || name || ' ' || coalesce(sql, ''), char(10)), '')
    FROM (SELECT * FROM sqlite_master WHERE tbl_name <> 'seaql_migrations' ORDER BY type, name)";
const POSTGRES_SCHEMA: &str = "SELECT coalesce(string_agg(line, chr(10) ORDER BY line), '') FROM (
    SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' ||
           coalesce(column_default, '') AS line
      FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'seaql_migrations'
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'seaql_migrations'
    UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint
      WHERE connamespace = 'public'::regnamespace AND conrelid <> 'seaql_migrations'::regclass
    UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
) AS lines";
const SQLITE_TABLES: &str = "SELECT count(*) FROM sqlite_master
    WHERE type = 'table' AND name <> 'seaql_migrations' AND name NOT LIKE 'sqlite_%'";
const POSTGRES_TABLES: &str = "SELECT count(*) FROM information_schema.tables
    WHERE table_schema = 'public' AND table_name <> 'seaql_migrations'";

/// What each migration's loss says, and the tables that go with it; newest first.
const LOSSES: [(&str, &[&str]); 13] = [
    ("when an import that is under way began", &[]),
    ("which imported secrets read as a SHA-256 digest", &[]),
    ("how far each table of a source has come", &[]),
    ("no data; replicas no longer know of each other", &["replicas"]),
    ("no data", &[]),
    ("no data", &[]),
    ("when background jobs ran last", &["job_leases"]),
    ("how many requests", &["usage_spools"]),
    (
        "sums of usage by day and month",
        &["usage_totals", "usage_consumers", "usage_errors", "usage_response_times", "usage_reports"],
    ),
    ("the change feed", &["key_changes", "change_counter"]),
    ("all audit events", &["audit_events"]),
    ("all usage", &["api_key_usage", "usage_rollups", "rate_limit_tracking"]),
    ("every organization, every API key", &["organizations", "api_keys", "imports", "service_state"]),
];

/// How many tables there are.
fn tables() -> i64 {
    LOSSES.iter().map(|(_, tables)| i64::try_from(tables.len()).expect("few")).sum()
}

async fn schema(database: &TestDatabase) -> String {
    database.query_string(by_engine(database.engine, SQLITE_SCHEMA, POSTGRES_SCHEMA)).await
}

async fn table_count(database: &TestDatabase) -> i64 {
    database.query_i64(by_engine(database.engine, SQLITE_TABLES, POSTGRES_TABLES)).await
}

async fn exists(database: &TestDatabase, table: &str) -> bool {
    let sqlite = format!("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '{table}'");
    let postgres = format!("SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename = '{table}'");
    let sql = if connect::is_sqlite(&database.url) { sqlite } else { postgres };
    database.query_i64(&sql).await > 0
}

store_test!(an_empty_database_gets_every_table_and_a_second_up_changes_nothing);
async fn an_empty_database_gets_every_table_and_a_second_up_changes_nothing(database: TestDatabase) {
    let options = options(&database);
    let before = migrate::status(&options).await.expect("a status");
    assert!(before.iter().all(|migration| !migration.applied), "{before:?}");

    let applied = migrate::up(&options).await.expect("up");
    assert_eq!(applied, before.iter().map(|migration| migration.name.clone()).collect::<Vec<_>>());
    assert_eq!(table_count(&database).await, tables());
    let after = migrate::status(&options).await.expect("a status");
    assert!(after.iter().all(|migration| migration.applied), "{after:?}");

    let whole = schema(&database).await;
    assert_eq!(migrate::up(&options).await.expect("up again"), Vec::<String>::new());
    assert_eq!(schema(&database).await, whole);
}

store_test!(every_step_down_and_up_again_makes_the_same_schema);
async fn every_step_down_and_up_again_makes_the_same_schema(database: TestDatabase) {
    let options = options(&database);
    let mut names = migrate::up(&options).await.expect("up");
    let whole = schema(&database).await;
    names.reverse();
    for steps in 1..=names.len() {
        let asked = u32::try_from(steps).expect("a small number");
        assert_eq!(migrate::down(&options, asked).await.expect("down"), names[..steps]);
        assert_ne!(schema(&database).await, whole, "after {steps} down");
        migrate::up(&options).await.expect("up again");
        assert_eq!(schema(&database).await, whole, "after {steps} down and up again");
    }
}

store_test!(after_every_down_no_table_index_trigger_or_function_is_left);
async fn after_every_down_no_table_index_trigger_or_function_is_left(database: TestDatabase) {
    let options = options(&database);
    let count = migrate::up(&options).await.expect("up").len();
    for left in (0..count).rev() {
        migrate::down(&options, 1).await.expect("down");
        let applied = migrate::status(&options).await.expect("a status");
        assert_eq!(applied.iter().filter(|migration| migration.applied).count(), left);
    }
    assert_eq!(table_count(&database).await, 0);
    assert_eq!(schema(&database).await, "");
    assert_eq!(migrate::down(&options, 1).await.expect("down once more"), Vec::<String>::new());
}

store_test!(a_down_loses_what_it_names_and_nothing_else);
async fn a_down_loses_what_it_names_and_nothing_else(database: TestDatabase) {
    let options = options(&database);
    migrate::up(&options).await.expect("up");
    let mut status = migrate::status(&options).await.expect("a status");
    status.reverse();
    assert_eq!(status.len(), LOSSES.len(), "a migration that this test does not know");
    let mut remaining: Vec<&str> = LOSSES.iter().flat_map(|(_, tables)| tables.iter().copied()).collect();
    for (migration, (words, tables)) in status.iter().zip(LOSSES) {
        assert!(migration.loses.starts_with(words), "{}: {}", migration.name, migration.loses);
        assert_ne!(migration.loses, "nothing");
        migrate::down(&options, 1).await.expect("down");
        remaining.retain(|table| !tables.contains(table));
        for table in tables {
            assert!(!exists(&database, table).await, "{table} is gone with {}", migration.name);
        }
        for table in &remaining {
            assert!(exists(&database, table).await, "{table} outlives {}", migration.name);
        }
    }
}

store_test!(organizations_and_keys_outlive_every_other_migration_and_the_chain_begins_anew);
async fn organizations_and_keys_outlive_every_other_migration_and_the_chain_begins_anew(database: TestDatabase) {
    let world = World::new(database).await;
    let key = world.add_key(|key| *key = samples::full_key(key.organization_id)).await;
    let head = AuditHead { sequence: 7, hash: [7; 32] };
    let transaction = world.begin().await;
    state::find_audit_head_locked(&transaction).await.expect("a head");
    state::update_audit_head(&transaction, head).await.expect("a new head");
    super::commit_all(transaction).await;
    let options = options(&world.database);

    migrate::down(&options, u32::try_from(LOSSES.len() - 1).expect("few")).await.expect("down");
    migrate::up(&options).await.expect("up again");

    assert_eq!(world.stored(&key).await, key);
    let found = organizations::find_by_id(world.db(), Reach::All, world.acme.id).await.expect("a readable row");
    assert_eq!(found, Some(world.acme.clone()));
    let transaction = world.begin().await;
    let head = state::find_audit_head_locked(&transaction).await.expect("a head");
    assert_eq!(head, AuditHead::GENESIS);
    super::commit_all(transaction).await;
    assert_eq!(audit_events::seal(&world.store).await.expect("nothing to seal"), 0);
    // The triggers are back as well.
    assert!(keys::update(world.db(), &ApiKey { name: "new".to_owned(), ..key }).await.is_ok());
    assert_eq!(world.database.query_i64("SELECT count(*) FROM key_changes").await, 1);
}

store_test!(several_that_migrate_at_once_apply_each_migration_once_and_all_succeed);
async fn several_that_migrate_at_once_apply_each_migration_once_and_all_succeed(database: TestDatabase) {
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let options = options(&database);
            tokio::spawn(async move { migrate::up(&options).await })
        })
        .collect();
    let mut applied = Vec::new();
    for task in tasks {
        applied.extend(task.await.expect("no panic").expect("up"));
    }
    let known = migrate::status(&options(&database)).await.expect("a status");
    assert_eq!(applied, known.iter().map(|migration| migration.name.clone()).collect::<Vec<_>>());
    assert!(known.iter().all(|migration| migration.applied));
}

store_test!(several_processes_that_migrate_at_once_all_succeed);
async fn several_processes_that_migrate_at_once_all_succeed(database: TestDatabase) {
    let processes: Vec<_> = (0..3)
        .map(|_| {
            let mut command = keystead_command(&database);
            command.args(["migrate", "up"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("keystead runs")
        })
        .collect();
    let mut applied = 0;
    for process in processes {
        let output = process.wait_with_output().expect("keystead ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        applied += String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("applied ")).count();
    }
    let known = migrate::status(&options(&database)).await.expect("a status");
    assert_eq!(applied, known.len(), "each by one of them");
    assert!(known.iter().all(|migration| migration.applied));
}

store_test!(a_migration_that_fails_half_way_leaves_nothing_behind_and_can_be_repeated);
async fn a_migration_that_fails_half_way_leaves_nothing_behind_and_can_be_repeated(database: TestDatabase) {
    let options = options(&database);
    migrate::up(&options).await.expect("up");
    let whole = schema(&database).await;
    migrate::down(&options, u32::try_from(LOSSES.len()).expect("few")).await.expect("down");
    // In the way of the first migration's third table.
    database.raw_sql("CREATE TABLE api_keys (id text)").await;

    let failed = migrate::up(&options).await;
    assert!(matches!(failed, Err(StoreError::Unforeseen(_))), "{failed:?}");
    assert_eq!(table_count(&database).await, 1, "only what stood in the way");

    database.raw_sql("DROP TABLE api_keys").await;
    assert_eq!(migrate::up(&options).await.expect("up").len(), LOSSES.len());
    assert_eq!(schema(&database).await, whole);
}

store_test!(a_database_that_is_away_is_unavailable_and_not_a_refusal);
async fn a_database_that_is_away_is_unavailable_and_not_a_refusal(database: TestDatabase) {
    let mut options = options(&database);
    options.url = match database.engine {
        Engine::Sqlite => format!("sqlite://{}/no/such/folder/k.db", database.folder().display()),
        // Port 1 (tcpmux) is nobody's.
        Engine::Postgres => "postgres://nobody@127.0.0.1:1/nothing".to_owned(),
    };
    let refused = migrate::up(&options).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { may_have_happened: false, .. })), "{refused:?}");
}
