//! A run that ends in the midst of rows that are no keys: organizations, requests of the past, and windows that limits
//! count. By `kill -9` or by SIGINT, once among each of them; then it is gone on with. What keys do is in `resume`. The
//! end lands inside: first the source and then Keystead's database keeps the run waiting.
//! Invariant: Keystead then has what it has after a run that nobody disturbed, and no row counts twice.

use keystead::proto::v1::Outcome::{RateLimited, Valid};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement};

use super::organizations::{month, now, written};
use super::under_way::{UnderWay, let_go};
use super::world::{World, far_from_midnight, refused_rows};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{Engine, TestDatabase, store_test, wait_until};

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;
const ORGANIZATIONS: usize = 600;
const KEYS: usize = 40;
const REQUESTS: usize = 1500;
const WINDOWS: usize = 1200;
/// A key that nobody has.
const NOBODY: usize = 9999;

/// The tables in which a run ends, with rows so few in a batch that each takes many.
const ENDS: [(&str, &str); 3] = [("organizations", "1"), ("requests", "2"), ("counted", "2")];

const MAPPING: &str = r#"
source = "interrupted"

[[organizations]]
table = "organizations"
id = "id"
[organizations.columns]
key = "id"
name = "name"
slug = "name"
monthly-quota = "quota"
quota-used = "used"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
key-id = "id"
secret = "secret"
organization = "organization_id"
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "30d"

[[usage]]
table = "requests"
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"
endpoint = "endpoint"
status-code = "status"
tokens = "tokens"
response-time-ms = "ms"

[[limits]]
table = "counted"
id = "id"
[limits.columns]
key = "key_id"
name = "name"
window-start = "since"
window-end = "until"
count = "count"
"#;

/// What Keystead has of the source: what it is, and a line for each row of it. Nothing of it depends on when or in how
/// many runs it came.
const STATE: [(&str, &str); 12] = [
    (
        "organizations",
        "SELECT id || ' ' || name || ' ' || slug || ' ' || plan || ' ' || active || ' ' || monthly_quota || ' ' || etag
         FROM organizations WHERE id LIKE OURS",
    ),
    (
        "keys",
        "SELECT id || ' ' || organization_id || ' ' || source_id || ' ' || status || ' ' || rate_limits || ' ' || etag
         FROM api_keys WHERE id LIKE OURS",
    ),
    (
        "requests",
        "SELECT key_id || ' ' || organization_id || ' ' || time_us || ' ' || endpoint || ' ' || status_code || ' ' ||
             response_time_us || ' ' || tokens
         FROM api_key_usage WHERE organization_id LIKE OURS",
    ),
    (
        "sums by key and hour",
        "SELECT organization_id || ' ' || hour_us || ' ' || key_id || ' ' || endpoint || ' ' || outcome || ' ' ||
             requests_reported || ' ' || errors || ' ' || response_time_sum_us || ' ' || tokens
         FROM usage_rollups WHERE organization_id LIKE OURS",
    ),
    (
        "sums by organization",
        "SELECT organization_id || ' ' || granularity || ' ' || start_us || ' ' || endpoint || ' ' || outcome || ' ' ||
             requests_reported || ' ' || errors || ' ' || response_time_sum_us || ' ' || tokens
         FROM usage_totals WHERE organization_id LIKE OURS",
    ),
    (
        "sums by key",
        "SELECT organization_id || ' ' || granularity || ' ' || start_us || ' ' || key_id || ' ' || outcome || ' ' ||
             requests_reported || ' ' || errors || ' ' || response_time_sum_us || ' ' || tokens
         FROM usage_consumers WHERE organization_id LIKE OURS",
    ),
    (
        "errors",
        "SELECT subject_id || ' ' || granularity || ' ' || start_us || ' ' || error_code || ' ' || count
         FROM usage_errors WHERE subject_id LIKE OURS",
    ),
    (
        "response times",
        "SELECT subject_id || ' ' || granularity || ' ' || start_us || ' ' || endpoint || ' ' || bucket || ' ' || count
         FROM usage_response_times WHERE subject_id LIKE OURS",
    ),
    (
        "limits and quotas",
        "SELECT subject_id || ' ' || limit_name || ' ' || window_start_us || ' ' || window_end_us || ' ' || count
         FROM rate_limit_tracking WHERE subject_id LIKE OURS AND subject_id NOT LIKE 'import %'",
    ),
    (
        // After the word, the import's own id and a space each: the row's id, and whose it is.
        "windows",
        "SELECT substr(subject_id, 45) || ' ' || limit_name || ' ' || window_start_us || ' ' || window_end_us || ' ' ||
             count
         FROM rate_limit_tracking WHERE subject_id LIKE 'import % %'",
    ),
    (
        "imports",
        "SELECT table_name || ' ' || state || ' ' || position || ' ' || created_count || ' ' || existing_count || ' ' ||
             refused_count
         FROM imports",
    ),
    (
        "audit events",
        "SELECT target_id FROM audit_events WHERE action = 'organization.create' AND target_id LIKE OURS",
    ),
];

