//! Bad input to `OrganizationService`: each request names every bad field it has, not the first, repeats none of what
//! was sent in it, and changes nothing.

use std::collections::HashMap;

use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::{
    ActivateOrganizationRequest, CreateOrganizationRequest, DeactivateOrganizationRequest, DeleteOrganizationRequest,
    GetOrganizationRequest, ListOrganizationsRequest, Organization, RateLimit,
};
use prost_types::Duration;
use tonic::{Code, Status};

use super::{create, full, get_by_id, limit, update};
use crate::harness::{Server, TestDatabase, create_organization, expect_error, store_test};

const BAD_ID: &str = "0198c7a45b7e7c3a9f002f1d6a8b9c0d";

/// The fields that a refusal names, in order of their names.
fn violations<T>(refused: Result<T, Status>) -> Vec<String> {
    let details = expect_error(refused, Code::InvalidArgument, "INVALID_FIELDS");
    let violations = &details.bad_request().expect("a BadRequest").field_violations;
    assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{violations:?}");
    let mut fields: Vec<String> = violations.iter().map(|violation| violation.field.clone()).collect();
    fields.sort();
    fields
}

store_test!(every_bad_field_of_a_new_organization_is_named_at_once);
async fn every_bad_field_of_a_new_organization_is_named_at_once(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let count = database.query_i64("SELECT count(*) FROM organizations").await;
    let request = CreateOrganizationRequest {
        name: "\u{202e}evil".to_owned(),
        slug: "No Slug".to_owned(),
        email: "nobody".to_owned(),
        plan: 99,
        max_keys: -1,
        rate_limits: vec![limit("good"), RateLimit { limit: 0, ..limit("bad") }, limit("BAD")],
        monthly_quota: i64::MIN,
        secret_prefix: "UP".to_owned(),
        metadata: HashMap::from([("a b".to_owned(), String::new())]),
        request_id: BAD_ID.to_owned(),
    };
    let named = violations(create(&server, request).await);
    let expected = [
        "email",
        "max_keys",
        "metadata",
        "monthly_quota",
        "name",
        "plan",
        "rate_limits[1]",
        "rate_limits[2]",
        "request_id",
        "secret_prefix",
        "slug",
    ];
    assert_eq!(named, expected);
    assert_eq!(violations(create(&server, CreateOrganizationRequest::default()).await), ["name", "slug"]);
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, count);
}

