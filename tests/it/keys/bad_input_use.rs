//! Bad input to `VerifyKey` and `UsageStats`: every bad field is named, whatever the secret is worth.
//! Text of any script is legal where it is only told for usage.
//! Invariant: a request that is refused moves neither credits nor limits nor usage.

use std::collections::HashMap;

use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{Credits, Outcome, RequiredScopes, UsageStatsRequest, VerifyKeyRequest};

use prost::Message;

use super::bad_input::{LEGAL, NO_MOMENTS, NUL, TURNED, bad_metadata, good_limit, hostile, many, unreadable};
use super::{Footprint, World, bad_fields, fault_of, fields, presenting, texts, with};
use crate::harness::{TestDatabase, store_test};

fn verify_cases(good: &VerifyKeyRequest) -> Vec<(String, VerifyKeyRequest)> {
    let mut cases = Vec::new();
    let mut add = |field: &str, change: &dyn Fn(&mut VerifyKeyRequest)| {
        cases.push((field.to_owned(), with(good, |request| change(request))));
    };
    let scopes = |all_of: Vec<String>, any_of: Vec<String>| Some(RequiredScopes { all_of, any_of });
    for text in hostile() {
        add("key_id", &|request| request.key_id = Some(text.clone()));
        let pair = vec!["fine".to_owned(), text.clone()];
        add("required_scopes.all_of[1]", &|request| request.required_scopes = scopes(pair.clone(), vec![]));
        add("required_scopes.any_of[1]", &|request| request.required_scopes = scopes(vec![], pair.clone()));
        add("limit_names[1]", &|request| request.limit_names = vec!["good".to_owned(), text.clone()]);
        if !text.is_empty() {
            add("client_address", &|request| request.client_address.clone_from(&text));
        }
    }
    for address in ["10.0.0.1/8", "10.0.0.1:80", "10.0.0", "::1%eth0", "[::1]", "localhost", " 10.0.0.1"] {
        add("client_address", &|request| address.clone_into(&mut request.client_address));
    }
    for text in unreadable() {
        add("endpoint", &|request| request.endpoint.clone_from(&text));
        add("method", &|request| request.method.clone_from(&text));
        add("user_agent", &|request| request.user_agent.clone_from(&text));
        add("request_id", &|request| request.request_id.clone_from(&text));
    }
    add("endpoint", &|request| request.endpoint = "é".repeat(257));
    add("method", &|request| request.method = "é".repeat(17));
    add("user_agent", &|request| request.user_agent = "é".repeat(513));
    add("request_id", &|request| request.request_id = "é".repeat(129));
    add("required_scopes.all_of", &|request| request.required_scopes = scopes(many("s", 101), vec![]));
    add("required_scopes.any_of", &|request| request.required_scopes = scopes(vec![], many("s", 1001)));
    add("limit_names", &|request| request.limit_names = vec!["good".to_owned(); 101]);
    for metadata in bad_metadata(20) {
        add("tags", &|request| request.tags.clone_from(&metadata));
    }
    for number in [3, 99, -1] {
        add("consistency", &|request| request.consistency = number);
    }
    for cost in [-1, 1_000_001] {
        add("cost", &|request| request.cost = Some(cost));
    }
    for revision in [-1, i64::MIN] {
        add("min_revision", &|request| request.min_revision = Some(revision));
    }
    cases
}

/// A request in which everything is wrong but the secret, and the fields that are to be named.
fn all_wrong(secret: &str) -> (VerifyKeyRequest, Vec<&'static str>) {
    let request = VerifyKeyRequest {
        secret: secret.to_owned(),
        key_id: Some("not mine".to_owned()),
        required_scopes: Some(RequiredScopes { all_of: texts(&["a b", "fine"]), any_of: texts(&["fine", ""]) }),
        cost: Some(-1),
        limit_names: texts(&["good", "A B"]),
        client_address: "localhost".to_owned(),
        endpoint: TURNED.to_owned(),
        method: NUL.to_owned(),
        user_agent: NUL.to_owned(),
        request_id: NUL.to_owned(),
        tags: HashMap::from([(String::new(), String::new())]),
        consistency: 9,
        min_revision: Some(-1),
    };
    let named = vec![
        "key_id",
        "required_scopes.all_of[0]",
        "required_scopes.any_of[1]",
        "cost",
        "limit_names[1]",
        "client_address",
        "endpoint",
        "method",
        "user_agent",
        "request_id",
        "tags",
        "consistency",
        "min_revision",
    ];
    (request, named)
}

