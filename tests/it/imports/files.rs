//! Files as sources: CSV and JSON Lines, from a file or from standard input, with all that such files may hold, and
//! with lines that are none. Invariant: what stands in a file comes over as it would from a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use keystead::proto::v1::Outcome;
use serde_json::json;

use super::world::{World, refused_rows, sha256_hex};
use crate::harness::{TestDatabase, store_test};

const MAPPING: &str = r#"
source = "export"
organization = "acme"

[[keys]]
id = "id"
[keys.columns]
secret = "key"
sha256-hex = "hash"
name = "name"
owner-id = "owner"
scopes = "scopes"
metadata = "metadata"
enabled = "enabled"
expire-time = "expires"
request-count = "uses"
[keys.values]
environment = "test"
"#;

const ROWS: usize = 3000;

/// The same keys in both formats: every third one as its hash, every tenth one disabled, every seventh one ended.
fn export(world: &World) -> (String, String, Vec<String>) {
    let keys = world.keys.texts("export", ROWS);
    let mut csv = csv::Writer::from_writer(Vec::new());
    let header = ["id", "key", "hash", "name", "owner", "scopes", "metadata", "enabled", "expires", "uses", "ignored"];
    csv.write_record(header).expect("written");
    let mut lines = String::new();
    for (at, key) in keys.iter().enumerate() {
        let hash = sha256_hex(key);
        let (secret, hash) = if at % 3 == 0 { (None, Some(hash)) } else { (Some(key.clone()), None) };
        let name = format!("key, \"no.\" {at}\tof Zürich");
        let enabled = at % 10 != 9;
        let expires = if at % 7 == 6 { "2021-01-01T00:00:00Z" } else { "2999-01-01T00:00:00+02:00" };
        let object = json!({
            "id": format!("row-{at:05}"), "key": secret, "hash": hash, "name": name, "owner": null,
            "scopes": ["files:read", "files:list"], "metadata": {"at": at}, "enabled": enabled, "expires": expires,
            "uses": at, "ignored": {"deep": [1, 2, {"er": null}]},
        });
        let _ = writeln!(lines, "{object}");
        let record = [
            format!("row-{at:05}"),
            secret.unwrap_or_default(),
            hash.unwrap_or_default(),
            name,
            String::new(),
            "files:read files:list".to_owned(),
            format!("{{\"at\": {at}}}"),
            enabled.to_string(),
            expires.to_owned(),
            at.to_string(),
            "\n".to_owned(),
        ];
        csv.write_record(record).expect("written");
    }
    let csv = String::from_utf8(csv.into_inner().expect("flushed")).expect("text");
    (csv, lines, keys)
}

async fn assert_all_here(world: &World, keys: &[String]) {
    let answers = world.ask_all(keys.iter().map(|key| super::world::presenting(key)).collect()).await;
    for (at, answer) in answers.iter().enumerate() {
        let expected = match (at % 10, at % 7) {
            (9, _) => Outcome::Disabled,
            (_, 6) => Outcome::Expired,
            _ => Outcome::Valid,
        };
        assert_eq!(answer.outcome(), expected, "row {at}");
        // The tab is a control character.
        assert!(answer.name.starts_with(&format!("key, \"no.\" {at}")) && answer.name.ends_with("of Zürich"));
        assert_eq!(answer.scopes, ["files:read", "files:list"]);
        assert_eq!(answer.metadata["at"], at.to_string());
    }
}

