//! What belongs to another organization does not exist for a caller of this one: every rpc that takes an id answers
//! the same bytes for another's key or organization as for one that nobody has, and changes nothing of it.
//! Lists, counts and sums hold none of it. Invariant: an rpc that takes an id cannot be left out.

use std::collections::BTreeMap;

use keystead::proto::v1::{
    CreateKeyRequest, DeactivateOrganizationRequest, ListAuditEventsRequest, ListKeysRequest, ListOrganizationsRequest,
    Outcome, RateLimit, UsageStatsRequest, VerifyKeyRequest, usage_stats_request::Subject,
};
use prost::Message as _;
use tonic::{Code, Response, Status};

use super::requests::{self, ABSENT, Expected, Names};
use super::{NOT_BUILT, rpcs};
use crate::harness::{
    Server, TestDatabase, contains, create_key, create_organization, expect_error, store_test, verify,
};

/// Two organizations: the caller's, with every permission, and another.
struct Neighbours {
    server: Server,
    own_id: String,
    own_key: String,
    /// A caller of the first organization, holder of `keystead.admin`.
    caller: String,
    other_id: String,
    other_slug: String,
    other_email: String,
    other_key: String,
    other_secret: String,
}

impl Neighbours {
    async fn new(database: &TestDatabase) -> Self {
        let server = Server::start(database, &[]).await;
        let own = create_organization(&server, "acme").await;
        let (own_key, caller) = create_key(&server, &own.id, &["keystead.admin", "keystead.*"]).await;
        // As long as what nobody has, so that answers have the same length.
        let other = create_organization(&server, "umbria").await;
        let limit = RateLimit {
            name: "calls".to_owned(),
            limit: 1000,
            window: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
            shadow: false,
        };
        let request = CreateKeyRequest {
            rate_limits: vec![limit],
            ..requests::issuing(&other.id, &["keystead.admin", "invoices:read"])
        };
        let answer = server.keys().create_key(request).await.expect("a key").into_inner();
        let key = answer.key.expect("the key");
        assert_eq!(verify(&server, &answer.secret).await.outcome(), Outcome::Valid);
        Self {
            server,
            own_id: own.id,
            own_key: own_key.id,
            caller,
            other_id: other.id,
            other_slug: other.slug,
            other_email: other.email,
            other_key: key.id,
            other_secret: answer.secret,
        }
    }

    fn other(&self) -> Names<'_> {
        Names {
            organization: &self.other_id,
            slug: &self.other_slug,
            email: &self.other_email,
            key: &self.other_key,
            secret: &self.other_secret,
        }
    }

    async fn call(&self, path: &str, request: Vec<u8>) -> Result<Response<Vec<u8>>, Status> {
        rpcs::call(&self.server.channel(), path, request, &[&format!("Bearer {}", self.caller)]).await
    }

    /// The other organization, its keys and its audit events, as an admin sees them. Times and counts of use, which
    /// a flush of the recorder may write in between, are left out.
    async fn state_of_other(&self) -> Vec<u8> {
        let organizations =
            self.server.organizations().list_organizations(ListOrganizationsRequest::default()).await.expect("a list");
        let request = ListKeysRequest { organization_id: self.other_id.clone(), ..Default::default() };
        let mut keys = self.server.keys().list_keys(request).await.expect("a list").into_inner();
        for key in &mut keys.keys {
            (key.request_count, key.last_used_time) = (0, None);
        }
        let request = ListAuditEventsRequest { organization_id: self.other_id.clone(), ..Default::default() };
        let events = self.server.audit().list_audit_events(request).await.expect("a list");
        let mut state = organizations.into_inner().encode_to_vec();
        state.extend(keys.encode_to_vec());
        state.extend(events.into_inner().encode_to_vec());
        state
    }
}

