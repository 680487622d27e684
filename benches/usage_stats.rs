//! `usage_stats`: one month by day of an organization with a thousand keys, over 1, 10 and 100 million recorded events.
//! Sums are written through the function that the service writes them with; of the sizes below the largest every event
//! has its row of detail too. Events are spread as they are in earnest: few keys are used much, days more than nights,
//! each key asks for a few of many endpoints, a few in a hundred are denied.

use std::{collections::BTreeMap, time::Instant};

use keystead::{
    domain::{
        ids::{KeyId, OrganizationId, RecordId},
        outcome::Outcome,
        time::{HOUR_US, Timestamp},
        usage::UsageEvent,
    },
    proto::v1::{Granularity, UsageStatsRequest, usage_stats_request::Subject},
    store::usage::{RollupKey, add_rollups, insert_events},
};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement, TransactionTrait as _};

use crate::support::{
    Failure,
    compare::{Spread, float, title},
    database::{Database, Engine},
    keys::{self, Limits},
    plan::Plan,
    random::Random,
    server::{Keys, Server},
};

const KEYS: u64 = 1000;
const ENDPOINTS: u64 = 20;
/// Endpoints that one key asks for.
const ENDPOINTS_OF_KEY: u64 = 3;
/// The hours of June 2026, and its first moment.
const HOURS: i64 = 30 * 24;
const START_S: i64 = 1_780_272_000;
/// Up to so many millions, every event has its row of detail; beyond it, sums alone are written.
const WITH_DETAIL_MAX: f64 = 10.0;
/// Sums per transaction.
const BATCH: usize = 50_000;

/// A server with so many events recorded, and what it is asked.
struct Recorded {
    millions: f64,
    events: i64,
    request: UsageStatsRequest,
    client: Keys,
    // In this order: the server ends before its database.
    _server: Server,
    _database: Database,
}

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("usage_stats", "one month by day");
    for engine in Engine::ALL {
        let mut sizes = Vec::new();
        for millions in plan.sized(&[1.0, 10.0, 100.0][..], &[0.01, 0.02]) {
            sizes.push(record_on(engine, *millions, plan).await?);
        }
        // In turn, so that whatever else the machine does meets all alike.
        let mut times = vec![Vec::new(); sizes.len()];
        for _ in 0..plan.repeats() {
            for (size, times) in sizes.iter().zip(&mut times) {
                times.push(milliseconds(size).await?);
            }
        }
        let base = Spread::of(times.first().map_or(&[], Vec::as_slice)).median;
        for (size, times) in sizes.iter().zip(&times) {
            let (name, millions, times) = (engine.name(), size.millions, Spread::of(times));
            let ratio = times.median / base;
            println!("{name}, {millions} million events: {times} ms; of the smallest {ratio:.2}; goal at most 1.2");
        }
    }
    Ok(())
}

async fn record_on(engine: Engine, millions: f64, plan: Plan) -> Result<Recorded, Failure> {
    let database = Database::new(engine, plan)?;
    let server = Server::start(&database, &[]).await?;
    let keys = keys::make(&server, &database, KEYS, Limits::None).await?;
    let connection = database.connect().await?;
    let with_detail = millions <= WITH_DETAIL_MAX;
    let events = record(&connection, &keys.organization_id, millions * 1e6, with_detail).await?;
    connection.execute_unprepared("ANALYZE").await?;
    connection.close().await?;
    let moment = |hours: i64| Some(prost_types::Timestamp { seconds: START_S + hours * 3600, nanos: 0 });
    let request = UsageStatsRequest {
        subject: Some(Subject::OrganizationId(keys.organization_id)),
        start_time: moment(0),
        end_time: moment(HOURS),
        granularity: Granularity::Day.into(),
        ..Default::default()
    };
    Ok(Recorded { millions, events, request, client: server.keys()?, _server: server, _database: database })
}

async fn milliseconds(recorded: &Recorded) -> Result<f64, Failure> {
    let (mut client, request, recorded) = (recorded.client.clone(), recorded.request.clone(), recorded.events);
    let begun = Instant::now();
    let stats = client.usage_stats(request).await?.into_inner();
    let took = begun.elapsed();
    let counted = stats.totals.map_or(0, |totals| totals.verifications);
    if counted != recorded || stats.series.len() != 30 {
        return Err(format!("{counted} verifications in {} days of {recorded}", stats.series.len()).into());
    }
    Ok(took.as_secs_f64() * 1000.0)
}

