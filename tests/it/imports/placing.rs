//! Whose key it becomes, and under which id: organizations by slug and id, ids that are kept, keys that stand in more
//! than one place. `plan` shows that all of this is told beforehand, `hashed` what becomes of a key whose row is hashed
//! in the source afterwards, `shared` that rows of one slow key are verified as that key.
//! Invariant: one secret is one key of one organization, and an id that callers send goes on naming its key.

mod hashed;
mod plan;
mod shared;

use std::collections::BTreeMap;

use keystead::domain::ids::OrganizationId;
use keystead::proto::v1::{
    DeactivateOrganizationRequest, Organization, Outcome, UpdateOrganizationRequest, VerifyKeyRequest,
};
use prost_types::FieldMask;

use super::world::{World, presenting_pair, refused_rows};
use crate::harness::source::{Cell, SourceDatabase, cell};
use crate::harness::{TestDatabase, create_key, create_organization, store_test};

const MAPPING: &str = r#"
source = "estate"
organization = "acme"

[[keys]]
table = "main_keys"
id = "id"
[keys.columns]
secret = "secret"
key-id = "key_id"
organization = "tenant"
[keys.values]
environment = "live"

[[keys]]
table = "old_keys"
id = "id"
[keys.columns]
secret = "secret"
key-id = "key_id"
organization = "tenant"
[keys.values]
environment = "live"
"#;

/// A row: its id, the kept id, the organization and the secret.
type Placed<'a> = (&'a str, &'a str, &'a str, &'a str);

async fn estate(world: &World, main: &[Placed<'_>], old: &[Placed<'_>]) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    for (table, rows) in [("main_keys", main), ("old_keys", old)] {
        let columns = "id VARCHAR(99) NOT NULL PRIMARY KEY, key_id VARCHAR(200), tenant VARCHAR(99), secret TEXT";
        source.run(&format!("CREATE TABLE {table} ({columns})")).await;
        let cells = |(id, key_id, tenant, secret): &Placed<'_>| -> Vec<Cell> {
            vec![cell(*id), cell(*key_id), cell(*tenant), cell(*secret)]
        };
        source.insert(table, "id, key_id, tenant, secret", &rows.iter().map(cells).collect::<Vec<_>>()).await;
    }
    source
}

fn names(table: &str, rows: &[(&str, &str)]) -> BTreeMap<(String, String), String> {
    rows.iter().map(|(id, reason)| ((table.to_owned(), (*id).to_owned()), (*reason).to_owned())).collect()
}

store_test!(each_key_goes_to_the_organization_that_its_row_names);
async fn each_key_goes_to_the_organization_that_its_row_names(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let rival = create_organization(&world.server, "rival").await.id;
    let keys = world.keys.texts("placed", 8);
    let main = [
        ("1", "ak_1", "acme", keys[0].as_str()),
        ("2", "ak_2", "rival", &keys[1]),
        ("3", "ak_3", &rival, &keys[2]),
        ("4", "ak_4", &rival.to_uppercase(), &keys[3]),
        ("5", "ak_5", " acme ", &keys[4]),
        ("6", "ak_6", "nobody", &keys[5]),
        ("7", "ak_7", "0198c7a4-5b7e-7c3a-9f00-000000000bad", &keys[6]),
        ("8", "ak_8", "system", &keys[7]),
        ("9", "ak_9", "00000000-0000-0000-0000-000000000001", &keys[7]),
    ];
    let source = estate(&world, &main, &[]).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let file = world.path("refused.csv");
    assert_eq!(import.plan(&[]).table("main_keys").counts(["created", "refused"]), [5, 4]);
    import.run(&["--refused-file", file.to_str().expect("text")]);
    let unknown = ["6", "7", "8", "9"].map(|id| (id, "UNKNOWN_ORGANIZATION"));
    assert_eq!(refused_rows(&file), names("main_keys", &unknown));
    let own = world.organization.clone();
    for (key, organization) in keys.iter().zip([&own, &rival, &rival, &rival, &own]) {
        let answer = world.present(key).await;
        assert_eq!((answer.outcome(), &answer.organization_id), (Outcome::Valid, organization));
    }
    world.assert_all(&keys[5..], Outcome::NotFound).await;
}

