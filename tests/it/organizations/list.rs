//! `ListOrganizations`: newest first, each filter exactly as it says, pages that hold each organization once while
//! others come and go.

use keystead::proto::v1::{
    CreateOrganizationRequest, DeactivateOrganizationRequest, DeleteOrganizationRequest, ListOrganizationsRequest,
    ListOrganizationsResponse,
};
use tonic::{Code, Status};

use super::create;
use crate::callers::requests::creating;
use crate::harness::{Server, TestDatabase, create_key, create_organization, expect_error, store_test};

async fn list(server: &Server, request: ListOrganizationsRequest) -> Result<ListOrganizationsResponse, Status> {
    Ok(server.organizations().list_organizations(request).await?.into_inner())
}

async fn slugs(server: &Server, request: ListOrganizationsRequest) -> Vec<String> {
    let answer = list(server, ListOrganizationsRequest { page_size: 1000, ..request }).await.expect("a list");
    assert_eq!(answer.next_page_token, "");
    answer.organizations.into_iter().map(|organization| organization.slug).collect()
}

fn named(part: &str) -> ListOrganizationsRequest {
    ListOrganizationsRequest { name_contains: part.to_owned(), ..Default::default() }
}

store_test!(organizations_are_listed_newest_first_with_their_key_counts);
async fn organizations_are_listed_newest_first_with_their_key_counts(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    for slug in ["one", "two", "three"] {
        let organization = create_organization(&server, slug).await;
        for _ in 0..slug.len() {
            create_key(&server, &organization.id, &[]).await;
        }
    }
    let answer = list(&server, ListOrganizationsRequest::default()).await.expect("a list");
    let seen: Vec<_> = answer.organizations.iter().map(|one| (one.slug.as_str(), one.key_count)).collect();
    assert_eq!(seen, [("three", 5), ("two", 3), ("one", 3), ("system", 1)]);
}

store_test!(the_filter_for_active_organizations_selects_both_ways);
async fn the_filter_for_active_organizations_selects_both_ways(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    create_organization(&server, "awake").await;
    let asleep = create_organization(&server, "asleep").await;
    let stop = DeactivateOrganizationRequest { organization_id: asleep.id, ..Default::default() };
    server.organizations().deactivate_organization(stop).await.expect("deactivated");
    let with = |active| ListOrganizationsRequest { active, ..Default::default() };
    assert_eq!(slugs(&server, with(Some(true))).await, ["awake", "system"]);
    assert_eq!(slugs(&server, with(Some(false))).await, ["asleep"]);
    assert_eq!(slugs(&server, with(None)).await, ["asleep", "awake", "system"]);
    let both = ListOrganizationsRequest { active: Some(true), ..named("a") };
    assert_eq!(slugs(&server, both).await, ["awake"], "filters are combined with and");
}

store_test!(a_part_of_a_name_is_found_whatever_characters_it_has);
async fn a_part_of_a_name_is_found_whatever_characters_it_has(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let names = ["100%_sure", "100 percent sure", "a\\b", "ÄRGER GmbH", "💸 Geld", "O'Neill; DROP TABLE", "مفتاح"];
    for (at, name) in names.iter().enumerate() {
        let request = CreateOrganizationRequest { name: name.to_string(), ..creating(&format!("n{at}")) };
        create(&server, request).await.expect("created");
    }
    for (part, expected) in [
        ("100", vec!["n1", "n0"]),
        ("100%", vec!["n0"]),
        ("%", vec!["n0"]),
        ("_", vec!["n0"]),
        ("0_p", vec![]),
        ("\\", vec!["n2"]),
        ("\\%", vec![]),
        ("PERCENT", vec!["n1"]),
        ("ärger", vec!["n3"]),
        ("gmbh", vec!["n3"]),
        ("💸", vec!["n4"]),
        ("'", vec!["n5"]),
        ("'; --", vec![]),
        ("فت", vec!["n6"]),
        ("nothing of the kind", vec![]),
    ] {
        assert_eq!(slugs(&server, named(part)).await, expected, "{part:?}");
    }
}

store_test!(pages_hold_each_organization_once_while_others_come_and_go);
async fn pages_hold_each_organization_once_while_others_come_and_go(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let mut expected = vec!["system".to_owned()];
    for at in 0..25 {
        expected.insert(0, create_organization(&server, &format!("stays-{at}")).await.slug);
    }
    let passing = create_organization(&server, "passing").await;
    let (mut seen, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        // The size of a page may change from one to the next.
        let page_size = 3 + pages % 2;
        let answer = list(&server, ListOrganizationsRequest { page_size, page_token, ..Default::default() }).await;
        let answer = answer.expect("a page");
        assert!(answer.organizations.len() <= usize::try_from(page_size).expect("small"));
        seen.extend(answer.organizations.into_iter().map(|organization| organization.slug));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
        if pages == 0 {
            let request = DeleteOrganizationRequest { organization_id: passing.id.clone(), ..Default::default() };
            server.organizations().delete_organization(request).await.expect("deleted");
        }
        create_organization(&server, &format!("new-{pages}")).await;
        pages += 1;
    }
    seen.retain(|slug| slug != "passing");
    assert_eq!(seen, expected);
}

store_test!(the_size_of_a_page_is_bounded_and_has_a_default);
async fn the_size_of_a_page_is_bounded_and_has_a_default(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    for at in 0..60 {
        create_organization(&server, &format!("n{at}")).await;
    }
    for (page_size, expected) in [(0, 50), (1, 1), (1000, 61), (1001, 61), (i32::MAX, 61)] {
        let answer = list(&server, ListOrganizationsRequest { page_size, ..Default::default() }).await.expect("a page");
        assert_eq!(answer.organizations.len(), expected, "{page_size}");
        assert_eq!(answer.next_page_token.is_empty(), expected == 61, "{page_size}");
    }
}

store_test!(a_page_token_works_for_the_same_filters_and_caller_alone);
async fn a_page_token_works_for_the_same_filters_and_caller_alone(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    create_organization(&server, "acme").await;
    let (_, other) = create_key(&server, crate::callers::SYSTEM, &["keystead.admin"]).await;
    let first = ListOrganizationsRequest { page_size: 1, ..Default::default() };
    let page_token = list(&server, first).await.expect("a page").next_page_token;
    let with = |page_token: &str| ListOrganizationsRequest { page_token: page_token.to_owned(), ..Default::default() };
    list(&server, with(&page_token)).await.expect("the next page");
    let mut refused = vec![server.organizations_as(&other).list_organizations(with(&page_token)).await.map(|_| ())];
    for request in [
        ListOrganizationsRequest { active: Some(true), ..with(&page_token) },
        ListOrganizationsRequest { name_contains: "a".to_owned(), ..with(&page_token) },
        with(&page_token[..page_token.len() - 1]),
        with(&page_token.to_lowercase()),
        with("💥"),
        with("'"),
        with(&"A".repeat(20_000)),
    ] {
        refused.push(list(&server, request).await.map(|_| ()));
    }
    for refused in refused {
        let details = expect_error(refused, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(details.bad_request().expect("violations").field_violations[0].field, "page_token");
    }
}
