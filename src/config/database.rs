//! The `database` section: which database, and how many connections each kind of work may hold.
//!
//! Declares and reads; connects to nothing. The URL may hold a password, so it is a type of its own that shows
//! none: `expose` is the one way to the text, and only the code that connects calls it. Invariant: a
//! `DatabaseUrl` names an engine that Keystead speaks.

use std::fmt;

use super::parse;
use super::settings::Setting;
use super::sources::{Reported, Sources};

const URL: Setting = Setting::new(
    "database-url",
    "URL",
    "sqlite://keystead.db",
    "sqlite://PATH or postgres://...; with a password use the variable or the file, a flag shows in process lists",
)
.secret();
const MIGRATE: Setting = Setting::switch("migrate", "Run pending migrations first (always so on SQLite)");
const VERIFY_CONNECTIONS_MAX: Setting =
    Setting::new("database-verify-connections-max", "N", "8", "Connections for verification");
const CONTROL_CONNECTIONS_MAX: Setting =
    Setting::new("database-control-connections-max", "N", "8", "Connections for the control plane");
const USAGE_CONNECTIONS_MAX: Setting =
    Setting::new("database-usage-connections-max", "N", "2", "Connections for usage");

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] =
    &[URL, MIGRATE, VERIFY_CONNECTIONS_MAX, CONTROL_CONNECTIONS_MAX, USAGE_CONNECTIONS_MAX];

/// Which database, and how many connections to it.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Where the database is.
    pub url: DatabaseUrl,
    /// Whether pending migrations run first.
    pub migrate: bool,
    /// Connections for verification, 1 to 1000.
    pub verify_connections_max: u32,
    /// Connections for the control plane, 1 to 1000.
    pub control_connections_max: u32,
    /// Connections for usage, 1 to 1000.
    pub usage_connections_max: u32,
}

impl DatabaseConfig {
    /// Reads the section.
    pub(super) fn read(sources: &mut Sources<'_>) -> Result<Self, Reported> {
        let url = sources.required(&URL, DatabaseUrl::parse);
        let migrate = sources.required(&MIGRATE, parse::boolean);
        let verify = sources.required(&VERIFY_CONNECTIONS_MAX, parse::number(1..=1000));
        let control = sources.required(&CONTROL_CONNECTIONS_MAX, parse::number(1..=1000));
        let usage = sources.required(&USAGE_CONNECTIONS_MAX, parse::number(1..=1000));
        Ok(Self {
            url: url?,
            migrate: migrate?,
            verify_connections_max: verify?,
            control_connections_max: control?,
            usage_connections_max: usage?,
        })
    }
}

/// Where the database is. Shows itself without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// Takes `sqlite://PATH`, `postgres://...` and `postgresql://...`.
    ///
    /// # Errors
    /// A phrase that says what is wrong and repeats nothing of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("not sqlite://PATH, postgres://... or postgresql://...".to_owned());
        };
        if text.chars().any(char::is_control) {
            return Err("holds a control character".to_owned());
        }
        match scheme {
            "sqlite" if rest.starts_with(":memory:") || rest.contains("mode=memory") => {
                Err("a database in memory, which several connections cannot share; name a file".to_owned())
            }
            "sqlite" if rest.split('?').next().is_none_or(str::is_empty) => {
                Err("without a path: write sqlite://PATH".to_owned())
            }
            "postgres" | "postgresql" if rest.is_empty() => {
                Err("without a host: write postgres://USER:PASSWORD@HOST/DATABASE".to_owned())
            }
            "sqlite" | "postgres" | "postgresql" => Ok(Self(text.to_owned())),
            _ => Err("of an unknown kind: sqlite://, postgres:// and postgresql:// are known".to_owned()),
        }
    }

    /// The whole text, password included. For connecting, never for showing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The text without anything that may be a secret: no password, and no query, which can carry one too.
    fn masked(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return "***".to_owned();
        };
        let split = if scheme == "sqlite" { None } else { rest.rsplit_once('@') };
        let Some((user, place)) = split else {
            return format!("{scheme}://{}", without_query(rest));
        };
        // An `@` behind a `/`, `?` or `#` means an unescaped password or a query with one: which part is
        // secret cannot be told, so all of it is.
        if user.contains(['/', '?', '#']) {
            return format!("{scheme}://***");
        }
        match user.split_once(':') {
            Some((name, _)) => format!("{scheme}://{name}:***@{}", without_query(place)),
            None => format!("{scheme}://{user}@{}", without_query(place)),
        }
    }
}

fn without_query(text: &str) -> String {
    match text.find(['?', '#']) {
        Some(end) => format!("{}?***", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.masked())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DatabaseUrl({})", self.masked())
    }
}

#[cfg(test)]
mod tests {
    use super::DatabaseUrl;

    #[test]
    fn a_password_is_masked_wherever_it_stands() {
        let shown = [
            ("postgres://u:hunter2@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgresql://u@h/db?password=hunter2", "postgresql://u@h/db?***"),
            ("postgres://u:hunter2@h/db?x=a@b", "postgres://***"),
            ("postgres://u:hun/ter2@h/db", "postgres://***"),
            ("postgres://u:hun?ter2@h/db", "postgres://***"),
            ("postgres://u:hun@ter2@h/db", "postgres://u:***@h/db"),
            ("postgres://h/db?password=hun@ter2", "postgres://***"),
            ("sqlite:///var/lib/a@b.db", "sqlite:///var/lib/a@b.db"),
        ];
        for (text, expected) in shown {
            let url = DatabaseUrl::parse(text).expect(text);
            assert_eq!(url.to_string(), expected);
            assert_eq!(format!("{url:?}"), format!("DatabaseUrl({expected})"));
            assert!(!format!("{url:?} {url}").contains("ter2"));
            assert_eq!(url.expose(), text);
        }
    }

    #[test]
    fn only_engines_that_keystead_speaks_are_taken() {
        for text in [
            "",
            "keystead.db",
            "sqlite:keystead.db",
            "sqlite://",
            "sqlite://?mode=rwc",
            "sqlite://:memory:",
            "sqlite://x?mode=memory",
            "mysql://u:hunter2@h/db",
            "postgres://",
            "sqlite://a\nb",
        ] {
            let reason = DatabaseUrl::parse(text).expect_err(text);
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
