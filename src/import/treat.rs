//! One row of a source, from texts to a key that is good enough to be brought in, to nothing, or to a refusal: the
//! table of treatments in `docs/migrating.md`, row by row. Pure: looks nothing up, so that `plan`, `run` and `verify`
//! come to the same. Must not put material into a message. Invariant: nothing is guessed in a key's favour, and no text
//! that is stored holds the secret.

mod beside;
mod columns;
mod hidden;
mod material;
mod organization;
mod standing;

use std::{collections::BTreeMap, fmt, sync::Arc};

use time::UtcOffset;

use self::material::Given;
pub use self::{
    beside::NO_HASH_STAYS,
    columns::Columns,
    organization::{OrganizationReader, SourceOrganization},
};
use super::{
    mapping::{Field, KeyTable, Mapping},
    rows::check_row_id,
    source::{Ask, Row},
    values::{
        ENTRIES_MAX, Kept, before_mask, hint_of_secret, last_characters, legal_name, parse_cidrs, parse_count,
        parse_environment, parse_metadata, parse_request_count, parse_scopes, prefix_of, split_display, trim,
    },
};
use crate::domain::{
    Invalid,
    ids::KeyId,
    import::{
        ImportedKey, LOOK_UP_LENGTH_MAX, LOOK_UP_LENGTH_MIN, Note, Refusal, Refused, WEAK_ENTRY, gives_away, is_most_of,
    },
    key::Environment,
    limits::Credits,
    scope::Scope,
    text,
    time::Timestamp,
};

/// What stands before every permission of Keystead's own.
const OWN_SCOPES: &str = "keystead.";
/// The name of a key whose row and mapping give none.
const NAME: &str = "imported key";
/// The most characters of a prefix; the same as in the contract.
const PREFIX_LENGTH_MAX: usize = 64;

/// What becomes of a row, before anything is looked up.
#[derive(Debug)]
pub enum Treated {
    Key {
        key: Box<ImportedKey>,
        organization: OrganizationRef,
        /// Each at most once.
        notes: Vec<Note>,
    },
    /// The row holds no key.
    Skipped,
    Refused(Refused),
}

/// How a row, or the mapping, names an organization: by what organizations of the source are called, by slug or by id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrganizationRef {
    text: Arc<str>,
    is_of_mapping: bool,
}

impl OrganizationRef {
    /// A reference by the text of a row.
    #[must_use]
    pub fn of_row(text: &str) -> Self {
        Self { text: text.into(), is_of_mapping: false }
    }

    /// A reference by a text of the mapping, which the operator wrote.
    #[must_use]
    pub fn of_mapping(text: &str) -> Self {
        Self { text: text.into(), is_of_mapping: true }
    }

    /// Whether the mapping names it, and no row.
    #[must_use]
    pub const fn is_of_mapping(&self) -> bool {
        self.is_of_mapping
    }

    /// The text, without white space at its ends.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for OrganizationRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Reads the rows of one table of keys.
#[derive(Debug)]
pub struct TableReader {
    /// What is to be read of the table.
    pub ask: Ask,
    columns: Columns,
    organization: Option<OrganizationRef>,
    zone: UtcOffset,
    /// Whether the mapping says so.
    is_zone_stated: bool,
    allow_weak: bool,
    /// The hashes that stay where the plaintext is to be dropped.
    staying: Vec<Field>,
}

impl TableReader {
    /// For a table of a mapping. `allow_weak` lets weak secrets in, flagged.
    #[must_use]
    pub fn new(mapping: &Mapping, table: &KeyTable, allow_weak: bool) -> Self {
        let (ask, columns) = Columns::new(&table.table);
        let organization = columns.constant(Field::Organization).or(mapping.organization.as_deref());
        let organization = organization.map(OrganizationRef::of_mapping);
        Self {
            ask,
            columns,
            organization,
            zone: mapping.time_zone,
            is_zone_stated: mapping.is_time_zone_stated,
            allow_weak,
            staying: beside::staying(table),
        }
    }

