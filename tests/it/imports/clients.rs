//! The second system: clients with a key each, in plaintext or, in a copy that is half migrated, as a bcrypt hash. The
//! old system compared each request with every client. Here the hashes come over, and a key is found by its id, by the
//! part that it begins with, or by a bounded scan; its first success makes it as fast as any other. Invariant: a key
//! that worked works all the way, however often the import is repeated.

use keystead::proto::v1::Outcome::{self, Disabled, NotFound, Valid};
use serde_json::Value;

use super::world::{World, counts, documented_slug, presenting, presenting_pair};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test, wait_until};

const MAPPING: &str = "2-bcrypt-clients";
const CLIENTS: usize = 3000;
/// So many of the half-migrated copy have a hash in place of a key.
const MIGRATED: usize = 1500;
/// Of them: with the cost of real systems. The cost of the others does not matter to what is shown.
const DEAR: usize = 36;
const COST: u32 = 10;
const CHEAP: u32 = 4;
/// A row whose hash was cut.
const CUT: usize = 77;

fn is_active(at: usize) -> bool {
    at % 25 != 24
}

/// Rows of nobody: they never got a key.
fn is_blank(at: usize) -> bool {
    at % 500 == 499
}

/// Rows from before keys had a part by which they are looked up.
fn has_prefix(at: usize) -> bool {
    !at.is_multiple_of(20)
}

fn expected(at: usize) -> Outcome {
    if is_active(at) { Valid } else { Disabled }
}

async fn clients(world: &World, half_migrated: bool) -> (SourceDatabase, Vec<String>) {
    let engine: SourceEngine = world.database.engine.into();
    let source = SourceDatabase::new(engine).await;
    let (id, time) = match engine {
        SourceEngine::Postgres => ("bigserial PRIMARY KEY", "timestamp"),
        SourceEngine::Sqlite | SourceEngine::MariaDb => ("INTEGER PRIMARY KEY NOT NULL", "TIMESTAMP"),
    };
    source
        .run(&format!(
            "CREATE TABLE clients (id {id}, name VARCHAR(200) NOT NULL, api_key VARCHAR(255), \
             api_key_hash VARCHAR(60), is_active BOOLEAN NOT NULL, created_at {time} NOT NULL, last_seen_at {time}, \
             key_prefix VARCHAR(16)); CREATE INDEX clients_api_key ON clients (api_key)"
        ))
        .await;
    let keys = world.keys.texts("client", CLIENTS);
    let hashes = if half_migrated { hashes(&keys[..MIGRATED]) } else { Vec::new() };
    let rows: Vec<Vec<Cell>> = keys.iter().enumerate().map(|(at, key)| row(at, key, hashes.get(at))).collect();
    let columns = "id, name, api_key, api_key_hash, is_active, created_at, last_seen_at, key_prefix";
    source.insert("clients", columns, &rows).await;
    (source, keys)
}

fn row(at: usize, key: &str, hash: Option<&String>) -> Vec<Cell> {
    let plain = match at % 60 {
        _ if hash.is_some() => {
            if at.is_multiple_of(2) {
                None
            } else {
                cell("")
            }
        }
        17 => cell(format!("{key}\r\n")),
        _ => cell(key),
    };
    let hash = hash.map(|hash| if at == CUT { hash[..50].to_owned() } else { hash.clone() });
    let (plain, hash) = if is_blank(at) { (None, None) } else { (plain, hash) };
    vec![
        cell((at + 1).to_string()),
        cell(format!("client no. {at}")),
        plain,
        hash,
        cell(if is_active(at) { "1" } else { "0" }),
        cell("2024-05-06 07:08:09"),
        if at.is_multiple_of(3) { cell("2024-06-07 08:09:10") } else { None },
        if has_prefix(at) { cell(&key[..10]) } else { None },
    ]
}

