//! `store::usage_sums` against a slow model that is obviously right: all that was verified and reported is kept in a
//! list, and each statistic is counted from it. Random usage over three months, random spans, every granularity, for
//! organizations and keys; and what migrating and absurd amounts must not change.

use std::collections::BTreeMap;
use std::time::Duration;

use keystead::domain::{
    ids::{KeyId, OrganizationId},
    outcome::Outcome,
    response_times::bucket_of,
    time::{HOUR_US, Timestamp},
    usage::{UsageSubject, UsageTotals},
    usage_report::UsageReport,
    usage_span::{Granularity, UsageSpan},
};
use keystead::random;
use keystead::store::{migrate, usage, usage::RollupKey, usage_sums};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::{World, nobody, options};
use crate::harness::{TestDatabase, samples, store_test};

/// 2026-01-30T21:00:00Z: usage begins a little before the end of a month.
const FIRST: i64 = 1_769_806_800_000_000;
/// Hours of usage: over three ends of months, one of them of February.
const HOURS: i64 = 2200;
const ENDPOINTS: [&str; 3] = ["/a", "/b", ""];
const OUTCOMES: [Outcome; 3] = [Outcome::Valid, Outcome::RateLimited, Outcome::Revoked];

/// One use: hour, key and endpoint by number, and an outcome or a report.
#[derive(Debug, Clone)]
struct Use {
    hour: i64,
    key: usize,
    endpoint: usize,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Verified { outcome: usize, count: i64 },
    Reported { error: Option<u8>, time: Option<u64>, tokens: i64 },
}

fn uses() -> impl Strategy<Value = Vec<Use>> {
    let what = prop_oneof![
        (0_usize..3, 1_i64..50).prop_map(|(outcome, count)| What::Verified { outcome, count }),
        (prop::option::of(0_u8..3), prop::option::of(0_u64..5_000_000), 0_i64..1_000_000_000_000)
            .prop_map(|(error, time, tokens)| What::Reported { error, time, tokens }),
    ];
    let one = (0..HOURS, 0_usize..3, 0_usize..3, what);
    prop::collection::vec(one.prop_map(|(hour, key, endpoint, what)| Use { hour, key, endpoint, what }), 300)
}

const fn at(hour: i64) -> Timestamp {
    Timestamp::from_micros(FIRST + hour * HOUR_US)
}

fn report(key_id: KeyId, time: Timestamp, endpoint: &str) -> UsageReport {
    UsageReport {
        request_id: "r".to_owned(),
        key_id,
        time,
        endpoint: endpoint.to_owned(),
        method: String::new(),
        status_code: 0,
        response_time: None,
        tokens: 0,
        cost_micro_usd: 0,
        client_address: String::new(),
        user_agent: String::new(),
        error_code: String::new(),
        error_message: String::new(),
    }
}

/// Codes of errors; the first is told by its status alone.
fn error_code(number: u8) -> String {
    if number == 0 { String::new() } else { format!("E{number}") }
}

/// What was written, and by whom.
struct Model {
    keys: Vec<(KeyId, OrganizationId)>,
    uses: Vec<Use>,
}

impl Model {
    /// Writes uses in batches: two keys of `acme`, and one of somebody else.
    async fn write(world: &World, uses: Vec<Use>) -> Self {
        let owner = |number| if number < 2 { world.acme.id } else { nobody() };
        let keys: Vec<_> = (0..3).map(|at| (KeyId::new(samples::NOW, random::bytes()), owner(at))).collect();
        for batch in uses.chunks(40) {
            let (mut rollups, mut reports) = (Vec::new(), Vec::new());
            for used in batch {
                let (endpoint, key) = (ENDPOINTS[used.endpoint], keys[used.key]);
                match &used.what {
                    What::Verified { outcome, count } => {
                        let (hour, outcome) = (at(used.hour), OUTCOMES[*outcome]);
                        let endpoint = endpoint.to_owned();
                        rollups.push((RollupKey { key: Some(key), hour, endpoint, outcome }, *count));
                    }
                    What::Reported { error, time, tokens } => reports.push((
                        samples::record_id(),
                        key.1,
                        UsageReport {
                            status_code: if error.is_some() { 500 } else { 200 },
                            error_code: error.map(error_code).unwrap_or_default(),
                            response_time: time.map(Duration::from_micros),
                            tokens: *tokens,
                            cost_micro_usd: *tokens / 7,
                            ..report(key.0, at(used.hour).plus(Duration::from_secs(1234)), endpoint)
                        },
                    )),
                }
            }
            let transaction = world.begin().await;
            usage::add_rollups(&transaction, &rollups).await.expect("written");
            usage::add_reports(&transaction, &reports).await.expect("written");
            super::commit_all(transaction).await;
        }
        Self { keys, uses }
    }

