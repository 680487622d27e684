//! Every rpc of `OrganizationService`, on both databases. Here: create, get, update. `state`: activating, deactivating
//! and deleting, and what becomes of the keys. `list`: filters and pages. `fields`: what is refused, field by field.
//! Who may call them is shown in `callers`, and what they leave in the audit log in `audit`.

mod fields;
mod list;
mod state;

use std::collections::HashMap;

use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::{
    CreateOrganizationRequest, GetOrganizationRequest, Organization, Plan, RateLimit, UpdateOrganizationRequest,
};
use prost_types::{Duration, FieldMask};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

use crate::callers::SYSTEM;
use crate::callers::requests::{creating, issuing};
use crate::harness::{Server, TestDatabase, create_key, create_organization, expect_error, store_test};

async fn create(server: &Server, request: CreateOrganizationRequest) -> Result<Organization, Status> {
    let answer = server.organizations().create_organization(request).await?;
    Ok(answer.into_inner().organization.expect("the organization"))
}

async fn get(server: &Server, selector: Selector) -> Result<Organization, Status> {
    let request = GetOrganizationRequest { selector: Some(selector) };
    let answer = server.organizations().get_organization(request).await?;
    Ok(answer.into_inner().organization.expect("the organization"))
}

async fn get_by_id(server: &Server, id: &str) -> Organization {
    get(server, Selector::OrganizationId(id.to_owned())).await.expect("it exists")
}

async fn update(server: &Server, values: Organization, paths: &[&str], etag: &str) -> Result<Organization, Status> {
    let request = UpdateOrganizationRequest {
        organization: Some(values),
        update_mask: Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() }),
        etag: etag.to_owned(),
    };
    let answer = server.organizations().update_organization(request).await?;
    Ok(answer.into_inner().organization.expect("the organization"))
}

fn limit(name: &str) -> RateLimit {
    let window = Some(Duration { seconds: 60, nanos: 0 });
    RateLimit { name: name.to_owned(), limit: 100, window, shadow: true }
}

/// A request with every field away from its default.
fn full(slug: &str) -> CreateOrganizationRequest {
    CreateOrganizationRequest {
        name: "Åcme „GmbH“ 💸 مفتاح '; DROP TABLE organizations; --".to_owned(),
        slug: slug.to_owned(),
        email: format!("Ops@{slug}.Example"),
        plan: Plan::Enterprise.into(),
        max_keys: 7,
        rate_limits: vec![limit("all"), limit("slow_1-x")],
        monthly_quota: 1_000_000_000_000,
        secret_prefix: "acme".to_owned(),
        metadata: HashMap::from([("team".to_owned(), "💸".to_owned()), ("empty".to_owned(), String::new())]),
        request_id: String::new(),
    }
}

/// The resource that a refusal names.
fn resource(details: &ErrorDetails) -> (&str, &str) {
    let info = details.resource_info().expect("a ResourceInfo");
    (&info.resource_type, &info.resource_name)
}

store_test!(a_new_organization_has_every_field_as_asked_for_and_is_found_by_id_slug_and_email);
async fn a_new_organization_has_every_field_as_asked_for_and_is_found_by_id_slug_and_email(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let asked = full("acme");
    let made = create(&server, asked.clone()).await.expect("created");
    assert_eq!((&made.name, &made.slug), (&asked.name, &asked.slug));
    assert_eq!(made.email, "ops@acme.example", "addresses are kept in lower case");
    assert_eq!((made.plan(), made.active), (Plan::Enterprise, true));
    assert_eq!((made.max_keys, made.monthly_quota), (asked.max_keys, asked.monthly_quota));
    assert_eq!((&made.rate_limits, &made.metadata), (&asked.rate_limits, &asked.metadata));
    assert_eq!((made.secret_prefix.as_str(), made.key_count), ("acme", 0));
    assert!(made.create_time.is_some() && made.create_time == made.update_time && !made.etag.is_empty());

    let selectors = [
        Selector::OrganizationId(made.id.clone()),
        Selector::OrganizationId(made.id.to_uppercase()),
        Selector::Slug("acme".to_owned()),
        Selector::Email("ops@acme.example".to_owned()),
        Selector::Email("OPS@Acme.example".to_owned()),
    ];
    for selector in selectors {
        assert_eq!(get(&server, selector.clone()).await.expect("it exists"), made, "{selector:?}");
    }
    let (_, secret) = create_key(&server, &made.id, &[]).await;
    assert!(secret.starts_with("acme_live_"));
    assert_eq!(get_by_id(&server, &made.id).await, Organization { key_count: 1, ..made });
}