store_test!(each_field_of_an_organization_is_held_to_its_bounds);
async fn each_field_of_an_organization_is_held_to_its_bounds(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let base = || full("acme");
    let metadata =
        |key: String, value: String| CreateOrganizationRequest { metadata: HashMap::from([(key, value)]), ..base() };
    let limits = |rate_limits| CreateOrganizationRequest { rate_limits, ..base() };
    let window = |seconds, nanos| RateLimit { window: Some(Duration { seconds, nanos }), ..limit("w") };
    let entries = (0..51).map(|at| (format!("k{at}"), String::new())).collect();
    let bad: Vec<(&str, CreateOrganizationRequest)> = vec![
        ("name", CreateOrganizationRequest { name: " \t".to_owned(), ..base() }),
        ("name", CreateOrganizationRequest { name: "x".repeat(201), ..base() }),
        ("name", CreateOrganizationRequest { name: "nul\0".to_owned(), ..base() }),
        ("name", CreateOrganizationRequest { name: "x".repeat(40_000), ..base() }),
        ("slug", CreateOrganizationRequest { slug: "a".to_owned(), ..base() }),
        ("slug", CreateOrganizationRequest { slug: "a".repeat(64), ..base() }),
        ("slug", CreateOrganizationRequest { slug: "-a".to_owned(), ..base() }),
        ("slug", CreateOrganizationRequest { slug: "ä1".to_owned(), ..base() }),
        ("email", CreateOrganizationRequest { email: format!("{}@x", "a".repeat(253)), ..base() }),
        ("email", CreateOrganizationRequest { email: "a b@x".to_owned(), ..base() }),
        ("plan", CreateOrganizationRequest { plan: -1, ..base() }),
        ("max_keys", CreateOrganizationRequest { max_keys: 1_000_000_001, ..base() }),
        ("monthly_quota", CreateOrganizationRequest { monthly_quota: 1_000_000_000_001, ..base() }),
        ("secret_prefix", CreateOrganizationRequest { secret_prefix: "a".repeat(17), ..base() }),
        ("secret_prefix", CreateOrganizationRequest { secret_prefix: "a_b".to_owned(), ..base() }),
        ("metadata", CreateOrganizationRequest { metadata: entries, ..base() }),
        ("metadata", metadata(String::new(), "x".to_owned())),
        ("metadata", metadata("k".repeat(65), "x".to_owned())),
        ("metadata", metadata("k".to_owned(), "x".repeat(513))),
        ("metadata", metadata("k".to_owned(), "\0".to_owned())),
        ("rate_limits", limits((0..101).map(|at| limit(&format!("l{at}"))).collect())),
        ("rate_limits[1].name", limits(vec![limit("same"), limit("same")])),
        ("rate_limits[0]", limits(vec![window(0, 999_999_999)])),
        ("rate_limits[0]", limits(vec![window(-1, 0)])),
        ("rate_limits[0]", limits(vec![window(400 * 86_400, 1)])),
        ("rate_limits[0]", limits(vec![window(i64::MAX, 0)])),
        ("rate_limits[0]", limits(vec![RateLimit { window: None, ..limit("w") }])),
        ("rate_limits[0]", limits(vec![RateLimit { limit: 0, ..limit("w") }])),
        ("rate_limits[0]", limits(vec![RateLimit { limit: 1_000_000_001, ..limit("w") }])),
        ("request_id", CreateOrganizationRequest { request_id: "1".to_owned(), ..base() }),
    ];
    for (field, request) in bad {
        assert_eq!(violations(create(&server, request.clone()).await), [field], "{request:?}");
    }
    // What lies on the bounds is good.
    let good = CreateOrganizationRequest {
        name: "💸".repeat(200),
        slug: "a".repeat(63),
        email: format!("{}@x", "a".repeat(252)),
        max_keys: 1_000_000_000,
        rate_limits: vec![RateLimit { limit: 1_000_000_000, ..window(400 * 86_400, 0) }],
        secret_prefix: "a".repeat(16),
        metadata: (0..50).map(|at| (format!("{at:064}"), "x".repeat(512))).collect(),
        ..base()
    };
    create(&server, good).await.expect("on the bounds");
}

store_test!(limits_and_quota_of_an_update_are_held_to_their_bounds);
async fn limits_and_quota_of_an_update_are_held_to_their_bounds(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let of = |rate_limits| Organization { id: organization.id.clone(), rate_limits, ..Default::default() };
    let over = |window| vec![limit("good"), RateLimit { window, ..limit("w") }];
    let units = |limit_of| vec![RateLimit { limit: limit_of, ..limit("w") }];
    let bad = [
        ("organization.rate_limits[0]", units(0)),
        ("organization.rate_limits[0]", units(-1)),
        ("organization.rate_limits[0]", units(1_000_000_001)),
        ("organization.rate_limits[1]", over(None)),
        ("organization.rate_limits[1]", over(Some(Duration { seconds: 0, nanos: 999_999_999 }))),
        ("organization.rate_limits[1]", over(Some(Duration { seconds: 400 * 86_400, nanos: 1 }))),
        ("organization.rate_limits", (0..101).map(|at| limit(&format!("l{at}"))).collect()),
    ];
    for (field, limits) in bad {
        let refused = update(&server, of(limits.clone()), &["rate_limits"], "").await;
        assert_eq!(violations(refused), [field], "{limits:?}");
    }
    for monthly_quota in [-1, 1_000_000_000_001] {
        let refused = update(&server, Organization { monthly_quota, ..of(vec![]) }, &["monthly_quota"], "").await;
        assert_eq!(violations(refused), ["organization.monthly_quota"]);
    }
    let longest = Some(Duration { seconds: 400 * 86_400, nanos: 0 });
    update(&server, of(over(longest)), &["rate_limits"], "").await.expect("on the bounds");
    update(&server, of((0..100).map(|at| limit(&format!("l{at}"))).collect()), &["rate_limits"], "")
        .await
        .expect("on the bounds");
}

