//! What limits had counted in the source, where servers count in Redis: the windows go there, so that each key may just
//! what the old system would still have let it do. `windows` shows the same where the database counts.
//! A charge that Redis answers late is counted by the server alone, and on the safe side twice: exactness is shown by a
//! round without such a one. Invariant: spent quota is forgotten neither by a repeat, nor by a restart, nor because
//! Redis was away.

use keystead::proto::v1::Outcome::{RateLimited, Valid};
use keystead::proto::v1::VerifyKeyRequest;
use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

use super::organizations::{now, written};
use super::world::{Report, World, far_from_midnight, presenting};
use crate::harness::cli::{self, Ran};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{Engine, OwnRedis, Server, TestDatabase, store_test, wait_until};
use crate::server::metrics::{get, value};

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;
/// The most that any limit here admits.
const MOST: usize = 50;
/// How often all cases are there, each time with keys of their own.
const ROUNDS: usize = 6;
/// The round of what goes on in the source meanwhile; those before it are for exactness.
const LATER: usize = ROUNDS - 1;

const MAPPING: &str = r#"
source = "shared"

[[organizations]]
table = "organizations"
id = "id"
[organizations.columns]
key = "id"
name = "name"
slug = "name"
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
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "30d"

[[limits]]
table = "counted"
id = "id"
[limits.columns]
key = "key_id"
organization = "organization_id"
name = "name"
window-start = "since"
window-end = "until"
count = "count"
"#;

/// An organization with one key; where a number is 0, there is no such limit.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    requests_max: i64,
    calls_max: i64,
    /// What was spent of each, where something was.
    requests: Option<i64>,
    calls: Option<i64>,
    left: usize,
}

const CASES: [Case; 5] = [
    Case { name: "calls", requests_max: 0, calls_max: 20, requests: None, calls: Some(18), left: 2 },
    Case { name: "overrun", requests_max: 0, calls_max: 20, requests: None, calls: Some(25), left: 0 },
    Case { name: "fresh", requests_max: 0, calls_max: 5, requests: None, calls: None, left: 5 },
    Case { name: "requests", requests_max: 50, calls_max: 0, requests: Some(46), calls: None, left: 4 },
    Case { name: "both", requests_max: 50, calls_max: 20, requests: Some(49), calls: Some(10), left: 1 },
];

/// The windows that run: those of `CASES` in each round.
const RUNNING: u64 = 5 * ROUNDS as u64;

/// The old system; keys are in the order of rounds and, in each, of cases.
struct Old {
    source: SourceDatabase,
    secrets: Vec<String>,
}

impl Old {
    async fn build(world: &World) -> Self {
        let source = SourceDatabase::new(world.database.engine).await;
        let time = if source.engine() == SourceEngine::Postgres { "timestamptz" } else { "text" };
        source
            .run(&format!(
                "CREATE TABLE organizations (id varchar(36) PRIMARY KEY NOT NULL, name text, requests_max bigint);
                 CREATE TABLE client_keys (id bigint PRIMARY KEY NOT NULL, secret text, organization_id varchar(36), \
                 calls_max bigint);
                 CREATE TABLE counted (id bigint PRIMARY KEY NOT NULL, key_id bigint, organization_id varchar(36), \
                 name text, since {time}, until {time}, count bigint)"
            ))
            .await;
        let secrets = world.keys.texts("shared", ROUNDS * CASES.len());
        let (mut organizations, mut keys) = (Vec::<Vec<Cell>>::new(), Vec::<Vec<Cell>>::new());
        let mut windows = Vec::<Vec<Cell>>::new();
        let optional = |number: i64| (number > 0).then(|| number.to_string());
        for (at, secret) in secrets.iter().enumerate() {
            let (round, case) = (at / CASES.len(), CASES[at % CASES.len()]);
            let name = format!("{}-{round}", case.name);
            organizations.push(vec![cell(organization_id(at)), cell(name), optional(case.requests_max)]);
            let id = cell(at.to_string());
            keys.push(vec![id.clone(), cell(secret), cell(organization_id(at)), optional(case.calls_max)]);
            let owners =
                [("calls", id, None, case.calls), ("requests", None, cell(organization_id(at)), case.requests)];
            for (name, key, organization, spent) in owners {
                let Some(spent) = spent else { continue };
                // One that runs, and one that nobody is charged for any more.
                for (since, until, count) in [(-HOUR, 23 * HOUR, spent), (-70 * DAY, -65 * DAY, 1_000_000)] {
                    windows.push(vec![
                        cell(windows.len().to_string()),
                        key.clone(),
                        organization.clone(),
                        cell(name),
                        cell(written(now() + since)),
                        cell(written(now() + until)),
                        cell(count.to_string()),
                    ]);
                }
            }
        }
        source.insert("organizations", "id, name, requests_max", &organizations).await;
        source.insert("client_keys", "id, secret, organization_id, calls_max", &keys).await;
        let columns = "id, key_id, organization_id, name, since, until, count";
        source.insert("counted", columns, &windows).await;
        Self { source, secrets }
    }

