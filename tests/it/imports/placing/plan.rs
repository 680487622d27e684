//! A plan says what a run will do, also of rows that meet each other alone: slow hashes that come twice, keys that are
//! to do different things, texts that are hashes of other rows, ids of rows that repeat, caps that fill up, and
//! organizations that are not there yet. Invariant: each result is counted as often by the one as by the other, however
//! the rows are cut into batches, and a plan writes nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Placed, SourceDatabase, TestDatabase, World, cell, create_organization, estate, set_cap};
use crate::harness::store_test;
use crate::imports::world::{Report, sha256_hex};

/// A file: the one source in which two rows may have one id.
const FILE: &str = r#"
source = "estate"
organization = "acme"

[[keys]]
id = "id"
[keys.columns]
secret = "secret"
sha256-hex = "hash"
bcrypt = "bcrypt"
key-id = "key_id"
organization = "tenant"
scopes = "scopes"
allowed-cidrs = "cidrs"
credits-remaining = "credits"
enabled = "enabled"
[keys.values]
environment = "live"
enabled = "true"
"#;

/// Rows that meet each other in every way, of three organizations, the last of which takes two keys.
fn rows(world: &World) -> Vec<Value> {
    let key = |name: &str| world.keys.text(name);
    let hashed = |name: &str| bcrypt::hash(key(name), 4).expect("a hash");
    let (slow, another, plain) = (hashed("slow"), hashed("another"), key("plain"));
    vec![
        json!({"id": "1", "bcrypt": slow}),
        json!({"id": "2", "bcrypt": slow}),
        json!({"id": "3", "bcrypt": slow, "tenant": "rival"}),
        json!({"id": "4", "bcrypt": slow, "scopes": "invoices:read"}),
        json!({"id": "5", "secret": plain, "credits": 5}),
        json!({"id": "6", "secret": plain, "credits": 6}),
        json!({"id": "7", "secret": plain, "credits": 4}),
        json!({"id": "8", "secret": plain, "credits": 5, "cidrs": "192.0.2.0/24"}),
        json!({"id": "9", "secret": plain, "credits": 5, "enabled": "false"}),
        // A hash and its own text, the one first and the other.
        json!({"id": "10", "hash": sha256_hex(&key("hashed"))}),
        json!({"id": "11", "secret": sha256_hex(&key("hashed"))}),
        json!({"id": "12", "secret": sha256_hex(&key("spelled"))}),
        json!({"id": "13", "hash": sha256_hex(&key("spelled"))}),
        // Ids that stood in a row before.
        json!({"id": "5", "secret": plain}),
        json!({"id": "5", "secret": key("new")}),
        json!({"id": "1", "bcrypt": another}),
        json!({"id": "5", "bcrypt": another}),
        json!({"id": "6", "secret": key("late")}),
        // Ids that are kept.
        json!({"id": "20", "secret": key("named"), "key_id": "ak_1"}),
        json!({"id": "21", "secret": key("renamed"), "key_id": "ak_1"}),
        json!({"id": "22", "secret": key("named"), "key_id": "ak_2"}),
        json!({"id": "23", "key_id": "ak_3"}),
        json!({"id": "24", "key_id": "ak_3"}),
        json!({"id": "30", "secret": key("first"), "tenant": "small"}),
        json!({"id": "31", "secret": key("second"), "tenant": "small"}),
        json!({"id": "32", "secret": key("first"), "tenant": "small"}),
        json!({"id": "33", "secret": key("third"), "tenant": "small"}),
    ]
}

/// All that a report counts of a table.
fn counted(report: &Report, table: &str) -> ([u64; 6], [BTreeMap<String, u64>; 3]) {
    let table = report.table(table);
    let counts = table.counts(["rows", "created", "existing", "duplicates", "skipped", "refused"]);
    (counts, ["refusals", "schemes", "notes"].map(|name| table.by(name)))
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
}

/// `lost` rows were refused since they gave way to a row of their batch that was not created.
async fn counts_alike(database: TestDatabase, batch: &str, lost: u64) {
    let world = World::new(database, "acme").await;
    create_organization(&world.server, "rival").await;
    set_cap(&world, "small", 2).await;
    let text = rows(&world).iter().map(Value::to_string).collect::<Vec<String>>().join("\n");
    let import = world.import("jsonl:-", FILE).reading(&text);
    let arguments = ["--batch", batch];

    let plan = counted(&import.plan(&arguments), "");
    assert_eq!(world.key_count().await, 0, "a plan writes nothing");
    let run = counted(&import.run(&arguments), "");
    assert_eq!(plan, run, "as it was planned");
    let (numbers, [refusals, ..]) = run;
    assert_eq!(numbers, [27, 9 - lost, 2, 4, 0, 12 + lost]);
    let expected = [
        ("DUPLICATE_DIFFERS", 4),
        ("DUPLICATE_IN_OTHER_ORGANIZATION", 1),
        ("DUPLICATE_SECRET", 1 + lost),
        ("ID_TAKEN", 1),
        ("KEY_CAP_REACHED", 1),
        ("ROW_CHANGED", 2),
        ("STORED_HASH", 2),
    ];
    assert_eq!(refusals, counts(&expected));

    // Once more, beside what is there by now.
    let plan = counted(&import.plan(&arguments), "");
    assert_eq!(plan, counted(&import.run(&arguments), ""));
    assert_eq!(plan.0[1], lost, "what gave way comes in, and nothing twice");
}