async fn brings_in(database: TestDatabase, format: &str, from_stdin: bool) {
    let world = World::new(database, "acme").await;
    let (csv, lines, keys) = export(&world);
    let text = if format == "csv" { csv } else { lines };
    let path = world.write(&format!("export.{format}"), &text);
    let url = if from_stdin { format!("{format}:-") } else { format!("{format}:{}", path.display()) };
    let import = world.import(&url, MAPPING).reading(&text);

    assert_eq!(import.plan(&[]).table("").counts(["rows", "created"]), [3000, 3000]);
    let report = import.run(&["--batch", "999"]);
    assert_eq!(report.table("").counts(["rows", "created", "refused"]), [3000, 3000, 0]);
    let schemes = report.table("").by("schemes");
    assert_eq!(schemes, BTreeMap::from([("plaintext".to_owned(), 2000), ("sha256-hex".to_owned(), 1000)]));
    assert_eq!(report.table("").by("notes"), BTreeMap::from([("NAME_CHANGED".to_owned(), 3000)]));
    assert_all_here(&world, &keys).await;
    assert!(import.verify(&[]).is("passed"));
    assert_eq!(import.run(&[]).table("").counts(["created", "existing"]), [0, 3000]);
    let contract = import.ran(&["contract", "--yes"]);
    assert!(contract.code == 1 || contract.code == 2, "a file is deleted by its owner: {contract:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), text, "it is as it was");
    world.assert_told_nobody(&keys);
}

store_test!(a_csv_file_is_brought_in);
async fn a_csv_file_is_brought_in(database: TestDatabase) {
    brings_in(database, "csv", false).await;
}

store_test!(csv_from_standard_input_is_brought_in);
async fn csv_from_standard_input_is_brought_in(database: TestDatabase) {
    brings_in(database, "csv", true).await;
}

store_test!(a_json_lines_file_is_brought_in);
async fn a_json_lines_file_is_brought_in(database: TestDatabase) {
    brings_in(database, "jsonl", false).await;
}

store_test!(json_lines_from_standard_input_are_brought_in);
async fn json_lines_from_standard_input_are_brought_in(database: TestDatabase) {
    brings_in(database, "jsonl", true).await;
}

store_test!(a_file_with_marks_of_its_editor_is_read_as_it_is_meant);
async fn a_file_with_marks_of_its_editor_is_read_as_it_is_meant(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let keys = world.keys.texts("marked", 4);
    let columns = "id,key,hash,name,owner,scopes,metadata,enabled,expires,uses";
    // A byte order mark, lines that end as Windows' do, and none at the end.
    let text = format!("\u{feff}{columns}\r\n1,{},,,,,,true,,\r\n2,\"{}\",,,,,,true,,", keys[0], keys[1]);
    let path = world.write("marked.csv", &text);
    let report = world.import(&format!("csv:{}", path.display()), MAPPING).run(&[]);
    assert_eq!(report.table("").counts(["rows", "created"]), [2, 2]);

    let object = |id: &str, key: &str| {
        let rest = ["hash", "name", "owner", "scopes", "metadata", "enabled", "expires", "uses"];
        let rest = rest.map(|name| format!("\"{name}\": {}", if name == "enabled" { "true" } else { "null" }));
        format!("{{\"id\": {id}, \"key\": \"{key}\", {}}}", rest.join(", "))
    };
    let text = format!("\u{feff}{}\r\n\r\n  {}", object("3", &keys[2]), object("4", &keys[3]));
    let path = world.write("marked.jsonl", &text);
    let mapping = MAPPING.replace("export", "export/lines");
    let report = world.import(&format!("jsonl:{}", path.display()), &mapping).run(&[]);
    assert_eq!(report.table("").counts(["rows", "created"]), [2, 2]);
    world.assert_all(&keys, Outcome::Valid).await;
}

store_test!(a_file_that_cannot_be_read_brings_nothing_in_and_names_the_line);
async fn a_file_that_cannot_be_read_brings_nothing_in_and_names_the_line(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let key = world.keys.text("broken");
    let header = "id,key,hash,name,owner,scopes,metadata,enabled,expires,uses\n";
    let good = format!("1,{key},,,,,,,,\n");
    let object = format!("{{\"id\": \"1\", \"key\": \"{key}\"}}\n");
    for (name, text, line) in [
        ("few.csv", format!("{header}{good}2,x\n"), "3"),
        ("many.csv", format!("{header}{good}2{}\n", ",x".repeat(12)), "3"),
        ("open.jsonl", format!("{object}{{\"id\": \"2\"\n"), "2"),
        ("list.jsonl", format!("{object}[1, 2]\n"), "2"),
    ] {
        let path = world.write(name, &text);
        let format = name.rsplit('.').next().expect("a format");
        let ran = world.import(&format!("{format}:{}", path.display()), MAPPING).ran(&["run"]);
        assert!([1, 2, 3].contains(&ran.code), "{name}: {ran:?}");
        assert!(ran.stderr.contains(&format!("line {line}")), "{name}: {ran:?}");
        assert!(!ran.stderr.contains("panicked"), "{name}: {ran:?}");
        assert_eq!(world.key_count().await, 0, "{name}");
    }
    world.assert_told_nobody(&[key]);
}

store_test!(a_key_that_json_would_round_is_refused_and_never_another_key);
async fn a_key_that_json_would_round_is_refused_and_never_another_key(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let good = world.keys.text("good");
    let line = |id: &str, key: &str| {
        let rest = ["hash", "name", "owner", "scopes", "metadata", "expires"].map(|name| format!("\"{name}\": null"));
        format!("{{\"id\": {id}, \"key\": {key}, \"enabled\": true, \"uses\": 1.0, {}}}\n", rest.join(", "))
    };
    let written = ["18446744073709551615", "938471605827364150982736", "0.93847160582736415098"];
    let lines =
        [line("1", &format!("\"{good}\"")), line("2", written[0]), line("3", written[1]), line("4", written[2])];
    let path = world.write("numbers.jsonl", &lines.concat());
    let file = world.path("refused.csv");
    let import = world.import(&format!("jsonl:{}", path.display()), MAPPING);
    let report = import.run(&["--refused-file", file.to_str().expect("text")]);
    assert_eq!(report.table("").counts(["rows", "created", "refused"]), [4, 2, 2]);
    let expected = ["3", "4"].map(|id| ((String::new(), id.to_owned()), "BAD_SECRET".to_owned()));
    assert_eq!(refused_rows(&file), BTreeMap::from(expected));
    world.assert_all(&[good, written[0].to_owned()], Outcome::Valid).await;

    let path = world.write("ids.jsonl", &line("938471605827364150982736", "\"a key that is not looked at\""));
    let mapping = MAPPING.replace("export", "export/ids");
    let ran = world.import(&format!("jsonl:{}", path.display()), &mapping).ran(&["run"]);
    assert!(ran.code != 0 && ran.stderr.contains("line 1: its id is a number"), "{ran:?}");
}

store_test!(refused_rows_of_a_file_are_named_by_their_ids);
async fn refused_rows_of_a_file_are_named_by_their_ids(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let good = world.keys.text("good");
    let header = "id,key,hash,name,owner,scopes,metadata,enabled,expires,uses";
    let text = format!(
        "{header}\na,{good},,,,,,true,,\nb,short,,,,,,true,,\nc,{good},,,,,,true,soon,\n\"d,\"\"e\",short,,,,,,true,,\n"
    );
    let path = world.write("export.csv", &text);
    let file = world.path("refused.csv");
    let import = world.import(&format!("csv:{}", path.display()), MAPPING);
    let report = import.run(&["--refused-file", file.to_str().expect("text")]);
    assert_eq!(report.table("").counts(["rows", "created", "refused"]), [4, 1, 3]);
    let expected = [("b", "WEAK_SECRET"), ("c", "BAD_EXPIRE_TIME"), ("d,\"e", "WEAK_SECRET")];
    let expected = expected.map(|(id, reason)| ((String::new(), id.to_owned()), reason.to_owned()));
    assert_eq!(refused_rows(&file), BTreeMap::from(expected));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("the file").permissions());
    assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
}