    /// The secret of a case in a round.
    fn secret(&self, round: usize, name: &str) -> &str {
        let at = CASES.iter().position(|case| case.name == name).expect("a case");
        &self.secrets[round * CASES.len() + at]
    }
}

fn organization_id(at: usize) -> String {
    format!("{:08x}-7777-4777-8777-000000000000", at + 1)
}

/// A world whose server counts in this Redis.
async fn over(database: TestDatabase, redis: &OwnRedis) -> World {
    // All windows are those of one day.
    far_from_midnight().await;
    let mut world = World::new(database, "elsewhere").await;
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    let url = redis.url();
    let arguments = ["--metrics-listen", "127.0.0.1:0", "--redis-url", &url];
    let server = Server::start(&world.database, &arguments).await;
    world.server = server;
    counts_in_redis(&world).await;
    world
}

async fn counts_in_redis(world: &World) {
    wait_until("the server to count in Redis", async || {
        world.server.health("keystead.limits").await == Some(ServingStatus::Serving)
    })
    .await;
}

/// Runs the import: on PostgreSQL beside the server, on SQLite while it is away.
async fn bring_in(world: &mut World, old: &Old, redis: &OwnRedis) -> Ran {
    let is_alone = world.database.engine == Engine::Sqlite;
    if is_alone {
        world.server.sigterm();
        assert!(world.server.wait_exit().await.success());
    }
    let import = world.import(&old.source.reader_url().await, MAPPING);
    let mut command = import.command(&["run", "--batch", "7", "--output", "json"]);
    command.env("KEYSTEAD_REDIS_URL", redis.url());
    let ran = cli::run(command, "");
    if is_alone {
        world.server.restart().await;
    }
    ran
}

/// What became of windows, by the words of the report.
fn windows(ran: &Ran, names: [&str; 4]) -> [u64; 4] {
    Report::of(ran).table("counted").counts(names)
}

/// How many charges the server has made without Redis.
async fn charged_alone(world: &World) -> Option<f64> {
    let (_, page) = get(world.server.metrics_address(), "/metrics").await;
    let alone = value(&page, "keystead_limiter_alone");
    assert!(alone.is_some(), "{page}");
    alone
}

/// How often a key is let through.
async fn admitted(world: &World, secret: &str) -> usize {
    let mut admitted = 0;
    loop {
        let outcome = world.outcome(secret).await;
        if outcome != Valid {
            assert_eq!(outcome, RateLimited);
            return admitted;
        }
        admitted += 1;
        assert!(admitted <= MOST, "the limit has no end");
    }
}

/// Uses up what is left of each case, in a round that Redis answered in time; gives that round.
async fn assert_what_is_left(world: &World, old: &Old) -> usize {
    for round in 0..LATER {
        let before = charged_alone(world).await;
        let mut seen = Vec::new();
        for case in CASES {
            seen.push((case.name, admitted(world, old.secret(round, case.name)).await));
        }
        if charged_alone(world).await == before {
            assert_eq!(seen, CASES.map(|case| (case.name, case.left)), "round {round}");
            return round;
        }
    }
    panic!("Redis was slower than a charge may take, in each of {LATER} rounds");
}

