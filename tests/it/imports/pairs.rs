//! The third system: keys that are a pair of an id and a secret, of which the source holds the secret's SHA-256.
//! Callers go on sending both. Some rows never got a hash: nobody knows their secret, so the first who names one learns
//! that it is disabled, and its owner has to rotate it. Invariant: an id alone opens nothing, and neither does a secret
//! under another id.

use std::collections::{BTreeMap, BTreeSet};

use keystead::proto::v1::Outcome::{self, Disabled, Expired, NotFound, Revoked, Valid};
use keystead::proto::v1::{RotateKeyRequest, VerifyKeyRequest};
use serde_json::Value;

use super::world::{World, documented_slug, presenting, presenting_pair, sha256_hex};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test, wait_until};

const MAPPING: &str = "3-id-and-secret";
const PAIRS: usize = 3000;

/// Some never got a hash: most of them in use, a few revoked, run out or switched off.
fn has_hash(at: usize) -> bool {
    at % 100 != 50 && at % 300 != 203 && at % 300 != 247
}

fn owner(at: usize) -> String {
    format!("team-{}", at / 100 % 7)
}

/// Most ids are words; some are UUIDs, as a newer version of that system gave them.
fn id(at: usize) -> String {
    if at % 10 == 5 { format!("{at:08x}-1111-4111-8111-00000000ABCD") } else { format!("ak_{at:06}") }
}

/// What callers get for their pair.
fn expected(at: usize) -> Outcome {
    match at % 40 {
        3 => Revoked,
        7 | 11 => Disabled,
        19 | 23 => Expired,
        _ => Valid,
    }
}

struct Old {
    source: SourceDatabase,
    secrets: Vec<String>,
}

async fn pairs(world: &World) -> Old {
    let engine: SourceEngine = world.database.engine.into();
    let source = SourceDatabase::new(engine).await;
    let time = if engine == SourceEngine::Postgres { "timestamp" } else { "TIMESTAMP" };
    source
        .run(&format!(
            "CREATE TABLE api_keys (key_id VARCHAR(64) NOT NULL PRIMARY KEY, secret_fragment_hash VARCHAR(64), \
             secret_prefix VARCHAR(20), owner VARCHAR(200), status VARCHAR(20), enabled BOOLEAN NOT NULL, \
             created_at {time} NOT NULL, expires_at {time})"
        ))
        .await;
    let secrets = world.keys.texts("secret", PAIRS);
    let row = |(at, secret): (usize, &String)| -> Vec<Cell> {
        let status = match at % 40 {
            3 => "revoked",
            7 => "Suspended",
            19 => "expired",
            _ => "active",
        };
        let hash = Some(sha256_hex(secret)).filter(|_| has_hash(at));
        vec![
            cell(id(at)),
            hash.map(|hash| if at % 9 == 4 { hash.to_uppercase() } else { hash }),
            cell(format!("{}...{}", &secret[..3], &secret[secret.len() - 4..])),
            cell(owner(at)),
            cell(status),
            cell(if at % 40 == 11 { "0" } else { "1" }),
            cell("2024-05-06 07:08:09"),
            if at % 40 == 23 { cell("2025-01-01 00:00:00") } else { None },
        ]
    };
    let rows: Vec<Vec<Cell>> = secrets.iter().enumerate().map(row).collect();
    let columns = "key_id, secret_fragment_hash, secret_prefix, owner, status, enabled, created_at, expires_at";
    source.insert("api_keys", columns, &rows).await;
    Old { source, secrets }
}

async fn brought_in(database: TestDatabase) -> (World, Old) {
    let world = World::new(database, &documented_slug(MAPPING)).await;
    let old = pairs(&world).await;
    let before = old.source.state().await;
    let import = world.documented(&old.source.reader_url().await, MAPPING);
    for report in [import.plan(&[]), import.run(&[])] {
        let table = report.table("api_keys");
        assert_eq!(table.counts(["rows", "created", "skipped", "refused"]), [3000, 3000, 0, 0]);
        let schemes = [("missing".to_owned(), 50), ("sha256-hex".to_owned(), 2950)];
        assert_eq!(table.by("schemes"), BTreeMap::from(schemes));
    }
    assert!(import.verify(&[]).is("passed"));
    assert_eq!(old.source.state().await, before, "the source is as it was");
    (world, old)
}