    /// The values of a row that hold secrets and hashes, as they came, in the order of [`Field::MATERIAL`]; those that
    /// the mapping has no column for are left out. For the fingerprint of a table.
    pub fn material<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = Option<&'a str>> {
        let mapped = Field::MATERIAL.iter().filter(move |field| self.columns.has(**field));
        mapped.map(move |field| self.columns.raw(row, *field).map(|(text, _)| text))
    }

    /// What becomes of a row. Times after `now` are in the future. Takes long where a slow hash stands beside its
    /// plaintext: the two are compared.
    #[must_use]
    pub fn treat(&self, row: &Row, now: Timestamp) -> Treated {
        match self.read(row, now) {
            Ok(Some((key, organization, notes))) => Treated::Key { key: Box::new(key), organization, notes },
            Ok(None) => Treated::Skipped,
            Err(refused) => Treated::Refused(refused),
        }
    }

    fn read(&self, row: &Row, now: Timestamp) -> Result<Option<(ImportedKey, OrganizationRef, Vec<Note>)>, Refused> {
        let columns = &self.columns;
        let mut notes = Notes::default();
        if self.id_tells(row) {
            let why = "the id of the row holds its key or its hash, which must not be stored: map another column as id";
            return Err(Refused::new(Refusal::BadSourceId, why));
        }
        let given = material::read(columns, row, self.allow_weak)?;
        let kept_id = self.read_kept_id(row, &mut notes)?;
        let given = match given {
            Some(given) => given,
            None if kept_id.is_some() => Given::missing(),
            // Without an id there is nothing to hold on to, and what other rows of the table are is known.
            None if columns.has(Field::KeyId) => {
                return Err(Refused::new(Refusal::MissingMaterial, "there is neither an id nor a secret nor a hash"));
            }
            None => return Ok(None),
        };
        notes.add_if(given.is_trimmed, Note::Trimmed);
        notes.add_if(given.is_weak, Note::Weak);
        let source_id = read_source_id(row)?;
        let organization = self.read_organization(row, &mut notes)?;
        let standing = standing::read(columns, row, (self.zone, self.is_zone_stated), now)?;
        let look_up_id = self.read_look_up_id(row, &given, &mut notes)?;
        let (prefix, hint) = self.read_shown(row, &given)?;
        let is_scanned = given.is_slow() && look_up_id.is_none() && prefix.is_empty() && hint.is_empty();
        notes.add_if(is_scanned, Note::Scanned);
        let key = ImportedKey {
            kept_id,
            source_id,
            given: given.scheme,
            plaintext_as_digest: given.plaintext_as_digest,
            look_up_id,
            name: self.read_name(row, &mut notes),
            environment: self.read_environment(row, &prefix)?,
            prefix,
            hint,
            status: standing.status,
            scopes: self.read_scopes(row)?,
            metadata: self.read_metadata(row, &given, &mut notes)?,
            owner_id: self.read_owner(row, &mut notes)?,
            allowed_cidrs: columns
                .read_filled(row, Field::AllowedCidrs, Refusal::BadAllowedCidrs, parse_cidrs)?
                .unwrap_or_default(),
            rate_limits: columns.read_limits(row, Refusal::BadRateLimits)?,
            credits: columns.read(row, Field::CreditsRemaining, Refusal::BadCredits, parse_credits)?,
            create_time: standing.create_time,
            expire_time: standing.expire_time,
            last_used_time: standing.last_used_time,
            request_count: columns
                .read_filled(row, Field::RequestCount, Refusal::BadRequestCount, parse_request_count)?
                .unwrap_or_default(),
            revocation: standing.revocation,
            material: given.material,
        };
        hidden::check(columns, row, given.secret, &key)?;
        Ok(Some((key, organization, notes.0)))
    }