/// What is left of a key's limits, without a charge.
async fn left(world: &World, secret: &str) -> Vec<i64> {
    let answer = world.ask(VerifyKeyRequest { cost: Some(0), ..presenting(secret) }).await;
    answer.rate_limits.iter().map(|limit| limit.remaining).collect()
}

/// Waits until Redis has said that nothing is left of any case; it never says so of one that was forgotten.
async fn assert_spent(world: &World, old: &Old, round: usize) {
    for case in CASES {
        let secret = old.secret(round, case.name);
        wait_until("a spent limit to be known", async || left(world, secret).await.contains(&0)).await;
    }
}

store_test!(what_was_spent_elsewhere_stays_spent_where_servers_count_in_redis);
async fn what_was_spent_elsewhere_stays_spent_where_servers_count_in_redis(database: TestDatabase) {
    let redis = OwnRedis::start().await;
    let mut world = over(database, &redis).await;
    let old = Old::build(&world).await;
    let names = ["created", "existing", "skipped", "refused"];
    let ran = bring_in(&mut world, &old, &redis).await;
    assert_eq!(windows(&ran, names), [RUNNING, 0, RUNNING, 0], "what is over counts no more");
    // A repeat charges nothing twice.
    let again = bring_in(&mut world, &old, &redis).await;
    assert_eq!(windows(&again, names), [0, RUNNING, RUNNING, 0]);
    counts_in_redis(&world).await;
    let round = assert_what_is_left(&world, &old).await;

    // Neither a repeat nor a server that knows of nothing gives anything back.
    let again = bring_in(&mut world, &old, &redis).await;
    assert_eq!(windows(&again, names), [0, RUNNING, RUNNING, 0]);
    world.server.restart().await;
    counts_in_redis(&world).await;
    assert_spent(&world, &old, round).await;

    // What is used there meanwhile is added, and no more.
    let secret = old.secret(LATER, "calls");
    wait_until("what was spent to be known", async || left(&world, secret).await == [2]).await;
    let key = LATER * CASES.len();
    old.source.run(&format!("UPDATE counted SET count = 19 WHERE key_id = {key} AND count = 18")).await;
    let third = bring_in(&mut world, &old, &redis).await;
    assert_eq!(windows(&third, names), [1, RUNNING - 1, RUNNING, 0]);
    counts_in_redis(&world).await;
    wait_until("one more to be spent", async || left(&world, secret).await == [1]).await;
}

store_test!(no_window_is_lost_because_redis_was_away_when_it_came);
async fn no_window_is_lost_because_redis_was_away_when_it_came(database: TestDatabase) {
    let mut redis = OwnRedis::start().await;
    let mut world = over(database, &redis).await;
    let old = Old::build(&world).await;
    redis.kill9();
    let ran = bring_in(&mut world, &old, &redis).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
    assert!(ran.stderr.contains("Redis"), "it says who is away: {ran:?}");
    let of_windows = "FROM imports WHERE table_name = 'counted'";
    assert_eq!(world.database.query_string(&format!("SELECT position {of_windows}")).await, "");
    assert_eq!(world.database.query_i64(&format!("SELECT created_count {of_windows}")).await, 0);
    let keys = i64::try_from(old.secrets.len()).expect("few");
    assert_eq!(world.key_count().await, keys, "what needs no Redis has come over");

    redis.start_again().await;
    let again = bring_in(&mut world, &old, &redis).await;
    assert_eq!(again.json()["resumed"], Value::Bool(true));
    assert_eq!(windows(&again, ["created", "existing", "skipped", "refused"]), [RUNNING, 0, RUNNING, 0]);
    counts_in_redis(&world).await;
    assert_what_is_left(&world, &old).await;
}
