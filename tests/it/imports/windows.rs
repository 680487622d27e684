//! What limits and quotas had counted in the source goes on counting: of a quota that is nearly spent there is as much
//! left as there was, a window that is nearly full is nearly full, and neither a repeat of the import nor a restart
//! gives anything back. Invariant: nobody may more after the import than the old system would have let them.

use std::collections::BTreeMap;

use keystead::proto::v1::Outcome::{self, CreditsExhausted, QuotaExceeded, RateLimited, Valid};

use super::organizations::{month, now, written};
use super::world::{Report, World, far_from_midnight, refused_rows};
use crate::harness::cli::{self, Ran};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{Engine, TestDatabase, store_test};

const MAPPING: &str = r#"
source = "counted"

[[organizations]]
table = "organizations"
id = "id"
[organizations.columns]
key = "id"
name = "name"
slug = "name"
monthly-quota = "quota"
quota-used = "used"
[[organizations.limits]]
name = "requests"
limit = "requests_max"
window = "30d"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
organization = "organization_id"
credits-remaining = "credits"
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "30d"

[[limits]]
table = "counted"
id = "id"
quota = "monthly"
[limits.columns]
key = "key_id"
organization = "organization_id"
name = "name"
window-start = "since"
window-end = "until"
count = "count"
"#;

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// What is counted of an organization with one key: where a number is 0, there is no such limit.
#[derive(Clone, Copy, Default)]
struct Counted {
    name: &'static str,
    quota: i64,
    used: i64,
    requests_max: i64,
    calls_max: i64,
    credits: Option<i64>,
    /// Name and count of a window that runs, of the organization and of the key.
    of_organization: Option<(&'static str, i64)>,
    of_key: Option<(&'static str, i64)>,
}

/// With what is left of each, and what is said when that is spent.
fn cases() -> Vec<(Counted, usize, Outcome)> {
    let quota = |name, used| Counted { name, quota: 1000, used, ..Counted::default() };
    let calls = |name, count| Counted { name, calls_max: 20, of_key: Some(("calls", count)), ..Counted::default() };
    let requests = |name, count| {
        let of_organization = Some(("requests", count));
        Counted { name, requests_max: 50, of_organization, ..Counted::default() }
    };
    vec![
        (quota("quota-by-column", 997), 3, QuotaExceeded),
        (Counted { of_organization: Some(("monthly", 998)), ..quota("quota-by-window", 0) }, 2, QuotaExceeded),
        // Both tell of the same requests.
        (Counted { of_organization: Some(("monthly", 995)), ..quota("quota-by-both", 990) }, 5, QuotaExceeded),
        (quota("quota-overspent", 1200), 0, QuotaExceeded),
        (requests("requests", 46), 4, RateLimited),
        (requests("requests-full", 50), 0, RateLimited),
        (calls("calls", 18), 2, RateLimited),
        (calls("calls-overrun", 25), 0, RateLimited),
        (Counted { name: "credits", credits: Some(3), ..Counted::default() }, 3, CreditsExhausted),
        (Counted { name: "credits-spent", credits: Some(0), ..Counted::default() }, 0, CreditsExhausted),
    ]
}

struct Old {
    source: SourceDatabase,
    secrets: Vec<String>,
}

fn id(at: usize) -> String {
    format!("{:08x}-4444-4444-8444-000000000000", at + 1)
}

async fn build(world: &World) -> Old {
    let source = SourceDatabase::new(world.database.engine).await;
    let time = if source.engine() == SourceEngine::Postgres { "timestamptz" } else { "text" };
    source
        .run(&format!(
            "CREATE TABLE organizations (id varchar(36) PRIMARY KEY NOT NULL, name text, quota bigint, used bigint, \
             requests_max bigint);
             CREATE TABLE client_keys (id bigint PRIMARY KEY NOT NULL, secret text, organization_id varchar(36), \
             calls_max bigint, credits bigint);
             CREATE TABLE counted (id bigint PRIMARY KEY NOT NULL, key_id bigint, organization_id varchar(36), \
             name text, since {time}, until {time}, count bigint)"
        ))
        .await;
    let secrets = world.keys.texts("counted", cases().len());
    let (mut organizations, mut keys) = (Vec::<Vec<Cell>>::new(), Vec::<Vec<Cell>>::new());
    let number = |number: i64| cell(number.to_string());
    let optional = |number: i64| (number > 0).then(|| number.to_string());
    for (at, (case, _, _)) in cases().into_iter().enumerate() {
        let quota = optional(case.quota);
        organizations.push(vec![cell(id(at)), cell(case.name), quota, number(case.used), optional(case.requests_max)]);
        let credits = case.credits.map(|credits| credits.to_string());
        keys.push(vec![cell(at.to_string()), cell(&secrets[at]), cell(id(at)), optional(case.calls_max), credits]);
    }
    source.insert("organizations", "id, name, quota, used, requests_max", &organizations).await;
    source.insert("client_keys", "id, secret, organization_id, calls_max, credits", &keys).await;
    source.insert("counted", "id, key_id, organization_id, name, since, until, count", &windows()).await;
    Old { source, secrets }
}

/// The windows that run, and some that are over: nobody is charged for those.
fn windows() -> Vec<Vec<Cell>> {
    let mut windows = Vec::new();
    for (at, (case, _, _)) in cases().into_iter().enumerate() {
        let running = (now() - HOUR, now() + 23 * HOUR);
        let of_month = (month(0), month(0) + 31 * DAY);
        if let Some((name, count)) = case.of_organization {
            let span = if name == "monthly" { of_month } else { running };
            windows.push(window(windows.len(), None, Some(id(at)), name, span, count));
        }
        if let Some((name, count)) = case.of_key {
            windows.push(window(windows.len(), Some(at), None, name, running, count));
            let over = (now() - 70 * DAY, now() - 65 * DAY);
            windows.push(window(windows.len(), Some(at), None, name, over, 1_000_000));
        }
        if case.quota > 0 {
            let last_month = (month(1), month(0));
            windows.push(window(windows.len(), None, Some(id(at)), "monthly", last_month, 1_000_000));
        }
    }
    windows
}

fn window(
    row: usize,
    key: Option<usize>,
    organization: Option<String>,
    name: &str,
    (since, until): (i64, i64),
    count: i64,
) -> Vec<Cell> {
    let key = key.map(|key| key.to_string());
    vec![
        cell(row.to_string()),
        key,
        organization,
        cell(name),
        cell(written(since)),
        cell(written(until)),
        cell(count.to_string()),
    ]
}

/// Runs the import while no server counts in memory.
async fn bring_in(world: &mut World, old: &Old, refused: &str) -> Report {
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    let url = old.source.reader_url().await;
    let report = world.import(&url, MAPPING).run(&["--refused-file", refused]);
    world.server.restart().await;
    report
}

async fn new_world(database: TestDatabase) -> (World, Old) {
    far_from_midnight().await;
    let world = World::new(database, "elsewhere").await;
    let old = build(&world).await;
    (world, old)
}

store_test!(what_was_spent_stays_spent);
async fn what_was_spent_stays_spent(database: TestDatabase) {
    let (mut world, old) = new_world(database).await;
    let file = world.path("refused.csv");
    let file = file.to_str().expect("text");
    let report = bring_in(&mut world, &old, file).await;
    let counts = report.table("counted").counts(["rows", "created", "skipped", "refused"]);
    assert_eq!(counts, [12, 6, 6, 0], "what is over counts no more");
    // A repeat charges nothing twice.
    let again = bring_in(&mut world, &old, file).await;
    assert_eq!(again.table("counted").counts(["created", "existing", "skipped"]), [0, 6, 6]);

    for (secret, (case, left, then)) in old.secrets.iter().zip(cases()) {
        for spent in 0..left {
            assert_eq!(world.outcome(secret).await, Valid, "{}, {spent} of {left}", case.name);
        }
        assert_eq!(world.outcome(secret).await, then, "{}, {left} of {left}", case.name);
    }
    // Neither a restart nor a repeat gives anything back.
    let again = bring_in(&mut world, &old, file).await;
    assert_eq!(again.table("counted").counts(["created", "existing"]), [0, 6]);
    for (secret, (case, _, then)) in old.secrets.iter().zip(cases()) {
        assert_eq!(world.outcome(secret).await, then, "{}", case.name);
    }
}

store_test!(what_is_spent_in_the_source_meanwhile_is_added_by_a_repeat);
async fn what_is_spent_in_the_source_meanwhile_is_added_by_a_repeat(database: TestDatabase) {
    let (mut world, old) = new_world(database).await;
    let file = world.path("refused.csv");
    let file = file.to_str().expect("text");
    bring_in(&mut world, &old, file).await;
    let by_name = |name: &str| {
        let at = cases().iter().position(|(case, _, _)| case.name == name).expect("a case");
        (at, old.secrets[at].clone())
    };
    let (calls, secret) = by_name("calls");
    assert_eq!(world.outcome(&secret).await, Valid, "one of two");
    old.source.run(&format!("UPDATE counted SET count = 19 WHERE key_id = {calls} AND count = 18")).await;
    bring_in(&mut world, &old, file).await;
    assert_eq!(world.outcome(&secret).await, RateLimited, "the other one was used there");

    let (quota, secret) = by_name("quota-by-column");
    assert_eq!(world.outcome(&secret).await, Valid, "one of three");
    old.source.run(&format!("UPDATE organizations SET used = 998 WHERE id = '{}'", id(quota))).await;
    bring_in(&mut world, &old, file).await;
    assert_eq!(world.outcome(&secret).await, Valid, "two of three");
    assert_eq!(world.outcome(&secret).await, QuotaExceeded, "the third was used there");
}

store_test!(windows_that_cannot_be_read_or_are_nobodys_are_refused);
async fn windows_that_cannot_be_read_or_are_nobodys_are_refused(database: TestDatabase) {
    let (mut world, old) = new_world(database).await;
    let running = (now() - HOUR, now() + 23 * HOUR);
    let calls = cases().iter().position(|(case, _, _)| case.name == "calls");
    let nobody = Some("0198c7a4-5b7e-7c3a-9f00-000000000bad".to_owned());
    let rows = [
        window(101, Some(999_999), None, "calls", running, 1),
        window(102, None, nobody, "requests", running, 1),
        window(103, None, None, "calls", running, 1),
        window(104, calls, None, "no such limit", running, 1),
        window(105, calls, None, "calls", (running.1, running.0), 1),
        window(106, calls, None, "calls", running, -1),
        window(107, calls, None, "monthly", running, 1),
    ];
    old.source.insert("counted", "id, key_id, organization_id, name, since, until, count", &rows).await;
    let file = world.path("refused.csv");
    bring_in(&mut world, &old, file.to_str().expect("text")).await;
    let reasons = [
        (101, "UNKNOWN_KEY"),
        (102, "UNKNOWN_ORGANIZATION"),
        (103, "BAD_LIMIT"),
        (104, "BAD_LIMIT"),
        (105, "BAD_LIMIT"),
        (106, "BAD_LIMIT"),
        (107, "BAD_LIMIT"),
    ];
    let row = |(id, reason): (i32, &str)| (("counted".to_owned(), id.to_string()), reason.to_owned());
    assert_eq!(refused_rows(&file), BTreeMap::from(reasons.map(row)));
}

store_test!(that_windows_go_where_servers_may_not_look_is_told_unless_redis_is_named);
async fn that_windows_go_where_servers_may_not_look_is_told_unless_redis_is_named(database: TestDatabase) {
    let (mut world, old) = new_world(database).await;
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    let url = old.source.reader_url().await;
    let says = |ran: &Ran| {
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stderr.contains("KEYSTEAD_REDIS_URL")
    };
    let import = world.import(&url, MAPPING);
    assert!(says(&import.ran(&["plan"])) && says(&import.ran(&["run"])));
    let mut command = import.command(&["plan"]);
    // A plan asks nobody there.
    command.env("KEYSTEAD_REDIS_URL", "redis://127.0.0.1:1");
    assert!(!says(&cli::run(command, "")));
    let (without, _) = MAPPING.split_once("[[limits]]").expect("a table of windows");
    assert!(!says(&world.import(&url, without).ran(&["plan"])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_do_not_come_over_beside_a_server_that_counts_in_memory() {
    // SQLite alone: servers on PostgreSQL count in the table that is written to.
    let (world, old) = new_world(TestDatabase::new(Engine::Sqlite).await).await;
    let ran = world.import(old.source.url(), MAPPING).ran(&["run"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("stop it first"), "it says who is in the way: {ran:?}");
}
