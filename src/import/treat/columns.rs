//! The columns of one table, resolved once: which value of a row is which field, and which constant stands in for it.
//! Must not read what a text says; `values.rs` does. Invariant: a value that was fetched cut is never taken for a whole
//! one, unless whoever asks says that a part will do.

use std::collections::BTreeMap;

use crate::{
    domain::{
        Invalid,
        import::{Refusal, Refused},
        limits::RateLimit,
    },
    import::{
        mapping::{Field, LimitColumn, Table, Words},
        source::{Ask, AskColumn, Row},
        values::{parse_count, trim},
    },
};

/// The longest number of a limit, in characters.
const LIMIT_LENGTH_MAX: u32 = 64;

/// Where the fields of a table's rows are.
#[derive(Debug)]
pub struct Columns {
    /// By the number of the field.
    places: Vec<Place>,
    words: BTreeMap<Field, Words>,
    limits: Vec<(LimitColumn, usize)>,
}

/// Where a field is.
#[derive(Debug, Clone, Default)]
struct Place {
    /// Which value of a row, and what the source calls it.
    column: Option<(usize, Box<str>)>,
    /// What counts where there is no such value.
    constant: Option<Box<str>>,
}

impl Table {
    /// What is to be read of this table.
    #[must_use]
    pub fn ask(&self) -> Ask {
        Columns::new(self).0
    }
}

impl Columns {
    /// What is to be read of a table, and where each field then is.
    #[must_use]
    pub fn new(table: &Table) -> (Ask, Self) {
        let mut columns: Vec<AskColumn> = Vec::new();
        let mut place_of = |name: &str, length_max: u32, is_text: bool| {
            if let Some(at) = columns.iter().position(|column| column.name == name) {
                if let Some(column) = columns.get_mut(at) {
                    column.length_max = column.length_max.max(length_max);
                    column.is_text |= is_text;
                }
                return at;
            }
            columns.push(AskColumn { name: name.to_owned(), length_max, is_text });
            columns.len() - 1
        };
        let place = |field: &Field| Place {
            column: table.columns.get(field).map(|name| {
                let at = place_of(name, field.length_max(), field.is_of_secret());
                (at, name.as_str().into())
            }),
            constant: table.values.get(field).map(|constant| constant.as_str().into()),
        };
        let places = Field::ALL.iter().map(place).collect();
        let limits = table.limits.iter().map(|limit| (limit.clone(), place_of(&limit.column, LIMIT_LENGTH_MAX, false)));
        let limits = limits.collect();
        let ask = Ask { table: table.name.clone(), id: table.id.clone(), columns };
        (ask, Self { places, words: table.words.clone(), limits })
    }

    fn place(&self, field: Field) -> Option<&Place> {
        self.places.get(field as usize)
    }

    /// Whether a column has this field.
    #[must_use]
    pub fn has(&self, field: Field) -> bool {
        self.place(field).is_some_and(|place| place.column.is_some())
    }

    /// What the mapping says that words of this field mean.
    #[must_use]
    pub fn words(&self, field: Field) -> Option<&Words> {
        self.words.get(&field)
    }

    /// The constant of this field.
    #[must_use]
    pub fn constant(&self, field: Field) -> Option<&str> {
        self.place(field)?.constant.as_deref()
    }

    /// The value of the column alone, as it came, and whether it is cut; `None` for NULL and where there is no such
    /// column.
    #[must_use]
    pub fn raw<'a>(&self, row: &'a Row, field: Field) -> Option<(&'a str, bool)> {
        let (at, _) = self.place(field)?.column.as_ref()?;
        let text = value(row, *at)?;
        Some((text, is_cut(text, field.length_max())))
    }

    /// The value of the column, also a blank one, or else the constant.
    ///
    /// # Errors
    /// Refuses a value that is longer than the field may be.
    pub fn given<'a>(&'a self, row: &'a Row, field: Field) -> Result<Option<&'a str>, Invalid> {
        match self.raw(row, field) {
            Some((_, true)) => Err(Invalid::new(format!("must have at most {} characters", field.length_max()))),
            Some((text, false)) => Ok(Some(text)),
            None => Ok(self.constant(field)),
        }
    }

    /// The value of the column without white space at its ends, or else the constant; a blank value counts as none.
    ///
    /// # Errors
    /// As [`Columns::given`].
    pub fn filled<'a>(&'a self, row: &'a Row, field: Field) -> Result<Option<&'a str>, Invalid> {
        let text = self.given(row, field)?.map(trim).filter(|text| !text.is_empty());
        Ok(text.or_else(|| self.constant(field)))
    }

    /// A field in a form of its own; a blank value is read too, and so refused where the form does not allow it.
    ///
    /// # Errors
    /// A refusal with this reason where it cannot be read.
    pub fn read<T>(
        &self,
        row: &Row,
        field: Field,
        reason: Refusal,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Refused> {
        let text = self.given(row, field).and_then(|text| text.map(|text| parse(trim(text))).transpose());
        text.map_err(|why| self.refused(field, reason, &why))
    }

    /// As [`Columns::read`], where a blank value is none.
    ///
    /// # Errors
    /// As `read`.
    pub fn read_filled<T>(
        &self,
        row: &Row,
        field: Field,
        reason: Refusal,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Refused> {
        let text = self.filled(row, field).and_then(|text| text.map(parse).transpose());
        text.map_err(|why| self.refused(field, reason, &why))
    }

    /// The rate limits whose numbers stand in columns; NULL and 0 are none.
    ///
    /// # Errors
    /// A refusal with this reason where one cannot be read.
    pub fn read_limits(&self, row: &Row, reason: Refusal) -> Result<Vec<RateLimit>, Refused> {
        let mut limits = Vec::with_capacity(self.limits.len());
        for (limit, at) in &self.limits {
            let Some(text) = value(row, *at) else { continue };
            let refused = |why: Invalid| {
                let Invalid(why) = why;
                Refused::new(reason, format!("limit {} (column {}) {why}", limit.name, limit.column))
            };
            let number = parse_count(trim(text)).map_err(refused)?;
            if number > 0 {
                limits.push(RateLimit::parse(&limit.name, number, limit.window, false).map_err(refused)?);
            }
        }
        Ok(limits)
    }

    /// A refusal that names the field and its column.
    #[must_use]
    pub fn refused(&self, field: Field, reason: Refusal, why: &Invalid) -> Refused {
        let name = field.as_str();
        let column = self.place(field).and_then(|place| place.column.as_ref());
        let Invalid(why) = why;
        Refused::new(
            reason,
            match column {
                Some((_, column)) => format!("{name} (column {column}) {why}"),
                None => format!("{name} {why}"),
            },
        )
    }
}

fn value(row: &Row, at: usize) -> Option<&str> {
    row.values.get(at)?.as_ref().map(|text| text.as_str())
}

/// Whether a text is longer than was asked for; no text has more characters than bytes.
fn is_cut(text: &str, length_max: u32) -> bool {
    let length_max = usize::try_from(length_max).unwrap_or(usize::MAX);
    text.len() > length_max && text.chars().count() > length_max
}