/// The ids of organizations and of keys, and no others.
const OURS: &str = "'%-5555-4555-8555-00000000000_'";

fn organization_id(at: usize) -> String {
    format!("{:08x}-5555-4555-8555-000000000000", at + 1)
}

fn key_id(at: usize) -> String {
    format!("{:08x}-5555-4555-8555-000000000001", at + 1)
}

/// The old system.
struct Old {
    source: SourceDatabase,
    /// Of an account that may only select.
    url: String,
    secrets: Vec<String>,
}

impl Old {
    async fn build(world: &World) -> Self {
        let source = SourceDatabase::new(world.database.engine).await;
        let time = if source.engine() == SourceEngine::Postgres { "timestamptz" } else { "text" };
        source
            .run(&format!(
                "CREATE TABLE organizations (id varchar(36) PRIMARY KEY NOT NULL, name text, quota bigint, used bigint);
                 CREATE TABLE client_keys (id varchar(36) PRIMARY KEY NOT NULL, secret text, \
                 organization_id varchar(36), calls_max bigint);
                 CREATE TABLE requests (id bigint PRIMARY KEY NOT NULL, key_id varchar(36), endpoint text, \
                 status bigint, tokens bigint, ms bigint, made_at {time});
                 CREATE TABLE counted (id bigint PRIMARY KEY NOT NULL, key_id varchar(36), name text, since {time}, \
                 until {time}, count bigint)"
            ))
            .await;
        let secrets = world.keys.texts("interrupted", KEYS);
        let organizations: Vec<Vec<Cell>> = (0..ORGANIZATIONS).map(organization).collect();
        source.insert("organizations", "id, name, quota, used", &organizations).await;
        let key = |(at, secret): (usize, &String)| -> Vec<Cell> {
            vec![cell(key_id(at)), cell(secret), cell(organization_id(at * 7)), cell("33")]
        };
        let keys: Vec<Vec<Cell>> = secrets.iter().enumerate().map(key).collect();
        source.insert("client_keys", "id, secret, organization_id, calls_max", &keys).await;
        let requests: Vec<Vec<Cell>> = (0..REQUESTS).map(request).collect();
        source.insert("requests", "id, key_id, endpoint, status, tokens, ms, made_at", &requests).await;
        let running = [now() - HOUR, now() + 23 * HOUR].map(|seconds| cell(written(seconds)));
        let windows: Vec<Vec<Cell>> = (0..WINDOWS).map(|at| window(at, &running)).collect();
        source.insert("counted", "id, key_id, name, since, until, count", &windows).await;
        let url = source.reader_url().await;
        Self { source, url, secrets }
    }
}

