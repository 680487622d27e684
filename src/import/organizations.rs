//! Organizations of a source, from rows to batches of `service::import_organizations`. What a row says is read by
//! `treat/organization.rs`; what is here already, and which names are taken, the service finds out.
//! Must not write by itself.

use std::sync::Arc;

use super::{
    actor,
    mapping::{Field, Mapping, OrganizationTable},
    rows::BatchCounts,
    source::Row,
    treat::{Columns, OrganizationReader, SourceOrganization},
    values::trim,
};
use crate::{
    domain::{organization::Organization, time::Timestamp},
    service::{self, Context, OrganizationItem, ServiceError, TakenNames},
    store::imports::Import,
};

/// What is spent beyond this is as much as this: no quota is higher.
const QUOTA_USED_MAX: i64 = 1_000_000_000_000;

/// A table of organizations.
pub(super) struct Organizations {
    reader: OrganizationReader,
    columns: Columns,
    source: String,
}

impl Organizations {
    pub(super) fn new(mapping: &Mapping, table: &OrganizationTable) -> Self {
        let (_, columns) = Columns::new(&table.table);
        Self { reader: OrganizationReader::new(mapping, table), columns, source: mapping.source.clone() }
    }

    /// Brings in the rows that follow the position `after`, and moves the import on behind the last of them.
    ///
    /// # Errors
    /// `FailedPrecondition` where another run has gone on with the import; the store's own.
    pub(super) async fn write_batch(
        &self,
        context: &Arc<Context>,
        import: &Import,
        after: &str,
        rows: &[Row],
    ) -> Result<BatchCounts, ServiceError> {
        let (mut counts, read, items) = self.read(rows, context.clock.now());
        let batch = counts.batch_of(import.id, after, rows, items);
        let results = service::import_organizations(context, actor(), self.source.clone(), batch).await?;
        counts.count(read, results);
        Ok(counts)
    }

    /// Tells what would become of rows beside what is here now, and gives the organizations that would be new.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn plan_batch(
        &self,
        context: &Context,
        rows: &[Row],
    ) -> Result<(BatchCounts, Vec<Organization>), ServiceError> {
        self.plan_next(context, rows, &mut TakenNames::default()).await
    }

    /// The same beside what batches before these rows would have taken by then, to which theirs is added.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn plan_next(
        &self,
        context: &Context,
        rows: &[Row],
        taken: &mut TakenNames,
    ) -> Result<(BatchCounts, Vec<Organization>), ServiceError> {
        let (mut counts, read, items) = self.read(rows, context.clock.now());
        let (results, new) = service::plan_organizations(context, &items, taken).await?;
        counts.count(read, results);
        Ok((counts, new))
    }

    /// The rows that could be read, and what they say.
    fn read<'r>(&self, rows: &'r [Row], now: Timestamp) -> (BatchCounts, Vec<&'r Row>, Vec<OrganizationItem>) {
        let (mut counts, mut read, mut items) = (BatchCounts::default(), Vec::new(), Vec::new());
        for row in rows {
            match self.reader.read(row, now) {
                Ok(organization) => {
                    counts.notes.extend(&organization.notes);
                    items.push(self.item(row, organization, now));
                    read.push(row);
                }
                Err(refused) => counts.refuse(row, refused),
            }
        }
        (counts, read, items)
    }

    fn item(&self, row: &Row, from: SourceOrganization, now: Timestamp) -> OrganizationItem {
        let given = self.columns.raw(row, Field::Slug).map(|(text, _)| trim(text).to_ascii_lowercase());
        OrganizationItem {
            slug_is_derived: given.is_none_or(|given| given != from.slug),
            quota_used: from.quota_used.min(QUOTA_USED_MAX),
            organization: Organization {
                id: from.id,
                name: from.name,
                slug: from.slug,
                email: from.email,
                plan: from.plan,
                active: from.active,
                max_keys: from.max_keys,
                rate_limits: from.rate_limits,
                monthly_quota: from.monthly_quota,
                secret_prefix: from.secret_prefix,
                metadata: from.metadata,
                create_time: from.create_time.unwrap_or(now),
                update_time: now,
                etag: 1,
            },
        }
    }
}
