//! No secret leaves the service but in the one answer that issues it: after a run through every rpc, every command and
//! many errors, with secrets in every wrong field too, neither secret nor digest is found byte by byte in the database
//! or the logs and the page of metrics, nor metadata in these, nor a secret in an error. `needles` searches, `run` does
//! the run, `lines` shows what the log does say of each call.

mod lines;
mod needles;
mod run;

use crate::harness::cli;
use crate::harness::{Server, TestDatabase, store_test};
use needles::Needles;

store_test!(after_a_run_through_everything_no_secret_and_no_digest_is_in_the_database_or_the_logs);
async fn after_a_run_through_everything_no_secret_and_no_digest_is_in_the_database_or_the_logs(database: TestDatabase) {
    let mut known = run::Known::default();
    let mut logs = Vec::new();
    for format in ["text", "json"] {
        let arguments = ["--log-level", "debug", "--log-format", format, "--metrics-listen", "127.0.0.1:0"];
        let mut server = Server::start(&database, &arguments).await;
        known.secrets.push(server.admin_secret().to_owned());
        run::through_everything(&server, &database, format, &mut known).await;
        let (status, page) = crate::server::metrics::get(server.metrics_address(), "/metrics").await;
        assert!(status == 200 && page.contains("keystead_calls_total"), "the page is there to be searched");
        logs.extend(page.into_bytes());
        server.sigterm();
        assert!(server.wait_exit().await.success());
        assert!(server.log_text().matches("call").count() > 100, "the logs are there to be searched");
        logs.extend(server.logs());
    }
    assert!(known.secrets.len() > 10 && known.metadata.len() > 3);

    let mut at_rest = Needles::default();
    for secret in &known.secrets {
        at_rest.add_secret(secret);
        at_rest.add_digest(secret);
    }
    let bytes = database.bytes_at_rest().await;
    assert_eq!(at_rest.found_in(&bytes), Vec::<String>::new(), "in the database's files");

    // The search finds what is there: metadata is at rest, and so are the raw digests.
    let mut there = Needles::default();
    // The first is the organization's, which was changed later; the second is a key's.
    there.add("metadata", known.metadata[1].as_bytes());
    there.add_raw_digest(&known.secrets[0]);
    assert_eq!(there.found_in(&bytes).len(), 2);

    let mut in_logs = Needles::default();
    for secret in known.secrets.iter().chain(&known.planted) {
        in_logs.add_secret(secret);
        in_logs.add_digest(secret);
        in_logs.add_raw_digest(secret);
    }
    for value in &known.metadata {
        in_logs.add("metadata", value.as_bytes());
    }
    let leaks = logs.split(|byte| *byte == b'\n').filter(|line| !in_logs.found_in(line).is_empty());
    let leaks: Vec<_> = leaks.map(String::from_utf8_lossy).collect();
    assert!(leaks.is_empty(), "{} in the logs:\n{}", in_logs.found_in(&logs).join(", "), leaks.join("\n"));
}

store_test!(an_answer_shows_a_secret_once_and_never_again);
async fn an_answer_shows_a_secret_once_and_never_again(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let mut known = run::Known::default();
    run::issue(&server, "acme", &mut known).await;
    let mut needles = Needles::default();
    for secret in known.secrets.iter().chain([&server.admin_secret().to_owned()]) {
        needles.add_secret(secret);
        needles.add_digest(secret);
        needles.add_raw_digest(secret);
    }
    // Everything that can be read, as bytes on the wire.
    for (rpc, bytes) in run::reads(&server).await {
        assert_eq!(needles.found_in(&bytes), Vec::<String>::new(), "{rpc}");
    }
    for arguments in [
        vec!["organizations", "list", "--all"],
        vec!["audit", "list", "--all"],
        vec!["audit", "list", "--all", "--output", "json"],
        vec!["audit", "verify"],
    ] {
        let ran = cli::as_admin(&server, &arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        let printed = [ran.stdout, ran.stderr].concat();
        assert_eq!(needles.found_in(printed.as_bytes()), Vec::<String>::new(), "{arguments:?}");
    }
}
