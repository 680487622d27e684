//! The mapping file: which table and column of a source is what, which constants stand in for columns, and which words
//! mean what. TOML; every name is known, every problem is told at once, with its line, table and field.
//! Must not look at a source. Invariant: whatever of a `Mapping` could be checked without one has been.

mod field;
mod reader;
mod spans;
mod tables;

use std::{collections::BTreeMap, fmt, time::Duration};

use time::UtcOffset;
use toml::de::DeTable;

pub use self::field::{Field, Kind};
use self::reader::{Part, Problems};

/// The words of a source, in lower case, and what each means here.
pub type Words = BTreeMap<String, String>;

/// What an import reads, and as what.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// The label of the source.
    pub source: String,
    /// Slug or id of the organization that gets the keys, where no table says otherwise.
    pub organization: Option<String>,
    /// For times that state no zone.
    pub time_zone: UtcOffset,
    /// Whether the file says so; an expiry is not read in a zone that is only a default.
    pub is_time_zone_stated: bool,
    /// The longest that a statement on the source may take.
    pub statement_timeout: Duration,
    pub organizations: Option<OrganizationTable>,
    /// In the order of the file, which is that of the import; as the others.
    pub keys: Vec<KeyTable>,
    pub usage: Vec<UsageTable>,
    pub limits: Vec<LimitTable>,
}

/// A table of organizations.
#[derive(Debug, Clone)]
pub struct OrganizationTable {
    pub table: Table,
}

/// A table of keys.
#[derive(Debug, Clone)]
pub struct KeyTable {
    pub table: Table,
    /// The columns that `contract` drops; each holds secrets or hashes.
    pub drop: Vec<String>,
}

/// A table of requests of the past.
#[derive(Debug, Clone)]
pub struct UsageTable {
    pub table: Table,
    /// The table of keys that its column `key` refers to: the first where the mapping names none, `None` where it has
    /// none.
    pub keys: Option<String>,
}

/// A table of what limits have counted.
#[derive(Debug, Clone)]
pub struct LimitTable {
    pub table: Table,
    /// As of usage.
    pub keys: Option<String>,
    /// Windows of this name are the month's quota of their organization.
    pub quota: Option<String>,
}

/// What every table of a source has.
#[derive(Debug, Clone)]
pub struct Table {
    /// `table` or `schema.table`; empty for a file.
    pub name: String,
    /// A column that is unique and not null; rows are read in its order. Empty for the numbers of a file's lines.
    pub id: String,
    pub columns: BTreeMap<Field, String>,
    /// Constants, for rows where no column says it.
    pub values: BTreeMap<Field, String>,
    pub words: BTreeMap<Field, Words>,
    /// Rate limits whose number stands in a column.
    pub limits: Vec<LimitColumn>,
}

/// A rate limit whose number stands in a column; NULL and 0 mean none.
#[derive(Debug, Clone)]
pub struct LimitColumn {
    pub name: String,
    pub column: String,
    pub window: Duration,
}

impl Mapping {
    /// Reads a mapping file.
    ///
    /// # Errors
    /// Every problem with it.
    pub fn parse(text: &str) -> Result<Self, MappingError> {
        let mut problems = Problems::new(text);
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let offset = error.span().map_or(0, |span| span.start);
            problems.note(offset, format!("not TOML: {}", error.message().replace('\n', ", ")));
        }
        // What is left of a broken document would have problems that the person did not make.
        if !problems.is_empty() {
            return Err(MappingError { problems: problems.finish() });
        }
        let mapping = tables::read(&Part::top(document.get_ref()), &mut problems);
        if problems.is_empty() { Ok(mapping) } else { Err(MappingError { problems: problems.finish() }) }
    }

    /// Every table, in the order in which they are imported: organizations, keys, usage, limits.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        let organizations = self.organizations.iter().map(|organizations| &organizations.table);
        let keys = self.keys.iter().map(|keys| &keys.table);
        let usage = self.usage.iter().map(|usage| &usage.table);
        let limits = self.limits.iter().map(|limits| &limits.table);
        organizations.chain(keys).chain(usage).chain(limits)
    }
}

/// Everything that is wrong with a mapping file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingError {
    problems: Vec<String>,
}

impl MappingError {
    /// One line per problem, with line, table and field.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for MappingError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the mapping file is not usable")?;
        for problem in &self.problems {
            write!(formatter, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for MappingError {}

#[cfg(test)]
mod tests;
