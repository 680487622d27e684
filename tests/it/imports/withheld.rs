//! Past requests are read once. Where rows of keys are refused, requests of those keys would be passed over for ever: a
//! run then leaves the requests as they are and says so, until the rows were corrected or the loss was accepted.
//! Invariant: no request is lost that nobody has agreed to lose, and none counts twice.

use serde_json::json;

use super::organizations::{now, written};
use super::world::{Import, World};
use crate::harness::cli::Ran;
use crate::harness::source::{SourceDatabase, cell};
use crate::harness::{TestDatabase, store_test};

const MAPPING: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
[keys.values]
environment = "live"

[[usage]]
table = "requests"
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"

[[usage]]
table = "later_requests"
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"
"#;

async fn add_request(source: &SourceDatabase, table: &str, id: usize, key: usize) {
    let row = vec![cell(id.to_string()), cell(key.to_string()), cell(written(now() - 3600))];
    source.insert(table, "id, key_id, made_at", &[row]).await;
}

async fn set_secret(source: &SourceDatabase, key: usize, secret: &str) {
    source.run(&format!("UPDATE client_keys SET secret = '{secret}' WHERE id = {key}")).await;
}

/// Two keys, of which one is refused, with five requests in one table and one in the other.
async fn portal(world: &World) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    let columns = "(id bigint PRIMARY KEY NOT NULL, key_id bigint, made_at text)";
    source
        .run(&format!(
            "CREATE TABLE client_keys (id bigint PRIMARY KEY NOT NULL, secret text);
             CREATE TABLE requests {columns}; CREATE TABLE later_requests {columns}"
        ))
        .await;
    let keys = [vec![cell("1"), cell(world.keys.text("first"))], vec![cell("2"), cell("weak")]];
    source.insert("client_keys", "id, secret", &keys).await;
    for (id, key) in [1, 2, 1, 2, 1].into_iter().enumerate() {
        add_request(&source, "requests", id + 1, key).await;
    }
    add_request(&source, "later_requests", 1, 2).await;
    source
}

async fn requests(world: &World) -> i64 {
    world.database.query_i64("SELECT count(*) FROM api_key_usage").await
}

async fn state(world: &World, table: &str) -> String {
    let sql = format!("SELECT state || ' ' || position FROM imports WHERE table_name = '{table}'");
    world.database.query_string(&sql).await
}

fn assert_withheld(ran: &Ran, tables: &[&str]) {
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.any_json()["withheld"], json!(tables), "{ran:?}");
    assert!(ran.stderr.contains("past requests are still to be read"), "{ran:?}");
}

/// A plan ends with 0, and warns of these tables alone.
fn assert_planned(import: &Import<'_>, tables: &[&str]) {
    let planned = import.ran(&["plan", "--output", "json"]);
    assert_eq!((planned.code, &planned.any_json()["withheld"]), (0, &json!(tables)), "{planned:?}");
    let names: Vec<String> = tables.iter().map(|table| format!("{table:?}")).collect();
    let words = format!("reads no past requests of {}, unless it is given --accept-refused", names.join(", "));
    assert_eq!(planned.stderr.contains(&words), !tables.is_empty(), "{planned:?}");
    assert_eq!(planned.stderr.contains("no past requests"), !tables.is_empty(), "{planned:?}");
}

store_test!(requests_wait_for_the_rows_of_their_keys_to_be_corrected);
async fn requests_wait_for_the_rows_of_their_keys_to_be_corrected(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let run = || import.ran(&["run", "--output", "json"]);
    assert_planned(&import, &["requests", "later_requests"]);
    let report = import.plan(&[]);
    assert_eq!(
        report.table("requests").counts(["rows", "created", "refused"]),
        [5, 3, 2],
        "of a key that would be new"
    );
    assert_eq!(report.table("requests").by("refusals").get("UNKNOWN_KEY"), Some(&2));
    let planned = import.ran(&["plan"]);
    assert!(planned.stdout.contains("would leave for later: requests, later_requests\n"), "{planned:?}");

    for _ in 0..2 {
        let ran = run();
        assert_withheld(&ran, &["requests", "later_requests"]);
        assert!(ran.stderr.contains("table \"requests\" was not read: 1 rows of organizations and keys"), "{ran:?}");
        assert_eq!(ran.any_json()["resumed"], false, "it begins with the keys each time: {ran:?}");
        assert_eq!((world.key_count().await, requests(&world).await), (1, 0));
        assert_eq!(state(&world, "requests").await, "withheld ");
    }

    set_secret(&source, 2, &world.keys.text("second")).await;
    assert_planned(&import, &[]);
    let ran = run();
    assert_eq!((ran.code, &ran.any_json()["withheld"]), (0, &json!([])), "{ran:?}");
    assert_eq!((world.key_count().await, requests(&world).await), (2, 6), "none was lost");
    assert_eq!(state(&world, "requests").await, "done 5");
}

