//! What `verify` finds where source and Keystead have gone apart since the import: a slow hash that is another one by
//! now, an organization that is active in one of the two alone, and a key that may less by its row.
//! Invariant: a difference that was made in Keystead on purpose is told from one that nobody has made.

use std::collections::BTreeMap;

use keystead::domain::ids::OrganizationId;
use keystead::proto::v1::{ActivateOrganizationRequest, ApiKey, DeactivateOrganizationRequest, Outcome};
use serde_json::{Value, json};

use super::world::{Import, World, counts, presenting};
use crate::callers::requests::updating;
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test, wait_until};

const CLIENTS: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
bcrypt = "hash"
look-up-id = "starts_with"
[keys.values]
environment = "live"
"#;

/// The cheapest cost of bcrypt.
const CHEAP: u32 = 4;
/// How much of a secret is public.
const SHOWN: usize = 12;

fn hash(secret: &str) -> String {
    bcrypt::hash(secret, CHEAP).expect("a hash")
}

async fn set_hash(source: &SourceDatabase, at: usize, hash: &str) {
    source.run(&format!("UPDATE clients SET hash = '{hash}' WHERE id = {at}")).await;
}

/// What `verify` says of a table, of a verification that passes.
fn outcomes(import: &Import<'_>, table: &str) -> BTreeMap<String, u64> {
    let report = import.verify(&[]);
    assert!(report.is("passed"));
    report.table(table).by("outcomes")
}

