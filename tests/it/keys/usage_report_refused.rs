//! `ReportUsage`: a bad report is named by its place and reason, and hinders no good one; a call that is too large is
//! refused whole. What does not exist for the caller is told apart by nothing from what does not exist at all.

use keystead::proto::v1::{RejectedRecord, ReportUsageRequest, ReportUsageResponse, UsageRecord};
use prost::Message as _;
use prost_types::{Duration, Timestamp};

use super::usage::of_organization;
use super::usage_report::{accepted, record, report};
use super::{NOBODY, World, bad_fields, fields, from_now, with};
use crate::harness::{TestDatabase, create_key, create_organization, store_test};

fn rejected(index: i32, reason: &str) -> RejectedRecord {
    RejectedRecord { index, reason: reason.to_owned() }
}

/// Every way in which a record can be bad, with the reason that has to be named; and some that are just good.
fn cases(key: &str) -> Vec<(UsageRecord, &'static str)> {
    let mut number = 0;
    let mut case = |reason: &'static str, change: &dyn Fn(&mut UsageRecord)| {
        number += 1;
        (with(&record(key, &format!("r{number}")), |record| change(record)), reason)
    };
    let long = |length: usize| "é".repeat(length);
    let span = |seconds, nanos| Some(Duration { seconds, nanos });
    vec![
        case("INVALID_REQUEST_ID", &|record| record.request_id.clear()),
        case("INVALID_REQUEST_ID", &|record| record.request_id = long(129)),
        case("INVALID_REQUEST_ID", &|record| "a\0b".clone_into(&mut record.request_id)),
        case("", &|record| record.request_id = long(128)),
        case("INVALID_KEY_ID", &|record| record.key_id.clear()),
        case("INVALID_KEY_ID", &|record| "k".clone_into(&mut record.key_id)),
        case("INVALID_TIME", &|record| record.time = Some(Timestamp { seconds: -1, nanos: 0 })),
        case("INVALID_TIME", &|record| record.time = Some(Timestamp { seconds: 1, nanos: -1 })),
        case("INVALID_TIME", &|record| record.time = Some(Timestamp { seconds: i64::MAX, nanos: 0 })),
        case("TIME_TOO_OLD", &|record| record.time = Some(Timestamp { seconds: 0, nanos: 0 })),
        case("TIME_TOO_OLD", &|record| record.time = Some(from_now(-30 * 86_400 - 1))),
        case("", &|record| record.time = Some(from_now(-30 * 86_400 + 120))),
        case("TIME_IN_FUTURE", &|record| record.time = Some(from_now(300 + 120))),
        case("", &|record| record.time = Some(from_now(290))),
        case("INVALID_ENDPOINT", &|record| record.endpoint = long(257)),
        case("INVALID_ENDPOINT", &|record| "/\u{1b}[2J".clone_into(&mut record.endpoint)),
        case("", &|record| record.endpoint = long(256)),
        case("INVALID_METHOD", &|record| record.method = long(17)),
        case("", &|record| record.method = long(16)),
        case("INVALID_STATUS_CODE", &|record| record.status_code = -1),
        case("INVALID_STATUS_CODE", &|record| record.status_code = 1000),
        case("", &|record| record.status_code = 999),
        case("INVALID_RESPONSE_TIME", &|record| record.response_time = span(-1, 0)),
        case("INVALID_RESPONSE_TIME", &|record| record.response_time = span(0, -1)),
        case("INVALID_RESPONSE_TIME", &|record| record.response_time = span(0, 1_000_000_000)),
        case("INVALID_RESPONSE_TIME", &|record| record.response_time = span(86_400, 1)),
        case("INVALID_RESPONSE_TIME", &|record| record.response_time = span(i64::MAX, 0)),
        case("", &|record| record.response_time = span(86_400, 0)),
        case("INVALID_TOKENS", &|record| record.tokens = -1),
        case("INVALID_TOKENS", &|record| record.tokens = 1_000_000_000_001),
        case("INVALID_COST_MICRO_USD", &|record| record.cost_micro_usd = i64::MIN),
        case("INVALID_COST_MICRO_USD", &|record| record.cost_micro_usd = i64::MAX),
        case("", &|record| record.cost_micro_usd = 1_000_000_000_000),
        case("INVALID_CLIENT_ADDRESS", &|record| "10.0.0.1:80".clone_into(&mut record.client_address)),
        case("INVALID_USER_AGENT", &|record| record.user_agent = long(513)),
        case("", &|record| record.user_agent = long(512)),
        case("INVALID_ERROR_CODE", &|record| record.error_code = long(65)),
        case("INVALID_ERROR_CODE", &|record| "A\nB".clone_into(&mut record.error_code)),
        case("", &|record| record.error_code = long(64)),
        case("INVALID_ERROR_MESSAGE", &|record| record.error_message = long(1001)),
        case("INVALID_ERROR_MESSAGE", &|record| "\0".clone_into(&mut record.error_message)),
        case("", &|record| record.error_message = long(1000)),
        case("KEY_NOT_FOUND", &|record| NOBODY.clone_into(&mut record.key_id)),
    ]
}

