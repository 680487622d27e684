//! `VerifyKey`: credits under load and through faults. A thousand callers at once, on a few connections, on one
//! server or two; callers who hang up; a server that is killed. Invariant: never one credit more is granted than there
//! was, and whoever was told `VALID` was charged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use keystead::proto::v1::{
    ApiKey, Consistency, CreateKeyRequest, Credits, Outcome, VerifyKeyRequest, VerifyKeyResponse,
};
use tokio::task::JoinSet;

use super::{Keys, World, answer_to, at_once, presenting, with};
use crate::harness::{Engine, Server, TestDatabase, store_test, wait_until};

/// Connections of the callers.
const CONNECTIONS: usize = 4;

fn connections(server: &Server) -> Vec<Keys> {
    (0..CONNECTIONS).map(|_| server.keys_on_new_connection()).collect()
}

fn costing(secret: &str, cost: i64) -> VerifyKeyRequest {
    with(&presenting(secret), |request| request.cost = Some(cost))
}

async fn credited(world: &World, remaining: i64) -> (ApiKey, String) {
    let credits = Some(Credits { remaining, ..Default::default() });
    world.create(CreateKeyRequest { credits, ..world.new_key() }).await
}

async fn stored(database: &TestDatabase, key: &ApiKey) -> i64 {
    database.query_i64(&format!("SELECT credits_remaining FROM api_keys WHERE id = '{}'", key.id)).await
}

/// So many verifications at once, spread over the connections.
async fn verify_at_once(connections: &[Keys], secret: &str, calls: usize) -> Vec<VerifyKeyResponse> {
    let call = |at: usize| answer_to(connections[at % connections.len()].clone(), presenting(secret));
    at_once((0..calls).map(call)).await
}

/// What remained for each that was `VALID`; all others were told that nothing does.
fn left(answers: &[VerifyKeyResponse]) -> Vec<i64> {
    let (valid, denied): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.outcome() == Outcome::Valid);
    for answer in denied {
        assert_eq!((answer.outcome(), answer.credits_remaining), (Outcome::CreditsExhausted, Some(0)));
    }
    valid.iter().map(|answer| answer.credits_remaining.expect("credits")).collect()
}

/// Asserts that each of so many credits was granted to one caller.
fn expect_each_once(left: &[i64], credits: i64) {
    let distinct: BTreeSet<i64> = left.iter().copied().collect();
    assert_eq!(distinct, (0..credits).collect(), "each was told another rest");
    assert_eq!(left.len(), distinct.len(), "never one more");
}

store_test!(a_thousand_at_once_pass_exactly_as_often_as_there_are_credits);
async fn a_thousand_at_once_pass_exactly_as_often_as_there_are_credits(database: TestDatabase) {
    let world = World::new(&database).await;
    let connections = connections(&world.server);
    for credits in [1, 100, 1000] {
        let (key, secret) = credited(&world, credits).await;
        expect_each_once(&left(&verify_at_once(&connections, &secret, 1000).await), credits);
        assert_eq!(stored(&database, &key).await, 0);
    }
}

store_test!(what_was_left_before_a_restart_is_granted_after_it);
async fn what_was_left_before_a_restart_is_granted_after_it(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let (_, secret) = credited(&world, 500).await;
    let mut all = left(&verify_at_once(&connections(&world.server), &secret, 300).await);
    assert_eq!(all.len(), 300);
    world.server.restart().await;
    all.extend(left(&verify_at_once(&connections(&world.server), &secret, 300).await));
    expect_each_once(&all, 500);
}

#[tokio::test]
async fn two_servers_on_one_database_never_grant_a_credit_twice() {
    // PostgreSQL alone: a SQLite file has one server.
    let database = TestDatabase::new(Engine::Postgres).await;
    let world = World::new(&database).await;
    let second = Server::start(&database, &[]).await;
    let (key, secret) = credited(&world, 700).await;
    let servers = [connections(&world.server), connections(&second)].concat();
    expect_each_once(&left(&verify_at_once(&servers, &secret, 1000).await), 700);
    assert_eq!(stored(&database, &key).await, 0);
}