store_test!(an_organization_with_nothing_but_a_name_and_a_slug_has_the_stated_defaults);
async fn an_organization_with_nothing_but_a_name_and_a_slug_has_the_stated_defaults(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let bare =
        |slug: &str| CreateOrganizationRequest { name: "x".to_owned(), slug: slug.to_owned(), ..Default::default() };
    let made = create(&server, bare("ab")).await.expect("created");
    assert_eq!((made.plan(), made.active, made.email.as_str()), (Plan::Free, true, ""));
    assert_eq!((made.max_keys, made.monthly_quota), (0, 0));
    assert_eq!(made.secret_prefix, "pk");
    assert!(made.rate_limits.is_empty() && made.metadata.is_empty());
    // Having no address is nothing that only one may have.
    create(&server, bare("cd")).await.expect("a second one without an address");
}

store_test!(what_does_not_exist_is_not_found_and_named);
async fn what_does_not_exist_is_not_found_and_named(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let id = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d";
    for (selector, name) in [
        (Selector::OrganizationId(id.to_owned()), id),
        (Selector::Slug("nobody".to_owned()), "nobody"),
        (Selector::Email("nobody@example.com".to_owned()), "nobody@example.com"),
    ] {
        let details = expect_error(get(&server, selector).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
        assert_eq!(resource(&details), ("organization", name));
    }
    let refused = server.keys().create_key(issuing(id, &[])).await;
    expect_error(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
}

store_test!(a_slug_or_an_address_that_is_taken_is_refused_and_nothing_is_made);
async fn a_slug_or_an_address_that_is_taken_is_refused_and_nothing_is_made(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    create(&server, full("acme")).await.expect("created");
    let other = create_organization(&server, "beta").await;
    let count = database.query_i64("SELECT count(*) FROM organizations").await;
    let email = "oPS@ACME.example".to_owned();
    for (request, reason, field) in [
        (creating("acme"), "SLUG_TAKEN", "slug"),
        (creating("system"), "SLUG_TAKEN", "slug"),
        (CreateOrganizationRequest { email: email.clone(), ..creating("gamma") }, "EMAIL_TAKEN", "email"),
    ] {
        let details = expect_error(create(&server, request).await, Code::AlreadyExists, reason);
        assert_eq!(details.error_info().expect("an ErrorInfo").metadata.get("field").map(String::as_str), Some(field));
    }
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, count);

    let slug = Organization { id: other.id.clone(), slug: "acme".to_owned(), ..Default::default() };
    expect_error(update(&server, slug, &["slug"], "").await, Code::AlreadyExists, "SLUG_TAKEN");
    let address = Organization { id: other.id.clone(), email, ..Default::default() };
    expect_error(update(&server, address, &["email"], "").await, Code::AlreadyExists, "EMAIL_TAKEN");
    assert_eq!(get_by_id(&server, &other.id).await, other);
    // Its own is not taken.
    let same = Organization { id: other.id.clone(), slug: "beta".to_owned(), ..Default::default() };
    update(&server, same, &["slug"], "").await.expect("the slug that it has");
}

store_test!(a_repeated_request_id_names_the_first_organization_and_makes_no_second_one);
async fn a_repeated_request_id_names_the_first_organization_and_makes_no_second_one(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let request_id = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d".to_owned();
    let request = CreateOrganizationRequest { request_id, ..creating("acme") };
    let first = create(&server, request.clone()).await.expect("created");
    for slug in ["acme", "beta"] {
        let repeat = CreateOrganizationRequest { slug: slug.to_owned(), ..request.clone() };
        let details = expect_error(create(&server, repeat).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
        assert_eq!(resource(&details), ("organization", first.id.as_str()));
    }
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, 2);
}

store_test!(of_many_creations_at_once_with_one_request_id_one_comes_through);
async fn of_many_creations_at_once_with_one_request_id_one_comes_through(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let mut calls = JoinSet::new();
    for at in 0..8 {
        let request_id = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d".to_owned();
        let request = CreateOrganizationRequest { request_id, ..creating(&format!("acme-{at}")) };
        let mut organizations = server.organizations();
        calls.spawn(async move { organizations.create_organization(request).await });
    }
    let (mut made, mut named) = (Vec::new(), Vec::new());
    while let Some(result) = calls.join_next().await {
        match result.expect("no panic") {
            Ok(answer) => made.push(answer.into_inner().organization.expect("the organization").id),
            Err(status) => {
                let details = expect_error::<()>(Err(status), Code::AlreadyExists, "REQUEST_ID_REUSED");
                named.push(resource(&details).1.to_owned());
            }
        }
    }
    assert_eq!((made.len(), named.len()), (1, 7));
    assert!(named.iter().all(|id| *id == made[0]), "{named:?}");
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, 2);
}

