//! Which keys somebody has presented since they came over. Keystead's own count says so: the last use that a source
//! knows of may lie after the moment of the import, since the old system goes on answering meanwhile. Invariant: a key
//! that nobody has presented here is listed, whatever its source says of it, and one that was presented once is not.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use keystead::proto::v1::{Outcome, RevokeKeyRequest};
use serde_json::{Value, json};

use super::fed::{FedRun, SOURCE};
use super::organizations::{now, written};
use super::world::{Report, World};
use crate::harness::{TestDatabase, store_test, wait_until};

const MAPPING: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
id = "name"
[keys.columns]
secret = "secret"
name = "name"
last-used-time = "last_used_at"
request-count = "uses"
[keys.values]
environment = "live"
"#;

/// The names of the keys that nobody has presented, and how many were and were not.
fn unseen(status: &Value) -> (BTreeSet<&str>, [i64; 2]) {
    let listed = status["unseen"].as_array().expect("a list");
    let names = listed.iter().map(|key| key["name"].as_str().expect("a name")).collect();
    let import = &status["imports"][0];
    (names, ["seen", "never_seen"].map(|count| import[count].as_i64().expect("a count")))
}

async fn wait_for(world: &World, names: &[&str], counts: [i64; 2]) {
    let expected = (names.iter().copied().collect::<BTreeSet<&str>>(), counts);
    // What was used is written about once a second.
    wait_until("uses to be counted", async || unseen(&world.status(&["--unseen"])) == expected).await;
}

store_test!(a_key_is_seen_once_it_was_presented_here_whatever_its_source_says_of_its_last_use);
async fn a_key_is_seen_once_it_was_presented_here_whatever_its_source_says_of_its_last_use(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let mut run = FedRun::start(&world.import(SOURCE, MAPPING), &[]);
    let begun = "SELECT count(*) FROM imports";
    wait_until("the import to have begun", async || world.database.query_i64(begun).await == 1).await;
    // From here on every moment lies after that of the import.
    let uses = [("idle", Some(written(now() + 1)), Some(7)), ("busy", Some(written(now() - 86_400)), Some(7))];
    let rows = uses.into_iter().chain([("fresh", None, None)]).fold(String::new(), |mut text, (name, last, uses)| {
        let secret = world.keys.text(name);
        let row = json!({"name": name, "secret": secret, "last_used_at": last, "uses": uses});
        let _ = writeln!(text, "{row}");
        text
    });
    run.feed(&rows);
    assert_eq!(Report::of(&run.end().await).table("").count("created"), 3);
    let after = "SELECT count(*) FROM api_keys, imports \
                 WHERE import_id = imports.id AND last_used_time_us > imports.create_time_us";
    assert_eq!(world.database.query_i64(after).await, 1, "one was used after the import, by its source's account");

    let status = world.status(&["--unseen"]);
    assert_eq!(unseen(&status), (BTreeSet::from(["idle", "busy", "fresh"]), [0, 3]));
    let busy = world.present(&world.keys.text("busy")).await;
    assert_eq!(busy.outcome(), Outcome::Valid);
    wait_for(&world, &["idle", "fresh"], [1, 2]).await;
    assert_eq!(world.key(&busy.key_id).await.request_count, 8, "counting goes on from where it was");

    assert_eq!(world.outcome(&world.keys.text("idle")).await, Outcome::Valid);
    wait_for(&world, &["fresh"], [2, 1]).await;
    assert_eq!(world.outcome(&world.keys.text("fresh")).await, Outcome::Valid);
    wait_for(&world, &[], [3, 0]).await;
}

const ENDS: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
id = "name"
[keys.columns]
secret = "secret"
name = "name"
status = "status"
expire-time = "expires_at"
[keys.values]
environment = "live"
"#;

store_test!(a_key_that_has_ended_is_neither_listed_nor_counted_as_never_seen);
async fn a_key_that_has_ended_is_neither_listed_nor_counted_as_never_seen(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let rows = [
        ("open", "active", ""),
        ("lasting", "active", "2999-01-01T00:00:00Z"),
        ("paused", "disabled", ""),
        ("ended", "revoked", ""),
        ("over", "active", "2025-01-01T00:00:00Z"),
        ("to be ended", "active", ""),
    ];
    let text = rows.iter().fold("name,secret,status,expires_at\n".to_owned(), |mut text, (name, status, end)| {
        let _ = writeln!(text, "{name},{},{status},{end}", world.keys.text(name));
        text
    });
    let url = format!("csv:{}", world.write("keys.csv", &text).display());
    assert_eq!(world.import(&url, ENDS).run(&[]).table("").count("created"), 6);
    let before = BTreeSet::from(["open", "lasting", "paused", "to be ended"]);
    assert_eq!(unseen(&world.status(&["--unseen"])), (before, [0, 4]));

    let key_id = world.id_of_row("", "to be ended").await.expect("a key");
    let request = RevokeKeyRequest { key_id, ..Default::default() };
    world.server.keys().revoke_key(request).await.expect("revoked");
    let after = BTreeSet::from(["open", "lasting", "paused"]);
    assert_eq!(unseen(&world.status(&["--unseen"])), (after, [0, 3]), "a disabled one can be enabled again");
}
