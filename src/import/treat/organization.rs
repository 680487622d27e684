//! One row of a table of organizations, from texts to an organization that Keystead could have. Pure: whether its slug
//! or its address is taken is not looked up. Must not let in the organization `system`, under whatever name.

use std::collections::BTreeMap;

use time::UtcOffset;

use super::{Notes, columns::Columns, read_source_id, standing};
use crate::{
    domain::{
        Invalid,
        ids::OrganizationId,
        import::{Note, Refusal, Refused},
        limits::RateLimit,
        organization::{Plan, SYSTEM_SLUG, parse_max_keys, parse_monthly_quota},
        secret::SecretPrefix,
        text,
        time::Timestamp,
    },
    import::{
        mapping::{Field, Mapping, OrganizationTable},
        source::Row,
        values::{Kept, legal_name, parse_active, parse_count, parse_metadata, parse_plan, slug_of, trim},
    },
};

/// An organization as its source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOrganization {
    /// The id of its row.
    pub source_id: String,
    /// What other tables of the source call it.
    pub key: String,
    /// The id that it keeps: `key`, where that is a UUID, or one that always follows from
    /// it and the label of the source.
    pub id: OrganizationId,
    pub name: String,
    pub slug: String,
    /// In ASCII lower case.
    pub email: Option<String>,
    pub plan: Plan,
    pub active: bool,
    /// 0 for no cap.
    pub max_keys: i64,
    pub rate_limits: Vec<RateLimit>,
    /// 0 for no quota.
    pub monthly_quota: i64,
    /// What is spent of the present month's quota.
    pub quota_used: i64,
    pub secret_prefix: SecretPrefix,
    pub metadata: BTreeMap<String, String>,
    /// `None` for now.
    pub create_time: Option<Timestamp>,
    /// What was changed on the way, each at most once.
    pub notes: Vec<Note>,
}

/// Reads the rows of a table of organizations.
#[derive(Debug)]
pub struct OrganizationReader {
    columns: Columns,
    /// The label of the source.
    source: String,
    zone: UtcOffset,
}

impl OrganizationReader {
    /// For the table of a mapping.
    #[must_use]
    pub fn new(mapping: &Mapping, table: &OrganizationTable) -> Self {
        let (_, columns) = Columns::new(&table.table);
        Self { columns, source: mapping.source.clone(), zone: mapping.time_zone }
    }

    /// What a row says. Times after `now` are in the future.
    ///
    /// # Errors
    /// Why the row cannot be an organization: `BAD_ORGANIZATION`, or `BAD_SOURCE_ID`.
    pub fn read(&self, row: &Row, now: Timestamp) -> Result<SourceOrganization, Refused> {
        let mut notes = Notes::default();
        let source_id = read_source_id(row)?;
        let key = self.read_key(row, &mut notes)?;
        let id = OrganizationId::of_source(&self.source, key).map_err(|why| self.refused(Field::Key, &why))?;
        if id == OrganizationId::SYSTEM {
            return Err(self.refused(Field::Key, &Invalid::new("is the id of the organization `system`")));
        }
        let name = self.read_name(row, key, &mut notes)?;
        let active_words = self.columns.words(Field::Active);
        let plan_words = self.columns.words(Field::Plan);
        let number = |text: &str, bound: fn(i64) -> Result<i64, Invalid>| parse_count(text).and_then(bound);
        Ok(SourceOrganization {
            slug: self.read_slug(row, &name, id, &mut notes)?,
            name,
            email: self.filled(row, Field::Email, text::parse_email)?,
            plan: self.filled(row, Field::Plan, |text| parse_plan(text, plan_words))?.unwrap_or(Plan::Free),
            active: self.given(row, Field::Active, |text| parse_active(text, active_words))?.unwrap_or(true),
            max_keys: self.given(row, Field::MaxKeys, |text| number(text, parse_max_keys))?.unwrap_or_default(),
            rate_limits: self.columns.read_limits(row, Refusal::BadOrganization)?,
            monthly_quota: self
                .given(row, Field::MonthlyQuota, |text| number(text, parse_monthly_quota))?
                .unwrap_or_default(),
            quota_used: self.given(row, Field::QuotaUsed, parse_count)?.unwrap_or_default(),
            secret_prefix: self.read_secret_prefix(row)?,
            metadata: self.read_metadata(row, &mut notes)?,
            create_time: standing::past(
                &self.columns,
                row,
                Field::CreateTime,
                Refusal::BadOrganization,
                self.zone,
                now,
            )?,
            key: key.to_owned(),
            id,
            source_id,
            notes: notes.0,
        })
    }