/// Everything of an answer that a caller can see, with the names taken out.
fn seen(result: &Result<Response<Vec<u8>>, Status>, names: Names<'_>) -> (Code, Vec<u8>, BTreeMap<String, Vec<u8>>) {
    let (code, mut bytes, metadata) = match result {
        Ok(response) => (Code::Ok, response.get_ref().clone(), response.metadata()),
        Err(status) => {
            let mut bytes = status.message().as_bytes().to_vec();
            bytes.extend(status.details());
            (status.code(), bytes, status.metadata())
        }
    };
    for (name, stands_for) in [
        (names.organization, ABSENT.organization),
        (names.slug, ABSENT.slug),
        (names.email, ABSENT.email),
        (names.key, ABSENT.key),
    ] {
        assert_eq!(name.len(), stands_for.len(), "names of one length, so that lengths compare too");
        bytes = replaced(&bytes, name.as_bytes(), stands_for.as_bytes());
    }
    let headers = metadata.as_ref().clone();
    let headers = headers
        .iter()
        // What differs between any two calls.
        .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .filter(|(name, _)| name != "grpc-status-details-bin" && name != "grpc-message")
        .collect();
    (code, bytes, headers)
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut result = bytes.to_vec();
    for at in 0..result.len().saturating_sub(from.len() - 1) {
        if result[at..].starts_with(from) {
            result[at..at + from.len()].copy_from_slice(to);
        }
    }
    result
}

#[test]
fn every_rpc_that_takes_an_id_has_requests_that_name_one() {
    for rpc in rpcs::rpcs() {
        let requests = requests::naming(&rpc.name, ABSENT);
        assert_eq!(!requests.is_empty(), rpc.takes_an_id(), "{}", rpc.name);
    }
}

store_test!(what_belongs_to_another_organization_answers_the_same_bytes_as_what_does_not_exist);
async fn what_belongs_to_another_organization_answers_the_same_bytes_as_what_does_not_exist(database: TestDatabase) {
    let neighbours = Neighbours::new(&database).await;
    let before = neighbours.state_of_other().await;
    for rpc in rpcs::rpcs() {
        let of_other = requests::naming(&rpc.name, neighbours.other());
        for (foreign, absent) in of_other.into_iter().zip(requests::naming(&rpc.name, ABSENT)) {
            let what = format!("{} by {}", rpc.name, foreign.what);
            let foreign_answer = neighbours.call(&rpc.path(), foreign.bytes).await;
            let absent_answer = neighbours.call(&rpc.path(), absent.bytes).await;
            let foreign_seen = seen(&foreign_answer, neighbours.other());
            assert_eq!(foreign_seen, seen(&absent_answer, ABSENT), "{what}");
            let code = match (NOT_BUILT.contains(&rpc.name.as_str()), foreign.expected) {
                (true, _) => Code::Unimplemented,
                (false, Expected::NotFound) => Code::NotFound,
                (false, Expected::SameAnswer) => Code::Ok,
            };
            assert_eq!(foreign_seen.0, code, "{what}: {foreign_answer:?}");
        }
    }
    assert_eq!(neighbours.state_of_other().await, before, "and nothing of it has changed");
    assert_eq!(verify(&neighbours.server, &neighbours.other_secret).await.outcome(), Outcome::Valid);
}

store_test!(the_secret_of_another_organization_is_not_found_and_nothing_else_shows);
async fn the_secret_of_another_organization_is_not_found_and_nothing_else_shows(database: TestDatabase) {
    let neighbours = Neighbours::new(&database).await;
    let mut keys = neighbours.server.keys_as(&neighbours.caller);
    let answer = keys.verify_key(requests::verifying(&neighbours.other_secret)).await.expect("an answer");
    let nothing = keystead::proto::v1::VerifyKeyResponse { outcome: Outcome::NotFound.into(), ..Default::default() };
    assert_eq!(answer.into_inner(), nothing);
    // The caller's own secret, claimed to be the other's key, and the other way round.
    for (secret, key_id) in
        [(&neighbours.caller, &neighbours.other_key), (&neighbours.other_secret, &neighbours.own_key)]
    {
        let request = VerifyKeyRequest { key_id: Some(key_id.clone()), ..requests::verifying(secret) };
        assert_eq!(keys.verify_key(request).await.expect("an answer").into_inner(), nothing);
    }
    let own = keys.verify_key(requests::verifying(&neighbours.caller)).await.expect("an answer").into_inner();
    assert_eq!(own.outcome(), Outcome::Valid);
}

