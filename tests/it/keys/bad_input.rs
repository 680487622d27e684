//! Bad input to `CreateKey`, field by field and all at once: every bad field is named, nothing else is, and
//! nothing changes. Text of any script is legal where people read it, and comes back as it was.
//! Also the texts that the other files of bad input use.

use std::collections::HashMap;

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::{CreateKeyRequest, Credits, RateLimit};
use prost_types::{Duration, Timestamp};

use super::{Footprint, World, bad_fields, days, fault_of, fields, from_now, seconds, texts, with};
use crate::harness::{TestDatabase, store_test};

pub(super) const NUL: &str = "a\0b";
pub(super) const TURNED: &str = "\u{202e}gpj.exe";
pub(super) const SQL: &str = "'; DROP TABLE api_keys; --";

/// Texts that are no id, scope or network.
pub(super) fn hostile() -> Vec<String> {
    let mut hostile = texts(&["", " ", NUL, "🔑", TURNED, SQL, "%", "_%", "\n", "مفتاح", "a b", "..\\..", "{}"]);
    hostile.push("x".repeat(60_000));
    hostile
}

/// Texts that no person could read, or tell from another.
pub(super) fn unreadable() -> Vec<String> {
    let mut texts =
        texts(&[NUL, "\0", "a\nb", "a\tb", "\u{1b}[31m", "\u{7f}", "\u{85}", TURNED, "a\u{2066}b", "\u{200f}"]);
    texts.push("x".repeat(60_000));
    texts
}

/// Text that is legal wherever people read it.
pub(super) const LEGAL: [&str; 8] =
    ["🔑 prod", "مفتاح الإنتاج", "密钥", SQL, "100%_sure", "Ünïcödé e\u{301}", "<script>", r"\' \x00"];

/// Moments that cannot be written, or that are no moments.
pub(super) const NO_MOMENTS: [Timestamp; 6] = [
    Timestamp { seconds: -1, nanos: 0 },
    Timestamp { seconds: i64::MIN, nanos: 0 },
    Timestamp { seconds: 253_402_300_800, nanos: 0 },
    Timestamp { seconds: i64::MAX, nanos: 999_999_999 },
    Timestamp { seconds: 4_000_000_000, nanos: -1 },
    Timestamp { seconds: 4_000_000_000, nanos: 1_000_000_000 },
];

/// Limits that are each wrong in one way.
pub(super) fn bad_limits() -> Vec<RateLimit> {
    let good = good_limit();
    let named = |name: &str| RateLimit { name: name.to_owned(), ..good.clone() };
    let of = |limit: i64| RateLimit { limit, ..good.clone() };
    let over = |window: Option<Duration>| RateLimit { window, ..good.clone() };
    let mut bad: Vec<RateLimit> = hostile().iter().map(|name| named(name)).collect();
    bad.extend(["Upper", "a.b", &"x".repeat(65)].map(named));
    bad.extend([0, -1, 1_000_000_001, i64::MIN].map(of));
    bad.extend([None, Some(seconds(0)), Some(seconds(-60)), Some(days(401))].map(over));
    bad.extend([
        over(Some(Duration { seconds: 0, nanos: 999_999_999 })),
        over(Some(Duration { nanos: 1, ..days(400) })),
        over(Some(Duration { seconds: 60, nanos: -1 })),
        over(Some(Duration { seconds: 60, nanos: 1_000_000_000 })),
    ]);
    bad
}

pub(super) fn good_limit() -> RateLimit {
    RateLimit { name: "good".to_owned(), limit: 1, window: Some(seconds(60)), shadow: false }
}

/// Credits that are each wrong in one way, with the field that is to be named.
pub(super) fn bad_credits() -> Vec<(&'static str, Credits)> {
    let of = |remaining: i64, refill_amount: i64, refill_interval: i32| Credits {
        remaining,
        refill_amount,
        refill_interval,
    };
    vec![
        ("credits", of(-1, 0, 0)),
        ("credits", of(1_000_000_000_001, 0, 0)),
        ("credits", of(1, -1, 1)),
        ("credits", of(1, 1_000_000_000_001, 2)),
        ("credits", of(1, 5, 0)),
        ("credits", of(1, 0, 1)),
        ("credits.refill_interval", of(1, 5, 3)),
        ("credits.refill_interval", of(1, 5, -1)),
    ]
}