store_test!(callers_go_on_sending_their_id_and_their_secret);
async fn callers_go_on_sending_their_id_and_their_secret(database: TestDatabase) {
    let (world, old) = brought_in(database).await;
    let with_hash: Vec<usize> = (0..PAIRS).filter(|at| has_hash(*at)).collect();
    let request = |at: &usize| presenting_pair(&id(*at), &old.secrets[*at]);
    let answers = world.ask_all(with_hash.iter().map(request).collect()).await;
    for (at, answer) in with_hash.iter().zip(&answers) {
        assert_eq!(answer.outcome(), expected(*at), "pair {at}");
        assert_eq!(answer.owner_id, owner(*at));
        if at % 10 == 5 {
            assert_eq!(answer.key_id, id(*at).to_lowercase(), "a UUID stays as it is");
        }
    }
    // By the secret alone too, and under no other id.
    for at in [0, 5, 1234, 2999] {
        let answer = world.present(&old.secrets[at]).await;
        assert_eq!((answer.outcome(), &answer.key_id), (expected(at), &key_id(&world, at).await), "pair {at}");
        for other in [1, 15, 50] {
            let answer = world.ask(presenting_pair(&id(other), &old.secrets[at])).await;
            let outcome = if has_hash(other) { NotFound } else { Disabled };
            assert_eq!(answer.outcome(), outcome, "the secret of {at} under the id of {other}");
        }
        let answer = world.ask(presenting_pair("ak_999999", &old.secrets[at])).await;
        assert_eq!(answer.outcome(), NotFound, "an id that nobody has");
    }
    let key = world.key(&key_id(&world, 5).await).await;
    let secret = &old.secrets[5];
    assert_eq!((key.prefix.as_str(), key.hint.as_str()), ("sk_", &secret[secret.len() - 4..]), "for the audit");
    world.assert_told_nobody(&old.secrets);
}

async fn key_id(world: &World, at: usize) -> String {
    world.id_of_row("api_keys", &id(at)).await.expect("a key")
}

/// Owner and status of the keys without a hash, in the order of the list.
fn missing(status: &Value) -> Vec<(String, String)> {
    let text = |key: &Value, name: &str| key[name].as_str().expect("text").to_owned();
    let keys = status["missing"].as_array().expect("a list");
    keys.iter().map(|key| (text(key, "owner_id"), text(key, "status"))).collect()
}

async fn metric(world: &World, name: &str) -> Option<f64> {
    let (_, page) = crate::server::metrics::get(world.server.metrics_address(), "/metrics").await;
    crate::server::metrics::value(&page, name)
}

async fn disabled_events(world: &World) -> i64 {
    world.database.query_i64("SELECT count(*) FROM audit_events WHERE action = 'key.disable'").await
}

