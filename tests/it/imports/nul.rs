//! NUL in a text, which a file or a table of SQLite may hold and Keystead's database may not be told: in the id of a
//! row, in what it refers to, in names. Invariant: such a row is refused with a reason, or loses what does not show
//! where that is what becomes of such names; no other row is lost by it, and the run goes on.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use keystead::proto::v1::Outcome;
use serde_json::{Map, Value};

use super::organizations::{now, written};
use super::world::{World, refused_rows};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{TestDatabase, store_test};

const HOUR: i64 = 3600;

/// What a source is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    JsonLines,
    Sqlite,
}

/// A table with a row of texts in each of these columns, as a source.
struct Table {
    url: String,
    /// The line of a mapping that names it.
    named: String,
    /// As a report calls it.
    name: &'static str,
    /// Lives as long as the table.
    _database: Option<SourceDatabase>,
}

async fn table(world: &World, format: Format, name: &'static str, columns: &[&str], rows: &[Vec<Cell>]) -> Table {
    let text = match format {
        Format::Csv => comma_separated(columns, rows),
        Format::JsonLines => json_lines(columns, rows),
        Format::Sqlite => {
            let source = SourceDatabase::new(SourceEngine::Sqlite).await;
            source.run(&statements(name, columns, rows)).await;
            let (url, named) = (source.url().to_owned(), format!("table = \"{name}\""));
            return Table { url, named, name, _database: Some(source) };
        }
    };
    let path = world.write(&format!("{name}.txt"), &text);
    let kind = if format == Format::Csv { "csv" } else { "jsonl" };
    Table { url: format!("{kind}:{}", path.display()), named: String::new(), name: "", _database: None }
}

fn comma_separated(columns: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns).expect("written");
    for row in rows {
        writer.write_record(row.iter().map(|cell| cell.as_deref().unwrap_or_default())).expect("written");
    }
    String::from_utf8(writer.into_inner().expect("flushed")).expect("text")
}

fn json_lines(columns: &[&str], rows: &[Vec<Cell>]) -> String {
    let object = |row: &Vec<Cell>| -> Map<String, Value> {
        columns.iter().zip(row).map(|(column, cell)| ((*column).to_owned(), Value::from(cell.clone()))).collect()
    };
    rows.iter().fold(String::new(), |mut text, row| {
        let _ = writeln!(text, "{}", Value::Object(object(row)));
        text
    })
}

/// What makes and fills a table of SQLite, whose first column is the id.
fn statements(name: &str, columns: &[&str], rows: &[Vec<Cell>]) -> String {
    // A statement ends at a NUL, so that it is told by its number.
    let literal = |cell: &Cell| match cell {
        None => "NULL".to_owned(),
        Some(text) => text.split('\0').map(|part| format!("'{part}'")).collect::<Vec<_>>().join(" || char(0) || "),
    };
    let row = |row: &Vec<Cell>| format!("({})", row.iter().map(literal).collect::<Vec<_>>().join(", "));
    let rows: Vec<String> = rows.iter().map(row).collect();
    let (key, others) = columns.split_first().expect("an id");
    let others: Vec<String> = others.iter().map(|column| format!("{column} TEXT")).collect();
    format!(
        "CREATE TABLE {name} ({key} TEXT NOT NULL PRIMARY KEY, {}); INSERT INTO {name} VALUES {}",
        others.join(", "),
        rows.join(", ")
    )
}

/// As `refused_rows` tells them.
fn refused(table: &str, rows: &[(&str, &str)]) -> BTreeMap<(String, String), String> {
    rows.iter().map(|(id, reason)| ((table.to_owned(), (*id).to_owned()), (*reason).to_owned())).collect()
}

const KEYS: &str = r#"
source = "nul"
organization = "acme"

[[keys]]
TABLE
id = "id"
[keys.columns]
key-id = "key_id"
organization = "tenant"
owner-id = "owner"
name = "name"
secret = "secret"
[keys.values]
environment = "live"
"#;

const KEY_COLUMNS: [&str; 6] = ["id", "key_id", "tenant", "owner", "name", "secret"];

/// A row of keys that is as it should be.
fn key(world: &World, at: usize) -> Vec<Cell> {
    let secret = world.keys.text(&format!("key {at}"));
    [format!("{at:02}"), format!("ak_{at}"), "acme".to_owned(), "ann".to_owned(), format!("name {at}"), secret]
        .map(cell)
        .into()
}

/// The rows of a table of keys, with the reason for which each is refused, in the order of their ids.
fn key_rows(world: &World) -> Vec<(Vec<Cell>, Option<&'static str>)> {
    let with = |at: usize, column: &str, text: &str| {
        let mut row = key(world, at);
        let place = KEY_COLUMNS.iter().position(|known| *known == column).expect("a column");
        row[place] = cell(text);
        row
    };
    let torn = world.keys.text("key 5").replacen('_', "_\0", 1);
    vec![
        (key(world, 0), None),
        (with(1, "id", "01\0x"), Some("BAD_SOURCE_ID")),
        (with(2, "key_id", "ak\0two"), Some("BAD_KEY_ID")),
        (with(3, "tenant", "ac\0me"), Some("UNKNOWN_ORGANIZATION")),
        (with(4, "owner", "ann\0"), Some("BAD_OWNER_ID")),
        (with(5, "secret", &torn), Some("BAD_SECRET")),
        (with(6, "name", "na\0me"), None),
        (key(world, 7), None),
        // The last row of the table, and of its batch.
        (with(8, "id", "99\0"), Some("BAD_SOURCE_ID")),
    ]
}