/// Takes one field over from another organization.
type Change = fn(&mut Organization, &Organization);

store_test!(an_update_changes_the_fields_of_its_mask_and_no_other);
async fn an_update_changes_the_fields_of_its_mask_and_no_other(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let mut now = create(&server, full("acme")).await.expect("created");
    let values = Organization {
        id: now.id.clone(),
        name: "New name".to_owned(),
        slug: "new-slug".to_owned(),
        email: "New@Example.com".to_owned(),
        plan: Plan::Pro.into(),
        max_keys: 99,
        rate_limits: vec![limit("other")],
        monthly_quota: 12,
        secret_prefix: "zz9".to_owned(),
        metadata: HashMap::from([("a".to_owned(), "b".to_owned())]),
        // What no update may touch.
        active: false,
        key_count: 77,
        etag: "77".to_owned(),
        ..Default::default()
    };
    let changes: [(&str, Change); 9] = [
        ("name", |to, from| to.name.clone_from(&from.name)),
        ("slug", |to, from| to.slug.clone_from(&from.slug)),
        ("email", |to, _| "new@example.com".clone_into(&mut to.email)),
        ("plan", |to, from| to.plan = from.plan),
        ("max_keys", |to, from| to.max_keys = from.max_keys),
        ("rate_limits", |to, from| to.rate_limits.clone_from(&from.rate_limits)),
        ("monthly_quota", |to, from| to.monthly_quota = from.monthly_quota),
        ("secret_prefix", |to, from| to.secret_prefix.clone_from(&from.secret_prefix)),
        ("metadata", |to, from| to.metadata.clone_from(&from.metadata)),
    ];
    for (path, change) in changes {
        let after = update(&server, values.clone(), &[path], &now.etag).await.expect("updated");
        let mut expected = now.clone();
        change(&mut expected, &values);
        assert_ne!(after.etag, now.etag, "{path}");
        assert!(order(&after) >= order(&now), "{path}");
        (expected.etag, expected.update_time) = (after.etag.clone(), after.update_time);
        assert_eq!(after, expected, "{path}");
        assert_eq!(get_by_id(&server, &now.id).await, after, "{path}");
        now = after;
    }
    // All at once, back to nothing.
    let bare =
        Organization { id: now.id.clone(), name: "x".to_owned(), slug: "xy".to_owned(), plan: 1, ..Default::default() };
    let paths = changes.map(|(path, _)| path);
    let after = update(&server, bare, &paths, "").await.expect("updated");
    assert_eq!((after.email.as_str(), after.max_keys, after.monthly_quota), ("", 0, 0));
    assert_eq!((after.secret_prefix.as_str(), after.plan(), after.active), ("pk", Plan::Free, true));
    assert!(after.rate_limits.is_empty() && after.metadata.is_empty());
}