/// Hashes of these keys, made on all cores.
fn hashes(keys: &[String]) -> Vec<String> {
    let cost = |at: usize| if at < DEAR { COST } else { CHEAP };
    let hash = |(at, key): (usize, &String)| bcrypt::hash(key, cost(at)).expect("a hash");
    let numbered: Vec<(usize, &String)> = keys.iter().enumerate().collect();
    std::thread::scope(|scope| {
        let parts: Vec<_> = numbered
            .chunks(keys.len().div_ceil(4))
            .map(|part| scope.spawn(move || part.iter().copied().map(hash).collect::<Vec<String>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    })
}

/// A slow check waits for its turn, and for longer where many tests share this machine.
async fn comes_to_answer(world: &World, request: keystead::proto::v1::VerifyKeyRequest, outcome: Outcome) {
    wait_until("a slow check to be made", async || {
        let answer = world.server.keys().verify_key(request.clone()).await;
        answer.is_ok_and(|answer| {
            assert_eq!(answer.into_inner().outcome(), outcome);
            true
        })
    })
    .await;
}

async fn scheme_of(world: &World, id: &str) -> String {
    world.database.query_string(&format!("SELECT scheme FROM api_keys WHERE id = '{id}'")).await
}

async fn id_of(world: &World, at: usize) -> String {
    world.id_of_row("clients", &(at + 1).to_string()).await.expect("a key")
}

async fn audited(world: &World, action: &str) -> i64 {
    world.database.query_i64(&format!("SELECT count(*) FROM audit_events WHERE action = '{action}'")).await
}

store_test!(clients_with_plaintext_keys_come_over);
async fn clients_with_plaintext_keys_come_over(database: TestDatabase) {
    let world = World::new(database, &documented_slug(MAPPING)).await;
    let (source, keys) = clients(&world, false).await;
    let before = source.state().await;
    let import = world.documented(&source.reader_url().await, MAPPING);
    for report in [import.plan(&[]), import.run(&[])] {
        let seen = report.table("clients").counts(["rows", "created", "skipped", "refused"]);
        assert_eq!(seen, [3000, 2994, 6, 0]);
        assert_eq!(report.table("clients").by("schemes"), counts(&[("plaintext", 2994)]));
    }
    let answers = world.ask_all(keys.iter().map(|key| presenting(key)).collect()).await;
    for (at, answer) in answers.iter().enumerate() {
        let outcome = if is_blank(at) { NotFound } else { expected(at) };
        assert_eq!(answer.outcome(), outcome, "client {at}");
        if !is_blank(at) {
            assert_eq!(answer.name, format!("client no. {at}"));
        }
    }
    assert!(import.verify(&[]).is("passed"));
    assert_eq!(source.state().await, before, "the source is as it was");
    world.assert_told_nobody(&keys);
}

/// The half-migrated copy, brought in.
async fn half_migrated(database: TestDatabase) -> (World, SourceDatabase, Vec<String>) {
    let world = World::new(database, &documented_slug(MAPPING)).await;
    let (source, keys) = clients(&world, true).await;
    let import = world.documented(&source.reader_url().await, MAPPING);
    for report in [import.plan(&[]), import.run(&[])] {
        let seen = report.table("clients").counts(["rows", "created", "skipped", "refused"]);
        assert_eq!(seen, [3000, 2993, 6, 1]);
        let schemes = report.table("clients").by("schemes");
        assert_eq!(schemes, counts(&[("bcrypt", 1496), ("plaintext", 1497)]));
        assert_eq!(report.table("clients").by("refusals"), counts(&[("BAD_HASH", 1)]));
        assert_eq!(report.table("clients").by("notes").get("SCANNED"), Some(&75));
    }
    assert_eq!(import.ran(&["verify", "--accept-refused"]).code, 0);
    (world, source, keys)
}

store_test!(a_key_under_bcrypt_works_at_once_and_is_a_digest_after_its_first_success);
async fn a_key_under_bcrypt_works_at_once_and_is_a_digest_after_its_first_success(database: TestDatabase) {
    let (world, source, keys) = half_migrated(database).await;
    // By the part that it begins with; by a scan; by its id. The first two are of the cost of real systems.
    let found = [(1, false), (20, false), (33, true), (401, false), (740, false), (1022, true)];
    for (at, by_id) in found {
        let id = id_of(&world, at).await;
        assert_eq!(scheme_of(&world, &id).await, "bcrypt");
        let wrong = format!("{}x", keys[at]);
        let with = |secret: &str| if by_id { presenting_pair(&id, secret) } else { presenting(secret) };
        comes_to_answer(&world, with(&wrong), NotFound).await;
        assert_eq!(scheme_of(&world, &id).await, "bcrypt", "a wrong secret changes nothing");
        comes_to_answer(&world, with(&keys[at]), Valid).await;
        assert_eq!(scheme_of(&world, &id).await, "sha256", "client {at}");
        let answer = world.present(&keys[at]).await;
        assert_eq!((answer.outcome(), &answer.key_id), (Valid, &id));
        assert_eq!(answer.name, format!("client no. {at}"));
        comes_to_answer(&world, with(&wrong), NotFound).await;
    }
    assert_eq!(audited(&world, "key.rehash").await, 6, "an event each, and one only");
    let hashes = world.database.query_i64("SELECT count(*) FROM api_keys WHERE stored_hash LIKE '$2%'").await;
    assert_eq!(hashes, 1490, "the slow hash of an upgraded key is gone");

    let status = world.status(&[]);
    let clients = status["imports"].as_array().expect("imports").iter().find(|import| import["table"] == "clients");
    let clients = clients.expect("the table");
    assert_eq!(clients["keys"], serde_json::json!({"bcrypt": 1490, "sha256": 1503}));

    // A repeat finds every key, upgraded or not, and puts no old hash back.
    let import = world.documented(&source.reader_url().await, MAPPING);
    assert_eq!(import.run(&[]).table("clients").counts(["created", "existing", "refused"]), [0, 2993, 1]);
    for (at, _) in found {
        assert_eq!(scheme_of(&world, &id_of(&world, at).await).await, "sha256");
        assert_eq!(world.outcome(&keys[at]).await, Valid);
    }
    assert_eq!(import.ran(&["verify", "--accept-refused"]).code, 0);
    world.assert_told_nobody(&keys);
}

store_test!(clients_that_were_switched_off_stay_so_under_a_slow_hash_too);
async fn clients_that_were_switched_off_stay_so_under_a_slow_hash_too(database: TestDatabase) {
    let (world, _source, keys) = half_migrated(database).await;
    for at in [49, 74, 124] {
        assert!(!is_active(at) && has_prefix(at));
        comes_to_answer(&world, presenting(&keys[at]), Disabled).await;
        let id = id_of(&world, at).await;
        comes_to_answer(&world, presenting_pair(&id, &keys[at]), Disabled).await;
        assert!(!world.key(&id).await.enabled);
    }
    // The row whose hash was cut is no key, and says so to nobody.
    comes_to_answer(&world, presenting(&keys[CUT]), NotFound).await;
}

store_test!(keys_work_all_the_way_from_plaintext_over_bcrypt_to_the_digest);
async fn keys_work_all_the_way_from_plaintext_over_bcrypt_to_the_digest(database: TestDatabase) {
    let (mut world, source, keys) = half_migrated(database).await;
    let import = world.documented(&source.reader_url().await, MAPPING).url;
    // The old system goes on hashing: a plaintext that has come over turns into a hash there.
    let at = 2000;
    assert_eq!(world.outcome(&keys[at]).await, expected(at));
    let hash = bcrypt::hash(&keys[at], CHEAP).expect("a hash");
    source.run(&format!("UPDATE clients SET api_key = NULL, api_key_hash = '{hash}' WHERE id = {}", at + 1)).await;
    let again = world.documented(&import, MAPPING).run(&[]);
    assert_eq!(again.table("clients").counts(["created", "existing"]), [0, 2993]);
    assert_eq!(world.outcome(&keys[at]).await, expected(at), "it did not become slow");

    world.server.restart().await;
    for at in [1, 100, 500, 1499 - 2, 2000, 2999 - 2] {
        comes_to_answer(&world, presenting(&keys[at]), expected(at)).await;
    }
    world.server.restart().await;
    for at in [1, 100, 500, 1499 - 2, 2000, 2999 - 2] {
        assert_eq!(world.outcome(&keys[at]).await, expected(at), "client {at}");
    }
}

store_test!(verifications_are_counted_by_source_and_scheme_so_that_the_old_way_is_seen_to_end);
async fn verifications_are_counted_by_source_and_scheme_so_that_the_old_way_is_seen_to_end(database: TestDatabase) {
    let (world, _source, keys) = half_migrated(database).await;
    let count = async |scheme: &str| {
        let (_, page) = crate::server::metrics::get(world.server.metrics_address(), "/metrics").await;
        let lines = page.lines().filter(|line| {
            line.starts_with("keystead_imported_verifications_total{") && line.contains(&format!("scheme=\"{scheme}\""))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    let unseen = |status: &Value| status["unseen"].as_array().expect("a list").len();
    assert_eq!(unseen(&world.status(&["--unseen"])), 2993);
    comes_to_answer(&world, presenting(&keys[401]), Valid).await;
    // The first of an import is counted once its label was looked up.
    wait_until("the old way to be counted", async || count("bcrypt").await == 1).await;
    for _ in 0..3 {
        assert_eq!(world.outcome(&keys[401]).await, Valid);
    }
    assert_eq!(count("bcrypt").await, 1, "is not used any more");
    assert_eq!(count("sha256").await, 3);
    assert_eq!(world.outcome(&keys[2001]).await, Valid);
    assert_eq!(count("sha256").await, 4);
    // What was used is written about once a second.
    wait_until("two keys to be seen", async || unseen(&world.status(&["--unseen"])) == 2991).await;
    let listed = world.status(&["--unseen"]);
    let names: Vec<&str> =
        listed["unseen"].as_array().expect("a list").iter().filter_map(|key| key["name"].as_str()).collect();
    assert!(!names.contains(&"client no. 401") && names.contains(&"client no. 402"));
}