async fn costs_a_row_of_keys_alone(database: TestDatabase, format: Format) {
    let world = World::new(database, "acme").await;
    let (rows, reasons): (Vec<Vec<Cell>>, Vec<Option<&str>>) = key_rows(&world).into_iter().unzip();
    let table = table(&world, format, "client_keys", &KEY_COLUMNS, &rows).await;
    let import = world.import(&table.url, &KEYS.replace("TABLE", &table.named));
    let ids = rows.iter().filter_map(|row| row[0].as_deref());
    let bad: Vec<(&str, &str)> = ids.zip(&reasons).filter_map(|(id, reason)| Some((id, (*reason)?))).collect();
    let file = world.path("refused.csv");
    let file = file.to_str().expect("text");
    assert_eq!(import.plan(&[]).table(table.name).counts(["rows", "created", "refused"]), [9, 3, 6]);
    // Batches of one row have no position of their own where that row's id can be told to nobody.
    for (batch, counts) in [("1", [9, 3, 0, 6]), ("4", [9, 0, 3, 6]), ("2000", [9, 0, 3, 6])] {
        let report = import.run(&["--batch", batch, "--refused-file", file]);
        let report = report.table(table.name);
        assert_eq!(report.counts(["rows", "created", "existing", "refused"]), counts, "batches of {batch}");
        assert_eq!(refused_rows(file.as_ref()), refused(table.name, &bad));
        assert_eq!(report.by("notes").get("NAME_CHANGED"), Some(&1));
        assert_eq!(world.database.query_string("SELECT position FROM imports").await, "07");
    }
    let secrets = [0, 6, 7].map(|at| world.keys.text(&format!("key {at}")));
    world.assert_all(&secrets, Outcome::Valid).await;
    let name = world.present(&secrets[1]).await.name;
    assert!(name.starts_with("na") && !name.contains('\0'), "{name:?}");
    assert!(import.verify(&["--accept-refused"]).is("passed"));
    world.assert_told_nobody(&secrets);
}

store_test!(a_nul_in_a_csv_file_costs_its_row_of_keys_alone);
async fn a_nul_in_a_csv_file_costs_its_row_of_keys_alone(database: TestDatabase) {
    costs_a_row_of_keys_alone(database, Format::Csv).await;
}

store_test!(a_nul_in_json_lines_costs_its_row_of_keys_alone);
async fn a_nul_in_json_lines_costs_its_row_of_keys_alone(database: TestDatabase) {
    costs_a_row_of_keys_alone(database, Format::JsonLines).await;
}

store_test!(a_nul_in_a_table_of_sqlite_costs_its_row_of_keys_alone);
async fn a_nul_in_a_table_of_sqlite_costs_its_row_of_keys_alone(database: TestDatabase) {
    costs_a_row_of_keys_alone(database, Format::Sqlite).await;
}

const USAGE: &str = r#"
source = "nul"

[[usage]]
TABLE
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"
endpoint = "path"
"#;

/// Requests of a key that has kept its id.
async fn costs_a_row_of_usage_alone(database: TestDatabase, format: Format) {
    let world = World::new(database, "acme").await;
    let keys = table(&world, Format::Sqlite, "client_keys", &KEY_COLUMNS, &[key(&world, 0)]).await;
    world.import(&keys.url, &KEYS.replace("TABLE", &keys.named)).run(&[]);
    let request = |id: &str, key: &str, path: &str| {
        vec![cell(id), cell(key), cell(written(now() - HOUR)), cell(format!("/v1/{path}"))]
    };
    let rows = [
        request("01", "ak_0", "things"),
        request("02\0", "ak_0", "things"),
        request("03", "ak\0", "things"),
        request("04", "ak_0", "a\0b"),
        request("99\0", "ak_0", "things"),
    ];
    let table = table(&world, format, "requests", &["id", "key_id", "made_at", "path"], &rows).await;
    let import = world.import(&table.url, &USAGE.replace("TABLE", &table.named));
    assert_eq!(import.plan(&[]).table(table.name).counts(["rows", "refused"]), [5, 3]);
    let file = world.path("refused.csv");
    let report = import.run(&["--batch", "1", "--refused-file", file.to_str().expect("text")]);
    assert_eq!(report.table(table.name).counts(["rows", "created", "refused"]), [5, 2, 3]);
    let bad = [("02\0", "BAD_USAGE"), ("03", "UNKNOWN_KEY"), ("99\0", "BAD_USAGE")];
    assert_eq!(refused_rows(&file), refused(table.name, &bad));
    assert_eq!(world.database.query_i64("SELECT count(*) FROM api_key_usage").await, 2);
    let shown = world.database.query_string("SELECT min(endpoint) FROM api_key_usage").await;
    assert!(shown.starts_with("/v1/a") && !shown.contains('\0'), "{shown:?}");
}

