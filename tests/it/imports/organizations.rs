//! The fourth system: organizations, their keys, the use of these and the limits that are being counted. Here: the old
//! system itself, and what becomes of organizations and keys; `usage` shows that history is what SQL says of the old
//! tables, `tracked` and `windows` that nothing spent is forgotten. Invariant: ids, times, revocations and counts are
//! those of the old system, and a repeat changes none of them.

use std::collections::BTreeMap;

use keystead::clock::Clock;
use keystead::proto::v1::Outcome::{self, Disabled, Expired, NotFound, OrganizationInactive, Revoked, Valid};
use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::{
    Environment, GetOrganizationRequest, ListOrganizationsRequest, Organization, Plan, RevocationReason,
};
use time::OffsetDateTime;

use super::world::{Report, World, far_from_midnight, presenting, presenting_pair, refused_rows, sha256_hex};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, create_organization, store_test};

pub const MAPPING: &str = "4-organizations";
pub const ORGANIZATIONS: usize = 24;
pub const KEYS: usize = 3000;
pub const REQUESTS: usize = 12_000;
/// Of the keys, those that were ever used.
const USED: usize = 240;
/// One that is not active, one with a name in place of a slug, one of an unknown plan, one whose slug is taken.
const IDLE: usize = 7;
const NAMED: usize = 20;
pub const PLANLESS: usize = 21;
pub const TAKEN: usize = 22;
const DAY: i64 = 86_400;

const TABLES: &str = "
CREATE TABLE organizations (
    id UUID PRIMARY KEY NOT NULL, name varchar(200) NOT NULL, slug varchar(100) NOT NULL UNIQUE,
    email varchar(255) UNIQUE, plan varchar(20) NOT NULL, is_active boolean NOT NULL DEFAULT true,
    max_api_keys integer, rate_limit_per_minute integer, monthly_quota bigint, quota_used bigint NOT NULL DEFAULT 0,
    created_at TIME NOT NULL
);
CREATE TABLE api_keys (
    id UUID PRIMARY KEY NOT NULL, organization_id UUID NOT NULL REFERENCES organizations (id),
    name varchar(255) NOT NULL, key_hash varchar(64) NOT NULL UNIQUE, key_prefix varchar(20), key_hint varchar(8),
    environment varchar(20) NOT NULL, status varchar(20) NOT NULL, daily_limit integer,
    scopes JSON NOT NULL DEFAULT '[]', metadata JSON, request_count bigint NOT NULL DEFAULT 0, last_used_at TIME,
    expires_at TIME, revoked_at TIME, revoked_reason text, created_at TIME NOT NULL
);
CREATE TABLE api_key_usage (
    id bigint PRIMARY KEY NOT NULL, api_key_id UUID NOT NULL REFERENCES api_keys (id), endpoint varchar(255) NOT NULL,
    method varchar(10) NOT NULL, status_code integer NOT NULL, response_time_ms double precision, tokens_used bigint,
    cost_usd numeric(12, 6), ip_address ADDRESS, user_agent text, error_message text, error_code varchar(64),
    created_at TIME NOT NULL
);
CREATE TABLE rate_limit_tracking (
    id bigint PRIMARY KEY NOT NULL, api_key_id UUID REFERENCES api_keys (id),
    organization_id UUID REFERENCES organizations (id), limit_name varchar(64) NOT NULL, window_start TIME NOT NULL,
    window_end TIME NOT NULL, request_count bigint NOT NULL
);
";

/// The types of an engine in place of the words in capitals.
fn tables(engine: SourceEngine) -> String {
    let types = match engine {
        SourceEngine::Postgres => [("UUID", "uuid"), ("TIME", "timestamptz"), ("JSON", "jsonb"), ("ADDRESS", "inet")],
        SourceEngine::Sqlite | SourceEngine::MariaDb => {
            [("UUID", "text"), ("TIME", "text"), ("JSON", "text"), ("ADDRESS", "text")]
        }
    };
    types.iter().fold(TABLES.to_owned(), |text, (word, name)| text.replace(&format!(" {word}"), &format!(" {name}")))
}

pub fn organization_id(at: usize) -> String {
    format!("{:08x}-2222-4222-8222-000000000000", at + 1)
}

pub fn key_id(at: usize) -> String {
    format!("{:08x}-3333-4333-8333-000000000000", at + 1)
}

/// Whose key it is.
pub const fn owner_of(at: usize) -> usize {
    at % ORGANIZATIONS
}