/// Metadata that is each wrong in one way.
pub(super) fn bad_metadata(entries_max: usize) -> Vec<HashMap<String, String>> {
    let of = |key: &str, value: &str| {
        HashMap::from([("good".to_owned(), "x".to_owned()), (key.to_owned(), value.to_owned())])
    };
    let mut bad: Vec<_> = hostile().iter().map(|key| of(key, "x")).collect();
    bad.extend([of(&"k".repeat(65), "x"), of("nul", NUL), of("long", &"x".repeat(513)), of("long", &"🔑".repeat(129))]);
    bad.push((0..=entries_max).map(|at| (format!("key{at}"), String::new())).collect());
    bad
}

/// `count` items of one text, numbered.
pub(super) fn many(text: &str, count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{text}{at}")).collect()
}

type Cases = Vec<(String, CreateKeyRequest)>;

fn cases(good: &CreateKeyRequest) -> Cases {
    let mut cases = Cases::new();
    let mut add = |field: &str, change: &dyn Fn(&mut CreateKeyRequest)| {
        cases.push((field.to_owned(), with(good, |request| change(request))));
    };
    for text in hostile() {
        add("organization_id", &|request| request.organization_id.clone_from(&text));
        add("scopes[1]", &|request| request.scopes = vec!["fine".to_owned(), text.clone()]);
        add("allowed_cidrs[0]", &|request| request.allowed_cidrs = vec![text.clone(), "::/0".to_owned()]);
        if !text.is_empty() {
            add("request_id", &|request| request.request_id.clone_from(&text));
        }
    }
    for text in unreadable() {
        add("name", &|request| request.name.clone_from(&text));
        add("owner_id", &|request| request.owner_id.clone_from(&text));
    }
    for text in ["", " ", "\u{3000}", &"🔑".repeat(201)] {
        add("name", &|request| text.clone_into(&mut request.name));
    }
    add("owner_id", &|request| request.owner_id = "🔑".repeat(201));
    for number in [0, 3, 99, -1, i32::MAX] {
        add("environment", &|request| request.environment = number);
    }
    for scope in ["a*b", "**", "*a", "ä", "a%", "a,b", &"x".repeat(129)] {
        add("scopes[0]", &|request| request.scopes = texts(&[scope]));
    }
    add("scopes", &|request| request.scopes = many("scope", 101));
    add("scopes", &|request| request.scopes = many("s", 1001));
    for cidr in ["10.0.0.1/33", "10.0.0/8", "::/129", "10.0.0.1/-1", "10.0.0.1/", "any", "10.0.0.1:80", "1.2.3.4 "] {
        add("allowed_cidrs[2]", &|request| request.allowed_cidrs = texts(&["10.0.0.0/8", "::1", cidr]));
    }
    add("allowed_cidrs", &|request| request.allowed_cidrs = many("10.0.0.", 101));
    for limit in bad_limits() {
        add("rate_limits[1]", &|request| request.rate_limits = vec![good_limit(), limit.clone()]);
    }
    let limits = |count| (0..count).map(|at| RateLimit { name: format!("l{at}"), ..good_limit() }).collect::<Vec<_>>();
    add("rate_limits", &|request| request.rate_limits = limits(101));
    add("rate_limits[1].name", &|request| request.rate_limits = vec![good_limit(), good_limit()]);
    for (field, credits) in bad_credits() {
        add(field, &|request| request.credits = Some(credits));
    }
    for metadata in bad_metadata(50) {
        add("metadata", &|request| request.metadata.clone_from(&metadata));
    }
    for moment in NO_MOMENTS {
        add("expire_time", &|request| request.lifetime = Some(Lifetime::ExpireTime(moment)));
    }
    let no_spans = [
        seconds(0),
        seconds(-1),
        days(-400),
        Duration { seconds: 0, nanos: 999_999_999 },
        Duration { seconds: 5, nanos: -1 },
        Duration { seconds: 5, nanos: 1_000_000_000 },
        Duration { nanos: 1, ..days(36_500) },
        Duration { seconds: i64::MAX, nanos: i32::MAX },
    ];
    for span in no_spans {
        add("ttl", &|request| request.lifetime = Some(Lifetime::Ttl(span)));
    }
    cases
}

store_test!(create_key_names_the_bad_field_and_creates_nothing);
async fn create_key_names_the_bad_field_and_creates_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut keys = world.server.keys();
    let before = Footprint::of(&database).await;
    let mut faults = Vec::new();
    for (field, request) in cases(&world.new_key()) {
        faults.extend(fault_of(keys.create_key(request.clone()).await, &field, &request));
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(Footprint::of(&database).await, before);
}

