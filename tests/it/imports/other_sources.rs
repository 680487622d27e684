//! Two sources with ids of the same form. What rows of one source refer to is a key of that source: an id that a key of
//! another one has kept, in whichever spelling, names nobody there. Invariant: a source can neither count requests on
//! the keys of another one nor use up their limits.

use std::collections::BTreeMap;

use keystead::domain::ids::KeyId;
use keystead::proto::v1::Outcome::{RateLimited, Valid};

use super::organizations::{now, written};
use super::world::{World, far_from_midnight, refused_rows};
use crate::harness::source::{Cell, SourceDatabase, cell};
use crate::harness::{TestDatabase, create_organization, store_test};

/// The source whose keys are referred to.
const OTHER: &str = r#"
source = "other"
organization = "rival"

[[keys]]
table = "other_keys"
id = "id"
[keys.columns]
secret = "secret"
key-id = "key_id"
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "30d"
"#;

/// The source with the rows that refer to them.
const OWN: &str = r#"
source = "own"
organization = "acme"

[[keys]]
table = "own_keys"
id = "id"
[keys.columns]
secret = "secret"
key-id = "key_id"
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "30d"

[[usage]]
table = "requests"
id = "id"
[usage.columns]
key = "key"
time = "made_at"

[[limits]]
table = "counted"
id = "id"
[limits.columns]
key = "key"
name = "name"
window-start = "since"
window-end = "until"
count = "count"
"#;

const HOUR: i64 = 3600;
/// How often each key may be used, and how often each was, by the rows of `counted`.
const CALLS_MAX: usize = 3;
const CALLS: usize = 2;
/// An id that a key of the other source has kept.
const UUID: &str = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d";

/// A row that refers to a key, by its text, and whether that is one of its own source's.
fn references() -> [(String, bool); 7] {
    let spelled = KeyId::of_text("ak_other").expect("an id").to_string();
    [
        ("ak_own".to_owned(), true),
        // What the row of a key is called. The other source has such a row too.
        ("1".to_owned(), true),
        ("ak_other".to_owned(), false),
        (spelled, false),
        (UUID.to_owned(), false),
        (UUID.to_uppercase(), false),
        // A row that the other source alone has.
        ("2".to_owned(), false),
    ]
}

async fn build(world: &World) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    let keys = "id bigint PRIMARY KEY NOT NULL, key_id text, secret text, calls_max bigint";
    source
        .run(&format!(
            "CREATE TABLE own_keys ({keys});
             CREATE TABLE other_keys ({keys});
             CREATE TABLE requests (id bigint PRIMARY KEY NOT NULL, key text, made_at text);
             CREATE TABLE counted (id bigint PRIMARY KEY NOT NULL, key text, name text, since text, until text, \
             count bigint)"
        ))
        .await;
    let key = |id: &str, key_id: &str| {
        vec![cell(id), cell(key_id), cell(world.keys.text(key_id)), cell(CALLS_MAX.to_string())]
    };
    let columns = "id, key_id, secret, calls_max";
    source.insert("own_keys", columns, &[key("1", "ak_own")]).await;
    source.insert("other_keys", columns, &[key("1", "ak_other"), key("2", UUID)]).await;
    let (mut requests, mut counted) = (Vec::<Vec<Cell>>::new(), Vec::<Vec<Cell>>::new());
    for (at, (reference, _)) in references().into_iter().enumerate() {
        let (id, since, until) = (at.to_string(), written(now() - HOUR), written(now() + 23 * HOUR));
        requests.push(vec![cell(id.clone()), cell(reference.clone()), cell(since.clone())]);
        // The window of a key is one, however it is called.
        if at != 1 {
            let count = cell(CALLS.to_string());
            counted.push(vec![cell(id), cell(reference), cell("calls"), cell(since), cell(until), count]);
        }
    }
    source.insert("requests", "id, key, made_at", &requests).await;
    source.insert("counted", "id, key, name, since, until, count", &counted).await;
    source
}

store_test!(rows_of_one_source_refer_to_no_key_of_another);
async fn rows_of_one_source_refer_to_no_key_of_another(database: TestDatabase) {
    far_from_midnight().await;
    let mut world = World::new(database, "acme").await;
    create_organization(&world.server, "rival").await;
    let source = build(&world).await;
    let url = source.reader_url().await;
    assert_eq!(world.import(&url, OTHER).run(&[]).table("other_keys").count("created"), 2);
    // What was counted comes in while no server counts in memory.
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    let file = world.path("refused.csv");
    let report = world.import(&url, OWN).run(&["--refused-file", file.to_str().expect("text")]);

    let own = references().iter().filter(|(_, is_own)| *is_own).count() as u64;
    assert_eq!(report.table("requests").counts(["rows", "created", "refused"]), [7, own, 7 - own]);
    assert_eq!(report.table("counted").counts(["rows", "created", "refused"]), [6, own - 1, 7 - own]);
    let strange = references().into_iter().enumerate().filter(|(_, (_, is_own))| !is_own);
    let expected: BTreeMap<(String, String), String> = strange
        .flat_map(|(at, _)| ["requests", "counted"].map(|table| (table.to_owned(), at.to_string())))
        .map(|row| (row, "UNKNOWN_KEY".to_owned()))
        .collect();
    assert_eq!(refused_rows(&file), expected);
    let owners = "SELECT count(*) FROM api_key_usage AS u, api_keys AS k, imports AS i \
                  WHERE u.key_id = k.id AND k.import_id = i.id AND i.source = ";
    assert_eq!(world.database.query_i64(&format!("{owners}'own'")).await, 2);
    assert_eq!(world.database.query_i64(&format!("{owners}'other'")).await, 0);

    world.server.restart().await;
    for (key, left) in [("ak_own", CALLS_MAX - CALLS), ("ak_other", CALLS_MAX), (UUID, CALLS_MAX)] {
        let secret = world.keys.text(key);
        for spent in 0..left {
            assert_eq!(world.outcome(&secret).await, Valid, "{key}, {spent} of {left}");
        }
        assert_eq!(world.outcome(&secret).await, RateLimited, "{key}, {left} of {left}");
    }
}
