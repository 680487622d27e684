//! Reports of `keystead import` as tables for people and as JSON for programs.
//! Only makes text; prints nothing. Names in JSON are those of the reports, and stay: scripts read them.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::output::{self, Fields, object};
use crate::import::report::{
    ContractReport, Counts, ImportStatus, KeyLine, Report, Status, TableReport, VerifiedTable, VerifyReport,
};

const REPORT_COLUMNS: &[&str] =
    &["table", "kind", "rows", "created", "existing", "duplicates", "skipped", "refused", "seconds", "rows_per_second"];
const VERIFY_COLUMNS: &[&str] =
    &["table", "kind", "rows", "matched", "skipped", "accepted", "mismatches", "seconds", "rows_per_second"];
const STATUS_COLUMNS: &[&str] = &[
    "source",
    "table",
    "kind",
    "state",
    "created",
    "existing",
    "refused",
    "keys",
    "seen",
    "never_seen",
    "last_used_time",
    "verified_time",
    "contracted",
];
const KEY_COLUMNS: &[&str] = &[
    "owner_id",
    "key_id",
    "name",
    "organization_id",
    "source",
    "table",
    "source_id",
    "scheme",
    "status",
    "last_used_time",
];

/// What `plan` and `run` came to, as JSON.
pub(super) fn report_json(report: &Report) -> String {
    output::json(&object(vec![
        ("source", json!(report.source)),
        ("dry_run", json!(report.dry_run)),
        ("resumed", json!(report.resumed)),
        ("interrupted", json!(report.interrupted)),
        ("seconds", seconds(report.elapsed)),
        ("withheld", json!(report.withheld)),
        ("refused_file", json!(report.refused_file.as_ref().map(|path| path.to_string_lossy()))),
        ("tables", report.tables.iter().map(|table| object(table_fields(table))).collect()),
    ]))
}

/// What `plan` and `run` came to, as text.
pub(super) fn report_text(report: &Report) -> String {
    let mut text = String::new();
    if report.dry_run {
        text.push_str("Nothing was written: `created` is what a run would create.\n\n");
    }
    text.push_str(&went_on(report));
    let rows: Vec<Fields> = report.tables.iter().map(table_fields).collect();
    text.push_str(&output::table(REPORT_COLUMNS, &rows));
    let of = |counts: fn(&TableReport) -> &Counts| {
        report.tables.iter().map(|table| (table.table.as_str(), counts(table))).collect::<Vec<_>>()
    };
    let created = if report.dry_run { "Would be created, by scheme" } else { "Created, by scheme" };
    section(&mut text, created, "scheme", "keys", &of(|table| &table.schemes));
    section(&mut text, "Refused, by reason", "reason", "rows", &of(|table| &table.refusals));
    section(&mut text, "Changed on the way, by note", "note", "rows", &of(|table| &table.notes));
    // A plan counts such rows with the others: a run that accepts what is refused reads them.
    if report.dry_run && !report.withheld.is_empty() {
        let tables = output::escape(&report.withheld.join(", "));
        let _ = write!(text, "\nPast requests that a run would leave for later: {tables}\n");
    }
    if let Some(path) = report.refused_file.as_ref().filter(|_| report.refused() > 0) {
        let path = path.to_string_lossy();
        let _ = write!(text, "\nThe ids of refused rows and the reasons are in {}\n", output::escape(&path));
    }
    text
}

/// After how many rows a run went on, and that it does not count them; nothing of one that read everything.
fn went_on(report: &Report) -> String {
    let mut text = String::new();
    for table in report.tables.iter().filter(|table| table.rows_before > 0) {
        // A file has no name of a table.
        let name = if table.table.is_empty() { table.kind.as_str() } else { table.table.as_str() };
        let _ = writeln!(text, "{}: went on after {} rows of runs before.", output::escape(name), table.rows_before);
    }
    if report.resumed || !text.is_empty() {
        text.push_str(
            "Counted here is this run alone: `keystead import status` counts what those before it did too.\n\n",
        );
    }
    text
}

