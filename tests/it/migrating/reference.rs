//! The page and the reference of the mapping file, held against the code: blocks against tests, words of refusal,
//! names of the mapping, examples, metrics and links.

use std::collections::BTreeSet;
use std::fs;

use keystead::domain::import::{GivenScheme, Note, Refusal};
use keystead::import::Mapping;

use super::PAGE;
use crate::harness::page::Page;
use crate::harness::tools::repository;
use crate::structure::document;

const REFERENCE: Page = Page("docs/migrating/mapping.md");

#[test]
fn every_block_of_commands_has_a_name_of_its_own_and_a_test_that_runs_it() {
    let folder = fs::read_dir(repository().join("tests/it/migrating")).expect("the folder of the tests");
    let files = folder.map(|entry| fs::read_to_string(entry.expect("an entry").path()).expect("a file of text"));
    let tests = document("tests/it/migrating.rs");
    let tests: String = files.chain([tests]).collect();
    let blocks = PAGE.blocks();
    let mut names = BTreeSet::new();
    for block in &blocks {
        assert!(["sh", "toml", "text", "promql"].contains(&block.language.as_str()), "{}", block.text);
        if block.language == "sh" || block.language == "toml" {
            assert!(!block.name.is_empty(), "a block without a name: {}", block.text);
            assert!(tests.contains(&format!("\"{}\"", block.name)), "no test runs the block {}", block.name);
            assert!(names.insert(&block.name), "two blocks are called {}", block.name);
        }
    }
    assert!(names.len() > 20, "{names:?}");
    let strays: Vec<String> = REFERENCE.blocks().into_iter().map(|block| block.text).collect();
    assert!(strays.is_empty(), "blocks that nothing runs: {strays:?}");
}