store_test!(callers_who_hang_up_are_charged_once_or_not_at_all);
async fn callers_who_hang_up_are_charged_once_or_not_at_all(database: TestDatabase) {
    let world = World::new(&database).await;
    let connections = connections(&world.server);
    let (key, secret) = credited(&world, 1000).await;
    let mut stayed = Vec::new();
    for round in 0..10 {
        let mut leaving = JoinSet::new();
        for at in 0..40 {
            leaving.spawn(answer_to(connections[at % CONNECTIONS].clone(), presenting(&secret)));
        }
        // Others come and are answered meanwhile, so that some of those who leave are waiting and some under way.
        stayed.extend(left(&verify_at_once(&connections, &secret, 20).await));
        leaving.abort_all();
        while leaving.join_next().await.is_some() {}
        let charged = 1000 - stored(&database, &key).await;
        let granted = i64::try_from(stayed.len()).expect("a count");
        assert!(granted <= charged && charged <= (round + 1) * 60, "{granted} granted, {charged} charged");
    }
    let distinct: BTreeSet<i64> = stayed.iter().copied().collect();
    assert_eq!(distinct.len(), stayed.len(), "no two were told the same rest");
    // Those who left may still be under way; once none is, what is left is granted, and no more.
    let mut before = i64::MAX;
    wait_until("all statements to end", async || {
        let now = stored(&database, &key).await;
        std::mem::replace(&mut before, now) == now
    })
    .await;
    let rest = left(&verify_at_once(&connections, &secret, 1000).await);
    assert!(rest.len() <= usize::try_from(before).expect("never below zero"));
    assert_eq!(stored(&database, &key).await, 0);
}

/// What the callers of one round asked for and were granted.
#[derive(Default)]
struct Sums {
    asked: AtomicI64,
    granted: AtomicI64,
}

/// Spends until the server is gone.
async fn spend_on(mut keys: Keys, secret: String, cost: i64, sums: Arc<Sums>) {
    loop {
        sums.asked.fetch_add(cost, Ordering::Relaxed);
        match keys.verify_key(costing(&secret, cost)).await {
            Ok(answer) if answer.get_ref().outcome() == Outcome::Valid => {
                sums.granted.fetch_add(cost, Ordering::Relaxed);
            }
            Ok(answer) => panic!("there is enough: {answer:?}"),
            Err(_) => return,
        }
    }
}

store_test!(a_server_that_is_killed_has_charged_all_that_it_granted_and_nothing_that_nobody_asked_for);
async fn a_server_that_is_killed_has_charged_all_that_it_granted_and_nothing_that_nobody_asked_for(
    database: TestDatabase,
) {
    const CREDITS: i64 = 1_000_000_000;
    let mut world = World::new(&database).await;
    let (key, secret) = credited(&world, CREDITS).await;
    let mut remaining = CREDITS;
    for round in 0..5 {
        let sums = Arc::new(Sums::default());
        let mut callers = JoinSet::new();
        for connection in connections(&world.server) {
            for cost in [1, 2, 3, 50, 1000, 7, 1, 1] {
                callers.spawn(spend_on(connection.clone(), secret.clone(), cost, sums.clone()));
            }
        }
        let enough = 5000 * (round + 1);
        wait_until("grants", async || sums.granted.load(Ordering::Relaxed) > enough).await;
        world.server.kill9();
        callers.join_all().await;
        world.server.restart().await;
        let charged = remaining - stored(&database, &key).await;
        let (asked, granted) = (sums.asked.load(Ordering::Relaxed), sums.granted.load(Ordering::Relaxed));
        assert!(granted <= charged, "round {round}: granted {granted} and charged {charged} only");
        assert!(charged <= asked, "round {round}: charged {charged} though {asked} were asked for");
        remaining -= charged;
        let fresh = with(&costing(&secret, 0), |request| request.consistency = Consistency::Fresh.into());
        assert_eq!(world.ask(fresh).await.credits_remaining, Some(remaining), "and what is left is there");
    }
}
