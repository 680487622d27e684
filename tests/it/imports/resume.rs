//! A run that is killed goes on where it was, and one that is repeated changes nothing. The kill lands inside: the run
//! is held up by a database that keeps its writes waiting. Invariant: what `imports` says was brought in is what is
//! there, at every moment, and no row comes in twice.

use std::collections::{BTreeMap, BTreeSet};

use keystead::proto::v1::Outcome;

use super::under_way::UnderWay;
use super::world::{Import, World, presenting, refused_rows};
use crate::harness::source::{Cell, SourceDatabase, cell};
use crate::harness::{TestDatabase, store_test, wait_until};

const ROWS: usize = 4000;
/// So few that a run takes many transactions.
const BATCH: &str = "5";
const MAPPING: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
secret = "api_key"
name = "name"
[keys.values]
environment = "live"
"#;

/// Every hundredth row holds a key that is refused, every fiftieth one that stands in a row before.
async fn portal(world: &World) -> (SourceDatabase, Vec<String>) {
    let source = SourceDatabase::new(world.database.engine).await;
    source.run("CREATE TABLE clients (id INTEGER NOT NULL PRIMARY KEY, name TEXT, api_key TEXT)").await;
    let keys = world.keys.texts("client", ROWS);
    let rows = (0..ROWS).map(|at| {
        let repeated = if at % 50 == 49 { at - 1 } else { at };
        let key = if at % 100 == 99 { "weak" } else { &keys[repeated] };
        vec![cell((at + 1).to_string()), cell(format!("client {at}")), cell(key)]
    });
    source.insert("clients", "id, name, api_key", &rows.collect::<Vec<Vec<Cell>>>()).await;
    let is_key = |at: &usize| at % 50 != 49;
    let keys = (0..ROWS).filter(is_key).map(|at| keys[at].clone()).collect();
    (source, keys)
}

/// Rows of `api_keys` that came from the source, by the id of their row.
async fn rows(world: &World) -> i64 {
    let sql = "SELECT count(DISTINCT source_id) FROM api_keys WHERE import_id IS NOT NULL";
    let distinct = world.database.query_i64(sql).await;
    assert_eq!(distinct, world.key_count().await, "no row came in twice");
    distinct
}

async fn created(world: &World) -> i64 {
    world.database.query_i64("SELECT created_count FROM imports").await
}

/// Starts a run in batches of so few rows that it takes many, and kills it in the midst of a table.
/// Rows that are refused keep it from nothing.
pub async fn kill_within(world: &World, import: &Import<'_>, table: &str, batch: &str, refused: &str) {
    let under_way =
        format!("SELECT count(*) FROM imports WHERE table_name = '{table}' AND state = 'running' AND position <> ''");
    let arguments = ["run", "--batch", batch, "--refused-file", refused, "--accept-refused"];
    let mut run = UnderWay::start(import.command(&arguments));
    wait_until("the run to have written something", async || {
        run.expect_running();
        world.database.query_i64(&under_way).await == 1
    })
    .await;
    let blocked = world.database.block_writes().await;
    run.expect_running();
    run.kill9();
    blocked.release().await;
}

store_test!(a_run_that_was_killed_goes_on_where_it_was);
async fn a_run_that_was_killed_goes_on_where_it_was(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (source, keys) = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let file = world.path("refused.csv");
    let refused = file.to_str().expect("text");
    kill_within(&world, &import, "clients", BATCH, refused).await;

    let before = rows(&world).await;
    assert!(0 < before && before < 3920, "some of them are here: {before}");
    assert_eq!(created(&world).await, before, "and they are counted");
    let position = world.database.query_string("SELECT position FROM imports").await;
    let position: i64 = position.parse().expect("the id of a row");
    let up_to_it = (0..position).filter(|at| at % 50 != 49).map(|_| 1_i64).sum::<i64>();
    assert_eq!(before, up_to_it, "those up to the position");

    let report = import.run(&["--refused-file", refused]);
    assert!(report.is("resumed"));
    let seen = report.table("clients").counts(["rows_before", "rows", "created", "existing"]);
    let left = [position, 4000 - position, 3920 - before, 0];
    assert_eq!(seen.map(i64::try_from), left.map(Ok), "the rows after the position alone");
    assert_eq!((rows(&world).await, created(&world).await), (3920, 3920));
    assert_eq!(world.database.query_string("SELECT state FROM imports").await, "done");
    let expected: BTreeMap<(String, String), String> =
        (1..=40).map(|at| (("clients".to_owned(), (at * 100).to_string()), "WEAK_SECRET".to_owned())).collect();
    assert_eq!(refused_rows(&file), expected, "the file of the run that was killed was gone on with");
    assert_eq!(audited(&world).await, 3920);
    world.assert_all(&keys, Outcome::Valid).await;
    assert_eq!(import.ran(&["verify", "--accept-refused"]).code, 0);
}