#[test]
fn every_word_of_refusal_every_note_and_every_scheme_stands_in_the_page() {
    let page = PAGE.text();
    let words = Refusal::ALL.iter().map(|word| word.as_str()).chain(Note::ALL.iter().map(|word| word.as_str()));
    let words = words.chain(GivenScheme::ALL.iter().map(|word| word.as_str()));
    let missing: Vec<&str> = words.filter(|word| !page.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The rows of the table below a heading of the reference: the cells of each.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let page = REFERENCE.text();
    let below = page.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no heading {heading}"));
    let section = below.split("\n## ").next().expect("a section");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The words in backticks of a cell.
fn words(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The sections of the reference, what a table of each is called, and the columns that it cannot do without.
const TABLES: &[(&str, &str, &[&str])] = &[
    ("Organizations", "organizations", &[]),
    ("Keys", "keys", &["sha256-hex"]),
    ("Usage", "usage", &["key", "time"]),
    ("Limits", "limits", &["key", "name", "window-start", "window-end", "count"]),
];

/// A mapping with one table, in which these names are columns, and what else.
fn mapping(table: &str, columns: &BTreeSet<&str>, rest: &str) -> String {
    let columns: Vec<String> = columns.iter().map(|name| format!("{name} = \"column_of_{name}\"\n")).collect();
    format!(
        "source = \"portal\"\norganization = \"acme\"\n\n[[{table}]]\ntable = \"t\"\nid = \"id\"\n\
         [{table}.columns]\n{}{rest}",
        columns.concat()
    )
}

/// A constant that may stand under a name.
fn sample(name: &str) -> &'static str {
    match name {
        "environment" => "live",
        "plan" => "pro",
        "status" => "disabled",
        "active" | "enabled" | "disabled" => "true",
        "revocation-reason" => "superseded",
        "scopes" => "invoices:read",
        "metadata" => "{}",
        "allowed-cidrs" => "10.0.0.0/8",
        "organization" | "name" | "owner-id" | "prefix" | "secret-prefix" | "endpoint" | "method" | "user-agent" => {
            "pk"
        }
        "revoked-by" | "revocation-note" => "ann",
        name if name.ends_with("-time") => "2026-01-31T12:00:00Z",
        _ => "200",
    }
}

#[test]
fn every_name_of_the_reference_is_one_of_the_mapping_and_every_name_of_the_mapping_is_in_it() {
    let mut named = BTreeSet::new();
    for (heading, table, base) in TABLES {
        let parse = |columns: &[&str], rest: &str| {
            let text = mapping(table, &base.iter().chain(columns).copied().collect(), rest);
            Mapping::parse(&text).map(|_| ()).map_err(|error| format!("{error}\n{text}"))
        };
        for row in rows(heading) {
            let [_, words_of, also, ..] = row.as_slice() else { panic!("{row:?}") };
            for name in words(words_of) {
                let (column, sample) = ([name.as_str()], sample(&name));
                parse(&column, "").unwrap_or_else(|error| panic!("{heading}, {name}: {error}"));
                let value = parse(&[], &format!("[{table}.values]\n{name} = \"{sample}\"\n"));
                assert_eq!(value.is_ok(), also.contains("values"), "{heading}, {name} under values: {value:?}");
                let word = parse(&column, &format!("[{table}.words]\n{name} = {{ w = \"{sample}\" }}\n"));
                assert_eq!(word.is_ok(), also.contains("words"), "{heading}, {name} under words: {word:?}");
                named.insert(name);
            }
        }
    }
    assert_eq!(named, fields());
}

/// Every name of a field, from the list in the source.
fn fields() -> BTreeSet<String> {
    let source = document("src/import/mapping/field.rs");
    let list = source.split("\nfields! {\n").nth(1).and_then(|rest| rest.split("\n}\n").next()).expect("the list");
    let lines = list.lines().filter_map(|line| line.split_once(" = \""));
    lines.filter_map(|(_, rest)| rest.split('"').next()).map(str::to_owned).collect()
}

/// A mapping in which every name stands that is no name of a field.
const FRAME: &str = r#"
source = "portal"
organization = "acme"
time-zone = "-05:30"
statement-timeout = "500ms"

[[organizations]]
table = "tenants"
id = "id"
[organizations.columns]
slug = "slug"
plan = "plan"
[organizations.values]
active = "true"
[organizations.words]
plan = { starter = "free" }
[[organizations.limits]]
name = "requests"
limit = "per_minute"
window = "1m"

[[keys]]
table = "billing.api_keys"
id = "id"
[keys.columns]
secret = "api_key"
[keys.values]
environment = "live"
[[keys.limits]]
name = "requests"
limit = "per_minute"
window = "1m"
[keys.contract]
drop = ["api_key"]

[[usage]]
table = "api_key_usage"
keys = "billing.api_keys"
id = "id"
[usage.columns]
key = "api_key_id"
time = "called_at"

[[limits]]
table = "windows"
keys = "billing.api_keys"
quota = "monthly"
id = "id"
[limits.columns]
key = "api_key_id"
name = "limit_name"
window-start = "window_start"
window-end = "window_end"
count = "requests"
"#;

#[test]
fn the_names_around_the_tables_and_every_example_are_taken() {
    Mapping::parse(FRAME).unwrap_or_else(|error| panic!("{error}"));
    for heading in ["At the top", "In every table"] {
        for row in rows(heading) {
            for name in words(&row[1]) {
                let known = FRAME.contains(&format!("\n{name} = ")) || FRAME.contains(&format!(".{name}]\n"));
                assert!(known, "{heading}: {name}");
            }
        }
    }
    let folder = repository().join("docs/migrating");
    let files = fs::read_dir(&folder).expect("the folder of the examples").map(|entry| entry.expect("an entry").path());
    let examples: BTreeSet<_> = files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    assert_eq!(examples.len(), 4, "{examples:?}");
    let page = PAGE.text();
    for path in examples {
        let text = fs::read_to_string(&path).expect("a file of text");
        Mapping::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_name().expect("a name").to_string_lossy();
        assert!(page.contains(&format!("(migrating/{name})")), "{name} is not in the page");
    }
    Mapping::parse(&PAGE.block("mapping")).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_metric_of_the_page_is_one_that_is_documented() {
    let names = |text: &str| -> BTreeSet<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with("keystead_")).map(str::to_owned).collect()
    };
    let known = names(&document("docs/operations.md"));
    // The beginning of a pattern, a role, and the buckets of a histogram.
    let others = ["keystead_", "keystead_reader", "keystead_call_duration_seconds_bucket"];
    let unknown: Vec<String> = names(&PAGE.text())
        .into_iter()
        .filter(|name| !known.contains(name) && !others.contains(&name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// The anchors of a page's headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-').collect::<String>();
    headings.map(|text| plain(text).to_lowercase().replace(' ', "-")).collect()
}

/// A path of the repository without `..`; there is such a file.
fn resolved(path: &str) -> String {
    let root = repository().canonicalize().expect("the repository");
    let file = root.join(path).canonicalize().unwrap_or_else(|error| panic!("{path}: {error}"));
    file.strip_prefix(&root).expect("within the repository").to_string_lossy().into_owned()
}

#[test]
fn every_link_to_a_heading_leads_to_one() {
    let pages = ["docs/migrating.md", "docs/migrating/mapping.md", "docs/operations.md", "README.md"];
    for page in [PAGE, REFERENCE] {
        let folder = page.0.rsplit_once('/').map_or("", |(folder, _)| folder);
        for link in page.text().split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.0.to_owned() } else { resolved(&format!("{folder}/{path}")) };
            if !anchor.is_empty() {
                assert!(pages.contains(&target.as_str()), "{link}");
                assert!(anchors(&document(&target)).contains(anchor), "{link} in {}", page.0);
            }
        }
    }
}
