//! What was acknowledged stays: through an orderly restart, and through `kill -9` at any moment, fifty times on each
//! database, against a ledger of every answer that a client was given. And one SQLite file has one server.
//! `ledger`: the clients that write it, and the check against the database.

mod ledger;

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, CreateOrganizationRequest, Credits, GetKeyRequest, GetOrganizationRequest,
    ListKeysRequest, Organization, Outcome, RateLimit, RefillInterval, RevokeKeyRequest, RotateKeyRequest,
    UsageStatsRequest, UsageStatsResponse, VerifyKeyRequest,
};
use prost_types::Duration;

use crate::callers::requests::{creating, issuing, updating, verifying};
use crate::harness::cli;
use crate::harness::{Engine, Server, TestDatabase, create_key, create_organization, store_test, verify};
use ledger::Ledger;

const KILLS: usize = 50;

store_test!(nothing_acknowledged_is_lost_in_fifty_kills_at_random_moments);
async fn nothing_acknowledged_is_lost_in_fifty_kills_at_random_moments(database: TestDatabase) {
    let mut server = Server::start(&database, &["--log-level", "warn,keystead::app=info"]).await;
    let mut ledger = Ledger::default();
    for round in 0..KILLS {
        let clients = ledger::Clients::start(&server, round).await;
        // The moment: after so many acknowledgements, while others are under way.
        let wanted = 1 + u32::from(keystead::random::bytes::<1>()[0]) % 40;
        clients.wait_for(wanted).await;
        server.kill9();
        let written = clients.end().await;
        server.restart().await;
        written.expect_kept(&server, round).await;
        ledger.add(written);
    }
    // What an earlier crash left is not undone by a later one.
    ledger.expect_kept(&server).await;
    let events = database.query_i64("SELECT count(*) FROM audit_events").await;
    assert!(u64::try_from(events).expect("a count") >= ledger.acknowledged(), "an event for each acknowledgement");
    let report = cli::as_admin(&server, &["audit", "verify", "--output", "json"]).json();
    assert_eq!(report["intact"], true, "the chain is whole after {KILLS} crashes: {report}");
    println!("{} acknowledgements, none lost", ledger.acknowledged());
}

/// An organization and a key with every setting away from its default.
async fn full(server: &Server) -> (Organization, ApiKey, String) {
    let limit = |name: &str, limit| RateLimit {
        name: name.to_owned(),
        limit,
        window: Some(Duration { seconds: 3600, nanos: 0 }),
        shadow: false,
    };
    let request = CreateOrganizationRequest {
        max_keys: 100,
        rate_limits: vec![limit("all", 1000)],
        monthly_quota: 5000,
        secret_prefix: "acme".to_owned(),
        metadata: [("team".to_owned(), "billing 💸".to_owned())].into(),
        plan: keystead::proto::v1::Plan::Pro.into(),
        ..creating("acme")
    };
    let answer = server.organizations().create_organization(request).await.expect("created").into_inner();
    let organization = answer.organization.expect("the organization");
    let request = CreateKeyRequest {
        name: "Ключ '; DROP TABLE api_keys; --".to_owned(),
        metadata: [("quote".to_owned(), "'\"\\".to_owned())].into(),
        owner_id: "owner".to_owned(),
        allowed_cidrs: vec!["127.0.0.0/8".to_owned(), "2001:db8::/32".to_owned()],
        rate_limits: vec![limit("calls", 500)],
        credits: Some(Credits { remaining: 50, refill_amount: 60, refill_interval: RefillInterval::Month.into() }),
        lifetime: Some(Lifetime::Ttl(Duration { seconds: 86_400, nanos: 0 })),
        ..issuing(&organization.id, &["invoices:*", "users:read"])
    };
    let answer = server.keys().create_key(request).await.expect("created").into_inner();
    (organization, answer.key.expect("the key"), answer.secret)
}

