//! `ListAuditEvents`: each filter selects exactly what it says, filters combine, pages hold every event once, newest
//! first, and a caller of one organization sees the events of that organization alone.

use keystead::proto::v1::{ApiKey, AuditEvent, DeleteOrganizationRequest, ListAuditEventsRequest, RevokeKeyRequest};
use prost_types::Timestamp;
use tonic::Code;

use super::events;
use crate::callers::requests::{creating, updating};
use crate::harness::{Server, TestDatabase, create_key, create_organization, expect_error, store_test, wait_until};

/// Two organizations, changes in both, by two callers.
struct Changes {
    server: Server,
    acme: String,
    beta: String,
    key: String,
    second_admin: String,
}

async fn changes(database: &TestDatabase) -> Changes {
    let server = Server::start(database, &[]).await;
    let acme = create_organization(&server, "acme").await.id;
    let beta = create_organization(&server, "beta").await.id;
    let (key, _) = create_key(&server, &acme, &[]).await;
    create_key(&server, &beta, &[]).await;
    let (second_admin, secret) = create_key(&server, crate::callers::SYSTEM, &["keystead.admin"]).await;
    let changed = ApiKey { id: key.id.clone(), name: "New".to_owned(), ..Default::default() };
    server.keys_as(&secret).update_key(updating(changed, "name")).await.expect("updated");
    let revoke = RevokeKeyRequest { key_id: key.id.clone(), ..Default::default() };
    server.keys_as(&secret).revoke_key(revoke).await.expect("revoked");
    Changes { server, acme, beta, key: key.id, second_admin: second_admin.id }
}

async fn list(server: &Server, request: ListAuditEventsRequest) -> Vec<AuditEvent> {
    let answer = server.audit().list_audit_events(request).await.expect("a list").into_inner();
    assert_eq!(answer.next_page_token, "");
    answer.events
}

fn all() -> ListAuditEventsRequest {
    ListAuditEventsRequest { page_size: 1000, ..Default::default() }
}

fn actions(events: &[AuditEvent]) -> Vec<&str> {
    events.iter().map(|event| event.action.as_str()).collect()
}

store_test!(each_filter_of_the_audit_list_selects_exactly_what_it_says);
async fn each_filter_of_the_audit_list_selects_exactly_what_it_says(database: TestDatabase) {
    let Changes { server, acme, beta, key, second_admin } = changes(&database).await;
    let everything = list(&server, all()).await;
    assert_eq!(everything.len(), 9);
    let sequences: Vec<i64> = everything.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=9).rev().collect::<Vec<i64>>(), "newest first, sealed, without a gap");

    let of_acme = list(&server, ListAuditEventsRequest { organization_id: acme.clone(), ..all() }).await;
    assert_eq!(actions(&of_acme), ["key.revoke", "key.update", "key.create", "organization.create"]);
    let of_key = list(&server, ListAuditEventsRequest { target_id: key.clone(), ..all() }).await;
    assert_eq!(actions(&of_key), ["key.revoke", "key.update", "key.create"]);
    let by_second = list(&server, ListAuditEventsRequest { actor_key_id: second_admin.clone(), ..all() }).await;
    assert_eq!(actions(&by_second), ["key.revoke", "key.update"]);
    let created = list(&server, ListAuditEventsRequest { action: "key.create".to_owned(), ..all() }).await;
    assert_eq!(created.len(), 4);
    // An action matches as a whole; what is none is refused.
    let part = ListAuditEventsRequest { action: "key".to_owned(), ..all() };
    expect_error(server.audit().list_audit_events(part).await, Code::InvalidArgument, "INVALID_FIELDS");

    let combined = ListAuditEventsRequest {
        organization_id: acme.clone(),
        action: "key.update".to_owned(),
        actor_key_id: second_admin.clone(),
        target_id: key,
        ..all()
    };
    assert_eq!(list(&server, combined.clone()).await.len(), 1);
    let elsewhere = ListAuditEventsRequest { organization_id: beta, ..combined };
    assert!(list(&server, elsewhere).await.is_empty(), "filters are combined with and");
}

store_test!(a_span_of_the_audit_list_begins_at_its_start_and_ends_before_its_end);
async fn a_span_of_the_audit_list_begins_at_its_start_and_ends_before_its_end(database: TestDatabase) {
    let Changes { server, .. } = changes(&database).await;
    let everything = list(&server, all()).await;
    let time = |at: usize| everything[at].time.expect("a time");
    let of = |start_time, end_time| list(&server, ListAuditEventsRequest { start_time, end_time, ..all() });
    // Events of one transaction share their moment, so count by moment.
    let later_or_same = |moment: Timestamp| {
        everything.iter().filter(|event| micros(event.time.expect("a time")) >= micros(moment)).count()
    };
    assert_eq!(of(Some(time(2)), None).await.len(), later_or_same(time(2)));
    assert_eq!(of(None, Some(time(2))).await.len(), everything.len() - later_or_same(time(2)));
    assert_eq!(of(Some(time(5)), Some(time(2))).await.len(), later_or_same(time(5)) - later_or_same(time(2)));
    for (start, end) in [(time(2), time(2)), (time(2), time(5))] {
        let request = ListAuditEventsRequest { start_time: Some(start), end_time: Some(end), ..all() };
        let refused = server.audit().list_audit_events(request).await;
        let details = expect_error(refused, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(details.bad_request().expect("violations").field_violations[0].field, "end_time");
    }
}

fn micros(time: Timestamp) -> i64 {
    time.seconds * 1_000_000 + i64::from(time.nanos) / 1000
}

store_test!(pages_of_the_audit_list_hold_every_event_once_while_more_are_written);
async fn pages_of_the_audit_list_hold_every_event_once_while_more_are_written(database: TestDatabase) {
    let Changes { server, acme, .. } = changes(&database).await;
    let expected: Vec<String> = list(&server, all()).await.into_iter().map(|event| event.id).collect();
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAuditEventsRequest { page_size: 2, page_token, ..Default::default() };
        let answer = server.audit().list_audit_events(request).await.expect("a page").into_inner();
        assert!(answer.events.len() <= 2);
        seen.extend(answer.events.into_iter().map(|event| event.id));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
        create_key(&server, &acme, &[]).await;
    }
    assert_eq!(seen, expected);
}