fn organization(at: usize) -> Vec<Cell> {
    let quota = if at.is_multiple_of(3) { cell("1000") } else { None };
    vec![cell(organization_id(at)), cell(format!("org-{at}")), quota, cell((at % 50).to_string())]
}

/// Every fiftieth is of a key that nobody has.
fn request(at: usize) -> Vec<Cell> {
    let seconds = i64::try_from(at * 1000).expect("small") % (27 * DAY);
    let key = if at % 50 == 49 { NOBODY } else { at * 11 % KEYS };
    vec![
        cell((at + 1).to_string()),
        cell(key_id(key)),
        cell(format!("/v1/{}", at % 5)),
        cell(if at.is_multiple_of(7) { "500" } else { "200" }),
        cell((at % 100).to_string()),
        cell((at % 300).to_string()),
        cell(written(month(1) + seconds)),
    ]
}

/// One of thirty windows of a key that run, with one request each; every hundredth is of a key that nobody has.
fn window(at: usize, running: &[Cell; 2]) -> Vec<Cell> {
    let key = if at % 100 == 99 { NOBODY } else { at % KEYS };
    let [since, until] = running.clone();
    vec![cell((at + 1).to_string()), cell(key_id(key)), cell("calls"), since, until, cell("1")]
}

/// How a run ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Kill9,
    Interrupt,
}

/// A world whose server is away, as it has to be on SQLite while windows come over.
async fn without_server(database: TestDatabase) -> World {
    let mut world = World::new(database, "elsewhere").await;
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    world
}

