//! The parts of a mapping file, from the document to `Mapping`: names, columns, constants, words and limits.
//! Every constant is read once as it will be for every row, so that one that cannot be read is a problem of the mapping
//! and not of each row. Must not look at a source: whether a column exists is for `Source::check`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use time::UtcOffset;

use super::{
    KeyTable, LimitColumn, LimitTable, Mapping, OrganizationTable, Table, UsageTable,
    field::{self, Field, Fields},
    reader::{Part, Problems, constant},
    spans,
};
use crate::{
    domain::{Invalid, limits::RateLimit},
    import::values,
};

/// The names at the top of the file.
const TOP: [&str; 8] =
    ["source", "organization", "time-zone", "statement-timeout", "organizations", "keys", "usage", "limits"];
/// The names in each kind of table.
const OF_ORGANIZATIONS: [&str; 6] = ["table", "id", "columns", "values", "words", "limits"];
const OF_KEYS: [&str; 7] = ["table", "id", "columns", "values", "words", "limits", "contract"];
const OF_USAGE: [&str; 5] = ["table", "id", "columns", "values", "keys"];
const OF_LIMITS: [&str; 6] = ["table", "id", "columns", "values", "keys", "quota"];
/// The longest label of a source, in characters.
const SOURCE_LENGTH_MAX: usize = 64;
/// The longest statement where the mapping names none.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads the whole document. What could not be read stands in the problems; the answer counts only where there is none.
pub(super) fn read(top: &Part<'_>, problems: &mut Problems<'_>) -> Mapping {
    top.check_names(problems, &TOP);
    let source = top.required_text(problems, "source");
    keep(top, problems, "source", check_source(&source));
    let organization = top.text(problems, "organization");
    if let Some(organization) = &organization {
        keep(top, problems, "organization", values::check_organization(organization));
    }
    let zone = top.text(problems, "time-zone");
    let is_time_zone_stated = zone.is_some();
    let zone = zone.map_or(Ok(UtcOffset::UTC), |text| spans::parse_zone(&text));
    let zone = keep(top, problems, "time-zone", zone).unwrap_or(UtcOffset::UTC);
    let timeout = top.text(problems, "statement-timeout");
    let timeout = timeout.map_or(Ok(STATEMENT_TIMEOUT), |text| spans::parse_timeout(&text));
    let statement_timeout = keep(top, problems, "statement-timeout", timeout).unwrap_or(STATEMENT_TIMEOUT);
    let organizations: Vec<OrganizationTable> =
        top.tables(problems, "organizations").iter().map(|part| read_organizations(part, zone, problems)).collect();
    if organizations.len() > 1 {
        top.note(problems, "organizations", "must be one table at the most");
    }
    let keys: Vec<KeyTable> = top.tables(problems, "keys").iter().map(|part| read_keys(part, zone, problems)).collect();
    let usage: Vec<UsageTable> =
        top.tables(problems, "usage").iter().map(|part| read_usage(part, zone, &keys, problems)).collect();
    let limits: Vec<LimitTable> =
        top.tables(problems, "limits").iter().map(|part| read_limits(part, zone, &keys, problems)).collect();
    let mapping = Mapping {
        source,
        organization,
        time_zone: zone,
        is_time_zone_stated,
        statement_timeout,
        organizations: organizations.into_iter().next(),
        keys,
        usage,
        limits,
    };
    check_owners(top, problems, &mapping);
    check_zone(top, problems, &mapping);
    check_table_names(top, problems, &mapping);
    mapping
}

/// Keys whose rows name no organization need one that the mapping names.
fn check_owners(top: &Part<'_>, problems: &mut Problems<'_>, mapping: &Mapping) {
    let owned = |table: &Table| {
        table.columns.contains_key(&Field::Organization) || table.values.contains_key(&Field::Organization)
    };
    if mapping.organization.is_none() && !mapping.keys.iter().all(|keys| owned(&keys.table)) {
        top.note(problems, "organization", "must be given, or a column or value organization in every table of keys");
    }
}

/// When keys end must not depend on a zone that nobody has stated.
fn check_zone(top: &Part<'_>, problems: &mut Problems<'_>, mapping: &Mapping) {
    let ends = mapping.keys.iter().filter_map(|keys| keys.table.values.get(&Field::ExpireTime));
    if !mapping.is_time_zone_stated && ends.into_iter().any(|end| !values::states_zone(end.trim())) {
        top.note(problems, "time-zone", "must be given where a value expire-time states no zone");
    }
}