fn table_fields(table: &TableReport) -> Fields {
    vec![
        ("table", json!(table.table)),
        ("kind", json!(table.kind.as_str())),
        ("resumed", json!(table.resumed)),
        ("rows_before", json!(table.rows_before)),
        ("rows", json!(table.rows)),
        ("created", json!(table.created)),
        ("existing", json!(table.existing)),
        ("duplicates", json!(table.duplicates)),
        ("skipped", json!(table.skipped)),
        ("refused", json!(table.refused)),
        ("seconds", seconds(table.elapsed)),
        ("rows_per_second", rounded(table.rate())),
        ("schemes", json!(table.schemes)),
        ("refusals", json!(table.refusals)),
        ("notes", json!(table.notes)),
    ]
}

/// What `verify` found, as JSON.
pub(super) fn verify_json(report: &VerifyReport) -> String {
    output::json(&object(vec![
        ("source", json!(report.source)),
        ("passed", json!(report.passed)),
        ("interrupted", json!(report.interrupted)),
        ("mismatches", json!(report.mismatches())),
        ("seconds", seconds(report.elapsed)),
        ("tables", report.tables.iter().map(|table| object(verified_fields(table))).collect()),
    ]))
}

/// What `verify` found, as text.
pub(super) fn verify_text(report: &VerifyReport) -> String {
    let rows: Vec<Fields> = report.tables.iter().map(verified_fields).collect();
    let mut text = output::table(VERIFY_COLUMNS, &rows);
    let of = |counts: fn(&VerifiedTable) -> &Counts| {
        report.tables.iter().map(|table| (table.table.as_str(), counts(table))).collect::<Vec<_>>()
    };
    section(&mut text, "What Keystead says of them", "outcome", "rows", &of(|table| &table.outcomes));
    section(&mut text, "Mismatches and accepted refusals", "reason", "rows", &of(|table| &table.reasons));
    let said = if report.passed { "verified: every row is as it should be" } else { "not verified" };
    let _ = write!(text, "\n{said}\n");
    text
}

fn verified_fields(table: &VerifiedTable) -> Fields {
    vec![
        ("table", json!(table.table)),
        ("kind", json!(table.kind.as_str())),
        ("rows", json!(table.rows)),
        ("matched", json!(table.matched)),
        ("skipped", json!(table.skipped)),
        ("accepted", json!(table.accepted)),
        ("mismatches", json!(table.mismatches)),
        ("seconds", seconds(table.elapsed)),
        ("rows_per_second", rounded(table.rate())),
        ("outcomes", json!(table.outcomes)),
        ("reasons", json!(table.reasons)),
    ]
}

/// What `contract` is about to do: the statements, and what must be known before.
pub(super) fn contract_text(report: &ContractReport) -> String {
    let mut text = String::from("These statements are run on the source:\n");
    for statement in &report.statements {
        let _ = writeln!(text, "  {}", output::escape(statement));
    }
    for remark in &report.remarks {
        let _ = writeln!(text, "{}", output::escape(remark));
    }
    text
}

/// How far imports have come, as JSON.
pub(super) fn status_json(status: &Status) -> String {
    let imports = status.imports.iter().map(|import| object(status_fields(import, false))).collect();
    let mut fields: Fields = vec![("imports", imports)];
    for (name, lines) in [("unseen", &status.unseen), ("missing", &status.missing)] {
        if let Some(lines) = lines {
            fields.push((name, lines.iter().map(|line| object(key_fields(line))).collect()));
        }
    }
    fields.push(("cut", json!(status.cut)));
    output::json(&object(fields))
}

/// How far imports have come, as text.
pub(super) fn status_text(status: &Status) -> String {
    let rows: Vec<Fields> = status.imports.iter().map(|import| status_fields(import, true)).collect();
    let mut text = output::table(STATUS_COLUMNS, &rows);
    let lists = [
        ("Never seen since the import", &status.unseen),
        ("Without a hash: each must be rotated, and is disabled when it is first presented", &status.missing),
    ];
    for (title, lines) in lists {
        let Some(lines) = lines else { continue };
        let rows: Vec<Fields> = lines.iter().map(key_fields).collect();
        let _ = write!(text, "\n{title}: {}\n", rows.len());
        if !rows.is_empty() {
            text.push_str(&output::table(KEY_COLUMNS, &rows));
        }
    }
    if status.cut {
        text.push_str("\nThere are more keys than these: ask for one source at a time with --source\n");
    }
    text
}