/// Writes about so many events, and gives their exact number.
async fn record(
    connection: &DatabaseConnection,
    organization: &str,
    events: f64,
    with_detail: bool,
) -> Result<i64, Failure> {
    let organization = OrganizationId::parse(organization).map_err(|_| "an organization's id")?;
    let keys = key_ids(connection, organization).await?;
    let weights: Vec<f64> = (1..=keys.len() as u64).map(|rank| 1.0 / float(rank)).collect();
    let all: f64 = weights.iter().sum();
    let (mut random, mut sums, mut recorded) = (Random::new(3), Vec::new(), 0);
    // Hour by hour, as it happens.
    for hour in 0..HOURS {
        let start = Timestamp::from_micros(START_S * 1_000_000 + hour * HOUR_US);
        let by_day = if (8..20).contains(&(hour % 24)) { 1.6 } else { 0.4 };
        for (key, weight) in keys.iter().zip(&weights) {
            let expected = events / 720.0 * by_day * weight / all;
            for (endpoint, outcome, count) in of_key_and_hour(*key, expected, &mut random) {
                recorded += count;
                sums.push((RollupKey { key: Some((*key, organization)), hour: start, endpoint, outcome }, count));
            }
        }
        if sums.len() >= BATCH || hour + 1 == HOURS {
            write(connection, &sums, with_detail).await?;
            sums.clear();
        }
    }
    Ok(recorded)
}

/// How often a key asked for each of its endpoints in one hour, and with what outcome, where `expected` calls are to be
/// expected: the whole part for certain, one more at random.
fn of_key_and_hour(key: KeyId, expected: f64, random: &mut Random) -> Vec<(String, Outcome, i64)> {
    let mut found = Vec::new();
    for nth in 0..ENDPOINTS_OF_KEY {
        let endpoint = format!("/v1/endpoint-{}", (key.spread() + nth * 7) % ENDPOINTS);
        // The first is asked for most.
        let of_endpoint = expected * [0.6, 0.3, 0.1].get(usize::try_from(nth).unwrap_or(0)).unwrap_or(&0.0);
        for (outcome, part) in [(Outcome::Valid, 0.97), (Outcome::RateLimited, 0.03)] {
            let certain = (of_endpoint * part).floor();
            let more = random.fraction() < of_endpoint * part - certain;
            #[expect(clippy::cast_possible_truncation, reason = "a count of one hour")]
            let count = certain as i64 + i64::from(more);
            if count > 0 {
                found.push((endpoint.clone(), outcome, count));
            }
        }
    }
    found
}

async fn write(connection: &DatabaseConnection, sums: &[(RollupKey, i64)], with_detail: bool) -> Result<(), Failure> {
    let transaction = connection.begin().await?;
    add_rollups(&transaction, sums).await?;
    if with_detail {
        let events: Vec<(RecordId, UsageEvent, i64)> =
            sums.iter().flat_map(events_of).map(|(id, event)| (id, event, 1)).collect();
        insert_events(&transaction, &events).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// The events behind a sum, spread over its hour.
fn events_of((sum, count): &(RollupKey, i64)) -> impl Iterator<Item = (RecordId, UsageEvent)> {
    (0..*count).map(move |nth| {
        let time = Timestamp::from_micros(sum.hour.micros() + nth * HOUR_US / count);
        let event = UsageEvent {
            key: sum.key,
            time,
            outcome: sum.outcome,
            endpoint: sum.endpoint.clone(),
            method: "POST".to_owned(),
            client_address: "192.0.2.7".to_owned(),
            user_agent: String::new(),
            request_id: String::new(),
            tags: BTreeMap::new(),
        };
        (RecordId::new(time, keystead::random::bytes()), event)
    })
}

async fn key_ids(connection: &DatabaseConnection, organization: OrganizationId) -> Result<Vec<KeyId>, Failure> {
    let backend = connection.get_database_backend();
    let sql = "SELECT id FROM api_keys WHERE organization_id = $1 ORDER BY id";
    let statement = Statement::from_sql_and_values(backend, sql, [organization.to_string().into()]);
    let rows = connection.query_all_raw(statement).await?;
    rows.iter()
        .map(|row| {
            let id: String = row.try_get_by_index(0)?;
            KeyId::parse(&id).map_err(|_| "a key's id".into())
        })
        .collect()
}
