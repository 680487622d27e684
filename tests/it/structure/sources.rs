//! The sources of this repository as text: found, stripped of comments and string literals, and asked for what they
//! import. Knows no rule. A simple reader is enough, since rustfmt has already made all files alike.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::harness::tools::repository;

/// One file.
pub struct Source {
    /// From the repository's root, with slashes.
    pub path: String,
    pub text: String,
}

/// The `.rs` files of these folders and files, in order.
pub fn sources(places: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for place in places {
        gather(&repository().join(place), &mut found);
    }
    assert!(!found.is_empty(), "{places:?}");
    found
}

fn gather(place: &Path, found: &mut Vec<Source>) {
    if place.is_dir() {
        let entries = fs::read_dir(place).expect("a folder that can be listed");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        for path in &paths {
            gather(path, found);
        }
    } else if place.extension().is_some_and(|extension| extension == "rs") {
        let path = place.strip_prefix(repository()).expect("within the repository").to_string_lossy().into_owned();
        found.push(Source { path, text: fs::read_to_string(place).expect("a file of text") });
    }
}

/// A document of the repository.
pub fn document(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of all functions, tests among them, of the service and of the tests.
pub fn tests_and_functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources(&["src", "tests/it", "migrations/src"]) {
        for part in source.text.split("fn ").skip(1) {
            names.insert(part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

impl Source {
    /// The module of `src/` that the file belongs to, such as `grpc`.
    pub fn module(&self) -> String {
        let within = self.path.strip_prefix("src/").unwrap_or(&self.path);
        within.split(['/', '.']).next().unwrap_or_default().to_owned()
    }

    /// The text without comments and without what stands in string literals.
    pub fn code(&self) -> String {
        let mut code = String::new();
        for line in self.text.lines() {
            let (mut in_string, mut escaped, mut previous) = (false, false, ' ');
            for letter in line.chars() {
                if in_string {
                    in_string = escaped || letter != '"';
                    escaped = letter == '\\' && !escaped;
                } else if letter == '/' && previous == '/' {
                    code.pop();
                    break;
                } else if letter == '"' && previous != '\'' {
                    in_string = true;
                } else {
                    code.push(letter);
                }
                previous = letter;
            }
            code.push('\n');
        }
        code
    }

    /// The modules of this crate that are named after `crate::` or `keystead::`, in groups too.
    pub fn crate_imports(&self) -> BTreeSet<String> {
        let code = self.code();
        let mut modules = BTreeSet::new();
        for root in ["crate::", "keystead::"] {
            for (at, _) in code.match_indices(root) {
                let before = code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let rest = &code[at + root.len()..];
                match rest.strip_prefix('{') {
                    Some(group) => modules.extend(heads_of_group(group)),
                    None => modules.extend([word(rest)]),
                }
            }
        }
        modules.retain(|module| !module.is_empty());
        modules
    }
}

/// The first word of each item of a group, which begins behind its opening brace.
fn heads_of_group(group: &str) -> Vec<String> {
    let (mut heads, mut depth, mut item) = (Vec::new(), 0, String::new());
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(word(std::mem::take(&mut item).trim())),
            letter if depth == 0 => item.push(letter),
            _ => {}
        }
    }
    heads.push(word(item.trim()));
    heads
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Whether code names a crate: as the head of a path, or in `use NAME;`.
pub fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].trim_end_matches(' ').chars().next_back();
        let alone = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        let rest = &code[at + name.len()..];
        let path = rest.starts_with("::") || (rest.starts_with(';') && code[..at].ends_with("use "));
        alone && path && before != Some('.')
    })
}
