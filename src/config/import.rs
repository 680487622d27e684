//! The `import` section: where existing keys come from.
//!
//! Declares and reads; opens nothing. The URL of a source may hold a password, so it is a type of its own that shows
//! none, as `DatabaseUrl` is: `expose` is the one way to the text, and only the code that connects calls it.
//! Invariant: a `SourceUrl` names a kind of source that Keystead reads, and for a server a host.

use std::fmt;

use super::database::{DatabaseConfig, DatabaseUrl};
use super::limits::LimitsConfig;
use super::settings::Setting;
use super::sources::{Reported, Sources};
use super::telemetry::TelemetryConfig;

const SOURCE_URL: Setting = Setting::optional(
    "source-url",
    "URL",
    "Where the keys come from: postgres://, sqlite://PATH, mysql://, mariadb://, csv:PATH or jsonl:PATH, `-` for \
     standard input; with a password use the variable, a flag shows in process lists",
)
.secret();

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] = &[SOURCE_URL];

/// What `keystead import` needs.
#[derive(Debug, Clone)]
pub struct ImportConfig {
    /// Keystead's own database.
    pub database: DatabaseConfig,
    /// Where rate limits are counted: what a source has counted goes on there.
    pub limits: LimitsConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
    /// Where the keys come from. `status` needs none.
    pub source_url: Option<SourceUrl>,
}

/// Reads the one setting of this section.
pub(super) fn read_source_url(sources: &mut Sources<'_>) -> Result<Option<SourceUrl>, Reported> {
    sources.optional(&SOURCE_URL, SourceUrl::parse)
}

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A database of PostgreSQL.
    Postgres,
    /// A file of SQLite.
    Sqlite,
    /// A database of MySQL or MariaDB.
    MySql,
    /// A file of comma-separated values with a header line.
    Csv,
    /// A file with a JSON object a line.
    JsonLines,
}

/// Where the keys come from. Shows itself without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceUrl {
    kind: SourceKind,
    text: String,
    /// The text without anything that may be a secret.
    shown: String,
}

impl SourceUrl {
    /// Takes `postgres://...`, `postgresql://...`, `sqlite://PATH`, `mysql://...`, `mariadb://...`, `csv:PATH` and
    /// `jsonl:PATH`.
    ///
    /// # Errors
    /// A phrase that says what is wrong and repeats nothing of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err("with a control character".to_owned());
        }
        let (kind, shown) = match text.split_once(':') {
            Some(("csv", path)) => (SourceKind::Csv, shown_file(text, path)?),
            Some(("jsonl", path)) => (SourceKind::JsonLines, shown_file(text, path)?),
            Some(("sqlite", _)) => (SourceKind::Sqlite, DatabaseUrl::parse(text)?.to_string()),
            Some(("postgres" | "postgresql", _)) => (SourceKind::Postgres, DatabaseUrl::parse(text)?.to_string()),
            Some((scheme @ ("mysql" | "mariadb"), rest)) => (SourceKind::MySql, shown_mysql(scheme, rest)?),
            Some(_) | None => {
                return Err("of an unknown kind: postgres://, sqlite://, mysql://, mariadb://, csv: and jsonl: are \
                            known"
                    .to_owned());
            }
        };
        Ok(Self { kind, text: text.to_owned(), shown })
    }

    /// What it is a URL of.
    #[must_use]
    pub const fn kind(&self) -> SourceKind {
        self.kind
    }

    /// The whole text, password included. For connecting, never for showing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The path of a file, `-` for standard input; of a database nothing that is of use.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, path)| path)
    }
}

fn shown_file(text: &str, path: &str) -> Result<String, String> {
    if path.is_empty() {
        return Err("without a path: write csv:PATH or jsonl:PATH, with `-` for standard input".to_owned());
    }
    Ok(text.to_owned())
}