store_test!(a_plan_in_batches_of_one_row_counts_as_the_run_does);
async fn a_plan_in_batches_of_one_row_counts_as_the_run_does(database: TestDatabase) {
    counts_alike(database, "1", 0).await;
}

store_test!(a_plan_in_batches_of_two_rows_counts_as_the_run_does);
async fn a_plan_in_batches_of_two_rows_counts_as_the_run_does(database: TestDatabase) {
    counts_alike(database, "2", 0).await;
}

store_test!(a_plan_in_one_batch_counts_as_the_run_does);
async fn a_plan_in_one_batch_counts_as_the_run_does(database: TestDatabase) {
    // The first row with the id 6 is a duplicate, and the second one gives way to it.
    counts_alike(database, "2000", 1).await;
}

/// With organizations of its own.
const OWN: &str = r#"
source = "estate"

[[organizations]]
table = "tenants"
id = "id"
[organizations.columns]
key = "tenant"
name = "name"
slug = "slug"
email = "email"
max-keys = "cap"

[[keys]]
table = "main_keys"
id = "id"
[keys.columns]
secret = "secret"
organization = "tenant"
[keys.values]
environment = "live"

[[keys]]
table = "old_keys"
id = "id"
[keys.columns]
secret = "secret"
organization = "tenant"
[keys.values]
environment = "live"
"#;

/// Organizations that meet each other by all that no two of them may share.
async fn add_tenants(source: &SourceDatabase) {
    let columns = "id VARCHAR(99) NOT NULL PRIMARY KEY, tenant VARCHAR(99), name VARCHAR(99), slug VARCHAR(99), \
                   email VARCHAR(99), cap INTEGER";
    source.run(&format!("CREATE TABLE tenants ({columns})")).await;
    let rows = [
        vec![cell("1"), cell("7"), cell("Seven"), None, cell("ops@seven.example"), cell("2")],
        vec![cell("2"), cell("8"), cell("Eight"), None, None, None],
        // An address and a slug that others have, the one written otherwise and the other made of a name.
        vec![cell("3"), cell("9"), cell("Nine"), None, cell("OPS@Seven.example"), None],
        vec![cell("4"), cell("10"), cell("Ten"), cell("seven"), None, None],
        // One that was there before, whose cap does not count, and one that gets a slug of its own.
        vec![cell("5"), cell("8"), cell("Eight again"), cell("nine"), None, cell("1")],
        vec![cell("6"), cell("11"), cell("Eight"), None, None, None],
        // What was refused, or there before, has taken nothing.
        vec![cell("7"), cell("12"), cell("Twelve"), cell("nine"), cell("ops@twelve.example"), None],
    ];
    source.insert("tenants", "id, tenant, name, slug, email, cap", &rows).await;
}

store_test!(keys_of_organizations_that_would_be_new_are_planned_as_they_come_in);
async fn keys_of_organizations_that_would_be_new_are_planned_as_they_come_in(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let keys = world.keys.texts("owned", 9);
    let row =
        |id: &'static str, tenant: &'static str, key: usize| -> Placed<'_> { (id, "", tenant, keys[key].as_str()) };
    let main = [
        row("1", "7", 0),
        row("2", "8", 1),
        row("3", "7", 2),
        row("4", "7", 0),
        row("5", "7", 3),
        row("6", "8", 0),
        row("7", "8", 1),
        row("8", "9", 6),
        row("9", "10", 7),
    ];
    let old = [row("1", "8", 1), row("2", "7", 1), row("3", "8", 4), row("4", "7", 5), row("5", "11", 8)];
    let source = estate(&world, &main, &old).await;
    add_tenants(&source).await;
    let import = world.import(&source.reader_url().await, OWN);
    let told = |report: &Report| ["tenants", "main_keys", "old_keys"].map(|table| counted(report, table));

    let plans = ["1", "2", "2000"].map(|batch| told(&import.plan(&["--batch", batch])));
    assert_eq!(world.key_count().await, 0, "a plan writes nothing");
    let run = told(&import.run(&["--batch", "1"]));
    for plan in plans {
        assert_eq!(plan, run);
    }
    assert_eq!(run.each_ref().map(|(numbers, _)| numbers[1]), [4, 3, 2], "created");
    assert_eq!(run[0].0, [7, 4, 1, 0, 0, 2]);
    let (taken, capped) = (("DUPLICATE_IN_OTHER_ORGANIZATION", 1), ("KEY_CAP_REACHED", 1));
    let main = counts(&[taken, capped, ("UNKNOWN_ORGANIZATION", 2)]);
    let expected = [counts(&[("SLUG_TAKEN", 2)]), main, counts(&[taken, capped])];
    assert_eq!(run.map(|(_, [refusals, ..])| refusals), expected);
}
