//! The second phase: what the page's commands measure is what happened, and they show who is still to be seen.

use std::fmt::Write as _;

use keystead::proto::v1::{Outcome, VerifyKeyRequest};

use super::ownership;
use crate::harness::page::field;
use crate::harness::wait_until;

fn number(printed: &str, name: &str) -> f64 {
    field(printed, name).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_in_between_is_measured_and_nothing_else() {
    let migration = ownership::brought_in().await;
    let keys = ownership::all_keys(&migration.source).await;
    migration.all_are(&keys, Outcome::Valid).await;
    migration.shell.run(&["measure-begin"]);
    let ran = migration.shell.try_run(&["measure-end"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "no verification was answered meanwhile\n"), "{ran:?}");

    migration.shell.run(&["measure-begin"]);
    for _ in 0..10 {
        migration.all_are(&keys, Outcome::Valid).await;
    }
    let printed = migration.shell.run(&["measure-end"]);
    let [p50, p95, p99] = ["p50_ms", "p95_ms", "p99_ms"].map(|name| number(&printed, name));
    assert!(0.0 < p50 && p50 <= p95 && p95 <= p99 && p99 < 60_000.0, "{printed}");
    assert_eq!(field(&printed, "failed_percent"), "0.0000");
    assert!((90.0..=100.0).contains(&number(&printed, "cache_hit_percent")), "all were cached: {printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_requests_come_to_percentiles() {
    let mut migration = ownership::start().await;
    let mut times = String::new();
    for at in (1..=200).rev() {
        let _ = writeln!(times, "{at}.5 {}", if at == 7 { "failed" } else { "ok" });
    }
    let path = migration.shell.write("times", &times);
    migration.shell.set_path("TIMES", &path);
    let printed = migration.shell.run(&["measure-times"]);
    assert_eq!(printed, "p50_ms: 100.5\np95_ms: 190.5\np99_ms: 198.5\nfailed_percent: 0.5000\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_not_seen_are_told_from_those_that_were() {
    let migration = ownership::brought_in().await;
    let (seen, unseen) = (migration.id_of("sessions", "1").await, migration.id_of("sessions", "2").await);
    let printed = migration.shell.run(&["seen"]);
    assert!(printed.contains(&seen) && printed.contains(&unseen), "{printed}");

    // As the page asks beside the old system: without a charge.
    let secret = migration.source.query_string("SELECT owner_api_key FROM sessions WHERE id = 1").await;
    let request = VerifyKeyRequest { secret, cost: Some(0), ..Default::default() };
    let answer = migration.server.keys().verify_key(request).await.expect("an answer").into_inner();
    assert_eq!((answer.outcome(), &answer.key_id), (Outcome::Valid, &seen));
    wait_until("it to be seen", async || {
        let printed = migration.shell.run(&["seen"]);
        assert!(printed.contains(&unseen), "{printed}");
        let counted = printed.lines().any(|line| {
            line.starts_with("keystead_imported_verifications_total{")
                && line.contains("scheme=\"sha256\"")
                && line.contains("source=\"ownership\"")
                && line.ends_with(" 1")
        });
        counted && !printed.contains(&seen)
    })
    .await;
}