/// A table is read once: how far it has come is remembered by its name. Without names there is one, a file.
fn check_table_names(top: &Part<'_>, problems: &mut Problems<'_>, mapping: &Mapping) {
    let names: Vec<&str> = mapping.tables().map(|table| table.name.as_str()).collect();
    if names.is_empty() {
        top.note(problems, "keys", "must be there, or another table");
    }
    let mut seen = BTreeSet::new();
    for name in &names {
        if name.is_empty() && names.len() > 1 {
            top.note(problems, "keys", "must each name their table, since there are several; a file has one");
            return;
        }
        if !seen.insert(name) {
            let words = "must stand in the mapping once: read it again by a mapping with another source";
            top.note(problems, "keys", &format!("table {name:?} {words}"));
        }
    }
}

fn read_organizations(part: &Part<'_>, zone: UtcOffset, problems: &mut Problems<'_>) -> OrganizationTable {
    part.check_names(problems, &OF_ORGANIZATIONS);
    OrganizationTable { table: read_table(part, field::ORGANIZATIONS, zone, problems) }
}

fn read_keys(part: &Part<'_>, zone: UtcOffset, problems: &mut Problems<'_>) -> KeyTable {
    part.check_names(problems, &OF_KEYS);
    let table = read_table(part, field::KEYS, zone, problems);
    let material: Vec<&String> = Field::MATERIAL.iter().filter_map(|field| table.columns.get(field)).collect();
    if material.is_empty() && !table.columns.contains_key(&Field::KeyId) {
        part.note(problems, "columns", "must have secret, sha256-hex, sha256-base64, bcrypt, argon2 or key-id");
    }
    if material.contains(&&table.id) || table.columns.get(&Field::KeyId).is_some_and(|id| material.contains(&id)) {
        let words = "must be, as key-id, no column that holds secrets or hashes: ids are stored and shown";
        part.note(problems, "id", words);
    }
    let mut drop = Vec::new();
    if let Some(contract) = part.table(problems, "contract") {
        contract.check_names(problems, &["drop"]);
        drop = contract.texts(problems, "drop");
        if drop.iter().any(|column| !material.contains(&column)) {
            contract.note(problems, "drop", "must name columns of this table that hold secrets or hashes");
        }
        if drop.contains(&table.id) {
            contract.note(problems, "drop", "must not name the column of id");
        }
        if drop.iter().collect::<BTreeSet<_>>().len() < drop.len() {
            contract.note(problems, "drop", "must name a column once");
        }
    }
    KeyTable { table, drop }
}

fn read_usage(part: &Part<'_>, zone: UtcOffset, keys: &[KeyTable], problems: &mut Problems<'_>) -> UsageTable {
    part.check_names(problems, &OF_USAGE);
    let table = read_table(part, field::USAGE, zone, problems);
    for field in [Field::Key, Field::Time] {
        if !table.columns.contains_key(&field) {
            part.note(problems, "columns", &format!("must have {}", field.as_str()));
        }
    }
    for (one, other) in [(Field::ResponseTimeMs, Field::ResponseTimeUs), (Field::CostUsd, Field::CostMicroUsd)] {
        let is_given = |field| table.columns.contains_key(&field) || table.values.contains_key(&field);
        if is_given(one) && is_given(other) {
            part.note(problems, "columns", &format!("must have one of {} and {}", one.as_str(), other.as_str()));
        }
    }
    UsageTable { table, keys: read_keys_name(part, keys, problems) }
}

fn read_limits(part: &Part<'_>, zone: UtcOffset, keys: &[KeyTable], problems: &mut Problems<'_>) -> LimitTable {
    part.check_names(problems, &OF_LIMITS);
    let table = read_table(part, field::LIMITS, zone, problems);
    let is_given = |field| table.columns.contains_key(&field) || table.values.contains_key(&field);
    if !is_given(Field::Key) && !is_given(Field::Organization) {
        part.note(problems, "columns", "must have key or organization");
    }
    for field in [Field::WindowStart, Field::WindowEnd, Field::Count, Field::Name] {
        if !is_given(field) {
            part.note(problems, "columns", &format!("must have {}", field.as_str()));
        }
    }
    LimitTable { table, keys: read_keys_name(part, keys, problems), quota: part.text(problems, "quota") }
}

/// Which table of keys the column `key` refers to: the first where none is named.
fn read_keys_name(part: &Part<'_>, keys: &[KeyTable], problems: &mut Problems<'_>) -> Option<String> {
    let named = part.text(problems, "keys");
    if let Some(named) = &named
        && !keys.is_empty()
        && !keys.iter().any(|keys| keys.table.name == *named)
    {
        part.note(problems, "keys", "must be the table of one of [[keys]]");
    }
    named.or_else(|| keys.first().map(|keys| keys.table.name.clone()))
}