store_test!(requests_of_refused_keys_are_lost_only_where_that_is_accepted);
async fn requests_of_refused_keys_are_lost_only_where_that_is_accepted(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    set_secret(&source, 2, &world.keys.text("second")).await;
    import.run(&[]);
    assert_eq!(requests(&world).await, 6);

    // A refused key alone keeps nothing back where there is nothing to be read.
    source.insert("client_keys", "id, secret", &[vec![cell("3"), cell("weak")]]).await;
    assert_planned(&import, &[]);
    assert_eq!(import.run(&[]).table("client_keys").count("refused"), 1);
    add_request(&source, "requests", 6, 3).await;
    add_request(&source, "requests", 7, 1).await;
    assert_planned(&import, &["requests"]);
    assert_withheld(&import.ran(&["run", "--output", "json"]), &["requests"]);
    assert_eq!(state(&world, "requests").await, "withheld 5", "it goes on from there");
    assert_eq!(requests(&world).await, 6);

    let report = import.run(&["--accept-refused"]);
    assert_eq!(report.table("requests").counts(["rows", "created", "refused"]), [2, 1, 1]);
    assert_eq!(report.table("requests").by("refusals").get("UNKNOWN_KEY"), Some(&1));
    assert_eq!(requests(&world).await, 7);
}

store_test!(a_pass_that_has_left_a_table_out_leaves_it_out_to_its_end);
async fn a_pass_that_has_left_a_table_out_leaves_it_out_to_its_end(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let run = || import.ran(&["run", "--output", "json", "--accept-refused"]);
    assert_withheld(&import.ran(&["run", "--output", "json"]), &["requests", "later_requests"]);

    // As though it had been killed after the first of the two, and the row was corrected since.
    let killed = "UPDATE imports SET state = 'running' WHERE table_name = 'later_requests'";
    world.database.raw_sql(killed).await;
    set_secret(&source, 2, &world.keys.text("second")).await;
    let ran = run();
    assert_withheld(&ran, &["requests"]);
    assert_eq!(ran.any_json()["resumed"], true, "{ran:?}");
    let words = "table \"requests\" was left out by the run that this one went on with: run once more";
    assert_eq!(ran.stderr.matches(words).count(), 1, "{ran:?}");
    assert!(!ran.stderr.contains("table \"later_requests\" was left out"), "{ran:?}");
    assert_eq!((world.key_count().await, requests(&world).await), (1, 0), "the keys were not read again");

    let ran = run();
    assert_eq!((ran.code, ran.stderr.contains("was left out")), (0, false), "{ran:?}");
    assert_eq!((world.key_count().await, requests(&world).await), (2, 5), "but now: of the first table none is lost");
}

/// A request of a key, made just now.
async fn add_new_request(source: &SourceDatabase, id: usize, key: usize) {
    let row = vec![cell(id.to_string()), cell(key.to_string()), cell(written(now()))];
    source.insert("requests", "id, key_id, made_at", &[row]).await;
}

store_test!(requests_of_a_key_that_was_issued_since_the_keys_were_read_are_read_by_the_next_run);
async fn requests_of_a_key_that_was_issued_since_the_keys_were_read_are_read_by_the_next_run(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    set_secret(&source, 2, &world.keys.text("second")).await;
    import.run(&[]);
    // As though a run had been killed when it had read the keys; then a key is issued and used.
    world.database.raw_sql("UPDATE imports SET state = 'running' WHERE table_name = 'requests'").await;
    add_new_request(&source, 6, 1).await;
    add_new_request(&source, 7, 3).await;
    add_new_request(&source, 8, 1).await;
    source.insert("client_keys", "id, secret", &[vec![cell("3"), cell(world.keys.text("third"))]]).await;
    let ran = import.ran(&["run", "--output", "json", "--batch", "2"]);
    assert_withheld(&ran, &["requests"]);
    assert_eq!(ran.any_json()["resumed"], true, "the keys are not read again: {ran:?}");
    assert!(ran.stderr.contains("may have been issued since the keys were read: run again"), "{ran:?}");
    assert_eq!((world.key_count().await, requests(&world).await), (2, 7));
    assert_eq!(state(&world, "requests").await, "withheld 6");

    let report = import.run(&[]);
    assert_eq!(report.table("requests").counts(["rows", "created", "refused"]), [2, 2, 0]);
    assert_eq!((world.key_count().await, requests(&world).await), (3, 9), "none was lost, and none counts twice");
}

store_test!(requests_of_a_key_that_is_not_in_the_source_are_passed_over_once_they_are_old);
async fn requests_of_a_key_that_is_not_in_the_source_are_passed_over_once_they_are_old(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = portal(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    set_secret(&source, 2, &world.keys.text("second")).await;
    add_request(&source, "requests", 6, 9).await;
    add_new_request(&source, 7, 9).await;
    add_request(&source, "requests", 8, 1).await;
    assert_withheld(&import.ran(&["run", "--output", "json"]), &["requests"]);
    assert_eq!(state(&world, "requests").await, "withheld 6", "the request of an hour ago was of no key that comes");
    let grown_old = format!("UPDATE requests SET made_at = '{}' WHERE id = 7", written(now() - 3600));
    source.run(&grown_old).await;
    let report = import.run(&[]);
    assert_eq!(report.table("requests").counts(["rows", "created", "refused"]), [2, 1, 1]);
    assert_eq!(report.table("requests").by("refusals").get("UNKNOWN_KEY"), Some(&1));
}