/// Whether its organization comes over.
pub const fn has_organization(at: usize) -> bool {
    owner_of(at) != PLANLESS && owner_of(at) != TAKEN
}

/// Whether it has a limit of its own, of 1000 a day.
pub const fn has_daily_limit(at: usize) -> bool {
    at % 3 != 2
}

fn expected(at: usize) -> Outcome {
    match at % 30 {
        _ if !has_organization(at) => NotFound,
        3 => Revoked,
        7 => Disabled,
        11 | 13 => Expired,
        _ if owner_of(at) == IDLE => OrganizationInactive,
        _ => Valid,
    }
}

/// Seconds since 1970, of now.
pub fn now() -> i64 {
    Clock::default().now().micros() / 1_000_000
}

/// When the month begins that is so many before the present one.
pub fn month(before: u8) -> i64 {
    let mut first = OffsetDateTime::from_unix_timestamp(now()).expect("a time").date().replace_day(1).expect("a day");
    for _ in 0..before {
        first = first.previous_day().expect("a day").replace_day(1).expect("a day");
    }
    first.midnight().assume_utc().unix_timestamp()
}

/// As both engines write it and compare it, also as text.
pub fn written(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}+00",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

/// The old system.
pub struct Old {
    pub source: SourceDatabase,
    pub secrets: Vec<String>,
}

impl Old {
    pub async fn build(world: &World) -> Self {
        let source = SourceDatabase::new(world.database.engine).await;
        source.run(&tables(source.engine())).await;
        let columns = "id, name, slug, email, plan, is_active, max_api_keys, rate_limit_per_minute, monthly_quota, \
                       quota_used, created_at";
        source.insert("organizations", columns, &(0..ORGANIZATIONS).map(organization).collect::<Vec<_>>()).await;
        let secrets = world.keys.texts("key", KEYS);
        let rows: Vec<Vec<Cell>> = secrets.iter().enumerate().map(|(at, secret)| key(at, secret)).collect();
        let columns = "id, organization_id, name, key_hash, key_prefix, key_hint, environment, status, daily_limit, \
                       scopes, metadata, request_count, last_used_at, expires_at, revoked_at, revoked_reason, \
                       created_at";
        source.insert("api_keys", columns, &rows).await;
        let columns = "id, api_key_id, endpoint, method, status_code, response_time_ms, tokens_used, cost_usd, \
                       ip_address, user_agent, error_message, error_code, created_at";
        source.insert("api_key_usage", columns, &(0..REQUESTS).map(request).collect::<Vec<_>>()).await;
        Self { source, secrets }
    }

    /// The source, read by an account that may only select, while no server of SQLite's counts limits in memory. Past
    /// requests come over too, though there are refused keys.
    pub async fn bring_in(&self, world: &mut World, refused: &str) -> Report {
        let url = self.source.reader_url().await;
        world.server.sigterm();
        assert!(world.server.wait_exit().await.success());
        let report = world.documented(&url, MAPPING).run(&["--refused-file", refused, "--accept-refused"]);
        world.server.restart().await;
        report
    }
}

fn organization(at: usize) -> Vec<Cell> {
    let plan = if at == PLANLESS { "platinum" } else { ["free", "starter", "pro", "Business", "enterprise"][at % 5] };
    let slug = match at {
        NAMED => "Größe & Co".to_owned(),
        TAKEN => "taken".to_owned(),
        _ => format!("org-{at}"),
    };
    let only = |applies: bool, value: &str| if applies { cell(value) } else { None };
    vec![
        cell(organization_id(at)),
        cell(format!("Organization no. {at}")),
        cell(slug),
        only(at != 23, &format!("org-{at}@example.com")),
        cell(plan),
        cell(if at == IDLE { "0" } else { "1" }),
        only(at.is_multiple_of(2), "5000"),
        only(at.is_multiple_of(3), "100000"),
        only(at.is_multiple_of(4), "1000000"),
        cell((at * 1000).to_string()),
        cell("2023-01-02 03:04:05+00"),
    ]
}

