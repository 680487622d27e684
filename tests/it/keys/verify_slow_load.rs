//! `VerifyKey` of slow keys at the same time, in large numbers, and while something breaks: each key is upgraded once,
//! "we do not know" is never "not found", others are answered meanwhile, and what was upgraded stays so.
//! Invariant: nothing but the comparison of every candidate makes a secret unknown.

use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{ImportKey, Outcome, VerifyKeyResponse};
use sea_orm::{ConnectionTrait as _, DatabaseConnection};
use tonic::{Code, Response, Status};

use super::import_samples::{
    METRICS, bcrypt_of, events, expect_unknown, forged, is_slow, is_upgraded, naming, of, patiently, reason_of,
    scanned, secret, slow, told,
};
use super::{Keys, World, answer_to, at_once, presenting, refused, with};
use crate::harness::{Engine, Fault, Proxy, Server, Setup, TestDatabase, create_organization, store_test, wait_until};

/// Why the service may not know.
const AWAY: [&str; 3] = ["DATABASE_UNAVAILABLE", "TIMED_OUT", "GROWN_STALE"];

fn assert_unavailable(result: Result<Response<VerifyKeyResponse>, Status>, reasons: &[&str]) {
    let status = match result {
        Ok(answer) => panic!("{:?}, although nobody can know", answer.into_inner().outcome()),
        Err(status) => status,
    };
    let reason = reason_of(&status);
    assert!(reasons.contains(&reason.as_str()), "{status:?}");
    let details = refused::<()>(Err(status), Code::Unavailable, &reason);
    assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some_and(|delay| !delay.is_zero())));
}

store_test!(first_uses_at_once_are_all_valid_and_upgrade_once);
async fn first_uses_at_once_are_all_valid_and_upgrade_once(database: TestDatabase) {
    let world = World::new(&database).await;
    let results = world.import(vec![slow(&secret(0)), scanned(&secret(1)), slow(&secret(2))]).await;
    let request = |at: usize| match at % 3 {
        2 => naming(&secret(2), &results[2].key_id),
        at => presenting(&secret(at)),
    };
    let answers = at_once((0..60).map(|at| patiently(world.server.keys(), request(at)))).await;
    assert!(answers.iter().all(|answer| answer.outcome() == Outcome::Valid));
    for (at, result) in results.iter().enumerate() {
        assert_eq!(answers.iter().filter(|answer| answer.key_id == result.key_id).count(), 20);
        assert!(is_upgraded(&database, &result.key_id, &secret(at)).await);
        assert_eq!(events(&database, "key.rehash", &result.key_id).await, 1);
    }
}

/// PostgreSQL alone: a file has one server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_uses_on_two_replicas_at_once_upgrade_once() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let world = World::new(&database).await;
    let second = Server::start_with(&database, Setup::default()).await;
    let results = world.import((0..10).map(|at| slow(&secret(at))).collect()).await;
    let ask = |at: usize| {
        let server = if at.is_multiple_of(2) { &world.server } else { &second };
        patiently(server.keys(), presenting(&secret(at / 4)))
    };
    let answers = at_once((0..40).map(ask)).await;
    assert!(answers.iter().all(|answer| answer.outcome() == Outcome::Valid));
    for (at, result) in results.iter().enumerate() {
        assert!(is_upgraded(&database, &result.key_id, &secret(at)).await);
        assert_eq!(events(&database, "key.rehash", &result.key_id).await, 1);
    }
}

store_test!(more_candidates_than_are_compared_make_a_secret_undecided_and_not_unknown);
async fn more_candidates_than_are_compared_make_a_secret_undecided_and_not_unknown(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.verify"]).await;
    let (native, native_secret) = world.create(world.new_key()).await;
    let forgery = |at: usize| with(&of(Material::Bcrypt(forged(at))), |key| "sk_".clone_into(&mut key.prefix));
    let mut keys: Vec<ImportKey> = (0..200).map(forgery).collect();
    keys.push(slow(&secret(0)));
    let results = world.import(keys).await;
    assert!(told(&results).iter().all(|told| *told == "CREATED"), "{results:?}");
    expect_unknown(world.server.keys(), presenting(&secret(1)), "200 candidates, and none is it").await;
    assert_eq!(world.slow_checks().await, 200);

    let named = world.import_one(scanned(&secret(2))).await;
    let undecided = world.server.keys().verify_key(presenting(&secret(3))).await;
    assert_unavailable(undecided, &["TOO_MANY_CANDIDATES"]);
    expect_unknown(world.server.keys(), presenting("tk_Zx81kQp0aVn3Wc7d"), "none of them begins so").await;
    world.expect_valid(presenting(&native_secret), &native.id).await;
    world.expect_valid(presenting(&secret(0)), &results[200].key_id).await;
    expect_unknown(world.server.keys(), presenting(&secret(3)), "a second search goes on behind the first").await;
    let undecided = world.server.keys().verify_key(presenting(&secret(2))).await;
    assert_unavailable(undecided, &["TOO_MANY_CANDIDATES"]);
    world.expect_valid(presenting(&secret(2)), &named).await;
    world.expect_valid(naming(&secret(2), &named), &named).await;
    expect_unknown(world.server.keys(), naming(&secret(4), &named), "whose key it would be is said").await;
    expect_unknown(world.server.keys_as(&caller), presenting(&secret(5)), "those of others do not count").await;
    expect_unknown(world.server.keys(), presenting(&secret(6)), "200 again, since one is known by now").await;
}