/// `short` gives what is a document of its own in few words.
fn status_fields(import: &ImportStatus, short: bool) -> Fields {
    let keys = json!(import.schemes);
    let contracted = import.contracted.as_ref();
    // What was noted before the statements ran is done only where that was noted too.
    let is_done = |noted: &Value| noted.get("dropped").and_then(Value::as_bool) == Some(true);
    let word = contracted.map(|noted| if is_done(noted) { "yes" } else { "begun" });
    let contracted = if short { json!(word) } else { json!(contracted) };
    vec![
        ("source", json!(import.source)),
        ("table", json!(import.table)),
        ("kind", json!(import.kind.as_str())),
        ("organization_id", json!(import.organization_id.map(|id| id.to_string()))),
        ("state", json!(import.state.as_str())),
        ("created", json!(import.created)),
        ("existing", json!(import.existing)),
        ("refused", json!(import.refused)),
        ("keys", keys),
        ("seen", json!(import.seen)),
        ("never_seen", json!(import.never_seen)),
        ("create_time", json!(import.create_time.to_string())),
        ("update_time", json!(import.update_time.to_string())),
        ("last_used_time", json!(import.last_used_time.map(|time| time.to_string()))),
        ("verified_time", json!(import.verified_time.map(|time| time.to_string()))),
        ("contracted", contracted),
    ]
}

fn key_fields(line: &KeyLine) -> Fields {
    vec![
        ("owner_id", json!(line.owner_id)),
        ("key_id", json!(line.id.to_string())),
        ("name", json!(line.name)),
        ("organization_id", json!(line.organization_id.to_string())),
        ("source", json!(line.source)),
        ("table", json!(line.table)),
        ("source_id", json!(line.source_id)),
        ("scheme", json!(line.scheme.as_str())),
        ("status", json!(line.status)),
        ("last_used_time", json!(line.last_used_time.map(|time| time.to_string()))),
        ("request_count", json!(line.request_count)),
    ]
}

/// A table of counts, a row for each table of the source and word; nothing where there are none.
fn section(text: &mut String, title: &str, word: &'static str, number: &'static str, tables: &[(&str, &Counts)]) {
    let rows: Vec<Fields> = tables
        .iter()
        .flat_map(|(table, counts)| counts.iter().map(move |(name, count)| (*table, *name, *count)))
        .map(|(table, name, count)| vec![("table", json!(table)), (word, json!(name)), (number, json!(count))])
        .collect();
    if !rows.is_empty() {
        let _ = write!(text, "\n{title}\n{}", output::table(&["table", word, number], &rows));
    }
}

fn seconds(elapsed: Duration) -> Value {
    rounded(elapsed.as_secs_f64())
}

/// Three digits behind the point: more of them say nothing.
fn rounded(number: f64) -> Value {
    json!((number * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_a_row_for_each_table_and_word_and_nothing_where_there_are_none() {
        let (some, none) = (Counts::from([("WEAK_SECRET", 2), ("BAD_HASH", 1)]), Counts::new());
        let mut text = String::new();
        section(&mut text, "Refused, by reason", "reason", "rows", &[("clients", &some), ("", &none)]);
        section(&mut text, "Nothing", "note", "rows", &[("clients", &none)]);
        let expected = "\nRefused, by reason\nTABLE    REASON       ROWS\nclients  BAD_HASH     1\n\
                        clients  WEAK_SECRET  2\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_about_to_be_dropped_is_shown_statement_by_statement() {
        let report = ContractReport {
            source: "portal".to_owned(),
            down: false,
            statements: vec!["DROP INDEX \"a\"".to_owned(), "ALTER TABLE \"t\" DROP COLUMN \"k\u{1b}\"".to_owned()],
            remarks: vec!["It cannot come back.".to_owned()],
            tables: vec!["t".to_owned()],
        };
        let expected = "These statements are run on the source:\n  DROP INDEX \"a\"\n  \
                        ALTER TABLE \"t\" DROP COLUMN \"k\\u{1b}\"\nIt cannot come back.\n";
        assert_eq!(contract_text(&report), expected);
    }
}