store_test!(every_bad_field_and_path_of_an_update_is_named_at_once);
async fn every_bad_field_and_path_of_an_update_is_named_at_once(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let bad = Organization {
        id: organization.id.clone(),
        slug: "-".to_owned(),
        email: "x".to_owned(),
        max_keys: -1,
        rate_limits: vec![limit("a"), limit("a")],
        monthly_quota: -1,
        secret_prefix: "-".to_owned(),
        metadata: HashMap::from([(String::new(), String::new())]),
        ..Default::default()
    };
    let paths =
        ["name", "slug", "email", "plan", "max_keys", "rate_limits", "monthly_quota", "secret_prefix", "metadata"];
    let named = violations(update(&server, bad.clone(), &paths, "").await);
    let expected = [
        "organization.email",
        "organization.max_keys",
        "organization.metadata",
        "organization.monthly_quota",
        "organization.name",
        "organization.plan",
        "organization.rate_limits[1].name",
        "organization.secret_prefix",
        "organization.slug",
    ];
    assert_eq!(named, expected);

    let other_paths =
        ["", "*", "id", "active", "etag", "key_count", "create_time", "Name", "name ", "metadata.a", "nämé"];
    let good = Organization { id: organization.id.clone(), name: "New".to_owned(), ..Default::default() };
    for path in other_paths {
        let named = violations(update(&server, good.clone(), &["name", path], "").await);
        assert_eq!(named, ["update_mask.paths[1]"], "{path:?}");
    }
    assert_eq!(violations(update(&server, good.clone(), &[], "").await), ["update_mask"]);
    assert_eq!(
        violations(update(&server, Organization::default(), &["name"], "").await),
        ["organization.id", "organization.name"]
    );
    assert_eq!(violations(update(&server, good, &["name"], &"x".repeat(65)).await), ["etag"]);
    assert_eq!(get_by_id(&server, &organization.id).await, organization, "nothing has changed");
}

store_test!(ids_that_are_no_uuids_are_refused_by_every_rpc_that_takes_one);
async fn ids_that_are_no_uuids_are_refused_by_every_rpc_that_takes_one(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let braced = format!("{{{}}}", crate::callers::SYSTEM);
    for id in ["", "1", BAD_ID, &braced, "💥", "' OR '1'='1", "\0", &"0".repeat(36), &"x".repeat(60_000)] {
        let id = id.to_owned();
        let mut client = server.organizations();
        let refused = [
            client
                .get_organization(GetOrganizationRequest { selector: Some(Selector::OrganizationId(id.clone())) })
                .await
                .map(|_| ()),
            client
                .activate_organization(ActivateOrganizationRequest {
                    organization_id: id.clone(),
                    ..Default::default()
                })
                .await
                .map(|_| ()),
            client
                .deactivate_organization(DeactivateOrganizationRequest {
                    organization_id: id.clone(),
                    ..Default::default()
                })
                .await
                .map(|_| ()),
            client
                .delete_organization(DeleteOrganizationRequest { organization_id: id.clone(), ..Default::default() })
                .await
                .map(|_| ()),
        ];
        for refused in refused {
            if let Err(status) = &refused {
                assert!(id.len() < 30 || !status.message().contains(&id), "what was sent is not sent back");
            }
            assert_eq!(violations(refused), ["organization_id"], "{id:?}");
        }
    }
}

store_test!(a_selector_must_be_given_and_be_well_formed);
async fn a_selector_must_be_given_and_be_well_formed(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let get = async |selector| {
        let request = GetOrganizationRequest { selector };
        server.organizations().get_organization(request).await
    };
    assert_eq!(violations(get(None).await), ["selector"]);
    assert_eq!(violations(get(Some(Selector::Slug("No Slug".to_owned()))).await), ["slug"]);
    assert_eq!(violations(get(Some(Selector::Email("nobody".to_owned()))).await), ["email"]);
}

store_test!(every_bad_field_of_a_list_of_organizations_is_named_at_once);
async fn every_bad_field_of_a_list_of_organizations_is_named_at_once(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let request = ListOrganizationsRequest { page_size: -1, name_contains: "x".repeat(201), ..Default::default() };
    let refused = server.organizations().list_organizations(request).await;
    assert_eq!(violations(refused), ["name_contains", "page_size"]);
    for name_contains in ["nul\0", "\u{202e}", "line\nbreak"] {
        let request = ListOrganizationsRequest { name_contains: name_contains.to_owned(), ..Default::default() };
        let refused = server.organizations().list_organizations(request).await;
        assert_eq!(violations(refused), ["name_contains"], "{name_contains:?}");
    }
}