store_test!(an_id_that_callers_send_goes_on_naming_its_key);
async fn an_id_that_callers_send_goes_on_naming_its_key(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let keys = world.keys.texts("named", 6);
    let long = "x".repeat(129);
    let main = [
        ("1", "ak_live:1/a.b-c", "acme", keys[0].as_str()),
        ("2", "0198C7A4-5B7E-7C3A-9F00-2F1D6A8B9C0D", "acme", &keys[1]),
        ("3", "  padded\n", "acme", &keys[2]),
        ("4", "two words", "acme", &keys[3]),
        ("5", &long, "acme", &keys[4]),
        ("6", "ключ", "acme", &keys[5]),
    ];
    let source = estate(&world, &main, &[]).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let file = world.path("refused.csv");
    let report = import.run(&["--refused-file", file.to_str().expect("text")]);
    assert_eq!(report.table("main_keys").by("notes"), BTreeMap::from([("TRIMMED".to_owned(), 1)]));
    assert_eq!(refused_rows(&file), names("main_keys", &["4", "5", "6"].map(|id| (id, "BAD_KEY_ID"))));

    let outcome = async |id: &str, secret: &str| world.ask(presenting_pair(id, secret)).await.outcome();
    assert_eq!(outcome("ak_live:1/a.b-c", &keys[0]).await, Outcome::Valid);
    assert_eq!(outcome("padded", &keys[2]).await, Outcome::Valid);
    let uuid = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d";
    let answer = world.ask(presenting_pair(uuid, &keys[1])).await;
    assert_eq!((answer.outcome(), answer.key_id.as_str()), (Outcome::Valid, uuid), "a UUID stays as it is");
    assert_eq!(outcome(&uuid.to_uppercase(), &keys[1]).await, Outcome::Valid);

    // The id of one key and the secret of another.
    for (id, secret) in [("padded", &keys[0]), ("ak_live:1/a.b-c", &keys[1]), (uuid, &keys[2]), ("ak_9", &keys[0])] {
        assert_eq!(outcome(id, secret).await, Outcome::NotFound, "{id}");
    }
    // An id in Keystead's own spelling names the same key.
    let id = world.present(&keys[0]).await.key_id;
    assert_eq!(outcome(&id, &keys[0]).await, Outcome::Valid);
    let request = VerifyKeyRequest { key_id: Some("two words".to_owned()), ..super::world::presenting(&keys[0]) };
    assert!(world.server.keys().verify_key(request).await.is_err(), "no id has a space");
}

store_test!(one_secret_is_one_key_and_one_id_is_one_key);
async fn one_secret_is_one_key_and_one_id_is_one_key(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    create_organization(&world.server, "rival").await;
    let (native, own) = create_key(&world.server, &world.organization, &[]).await;
    let keys = world.keys.texts("estate", 5);
    let main = [
        ("1", "ak_1", "acme", keys[0].as_str()),
        ("2", "ak_2", "acme", &keys[1]),
        ("3", "ak_3", "acme", &keys[2]),
        ("4", &native.id, "acme", &own),
        ("5", "ak_5", "acme", &own),
    ];
    let old = [
        ("1", "ak_1", "acme", keys[0].as_str()),
        ("2", "ak_2", "acme", &keys[3]),
        ("3", "ak_30", "acme", &keys[2]),
        ("4", "ak_40", "rival", &keys[1]),
        ("5", "ak_50", "rival", &keys[4]),
        ("6", &native.id, "acme", &keys[3]),
    ];
    let source = estate(&world, &main, &old).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let file = world.path("refused.csv");
    let expected: BTreeMap<(String, String), String> = names("main_keys", &[("5", "DUPLICATE_SECRET")])
        .into_iter()
        .chain(names(
            "old_keys",
            &[
                ("2", "ID_TAKEN"),
                ("3", "DUPLICATE_SECRET"),
                ("4", "DUPLICATE_IN_OTHER_ORGANIZATION"),
                ("6", "ID_TAKEN"),
            ],
        ))
        .collect();
    for report in [import.plan(&[]), import.run(&["--refused-file", file.to_str().expect("text")])] {
        let counts = |table: &str| report.table(table).counts(["created", "duplicates", "refused"]);
        assert_eq!((counts("main_keys"), counts("old_keys")), ([3, 1, 1], [1, 1, 4]));
    }
    assert_eq!(refused_rows(&file), expected);
    assert_eq!(world.present(&own).await.key_id, native.id);
    assert_eq!(world.outcome(&keys[3]).await, Outcome::NotFound);
    for key in &keys[..3] {
        assert_eq!(world.present(key).await.organization_id, world.organization);
    }
    assert_eq!(world.key_count().await, 4);
}