store_test!(lists_and_sums_hold_nothing_of_another_organization);
async fn lists_and_sums_hold_nothing_of_another_organization(database: TestDatabase) {
    let neighbours = Neighbours::new(&database).await;
    let (server, caller) = (&neighbours.server, &neighbours.caller);
    let lists: [(&str, Vec<u8>); 5] = [
        ("OrganizationService/ListOrganizations", Vec::new()),
        ("AuditService/ListAuditEvents", Vec::new()),
        (
            "KeyService/ListKeys",
            ListKeysRequest { organization_id: neighbours.own_id.clone(), ..Default::default() }.encode_to_vec(),
        ),
        (
            "KeyService/UsageStats",
            UsageStatsRequest {
                subject: Some(Subject::OrganizationId(neighbours.own_id.clone())),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "OrganizationService/ListOrganizations",
            ListOrganizationsRequest { name_contains: "umbria".to_owned(), ..Default::default() }.encode_to_vec(),
        ),
    ];
    for (rpc, request) in lists {
        let answer = neighbours.call(&rpcs::path_of(rpc), request).await.expect("an answer").into_inner();
        for name in [&neighbours.other_id, &neighbours.other_slug, &neighbours.other_key] {
            assert!(!contains(&[b"-", answer.as_slice()].concat(), name.as_bytes()), "{name} is in {rpc}");
        }
    }
    let own = server.organizations_as(caller).list_organizations(ListOrganizationsRequest::default()).await;
    let own = own.expect("a list").into_inner();
    assert_eq!(own.organizations.iter().map(|one| &one.id).collect::<Vec<_>>(), [&neighbours.own_id]);
    assert_eq!(own.organizations[0].key_count, 1);
    let subject = Some(Subject::OrganizationId(neighbours.own_id.clone()));
    let usage = server.keys_as(caller).usage_stats(UsageStatsRequest { subject, ..Default::default() }).await;
    let totals = usage.expect("an answer").into_inner().totals.expect("totals");
    assert_eq!(totals.verifications, 0, "only the other's key was verified");
}

store_test!(a_page_token_works_for_the_caller_and_the_list_that_it_came_from_alone);
async fn a_page_token_works_for_the_caller_and_the_list_that_it_came_from_alone(database: TestDatabase) {
    let neighbours = Neighbours::new(&database).await;
    let (server, caller) = (&neighbours.server, &neighbours.caller);
    create_key(server, &neighbours.own_id, &[]).await;
    let first = ListKeysRequest { organization_id: neighbours.own_id.clone(), page_size: 1, ..Default::default() };
    let answer = server.keys().list_keys(first.clone()).await.expect("a page").into_inner();
    assert!(!answer.next_page_token.is_empty());
    let next = ListKeysRequest { page_token: answer.next_page_token.clone(), ..first };
    server.keys().list_keys(next.clone()).await.expect("the next page");
    let details = expect_error(server.keys_as(caller).list_keys(next).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(details.bad_request().expect("violations").field_violations[0].field, "page_token");
    let audit = ListAuditEventsRequest { page_token: answer.next_page_token, ..Default::default() };
    expect_error(server.audit().list_audit_events(audit).await, Code::InvalidArgument, "INVALID_FIELDS");
}

store_test!(deactivating_ones_own_organization_ends_the_callers_own_access);
async fn deactivating_ones_own_organization_ends_the_callers_own_access(database: TestDatabase) {
    let neighbours = Neighbours::new(&database).await;
    let mut organizations = neighbours.server.organizations_as(&neighbours.caller);
    let request = DeactivateOrganizationRequest { organization_id: neighbours.own_id.clone(), ..Default::default() };
    let answer = organizations.deactivate_organization(request.clone()).await.expect("its own").into_inner();
    assert!(!answer.organization.expect("the organization").active);
    let again = organizations.deactivate_organization(request).await;
    expect_error(again, Code::Unauthenticated, "UNAUTHENTICATED");
}
