//! The structure that `docs/architecture.md` describes, checked by reading the sources as text, since modules of one
//! crate cannot check it themselves: who imports what, which crate stays where, that every file opens with a header and
//! stays small, and that README and `docs/architecture.md` name every rpc and only tests that exist.
//! `sources` reads the files.

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use crate::callers::PERMISSIONS;
use crate::harness::rpcs;
pub use sources::document;
use sources::{Source, sources, tests_and_functions};

/// Lines of a file at the most. Smaller files are read whole.
const LINES_MAX: usize = 400;

/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] = &[];

/// What each folder of `src/` may import of this crate, besides itself. `clock` and `random` are the two doors to the
/// world that everything behind the domain takes its moments and bytes from.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("clock", &["domain"]),
    ("random", &[]),
    ("proto", &[]),
    ("store", &["domain"]),
    ("verify", &["domain", "store", "clock", "random"]),
    ("limits", &["domain", "store", "clock", "random", "config"]),
    ("usage", &["domain", "store", "random"]),
    // Counts what happens.
    ("service", &["domain", "store", "verify", "limits", "usage", "telemetry", "clock", "random"]),
    // Rows of a source go through the use cases; how far they have come stands in the store.
    ("import", &["config", "domain", "store", "service", "clock", "random"]),
    // `proto` is the wire itself.
    ("grpc", &["service", "domain", "telemetry", "proto", "clock", "random"]),
    ("config", &[]),
    ("telemetry", &["config", "domain"]),
    // The client of a running service: its messages, and the functions with which it recomputes the audit chain.
    ("cli", &["app", "config", "telemetry", "proto", "domain", "import"]),
    // What runs in the background is a part of the composition root, in a file of its own.
    ("jobs", &["service", "store", "usage", "domain", "random"]),
    ("main", &["cli"]),
];

/// Files that see everything: the composition root, and the map.
const SEES_EVERYTHING: &[&str] = &["app", "lib"];

