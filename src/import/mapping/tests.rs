//! Mapping files: what a good one says, and that every problem of a bad one is told with its line, table and field.
//! The examples of the documentation are read as they are. Invariant: no test needs a source.

use super::*;

const SMALL: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
secret = "api_key"
"#;

fn problems(text: &str) -> Vec<String> {
    match Mapping::parse(text) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems().to_vec(),
    }
}

/// The small mapping with these lines at its end.
fn with(rest: &str) -> String {
    format!("{SMALL}{rest}\n")
}

/// The one problem of the small mapping with these lines.
fn problem_with(rest: &str) -> String {
    let problems = problems(&with(rest));
    assert_eq!(problems.len(), 1, "{rest}: {problems:?}");
    problems.concat()
}

#[test]
fn a_small_mapping_has_defaults() {
    let mapping = Mapping::parse(SMALL).unwrap();
    assert_eq!(mapping.source, "portal");
    assert_eq!(mapping.organization.as_deref(), Some("acme"));
    assert_eq!(mapping.time_zone, UtcOffset::UTC);
    assert_eq!(mapping.statement_timeout, Duration::from_secs(30));
    let [keys] = mapping.keys.as_slice() else { panic!("{mapping:?}") };
    assert_eq!((keys.table.name.as_str(), keys.table.id.as_str()), ("clients", "id"));
    assert_eq!(keys.table.columns, BTreeMap::from([(Field::Secret, "api_key".to_owned())]));
    assert!(keys.table.values.is_empty() && keys.table.words.is_empty() && keys.drop.is_empty());
    assert!(mapping.organizations.is_none() && mapping.usage.is_empty() && mapping.limits.is_empty());
}