store_test!(verify_key_names_every_bad_field_and_charges_nothing);
async fn verify_key_names_every_bad_field_and_charges_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| {
        request.credits = Some(Credits { remaining: 9, ..Default::default() });
        request.rate_limits =
            vec![keystead::proto::v1::RateLimit { limit: 9, window: Some(super::days(400)), ..good_limit() }];
    });
    let (key, secret) = world.create(request).await;
    let mut keys = world.server.keys();
    let before = Footprint::of(&database).await;
    let mut faults = Vec::new();
    for (field, request) in verify_cases(&presenting(&secret)) {
        let case = String::from_utf8_lossy(&request.encode_to_vec()).into_owned();
        faults.extend(fault_of(keys.verify_key(request).await, &field, &case));
    }
    assert!(faults.is_empty(), "{faults:#?}");
    for secret in [secret.as_str(), "nobody's", ""] {
        let (request, named) = all_wrong(secret);
        assert_eq!(bad_fields(keys.verify_key(request).await), fields(&named), "whatever the secret");
    }
    assert_eq!(Footprint::of(&database).await, before);
    let answer = world.ask(presenting(&secret)).await;
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::Valid, Some(8)));
    assert_eq!(answer.rate_limits[0].remaining, 8);
    let stats = UsageStatsRequest { subject: Some(Subject::KeyId(key.id)), ..Default::default() };
    let totals = keys.usage_stats(stats).await.expect("statistics").into_inner().totals.expect("totals");
    assert_eq!(totals.verifications, 1, "what was refused was not answered");
}

store_test!(a_malformed_limit_name_is_refused_whatever_the_secret);
async fn a_malformed_limit_name_is_refused_whatever_the_secret(database: TestDatabase) {
    let world = World::new(&database).await;
    for secret in ["nobody's", ""] {
        let request = with(&presenting(secret), |request| request.limit_names = texts(&["fine", "A B", ""]));
        let named = fields(&["limit_names[1]", "limit_names[2]"]);
        assert_eq!(bad_fields(world.server.keys().verify_key(request).await), named);
    }
}

store_test!(what_is_told_for_usage_may_be_of_any_script);
async fn what_is_told_for_usage_may_be_of_any_script(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    for text in LEGAL {
        let request = with(&presenting(&secret), |request| {
            text.clone_into(&mut request.endpoint);
            request.method = text.chars().take(16).collect();
            text.clone_into(&mut request.user_agent);
            text.clone_into(&mut request.request_id);
            request.tags.insert("text".to_owned(), text.to_owned());
        });
        assert_eq!(world.ask(request).await.outcome(), Outcome::Valid, "{text:?}");
    }
    let longest = with(&presenting(&secret), |request| {
        request.endpoint = "🔑".repeat(256);
        request.method = "🔑".repeat(16);
        request.user_agent = "🔑".repeat(512);
        request.request_id = "🔑".repeat(128);
        request.tags = (0..20).map(|at| (format!("{at}"), "x".repeat(512))).collect();
        request.cost = Some(1_000_000);
    });
    assert_eq!(world.ask(longest).await.outcome(), Outcome::Valid);
    let stats = UsageStatsRequest { subject: Some(Subject::KeyId(key.id)), top: 100, ..Default::default() };
    let stats = world.server.keys().usage_stats(stats).await.expect("statistics").into_inner();
    let named: Vec<&str> = stats.by_endpoint.iter().map(|row| row.endpoint.as_str()).collect();
    for text in LEGAL.into_iter().chain(["🔑".repeat(256).as_str()]) {
        assert!(named.contains(&text), "{text:?} is not in {named:?}");
    }
}

store_test!(usage_stats_names_every_bad_field);
async fn usage_stats_names_every_bad_field(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut keys = world.server.keys();
    let good =
        UsageStatsRequest { subject: Some(Subject::OrganizationId(world.organization.clone())), ..Default::default() };
    let mut cases: Vec<(&str, UsageStatsRequest)> = vec![("subject", UsageStatsRequest::default())];
    let mut add = |field: &'static str, change: &dyn Fn(&mut UsageStatsRequest)| {
        cases.push((field, with(&good, |request| change(request))));
    };
    for text in hostile() {
        add("organization_id", &|request| request.subject = Some(Subject::OrganizationId(text.clone())));
        add("key_id", &|request| request.subject = Some(Subject::KeyId(text.clone())));
    }
    for moment in NO_MOMENTS {
        add("start_time", &|request| request.start_time = Some(moment));
        add("end_time", &|request| request.end_time = Some(moment));
    }
    for number in [4, 99, -1] {
        add("granularity", &|request| request.granularity = number);
    }
    let mut faults = Vec::new();
    for (field, request) in cases {
        faults.extend(fault_of(keys.usage_stats(request.clone()).await, field, &request));
    }
    assert!(faults.is_empty(), "{faults:#?}");
    let wrong = UsageStatsRequest {
        subject: Some(Subject::KeyId("mine".to_owned())),
        start_time: Some(NO_MOMENTS[0]),
        end_time: Some(NO_MOMENTS[4]),
        granularity: 9,
        top: -1,
    };
    let named = ["key_id", "start_time", "end_time", "granularity", "top"];
    assert_eq!(bad_fields(keys.usage_stats(wrong).await), fields(&named));
}
