//! History of the fourth system: `UsageStats` of a month that is past, through the rpc and the command, says what SQL
//! says of the old tables, to the last token and the last millionth of a dollar. Invariant: a request counts once,
//! however often the import is repeated or resumed.

use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{Granularity, UsageStatsRequest, UsageStatsResponse, UsageTotals};
use prost_types::Timestamp;

use super::organizations::{MAPPING, Old, REQUESTS, beside, key_id, month, organization_id, owner_of, written};
use super::resume::kill_within;
use super::world::World;
use crate::harness::source::{SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, cli, store_test};

/// The ids of rows that cannot be counted begin here.
const BAD: usize = 1_000_000;

/// Requests of the old tables: those of an organization or of a key, in a span of time, with whatever else.
#[derive(Clone)]
struct Asked {
    whose: String,
    from: i64,
    to: i64,
    also: String,
}

impl Asked {
    fn of_organization(at: usize, from: i64, to: i64) -> Self {
        let keys = format!("SELECT id FROM api_keys WHERE organization_id = '{}'", organization_id(at));
        Self { whose: format!("api_key_id IN ({keys})"), from, to, also: String::new() }
    }

    fn of_key(at: usize, from: i64, to: i64) -> Self {
        Self { whose: format!("api_key_id = '{}'", key_id(at)), from, to, also: String::new() }
    }

    fn and(&self, also: &str) -> Self {
        Self { also: format!("{} AND {also}", self.also), ..self.clone() }
    }

    /// What SQL says of them.
    async fn say(&self, source: &SourceDatabase, what: &str) -> i64 {
        let Self { whose, from, to, also } = self;
        let (from, to) = (written(*from), written(*to));
        let sql = format!(
            "SELECT {what} FROM api_key_usage WHERE {whose} AND created_at >= '{from}' AND created_at < '{to}' \
             AND id < {BAD} {also}"
        );
        source.number(&sql).await
    }

    async fn count(&self, source: &SourceDatabase) -> i64 {
        self.say(source, "count(*)").await
    }

    async fn errors(&self, source: &SourceDatabase) -> i64 {
        self.and("(status_code >= 400 OR error_code IS NOT NULL)").count(source).await
    }

    /// The response time, in microseconds, that so many of a hundred did not exceed.
    async fn percentile(&self, source: &SourceDatabase, percent: i64) -> i64 {
        let timed = self.and("response_time_ms IS NOT NULL");
        let rank = (timed.count(source).await * percent + 99) / 100;
        let micros = "CAST(response_time_ms * 1000 AS bigint)";
        let ordered = timed.and(&format!("true ORDER BY response_time_ms LIMIT 1 OFFSET {}", (rank - 1).max(0)));
        ordered.say(source, micros).await
    }
}

fn micros(span: Option<prost_types::Duration>) -> i64 {
    let span = span.expect("a time");
    span.seconds * 1_000_000 + i64::from(span.nanos / 1000)
}

async fn assert_totals(totals: UsageTotals, asked: &Asked, source: &SourceDatabase) {
    let cost = match source.engine() {
        SourceEngine::Postgres => "coalesce(sum(round(cost_usd * 1000000)), 0)::bigint",
        SourceEngine::Sqlite | SourceEngine::MariaDb => "coalesce(sum(CAST(round(cost_usd * 1000000) AS bigint)), 0)",
    };
    let tokens = match source.engine() {
        SourceEngine::Postgres => "coalesce(sum(tokens_used), 0)::bigint",
        SourceEngine::Sqlite | SourceEngine::MariaDb => "coalesce(sum(tokens_used), 0)",
    };
    let seen = [totals.requests_reported, totals.errors, totals.tokens, totals.cost_micro_usd];
    let said = [
        asked.count(source).await,
        asked.errors(source).await,
        asked.say(source, tokens).await,
        asked.say(source, cost).await,
    ];
    assert_eq!(seen, said, "requests, errors, tokens, cost");
    assert!(said[0] > 0, "there is something to compare");
    assert_eq!((totals.verifications, totals.valid, totals.denied), (0, 0, 0), "nobody verified here");
    let mean = asked.say(source, "CAST(avg(response_time_ms) * 1000 AS bigint)").await;
    assert!((micros(totals.response_time_mean) - mean).abs() <= 1, "{totals:?}, {mean}");
    for (percent, seen) in
        [(50, totals.response_time_p50), (95, totals.response_time_p95), (99, totals.response_time_p99)]
    {
        let (seen, said) = (micros(seen), asked.percentile(source, percent).await);
        assert!((seen - said).abs() <= said / 50 + 1, "p{percent}: {seen} where SQL says {said}");
    }
}

