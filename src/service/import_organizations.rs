//! A batch of `keystead import`: organizations that exist elsewhere come in, with what is spent of their quotas.
//!
//! One that is here already, by its id, stays as it is; only what was spent on top since is added. Each new one leaves
//! an audit event, in the batch's transaction. Must not touch `system`, nor take a slug or an email address away from
//! the organization that has it.

use std::{collections::HashSet, sync::Arc};

use serde_json::json;

use super::{
    Context, ServiceError,
    create_organization::of_insert,
    import_rows::{RowBatch, RowResult, advance, lock},
};
use crate::{
    domain::{
        audit::{Actor, AuditAction, NewAuditEvent},
        ids::{OrganizationId, RecordId},
        import::Refusal,
        organization::{Organization, SYSTEM_SLUG},
        time::Timestamp,
    },
    random,
    store::{
        Database, audit_events, commit,
        imported_counts::{self, SourceCount},
        imported_organizations, organizations,
    },
};

/// How often a batch is tried where somebody takes one of its names at the same moment.
const TRIES_MAX: u32 = 3;
/// Digits of the id that tell a slug apart that nobody chose.
const SLUG_DIGITS: usize = 8;
/// The longest slug.
const SLUG_LENGTH_MAX: usize = 63;

/// An organization to be brought in.
#[derive(Debug, Clone)]
pub struct OrganizationItem {
    /// As it is to be, under the id that it keeps.
    pub organization: Organization,
    /// Whether its slug was made of its name: where that is taken, the id is added to it.
    pub slug_is_derived: bool,
    /// What is spent of this month's quota, 0 where that is not known.
    pub quota_used: i64,
}

/// Brings a batch in; gives a result for each item, in order.
///
/// # Errors
/// `FailedPrecondition` where another run has gone on with the import; the store's own.
pub async fn import_organizations(
    context: &Arc<Context>,
    actor: Actor,
    source: String,
    batch: RowBatch<OrganizationItem>,
) -> Result<Vec<RowResult>, ServiceError> {
    let work = Arc::new(Work { actor, source, batch, now: context.clock.now() });
    let mut tries = 1;
    loop {
        let (own, work) = (context.clone(), work.clone());
        match context.run_to_end(async move { work.bring(&own).await }).await {
            // Looked up again, whoever was first is found.
            Err(ServiceError::AlreadyExists { .. }) if tries < TRIES_MAX => tries += 1,
            ended => return ended,
        }
    }
}

/// Tells what would become of a batch, of which nothing is written: a result for each item, in order, and the
/// organizations that would be new, as they would be written. `taken` is what batches before this one would have taken,
/// and takes what this one would.
///
/// # Errors
/// The store's own.
pub async fn plan_organizations(
    context: &Context,
    items: &[OrganizationItem],
    taken: &mut TakenNames,
) -> Result<(Vec<RowResult>, Vec<Organization>), ServiceError> {
    taken.find(context.store.control(), items).await?;
    Ok(taken.place_all(items))
}

struct Work {
    actor: Actor,
    source: String,
    batch: RowBatch<OrganizationItem>,
    now: Timestamp,
}

impl Work {
    async fn bring(&self, context: &Context) -> Result<Vec<RowResult>, ServiceError> {
        let transaction = context.store.begin().await?;
        lock(&transaction, &self.batch).await?;
        let mut taken = TakenNames::default();
        taken.find(&transaction, &self.batch.items).await?;
        let (results, new) = taken.place_all(&self.batch.items);
        for organization in &new {
            let written = organizations::insert(&transaction, organization, None).await;
            written.map_err(of_insert)?;
        }
        self.audit(&transaction, &new).await?;
        imported_counts::add(&transaction, &self.spent(&results)).await?;
        advance(&transaction, &self.batch, &results, self.now).await?;
        commit(transaction).await?;
        Ok(results)
    }

    /// What is spent of the quotas of organizations that are here or come in.
    fn spent(&self, results: &[RowResult]) -> Vec<SourceCount> {
        let month = self.now.start_of_month();
        let of_item = |(item, result): (&OrganizationItem, &RowResult)| {
            let is_new = match result {
                RowResult::Created => true,
                RowResult::Existing => false,
                RowResult::Skipped | RowResult::Refused(_) => return None,
            };
            let count = Some(item.quota_used).filter(|count| *count > 0)?;
            Some(SourceCount::of_quota(item.organization.id, month, count, is_new))
        };
        self.batch.items.iter().zip(results).filter_map(of_item).collect()
    }

