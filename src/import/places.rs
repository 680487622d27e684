//! Whose a row is: from the text by which a source names an organization to the organization that Keystead has.
//! A text is the id that it was imported under, or its id, or its slug, in that order. `system` takes no keys.
//! Invariant: an organization that does not exist is told as such, and never taken for another one.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::{
    domain::{ids::OrganizationId, organization::OrganizationSelector, permission::Reach, text},
    service::Context,
    store::{StoreError, organizations},
};

/// Texts that are remembered at the most.
const REMEMBERED_MAX: usize = 50_000;

/// The organizations that rows have named so far.
#[derive(Default)]
pub(super) struct Places {
    known: HashMap<String, Option<OrganizationId>>,
    /// Organizations that a run would create, where nothing is written.
    planned: HashSet<OrganizationId>,
    planned_slugs: HashMap<String, OrganizationId>,
}

impl Places {
    /// Takes an organization for one that is there, though it would only be created.
    pub(super) fn plan(&mut self, id: OrganizationId, slug: String) {
        self.planned.insert(id);
        self.planned_slugs.insert(slug, id);
    }

    /// Finds the organizations of a batch; [`Places::get`] then knows all of these texts.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn find<'t>(
        &mut self,
        context: &Context,
        texts: impl Iterator<Item = &'t str>,
    ) -> Result<(), StoreError> {
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        let new: BTreeSet<&str> = texts.filter(|text| !self.known.contains_key(*text)).collect();
        let ids: BTreeSet<OrganizationId> = new.iter().filter_map(|text| OrganizationId::of_text(text).ok()).collect();
        let ids: Vec<OrganizationId> = ids.into_iter().collect();
        let there = organizations::list_existing_shared(context.store.control(), &ids).await?;
        for name in new {
            let by_id = OrganizationId::of_text(name).ok();
            let found = match by_id.filter(|id| there.contains(id) || self.planned.contains(id)) {
                Some(id) => Some(id),
                None => self.find_by_slug(context, name).await?,
            };
            self.known.insert(name.to_owned(), found.filter(|id| *id != OrganizationId::SYSTEM));
        }
        Ok(())
    }

    /// What a text stands for, `None` where Keystead has no such organization.
    pub(super) fn get(&self, text: &str) -> Option<OrganizationId> {
        self.known.get(text).copied().flatten()
    }

    async fn find_by_slug(&self, context: &Context, name: &str) -> Result<Option<OrganizationId>, StoreError> {
        // What is no slug may hold what a database cannot be asked for.
        if text::parse_slug(name).is_err() {
            return Ok(None);
        }
        if let Some(id) = self.planned_slugs.get(name) {
            return Ok(Some(*id));
        }
        let selector = OrganizationSelector::Slug(name.to_owned());
        let found = organizations::find(context.store.control(), Reach::All, &selector).await?;
        Ok(found.map(|organization| organization.id))
    }
}