fn order(organization: &Organization) -> (i64, i32) {
    organization.update_time.map_or((0, 0), |time| (time.seconds, time.nanos))
}

store_test!(a_stale_or_foreign_etag_aborts_and_changes_nothing);
async fn a_stale_or_foreign_etag_aborts_and_changes_nothing(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let first = create_organization(&server, "acme").await;
    let values = Organization { id: first.id.clone(), name: "Second".to_owned(), ..Default::default() };
    let second = update(&server, values.clone(), &["name"], &first.etag).await.expect("updated");
    for etag in [first.etag.as_str(), "nonsense", "0", "-1", &"9".repeat(64)] {
        let details =
            expect_error(update(&server, values.clone(), &["name"], etag).await, Code::Aborted, "ETAG_MISMATCH");
        assert_eq!(resource(&details), ("organization", first.id.as_str()), "{etag}");
    }
    assert_eq!(get_by_id(&server, &first.id).await, second);
}

store_test!(of_many_updates_at_once_with_one_etag_one_comes_through);
async fn of_many_updates_at_once_with_one_etag_one_comes_through(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let mut calls = JoinSet::new();
    for at in 1..=8 {
        let mut organizations = server.organizations();
        let values = Organization { id: organization.id.clone(), max_keys: at, ..Default::default() };
        let request = UpdateOrganizationRequest {
            organization: Some(values),
            update_mask: Some(FieldMask { paths: vec!["max_keys".to_owned()] }),
            etag: organization.etag.clone(),
        };
        calls.spawn(async move { organizations.update_organization(request).await });
    }
    let results = calls.join_all().await;
    let through: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(through.len(), 1);
    assert!(results.iter().filter_map(|one| one.as_ref().err()).all(|status| status.code() == Code::Aborted));
    assert_eq!(Some(get_by_id(&server, &organization.id).await), through[0].get_ref().organization);
}

store_test!(the_slug_of_system_is_fixed_and_its_other_settings_are_not);
async fn the_slug_of_system_is_fixed_and_its_other_settings_are_not(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let of = |name: &str, slug: &str| Organization {
        id: SYSTEM.to_owned(),
        name: name.to_owned(),
        slug: slug.to_owned(),
        ..Default::default()
    };
    for paths in [vec!["slug"], vec!["name", "slug"]] {
        let refused = update(&server, of("Operators", "operators"), &paths, "").await;
        let details = expect_error(refused, Code::FailedPrecondition, "SYSTEM_ORGANIZATION");
        assert!(!details.precondition_failure().expect("a PreconditionFailure").violations.is_empty());
    }
    assert_eq!(get(&server, Selector::Slug("system".to_owned())).await.expect("it exists").name, "System");
    assert_eq!(update(&server, of("Operators", ""), &["name"], "").await.expect("updated").name, "Operators");
}

store_test!(a_caller_of_one_organization_reads_and_changes_its_own);
async fn a_caller_of_one_organization_reads_and_changes_its_own(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await;
    let (_, secret) = create_key(&server, &organization.id, &["keystead.organizations.*"]).await;
    let mut own = server.organizations_as(&secret);
    for selector in [
        Selector::OrganizationId(organization.id.clone()),
        Selector::Slug(organization.slug.clone()),
        Selector::Email(organization.email.clone()),
    ] {
        let found = own.get_organization(GetOrganizationRequest { selector: Some(selector) }).await.expect("its own");
        assert_eq!(found.into_inner().organization.expect("the organization").id, organization.id);
    }
    let request = UpdateOrganizationRequest {
        organization: Some(Organization { id: organization.id, name: "Ours".to_owned(), ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
        ..Default::default()
    };
    let updated = own.update_organization(request).await.expect("its own").into_inner();
    assert_eq!(updated.organization.expect("the organization").name, "Ours");
}