/// What it says of a table's mismatches, and on standard error, of one that does not pass. That refused rows may pass
/// does not help.
fn mismatches(import: &Import<'_>, table: &str) -> (Value, String) {
    assert_eq!(import.ran(&["verify", "--accept-refused"]).code, 1);
    let ran = import.ran(&["verify", "--output", "json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.any_json();
    assert_eq!(report["passed"], false);
    let found = report["tables"].as_array().expect("tables").iter().find(|found| found["table"] == table);
    (found.expect("the table")["reasons"].clone(), ran.stderr)
}

store_test!(a_slow_hash_that_is_another_one_by_now_fails_the_verification);
async fn a_slow_hash_that_is_another_one_by_now_fails_the_verification(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = SourceDatabase::new(world.database.engine).await;
    source.run("CREATE TABLE clients (id bigint PRIMARY KEY NOT NULL, hash text, starts_with text)").await;
    let secrets = world.keys.texts("client", 4);
    let hashes: Vec<String> = secrets.iter().map(|secret| hash(secret)).collect();
    let row = |at: usize| vec![cell(at.to_string()), cell(&hashes[at]), cell(&secrets[at][..SHOWN])];
    source.insert("clients", "id, hash, starts_with", &(0..4).map(row).collect::<Vec<Vec<Cell>>>()).await;
    let import = world.import(&source.reader_url().await, CLIENTS);
    assert_eq!(import.run(&[]).table("clients").count("created"), 4);
    assert_eq!(outcomes(&import, "clients"), counts(&[("SLOW", 4)]));
    for secret in &secrets[2..] {
        // A slow check waits for its turn.
        wait_until("the key to be found", async || {
            world
                .server
                .keys()
                .verify_key(presenting(secret))
                .await
                .is_ok_and(|answer| !answer.get_ref().key_id.is_empty())
        })
        .await;
    }
    assert_eq!(outcomes(&import, "clients"), counts(&[("SLOW", 2), ("UPGRADED", 2)]));

    // One that is slow still, and one that gave way to its digest.
    let others = [1, 3].map(|at: usize| (at, hash(&world.keys.text(&format!("new {at}")))));
    for (at, other) in &others {
        set_hash(&source, *at, other).await;
        let (reasons, told) = mismatches(&import, "clients");
        assert_eq!(reasons, json!({"OTHER_HASH": 1}), "row {at}");
        assert!(told.contains(&format!("row {at}: OTHER_HASH")), "{told}");
        set_hash(&source, *at, &hashes[*at]).await;
    }
    for (at, other) in &others {
        set_hash(&source, *at, other).await;
    }
    assert_eq!(mismatches(&import, "clients").0, json!({"OTHER_HASH": 2}));
    // A run changes nothing about it: who has the old secret is not locked out unasked.
    let again = import.run(&[]);
    assert_eq!(again.table("clients").counts(["created", "existing", "refused"]), [0, 2, 2]);
    assert_eq!(again.table("clients").by("refusals"), counts(&[("ROW_CHANGED", 2)]));
    assert_eq!(mismatches(&import, "clients").0, json!({"OTHER_HASH": 2}));
    for (at, _) in &others {
        set_hash(&source, *at, &hashes[*at]).await;
    }
    assert_eq!(outcomes(&import, "clients"), counts(&[("SLOW", 2), ("UPGRADED", 2)]));
    let others: Vec<String> = others.into_iter().map(|(_, other)| other).collect();
    world.assert_told_nobody(&[secrets, hashes, others].concat());
}

const ESTATE: &str = r#"
source = "estate"

[[organizations]]
table = "tenants"
id = "id"
[organizations.columns]
name = "name"
active = "is_active"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
organization = "tenant"
[keys.values]
environment = "live"
"#;

/// A tenant that is not active with two keys, and one that is with one.
async fn estate(world: &World) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    let truth = if source.engine() == SourceEngine::Postgres { "boolean" } else { "integer" };
    source
        .run(&format!(
            "CREATE TABLE tenants (id bigint PRIMARY KEY NOT NULL, name text, is_active {truth});
             CREATE TABLE client_keys (id bigint PRIMARY KEY NOT NULL, secret text, tenant text)"
        ))
        .await;
    let tenants = [("1", "Idle", "0"), ("2", "Busy", "1")].map(|row| vec![cell(row.0), cell(row.1), cell(row.2)]);
    source.insert("tenants", "id, name, is_active", &tenants).await;
    let secrets = world.keys.texts("key", 3);
    let row = |(at, secret): (usize, &String)| -> Vec<Cell> {
        vec![cell(at.to_string()), cell(secret), cell(if at < 2 { "1" } else { "2" })]
    };
    source.insert("client_keys", "id, secret, tenant", &secrets.iter().enumerate().map(row).collect::<Vec<_>>()).await;
    source
}

store_test!(an_organization_that_is_active_in_its_source_alone_fails_the_verification);
async fn an_organization_that_is_active_in_its_source_alone_fails_the_verification(database: TestDatabase) {
    let world = World::new(database, "elsewhere").await;
    let source = estate(&world).await;
    let import = world.import(&source.reader_url().await, ESTATE);
    let report = import.run(&[]);
    assert_eq!([report.table("tenants").count("created"), report.table("client_keys").count("created")], [2, 3]);
    let inactive = counts(&[("ORGANIZATION_INACTIVE", 2), ("VALID", 1)]);
    assert_eq!(outcomes(&import, "client_keys"), inactive, "as it is in the source");

    // It was activated there, and here nobody knows.
    let set_active = async |value: &str| {
        source.run(&format!("UPDATE tenants SET is_active = '{value}' WHERE id = 1")).await;
    };
    set_active("1").await;
    let (reasons, told) = mismatches(&import, "client_keys");
    assert_eq!(reasons, json!({"ORGANIZATION_INACTIVE": 2}));
    for row in [0, 1] {
        assert!(told.contains(&format!("row {row}: ORGANIZATION_INACTIVE, not VALID")), "{told}");
    }
    assert_eq!(import.run(&[]).table("tenants").counts(["created", "existing"]), [0, 2]);
    assert_eq!(mismatches(&import, "client_keys").0, json!({"ORGANIZATION_INACTIVE": 2}), "a run does not activate it");

    let id = OrganizationId::of_source("estate", "1").expect("an id").to_string();
    let request = ActivateOrganizationRequest { organization_id: id.clone(), ..Default::default() };
    world.server.organizations().activate_organization(request).await.expect("activated");
    assert_eq!(outcomes(&import, "client_keys"), counts(&[("VALID", 3)]));
    let request = DeactivateOrganizationRequest { organization_id: id, ..Default::default() };
    world.server.organizations().deactivate_organization(request).await.expect("deactivated");
    let ended = counts(&[("ENDED_SINCE", 2), ("VALID", 1)]);
    assert_eq!(outcomes(&import, "client_keys"), ended, "what was done here on purpose is no fault of the import");
    set_active("0").await;
    assert_eq!(outcomes(&import, "client_keys"), inactive, "and here it agrees with the source");
}

const SETTINGS: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
secret = "secret"
bcrypt = "hash"
look-up-id = "starts_with"
scopes = "scopes"
allowed-cidrs = "cidrs"
credits-remaining = "credits"
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "1d"
"#;

/// Keys that may the same, but that each third one has credits: the first ones as they are, the last one hashed.
async fn with_settings(world: &World, secrets: &[String]) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    source
        .run(
            "CREATE TABLE clients (id bigint PRIMARY KEY NOT NULL, secret text, hash text, starts_with text, \
             scopes text, cidrs text, credits bigint, calls_max bigint)",
        )
        .await;
    let row = |(at, secret): (usize, &String)| -> Vec<Cell> {
        let is_hashed = at + 1 == secrets.len();
        vec![
            cell(at.to_string()),
            (!is_hashed).then(|| secret.clone()),
            is_hashed.then(|| hash(secret)),
            is_hashed.then(|| secret[..SHOWN].to_owned()),
            cell("invoices:read, users:read"),
            None,
            (at % 3 == 0).then(|| "5".to_owned()),
            cell("100"),
        ]
    };
    let columns = "id, secret, hash, starts_with, scopes, cidrs, credits, calls_max";
    source.insert("clients", columns, &secrets.iter().enumerate().map(row).collect::<Vec<_>>()).await;
    source
}

