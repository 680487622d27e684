//! `store::organizations::list`: its filters, its order, its reach, and pages that show each organization once.

use keystead::domain::{
    organization::{Organization, OrganizationFilter},
    permission::Reach,
    text,
};
use keystead::store::organizations;

use super::{World, commit_all, nobody, page};
use crate::harness::{TestDatabase, samples, store_test};

async fn slugs(world: &World, reach: Reach, filter: &OrganizationFilter) -> Vec<String> {
    let listed = organizations::list(world.store.control(), reach, filter, &page(100, None)).await.expect("a page");
    assert!(listed.next.is_none());
    listed.rows.into_iter().map(|organization| organization.slug).collect()
}

async fn named(world: &World, part: &str) -> Vec<String> {
    let filter = OrganizationFilter { name_contains: Some(text::fold(part)), ..OrganizationFilter::default() };
    let mut found = slugs(world, Reach::All, &filter).await;
    found.sort();
    found
}

store_test!(a_list_shows_the_newest_first_and_only_what_is_in_reach);
async fn a_list_shows_the_newest_first_and_only_what_is_in_reach(database: TestDatabase) {
    let world = World::new(database).await;
    for (slug, age) in [("oldest", 20), ("newer", 10), ("older", 15)] {
        let organization = Organization { create_time: samples::seconds(-age), ..samples::organization(slug) };
        organizations::insert(world.db(), &organization, None).await.expect("written");
    }
    let all = OrganizationFilter::default();
    assert_eq!(slugs(&world, Reach::All, &all).await, ["acme", "newer", "older", "oldest"]);
    assert_eq!(slugs(&world, Reach::Only(world.acme.id), &all).await, ["acme"]);
    assert_eq!(slugs(&world, Reach::Only(nobody()), &all).await, Vec::<String>::new());
}

store_test!(a_list_is_filtered_by_active);
async fn a_list_is_filtered_by_active(database: TestDatabase) {
    let world = World::new(database).await;
    let inactive = Organization { active: false, ..samples::organization("asleep") };
    organizations::insert(world.db(), &inactive, None).await.expect("written");
    let active = |active| OrganizationFilter { active: Some(active), ..OrganizationFilter::default() };
    assert_eq!(slugs(&world, Reach::All, &active(true)).await, ["acme"]);
    assert_eq!(slugs(&world, Reach::All, &active(false)).await, ["asleep"]);
    assert_eq!(slugs(&world, Reach::Only(world.acme.id), &active(false)).await, Vec::<String>::new());
}

store_test!(a_part_of_a_name_is_found_in_any_case_and_wildcards_stand_for_themselves);
async fn a_part_of_a_name_is_found_in_any_case_and_wildcards_stand_for_themselves(database: TestDatabase) {
    let world = World::new(database).await;
    let names = [("percent", "100% Ärger"), ("under", "a_b\\c"), ("plain", "axb 100"), ("kanji", "株式会社 ΣΟΦΙΑ")];
    for (slug, name) in names {
        let organization = Organization { name: name.to_owned(), ..samples::organization(slug) };
        organizations::insert(world.db(), &organization, None).await.expect("written");
    }
    assert_eq!(named(&world, "%").await, ["percent"]);
    assert_eq!(named(&world, "100%").await, ["percent"]);
    assert_eq!(named(&world, "_").await, ["under"]);
    assert_eq!(named(&world, "\\").await, ["under"]);
    assert_eq!(named(&world, "A_B\\C").await, ["under"]);
    assert_eq!(named(&world, "100").await, ["percent", "plain"]);
    assert_eq!(named(&world, "äRGER").await, ["percent"]);
    assert_eq!(named(&world, "σοφ").await, ["kanji"]);
    assert_eq!(named(&world, "会社").await, ["kanji"]);
    assert_eq!(named(&world, "' OR 1=1 --").await, Vec::<String>::new());
}

store_test!(a_renamed_organization_is_found_by_its_new_name_alone);
async fn a_renamed_organization_is_found_by_its_new_name_alone(database: TestDatabase) {
    let world = World::new(database).await;
    let renamed = Organization { name: "Umbrella".to_owned(), ..world.acme.clone() };
    organizations::update(world.db(), &renamed).await.expect("an update");
    assert_eq!(named(&world, "UMBRELLA").await, ["acme"]);
    assert_eq!(named(&world, "organization acme").await, Vec::<String>::new());
}

store_test!(pages_show_each_organization_once_also_where_all_were_created_at_one_moment);
async fn pages_show_each_organization_once_also_where_all_were_created_at_one_moment(database: TestDatabase) {
    let world = World::new(database).await;
    let transaction = world.begin().await;
    for number in 0..120 {
        let organization = samples::organization(&format!("organization-{number}"));
        organizations::insert(&transaction, &organization, None).await.expect("written");
    }
    commit_all(transaction).await;
    let (mut shown, mut after) = (Vec::new(), None);
    loop {
        let request = page(11, after);
        let listed = organizations::list(world.store.control(), Reach::All, &OrganizationFilter::default(), &request)
            .await
            .expect("a page");
        assert!(listed.rows.len() == 11 || listed.next.is_none());
        shown.extend(listed.rows.iter().map(|organization| organization.id.to_string()));
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(shown.len(), 121);
    assert!(shown.is_sorted_by(|a, b| a > b), "one order, and nothing twice");
}
