//! `VerifyKey` of pairs of an id and a secret, as an older system handed them out: callers go on sending both, with the
//! old id. A pair whose secret left no hash is disabled when it is first named, and its owner has to rotate it.
//! Invariant: an id alone opens nothing, and a key without a hash is never VALID. The rows come in by the command, the
//! only way on which a key keeps its id.

use std::fs;

use keystead::proto::v1::{ApiKey, Outcome, VerifyKeyResponse};
use serde_json::Value;

use super::import_samples::{METRICS, events, expect_unknown, naming, secret, sha256_hex};
use super::{Footprint, NOBODY, World, answer_to, at_once, bad_fields, days, fields, presenting};
use crate::harness::{TestDatabase, cli, create_organization, keystead_command, store_test, wait_until};

const MAPPING: &str = r#"
source = "pairs"
organization = "acme"

[[keys]]
id = "key_id"

[keys.columns]
key-id = "key_id"
sha256-hex = "secret_fragment_hash"
owner-id = "owner"
status = "status"

[keys.values]
name = "An imported pair"
environment = "live"
"#;

/// Ids as the older system gave them: a UUID in capitals, and words.
const UUID: &str = "0198C7A4-5B7E-7C3A-9F00-0000000000AA";
const WORDS: &str = "ak_17:eu/1.b-C";

const WITHOUT_HASH: &str = "keystead_keys_without_hash_total";

/// One row: id, hash (empty where there is none), owner and status.
type Row<'a> = (&'a str, String, &'a str, &'a str);

/// A row without a hash.
fn missing<'a>(id: &'a str, owner: &'a str) -> Row<'a> {
    (id, String::new(), owner, "active")
}