async fn get_key(server: &Server, key_id: &str) -> ApiKey {
    let request = GetKeyRequest { key_id: key_id.to_owned() };
    server.keys().get_key(request).await.expect("an answer").into_inner().key.expect("the key")
}

store_test!(an_orderly_restart_keeps_every_field_and_every_verdict);
async fn an_orderly_restart_keeps_every_field_and_every_verdict(database: TestDatabase) {
    let mut server = Server::start(&database, &[]).await;
    let (organization, key, secret) = full(&server).await;
    let (revoked, revoked_secret) = create_key(&server, &organization.id, &[]).await;
    let revoke = RevokeKeyRequest { key_id: revoked.id.clone(), note: "gone".to_owned(), ..Default::default() };
    let revoked = server.keys().revoke_key(revoke).await.expect("revoked").into_inner().key.expect("the key");
    let (disabled, disabled_secret) = create_key(&server, &organization.id, &[]).await;
    let off = updating(ApiKey { id: disabled.id, ..Default::default() }, "enabled");
    let disabled = server.keys().update_key(off).await.expect("updated").into_inner().key.expect("the key");
    let (rotated, rotated_secret) = create_key(&server, &organization.id, &[]).await;
    let overlap = Some(Duration { seconds: 3600, nanos: 0 });
    let rotate = RotateKeyRequest { key_id: rotated.id, overlap, ..Default::default() };
    let rotation = server.keys().rotate_key(rotate).await.expect("rotated").into_inner();
    let page = ListKeysRequest { organization_id: organization.id.clone(), page_size: 2, ..Default::default() };
    let page_token = server.keys().list_keys(page.clone()).await.expect("a page").into_inner().next_page_token;

    server.restart().await;

    let selector = Some(Selector::OrganizationId(organization.id.clone()));
    let kept = server.organizations().get_organization(GetOrganizationRequest { selector }).await.expect("there");
    let kept = kept.into_inner().organization.expect("the organization");
    assert_eq!(kept, Organization { key_count: 4, ..organization.clone() });
    for before in [key, revoked, disabled, rotation.key.expect("the key"), rotation.previous_key.expect("the key")] {
        assert_eq!(get_key(&server, &before.id).await, before);
    }
    let from_here = VerifyKeyRequest { client_address: "127.0.0.1".to_owned(), ..verifying(&secret) };
    let answer = server.keys().verify_key(from_here).await.expect("an answer").into_inner();
    assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::Valid, Some(49)));
    assert_eq!(verify(&server, &secret).await.outcome(), Outcome::AddressNotAllowed);
    assert_eq!(verify(&server, &revoked_secret).await.outcome(), Outcome::Revoked);
    assert_eq!(verify(&server, &disabled_secret).await.outcome(), Outcome::Disabled);
    assert_eq!(verify(&server, &rotated_secret).await.outcome(), Outcome::Valid);
    assert_eq!(verify(&server, &rotation.secret).await.outcome(), Outcome::Valid);
    let second = ListKeysRequest { page_token, ..page };
    let keys = server.keys().list_keys(second).await.expect("a token of before the restart").into_inner().keys;
    assert_eq!(keys.len(), 2);
}

async fn usage(server: &Server, organization_id: &str) -> UsageStatsResponse {
    let subject = Some(Subject::OrganizationId(organization_id.to_owned()));
    let request = UsageStatsRequest { subject, ..Default::default() };
    server.keys().usage_stats(request).await.expect("an answer").into_inner()
}