store_test!(a_page_token_of_the_audit_list_works_for_the_same_filters_alone);
async fn a_page_token_of_the_audit_list_works_for_the_same_filters_alone(database: TestDatabase) {
    let Changes { server, acme, .. } = changes(&database).await;
    let first = ListAuditEventsRequest { page_size: 1, ..Default::default() };
    let page_token = server.audit().list_audit_events(first).await.expect("a page").into_inner().next_page_token;
    let with = |organization_id: &str, action: &str, page_token: &str| ListAuditEventsRequest {
        organization_id: organization_id.to_owned(),
        action: action.to_owned(),
        page_token: page_token.to_owned(),
        ..Default::default()
    };
    server.audit().list_audit_events(with("", "", &page_token)).await.expect("the next page, of another size");
    for request in [
        with(&acme, "", &page_token),
        with("", "key.create", &page_token),
        with("", "", &page_token[1..]),
        with("", "", &format!("{page_token}A")),
        with("", "", "💥"),
        with("", "", &"A".repeat(10_000)),
    ] {
        let refused = server.audit().list_audit_events(request).await;
        let details = expect_error(refused, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(details.bad_request().expect("violations").field_violations[0].field, "page_token");
    }
}

store_test!(every_bad_field_of_an_audit_list_is_named);
async fn every_bad_field_of_an_audit_list_is_named(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let request = ListAuditEventsRequest {
        organization_id: "acme".to_owned(),
        target_id: "💥".to_owned(),
        actor_key_id: "1".to_owned(),
        action: "KEY.CREATE; DROP".to_owned(),
        start_time: Some(Timestamp { seconds: -1, nanos: 0 }),
        end_time: Some(Timestamp { seconds: 253_402_300_800, nanos: 0 }),
        page_size: -1,
        page_token: String::new(),
    };
    let details =
        expect_error(server.audit().list_audit_events(request).await, Code::InvalidArgument, "INVALID_FIELDS");
    let violations = &details.bad_request().expect("violations").field_violations;
    let mut named: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
    named.sort_unstable();
    let all = ["action", "actor_key_id", "end_time", "organization_id", "page_size", "start_time", "target_id"];
    assert_eq!(named, all);
}

store_test!(a_caller_of_one_organization_sees_its_own_audit_events_alone);
async fn a_caller_of_one_organization_sees_its_own_audit_events_alone(database: TestDatabase) {
    let Changes { server, acme, beta, .. } = changes(&database).await;
    let (_, secret) = create_key(&server, &acme, &["keystead.audit.read"]).await;
    let mut audit = server.audit_as(&secret);
    for organization_id in [String::new(), acme.clone()] {
        let request = ListAuditEventsRequest { organization_id, ..all() };
        let seen = audit.list_audit_events(request).await.expect("a list").into_inner().events;
        assert_eq!(seen.len(), 5, "the organization, its key's life, and the caller's own key");
        assert!(seen.iter().all(|event| event.organization_id == acme), "{seen:?}");
    }
    let request = ListAuditEventsRequest { organization_id: beta, ..all() };
    expect_error(audit.list_audit_events(request).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
}

store_test!(audit_events_outlive_what_they_speak_of);
async fn audit_events_outlive_what_they_speak_of(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let gone = server.organizations().create_organization(creating("gone")).await.expect("created").into_inner();
    let organization_id = gone.organization.expect("the organization").id;
    create_key(&server, &organization_id, &[]).await;
    let request =
        DeleteOrganizationRequest { organization_id: organization_id.clone(), force: true, ..Default::default() };
    server.organizations().delete_organization(request).await.expect("deleted");
    let request = ListAuditEventsRequest { organization_id, ..all() };
    let seen = list(&server, request).await;
    assert_eq!(actions(&seen), ["organization.delete", "key.create", "organization.create"]);
}

store_test!(events_are_sealed_within_seconds_without_being_asked_for);
async fn events_are_sealed_within_seconds_without_being_asked_for(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    create_organization(&server, "acme").await;
    assert_eq!(events(&database).await, 3);
    wait_until("the job to seal the events", async || {
        database.query_i64("SELECT count(*) FROM audit_events WHERE sequence > 0 AND hash <> ''").await == 3
    })
    .await;
}