/// What a password and a query are hidden by is the same for every server, so that it is written once.
fn shown_mysql(scheme: &str, rest: &str) -> Result<String, String> {
    let without_host = || format!("without a host: write {scheme}://USER:PASSWORD@HOST/DATABASE");
    let shown = DatabaseUrl::parse(&format!("postgres:{rest}")).map_err(|_| without_host())?.to_string();
    Ok(format!("{scheme}{}", shown.strip_prefix("postgres").unwrap_or("://***")))
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

impl fmt::Debug for SourceUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SourceUrl({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::*;
    use crate::config::{Flags, ImportSettings};

    #[derive(Debug, Parser)]
    struct Import {
        #[command(flatten)]
        flags: Flags<ImportSettings>,
    }

    #[test]
    fn a_password_is_masked_wherever_it_stands() {
        let shown = [
            ("postgres://u:hunter2@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgresql://u@h/db?password=hunter2", "postgresql://u@h/db?***"),
            ("mysql://u:hunter2@h:3306/db", "mysql://u:***@h:3306/db"),
            ("mariadb://postgres:hunter2@h/db?x=1", "mariadb://postgres:***@h/db?***"),
            ("mysql://u:hun/ter2@h/db", "mysql://***"),
            ("mysql://h/db?password=hun@ter2", "mysql://***"),
            ("sqlite:///var/lib/a@b.db?mode=ro", "sqlite:///var/lib/a@b.db?***"),
            ("csv:keys.csv", "csv:keys.csv"),
            ("jsonl:-", "jsonl:-"),
        ];
        for (text, expected) in shown {
            let url = SourceUrl::parse(text).expect(text);
            assert_eq!(url.to_string(), expected);
            assert_eq!(format!("{url:?}"), format!("SourceUrl({expected})"));
            assert!(!format!("{url:?} {url}").contains("ter2"));
            assert_eq!(url.expose(), text);
        }
    }

    #[test]
    fn the_kind_and_the_path_are_told() {
        let kind = |text: &str| SourceUrl::parse(text).expect(text).kind();
        assert_eq!(kind("postgresql://h/db"), SourceKind::Postgres);
        assert_eq!(kind("sqlite://a.db"), SourceKind::Sqlite);
        assert_eq!(kind("mariadb://h/db"), SourceKind::MySql);
        assert_eq!(kind("csv:a"), SourceKind::Csv);
        assert_eq!(kind("jsonl:-"), SourceKind::JsonLines);
        assert_eq!(SourceUrl::parse("csv:a:b.csv").expect("a path with a colon").path(), "a:b.csv");
    }

    #[test]
    fn what_cannot_be_read_from_is_refused_without_being_repeated() {
        for text in [
            "",
            "hunter2",
            "keys.csv",
            "csv:",
            "jsonl:",
            "sqlite://",
            "sqlite://:memory:",
            "sqlite:a.db",
            "postgres://",
            "mysql://",
            "mysql:hunter2",
            "mariadb://",
            "oracle://u:hunter2@h/db",
            "mysql://u:hunter2@h/\ndb",
        ] {
            let reason = SourceUrl::parse(text).expect_err(text);
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[test]
    fn the_setting_is_a_flag_and_a_variable_and_a_problem_shows_nothing_of_it() {
        let good = "mysql://u:hunter2@h/db";
        let flags = Import::try_parse_from(["import", "--source-url", good]).expect("flags").flags;
        let config = ImportConfig::load(&flags, &|_| None).expect("good");
        assert_eq!(config.source_url.as_ref().map(SourceUrl::expose), Some(good));
        assert!(!format!("{config:?} {flags:?}").contains("hunter2"));

        let flags = Import::try_parse_from(["import"]).expect("flags").flags;
        let variable =
            |text: &'static str| move |name: &str| (name == "KEYSTEAD_SOURCE_URL").then(|| OsString::from(text));
        let config = ImportConfig::load(&flags, &variable(good)).expect("good");
        assert_eq!(config.source_url.map(|url| url.to_string()).as_deref(), Some("mysql://u:***@h/db"));
        assert_eq!(ImportConfig::load(&flags, &|_| None).expect("none is needed").source_url, None);
        let error = ImportConfig::load(&flags, &variable("oracle://u:hunter2@h/db")).expect_err("problem");
        assert!(error.problems()[0].starts_with("variable KEYSTEAD_SOURCE_URL: of an unknown kind"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