/// Keeps every batch waiting from now on; none is half written when this returns.
async fn hold(database: &TestDatabase) -> DatabaseConnection {
    let connection = database.connect().await;
    let statement = match database.engine {
        Engine::Sqlite => "BEGIN IMMEDIATE",
        Engine::Postgres => "BEGIN; LOCK TABLE imports IN EXCLUSIVE MODE",
    };
    connection.execute_unprepared(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    connection
}

/// Starts a run, or goes on with the last one, and ends it in the midst of a table.
async fn end_within(world: &World, old: &Old, (table, batch): (&str, &str), refused: &str, end: End) {
    let import = world.import(&old.url, MAPPING);
    let mut run =
        UnderWay::start(import.command(&["run", "--batch", batch, "--refused-file", refused, "--output", "json"]));
    let under_way =
        format!("SELECT count(*) FROM imports WHERE table_name = '{table}' AND state = 'running' AND position <> ''");
    wait_until("the run to have written something", async || {
        run.expect_running();
        world.database.query_i64(&under_way).await == 1
    })
    .await;
    // It comes no further meanwhile. The source first: reads are so short that its lock is had at once, while the one
    // of SQLite beside a run that writes and writes may take long.
    let unread = old.source.lock(table).await;
    let held = hold(&world.database).await;
    assert_eq!(world.database.query_i64(&under_way).await, 1, "the run is in the midst of {table}");
    let_go(unread).await;
    if world.database.engine == Engine::Postgres {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        wait_until("a batch to wait", async || world.database.query_i64(waiting).await == 1).await;
    }
    run.expect_running();
    match end {
        End::Kill9 => {
            run.kill9();
            let_go(held).await;
        }
        End::Interrupt => {
            run.interrupt();
            let_go(held).await;
            let ran = run.ended().await;
            assert_eq!(ran.code, 1, "{ran:?}");
            assert!(ran.stderr.contains("the same command goes on from here"), "{ran:?}");
            assert_eq!(ran.any_json()["interrupted"], true, "{ran:?}");
        }
    }
    assert_eq!(world.database.query_i64(&under_way).await, 1, "{table} is not done");
    assert_counted(world, table).await;
}

/// Fails unless some of a table's rows are here, and just as many as are said to be.
async fn assert_counted(world: &World, table: &str) {
    let (here, all) = match table {
        "organizations" => ("organizations WHERE id LIKE OURS", ORGANIZATIONS),
        "requests" => ("api_key_usage WHERE organization_id LIKE OURS", REQUESTS),
        _ => ("rate_limit_tracking WHERE subject_id LIKE 'import % %'", WINDOWS),
    };
    let here = world.database.query_i64(&format!("SELECT count(*) FROM {here}").replace("OURS", OURS)).await;
    let counted = format!("SELECT created_count FROM imports WHERE table_name = '{table}'");
    assert_eq!(world.database.query_i64(&counted).await, here, "rows of {table} are counted");
    assert!(0 < here && here < i64::try_from(all).expect("few"), "some rows of {table} are here: {here}");
}

/// The lines of a part of the state, in order.
async fn lines(database: &TestDatabase, select: &str) -> Vec<String> {
    let connection = database.connect().await;
    let statement = Statement::from_string(connection.get_database_backend(), select.replace("OURS", OURS));
    let rows = connection.query_all_raw(statement).await.unwrap_or_else(|error| panic!("{select}: {error}"));
    connection.close().await.expect("the connection closes");
    let mut lines: Vec<String> = rows.iter().map(|row| row.try_get_by_index(0).expect("a text")).collect();
    lines.sort_unstable();
    lines
}

/// Fails unless one database of Keystead's has of the source what the other one has.
async fn assert_alike(seen: &TestDatabase, expected: &TestDatabase) {
    for (what, select) in STATE {
        let (seen, expected) = (lines(seen, select).await, lines(expected, select).await);
        assert!(!expected.is_empty(), "there are no {what} to compare");
        let odd = seen.iter().find(|line| expected.binary_search(line).is_err());
        assert!(seen == expected, "{what}: {} lines, expected {}; {odd:?} is not", seen.len(), expected.len());
    }
}

async fn ends_as_an_undisturbed_one(database: TestDatabase, end: End) {
    // Windows and quotas of both runs are those of the same day.
    far_from_midnight().await;
    let undisturbed = without_server(TestDatabase::new(database.engine).await).await;
    let mut world = without_server(database).await;
    let old = Old::build(&world).await;
    undisturbed.import(&old.url, MAPPING).run(&[]);

    let file = world.path("refused.csv");
    let refused = file.to_str().expect("text");
    let import = world.import(&old.url, MAPPING);
    for within in ENDS {
        end_within(&world, &old, within, refused, end).await;
    }
    let report = import.run(&["--refused-file", refused]);
    assert!(report.is("resumed") && !report.is("interrupted"));
    assert_alike(&world.database, &undisturbed.database).await;
    match end {
        // What Keystead refused last may be missing in the file of a run that was killed.
        End::Kill9 => {}
        End::Interrupt => assert_eq!(refused_rows(&file).len(), REQUESTS / 50 + WINDOWS / 100),
    }
    // A pass that is done begins anew, and counts nothing once more.
    import.run(&["--refused-file", refused]);
    undisturbed.import(&old.url, MAPPING).run(&[]);
    assert_alike(&world.database, &undisturbed.database).await;

    world.server.restart().await;
    for secret in &old.secrets[..3] {
        for spent in 30..33 {
            assert_eq!(world.outcome(secret).await, Valid, "{spent} of 33");
        }
        assert_eq!(world.outcome(secret).await, RateLimited);
    }
}

store_test!(a_run_that_is_killed_among_rows_that_are_no_keys_ends_as_an_undisturbed_one);
async fn a_run_that_is_killed_among_rows_that_are_no_keys_ends_as_an_undisturbed_one(database: TestDatabase) {
    ends_as_an_undisturbed_one(database, End::Kill9).await;
}

store_test!(a_run_that_is_interrupted_among_rows_that_are_no_keys_ends_as_an_undisturbed_one);
async fn a_run_that_is_interrupted_among_rows_that_are_no_keys_ends_as_an_undisturbed_one(database: TestDatabase) {
    ends_as_an_undisturbed_one(database, End::Interrupt).await;
}