store_test!(every_bad_record_is_named_with_its_reason_and_every_good_one_counts);
async fn every_bad_record_is_named_with_its_reason_and_every_good_one_counts(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let cases = cases(&key.id);
    let answer = world.report(cases.iter().map(|(record, _)| record.clone()).collect()).await;
    let bad: Vec<RejectedRecord> = (0..)
        .zip(&cases)
        .filter(|(_, (_, reason))| !reason.is_empty())
        .map(|(index, (_, reason))| rejected(index, reason))
        .collect();
    let good = i32::try_from(cases.len() - bad.len()).expect("few");
    assert_eq!(answer, ReportUsageResponse { accepted: good, duplicates: 0, rejected: bad });
    // One of them is some minutes ahead, which may be in the next hour.
    let request = with(&of_organization(&world.organization), |request| {
        request.start_time = Some(from_now(-31 * 86_400));
        request.end_time = Some(from_now(600));
    });
    assert_eq!(world.stats(request).await.totals.expect("totals").requests_reported, i64::from(good));
}

store_test!(one_bad_record_in_a_thousand_is_named_and_the_others_count);
async fn one_bad_record_in_a_thousand_is_named_and_the_others_count(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let mut records: Vec<UsageRecord> = (0..1000).map(|number| record(&key.id, &number.to_string())).collect();
    records[617].tokens = -5;
    let answer = world.report(records.clone()).await;
    let expected =
        ReportUsageResponse { accepted: 999, duplicates: 0, rejected: vec![rejected(617, "INVALID_TOKENS")] };
    assert_eq!(answer, expected);
    records[617].tokens = 5;
    assert_eq!(world.report(records).await, accepted(1, 999), "mended and sent again, it counts alone");
    let totals = world.stats(of_organization(&world.organization)).await.totals.expect("totals");
    assert_eq!((totals.requests_reported, totals.tokens), (1000, 5));
}

store_test!(a_thousand_and_one_are_refused_whole_and_none_is_accepted_as_none);
async fn a_thousand_and_one_are_refused_whole_and_none_is_accepted_as_none(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let records: Vec<UsageRecord> = (0..1001).map(|number| record(&key.id, &number.to_string())).collect();
    let refused = world.server.keys().report_usage(ReportUsageRequest { records }).await;
    assert_eq!(bad_fields(refused), fields(&["records"]));
    assert_eq!(world.report(vec![]).await, accepted(0, 0));
    assert_eq!(database.query_i64("SELECT count(*) FROM usage_reports").await, 0);
}

store_test!(a_key_of_another_organization_answers_as_one_that_does_not_exist_and_counts_nowhere);
async fn a_key_of_another_organization_answers_as_one_that_does_not_exist_and_counts_nowhere(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let (foreign, _) = create_key(&world.server, &rival, &[]).await;
    let (own, _) = world.create(world.new_key()).await;
    let secret = world.caller(&world.organization, &["keystead.usage.report"]).await;
    let mut answers = Vec::new();
    for (turn, id) in [foreign.id.as_str(), NOBODY].into_iter().enumerate() {
        let records = vec![record(&own.id, &format!("own {turn}")), record(id, "r"), record(id, "r")];
        answers.push(report(world.server.keys_as(&secret), records).await.encode_to_vec());
    }
    assert_eq!(answers[0], answers[1], "byte for byte");
    let expected = ReportUsageResponse {
        accepted: 1,
        duplicates: 0,
        rejected: vec![rejected(1, "KEY_NOT_FOUND"), rejected(2, "KEY_NOT_FOUND")],
    };
    assert_eq!(answers[0], expected.encode_to_vec());
    assert_eq!(world.stats(of_organization(&rival)).await.totals.expect("totals").requests_reported, 0);
    // Nor does it keep the owner from reporting under that id.
    let owner = world.caller(&rival, &["keystead.usage.report"]).await;
    assert_eq!(report(world.server.keys_as(&owner), vec![record(&foreign.id, "r")]).await, accepted(1, 0));
}