/// Brings rows in beside the running server.
fn bring_in(database: &TestDatabase, rows: &[Row<'_>]) {
    let file = |name: &str| database.folder().join(name);
    let lines: Vec<String> =
        rows.iter().map(|(id, hash, owner, status)| format!("{id},{hash},{owner},{status}\n")).collect();
    let csv = format!("key_id,secret_fragment_hash,owner,status\n{}", lines.concat());
    fs::write(file("pairs.csv"), csv).expect("the rows are written");
    fs::write(file("pairs.toml"), MAPPING).expect("the mapping is written");
    let mut command = keystead_command(database);
    command.args(["import", "run", "--output", "json", "--mapping"]).arg(file("pairs.toml"));
    command.arg("--refused-file").arg(file("refused.csv"));
    command.env("KEYSTEAD_SOURCE_URL", format!("csv:{}", file("pairs.csv").display()));
    let report = cli::run(command, "").json();
    assert_eq!(report["tables"][0]["created"], rows.len(), "{report}");
}

/// The pairs without a hash, as the command lists them: id in the source, owner and status.
fn listed(database: &TestDatabase) -> Vec<(String, String, String)> {
    let status = cli::on_database(database, &["import", "status", "--missing", "--output", "json"]).json();
    let text = |line: &Value, field: &str| line[field].as_str().expect("a text").to_owned();
    let line = |line: &Value| (text(line, "source_id"), text(line, "owner_id"), text(line, "status").to_uppercase());
    status["missing"].as_array().expect("a list").iter().map(line).collect()
}

fn line(id: &str, owner: &str, status: &str) -> (String, String, String) {
    (id.to_owned(), owner.to_owned(), status.to_owned())
}

/// The id that a row's key has here.
async fn id_of(database: &TestDatabase, source_id: &str) -> String {
    database.query_string(&format!("SELECT id FROM api_keys WHERE source_id = '{source_id}'")).await
}

store_test!(a_pair_opens_by_its_old_id_and_its_secret);
async fn a_pair_opens_by_its_old_id_and_its_secret(database: TestDatabase) {
    let world = World::new(&database).await;
    let hash = |at: usize| sha256_hex(&secret(at));
    bring_in(&database, &[(UUID, hash(0), "team-a", "active"), (WORDS, hash(1), "team-b", "active")]);
    let ids = [UUID.to_lowercase(), id_of(&database, WORDS).await];
    assert_eq!(world.get(&ids[0]).await.owner_id, "team-a", "a UUID is kept");
    assert_eq!((ids[1].len(), world.get(&ids[1]).await.owner_id.as_str()), (36, "team-b"), "words become one");
    for (at, old) in [(0, UUID), (1, WORDS)] {
        for named in [old, ids[at].as_str()] {
            world.expect_valid(naming(&secret(at), named), &ids[at]).await;
        }
        world.expect_valid(presenting(&secret(at)), &ids[at]).await;
        let others = [[UUID, WORDS][1 - at], ids[1 - at].as_str(), NOBODY, "ak_17", "AK_17:EU/1.B-C"];
        for other in others {
            expect_unknown(world.server.keys(), naming(&secret(at), other), other).await;
        }
        for wrong in [secret(2), secret(1 - at), hash(at), hash(at).to_uppercase(), String::new(), old.to_owned()] {
            expect_unknown(world.server.keys(), naming(&wrong, old), "a wrong secret").await;
        }
    }
    for malformed in ["", "a b", "ä", "ak_17\n", "ak,17", &"x".repeat(129)] {
        let refusal = world.server.keys().verify_key(naming(&secret(0), malformed)).await;
        assert_eq!(bad_fields(refusal), fields(&["key_id"]), "{malformed:?}");
    }
}

store_test!(a_pair_of_another_organization_is_unknown_by_any_name);
async fn a_pair_of_another_organization_is_unknown_by_any_name(database: TestDatabase) {
    let world = World::new(&database).await;
    bring_in(&database, &[(WORDS, sha256_hex(&secret(0)), "team-a", "active"), missing("ak_2", "team-a")]);
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.verify"]).await;
    let before = Footprint::of(&database).await;
    for named in [WORDS, "ak_2", &id_of(&database, "ak_2").await] {
        expect_unknown(world.server.keys_as(&caller), naming(&secret(0), named), named).await;
    }
    assert_eq!(Footprint::of(&database).await, before, "and nobody's key is disabled by a stranger");
    assert_eq!(world.ask(naming(&secret(0), "ak_2")).await.outcome(), Outcome::Disabled);
}

store_test!(a_pair_without_a_hash_is_disabled_when_it_is_first_named);
async fn a_pair_without_a_hash_is_disabled_when_it_is_first_named(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    bring_in(&database, &[missing("ak_2", "team-b"), missing("ak_1", "team-a"), missing("ak_3", "team-a")]);
    let id = id_of(&database, "ak_1").await;
    let active = [line("ak_1", "team-a", "ACTIVE"), line("ak_3", "team-a", "ACTIVE"), line("ak_2", "team-b", "ACTIVE")];
    let mut shown = listed(&database);
    shown.sort_by(|one, other| (&one.1, &one.0).cmp(&(&other.1, &other.0)));
    assert_eq!(shown, active);
    expect_unknown(world.server.keys(), presenting(&secret(0)), "no key is named").await;
    assert!(world.get(&id).await.enabled, "nobody has named it yet");

    let answer = world.ask(naming(&secret(0), "ak_1")).await;
    assert_eq!((answer.outcome(), &answer.key_id), (Outcome::Disabled, &id));
    assert_eq!((answer.name.as_str(), answer.owner_id.as_str()), ("An imported pair", "team-a"));
    assert!(!world.get(&id).await.enabled);
    assert_eq!(events(&database, "key.disable", &id).await, 1);
    assert_eq!(world.counted(WITHOUT_HASH, "").await, 1);
    let tells = |line: &str| line.contains(&id) && line.contains("without a hash");
    wait_until("a line of the log to say so", async || world.server.log_text().lines().any(tells)).await;

    for named in ["ak_1", &id] {
        for secret in [secret(0), secret(1), "x".to_owned()] {
            assert_eq!(world.ask(naming(&secret, named)).await.outcome(), Outcome::Disabled, "any secret is as good");
        }
    }
    assert_eq!(events(&database, "key.disable", &id).await, 1, "it was disabled once");
    assert_eq!(world.server.log_text().lines().filter(|line| tells(line)).count(), 1);
    let listed = listed(&database);
    assert!(listed.contains(&line("ak_1", "team-a", "DISABLED")) && listed.contains(&active[1]), "{listed:?}");
}

store_test!(a_pair_without_a_hash_that_many_name_at_once_is_disabled_once);
async fn a_pair_without_a_hash_that_many_name_at_once_is_disabled_once(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    bring_in(&database, &[missing("ak_1", "team-a")]);
    let id = id_of(&database, "ak_1").await;
    let ask = |at: usize| answer_to(world.server.keys(), naming(&secret(at % 5), "ak_1"));
    let answers: Vec<VerifyKeyResponse> = at_once((0..20).map(ask)).await;
    assert!(answers.iter().all(|answer| (answer.outcome(), &answer.key_id) == (Outcome::Disabled, &id)));
    assert_eq!(events(&database, "key.disable", &id).await, 1);
    assert_eq!(world.slow_checks().await, 0, "there is nothing to compare with");
}

store_test!(a_pair_that_has_ended_otherwise_stays_as_it_is);
async fn a_pair_that_has_ended_otherwise_stays_as_it_is(database: TestDatabase) {
    let world = World::new(&database).await;
    let ended = |id, status| (id, String::new(), "team-a", status);
    bring_in(&database, &[ended("ak_1", "revoked"), ended("ak_2", "disabled"), missing("ak_3", "team-a")]);
    world.revoke(&id_of(&database, "ak_3").await).await;
    for (id, outcome) in [("ak_1", Outcome::Revoked), ("ak_2", Outcome::Disabled), ("ak_3", Outcome::Revoked)] {
        let before = world.get(&id_of(&database, id).await).await;
        for _ in 0..2 {
            assert_eq!(world.ask(naming(&secret(0), id)).await.outcome(), outcome, "{id}");
        }
        assert_eq!(world.get(&before.id).await, before, "{id}");
        assert_eq!(events(&database, "key.disable", &before.id).await, 0, "{id}");
    }
}

/// Rotates the pair and shows that the new key is whole, and that the old one stays closed.
async fn rotate(world: &World, database: &TestDatabase, source_id: &str, overlap: Option<prost_types::Duration>) {
    let old = id_of(database, source_id).await;
    let rotated = world.rotate(&old, overlap).await;
    let new = rotated.key.expect("the new key");
    assert!(new.enabled, "{new:?}");
    assert_eq!((&new.rotated_from_id, new.owner_id.as_str()), (&old, "team-a"));
    world.expect_valid(presenting(&rotated.secret), &new.id).await;
    world.expect_valid(naming(&rotated.secret, &new.id), &new.id).await;
    let outcome = world.ask(naming(&rotated.secret, source_id)).await.outcome();
    assert!(matches!(outcome, Outcome::Revoked | Outcome::Disabled), "under its old id: {outcome:?}");
    let outcome = world.ask(naming(&secret(0), source_id)).await.outcome();
    assert!(matches!(outcome, Outcome::Revoked | Outcome::Disabled), "under its old id: {outcome:?}");
    world.expect_valid(presenting(&rotated.secret), &new.id).await;
}

store_test!(a_pair_without_a_hash_is_whole_again_once_it_is_rotated);
async fn a_pair_without_a_hash_is_whole_again_once_it_is_rotated(database: TestDatabase) {
    let world = World::new(&database).await;
    let rows = ["ak_1", "ak_2", "ak_3", "ak_4"].map(|id| missing(id, "team-a"));
    bring_in(&database, &rows);
    for named in ["ak_1", "ak_2"] {
        assert_eq!(world.ask(naming(&secret(0), named)).await.outcome(), Outcome::Disabled);
    }
    rotate(&world, &database, "ak_1", None).await;
    rotate(&world, &database, "ak_2", Some(days(1))).await;
    rotate(&world, &database, "ak_3", None).await;
    let listed = listed(&database);
    for id in ["ak_1", "ak_3"] {
        assert!(listed.contains(&line(id, "team-a", "REVOKED")), "nothing is left to do for {id}: {listed:?}");
    }
    assert!(listed.contains(&line("ak_4", "team-a", "ACTIVE")), "{listed:?}");
    assert_eq!(listed.len(), 4, "the new keys have hashes: {listed:?}");
}

store_test!(a_disabled_pair_without_a_hash_is_not_opened_by_enabling_it);
async fn a_disabled_pair_without_a_hash_is_not_opened_by_enabling_it(database: TestDatabase) {
    let world = World::new(&database).await;
    bring_in(&database, &[missing("ak_1", "team-a")]);
    let id = id_of(&database, "ak_1").await;
    assert_eq!(world.ask(naming(&secret(0), "ak_1")).await.outcome(), Outcome::Disabled);
    world.update(ApiKey { id: id.clone(), enabled: true, ..Default::default() }, &["enabled"]).await;
    // What was answered a moment ago is answered again without a look.
    wait_until("it to be disabled again", async || {
        assert_eq!(world.ask(naming(&secret(0), "ak_1")).await.outcome(), Outcome::Disabled);
        !world.get(&id).await.enabled
    })
    .await;
    assert_eq!(events(&database, "key.disable", &id).await, 2, "once for each time that it was active");
}

store_test!(pairs_outlive_a_restart);
async fn pairs_outlive_a_restart(database: TestDatabase) {
    let mut world = World::new(&database).await;
    bring_in(&database, &[(WORDS, sha256_hex(&secret(0)), "team-a", "active"), missing("ak_1", "team-a")]);
    let (id, closed) = (id_of(&database, WORDS).await, id_of(&database, "ak_1").await);
    world.expect_valid(naming(&secret(0), WORDS), &id).await;
    assert_eq!(world.ask(naming(&secret(0), "ak_1")).await.outcome(), Outcome::Disabled);
    world.server.kill9();
    world.server.restart().await;
    world.expect_valid(naming(&secret(0), WORDS), &id).await;
    assert_eq!(world.ask(naming(&secret(0), "ak_1")).await.outcome(), Outcome::Disabled);
    assert_eq!(events(&database, "key.disable", &closed).await, 1);
}
