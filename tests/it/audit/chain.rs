//! `keystead audit verify`, as the process that an operator runs: it passes on an honest chain and finds what was
//! done to it by SQL: a changed row, a removed one, two that changed places, and a tail that was cut, the last
//! against a head that was kept elsewhere. Each finding is exit code 1 and names the place.

use serde_json::{Value, json};

use crate::harness::cli::{self, Ran};
use crate::harness::{Server, TestDatabase, create_key, create_organization, store_test};

/// A server with ten sealed events or more, and the head of its chain.
async fn audited(database: &TestDatabase) -> (Server, Head) {
    let server = Server::start(database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    for _ in 0..8 {
        create_key(&server, &organization.id, &[]).await;
    }
    let report = verify(&server, &[]).json();
    assert_eq!(report["intact"], true, "{report}");
    assert_eq!(report["events"], 11, "two of init, one organization, eight keys: {report}");
    let head = report["head"].as_str().expect("a head").to_owned();
    (server, Head(head))
}

/// `SEQUENCE:HASH`
struct Head(String);

fn verify(server: &Server, arguments: &[&str]) -> Ran {
    let arguments = [&["audit", "verify", "--output", "json"], arguments].concat();
    cli::as_admin(server, &arguments)
}

/// Each fault's kind and place, in the order told.
fn faults(ran: &Ran) -> Vec<(String, i64)> {
    let report = ran.any_json();
    assert_eq!(ran.code, 1, "a fault is exit code 1: {report}");
    assert_eq!((&report["intact"], &report["head"]), (&json!(false), &Value::Null), "{report}");
    let faults = report["faults"].as_array().expect("faults").iter();
    faults
        .map(|fault| (fault["kind"].as_str().expect("a kind").to_owned(), fault["sequence"].as_i64().expect("a place")))
        .collect()
}

fn fault(kind: &str, sequence: i64) -> (String, i64) {
    (kind.to_owned(), sequence)
}

store_test!(an_honest_chain_passes_and_prints_a_head_that_later_checks_accept);
async fn an_honest_chain_passes_and_prints_a_head_that_later_checks_accept(database: TestDatabase) {
    let (mut server, head) = audited(&database).await;
    assert_eq!(verify(&server, &["--head", &head.0]).code, 0);
    server.restart().await;
    create_organization(&server, "beta").await;
    let later = verify(&server, &["--head", &head.0]).json();
    assert_eq!((&later["intact"], &later["events"]), (&json!(true), &json!(12)), "the chain goes on: {later}");
    assert_ne!(later["head"], json!(head.0));
    let table = cli::as_admin(&server, &["audit", "verify"]);
    assert_eq!(table.code, 0);
    assert!(table.stdout.contains("events: 12\n") && table.stdout.contains("head: 12:"), "{table:?}");
}

store_test!(a_changed_event_is_found_whatever_field_was_changed);
async fn a_changed_event_is_found_whatever_field_was_changed(database: TestDatabase) {
    let (server, _) = audited(&database).await;
    let changes = [
        ("time_us", "time_us + 1", "time_us - 1"),
        ("actor", "actor || 'x'", "'first admin'"),
        ("action", "'key.revoke'", "'key.create'"),
        ("detail", "detail || ' '", "trim(detail)"),
        ("request_id", "upper(request_id)", "lower(request_id)"),
        ("target_type", "'keys'", "'key'"),
    ];
    for (column, change, undo) in changes {
        let set = |value| format!("UPDATE audit_events SET {column} = {value} WHERE sequence = 6");
        assert_eq!(database.raw_sql(&set(change)).await, 1);
        assert_eq!(faults(&verify(&server, &[])), [fault("changed", 6)], "{column}");
        database.raw_sql(&set(undo)).await;
        assert_eq!(verify(&server, &[]).code, 0, "{column} is as it was");
    }
}

store_test!(an_event_that_was_changed_and_hashed_anew_is_found_by_the_one_after_it);
async fn an_event_that_was_changed_and_hashed_anew_is_found_by_the_one_after_it(database: TestDatabase) {
    let (server, head) = audited(&database).await;
    // Somebody who knows how hashes are made takes the whole content of event 5 for event 6, hash included.
    let forged = "UPDATE audit_events SET hash = (SELECT previous_hash FROM audit_events WHERE sequence = 5) \
                  WHERE sequence = 6";
    assert_eq!(database.raw_sql(forged).await, 1);
    let found = faults(&verify(&server, &["--head", &head.0]));
    assert!(found.contains(&fault("changed", 6)), "{found:?}");
}

store_test!(a_removed_event_is_found);
async fn a_removed_event_is_found(database: TestDatabase) {
    let (server, head) = audited(&database).await;
    assert_eq!(database.raw_sql("DELETE FROM audit_events WHERE sequence = 5").await, 1);
    assert_eq!(faults(&verify(&server, &[])), [fault("removed", 5)]);
    assert_eq!(faults(&verify(&server, &["--head", &head.0])), [fault("removed", 5)]);
}

store_test!(the_first_event_removed_is_found);
async fn the_first_event_removed_is_found(database: TestDatabase) {
    let (server, _) = audited(&database).await;
    assert_eq!(database.raw_sql("DELETE FROM audit_events WHERE sequence = 1").await, 1);
    assert_eq!(faults(&verify(&server, &[])), [fault("removed", 1)]);
}

store_test!(a_removed_event_whose_gap_was_closed_is_found);
async fn a_removed_event_whose_gap_was_closed_is_found(database: TestDatabase) {
    let (server, _) = audited(&database).await;
    database.raw_sql("DELETE FROM audit_events WHERE sequence = 5").await;
    for sequence in 6..=11 {
        let closed = sequence - 1;
        database.raw_sql(&format!("UPDATE audit_events SET sequence = {closed} WHERE sequence = {sequence}")).await;
    }
    let found = faults(&verify(&server, &[]));
    assert!(found.iter().any(|(_, sequence)| *sequence == 5), "{found:?}");
}

store_test!(two_events_that_changed_places_are_found);
async fn two_events_that_changed_places_are_found(database: TestDatabase) {
    let (server, head) = audited(&database).await;
    for (from, to) in [(5, -5), (6, 5), (-5, 6)] {
        let moved = format!("UPDATE audit_events SET sequence = {to} WHERE sequence = {from}");
        assert_eq!(database.raw_sql(&moved).await, 1);
    }
    assert_eq!(faults(&verify(&server, &[])), [fault("reordered", 5), fault("reordered", 6)]);
    assert_eq!(verify(&server, &["--head", &head.0]).code, 1);
}

store_test!(a_cut_tail_is_found_against_a_head_that_was_kept_elsewhere);
async fn a_cut_tail_is_found_against_a_head_that_was_kept_elsewhere(database: TestDatabase) {
    let (server, head) = audited(&database).await;
    assert_eq!(database.raw_sql("DELETE FROM audit_events WHERE sequence > 8").await, 3);
    assert_eq!(faults(&verify(&server, &["--head", &head.0])), [fault("tail_cut", 11)]);
    // Why a head has to be kept elsewhere: what is left is a whole chain in itself.
    assert_eq!(verify(&server, &[]).code, 0);
}

store_test!(a_cut_tail_that_was_grown_again_is_found_against_the_head);
async fn a_cut_tail_that_was_grown_again_is_found_against_the_head(database: TestDatabase) {
    let (server, head) = audited(&database).await;
    let hash = database.query_string("SELECT hash FROM audit_events WHERE sequence = 8").await;
    database.raw_sql("DELETE FROM audit_events WHERE sequence > 8").await;
    let rewound = format!("UPDATE service_state SET number = 8, value = '{hash}' WHERE name = 'audit_head'");
    assert_eq!(database.raw_sql(&rewound).await, 1);
    for slug in ["one", "two", "three", "four"] {
        create_organization(&server, slug).await;
    }
    assert_eq!(verify(&server, &[]).json()["events"], 12, "a whole chain in itself");
    assert_eq!(faults(&verify(&server, &["--head", &head.0])), [fault("head_differs", 11)]);
}

store_test!(a_new_event_slipped_in_is_found);
async fn a_new_event_slipped_in_is_found(database: TestDatabase) {
    let (server, _) = audited(&database).await;
    let forged = "INSERT INTO audit_events (id, sequence, time_us, actor_key_id, actor, action, target_type, target_id, \
                  organization_id, request_id, detail, previous_hash, hash) \
                  SELECT '0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d', 12, time_us, actor_key_id, actor, action, target_type, \
                  target_id, organization_id, request_id, detail, hash, hash FROM audit_events WHERE sequence = 11";
    assert_eq!(database.raw_sql(forged).await, 1);
    assert_eq!(faults(&verify(&server, &[])), [fault("changed", 12)]);
}

store_test!(a_caller_that_sees_a_part_of_the_chain_is_not_told_that_all_is_well);
async fn a_caller_that_sees_a_part_of_the_chain_is_not_told_that_all_is_well(database: TestDatabase) {
    let (server, _) = audited(&database).await;
    let organization = create_organization(&server, "beta").await;
    let (_, secret) = create_key(&server, &organization.id, &["keystead.audit.read"]).await;
    let ran = cli::as_caller(&server, &secret, &["audit", "verify"], "");
    assert_eq!(ran.code, 1, "{ran:?}");
}
