//! The processes that tests of faults start, halt and end: Redis servers, a cluster of them, and servers with a network,
//! a spool and a clock of their own. Shown here is that each does what those tests rely on.

use keystead::proto::v1::{ListOrganizationsRequest, Outcome};
use tonic_health::pb::health_check_response::ServingStatus;

use super::{SILENT_FOR, SOON};
use crate::callers::requests::creating;
use crate::harness::redis::ask;
use crate::harness::{
    Engine, FakeClock, Fault, OwnRedis, Proxy, RedisCluster, Server, Setup, TestDatabase, clock, create_key,
    create_organization, redis, verify, wait_until,
};

#[tokio::test]
async fn the_shared_redis_answers_where_its_url_says() {
    let shared = redis().await;
    assert_eq!(shared.url(), format!("redis://{}", shared.address()));
    assert_eq!(ask(shared.address(), &["PING"]).await.expect("an answer"), "PONG");
    assert_eq!(redis().await.address(), shared.address(), "it is one");
}

#[tokio::test]
async fn a_redis_of_a_test_is_halted_killed_and_started_again_at_its_port_with_nothing_in_it() {
    let mut own = OwnRedis::start().await;
    let (address, url) = (own.address(), own.url());
    assert_eq!(url, format!("redis://{address}"));
    assert_eq!(ask(address, &["SET", "key", "value"]).await.expect("set"), "OK");

    own.pause();
    let silent = tokio::time::timeout(SILENT_FOR, ask(address, &["GET", "key"])).await;
    assert!(silent.is_err(), "instead of silence: {silent:?}");
    own.resume();
    assert_eq!(ask(address, &["GET", "key"]).await.expect("an answer"), "value");

    // A halted one is killed too.
    own.pause();
    own.kill9();
    ask(address, &["PING"]).await.expect_err("nobody listens");
    own.start_again().await;
    assert_eq!((own.address(), own.url()), (address, url));
    assert_eq!(ask(address, &["DBSIZE"]).await.expect("an answer"), "0");

    // As when this process ends: the pipe closes, and the watchdog does the rest.
    drop(own);
    ask(address, &["PING"]).await.expect_err("nobody listens");
}

#[tokio::test]
async fn a_cluster_has_three_nodes_that_answer_each_for_its_own_slots() {
    let cluster = RedisCluster::start().await;
    let nodes = cluster.addresses();
    let [one, two, three] = nodes[..] else {
        panic!("{nodes:?}");
    };
    assert_eq!(cluster.url(), format!("redis+cluster://{one},{two},{three}"));
    let mut owned = [0; 3];
    for at in 0..9 {
        for (node, owned) in nodes.iter().zip(&mut owned) {
            match ask(*node, &["SET", &format!("key-{at}"), "value"]).await {
                Ok(_) => *owned += 1,
                Err(error) => assert!(error.to_string().contains("MOVED"), "{error}"),
            }
        }
        assert_eq!(owned.iter().sum::<i32>(), at + 1, "each key is one node's");
    }
    // By the table of slots and CRC16 of these names.
    assert_eq!(owned, [5, 2, 2]);
}

#[tokio::test]
async fn servers_of_one_database_have_each_a_network_of_their_own() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let proxy = Proxy::start(database.address()).await;
    let near = Server::start_with(&database, Setup::default()).await;
    assert_eq!(proxy.accepted(), 0);
    let through = Setup { database_url: Some(database.url_through(&proxy)), ..Setup::default() };
    let far = Server::start_with(&database, through).await;
    assert!(proxy.accepted() > 0, "the far one goes through the proxy");
    let organization = create_organization(&near, "acme").await.id;
    let (_, secret) = create_key(&near, &organization, &[]).await;
    assert_eq!(verify(&far, &secret).await.outcome(), Outcome::Valid);

    let list = async |server: &Server| {
        server.organizations().list_organizations(ListOrganizationsRequest::default()).await.is_ok()
    };
    proxy.set(Fault::Cut);
    assert!(!list(&far).await, "the far one is cut off");
    assert!(list(&near).await, "the near one is not");
    proxy.set(Fault::None);
    wait_until("the far one to come back", async || list(&far).await).await;
}

#[tokio::test]
async fn a_halted_server_says_nothing_until_it_goes_on() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start_with(&database, Setup::default()).await;
    server.sigstop();
    let silent = tokio::time::timeout(SILENT_FOR, server.health("")).await;
    assert!(silent.is_err(), "instead of silence: {silent:?}");
    server.sigcont();
    assert_eq!(server.health("").await, Some(ServingStatus::Serving));
}

/// When a new organization was made, by the wall clock of its server.
async fn created_at(server: &Server, slug: &str) -> i64 {
    create_organization(server, slug).await.create_time.expect("a time").seconds
}

#[tokio::test]
async fn a_fake_clock_moves_the_wall_clock_of_its_server_and_no_timer() {
    const HOUR: i64 = 3600;
    // PostgreSQL alone, where a waiting statement can be seen.
    let database = TestDatabase::new(Engine::Postgres).await;
    let clock = FakeClock::new(database.folder());
    let arguments = ["--control-timeout-ms", "60000"].map(str::to_owned).to_vec();
    let setup = Setup { environment: clock.environment(), arguments, ..Setup::default() };
    let mut server = Server::start_with(&database, setup).await;
    let begun = created_at(&server, "begun").await;

    // Two hours pass on the wall, and a call that has one minute goes on.
    let blocked = database.block_writes().await;
    let (mut organizations, request) = (server.organizations(), creating("stuck"));
    let stuck = tokio::spawn(async move { organizations.create_organization(request).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until("the call to be stuck", async || database.query_i64(waiting).await > 0).await;
    clock.step(2 * HOUR);
    assert_eq!(server.health("").await, Some(ServingStatus::Serving));
    blocked.release().await;
    let answer = tokio::time::timeout(SOON, stuck).await.expect("an answer").expect("no panic");
    answer.expect("the call's time did not run out");

    for (step, slug) in [(2 * HOUR, "ahead"), (-2 * HOUR, "behind"), (0, "level")] {
        clock.step(step);
        let passed = created_at(&server, slug).await - begun - step;
        assert!((0..HOUR).contains(&passed), "{passed} s passed by a clock that was moved by {step} s");
    }
    let process = server.pid();
    server.kill9();
    let left: Vec<_> = clock::traces(process).into_iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}