store_test!(a_key_that_may_less_by_its_row_fails_the_verification_unless_it_was_set_here);
async fn a_key_that_may_less_by_its_row_fails_the_verification_unless_it_was_set_here(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let secrets = world.keys.texts("client", 6);
    let source = with_settings(&world, &secrets).await;
    let import = world.import(&source.reader_url().await, SETTINGS);
    assert_eq!(import.run(&[]).table("clients").count("created"), 6);
    assert_eq!(world.present(&secrets[0]).await.credits_remaining, Some(4));
    let as_it_came = counts(&[("SLOW", 1), ("VALID", 5)]);
    assert_eq!(outcomes(&import, "clients"), as_it_came, "what was spent here is no difference");

    // Of row 4 alone nothing changes.
    let narrowed = [
        (0, "credits", "'3'", "credits"),
        (1, "scopes", "'invoices:read'", "scopes"),
        (2, "cidrs", "'192.0.2.0/24'", "networks"),
        (3, "calls_max", "'10'", "limits"),
        (5, "scopes", "'invoices:read'", "scopes"),
    ];
    for (row, column, value, _) in narrowed {
        source.run(&format!("UPDATE clients SET {column} = {value} WHERE id = {row}")).await;
    }
    let (reasons, told) = mismatches(&import, "clients");
    assert_eq!(reasons, json!({"SETTINGS_DIFFER": 5}));
    for (row, _, _, named) in narrowed {
        assert!(told.contains(&format!("row {row}: SETTINGS_DIFFER: other {named} than the row says")), "{told}");
    }
    let again = import.run(&[]);
    assert_eq!(again.table("clients").counts(["created", "existing", "refused"]), [0, 6, 0]);
    assert_eq!(mismatches(&import, "clients").0, json!({"SETTINGS_DIFFER": 5}), "a run changes nothing about it");

    // From then on people say what the key may.
    for (row, ..) in narrowed {
        let id = world.id_of_row("clients", &row.to_string()).await.expect("a key");
        let key = ApiKey { id, scopes: vec!["reports:read".to_owned()], ..Default::default() };
        world.server.keys().update_key(updating(key, "scopes")).await.expect("updated");
    }
    assert_eq!(outcomes(&import, "clients"), as_it_came);
    world.assert_told_nobody(&secrets);
}

store_test!(a_second_row_of_a_key_that_is_to_do_something_else_is_refused_by_the_verification_too);
async fn a_second_row_of_a_key_that_is_to_do_something_else_is_refused_by_the_verification_too(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (key, slow) = (world.keys.text("key"), world.keys.text("slow"));
    let source = with_settings(&world, &[key.clone(), slow.clone()]).await;
    // The same two keys once more.
    let twice = "INSERT INTO clients SELECT id + 10, secret, hash, starts_with, scopes, cidrs, credits, calls_max \
                 FROM clients";
    source.run(twice).await;
    let import = world.import(&source.reader_url().await, SETTINGS);
    assert_eq!(import.run(&[]).table("clients").counts(["created", "duplicates"]), [2, 2]);
    assert_eq!(outcomes(&import, "clients"), counts(&[("SLOW", 2), ("VALID", 2)]));

    source.run("UPDATE clients SET scopes = 'invoices:read' WHERE id > 9").await;
    let differ = counts(&[("DUPLICATE_DIFFERS", 2)]);
    assert_eq!(import.run(&[]).table("clients").by("refusals"), differ);
    let strict = import.ran(&["verify"]);
    assert_eq!(strict.code, 1, "{strict:?}");
    for row in [10, 11] {
        assert!(strict.stderr.contains(&format!("row {row}: REFUSED: DUPLICATE_DIFFERS")), "{strict:?}");
    }
    let accepted = import.verify(&["--accept-refused"]);
    assert!(accepted.is("passed"));
    let table = accepted.table("clients");
    assert_eq!(table.counts(["rows", "matched", "accepted", "mismatches"]), [4, 2, 2, 0]);
    assert_eq!((table.by("outcomes"), table.by("reasons")), (counts(&[("SLOW", 1), ("VALID", 1)]), differ));
    assert_eq!(world.outcome(&key).await, Outcome::Valid);
    world.assert_told_nobody(&[key, slow]);
}