    fn refused(&self, field: Field, why: &Invalid) -> Refused {
        self.columns.refused(field, Refusal::BadOrganization, why)
    }

    /// A field whose blank value is refused: it bounds what the organization may do.
    fn given<T>(
        &self,
        row: &Row,
        field: Field,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Refused> {
        self.columns.read(row, field, Refusal::BadOrganization, parse)
    }

    /// A field whose blank value is none.
    fn filled<T>(
        &self,
        row: &Row,
        field: Field,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Refused> {
        self.columns.read_filled(row, field, Refusal::BadOrganization, parse)
    }

    /// What other tables call it: the id of the row where no column says it.
    fn read_key<'a>(&'a self, row: &'a Row, notes: &mut Notes) -> Result<&'a str, Refused> {
        let given = if self.columns.has(Field::Key) {
            self.columns.given(row, Field::Key).map_err(|why| self.refused(Field::Key, &why))?
        } else {
            Some(row.id.as_str())
        };
        let given = given.unwrap_or_default();
        let key = trim(given);
        notes.add_if(key.len() < given.len(), Note::Trimmed);
        if key.is_empty() {
            return Err(self.refused(Field::Key, &Invalid::new("must be given")));
        }
        Ok(key)
    }

    /// The name, or the constant, or what other tables call it.
    fn read_name(&self, row: &Row, key: &str, notes: &mut Notes) -> Result<String, Refused> {
        let given = self.columns.raw(row, Field::Name);
        if let Some((name, is_changed)) = given.and_then(|(name, _)| legal_name(name)) {
            notes.add_if(is_changed, Note::NameChanged);
            return Ok(name.into_owned());
        }
        let other = text::parse_name(self.columns.constant(Field::Name).unwrap_or(key));
        other.map_err(|why| self.refused(Field::Name, &why))
    }

    /// The slug in lower case; where it is not legal, or there is none, one is made of it, of the name, or of the id.
    fn read_slug(&self, row: &Row, name: &str, id: OrganizationId, notes: &mut Notes) -> Result<String, Refused> {
        let given = self.columns.filled(row, Field::Slug).map_err(|why| self.refused(Field::Slug, &why))?;
        let lower = given.map(str::to_ascii_lowercase);
        let slug = if let Some(Ok(slug)) = lower.as_deref().map(text::parse_slug) {
            slug
        } else {
            notes.add_if(given.is_some(), Note::NameChanged);
            let made = [slug_of(given.unwrap_or_default()), slug_of(name)];
            let legal = made.into_iter().find(|slug| text::parse_slug(slug).is_ok());
            legal.unwrap_or_else(|| format!("org-{id}"))
        };
        if slug == SYSTEM_SLUG {
            return Err(self.refused(Field::Slug, &Invalid::new("is the organization `system`")));
        }
        Ok(slug)
    }

    /// Empty stands for the prefix of organizations that set none.
    fn read_secret_prefix(&self, row: &Row) -> Result<SecretPrefix, Refused> {
        let field = Field::SecretPrefix;
        let given = self.columns.filled(row, field).and_then(|text| SecretPrefix::parse(text.unwrap_or_default()));
        given.map_err(|why| self.refused(field, &why))
    }

    fn read_metadata(&self, row: &Row, notes: &mut Notes) -> Result<BTreeMap<String, String>, Refused> {
        let is_cut = self.columns.raw(row, Field::Metadata).is_some_and(|(_, is_cut)| is_cut);
        let kept = if is_cut {
            Kept { cut: true, ..Kept::default() }
        } else {
            self.filled(row, Field::Metadata, parse_metadata)?.unwrap_or_default()
        };
        notes.add_if(kept.cut, Note::MetadataCut);
        Ok(kept.entries)
    }
}