    /// A reference without white space around it, if it is not blank.
    fn read_reference<'a>(
        &'a self,
        row: &'a Row,
        field: Field,
        reason: Refusal,
        notes: &mut Notes,
    ) -> Result<Option<&'a str>, Refused> {
        let given = self.columns.given(row, field).map_err(|why| self.columns.refused(field, reason, &why))?;
        let Some(given) = given else { return Ok(None) };
        let text = trim(given);
        notes.add_if(!text.is_empty() && text.len() < given.len(), Note::Trimmed);
        Ok((!text.is_empty()).then_some(text))
    }

    fn read_kept_id(&self, row: &Row, notes: &mut Notes) -> Result<Option<KeyId>, Refused> {
        let text = self.read_reference(row, Field::KeyId, Refusal::BadKeyId, notes)?;
        let id = text.map(KeyId::of_text).transpose();
        id.map_err(|why| self.columns.refused(Field::KeyId, Refusal::BadKeyId, &why))
    }

    fn read_organization(&self, row: &Row, notes: &mut Notes) -> Result<OrganizationRef, Refused> {
        // A constant is shared by all rows that name none.
        let text = if self.columns.raw(row, Field::Organization).is_some() {
            self.read_reference(row, Field::Organization, Refusal::UnknownOrganization, notes)?
        } else {
            None
        };
        let named = text.map(OrganizationRef::of_row).or_else(|| self.organization.clone());
        let why = || Invalid::new("is not given, and the mapping names none");
        named.ok_or_else(|| self.columns.refused(Field::Organization, Refusal::UnknownOrganization, &why()))
    }

    /// A look-up part leads to slow keys alone: of any other kind, one that is no use is left out.
    fn read_look_up_id(&self, row: &Row, given: &Given<'_>, notes: &mut Notes) -> Result<Option<String>, Refused> {
        let (field, reason) = (Field::LookUpId, Refusal::BadLookUpId);
        let Some(text) = self.read_reference(row, field, reason, notes)? else { return Ok(None) };
        let legal = check_look_up_id(text);
        if given.is_slow() {
            legal.map_err(|why| self.columns.refused(field, reason, &why))?;
            return Ok(Some(text.to_owned()));
        }
        let begins = given.secret.is_none_or(|secret| secret.starts_with(text) && !is_most_of(text, secret));
        Ok((legal.is_ok() && begins).then(|| text.to_owned()))
    }

    /// What the secret begins and ends with. What the secret itself says comes before what its row does.
    fn read_shown(&self, row: &Row, given: &Given<'_>) -> Result<(String, String), Refused> {
        let texts =
            |field, reason| self.columns.filled(row, field).map_err(|why| self.columns.refused(field, reason, &why));
        let display = texts(Field::Display, Refusal::BadHint)?.map(split_display);
        let prefix = texts(Field::Prefix, Refusal::BadPrefix)?.map(before_mask);
        let prefix = prefix.or(display.map(|(first, _)| first)).unwrap_or_default();
        if let Some(secret) = given.secret {
            // More than half of it is no beginning any more.
            let fits = !prefix.is_empty() && secret.starts_with(prefix) && prefix.len() * 2 <= secret.len();
            let prefix = if fits { prefix } else { prefix_of(secret) };
            return Ok((prefix.to_owned(), hint_of_secret(secret)));
        }
        let hint = texts(Field::Hint, Refusal::BadHint)?.map(|hint| split_display(hint).1);
        let hint = hint.or(display.map(|(_, last)| last)).map(last_characters).unwrap_or_default();
        let prefix = text::parse_plain(prefix, PREFIX_LENGTH_MAX);
        let prefix = prefix.map_err(|why| self.columns.refused(Field::Prefix, Refusal::BadPrefix, &why))?;
        let hint = text::parse_plain(hint, hint.len());
        let hint = hint.map_err(|why| self.columns.refused(Field::Hint, Refusal::BadHint, &why))?;
        Ok((prefix, hint))
    }

    fn read_name(&self, row: &Row, notes: &mut Notes) -> String {
        let constant = self.columns.constant(Field::Name).unwrap_or(NAME);
        let Some((raw, is_cut)) = self.columns.raw(row, Field::Name) else { return constant.to_owned() };
        if let Some((name, is_changed)) = legal_name(raw) {
            notes.add_if(is_changed || is_cut, Note::NameChanged);
            name.into_owned()
        } else {
            // White space alone is no name; what does not show at all was one to somebody.
            notes.add_if(!raw.trim().is_empty(), Note::NameChanged);
            constant.to_owned()
        }
    }

    /// Where neither row nor mapping says it: what the beginning of the secret says, and otherwise live.
    fn read_environment(&self, row: &Row, prefix: &str) -> Result<Environment, Refused> {
        let words = self.columns.words(Field::Environment);
        let parse = |text: &str| parse_environment(text, words);
        let given = self.columns.read_filled(row, Field::Environment, Refusal::BadEnvironment, parse)?;
        let shown = if prefix.ends_with("_test_") { Environment::Test } else { Environment::Live };
        Ok(given.unwrap_or(shown))
    }

    fn read_scopes(&self, row: &Row) -> Result<Vec<Scope>, Refused> {
        let scopes = self.columns.read_filled(row, Field::Scopes, Refusal::BadScopes, parse_scopes)?;
        let scopes = scopes.unwrap_or_default();
        if scopes.iter().any(|scope| scope.reaches_into(OWN_SCOPES)) {
            let why = Invalid::new("must not reach into keystead., which opens Keystead itself");
            return Err(self.columns.refused(Field::Scopes, Refusal::ReservedScope, &why));
        }
        Ok(scopes)
    }

    fn read_metadata(
        &self,
        row: &Row,
        given: &Given<'_>,
        notes: &mut Notes,
    ) -> Result<BTreeMap<String, String>, Refused> {
        let is_cut = self.columns.raw(row, Field::Metadata).is_some_and(|(_, is_cut)| is_cut);
        let mut kept = if is_cut {
            Kept { cut: true, ..Kept::default() }
        } else {
            let read = self.columns.read_filled(row, Field::Metadata, Refusal::BadMetadata, parse_metadata)?;
            read.unwrap_or_default()
        };
        let before = kept.entries.len();
        let tells = |text: &str| gives_away(text, given.secret, &given.material);
        kept.entries.retain(|name, value| !tells(value) && !tells(name));
        kept.cut |= kept.entries.len() < before;
        if given.is_weak {
            kept.keep_first(ENTRIES_MAX - 1);
            kept.entries.insert(WEAK_ENTRY.to_owned(), "true".to_owned());
        }
        notes.add_if(kept.cut, Note::MetadataCut);
        Ok(kept.entries)
    }

    fn read_owner(&self, row: &Row, notes: &mut Notes) -> Result<String, Refused> {
        let (field, reason) = (Field::OwnerId, Refusal::BadOwnerId);
        let text = self.read_reference(row, field, reason, notes)?;
        let text = text.or_else(|| self.columns.constant(field)).unwrap_or_default();
        text::parse_owner(text).map_err(|why| self.columns.refused(field, reason, &why))
    }
}

/// What was changed on the way of a row, each at most once.
#[derive(Default)]
struct Notes(Vec<Note>);

impl Notes {
    fn add_if(&mut self, applies: bool, note: Note) {
        if applies && !self.0.contains(&note) {
            self.0.push(note);
        }
    }
}

/// The id stays as it is: two ids that differ by a space are two rows.
fn read_source_id(row: &Row) -> Result<String, Refused> {
    check_row_id(row, Refusal::BadSourceId)?;
    Ok(row.id.clone())
}

fn check_look_up_id(text: &str) -> Result<(), Invalid> {
    if text.chars().count() < LOOK_UP_LENGTH_MIN {
        return Err(Invalid::new(format!("must have at least {LOOK_UP_LENGTH_MIN} characters")));
    }
    text::check_plain(text, LOOK_UP_LENGTH_MAX)
}

fn parse_credits(text: &str) -> Result<Credits, Invalid> {
    Credits::parse(parse_count(text)?, 0, None)
}
