//! `VerifyKey` of slow keys that have more candidates than one search checks: each search for a secret goes on behind
//! the one before it, so that every key is reached, and what came in meanwhile is not passed over.
//! Invariant: a secret is unknown only once every candidate was compared with it.

use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{ImportKey, Outcome};
use keystead::store::slow_keys;
use sea_orm::ConnectionTrait as _;
use tonic::Code;

use super::import_samples::{
    METRICS, bare_slow, expect_unknown, forged, import, is_upgraded, look_up_id, of, patiently, reason_of, scanned,
    secret, slow, told,
};
use super::{World, presenting, refused, with};
use crate::harness::{Engine, Server, Setup, TestDatabase, store_test, wait_until};

/// How many candidates one search checks.
const AT_ONCE: usize = 200;
/// An id before every other one that a key gets.
const FIRST_ID: &str = "00000000-0000-7000-8000-000000000009";
/// For tests in which checks take longer than a verification may by default.
const PATIENT: [&str; 4] = [METRICS[0], METRICS[1], "--verify-timeout-ms", "45000"];
const CHECKS: &str = "keystead_slow_checks_total";

/// The key of this secret, or any other key, among all that are looked up by the same part.
fn sharing(key: &ImportKey) -> ImportKey {
    with(key, |key| "sk_live_".clone_into(&mut key.look_up_id))
}

/// A secret that begins with that part.
fn live(at: usize) -> String {
    secret(at).replacen("sk_", "sk_live_", 1)
}

/// A key that is nobody's, and is found by what it begins with.
fn forgery(at: usize) -> ImportKey {
    with(&of(Material::Bcrypt(forged(at))), |key| "sk_".clone_into(&mut key.prefix))
}

/// The same, and each check of it takes tens of milliseconds.
fn dear(at: usize) -> ImportKey {
    let hash = forged(at).replacen("$04$", "$10$", 1);
    with(&of(Material::Bcrypt(hash)), |key| "sk_".clone_into(&mut key.prefix))
}

/// A key that is nobody's, and is looked up by what this secret begins with.
fn beside(secret: &str, at: usize) -> ImportKey {
    with(&of(Material::Bcrypt(forged(at))), |key| key.look_up_id = look_up_id(secret))
}

async fn import_all(world: &World, keys: Vec<ImportKey>) {
    let results = world.import(keys).await;
    assert!(told(&results).iter().all(|told| *told == "CREATED"), "{results:?}");
}

async fn expect_too_many(world: &World, secret: &str) {
    let answer = world.server.keys().verify_key(presenting(secret)).await;
    refused(answer, Code::Unavailable, "TOO_MANY_CANDIDATES");
}

store_test!(keys_that_share_their_look_up_part_are_all_reached);
async fn keys_that_share_their_look_up_part_are_all_reached(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    import_all(&world, (0..250).map(|at| sharing(&of(Material::Bcrypt(forged(at))))).collect()).await;
    let id = world.import_one(sharing(&bare_slow(&live(0)))).await;
    let scanned_id = world.import_one(scanned(&live(1))).await;

    expect_too_many(&world, &live(0)).await;
    assert_eq!(world.slow_checks().await, 200);
    world.expect_valid(presenting(&live(0)), &id).await;
    assert_eq!(world.slow_checks().await, 251, "it goes on behind those that were compared");
    expect_too_many(&world, &live(1)).await;
    world.expect_valid(presenting(&live(1)), &scanned_id).await;
    assert_eq!(world.slow_checks().await, 251 + 251, "and with the rest behind them");
    expect_too_many(&world, &live(2)).await;
    expect_unknown(world.server.keys(), presenting(&live(2)), "all were compared with it").await;
    assert_eq!(world.slow_checks().await, 251 + 251 + 250);
}

store_test!(a_key_that_comes_in_before_where_a_search_goes_on_is_found);
async fn a_key_that_comes_in_before_where_a_search_goes_on_is_found(database: TestDatabase) {
    let world = World::new(&database).await;
    import_all(&world, (0..=AT_ONCE).map(forgery).collect()).await;
    expect_too_many(&world, &secret(0)).await;
    let key = with(&scanned(&secret(0)), |key| FIRST_ID.clone_into(&mut key.key_id));
    assert_eq!(world.import_one(key).await, FIRST_ID);
    world.expect_valid(presenting(&secret(0)), FIRST_ID).await;
}

/// PostgreSQL alone: a file has one server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_replica_brings_in_before_where_a_search_goes_on_is_not_called_unknown() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let world = World::new(&database).await;
    let second = Server::start_with(&database, Setup::default()).await;
    import_all(&world, (0..=AT_ONCE).map(forgery).collect()).await;
    expect_too_many(&world, &secret(0)).await;
    let key = with(&scanned(&secret(0)), |key| FIRST_ID.clone_into(&mut key.key_id));
    // By its look-up part the other one can be found only by who has heard of imports after the first.
    let other = with(&bare_slow("tk_Zx81kQp0aVn3Wc7d"), |key| "tk_Zx8".clone_into(&mut key.look_up_id));
    for key in [key, other] {
        let results = import(second.keys(), world.importing(vec![key])).await;
        assert_eq!(told(&results), ["CREATED"]);
    }
    wait_until("the first replica to hear of it", async || {
        world.outcome("tk_Zx81kQp0aVn3Wc7d").await == Outcome::Valid
    })
    .await;
    expect_too_many(&world, &secret(0)).await;
    world.expect_valid(presenting(&secret(0)), FIRST_ID).await;
}

