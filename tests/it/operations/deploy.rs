//! Deploying: migrations first, then one replica after the other, each drained, started and waited for by the commands of
//! the page, while the other one goes on answering.

use std::sync::atomic::{AtomicBool, Ordering};

use keystead::proto::v1::Outcome;

use super::Replicas;
use crate::harness::{cli, create_key, create_organization, verify, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pending_is_told_and_applied_and_servers_refuse_to_start_before() {
    let mut replicas = Replicas::start().await;
    replicas.stop().await;
    let down = cli::on_database(&replicas.database, &["migrate", "down", "--yes"]);
    assert_eq!(down.code, 0, "{down:?}");
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "off"];
    let refused = cli::on_database(&replicas.database, &arguments);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("keystead migrate up"), "it says what to do: {refused:?}");

    let printed = replicas.shell.run(&["deploy-migrate"]);
    assert!(printed.contains("pending") && printed.contains("applied m"), "{printed}");
    replicas.start_again().await;
    let again = replicas.shell.run(&["deploy-migrate"]);
    assert!(!again.contains("pending") && again.ends_with("nothing to do: none applied\n"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_replaced_while_the_other_goes_on_answering() {
    let mut replicas = Replicas::start().await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let (_, secret) = create_key(replicas.first(), &organization, &[]).await;
    replicas.all_say(&secret, Outcome::Valid).await;

    let mut leaving = replicas.servers.pop().expect("a second replica");
    let mut shell = replicas.shell.clone();
    shell.set("KEYSTEAD_PID", leaving.pid().to_string());
    let drained = AtomicBool::new(false);
    let drain = async {
        let drain = tokio::task::spawn_blocking(move || shell.run(&["deploy-drain"]));
        // A process that nobody has waited for is there still, to `kill -0`.
        let (status, waited) = tokio::join!(leaving.wait_exit(), drain);
        waited.expect("the shell waits until it is gone");
        assert!(status.success(), "it drains: {status}");
        drained.store(true, Ordering::SeqCst);
    };
    let stayed = async {
        let mut answers = 0;
        while !drained.load(Ordering::SeqCst) || answers < 10 {
            assert_eq!(verify(replicas.first(), &secret).await.outcome(), Outcome::Valid);
            answers += 1;
        }
    };
    tokio::join!(drain, stayed);

    leaving.restart().await;
    replicas.servers.push(leaving);
    let there = [&replicas.servers[0], &replicas.servers[1]];
    let mut shell = super::Shell::new(&replicas.database, &there);
    shell.set("KEYSTEAD_ADDRESS", format!("http://{}", there[1].address()));
    assert!(shell.run(&["deploy-wait"]).ends_with("SERVING\nSERVING\n"));
    replicas.all_say(&secret, Outcome::Valid).await;
    wait_until("each to know of two", async || {
        let printed = shell.run(&["deploy-replicas"]);
        let lines = |start: &str| printed.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!((lines("keystead_ready 1"), lines("keystead_build_info{")), (2, 2), "{printed}");
        lines("keystead_replicas_live 2") == 2
    })
    .await;
}
