//! One slow hash, or one id without a secret, in several rows and tables: each row but the first is that key once more,
//! and nothing but the hash or the id leads to it. Invariant: such a row is compared with the key that it is, and
//! passes or fails with it, so that its column can be dropped.

use std::collections::BTreeMap;

use keystead::proto::v1::{ActivateOrganizationRequest, DeactivateOrganizationRequest};
use serde_json::json;

use super::{Cell, SourceDatabase, TestDatabase, World, cell};
use crate::harness::{store_test, wait_until};
use crate::imports::world::{Import, argon2, counts, presenting};

const MAPPING: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
secret = "api_key"
bcrypt = "bcrypt"
argon2 = "argon2"
key-id = "key_id"
[keys.values]
environment = "live"
[keys.contract]
drop = ["api_key"]

[[keys]]
table = "old_clients"
id = "id"
[keys.columns]
secret = "api_key"
bcrypt = "bcrypt"
argon2 = "argon2"
key-id = "key_id"
[keys.values]
environment = "live"
[keys.contract]
drop = ["api_key"]
"#;

const TABLES: [&str; 2] = ["clients", "old_clients"];

/// What `verify` says of both tables, of a verification that passes without anything being accepted.
fn outcomes(import: &Import<'_>) -> [BTreeMap<String, u64>; 2] {
    let report = import.verify(&[]);
    assert!(report.is("passed"));
    TABLES.map(|table| report.table(table).by("outcomes"))
}

/// Four keys in a table, of which the other one repeats three, and the first table itself one.
async fn clients(world: &World) -> (SourceDatabase, Vec<String>, Vec<String>) {
    let source = SourceDatabase::new(world.database.engine).await;
    let columns = "id bigint PRIMARY KEY NOT NULL, api_key text, bcrypt text, argon2 text, key_id text";
    for table in TABLES {
        source.run(&format!("CREATE TABLE {table} ({columns})")).await;
    }
    let secrets = world.keys.texts("client", 3);
    let (bcrypt, argon2) = (bcrypt::hash(&secrets[0], 4).expect("a hash"), argon2(&secrets[1]));
    let row = |id: &str, material: [Cell; 4]| -> Vec<Cell> { [cell(id)].into_iter().chain(material).collect() };
    let under_bcrypt = |id| row(id, [None, cell(&bcrypt), None, None]);
    let under_argon2 = |id| row(id, [None, None, cell(&argon2), None]);
    let without_hash = |id| row(id, [None, None, None, cell("ak_lost")]);
    let plain = row("9", [cell(&secrets[2]), None, None, None]);
    let main = [under_bcrypt("1"), under_argon2("2"), without_hash("3"), under_bcrypt("4"), plain];
    let old = [under_argon2("11"), under_bcrypt("12"), without_hash("13")];
    for (table, rows) in TABLES.into_iter().zip([main.as_slice(), &old]) {
        source.insert(table, "id, api_key, bcrypt, argon2, key_id", rows).await;
    }
    (source, secrets, vec![bcrypt, argon2])
}

store_test!(a_slow_hash_or_an_id_in_several_rows_is_verified_as_the_one_key_that_it_is);
async fn a_slow_hash_or_an_id_in_several_rows_is_verified_as_the_one_key_that_it_is(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let (source, secrets, hashes) = clients(&world).await;
    let import = world.import(source.url(), MAPPING);
    let report = import.run(&[]);
    let brought = TABLES.map(|table| report.table(table).counts(["created", "duplicates", "refused"]));
    assert_eq!(brought, [[4, 1, 0], [0, 3, 0]]);
    let slow = [counts(&[("MISSING", 1), ("SLOW", 3), ("VALID", 1)]), counts(&[("MISSING", 1), ("SLOW", 2)])];
    assert_eq!(outcomes(&import), slow);

    // What becomes of the key becomes of each of its rows: another scheme, ...
    wait_until("the key to be found", async || {
        let answer = world.server.keys().verify_key(presenting(&secrets[0])).await;
        answer.is_ok_and(|answer| !answer.get_ref().key_id.is_empty())
    })
    .await;
    let upgraded = [
        counts(&[("MISSING", 1), ("SLOW", 1), ("UPGRADED", 2), ("VALID", 1)]),
        counts(&[("MISSING", 1), ("SLOW", 1), ("UPGRADED", 1)]),
    ];
    assert_eq!(outcomes(&import), upgraded);

    // ... its organization's end, ...
    let organization_id = world.organization.clone();
    let request = DeactivateOrganizationRequest { organization_id: organization_id.clone(), ..Default::default() };
    world.server.organizations().deactivate_organization(request).await.expect("deactivated");
    assert_eq!(outcomes(&import), [counts(&[("ENDED_SINCE", 5)]), counts(&[("ENDED_SINCE", 3)])]);
    let request = ActivateOrganizationRequest { organization_id, ..Default::default() };
    world.server.organizations().activate_organization(request).await.expect("activated");

    // ... and that it is not as it came, which nobody has done on purpose.
    let id = world.id_of_row("clients", "2").await.expect("a key");
    let set_status = async |status: &str| {
        world.database.raw_sql(&format!("UPDATE api_keys SET status = '{status}' WHERE id = '{id}'")).await;
    };
    set_status("disabled").await;
    let ran = import.ran(&["verify", "--accept-refused", "--output", "json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for table in ran.any_json()["tables"].as_array().expect("tables") {
        assert_eq!(table["reasons"], json!({"DISABLED": 1}), "{ran:?}");
    }
    assert_eq!(import.ran(&["contract", "--yes"]).code, 1, "it is not verified");
    set_status("active").await;

    assert_eq!(outcomes(&import), upgraded);
    let dropped = import.ran(&["contract", "--yes"]);
    assert_eq!(dropped.code, 0, "{dropped:?}");
    world.assert_told_nobody(&[secrets, hashes].concat());
}