fn read_table(part: &Part<'_>, fields: Fields, zone: UtcOffset, problems: &mut Problems<'_>) -> Table {
    let words = read_words(part, fields, problems);
    let name = part.text(problems, "table").unwrap_or_default();
    // The lines of a file have numbers.
    let is_file = name.is_empty();
    let id = if is_file { part.text(problems, "id").unwrap_or_default() } else { part.required_text(problems, "id") };
    let table = Table {
        name,
        id,
        columns: read_columns(part, fields, problems),
        values: read_values(part, fields, &words, zone, problems),
        words,
        limits: if fields.limits { read_limit_columns(part, problems) } else { Vec::new() },
    };
    let parts: Vec<&str> = table.name.split('.').collect();
    if !table.name.is_empty() && (parts.len() > 2 || parts.contains(&"")) {
        part.note(problems, "table", "must be written table or schema.table");
    }
    table
}

/// The fields among the names of a part; other names are problems.
fn known_fields<'a>(part: &Part<'a>, known: &[Field], problems: &mut Problems<'_>) -> Vec<(Field, &'a str)> {
    let names: Vec<&str> = known.iter().map(|field| field.as_str()).collect();
    part.check_names(problems, &names);
    let fields = part.entries().filter_map(|(name, _, _)| Some((Field::from_name(name)?, name)));
    fields.filter(|(field, _)| known.contains(field)).collect()
}

fn read_columns(part: &Part<'_>, fields: Fields, problems: &mut Problems<'_>) -> BTreeMap<Field, String> {
    let Some(columns) = part.table(problems, "columns") else {
        part.note(problems, "columns", "must be there");
        return BTreeMap::new();
    };
    let known = known_fields(&columns, fields.columns, problems);
    known.into_iter().filter_map(|(field, name)| Some((field, columns.text(problems, name)?))).collect()
}

fn read_values(
    part: &Part<'_>,
    fields: Fields,
    words: &BTreeMap<Field, BTreeMap<String, String>>,
    zone: UtcOffset,
    problems: &mut Problems<'_>,
) -> BTreeMap<Field, String> {
    let Some(values) = part.table(problems, "values") else { return BTreeMap::new() };
    let known = known_fields(&values, fields.values, problems);
    let mut read = BTreeMap::new();
    for (field, name) in known {
        let Some((_, _, value)) = values.entries().find(|(known, _, _)| *known == name) else { continue };
        let checked = constant(value).map_err(Invalid::new).and_then(|text| {
            let text_words = words.get(&field);
            values::check_constant(field, &text, text_words, zone).map(|()| text)
        });
        match checked {
            Ok(text) => {
                read.insert(field, text);
            }
            Err(reason) => values.note(problems, name, &reason.0),
        }
    }
    read
}

fn read_words(
    part: &Part<'_>,
    fields: Fields,
    problems: &mut Problems<'_>,
) -> BTreeMap<Field, BTreeMap<String, String>> {
    let Some(words) = part.table(problems, "words") else { return BTreeMap::new() };
    let mut read = BTreeMap::new();
    for (field, name) in known_fields(&words, fields.words, problems) {
        let Some(part) = words.table(problems, name) else { continue };
        let mut meanings = BTreeMap::new();
        for (word, _, _) in part.entries() {
            let Some(meaning) = part.text(problems, word) else { continue };
            if let Err(reason) = values::check_meaning(field, &meaning) {
                part.note(problems, word, &reason.0);
            }
            if meanings.insert(word.trim().to_lowercase(), meaning).is_some() {
                part.note(problems, word, "must stand here once, whatever its case");
            }
        }
        read.insert(field, meanings);
    }
    read
}

fn read_limit_columns(part: &Part<'_>, problems: &mut Problems<'_>) -> Vec<LimitColumn> {
    let mut limits: Vec<LimitColumn> = Vec::new();
    for limit in part.tables(problems, "limits") {
        limit.check_names(problems, &["name", "limit", "window"]);
        let name = limit.required_text(problems, "name");
        let column = limit.required_text(problems, "limit");
        let window = limit.required_text(problems, "window");
        // What is absent is a problem already.
        if name.is_empty() || window.is_empty() {
            continue;
        }
        let Some(window) = keep(&limit, problems, "window", spans::parse_span(&window)) else { continue };
        keep(&limit, problems, "name", RateLimit::parse(&name, 1, window, false));
        if limits.iter().any(|other| other.name == name) {
            limit.note(problems, "name", "must differ from the other limits' names");
        }
        limits.push(LimitColumn { name, column, window });
    }
    limits
}

/// A value that could be read; the problem is noted where it could not.
fn keep<T>(part: &Part<'_>, problems: &mut Problems<'_>, name: &str, value: Result<T, Invalid>) -> Option<T> {
    value.map_err(|reason| part.note(problems, name, &reason.0)).ok()
}

fn check_source(text: &str) -> Result<(), Invalid> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    // One that is absent is a problem already.
    if text.len() <= SOURCE_LENGTH_MAX && text.bytes().all(legal) {
        return Ok(());
    }
    Err(Invalid::new("must be 1 to 64 of A-Z a-z 0-9 _ . : / -"))
}
