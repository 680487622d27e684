//! Quotas of a source that says nowhere what is spent of them: its requests of this month are what is spent.
//! Invariant: each request is taken from its organization's quota once, and those of other months from none.

use keystead::proto::v1::Outcome::{QuotaExceeded, Valid};

use super::organizations::{month, written};
use super::world::{World, far_from_midnight};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test};

const QUOTA: i64 = 1000;
/// Requests of this month, of the organization with a quota.
const SPENT: usize = 997;
const BOUNDED: &str = "00000001-8888-4888-8888-000000000000";
const FREE: &str = "00000002-8888-4888-8888-000000000000";

const MAPPING: &str = r#"
source = "spent"

[[organizations]]
table = "organizations"
id = "id"
[organizations.columns]
key = "id"
name = "name"
slug = "name"
monthly-quota = "quota"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
organization = "organization_id"
[keys.values]
environment = "live"

[[usage]]
table = "requests"
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"
"#;

async fn build(world: &World, secrets: &[String]) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    let time = if source.engine() == SourceEngine::Postgres { "timestamptz" } else { "text" };
    source
        .run(&format!(
            "CREATE TABLE organizations (id varchar(36) PRIMARY KEY NOT NULL, name text, quota bigint);
             CREATE TABLE client_keys (id bigint PRIMARY KEY NOT NULL, secret text, organization_id varchar(36));
             CREATE TABLE requests (id bigint PRIMARY KEY NOT NULL, key_id bigint, made_at {time})"
        ))
        .await;
    let organizations = [
        vec![cell(BOUNDED), cell("bounded"), cell(QUOTA.to_string())],
        // Its requests are nobody's to count.
        vec![cell(FREE), cell("free"), None],
    ];
    source.insert("organizations", "id, name, quota", &organizations).await;
    let keys = [(1, BOUNDED), (2, FREE)].map(|(key, organization)| -> Vec<Cell> {
        vec![cell(key.to_string()), cell(&secrets[key - 1]), cell(organization)]
    });
    source.insert("client_keys", "id, secret, organization_id", &keys).await;
    let mut requests: Vec<Vec<Cell>> = Vec::new();
    for (key, first, count) in [(1, month(0), SPENT), (1, month(1), 50), (2, month(0), 10), (99, month(0), 1)] {
        for at in 0..count {
            let time = first + i64::try_from(at % 50).expect("small");
            requests.push(vec![cell(requests.len().to_string()), cell(key.to_string()), cell(written(time))]);
        }
    }
    source.insert("requests", "id, key_id, made_at", &requests).await;
    source
}

/// What is spent of an organization's quota.
async fn spent(world: &World, organization: &str) -> i64 {
    let sql = format!(
        "SELECT coalesce(max(count), 0) FROM rate_limit_tracking \
         WHERE limit_name = 'monthly quota' AND subject_id = '{organization}'"
    );
    world.database.query_i64(&sql).await
}

store_test!(requests_of_this_month_are_taken_from_the_quota_once);
async fn requests_of_this_month_are_taken_from_the_quota_once(database: TestDatabase) {
    far_from_midnight().await;
    let world = World::new(database, "elsewhere").await;
    let secrets = world.keys.texts("spent", 2);
    let source = build(&world, &secrets).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    // In many batches: each adds its own.
    let report = import.run(&["--batch", "100"]);
    assert_eq!(report.table("requests").counts(["created", "refused"]), [SPENT as u64 + 60, 1]);
    let of_both = async || [spent(&world, BOUNDED).await, spent(&world, FREE).await];
    let expected = [i64::try_from(SPENT).expect("small"), 0];
    assert_eq!(of_both().await, expected);
    import.run(&[]);
    assert_eq!(of_both().await, expected, "a repeat reads none of them again");

    for left in 0..QUOTA - expected[0] {
        assert_eq!(world.outcome(&secrets[0]).await, Valid, "one of the last, {left}");
    }
    assert_eq!(world.outcome(&secrets[0]).await, QuotaExceeded);
    assert_eq!(world.outcome(&secrets[1]).await, Valid);
}