#[test]
fn each_module_imports_only_what_the_design_lets_it_see() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut faults = Vec::new();
    for source in sources(&["src"]) {
        let module = source.module();
        if SEES_EVERYTHING.contains(&module.as_str()) {
            continue;
        }
        let Some(may) = allowed.get(module.as_str()) else {
            faults.push(format!("{}: module {module} is not in the table of imports", source.path));
            continue;
        };
        for imported in source.crate_imports() {
            if imported != module && !may.contains(&imported.as_str()) {
                faults.push(format!("{} imports crate::{imported}", source.path));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_check_of_imports_sees_every_way_to_write_one() {
    let text = "use crate::{\n    clock::Clock,\n    domain::{ids::{KeyId}, time},\n    store,\n};\n\
                // crate::grpc in a comment\nfn f() { crate::service::g(\"crate::app\"); keystead::cli::run() }\n";
    let source = Source { path: "src/x.rs".to_owned(), text: text.to_owned() };
    let seen: Vec<String> = source.crate_imports().into_iter().collect();
    assert_eq!(seen, ["cli", "clock", "domain", "service", "store"]);
}

/// Names of the outside world, and the places that may know them.
const STAYS_IN: &[(&str, &[&str], &str)] = &[
    ("tonic", &["src/grpc/", "src/proto.rs", "src/cli/"], "the wire, and the command line's client"),
    ("tonic_health", &["src/grpc/", "src/cli/"], "the same"),
    ("tonic_types", &["src/grpc/", "src/cli/"], "the same"),
    ("tonic_reflection", &["src/grpc/"], "the same"),
    ("prost", &["src/grpc/", "src/proto.rs", "src/cli/"], "the same"),
    ("prost_types", &["src/grpc/", "src/cli/"], "the same"),
    ("sea_orm", &["src/store/", "migrations/"], "the database"),
    ("sea_orm_migration", &["migrations/"], "the database"),
    ("sqlx", &["src/store/", "src/import/source/"], "the database, and sources of an import"),
    ("keystead_migrations", &["src/store/"], "the database"),
    ("clap", &["src/cli/", "src/config/"], "what the operator says"),
    ("redis", &["src/limits/redis.rs", "src/verify/redis.rs"], "the two adapters"),
    ("rand", &["src/random.rs"], "one door to randomness"),
    ("moka", &["src/verify/"], "the cache"),
    ("memmap2", &["src/usage/mapping.rs"], "the one place with unsafe code"),
    ("prometheus_client", &["src/telemetry/"], "metrics"),
];

/// Calls, and the one place that may make them.
const CALLED_IN: &[(&str, &[&str])] = &[
    ("std::env", &["src/cli/", "src/config/"]),
    ("env::var", &["src/cli/", "src/config/"]),
    ("SystemTime::now", &["src/clock.rs"]),
    ("OffsetDateTime::now_utc", &[]),
    ("Uuid::now_v7", &[]),
    ("Uuid::new_v4", &[]),
    ("println!", &[]),
    ("eprintln!", &[]),
    ("dbg!", &[]),
    ("todo!", &[]),
    ("unimplemented!", &[]),
];

fn is_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| if place.ends_with('/') { path.starts_with(place) } else { path == *place })
}

#[test]
fn each_crate_and_each_call_to_the_outside_world_stays_in_its_place() {
    let mut faults = Vec::new();
    for source in sources(&["src", "migrations/src"]) {
        let code = source.code();
        for (name, places, why) in STAYS_IN {
            if sources::names_crate(&code, name) && !is_in(&source.path, places) {
                faults.push(format!("{} uses {name}, which stays in {places:?}: {why}", source.path));
            }
        }
        for (call, places) in CALLED_IN {
            if code.contains(call) && !is_in(&source.path, places) {
                faults.push(format!("{} uses {call}, which stays in {places:?}", source.path));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_migrations_import_nothing_of_the_service() {
    for source in sources(&["migrations/src"]) {
        assert!(!source.code().contains("keystead::"), "{}", source.path);
    }
}

#[test]
fn every_file_opens_with_a_header() {
    let all = sources(&["src", "migrations/src", "tests/it", "benches", "build.rs"]);
    assert!(all.len() > 100, "the files are read: {}", all.len());
    let without: Vec<&str> = all
        .iter()
        .filter(|source| !source.text.starts_with("//! ") && source.path != "tests/it/harness/postgres.sh")
        .map(|source| source.path.as_str())
        .collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn no_file_is_too_long_to_be_read_whole() {
    let exceptions: BTreeMap<&str, &str> = LONG_FILES.iter().copied().collect();
    let mut faults = Vec::new();
    for source in sources(&["src", "migrations/src", "tests/it", "benches", "build.rs"]) {
        let lines = source.text.lines().count();
        let excepted = exceptions.contains_key(source.path.as_str());
        if lines > LINES_MAX && !excepted {
            faults.push(format!("{} has {lines} lines", source.path));
        }
        if lines <= LINES_MAX && excepted {
            faults.push(format!("{} needs no exception any more", source.path));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_use_case_has_a_file_of_the_rpcs_name() {
    let files: BTreeSet<String> = sources(&["src/service"]).into_iter().map(|source| source.path).collect();
    for rpc in rpcs::rpcs() {
        let method = rpc.name.split('/').next_back().unwrap_or_default();
        let name = match method {
            // One flag, set both ways.
            "ActivateOrganization" | "DeactivateOrganization" => "set_organization_active".to_owned(),
            method => snake_case(method),
        };
        let built = !crate::callers::NOT_BUILT.contains(&rpc.name.as_str());
        let path = format!("src/service/{name}.rs");
        assert_eq!(files.contains(&path), built, "{path}");
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// The lines of a document that are rows of a table.
fn rows(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| line.starts_with('|')).collect()
}

#[test]
fn the_readme_names_every_rpc_setting_and_code_in_its_tables() {
    let readme = document("README.md");
    let rows = rows(&readme);
    let in_a_row = |word: &str| rows.iter().any(|row| row.contains(&format!("`{word}`")));
    for rpc in rpcs::rpcs() {
        let method = rpc.name.split('/').next_back().unwrap_or_default();
        assert!(in_a_row(method), "{method} is in no table of README.md");
    }
    for code in CODES {
        assert!(in_a_row(code), "{code} is in no table of README.md");
    }
    let help = crate::harness::cli::run(
        {
            let mut command = crate::harness::cli::bare();
            command.args(["serve", "--help"]);
            command
        },
        "",
    );
    let flags: BTreeSet<&str> = help.stdout.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(flags.len() > 20, "{help:?}");
    for flag in flags {
        let flag = flag.trim_end_matches([',', '.', '=', ')', ':', ';']).split(['=', '[']).next().unwrap_or_default();
        if !["--help", "--version"].contains(&flag) {
            assert!(in_a_row(flag), "{flag} is in no table of README.md");
        }
    }
}

/// The codes of the table of errors.
const CODES: &[&str] = &[
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "UNAVAILABLE",
    "INTERNAL",
];

/// The outcomes, in the order in which they are decided.
const OUTCOMES: &[&str] = &[
    "NOT_FOUND",
    "REVOKED",
    "DISABLED",
    "EXPIRED",
    "ORGANIZATION_INACTIVE",
    "ADDRESS_NOT_ALLOWED",
    "INSUFFICIENT_SCOPE",
    "RATE_LIMITED",
    "QUOTA_EXCEEDED",
    "CREDITS_EXHAUSTED",
    "VALID",
];

/// The tests that a row names: words in backticks with `::` in them, such as `callers::no_rpc_answers`.
fn tests_named(row: &str) -> Vec<String> {
    row.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).map(str::to_owned).collect()
}

#[test]
fn every_test_that_the_architecture_names_exists() {
    let document = document("docs/architecture.md");
    let known = tests_and_functions();
    let mut named = 0;
    for row in rows(&document) {
        for test in tests_named(row) {
            let function = test.rsplit("::").next().unwrap_or_default();
            assert!(known.contains(function), "docs/architecture.md names {test}, which does not exist");
            named += 1;
        }
    }
    assert!(named >= 40, "docs/architecture.md names {named} tests only");
}

#[test]
fn every_row_of_the_contract_and_of_the_permissions_has_a_test_in_the_architecture() {
    let document = document("docs/architecture.md");
    let shown: Vec<&str> = rows(&document).into_iter().filter(|row| !tests_named(row).is_empty()).collect();
    let methods = rpcs::rpcs().into_iter().filter_map(|rpc| rpc.name.split('/').next_back().map(str::to_owned));
    let permissions = PERMISSIONS.iter().map(|(permission, _)| (*permission).to_owned());
    let words = CODES.iter().chain(OUTCOMES).map(ToString::to_string);
    let missing: Vec<String> = methods
        .chain(permissions)
        .chain(words)
        .filter(|word| !shown.iter().any(|row| row.contains(word.as_str())))
        .collect();
    assert!(missing.is_empty(), "no row of docs/architecture.md names a test for {missing:?}");
}