fn number_of<T>(items: &[T]) -> i64 {
    i64::try_from(items.len()).expect("few")
}

async fn stats(world: &World, subject: Subject, from: i64, to: i64) -> UsageStatsResponse {
    let moment = |seconds: i64| Some(Timestamp { seconds, nanos: 0 });
    let request = UsageStatsRequest {
        subject: Some(subject),
        start_time: moment(from),
        end_time: moment(to),
        granularity: Granularity::Day.into(),
        top: 100,
    };
    world.server.keys().usage_stats(request).await.expect("statistics").into_inner()
}

/// Totals, series, endpoints, errors and consumers of an organization in a span.
async fn assert_stats(world: &World, old: &Old, at: usize, from: i64, to: i64) {
    let source = &old.source;
    let asked = Asked::of_organization(at, from, to);
    let stats = stats(world, Subject::OrganizationId(organization_id(at)), from, to).await;
    assert_totals(stats.totals.expect("totals"), &asked, source).await;

    let used: Vec<(i64, i64)> = stats
        .series
        .iter()
        .map(|point| (point.start_time.expect("a start").seconds, point.totals.expect("totals").requests_reported))
        .collect();
    assert!(used.len() >= 28, "a point for each day");
    for (start, count) in used {
        let day = Asked { from: start, to: start + 86_400, ..asked.clone() };
        assert_eq!(count, day.count(source).await, "the day that begins at {}", written(start));
    }
    assert_eq!(number_of(&stats.by_endpoint), asked.say(source, "count(DISTINCT endpoint)").await);
    for row in stats.by_endpoint.iter().take(3) {
        let asked = asked.and(&format!("endpoint = '{}'", row.endpoint));
        assert_totals(row.totals.expect("totals"), &asked, source).await;
    }
    for row in &stats.by_error {
        // What has no code is told as such.
        let code = if row.error_code == "UNKNOWN" { "IS NULL".to_owned() } else { format!("= '{}'", row.error_code) };
        let asked = asked.and(&format!("status_code >= 400 AND error_code {code}"));
        assert_eq!(row.count, asked.count(source).await, "{row:?}");
    }
    assert_eq!(stats.by_error.iter().map(|row| row.count).sum::<i64>(), asked.errors(source).await);
    assert_eq!(number_of(&stats.top_consumers), asked.say(source, "count(DISTINCT api_key_id)").await);
    for row in stats.top_consumers.iter().take(1) {
        let asked = asked.and(&format!("api_key_id = '{}'", row.key_id));
        assert_totals(row.totals.expect("totals"), &asked, source).await;
    }
}

store_test!(the_use_of_a_past_month_is_what_sql_says_of_the_old_tables);
async fn the_use_of_a_past_month_is_what_sql_says_of_the_old_tables(database: TestDatabase) {
    let (mut world, old) = beside(database).await;
    add_bad_requests(&old).await;
    let file = world.path("refused.csv");
    let report = old.bring_in(&mut world, file.to_str().expect("text")).await;
    let lost = lost();
    let table = report.table("api_key_usage");
    let counts = [REQUESTS + 3, REQUESTS - lost, lost + 3].map(|count| count as u64);
    assert_eq!(table.counts(["rows", "created", "refused"]), counts);
    let refusals = [("BAD_USAGE".to_owned(), 3), ("UNKNOWN_KEY".to_owned(), lost as u64)];
    assert_eq!(table.by("refusals"), refusals.into());

    for at in [1, 7] {
        assert_stats(&world, &old, at, month(1), month(0)).await;
    }
    assert_stats(&world, &old, 5, month(2), month(1)).await;
    let key = 24;
    let of_key = stats(&world, Subject::KeyId(key_id(key)), month(2), month(0)).await;
    assert_totals(of_key.totals.expect("totals"), &Asked::of_key(key, month(2), month(0)), &old.source).await;

    // The command says the same.
    let (from, to) = (rfc3339(month(1)), rfc3339(month(0)));
    let id = organization_id(1);
    let arguments = ["usage", "--organization", &id, "--from", &from, "--to", &to, "--output", "json"];
    let shown = cli::as_admin(&world.server, &arguments).json();
    let asked = Asked::of_organization(1, month(1), month(0));
    assert_eq!(shown["totals"]["requests_reported"], asked.count(&old.source).await);
    assert_eq!(shown["totals"]["errors"], asked.errors(&old.source).await);
}