    fn of(&self, subject: UsageSubject, span: &UsageSpan) -> impl Iterator<Item = &Use> {
        self.uses.iter().filter(move |used| {
            let (key, organization) = self.keys[used.key];
            let own = match subject {
                UsageSubject::Organization(id) => id == organization,
                UsageSubject::Key(id) => id == key,
            };
            own && (span.start..span.end).contains(&at(used.hour))
        })
    }

    fn totals<K: Ord>(uses: impl Iterator<Item = Use>, by: impl Fn(&Use) -> K) -> BTreeMap<K, UsageTotals> {
        let mut sums: BTreeMap<K, UsageTotals> = BTreeMap::new();
        for used in uses {
            sums.entry(by(&used)).or_default().add(&match used.what {
                What::Verified { outcome, count } => UsageTotals {
                    verifications: count,
                    valid: if outcome == 0 { count } else { 0 },
                    ..UsageTotals::default()
                },
                What::Reported { error, time, tokens } => UsageTotals {
                    requests_reported: 1,
                    errors: error.is_some().into(),
                    response_time_sum: Duration::from_micros(time.unwrap_or(0)),
                    tokens,
                    cost_micro_usd: tokens / 7,
                    ..UsageTotals::default()
                },
            });
        }
        sums
    }

    fn times<K: Ord>(uses: impl Iterator<Item = Use>, by: impl Fn(&Use) -> K) -> BTreeMap<(K, i64), i64> {
        let mut counts = BTreeMap::new();
        for used in uses {
            if let What::Reported { time: Some(micros), .. } = used.what {
                *counts.entry((by(&used), bucket_of(Duration::from_micros(micros)))).or_default() += 1;
            }
        }
        counts
    }
}

/// Sums that are named, most used first and then by name.
fn ranked(sums: BTreeMap<String, UsageTotals>) -> Vec<(String, UsageTotals)> {
    let mut ranked: Vec<_> = sums.into_iter().collect();
    ranked.sort_by_key(|(name, sums)| (-(sums.verifications + sums.requests_reported), name.clone()));
    ranked
}

async fn check(world: &World, model: &Model, subject: UsageSubject, span: &UsageSpan, granularity: Granularity) {
    let db = world.store.control();
    let own = || model.of(subject, span).cloned();
    let case = format!("{subject:?} {span:?} {granularity:?}");

    let bucket = |used: &Use| granularity.bucket_of(at(used.hour));
    let mut points: BTreeMap<Timestamp, UsageTotals> = BTreeMap::new();
    for sum in usage_sums::list_points(db, subject, span, granularity).await.expect("sums") {
        points.entry(granularity.bucket_of(sum.start)).or_default().add(&sum.totals);
    }
    assert_eq!(points, Model::totals(own(), bucket), "{case}");
    let mut times = BTreeMap::new();
    for sum in usage_sums::list_point_times(db, subject, span, granularity).await.expect("sums") {
        *times.entry((granularity.bucket_of(sum.of), sum.bucket)).or_default() += sum.count;
    }
    assert_eq!(times, Model::times(own(), bucket), "{case}");

    let endpoint = |used: &Use| ENDPOINTS[used.endpoint].to_owned();
    let mut expected = Model::totals(own(), endpoint);
    expected.remove("");
    let found = usage_sums::list_endpoints(db, subject, span, 10).await.expect("sums");
    assert_eq!(found, ranked(expected), "{case}");
    let found = usage_sums::list_endpoint_times(db, subject, span, &ENDPOINTS).await.expect("sums");
    let found: BTreeMap<_, _> = found.into_iter().map(|sum| ((sum.of, sum.bucket), sum.count)).collect();
    assert_eq!(found, Model::times(own(), endpoint), "{case}");

    let key = |used: &Use| model.keys[used.key].0.to_string();
    let found = usage_sums::list_consumers(db, subject, span, 10).await.expect("sums");
    assert_eq!(found, ranked(Model::totals(own(), key)), "{case}");
    let ids: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    let found = usage_sums::list_key_times(db, span, &ids).await.expect("sums");
    let found: BTreeMap<_, _> = found.into_iter().map(|sum| ((sum.of, sum.bucket), sum.count)).collect();
    assert_eq!(found, Model::times(own(), key), "{case}");

    let mut errors: BTreeMap<String, i64> = BTreeMap::new();
    for used in own() {
        if let What::Reported { error: Some(error), .. } = used.what {
            *errors.entry(error_code(error)).or_default() += 1;
        }
    }
    let mut errors: Vec<_> = errors.into_iter().collect();
    errors.sort_by_key(|(code, count)| (-count, code.clone()));
    assert_eq!(usage_sums::list_errors(db, subject, span, 10).await.expect("sums"), errors, "{case}");
}