/// A request in which everything is wrong, and the fields that are to be named.
fn all_wrong() -> (CreateKeyRequest, Vec<&'static str>) {
    let request = CreateKeyRequest {
        organization_id: "acme".to_owned(),
        name: TURNED.to_owned(),
        environment: 7,
        scopes: texts(&["a b", "fine", "💥", "invoices:read", "**"]),
        metadata: HashMap::from([("a b".to_owned(), String::new())]),
        owner_id: NUL.to_owned(),
        allowed_cidrs: texts(&["10.0.0.1/33", "::/0", "x"]),
        rate_limits: vec![RateLimit::default(), good_limit(), RateLimit { limit: -1, ..good_limit() }],
        credits: Some(Credits { remaining: -1, ..Default::default() }),
        lifetime: Some(Lifetime::Ttl(seconds(-1))),
        request_id: "once".to_owned(),
    };
    let named = vec![
        "organization_id",
        "name",
        "environment",
        "scopes[0]",
        "scopes[2]",
        "scopes[4]",
        "metadata",
        "owner_id",
        "allowed_cidrs[0]",
        "allowed_cidrs[2]",
        "rate_limits[0]",
        "rate_limits[2]",
        "credits",
        "ttl",
        "request_id",
    ];
    (request, named)
}

store_test!(create_key_names_all_bad_fields_at_once);
async fn create_key_names_all_bad_fields_at_once(database: TestDatabase) {
    let world = World::new(&database).await;
    let before = Footprint::of(&database).await;
    let (request, mut named) = all_wrong();
    assert_eq!(bad_fields(world.server.keys().create_key(request.clone()).await), fields(&named));
    named.retain(|field| *field != "ttl");
    named.push("expire_time");
    let never = with(&request, |request| request.lifetime = Some(Lifetime::ExpireTime(NO_MOMENTS[0])));
    assert_eq!(bad_fields(world.server.keys().create_key(never).await), fields(&named));
    let nothing = bad_fields(world.server.keys().create_key(CreateKeyRequest::default()).await);
    assert_eq!(nothing, fields(&["organization_id", "name", "environment"]), "what is required");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(an_expiry_in_the_past_is_named_with_all_else_that_is_bad);
async fn an_expiry_in_the_past_is_named_with_all_else_that_is_bad(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| {
        request.name = String::new();
        request.lifetime = Some(Lifetime::ExpireTime(from_now(-60)));
    });
    assert_eq!(bad_fields(world.server.keys().create_key(request).await), fields(&["expire_time", "name"]));
}

store_test!(a_refusal_for_very_many_fields_says_how_many_it_leaves_out);
async fn a_refusal_for_very_many_fields_says_how_many_it_leaves_out(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = with(&world.new_key(), |request| request.scopes = vec!["a b".to_owned(); 100]);
    let named = bad_fields(world.server.keys().create_key(request).await);
    assert!(named.contains("scopes[0]") && named.contains("(more)"), "details travel in a header of 8 KiB: {named:?}");
}

store_test!(names_of_any_script_come_back_as_they_were);
async fn names_of_any_script_come_back_as_they_were(database: TestDatabase) {
    let world = World::new(&database).await;
    let before = Footprint::of(&database).await;
    let longest = "🔑".repeat(200);
    for text in LEGAL.into_iter().chain([longest.as_str()]) {
        let metadata = HashMap::from([("text".to_owned(), text.chars().take(120).collect::<String>())]);
        let request = with(&world.new_key(), |request| {
            text.clone_into(&mut request.name);
            text.clone_into(&mut request.owner_id);
            request.metadata.clone_from(&metadata);
        });
        let (key, secret) = world.create(request).await;
        let read = world.get(&key.id).await;
        assert_eq!((read.name.as_str(), read.owner_id.as_str(), &read.metadata), (text, text, &metadata));
        let listing = keystead::proto::v1::ListKeysRequest {
            organization_id: world.organization.clone(),
            owner_id: text.to_owned(),
            name_contains: text.to_owned(),
            ..Default::default()
        };
        assert_eq!(world.list(listing).await, [read], "{text:?}");
        let answer = world.ask(super::presenting(&secret)).await;
        assert_eq!((answer.name.as_str(), answer.owner_id.as_str(), &answer.metadata), (text, text, &metadata));
    }
    let count = i64::try_from(LEGAL.len()).expect("a count") + 1;
    assert_eq!(Footprint::of(&database).await.keys, before.keys + count, "and the table still stands");
}