store_test!(a_flood_of_strangers_leaves_other_keys_answered);
async fn a_flood_of_strangers_leaves_other_keys_answered(database: TestDatabase) {
    let world = World::new(&database).await;
    let (native, native_secret) = world.create(world.new_key()).await;
    let dear = |at: usize| {
        let hash = bcrypt_of(&secret(at), "$2b$", 8);
        with(&of(Material::Bcrypt(hash)), |key| "sk_".clone_into(&mut key.prefix))
    };
    let scanned = world.import((0..8).map(dear).collect()).await;
    let found = world.import_one(slow(&secret(100))).await;
    let keys = world.server.keys_on_new_connection();
    let strangers: Vec<_> = (0..300).map(|at| stranger(keys.clone(), at)).collect();
    let flood = tokio::spawn(at_once(strangers));
    let mut asked = 0;
    while asked < 50 || !flood.is_finished() {
        world.expect_valid(presenting(&native_secret), &native.id).await;
        asked += 1;
    }
    flood.await.expect("every stranger was answered as one");
    let answer = patiently(world.server.keys(), presenting(&secret(100))).await;
    assert_eq!((answer.outcome(), &answer.key_id), (Outcome::Valid, &found));
    for (at, result) in scanned.iter().enumerate() {
        let answer = patiently(world.server.keys(), naming(&secret(at), &result.key_id)).await;
        assert_eq!((answer.outcome(), &answer.key_id), (Outcome::Valid, &result.key_id));
    }
}

/// Presents what is nobody's secret; it is unknown, or nobody knows yet.
async fn stranger(mut keys: Keys, at: usize) {
    match keys.verify_key(presenting(&format!("sk_stranger_{at:05}"))).await {
        Ok(answer) => assert_eq!(answer.into_inner().outcome(), Outcome::NotFound),
        refusal => assert_unavailable(refusal, &["SLOW_CHECKS_BUSY", "TIMED_OUT"]),
    }
}

store_test!(an_upgrade_outlives_the_process_that_made_it);
async fn an_upgrade_outlives_the_process_that_made_it(database: TestDatabase) {
    let mut world = World::start(&database, &METRICS).await;
    let results = world.import(vec![slow(&secret(0)), scanned(&secret(1))]).await;
    for (at, result) in results.iter().enumerate() {
        world.expect_valid(presenting(&secret(at)), &result.key_id).await;
    }
    world.server.kill9();
    for (at, result) in results.iter().enumerate() {
        assert!(is_upgraded(&database, &result.key_id, &secret(at)).await);
    }
    world.server.restart().await;
    for (at, result) in results.iter().enumerate() {
        world.expect_valid(presenting(&secret(at)), &result.key_id).await;
    }
    assert_eq!(world.slow_checks().await, 0, "it is as fast as any other");
}

store_test!(a_process_that_is_killed_while_it_checks_leaves_the_key_as_it_was);
async fn a_process_that_is_killed_while_it_checks_leaves_the_key_as_it_was(database: TestDatabase) {
    let mut world = World::start(&database, &METRICS).await;
    let id = world.import_one(slow(&secret(0))).await;
    let held = hold(&database, &id, "").await;
    let (mut keys, request) = (world.server.keys(), presenting(&secret(0)));
    let asking = tokio::spawn(async move { keys.verify_key(request).await });
    wait_until("the secret to be compared", async || world.slow_checks().await == 1).await;
    world.server.kill9();
    asking.await.expect("no panic").expect_err("nobody answers");
    release(held).await;
    assert!(is_slow(&database, &id).await && !is_upgraded(&database, &id, &secret(0)).await);
    assert_eq!(events(&database, "key.rehash", &id).await, 0);
    world.server.restart().await;
    world.expect_valid(presenting(&secret(0)), &id).await;
    assert_eq!(events(&database, "key.rehash", &id).await, 1);
}