store_test!(a_key_without_a_hash_is_disabled_when_it_is_first_named_and_lives_again_by_rotation);
async fn a_key_without_a_hash_is_disabled_when_it_is_first_named_and_lives_again_by_rotation(database: TestDatabase) {
    let (world, old) = brought_in(database).await;
    let at = 50;
    let listed = missing(&world.status(&["--missing"]));
    assert_eq!(listed.len(), 50);
    let owners: Vec<&String> = listed.iter().map(|(owner, _)| owner).collect();
    assert!(owners.is_sorted(), "by owner: {owners:?}");
    assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), 7);
    let words: BTreeSet<&str> = listed.iter().map(|(_, status)| status.as_str()).collect();
    assert_eq!(words, BTreeSet::from(["active", "disabled", "expired", "revoked"]));

    assert_eq!(world.outcome(&old.secrets[at]).await, NotFound, "without its id it is nobody's");
    assert_eq!(
        (disabled_events(&world).await, metric(&world, "keystead_keys_without_hash_total").await),
        (0, Some(0.0))
    );

    let request: VerifyKeyRequest = presenting_pair(&id(at), &old.secrets[at]);
    for _ in 0..3 {
        let answer = world.ask(request.clone()).await;
        assert_eq!(answer.outcome(), Disabled);
    }
    assert_eq!(disabled_events(&world).await, 1, "once");
    assert_eq!(metric(&world, "keystead_keys_without_hash_total").await, Some(3.0));
    let key = key_id(&world, at).await;
    let sql = format!("SELECT status FROM api_keys WHERE id = '{key}'");
    assert_eq!(world.database.query_string(&sql).await, "disabled");
    let line = |log: String| log.lines().filter(|line| line.contains("without a hash") && line.contains(&key)).count();
    wait_until("the log to say so", async || line(world.server.log_text()) == 1).await;

    let listed = world.status(&["--missing"]);
    let row = listed["missing"].as_array().expect("a list").iter().find(|row| row["key_id"] == key.as_str());
    assert_eq!(row.expect("the key")["status"], "disabled");
    assert_eq!(missing(&listed).len(), 50, "it is there until somebody rotates it");

    let request = RotateKeyRequest { key_id: key.clone(), ..Default::default() };
    let rotated = world.server.keys().rotate_key(request).await.expect("it is rotated").into_inner();
    let answer = world.present(&rotated.secret).await;
    assert_eq!((answer.outcome(), answer.owner_id.as_str()), (Valid, owner(at).as_str()));
    let answer = world.ask(presenting_pair(&id(at), &old.secrets[at])).await;
    assert!([Revoked, Disabled].contains(&answer.outcome()), "{answer:?}");
    assert_eq!(world.ask(presenting(&old.secrets[at])).await.outcome(), NotFound);

    // A repeat brings neither the old state back nor a second key.
    let import = world.documented(&old.source.reader_url().await, MAPPING);
    assert_eq!(import.run(&[]).table("api_keys").counts(["created", "existing"]), [0, 3000]);
    assert_eq!(world.present(&rotated.secret).await.outcome(), Valid);
    assert_eq!(world.key_count().await, 3000);
}

store_test!(a_key_without_a_hash_that_ended_otherwise_says_so);
async fn a_key_without_a_hash_that_ended_otherwise_says_so(database: TestDatabase) {
    let (world, old) = brought_in(database).await;
    for at in (0..PAIRS).filter(|at| !has_hash(*at)) {
        let answer = world.ask(presenting_pair(&id(at), &old.secrets[at])).await;
        let outcome = if expected(at) == Revoked { Revoked } else { Disabled };
        assert_eq!(answer.outcome(), outcome, "pair {at}");
    }
    let active = (0..PAIRS).filter(|at| !has_hash(*at) && matches!(expected(*at), Valid | Expired)).count();
    assert_eq!(disabled_events(&world).await, i64::try_from(active).expect("few"), "an event for each that was active");
}

store_test!(a_pair_that_is_another_one_in_the_source_by_now_fails_the_verification);
async fn a_pair_that_is_another_one_in_the_source_by_now_fails_the_verification(database: TestDatabase) {
    let (world, old) = brought_in(database).await;
    let import = world.documented(&old.source.reader_url().await, MAPPING);
    let (hash, other) = (sha256_hex(&old.secrets[8]), sha256_hex("else"));
    // What changes there ends the key sooner than what came over.
    for (column, value, before) in [
        ("secret_fragment_hash", format!("'{other}'"), format!("'{hash}'")),
        ("status", "'withdrawn'".to_owned(), "'active'".to_owned()),
        ("enabled", "'0'".to_owned(), "'1'".to_owned()),
        ("expires_at", "'2025-02-03 04:05:06'".to_owned(), "NULL".to_owned()),
        ("expires_at", "'2037-02-03 04:05:06'".to_owned(), "NULL".to_owned()),
    ] {
        let set = |value: &str| format!("UPDATE api_keys SET {column} = {value} WHERE key_id = '{}'", id(8));
        old.source.run(&set(&value)).await;
        let verified = import.ran(&["verify"]);
        assert_eq!(verified.code, 1, "{column} = {value}: {verified:?}");
        assert!(verified.stderr.contains(&id(8)), "{column} = {value}: {verified:?}");
        old.source.run(&set(&before)).await;
        assert_eq!(import.ran(&["verify"]).code, 0, "{column} = {before}");
    }
}