/// Makes an organization that takes so many keys; gives its id.
async fn set_cap(world: &World, slug: &str, max_keys: i64) -> String {
    let organization = Organization { max_keys, ..create_organization(&world.server, slug).await };
    let id = organization.id.clone();
    let mask = FieldMask { paths: vec!["max_keys".to_owned()] };
    let request =
        UpdateOrganizationRequest { organization: Some(organization), update_mask: Some(mask), ..Default::default() };
    world.server.organizations().update_organization(request).await.expect("updated");
    id
}

store_test!(the_cap_of_an_organization_holds_for_an_import);
async fn the_cap_of_an_organization_holds_for_an_import(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let small = set_cap(&world, "small", 3).await;
    create_key(&world.server, &small, &[]).await;
    let keys = world.keys.texts("capped", 6);
    let ids: Vec<String> = (1..=6).map(|at| format!("ak_{at}")).collect();
    let rows: Vec<Placed<'_>> =
        ids.iter().zip(&keys).map(|(id, key)| (&id[3..], id.as_str(), "small", key.as_str())).collect();
    let source = estate(&world, &rows, &[]).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    for report in [import.plan(&[]), import.run(&[])] {
        assert_eq!(report.table("main_keys").counts(["created", "refused"]), [2, 4]);
        assert_eq!(report.table("main_keys").by("refusals").get("KEY_CAP_REACHED"), Some(&4));
    }
    world.assert_all(&keys[..2], Outcome::Valid).await;
    world.assert_all(&keys[2..], Outcome::NotFound).await;
    // A repeat does not count the same keys again.
    assert_eq!(import.run(&[]).table("main_keys").counts(["existing", "refused"]), [2, 4]);
}

store_test!(keys_of_an_organization_that_is_not_active_wait_for_it);
async fn keys_of_an_organization_that_is_not_active_wait_for_it(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let idle = create_organization(&world.server, "idle").await.id;
    let request = DeactivateOrganizationRequest { organization_id: idle, ..Default::default() };
    world.server.organizations().deactivate_organization(request).await.expect("deactivated");
    let key = world.keys.text("waiting");
    let source = estate(&world, &[("1", "ak_1", "idle", &key)], &[]).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    assert_eq!(import.run(&[]).table("main_keys").count("created"), 1);
    assert!(import.verify(&[]).is("passed"));
    assert_eq!(world.outcome(&key).await, Outcome::OrganizationInactive);
}

/// The same with organizations of its own.
const OWN: &str = r#"
source = "estate"
organization = "acme"

[[organizations]]
table = "tenants"
id = "id"
[organizations.columns]
name = "name"

[[keys]]
table = "main_keys"
id = "id"
[keys.columns]
secret = "secret"
organization = "tenant"
[keys.values]
environment = "live"
"#;

store_test!(a_row_names_an_organization_of_its_source_and_never_a_slug_that_somebody_chose);
async fn a_row_names_an_organization_of_its_source_and_never_a_slug_that_somebody_chose(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    create_organization(&world.server, "squatter").await;
    let keys = world.keys.texts("owned", 3);
    let main = [("1", "ak_1", "7", keys[0].as_str()), ("2", "ak_2", "squatter", &keys[1]), ("3", "ak_3", "", &keys[2])];
    let source = estate(&world, &main, &[]).await;
    source.run("CREATE TABLE tenants (id VARCHAR(99) NOT NULL PRIMARY KEY, name VARCHAR(99))").await;
    source.insert("tenants", "id, name", &[vec![cell("7"), cell("Seven")]]).await;
    let import = world.import(&source.reader_url().await, OWN);
    let file = world.path("refused.csv");
    for report in [import.plan(&[]), import.run(&["--refused-file", file.to_str().expect("text")])] {
        assert_eq!(report.table("main_keys").counts(["created", "refused"]), [2, 1]);
    }
    assert_eq!(refused_rows(&file), names("main_keys", &[("2", "UNKNOWN_ORGANIZATION")]));
    let seven = OrganizationId::of_source("estate", "7").expect("an id").to_string();
    for (key, organization) in keys.iter().step_by(2).zip([&seven, &world.organization]) {
        let answer = world.present(key).await;
        assert_eq!((answer.outcome(), &answer.organization_id), (Outcome::Valid, organization));
    }
    assert_eq!(world.outcome(&keys[1]).await, Outcome::NotFound);
}
