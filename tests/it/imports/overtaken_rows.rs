//! Two runs of one import at the same time, over one database, of rows that are no keys: organizations, past requests,
//! and windows that limits count. What keys do is in `overtaken`. Each run stands where the test lets it.
//! Invariant: whoever comes with rows behind a position that is not the import's any more is told so and changes
//! nothing, so that no request and no window counts twice.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::fed::{FedRun, SOURCE};
use super::organizations::{month, now, written};
use super::world::World;
use crate::harness::source::{SourceDatabase, cell};
use crate::harness::{Engine, TestDatabase, store_test, wait_until};

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// Rows of one kind, as lines of a file.
struct Kind {
    mapping: &'static str,
    line: fn(usize) -> Value,
    /// What there is of them in Keystead.
    count: &'static str,
    /// What a later run of all six finds: how many it reads, and how many of those are here already.
    again: [u64; 2],
}

const ORGANIZATIONS: Kind = Kind {
    mapping: r#"
source = "portal"

[[organizations]]
id = "id"
[organizations.columns]
key = "id"
name = "name"
slug = "name"
"#,
    line: |at| json!({"id": format!("row-{at}"), "name": format!("tenant-{at}")}),
    count: "SELECT count(*) FROM organizations WHERE slug LIKE 'tenant-%'",
    again: [6, 6],
};

const USAGE: Kind = Kind {
    mapping: r#"
source = "portal"

[[usage]]
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"
"#,
    line: |at| json!({"id": format!("row-{at}"), "key_id": "ak_1", "made_at": written(now() - HOUR)}),
    count: "SELECT count(*) FROM api_key_usage",
    // It goes on behind the last one.
    again: [0, 0],
};

const LIMITS: Kind = Kind {
    mapping: r#"
source = "portal"

[[limits]]
id = "id"
[limits.columns]
key = "key_id"
name = "name"
window-start = "since"
window-end = "until"
count = "count"
"#,
    line: |at| {
        // The same window for every run.
        let (since, until) = (written(month(0)), written(month(0) + 32 * DAY));
        json!({"id": format!("row-{at}"), "key_id": "ak_1", "name": "calls", "since": since, "until": until,
               "count": "1"})
    },
    count: "SELECT CAST(coalesce(sum(count), 0) AS bigint) FROM rate_limit_tracking
            WHERE limit_name = 'calls' AND subject_id NOT LIKE 'import %'",
    again: [6, 6],
};

/// The key that requests and windows are of.
const KEYS: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
key-id = "key_id"
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "30d"
"#;

async fn bring_in_the_key(world: &World) {
    let source = SourceDatabase::new(world.database.engine).await;
    let columns = "(id bigint PRIMARY KEY NOT NULL, secret text, key_id text, calls_max bigint)";
    source.run(&format!("CREATE TABLE client_keys {columns}")).await;
    let row = vec![cell("1"), cell(world.keys.text("key")), cell("ak_1"), cell("1000")];
    source.insert("client_keys", "id, secret, key_id, calls_max", &[row]).await;
    assert_eq!(world.import(source.url(), KEYS).run(&[]).table("client_keys").count("created"), 1);
}

/// These rows of a source that has six.
fn lines(kind: &Kind, rows: RangeInclusive<usize>) -> String {
    rows.fold(String::new(), |mut text, at| {
        let _ = writeln!(text, "{}", (kind.line)(at));
        text
    })
}

/// Where the import stands, what it has counted, and what there is.
async fn state(world: &World, kind: &Kind) -> (String, i64) {
    let sql = "SELECT state || ' ' || position || ' ' || created_count || ' ' || existing_count || ' ' || \
               refused_count FROM imports WHERE table_name = ''";
    (world.database.query_string(sql).await, world.database.query_i64(kind.count).await)
}

async fn the_slower_run_is_told(database: TestDatabase, kind: &Kind) {
    let world = World::new(database, "acme").await;
    bring_in_the_key(&world).await;
    let file = |run: &str| world.path(&format!("refused-{run}.csv")).to_str().expect("text").to_owned();
    let import = world.import(SOURCE, kind.mapping);
    let mut slow = FedRun::start(&import, &["--batch", "2", "--refused-file", &file("slow")]);
    slow.feed(&lines(kind, 1..=2));
    let first = "SELECT count(*) FROM imports WHERE position = 'row-2'";
    wait_until("a batch to be in", async || world.database.query_i64(first).await == 1).await;

    // The other one goes on from there, to the end.
    let fast = world.import(SOURCE, kind.mapping).reading(&lines(kind, 1..=6));
    let report = fast.run(&["--batch", "2", "--refused-file", &file("fast")]);
    assert!(report.is("resumed"));
    assert_eq!(report.table("").counts(["rows", "created", "refused"]), [4, 4, 0]);
    let before = state(&world, kind).await;
    assert_eq!(before, ("done row-6 6 0 0".to_owned(), 6));

    slow.feed(&lines(kind, 3..=4));
    let told = slow.end().await;
    assert_eq!((told.code, told.stdout.as_str()), (1, ""), "{told:?}");
    assert!(told.stderr.contains("another run has gone on with this table"), "{told:?}");
    assert!(!told.stderr.contains("panicked"), "{told:?}");
    assert_eq!(state(&world, kind).await, before, "not even counts or the position");

    let again = world.import(SOURCE, kind.mapping).reading(&lines(kind, 1..=6)).run(&[]);
    assert_eq!(again.table("").counts(["rows", "existing"]), kind.again);
    assert_eq!(again.table("").count("created"), 0, "nothing was lost");
    assert_eq!(state(&world, kind).await.1, 6);
}

store_test!(a_run_of_organizations_that_was_overtaken_changes_nothing);
async fn a_run_of_organizations_that_was_overtaken_changes_nothing(database: TestDatabase) {
    the_slower_run_is_told(database, &ORGANIZATIONS).await;
}

store_test!(a_run_of_past_requests_that_was_overtaken_changes_nothing);
async fn a_run_of_past_requests_that_was_overtaken_changes_nothing(database: TestDatabase) {
    the_slower_run_is_told(database, &USAGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_windows_that_was_overtaken_changes_nothing() {
    // PostgreSQL alone: into a file of SQLite one run at a time brings windows in.
    the_slower_run_is_told(TestDatabase::new(Engine::Postgres).await, &LIMITS).await;
}