store_test!(every_statistic_of_every_span_is_what_counting_each_use_gives);
async fn every_statistic_of_every_span_is_what_counting_each_use_gives(database: TestDatabase) {
    let world = World::new(database).await;
    let mut runner = TestRunner::deterministic();
    let uses = uses().new_tree(&mut runner).expect("uses").current();
    let model = Model::write(&world, uses).await;
    let spans = prop::collection::vec((0..HOURS, 1..HOURS, any::<bool>()), 30);
    for (start, length, open) in spans.new_tree(&mut runner).expect("spans").current() {
        // An open span ends after the last use, in the middle of a day and of a month.
        let end = if open { at(HOURS + 5) } else { at(start + length) };
        let span = UsageSpan { start: at(start), end, nothing_from: at(HOURS) };
        for subject in [UsageSubject::Organization(world.acme.id), UsageSubject::Key(model.keys[1].0)] {
            for granularity in Granularity::ALL {
                check(&world, &model, subject, &span, *granularity).await;
            }
        }
    }
}

store_test!(going_down_and_up_again_makes_the_sums_anew);
async fn going_down_and_up_again_makes_the_sums_anew(database: TestDatabase) {
    let world = World::new(database).await;
    let uses = uses().new_tree(&mut TestRunner::deterministic()).expect("uses").current();
    let model = Model::write(&world, uses).await;
    let lines = async |table: &str, by: &str| {
        let columns = "verifications || ' ' || requests_reported || ' ' || errors || ' ' || response_time_sum_us || ' ' \
                       || tokens || ' ' || cost_micro_usd";
        let line = format!("granularity || ' ' || start_us || ' ' || {by} || ' ' || outcome || ' ' || {columns}");
        let rows = format!("(SELECT {line} AS line FROM {table} ORDER BY line)");
        let (on_sqlite, on_postgres) = (
            format!("SELECT group_concat(line, char(10)) FROM {rows}"),
            format!("SELECT string_agg(line, chr(10) ORDER BY line COLLATE \"C\") FROM {rows} AS rows"),
        );
        let postgres = world.database.engine == crate::harness::Engine::Postgres;
        world.database.query_string(if postgres { &on_postgres } else { &on_sqlite }).await
    };
    let before = (lines("usage_totals", "endpoint").await, lines("usage_consumers", "key_id").await);
    assert!(before.0.lines().count() > 300, "{}", before.0);
    // As large as the columns take: a sum that overflows must not make a database impossible to migrate.
    let options = options(&world.database);
    let migrations = migrate::status(&options).await.expect("a status");
    let newer = migrations.iter().rev().position(|migration| migration.name.ends_with("usage_totals"));
    let steps = u32::try_from(newer.expect("the migration of sums") + 1).expect("few");
    migrate::down(&options, steps).await.expect("down");
    migrate::up(&options).await.expect("up");
    assert_eq!((lines("usage_totals", "endpoint").await, lines("usage_consumers", "key_id").await), before);
    world.database.raw_sql("UPDATE usage_rollups SET tokens = 9223372036854775807").await;
    migrate::down(&options, steps).await.expect("down");
    migrate::up(&options).await.expect("up");
    let largest = "SELECT CAST(min(tokens) AS bigint) FROM usage_totals WHERE granularity = 'MONTH'";
    assert_eq!(world.database.query_i64(largest).await, i64::MAX);
    drop(model);
}

store_test!(amounts_beyond_64_bits_stay_at_the_largest_number_and_stop_nothing);
async fn amounts_beyond_64_bits_stay_at_the_largest_number_and_stop_nothing(database: TestDatabase) {
    let world = World::new(database).await;
    let key = KeyId::new(samples::NOW, random::bytes());
    let costly = |hour: i64| {
        let tokens = i64::MAX / 3 * 2;
        [(samples::record_id(), world.acme.id, UsageReport { tokens, ..report(key, at(hour), "/a") })]
    };
    for hour in [0, 0, 1, 900, 900] {
        usage::add_reports(world.db(), &costly(hour)).await.expect("written");
    }
    // As a whole number: SQLite would go on with a fraction where a sum overflows.
    assert_eq!(world.database.query_i64("SELECT max(tokens) FROM usage_rollups").await, i64::MAX);
    let span = UsageSpan { start: at(0), end: at(HOURS), nothing_from: Timestamp::LAST };
    for subject in [UsageSubject::Organization(world.acme.id), UsageSubject::Key(key)] {
        let found = usage_sums::list_endpoints(world.store.control(), subject, &span, 10).await.expect("sums");
        let expected = UsageTotals { requests_reported: 5, tokens: i64::MAX, ..UsageTotals::default() };
        assert_eq!(found, [("/a".to_owned(), expected)]);
        let one = UsageSpan { start: at(1), end: at(2), ..span };
        let found = usage_sums::list_endpoints(world.store.control(), subject, &one, 10).await.expect("sums");
        assert_eq!(found[0].1.tokens, i64::MAX / 3 * 2, "what fits is exact");
    }
}