store_test!(rate_limit_windows_quota_credits_and_usage_survive_an_orderly_restart);
async fn rate_limit_windows_quota_credits_and_usage_survive_an_orderly_restart(database: TestDatabase) {
    let mut server = Server::start(&database, &[]).await;
    let window = Some(Duration { seconds: 86_400, nanos: 0 });
    let limit = |name: &str, limit| RateLimit { name: name.to_owned(), limit, window, shadow: false };
    let request = CreateOrganizationRequest { monthly_quota: 9, ..creating("acme") };
    let answer = server.organizations().create_organization(request).await.expect("created").into_inner();
    let organization = answer.organization.expect("the organization").id;
    let issue = async |server: &Server, rate_limits, credits| {
        let request = CreateKeyRequest { rate_limits, credits, ..issuing(&organization, &[]) };
        let answer = server.keys().create_key(request).await.expect("created").into_inner();
        (answer.key.expect("the key").id, answer.secret)
    };
    let credits = Some(Credits { remaining: 4, ..Default::default() });
    let (limited_id, limited) = issue(&server, vec![limit("calls", 5)], None).await;
    let (_, credited) = issue(&server, vec![], credits).await;
    for _ in 0..3 {
        assert_eq!(verify(&server, &limited).await.outcome(), Outcome::Valid);
    }
    assert_eq!(verify(&server, &credited).await.credits_remaining, Some(3));

    server.restart().await;

    let answer = verify(&server, &limited).await;
    assert_eq!((answer.outcome(), answer.rate_limits[0].remaining), (Outcome::Valid, 1));
    assert_eq!(verify(&server, &limited).await.outcome(), Outcome::Valid);
    assert_eq!(verify(&server, &limited).await.outcome(), Outcome::RateLimited);
    assert_eq!(verify(&server, &credited).await.credits_remaining, Some(2));

    server.restart().await;

    // Seven units of the month's nine are used: five of one key, two of the other.
    assert_eq!(verify(&server, &credited).await.credits_remaining, Some(1));
    assert_eq!(verify(&server, &credited).await.credits_remaining, Some(0));
    assert_eq!(verify(&server, &credited).await.outcome(), Outcome::QuotaExceeded);
    let before = usage(&server, &organization).await;
    let totals = before.totals.expect("totals");
    assert_eq!((totals.verifications, totals.valid, totals.denied), (11, 9, 2));

    server.restart().await;

    assert_eq!(usage(&server, &organization).await.totals, before.totals);
    assert_eq!(usage(&server, &organization).await.by_outcome, before.by_outcome);
    let key = get_key(&server, &limited_id).await;
    assert_eq!(key.request_count, 5);
    assert!(key.last_used_time.is_some());
}

#[tokio::test]
async fn a_second_server_on_the_same_file_is_refused_and_a_shell_still_gets_in() {
    // SQLite alone: PostgreSQL is there for several.
    let database = TestDatabase::new(Engine::Sqlite).await;
    let mut server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;

    for command in [vec!["serve", "--listen", "127.0.0.1:0"], vec!["serve", "--dev", "--listen", "127.0.0.1:0"]] {
        let refused = cli::on_database(&database, &command);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("another keystead process is using"), "{refused:?}");
        assert!(refused.stderr.contains("keystead.db"), "{refused:?}");
    }
    assert_eq!(cli::on_database(&database, &["init"]).code, 1);

    // A shell reads and writes, and the server sees it.
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, 2);
    assert_eq!(database.raw_sql("UPDATE organizations SET name = 'Renamed' WHERE slug = 'acme'").await, 1);
    let selector = Some(Selector::OrganizationId(organization));
    let seen = server.organizations().get_organization(GetOrganizationRequest { selector }).await.expect("there");
    assert_eq!(seen.into_inner().organization.expect("the organization").name, "Renamed");

    // The lock goes with the process, however it ends.
    server.kill9();
    server.restart().await;
    create_organization(&server, "beta").await;
}

#[tokio::test]
async fn two_servers_on_one_postgres_serve_side_by_side() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let first = Server::start(&database, &["--migrate"]).await;
    let second = Server::start(&database, &["--migrate"]).await;
    let organization = create_organization(&first, "acme").await.id;
    let (_, secret) = create_key(&second, &organization, &[]).await;
    assert_eq!(verify(&first, &secret).await.outcome(), Outcome::Valid);
    assert_eq!(verify(&second, &secret).await.outcome(), Outcome::Valid);
}