/// How many keys the audit log says were brought in.
async fn audited(world: &World) -> i64 {
    let sql = match world.database.engine {
        crate::harness::Engine::Sqlite => {
            "SELECT sum(json_extract(detail, '$.created')) FROM audit_events WHERE action = 'key.import'"
        }
        crate::harness::Engine::Postgres => {
            "SELECT sum((detail::json->>'created')::bigint)::bigint FROM audit_events WHERE action = 'key.import'"
        }
    };
    world.database.query_i64(sql).await
}

store_test!(a_run_that_is_killed_again_and_again_comes_to_its_end);
async fn a_run_that_is_killed_again_and_again_comes_to_its_end(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (source, keys) = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let file = world.path("refused.csv");
    let mut last = 0;
    for _ in 0..3 {
        kill_within(&world, &import, "clients", BATCH, file.to_str().expect("text")).await;
        let here = rows(&world).await;
        assert!(here >= last && created(&world).await == here, "{here} after {last}");
        last = here;
    }
    let counted = "SELECT created_count + existing_count + refused_count FROM imports";
    let before = world.database.query_i64(counted).await;
    let run = || import.ran(&["run", "--refused-file", file.to_str().expect("text")]);
    let last = run();
    let said = format!("clients: went on after {before} rows of runs before.\nCounted here is this run alone: ");
    assert!(last.code == 0 && last.stdout.starts_with(&said), "{before} rows were taken: {last:?}");
    assert_eq!((rows(&world).await, created(&world).await, audited(&world).await), (3920, 3920, 3920));
    world.assert_all(&keys, Outcome::Valid).await;
    let whole = run();
    assert!(whole.code == 0 && !whole.stdout.contains("went on"), "it has read everything: {whole:?}");
}

store_test!(a_run_that_is_repeated_changes_nothing);
async fn a_run_that_is_repeated_changes_nothing(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (source, keys) = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let first = import.run(&[]);
    assert_eq!(first.table("clients").counts(["created", "existing", "duplicates", "refused"]), [3920, 0, 40, 40]);
    let ids = ids(&world, &keys).await;

    let again = import.run(&[]);
    assert!(!again.is("resumed"), "a pass that is done begins anew");
    assert_eq!(again.table("clients").counts(["created", "existing", "refused"]), [0, 3920, 40]);
    assert_eq!(again.table("clients").counts(["existing", "duplicates"]).iter().sum::<u64>(), 3960);
    assert_eq!(rows(&world).await, 3920);
    assert_eq!(self::ids(&world, &keys).await, ids, "the same keys under the same ids");

    // What is new in the source comes in, and nothing else does.
    let added = world.keys.text("added");
    source.run(&format!("INSERT INTO clients (id, name, api_key) VALUES (5001, 'added', '{added}')")).await;
    let third = import.run(&[]);
    assert_eq!(third.table("clients").counts(["created", "existing"]), [1, 3920]);
    assert_eq!(world.outcome(&added).await, Outcome::Valid);
    assert_eq!(audited(&world).await, 3921);
}

async fn ids(world: &World, keys: &[String]) -> BTreeSet<String> {
    let answers = world.ask_all(keys.iter().map(|key| presenting(key)).collect()).await;
    answers.into_iter().map(|answer| answer.key_id).collect()
}

store_test!(a_key_that_was_revoked_in_keystead_stays_so_when_the_run_is_repeated);
async fn a_key_that_was_revoked_in_keystead_stays_so_when_the_run_is_repeated(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (source, keys) = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    import.run(&[]);
    let id = world.present(&keys[0]).await.key_id;
    let request = keystead::proto::v1::RevokeKeyRequest { key_id: id, ..Default::default() };
    world.server.keys().revoke_key(request).await.expect("revoked");
    import.run(&[]);
    assert_eq!(world.outcome(&keys[0]).await, Outcome::Revoked);
    let verified = import.verify(&["--accept-refused"]);
    assert!(verified.is("passed"), "it may less than its row says, which is no fault of the import");
    assert_eq!(verified.table("clients").by("outcomes").get("ENDED_SINCE"), Some(&1));
}