fn rfc3339(seconds: i64) -> String {
    written(seconds).replace(' ', "T").replace("+00", "Z")
}

/// Requests of keys whose organization did not come over.
fn lost() -> usize {
    let key = |at: usize| at * 37 % 240;
    (0..REQUESTS).filter(|at| [21, 22].contains(&owner_of(key(*at)))).count()
}

async fn add_bad_requests(old: &Old) {
    let row = |at: usize, tokens: &str, time: &str, ms: &str| {
        vec![cell((BAD + at).to_string()), cell(key_id(0)), cell(tokens), cell(time), cell(ms)]
            .into_iter()
            .chain(["/bad", "GET", "200"].map(cell))
            .collect()
    };
    let then = written(month(1) + 60);
    let rows = [row(0, "-1", &then, "1"), row(1, "1", "2999-01-01 00:00:00+00", "1"), row(2, "1", &then, "-1")];
    let columns = "id, api_key_id, tokens_used, created_at, response_time_ms, endpoint, method, status_code";
    old.source.insert("api_key_usage", columns, &rows).await;
}

store_test!(a_request_counts_once_however_often_it_is_brought_in);
async fn a_request_counts_once_however_often_it_is_brought_in(database: TestDatabase) {
    let (mut world, old) = beside(database).await;
    let file = world.path("refused.csv");
    let file = file.to_str().expect("text");
    old.bring_in(&mut world, file).await;
    let asked = Asked::of_organization(1, month(1), month(0));
    let count = async |world: &World| {
        let subject = Subject::OrganizationId(organization_id(1));
        stats(world, subject, month(1), month(0)).await.totals.expect("totals").requests_reported
    };
    let said = asked.count(&old.source).await;
    assert_eq!(count(&world).await, said);
    let again = old.bring_in(&mut world, file).await;
    assert_eq!(again.table("api_key_usage").count("created"), 0, "a repeat goes on behind the last row");
    assert_eq!(count(&world).await, said);

    // What was added since comes over, and only that.
    let row: Vec<_> = ["900000", &key_id(1), "/late", "GET", "200", &written(month(1) + 60)].map(cell).into();
    let columns = "id, api_key_id, endpoint, method, status_code, created_at";
    old.source.insert("api_key_usage", columns, &[row]).await;
    let third = old.bring_in(&mut world, file).await;
    assert_eq!(third.table("api_key_usage").counts(["rows", "created"]), [1, 1]);
    assert_eq!(count(&world).await, said + 1);
    assert_eq!(asked.count(&old.source).await, said + 1);
    assert_eq!(world.documented(&old.source.reader_url().await, MAPPING).ran(&["verify", "--accept-refused"]).code, 0);
}

store_test!(a_request_counts_once_though_the_run_is_killed_among_them);
async fn a_request_counts_once_though_the_run_is_killed_among_them(database: TestDatabase) {
    let (mut world, old) = beside(database).await;
    let file = world.path("refused.csv");
    let file = file.to_str().expect("text");
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    let import = world.documented(&old.source.reader_url().await, MAPPING);
    kill_within(&world, &import, "api_key_usage", "50", file).await;
    let sql = "SELECT count(*) FROM api_key_usage";
    let created = "SELECT created_count FROM imports WHERE table_name = 'api_key_usage'";
    let before = world.database.query_i64(sql).await;
    assert!(0 < before && before < i64::try_from(REQUESTS - lost()).expect("few"), "some of them are here: {before}");
    assert_eq!(world.database.query_i64(created).await, before, "and they are counted");

    let report = import.run(&["--refused-file", file, "--accept-refused"]);
    assert!(report.is("resumed"));
    assert_eq!(world.database.query_i64(sql).await, i64::try_from(REQUESTS - lost()).expect("few"));
    world.server.restart().await;
    for at in [1, 7] {
        assert_stats(&world, &old, at, month(1), month(0)).await;
    }
}