/// Begins a transaction that keeps every change of this key waiting, and makes this change of it, if any.
async fn hold(database: &TestDatabase, id: &str, change: &str) -> DatabaseConnection {
    let connection = database.connect().await;
    let begin = match database.engine {
        Engine::Sqlite => "BEGIN IMMEDIATE",
        Engine::Postgres => "BEGIN",
    };
    let change = if change.is_empty() { "name = name" } else { change };
    let update = format!("UPDATE api_keys SET {change} WHERE id = '{id}'");
    for statement in [begin, &update] {
        connection.execute_unprepared(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    connection
}

/// Ends such a transaction as if it had never been.
async fn release(held: DatabaseConnection) {
    held.execute_unprepared("ROLLBACK").await.expect("it ends");
    held.close().await.expect("the connection closes");
}

store_test!(a_key_that_is_revoked_while_it_is_checked_is_revoked_and_not_valid);
async fn a_key_that_is_revoked_while_it_is_checked_is_revoked_and_not_valid(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    for (at, (change, outcome)) in [
        ("status = 'revoked'", Outcome::Revoked),
        ("status = 'disabled'", Outcome::Disabled),
        ("expire_time_us = 1", Outcome::Expired),
    ]
    .into_iter()
    .enumerate()
    {
        let id = world.import_one(slow(&secret(at))).await;
        let checks = world.slow_checks().await;
        let held = hold(&database, &id, change).await;
        let asking = tokio::spawn(answer_to(world.server.keys(), presenting(&secret(at))));
        // It is right, and waits to be stored.
        wait_until("the secret to be compared", async || world.slow_checks().await > checks).await;
        held.execute_unprepared("COMMIT").await.expect("the change is there");
        held.close().await.expect("the connection closes");
        let answer = asking.await.expect("an answer");
        assert_eq!((answer.outcome(), &answer.key_id), (outcome, &id), "{change}");
        assert_eq!(world.outcome(&secret(at)).await, outcome, "and stays so");
    }
}

store_test!(a_key_that_is_deleted_while_it_is_checked_is_unknown);
async fn a_key_that_is_deleted_while_it_is_checked_is_unknown(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let id = world.import_one(slow(&secret(0))).await;
    let held = hold(&database, &id, "").await;
    held.execute_unprepared(&format!("DELETE FROM api_keys WHERE id = '{id}'")).await.expect("deleted");
    let (keys, request) = (world.server.keys(), presenting(&secret(0)));
    let asking = tokio::spawn(async move { expect_unknown(keys, request, "deleted meanwhile").await });
    wait_until("the secret to be compared", async || world.slow_checks().await == 1).await;
    held.execute_unprepared("COMMIT").await.expect("it is gone");
    held.close().await.expect("the connection closes");
    asking.await.expect("an answer");
    assert_eq!(events(&database, "key.rehash", &id).await, 0);
}

/// PostgreSQL alone: what is on the same disk is not away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_an_upgrade_is_undecided_and_made_later() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let network = Proxy::start(database.address()).await;
    let arguments = METRICS.map(ToOwned::to_owned).to_vec();
    let setup = Setup { database_url: Some(database.url_through(&network)), arguments, ..Setup::default() };
    let server = Server::start_with(&database, setup).await;
    let organization = create_organization(&server, "acme").await.id;
    let world = World { server, organization };
    let results = world.import(vec![slow(&secret(0)), slow(&secret(1))]).await;
    let id = &results[0].key_id;

    let held = hold(&database, id, "").await;
    let (mut keys, request) = (world.server.keys(), presenting(&secret(0)));
    let asking = tokio::spawn(async move { keys.verify_key(request).await });
    wait_until("the secret to be compared", async || world.slow_checks().await == 1).await;
    network.set(Fault::Cut);
    assert_unavailable(asking.await.expect("no panic"), &AWAY);
    for secret in [secret(0), secret(1), secret(2)] {
        assert_unavailable(world.server.keys().verify_key(presenting(&secret)).await, &AWAY);
    }
    network.set(Fault::None);
    release(held).await;

    for (at, result) in results.iter().enumerate() {
        wait_until("the service to find its database again", async || {
            match world.server.keys().verify_key(presenting(&secret(at))).await {
                Ok(answer) => {
                    assert_eq!(answer.into_inner().outcome(), Outcome::Valid);
                    true
                }
                refusal => {
                    assert_unavailable(refusal, &AWAY);
                    false
                }
            }
        })
        .await;
        assert!(is_upgraded(&database, &result.key_id, &secret(at)).await);
        assert_eq!(events(&database, "key.rehash", &result.key_id).await, 1);
    }
    expect_unknown(world.server.keys(), presenting(&secret(2)), "now it is known to be unknown").await;
}