store_test!(a_row_that_cannot_be_read_does_not_hide_those_behind_it);
async fn a_row_that_cannot_be_read_does_not_hide_those_behind_it(database: TestDatabase) {
    let world = World::new(&database).await;
    import_all(&world, (0..=AT_ONCE).map(forgery).collect()).await;
    let id = world.import_one(scanned(&secret(0))).await;
    let connection = database.connect().await;
    let spoil =
        "UPDATE api_keys SET stored_hash = 'x' WHERE id = (SELECT min(id) FROM api_keys WHERE scheme = 'bcrypt')";
    connection.execute_unprepared(spoil).await.expect("the row is spoilt");
    connection.close().await.expect("the connection closes");
    expect_too_many(&world, &secret(0)).await;
    world.expect_valid(presenting(&secret(0)), &id).await;
    assert!(is_upgraded(&database, &id, &secret(0)).await);
}

store_test!(a_key_that_comes_in_during_a_search_is_not_called_unknown_to_whoever_asks_then);
async fn a_key_that_comes_in_during_a_search_is_not_called_unknown_to_whoever_asks_then(database: TestDatabase) {
    let world = World::start(&database, &PATIENT).await;
    // What is looked up is through at once, and the scan behind it takes seconds.
    let mut keys: Vec<ImportKey> = (1..=64).map(dear).collect();
    keys.push(beside(&secret(0), 0));
    import_all(&world, keys).await;
    let (mut first, request) = (world.server.keys(), presenting(&secret(0)));
    let asking = tokio::spawn(async move { first.verify_key(request).await });
    wait_until("those that are looked up to be compared", async || world.slow_checks().await >= 1).await;
    let id = world.import_one(slow(&secret(0))).await;
    // The first of these waits for the end of that very search.
    wait_until("the key to be found", async || match world.server.keys().verify_key(presenting(&secret(0))).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            assert_eq!((answer.outcome(), &answer.key_id), (Outcome::Valid, &id));
            true
        }
        Err(status) => {
            assert_eq!(reason_of(&status), "TOO_MANY_CANDIDATES", "{status:?}");
            false
        }
    })
    .await;
    asking.abort();
    assert!(is_upgraded(&database, &id, &secret(0)).await);
}

store_test!(a_search_that_finds_no_room_for_its_scan_compares_what_it_looked_up_once);
async fn a_search_that_finds_no_room_for_its_scan_compares_what_it_looked_up_once(database: TestDatabase) {
    let world = World::start(&database, &PATIENT).await;
    let mut keys: Vec<ImportKey> = (1..=AT_ONCE).map(dear).collect();
    keys.push(beside(&secret(0), 0));
    import_all(&world, keys).await;
    // Those that may not wait ask again and again, so that there is no room for as long as each scan takes.
    let strangers = (1..=4).map(|at| tokio::spawn(patiently(world.server.keys(), presenting(&secret(at)))));
    let strangers: Vec<_> = strangers.collect();
    let is_full = async || world.counted(CHECKS, "result=\"refused\"").await >= 4;
    wait_until("the scans that wait to be as many as may", is_full).await;
    for _ in 0..3 {
        let answer = world.server.keys().verify_key(presenting(&secret(0))).await;
        refused(answer, Code::Unavailable, "SLOW_CHECKS_BUSY");
        let compared = world.counted(CHECKS, "result=\"different\"").await;
        assert_eq!(compared, 1, "the one that was looked up, when it was asked first");
    }
    for stranger in strangers {
        stranger.abort();
    }
}

store_test!(an_import_of_anything_but_keys_begins_no_search_anew);
async fn an_import_of_anything_but_keys_begins_no_search_anew(database: TestDatabase) {
    let world = World::new(&database).await;
    world.import_one(slow(&secret(0))).await;
    let connection = database.connect().await;
    let imports = async || slow_keys::find_outline(&connection).await.expect("an outline").imports;
    let comes = async |at: usize, kind: &str| {
        let insert = format!(
            "INSERT INTO imports (id, organization_id, source, table_name, kind, state, create_time_us, update_time_us)
             VALUES ('00000000-0000-7000-8000-00000000000{at}', '', 'old', '{kind}', '{kind}', 'running', 1, 1)"
        );
        assert_eq!(database.raw_sql(&insert).await, 1);
    };
    let before = imports().await;
    for (at, kind) in ["organizations", "usage", "limits"].into_iter().enumerate() {
        comes(at, kind).await;
        assert_eq!(imports().await, before, "{kind}");
    }
    comes(9, "keys").await;
    let after = imports().await;
    assert_ne!(after, before);
    assert_eq!(database.raw_sql("UPDATE imports SET update_time_us = 7 WHERE kind = 'calls'").await, 1);
    assert_ne!(imports().await, after);
    connection.close().await.expect("the connection closes");
}