    async fn audit(&self, transaction: &impl Database, new: &[Organization]) -> Result<(), ServiceError> {
        let event = |organization: &Organization| {
            let detail = json!({
                "slug": organization.slug,
                "plan": organization.plan.as_str(),
                "source": self.source,
                "import_id": self.batch.import_id.to_string(),
            });
            let event = NewAuditEvent {
                time: self.now,
                actor: self.actor.clone(),
                action: AuditAction::OrganizationCreate,
                target_id: organization.id.to_string(),
                organization_id: organization.id,
                detail: detail.to_string(),
            };
            (RecordId::new(self.now, random::bytes()), event)
        };
        let events: Vec<_> = new.iter().map(event).collect();
        audit_events::insert_many(transaction, &events).await?;
        Ok(())
    }
}

/// What organizations of a batch may meet: those that are here, those before them in the batch, and, where nothing is
/// written, those of the batches before it.
#[derive(Debug, Default)]
pub struct TakenNames {
    ids: HashSet<OrganizationId>,
    slugs: HashSet<String>,
    emails: HashSet<String>,
}

impl TakenNames {
    /// Adds what is here and these may meet.
    async fn find(&mut self, db: &impl Database, items: &[OrganizationItem]) -> Result<(), ServiceError> {
        let ids: Vec<OrganizationId> = items.iter().map(|item| item.organization.id).collect();
        let slugs: Vec<String> = items.iter().flat_map(OrganizationItem::slugs).collect();
        let emails: Vec<String> = items.iter().filter_map(|item| item.organization.email.clone()).collect();
        let here = imported_organizations::list_by_ids(db, &ids).await?;
        let by_slug = imported_organizations::list_by_slugs(db, &slugs).await?;
        let by_email = imported_organizations::list_by_emails(db, &emails).await?;
        self.ids.extend(here.into_iter().map(|organization| organization.id));
        self.slugs.extend(by_slug.into_iter().map(|names| names.slug));
        self.emails.extend(by_email.into_iter().filter_map(|names| names.email));
        Ok(())
    }

    /// A result for each of these, and the organizations that are new, as they are written.
    fn place_all(&mut self, items: &[OrganizationItem]) -> (Vec<RowResult>, Vec<Organization>) {
        let (mut results, mut new) = (Vec::with_capacity(items.len()), Vec::new());
        for item in items {
            results.push(match self.place(item) {
                Ok(Some(organization)) => {
                    new.push(organization);
                    RowResult::Created
                }
                Ok(None) => RowResult::Existing,
                Err(refused) => refused,
            });
        }
        (results, new)
    }

    /// The organization as it is written, `None` for one that is here already; or why it is neither.
    fn place(&mut self, item: &OrganizationItem) -> Result<Option<Organization>, RowResult> {
        let mut organization = item.organization.clone();
        let refused = |reason, message: String| Err(RowResult::refused(reason, message));
        let claims_slug = organization.slug == SYSTEM_SLUG && !item.slug_is_derived;
        if organization.id == OrganizationId::SYSTEM || claims_slug {
            return refused(Refusal::BadOrganization, "system is Keystead's own organization".to_owned());
        }
        if self.ids.contains(&organization.id) {
            return Ok(None);
        }
        let free = item.slugs().into_iter().find(|slug| slug != SYSTEM_SLUG && !self.slugs.contains(slug));
        let Some(free) = free else {
            let message = format!("the slug {:?} is another organization's", organization.slug);
            return refused(Refusal::SlugTaken, message);
        };
        organization.slug = free;
        if organization.email.as_ref().is_some_and(|email| self.emails.contains(email)) {
            return refused(Refusal::SlugTaken, "the email address is another organization's".to_owned());
        }
        self.ids.insert(organization.id);
        self.slugs.insert(organization.slug.clone());
        self.emails.extend(organization.email.clone());
        Ok(Some(organization))
    }
}

impl OrganizationItem {
    /// The slugs that it may get, the wanted one first.
    fn slugs(&self) -> Vec<String> {
        let slug = self.organization.slug.clone();
        if !self.slug_is_derived {
            return vec![slug];
        }
        // The last digits: the first ones of ids that were made at one time are the same.
        let id = self.organization.id.to_string();
        let digits = id.get(id.len().saturating_sub(SLUG_DIGITS)..).unwrap_or_default();
        let short: String = slug.chars().take(SLUG_LENGTH_MAX - SLUG_DIGITS - 1).collect();
        let apart = format!("{}-{digits}", short.trim_end_matches('-'));
        vec![slug, apart]
    }
}