store_test!(a_nul_in_a_csv_file_costs_its_row_of_usage_alone);
async fn a_nul_in_a_csv_file_costs_its_row_of_usage_alone(database: TestDatabase) {
    costs_a_row_of_usage_alone(database, Format::Csv).await;
}

store_test!(a_nul_in_json_lines_costs_its_row_of_usage_alone);
async fn a_nul_in_json_lines_costs_its_row_of_usage_alone(database: TestDatabase) {
    costs_a_row_of_usage_alone(database, Format::JsonLines).await;
}

store_test!(a_nul_in_a_table_of_sqlite_costs_its_row_of_usage_alone);
async fn a_nul_in_a_table_of_sqlite_costs_its_row_of_usage_alone(database: TestDatabase) {
    costs_a_row_of_usage_alone(database, Format::Sqlite).await;
}

const ESTATE: &str = r#"
source = "nul"

[[organizations]]
table = "tenants"
id = "id"
[organizations.columns]
key = "tenant"
name = "name"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
organization = "tenant"
[keys.values]
environment = "live"
[[keys.limits]]
name = "calls"
limit = "calls_max"
window = "30d"

[[limits]]
table = "counted"
id = "id"
[limits.columns]
key = "key_id"
organization = "tenant"
name = "name"
window-start = "since"
window-end = "until"
count = "count"
"#;

/// A file is one table, so that only SQLite has these beside their keys.
async fn estate(world: &World) -> SourceDatabase {
    let source = SourceDatabase::new(SourceEngine::Sqlite).await;
    let tenant = |id: &str, key: &str, name: &str| vec![cell(id), cell(key), cell(name)];
    let tenants = [
        tenant("1", "t1", "First"),
        tenant("2\0", "t2", "Second"),
        tenant("3", "t\0three", "Third"),
        tenant("4", "t4", "Fo\0urth"),
    ];
    source.run(&statements("tenants", &["id", "tenant", "name"], &tenants)).await;
    let keys = [vec![cell("k1"), cell(world.keys.text("key")), cell("t1"), cell("10")]];
    source.run(&statements("client_keys", &["id", "secret", "tenant", "calls_max"], &keys)).await;
    let window = |id: &str, key: Option<&str>, tenant: Option<&str>, name: &str| {
        let owner = [key, tenant].map(|text| text.map(str::to_owned));
        let span = [written(now() - HOUR), written(now() + 23 * HOUR)].map(cell);
        [vec![cell(id)], owner.into(), vec![cell(name)], span.into(), vec![cell("1")]].concat()
    };
    let windows = [
        window("1", Some("k1"), None, "calls"),
        window("2\0", Some("k1"), None, "calls"),
        window("3", Some("k\0one"), None, "calls"),
        window("4", None, Some("t\0one"), "calls"),
        window("5", Some("k1"), None, "ca\0lls"),
    ];
    source.run(&statements("counted", &["id", "key_id", "tenant", "name", "since", "until", "count"], &windows)).await;
    source
}

store_test!(a_nul_costs_its_row_of_organizations_and_of_limits_alone);
async fn a_nul_costs_its_row_of_organizations_and_of_limits_alone(database: TestDatabase) {
    let mut world = World::new(database, "elsewhere").await;
    let source = estate(&world).await;
    // What was counted comes in while no server counts in memory.
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    let planned = world.import(source.url(), ESTATE).plan(&[]);
    assert_eq!(planned.table("counted").by("refusals").get("UNKNOWN_KEY"), Some(&1), "the key would be new");
    let file = world.path("refused.csv");
    let report =
        world.import(source.url(), ESTATE).run(&["--batch", "1", "--refused-file", file.to_str().expect("text")]);
    let tenants = report.table("tenants");
    assert_eq!(tenants.counts(["rows", "created", "refused"]), [4, 2, 2]);
    assert_eq!(tenants.by("notes").get("NAME_CHANGED"), Some(&1));
    assert_eq!(report.table("client_keys").count("created"), 1);
    assert_eq!(report.table("counted").counts(["rows", "created", "refused"]), [5, 1, 4]);
    let windows = [("2\0", "BAD_LIMIT"), ("3", "UNKNOWN_KEY"), ("4", "UNKNOWN_ORGANIZATION"), ("5", "BAD_LIMIT")];
    let mut bad = refused("tenants", &[("2\0", "BAD_SOURCE_ID"), ("3", "BAD_ORGANIZATION")]);
    bad.extend(refused("counted", &windows));
    assert_eq!(refused_rows(&file), bad);
    world.server.restart().await;
    assert_eq!(world.outcome(&world.keys.text("key")).await, Outcome::Valid);
    let changed = "SELECT name FROM organizations WHERE name LIKE 'Fo%'";
    let name = world.database.query_string(changed).await;
    assert!(name.starts_with("Fo") && !name.contains('\0'), "{name:?}");
}