#[test]
fn every_part_of_a_mapping_is_read() {
    let text = with(
        r#"
name = "title"
[keys.values]
name = "imported"
environment = "live"
scopes = ["invoices:read", "users:*"]
metadata = { team = "billing", seats = 3 }
enabled = true
credits-remaining = 100
expire-time = 2030-01-01T00:00:00Z
[keys.words]
status = { Live = "active", killed = "revoked" }
revocation-reason = { stolen = "key-compromise" }
[[keys.limits]]
name = "burst"
limit = "per_second"
window = "1s"
[[keys.limits]]
name = "requests"
limit = "per_day"
window = "1d"
[keys.contract]
drop = ["api_key"]
"#,
    );
    let top = "time-zone = \"-05:30\"\nstatement-timeout = \"500ms\"\n";
    let mapping = Mapping::parse(&format!("{top}{text}")).unwrap();
    assert_eq!(mapping.time_zone.whole_seconds(), -19_800);
    assert_eq!(mapping.statement_timeout, Duration::from_millis(500));
    let keys = &mapping.keys[0];
    let value = |field| keys.table.values[&field].as_str();
    assert_eq!(value(Field::Scopes), r#"["invoices:read","users:*"]"#);
    assert_eq!(value(Field::Metadata), r#"{"seats":3,"team":"billing"}"#);
    assert_eq!((value(Field::Enabled), value(Field::CreditsRemaining)), ("true", "100"));
    assert_eq!(value(Field::ExpireTime), "2030-01-01T00:00:00Z");
    assert_eq!(keys.table.words[&Field::Status]["live"], "active", "words are compared in lower case");
    let limits: Vec<(&str, &str, u64)> = keys
        .table
        .limits
        .iter()
        .map(|limit| (limit.name.as_str(), limit.column.as_str(), limit.window.as_secs()))
        .collect();
    assert_eq!(limits, [("burst", "per_second", 1), ("requests", "per_day", 86_400)]);
    assert_eq!(keys.drop, ["api_key"]);
}

#[test]
fn a_file_has_one_table_without_a_name() {
    let text = "source = \"x\"\norganization = \"acme\"\n[[keys]]\n[keys.columns]\nsecret = \"key\"\n";
    let mapping = Mapping::parse(text).unwrap();
    let table = &mapping.keys[0].table;
    assert_eq!((table.name.as_str(), table.id.as_str()), ("", ""), "rows are told apart by their lines");
    let two = format!("{text}[[usage]]\n[usage.columns]\nkey = \"k\"\ntime = \"t\"\n");
    assert!(problems(&two).concat().contains("name their table"), "{:?}", problems(&two));
}

#[test]
fn usage_and_limits_refer_to_the_first_table_of_keys_unless_they_say_which() {
    let rest = r#"
[[keys]]
table = "more"
id = "id"
[keys.columns]
secret = "key"
[[usage]]
table = "usage"
id = "id"
[usage.columns]
key = "k"
time = "t"
[[limits]]
table = "windows"
id = "id"
keys = "more"
[limits.columns]
key = "k"
window-start = "a"
window-end = "b"
count = "n"
[limits.values]
name = "requests"
"#;
    let mapping = Mapping::parse(&with(rest)).unwrap();
    assert_eq!(mapping.usage[0].keys.as_deref(), Some("clients"));
    assert_eq!(mapping.limits[0].keys.as_deref(), Some("more"));
    let names: Vec<&str> = mapping.tables().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["clients", "more", "usage", "windows"]);
    let other = problem_with(&rest.replace("keys = \"more\"", "keys = \"others\""));
    assert_eq!(other, "line 25: [[limits]] \"windows\", keys: must be the table of one of [[keys]]");
}

#[test]
fn every_problem_is_told_with_its_line_table_and_field() {
    let text = r#"
sourc = "portal"
time-zone = "Europe/Berlin"

[[keys]]
table = "clients"
[keys.columns]
api_key = "key"
owner_id = "owner"
name = ""

[keys.values]
environment = "moon"
"#;
    let expected = [
        "line 1: source: must be given",
        "line 1: organization: must be given, or a column or value organization in every table of keys",
        "line 2: sourc: is not a name that is known here",
        "line 3: time-zone: must be an offset such as +02:00 or -05:30",
        "line 5: [[keys]] \"clients\", id: must be given",
        "line 7: [[keys]] \"clients\", columns: must have secret, sha256-hex, sha256-base64, bcrypt, argon2 or key-id",
        "line 8: [[keys]] \"clients\", columns.api_key: is not a name that is known here",
        "line 9: [[keys]] \"clients\", columns.owner_id: is not a name that is known here (did you mean owner-id?)",
        "line 10: [[keys]] \"clients\", columns.name: must be text, not blank and without control characters",
        "line 13: [[keys]] \"clients\", values.environment: must be live or test; name other words under \
         words.environment",
    ];
    assert_eq!(problems(text), expected);
    let shown = Mapping::parse(text).unwrap_err().to_string();
    assert!(shown.starts_with("the mapping file is not usable\n  line 1: "), "{shown}");
}

#[test]
fn what_is_not_toml_is_told_alone() {
    let found = problems("source = \"portal\nother = 1");
    assert!(found.iter().all(|problem| problem.contains("not TOML")), "{found:?}");
    assert!(!found.is_empty());
}

#[test]
fn constants_words_and_limits_are_checked_before_any_row() {
    for (rest, problem) in [
        ("[keys.values]\nsecret = \"x\"", "values.secret: is not a name that is known here"),
        ("[keys.values]\nkey-id = \"x\"", "values.key-id: is not a name that is known here"),
        ("[keys.values]\nstatus = \"frozen\"", "values.status: must be a state"),
        ("[keys.values]\nexpire-time = \"soon\"", "values.expire-time: must be a time"),
        ("[keys.values]\norganization = \"system\"", "values.organization: must not be the organization `system`"),
        ("[keys.values]\nname = [1.5]", "values.name: must be text"),
        ("[keys.words]\nstatus = { frozen = \"cold\" }", "words.status.frozen: must be a state"),
        ("[keys.words]\nstatus = { a = \"active\", A = \"revoked\" }", "must stand here once"),
        ("[keys.words]\nname = { a = \"b\" }", "words.name: is not a name that is known here"),
        ("[[keys.limits]]\nname = \"A\"\nlimit = \"n\"\nwindow = \"1m\"", "limits[1].name: must have a name"),
        ("[[keys.limits]]\nname = \"a\"\nlimit = \"n\"\nwindow = \"1\"", "limits[1].window: must be a span"),
        ("[[keys.limits]]\nname = \"a\"\nlimit = \"n\"\nwindow = \"1ms\"", "limits[1].name: must have a window"),
        ("[[keys.limits]]\nname = \"a\"\nwindow = \"1m\"", "limits[1].limit: must be given"),
        ("[keys.contract]\ndrop = [\"name\"]", "contract.drop: must name columns of this table that hold secrets"),
        ("[keys.contract]\ndrop = \"api_key\"", "contract.drop: must be a list of texts"),
        ("[[organizations]]\ntable = \"o\"\nid = \"id\"", "[[organizations]] \"o\", columns: must be there"),
        ("[[keys]]\ntable = \"clients\"\nid = \"id\"\ncolumns = { secret = \"b\" }", "must stand in the mapping once"),
        ("[[keys]]\ntable = \"a.b.c\"\nid = \"id\"\ncolumns = { secret = \"b\" }", "must be written table or schema"),
    ] {
        let found = problem_with(rest);
        assert!(found.contains(problem), "{rest}: {found}");
    }
}

#[test]
fn a_column_of_secrets_that_tells_rows_apart_is_not_dropped() {
    let text = SMALL.replace("id = \"id\"", "id = \"api_key\"") + "[keys.contract]\ndrop = [\"api_key\"]\n";
    assert!(problems(&text).concat().contains("must not name the column of id"));
}

#[test]
fn what_holds_secrets_or_hashes_is_no_id() {
    let words = "no column that holds secrets or hashes";
    assert!(problems(&SMALL.replace("id = \"id\"", "id = \"api_key\"")).concat().contains(words));
    assert!(problem_with("key-id = \"api_key\"").contains(words));
    assert!(problem_with("sha256-hex = \"hash\"\nkey-id = \"hash\"").contains(words));
}

#[test]
fn the_organization_is_the_mappings_or_each_tables_own() {
    let without = SMALL.replace("organization = \"acme\"\n", "");
    assert!(problems(&without).concat().contains("organization: must be given"));
    assert!(problems(&format!("{without}organization = \"tenant\"\n")).is_empty());
    assert!(problems(&format!("{without}[keys.values]\norganization = \"acme\"\n")).is_empty());
    for system in ["system", "00000000-0000-0000-0000-000000000001"] {
        let text = SMALL.replace("\"acme\"", &format!("{system:?}"));
        assert!(problems(&text).concat().contains("takes no keys from elsewhere"));
    }
}

#[test]
fn the_examples_of_the_documentation_are_good() {
    let ownership = Mapping::parse(include_str!("../../../docs/migrating/1-ownership.toml")).unwrap();
    let drops: Vec<(&str, &[String])> =
        ownership.keys.iter().map(|keys| (keys.table.name.as_str(), keys.drop.as_slice())).collect();
    let plaintext = ["owner_api_key".to_owned()];
    assert_eq!(drops, [("sessions", plaintext.as_slice()), ("assistants", plaintext.as_slice())]);

    let clients = Mapping::parse(include_str!("../../../docs/migrating/2-bcrypt-clients.toml")).unwrap();
    assert_eq!(clients.keys[0].table.columns[&Field::Bcrypt], "api_key_hash");
    assert_eq!(clients.keys[0].table.columns[&Field::LookUpId], "key_prefix");

    let pairs = Mapping::parse(include_str!("../../../docs/migrating/3-id-and-secret.toml")).unwrap();
    assert_eq!(pairs.keys[0].table.columns[&Field::KeyId], pairs.keys[0].table.id);

    let organizations = Mapping::parse(include_str!("../../../docs/migrating/4-organizations.toml")).unwrap();
    let names: Vec<&str> = organizations.tables().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["organizations", "api_keys", "api_key_usage", "rate_limit_tracking"]);
    assert_eq!(organizations.limits[0].quota.as_deref(), Some("monthly"));
    assert_eq!(organizations.usage[0].keys.as_deref(), Some("api_keys"));
}