fn key(at: usize, secret: &str) -> Vec<Cell> {
    let hash = sha256_hex(secret);
    let status = match at % 30 {
        3 => "revoked",
        7 => "inactive",
        11 => "expired",
        _ => "active",
    };
    let only = |applies: bool, value: &str| if applies { cell(value) } else { None };
    vec![
        cell(key_id(at)),
        cell(organization_id(owner_of(at))),
        cell(format!("key no. {at}")),
        cell(if at % 50 == 1 { hash.to_uppercase() } else { hash }),
        cell("sk_"),
        cell(&secret[secret.len() - 4..]),
        cell(["production", "sandbox", "live", "test"][at % 4]),
        cell(status),
        only(has_daily_limit(at), "1000"),
        cell(if at.is_multiple_of(2) { r#"["invoices:read", "users:*"]"# } else { "[]" }),
        only(at.is_multiple_of(3), r#"{"team": "billing", "nested": {"not": "kept"}}"#),
        cell((at * 10).to_string()),
        only(at.is_multiple_of(5), "2024-05-06 07:08:09+00"),
        only(at % 30 == 13, "2025-01-01 00:00:00+00"),
        only(at % 30 == 3, "2024-06-07 08:09:10+00"),
        only(at % 30 == 3, if at % 60 == 3 { "compromised" } else { "found in a public place" }),
        cell("2023-03-04 05:06:07+00"),
    ]
}

/// Eight of eleven in the month before this one, the others in the one before that.
fn request(at: usize) -> Vec<Cell> {
    let first = month(if at % 11 < 3 { 2 } else { 1 });
    let seconds = i64::try_from(at * 7919).expect("small") % (28 * DAY);
    let status = if at.is_multiple_of(101) {
        500
    } else if at.is_multiple_of(17) {
        404
    } else {
        200
    };
    let only = |applies: bool, value: String| if applies { cell(value) } else { None };
    vec![
        cell(at.to_string()),
        cell(key_id(at * 37 % USED)),
        cell(format!("/v1/things/{}", at % 7)),
        cell(if at.is_multiple_of(2) { "GET" } else { "POST" }),
        cell(status.to_string()),
        only(at % 50 != 9, format!("{}.5", at * 7919 % 5000)),
        only(at % 9 != 4, (at % 1000).to_string()),
        only(at % 13 != 5, format!("0.{:06}", at * 31 % 1_000_000)),
        cell(format!("10.0.{}.{}", at % 200, at % 250)),
        cell("tests/1.0"),
        only(status >= 400, format!("it ended with {status}")),
        only(status == 500, "INTERNAL".to_owned()),
        cell(written(first + seconds)),
    ]
}

/// A world beside the old system, far from the end of a month, when quotas turn over.
pub async fn beside(database: TestDatabase) -> (World, Old) {
    far_from_midnight().await;
    let world = World::new(database, "elsewhere").await;
    create_organization(&world.server, "taken").await;
    let old = Old::build(&world).await;
    (world, old)
}

async fn read(world: &World, id: String) -> Organization {
    let request = GetOrganizationRequest { selector: Some(Selector::OrganizationId(id)) };
    let answer = world.server.organizations().get_organization(request).await;
    answer.expect("an organization").into_inner().organization.expect("the organization")
}

store_test!(organizations_come_over_with_their_ids_plans_and_limits);
async fn organizations_come_over_with_their_ids_plans_and_limits(database: TestDatabase) {
    let (mut world, old) = beside(database).await;
    let before = old.source.state().await;
    let file = world.path("refused.csv");
    let report = old.bring_in(&mut world, file.to_str().expect("text")).await;
    let table = report.table("organizations");
    assert_eq!(table.counts(["rows", "created", "refused"]), [24, 22, 2]);
    let reasons = [("BAD_ORGANIZATION".to_owned(), 1), ("SLUG_TAKEN".to_owned(), 1)];
    assert_eq!(table.by("refusals"), BTreeMap::from(reasons));
    let refused = refused_rows(&file);
    let reason = |at: usize| refused.get(&("organizations".to_owned(), organization_id(at))).map(String::as_str);
    assert_eq!((reason(PLANLESS), reason(TAKEN)), (Some("BAD_ORGANIZATION"), Some("SLUG_TAKEN")));

    for at in (0..ORGANIZATIONS).filter(|at| ![PLANLESS, TAKEN].contains(at)) {
        let organization = read(&world, organization_id(at)).await;
        assert_eq!(organization.name, format!("Organization no. {at}"));
        let slug = if at == NAMED { "gr-e-co".to_owned() } else { format!("org-{at}") };
        assert_eq!(organization.slug, slug);
        assert_eq!(organization.email, if at == 23 { String::new() } else { format!("org-{at}@example.com") });
        let plans = [Plan::Free, Plan::Free, Plan::Pro, Plan::Pro, Plan::Enterprise];
        assert_eq!(organization.plan(), plans[at % 5], "organization {at}");
        assert_eq!(organization.active, at != IDLE);
        assert_eq!(organization.max_keys, if at % 2 == 0 { 5000 } else { 0 });
        assert_eq!(organization.monthly_quota, if at % 4 == 0 { 1_000_000 } else { 0 });
        let limits: Vec<(&str, i64)> =
            organization.rate_limits.iter().map(|limit| (limit.name.as_str(), limit.limit)).collect();
        assert_eq!(limits, if at % 3 == 0 { vec![("requests", 100_000)] } else { vec![] });
        assert_eq!(organization.create_time.expect("a time").seconds, 1_672_628_645);
        let keys = (0..KEYS).filter(|key| owner_of(*key) == at && key % 30 != 3).count();
        assert_eq!(organization.key_count, i64::try_from(keys).expect("few"), "all but those that are revoked");
    }
    assert_eq!(old.source.state().await, before, "the source is as it was");

    let again = old.bring_in(&mut world, file.to_str().expect("text")).await;
    assert_eq!(again.table("organizations").counts(["created", "existing", "refused"]), [0, 22, 2]);
    let all = world.server.organizations().list_organizations(ListOrganizationsRequest::default()).await;
    assert_eq!(all.expect("a list").into_inner().organizations.len(), 22 + 3, "and system, elsewhere and taken");
}

store_test!(keys_come_over_with_their_ids_times_revocations_and_counts);
async fn keys_come_over_with_their_ids_times_revocations_and_counts(database: TestDatabase) {
    let (mut world, old) = beside(database).await;
    let file = world.path("refused.csv");
    let plan = world.documented(&old.source.reader_url().await, MAPPING).plan(&[]);
    let report = old.bring_in(&mut world, file.to_str().expect("text")).await;
    for report in [&plan, &report] {
        assert_eq!(report.table("api_keys").counts(["rows", "created", "refused"]), [3000, 2750, 250]);
        let refusals = BTreeMap::from([("UNKNOWN_ORGANIZATION".to_owned(), 250)]);
        assert_eq!(report.table("api_keys").by("refusals"), refusals);
        assert_eq!(report.table("api_keys").by("schemes"), BTreeMap::from([("sha256-hex".to_owned(), 2750)]));
    }
    let answers = world.ask_all(old.secrets.iter().map(|secret| presenting(secret)).collect()).await;
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(answer.outcome(), expected(at), "key {at}");
        if answer.outcome() != NotFound {
            assert_eq!(answer.key_id, key_id(at));
            assert_eq!(answer.organization_id, organization_id(owner_of(at)));
            let environment = if at % 2 == 0 { Environment::Live } else { Environment::Test };
            assert_eq!(answer.environment(), environment);
            let scopes: &[&str] = if at % 2 == 0 { &["invoices:read", "users:*"] } else { &[] };
            assert_eq!(answer.scopes, scopes);
            assert_eq!(answer.metadata.len(), usize::from(at % 3 == 0));
        }
    }
    let pair = world.ask(presenting_pair(&key_id(1), &old.secrets[1])).await;
    assert_eq!(pair.outcome(), Valid);

    // Read before any of them could be used: those that are denied.
    for at in [3, 33, 7, 11, 13] {
        let key = world.key(&key_id(at)).await;
        assert_eq!(key.request_count, i64::try_from(at * 10).expect("small"));
        assert_eq!(key.create_time.expect("a time").seconds, 1_677_906_367);
        assert_eq!((key.prefix.as_str(), key.hint.as_str()), ("sk_", &old.secrets[at][31..]));
        let revoked = key.revoke_time.map(|time| time.seconds);
        assert_eq!(revoked, (at % 30 == 3).then_some(1_717_747_750), "key {at}");
        match at {
            3 => assert_eq!(key.revocation_reason(), RevocationReason::KeyCompromise),
            33 => assert_eq!(
                (key.revocation_reason(), key.revocation_note.as_str()),
                (RevocationReason::Other, "found in a public place")
            ),
            11 => assert_eq!(key.expire_time, key.create_time, "expired since nobody knows when"),
            13 => assert_eq!(key.expire_time.expect("a time").seconds, 1_735_689_600),
            _ => assert_eq!(key.expire_time, None),
        }
    }
    let verified = world.documented(&old.source.reader_url().await, MAPPING).ran(&["verify", "--accept-refused"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    world.assert_told_nobody(&old.secrets);
}
