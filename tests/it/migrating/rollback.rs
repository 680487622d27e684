//! The ways back before the contract: what was brought in goes out again and can come in anew, and what was done in
//! Keystead since is listed. History and what was spent, which stay, count once all the same, as both sides say.

use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{ApiKey, Granularity, Outcome, RevokeKeyRequest, UpdateKeyRequest, UsageStatsRequest};
use prost_types::{FieldMask, Timestamp};

use super::{Migration, ownership};
use crate::harness::page::field;
use crate::harness::{TestDatabase, create_key, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_source_go_out_again_and_others_stay() {
    let migration = ownership::brought_in().await;
    let (_, own) = create_key(&migration.server, &migration.organization, &[]).await;
    let keys = ownership::all_keys(&migration.source).await;
    migration.all_are(&keys, Outcome::Valid).await;

    migration.shell.run(&["rollback-expand"]);
    wait_until("them to be gone", async || {
        migration.outcomes(&keys).await.iter().all(|outcome| *outcome == Outcome::NotFound)
    })
    .await;
    migration.all_are(&[own], Outcome::Valid).await;
    assert_eq!(migration.database.query_i64("SELECT count(*) FROM imports").await, 0);
    // Nothing is left to be done, and nothing hinders a second attempt.
    migration.shell.run(&["rollback-expand", "run", "verify-accepted"]);
    wait_until("them to be back", async || {
        migration.outcomes(&keys).await.iter().all(|outcome| *outcome == Outcome::Valid)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_revoked_disabled_and_shortened_since_is_listed() {
    let mut migration = ownership::brought_in().await;
    let (revoked, untouched) = (migration.id_of("sessions", "1").await, migration.id_of("sessions", "2").await);
    let request = RevokeKeyRequest { key_id: revoked.clone(), ..Default::default() };
    migration.server.keys().revoke_key(request).await.expect("revoked");
    let (disabled, shortened) = (migration.id_of("sessions", "3").await, migration.id_of("sessions", "4").await);
    let end = Some(Timestamp { seconds: 4_102_488_000, nanos: 0 });
    for (id, path, expire_time) in [(&disabled, "enabled", None), (&shortened, "expire_time", end)] {
        let key = ApiKey { id: id.clone(), expire_time, ..Default::default() };
        let update_mask = Some(FieldMask { paths: vec![path.to_owned()] });
        let request = UpdateKeyRequest { key: Some(key), update_mask, ..Default::default() };
        migration.server.keys().update_key(request).await.expect("changed");
    }
    let (issued, _) = create_key(&migration.server, &migration.organization, &[]).await;
    let changed = [revoked, disabled, shortened, issued.id];
    migration.shell.set("SINCE", "2000-01-01T00:00:00Z");
    let listed = migration.shell.run(&["rollback-since"]);
    let missing: Vec<&String> = changed.iter().filter(|id| !listed.contains(id.as_str())).collect();
    assert!(missing.is_empty() && !listed.contains(&untouched), "{missing:?} {listed}");
    assert!(listed.contains("2100-01-01"), "when it ends: {listed}");
    migration.shell.set("SINCE", "2999-01-01T00:00:00Z");
    let listed = migration.shell.run(&["rollback-since"]);
    assert!(changed.iter().all(|id| !listed.contains(id.as_str())), "{listed}");
}

/// A `psql` that fails the first time.
const FAILS_ONCE: &str = r#"
psql() {
  if [ -e failed ]; then command psql "$@"; else : > failed; return 2; fi
}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_do_not_go_keep_their_import_though_the_shell_goes_on_after_what_fails() {
    let migration = ownership::brought_in().await;
    let keys = "SELECT count(*) FROM api_keys WHERE import_id IS NOT NULL";
    let imports = "SELECT count(*) FROM imports";
    let before = (migration.database.query_i64(keys).await, migration.database.query_i64(imports).await);
    assert!(before.0 > 0 && before.1 > 0);

    let ran = migration.shell.paste(FAILS_ONCE, "rollback-expand");
    assert_ne!(ran.code, 0, "{ran:?}");
    let after = (migration.database.query_i64(keys).await, migration.database.query_i64(imports).await);
    assert_eq!(after, before, "{ran:?}");
    let ran = migration.shell.paste(FAILS_ONCE, "rollback-expand");
    assert_eq!(ran.code, 0, "the next one does not fail: {ran:?}");
    assert_eq!((migration.database.query_i64(keys).await, migration.database.query_i64(imports).await), (0, 0));
}

/// Keys and past requests of the source of `docs/migrating/4-organizations.toml`.
const KEYS: i64 = 40;
const REQUESTS: i64 = 2000;
/// What each key has counted today, and the organization in the present minute and month.
const DAILY: i64 = 3;
const REQUESTS_NOW: i64 = 7;
const USED: i64 = 500;
const ORGANIZATION: &str = "00000001-9999-4999-8999-000000000000";

/// One organization whose every row is as it should be.
async fn fill_organizations(source: &TestDatabase) {
    let key_id = "('00000002-9999-4999-8999-' || lpad(n::text, 12, '0'))::uuid";
    let this_month = "(date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')";
    let running = "now() - interval '1 hour', now() + interval '1 hour'";
    source
        .raw_sql(&format!(
            "CREATE TABLE organizations (id uuid PRIMARY KEY, name varchar(200), slug varchar(100), email varchar(255),
                plan varchar(20), is_active boolean, max_api_keys integer, rate_limit_per_minute integer,
                monthly_quota bigint, quota_used bigint, created_at timestamptz);
             CREATE TABLE api_keys (id uuid PRIMARY KEY, organization_id uuid, name varchar(255), key_hash varchar(64),
                key_prefix varchar(20), key_hint varchar(8), environment varchar(20), status varchar(20),
                daily_limit integer, scopes jsonb, metadata jsonb, request_count bigint, last_used_at timestamptz,
                expires_at timestamptz, revoked_at timestamptz, revoked_reason text, created_at timestamptz);
             CREATE TABLE api_key_usage (id bigint PRIMARY KEY, api_key_id uuid, endpoint varchar(255),
                method varchar(10), status_code integer, response_time_ms double precision, tokens_used bigint,
                cost_usd numeric(12, 6), ip_address inet, user_agent text, error_message text, error_code varchar(64),
                created_at timestamptz);
             CREATE TABLE rate_limit_tracking (id bigint PRIMARY KEY, api_key_id uuid, organization_id uuid,
                limit_name varchar(64), window_start timestamptz, window_end timestamptz, request_count bigint);
             INSERT INTO organizations VALUES ('{ORGANIZATION}', 'Old', 'old', NULL, 'pro', true, NULL, 1000, 1000000,
                {USED}, now() - interval '1 year');
             INSERT INTO api_keys SELECT {key_id}, '{ORGANIZATION}', 'key ' || n,
                encode(sha256(convert_to('old_' || md5('key ' || n), 'UTF8')), 'hex'), NULL, NULL, 'live', 'active',
                1000, '[]', NULL, 0, NULL, NULL, NULL, NULL, now() - interval '1 year'
                FROM generate_series(1, {KEYS}) AS n;
             INSERT INTO api_key_usage (id, api_key_id, endpoint, method, status_code, tokens_used, created_at)
                SELECT m, {key_id}, '/v1/things', 'GET', 200, m, {this_month} - interval '1 day' * (1 + m % 20)
                FROM (SELECT m, 1 + m % {KEYS} AS n FROM generate_series(1, {REQUESTS}) AS m) AS requests;
             INSERT INTO rate_limit_tracking SELECT n, {key_id}, NULL, 'daily', {running}, {DAILY}
                FROM generate_series(1, {KEYS}) AS n;
             INSERT INTO rate_limit_tracking VALUES
                (1000, NULL, '{ORGANIZATION}', 'requests', {running}, {REQUESTS_NOW})"
        ))
        .await;
}

/// Requests and tokens of the last month, as Keystead tells them.
async fn history(migration: &Migration) -> (i64, i64) {
    let moment = async |sql: &str| {
        let first = "date_trunc('month', now() AT TIME ZONE 'UTC')";
        let seconds = migration.source.query_i64(&format!("SELECT extract(epoch FROM {first}{sql})::bigint")).await;
        Some(Timestamp { seconds, nanos: 0 })
    };
    let request = UsageStatsRequest {
        subject: Some(Subject::OrganizationId(ORGANIZATION.to_owned())),
        start_time: moment(" - interval '1 month'").await,
        end_time: moment("").await,
        granularity: Granularity::Day.into(),
        top: 1,
    };
    let stats = migration.server.keys().usage_stats(request).await.expect("statistics").into_inner();
    let totals = stats.totals.expect("totals");
    (totals.requests_reported, totals.tokens)
}

/// Asserts that the page's way to compare the last month says these requests and tokens of both sides.
async fn compares(migration: &mut Migration, (requests, tokens): (i64, i64)) {
    migration.shell.set("ORGANIZATION_ID", ORGANIZATION);
    for (name, ago) in [("FROM", "1 month"), ("TO", "0 months")] {
        let moment = format!("date_trunc('month', now() AT TIME ZONE 'UTC') - interval '{ago}'");
        let sql = format!("SELECT to_char({moment}, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')");
        let moment = migration.source.query_string(&sql).await;
        migration.shell.set(name, moment);
    }
    let printed = migration.shell.run(&["usage-compare"]);
    assert!(printed.starts_with(&format!("{requests}|{tokens}\n")), "{printed}");
    let here = [field(&printed, "requests_reported"), field(&printed, "tokens")];
    assert_eq!(here, [requests.to_string(), tokens.to_string()], "{printed}");
}

/// What limits and the quota have counted here.
async fn spent(migration: &Migration) -> i64 {
    let sql = "SELECT CAST(sum(count) AS bigint) FROM rate_limit_tracking WHERE subject_id NOT LIKE 'import %'";
    migration.database.query_i64(sql).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_and_spent_limits_count_once_though_keys_go_out_and_come_in_again() {
    let mut migration = Migration::start("4-organizations.toml", "organizations").await;
    fill_organizations(&migration.source).await;
    let said = "SELECT count(*) FROM api_key_usage";
    let tokens = "SELECT sum(tokens_used)::bigint FROM api_key_usage";
    let past = (migration.source.query_i64(said).await, migration.source.query_i64(tokens).await);
    let counted = KEYS * DAILY + REQUESTS_NOW + USED;
    migration.shell.run(&["run"]);
    assert_eq!((history(&migration).await, spent(&migration).await), (past, counted));
    compares(&mut migration, past).await;

    let keys = "SELECT count(*) FROM api_keys WHERE import_id IS NOT NULL";
    migration.shell.run(&["rollback-expand"]);
    assert_eq!(migration.database.query_i64(keys).await, 0);
    assert_eq!(history(&migration).await, past, "history stays");
    migration.shell.run(&["run"]);
    assert_eq!(migration.database.query_i64(keys).await, KEYS);
    assert_eq!((history(&migration).await, spent(&migration).await), (past, counted));

    let secrets = format!("SELECT string_agg('old_' || md5('key ' || n), ' ') FROM generate_series(1, {KEYS}) AS n");
    let secrets = migration.source.query_string(&secrets).await;
    let secrets: Vec<String> = secrets.split(' ').map(str::to_owned).collect();
    wait_until("the keys to be back", async || {
        migration.outcomes(&secrets).await.iter().all(|outcome| *outcome == Outcome::Valid)
    })
    .await;
}
