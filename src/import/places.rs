//! Whose a row is: from the text by which a source names an organization to the organization that Keystead has.
//! A text is the id that it was imported under from this source, or its id, or its slug, in that order; where the
//! mapping brings organizations in, a row's text is never a slug: whoever may choose slugs in Keystead could otherwise
//! choose the name by which a source calls somebody else. `system` takes no keys.
//! Invariant: an organization that does not exist is told as such, and never taken for another one.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{mapping::Mapping, treat::OrganizationRef};
use crate::{
    domain::{ids::OrganizationId, organization::OrganizationSelector, permission::Reach, text},
    service::Context,
    store::{StoreError, organizations},
};

/// Texts that are remembered at the most.
const REMEMBERED_MAX: usize = 50_000;

/// The organizations that rows have named so far.
pub(super) struct Places {
    /// The label of the source.
    source: String,
    /// Whether rows name organizations of the source itself.
    are_own: bool,
    known: HashMap<OrganizationRef, Option<OrganizationId>>,
    /// Organizations that a run would create, where nothing is written.
    planned: HashSet<OrganizationId>,
    planned_slugs: HashMap<String, OrganizationId>,
}

impl Places {
    /// Of the source of a mapping; knows none yet.
    pub(super) fn new(mapping: &Mapping) -> Self {
        Self {
            source: mapping.source.clone(),
            are_own: mapping.organizations.is_some(),
            known: HashMap::new(),
            planned: HashSet::new(),
            planned_slugs: HashMap::new(),
        }
    }

    /// Takes an organization for one that is there, though it would only be created.
    pub(super) fn plan(&mut self, id: OrganizationId, slug: String) {
        self.planned.insert(id);
        self.planned_slugs.insert(slug, id);
    }

    /// Finds the organizations of a batch; [`Places::get`] then knows all of these.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn find<'t>(
        &mut self,
        context: &Context,
        named: impl Iterator<Item = &'t OrganizationRef>,
    ) -> Result<(), StoreError> {
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        let new: BTreeSet<&OrganizationRef> = named.filter(|name| !self.known.contains_key(*name)).collect();
        let id_of = |name: &OrganizationRef| OrganizationId::of_source(&self.source, name.as_str()).ok();
        let ids: BTreeSet<OrganizationId> = new.iter().filter_map(|name| id_of(name)).collect();
        let ids: Vec<OrganizationId> = ids.into_iter().collect();
        let there = organizations::list_existing_shared(context.store.control(), &ids).await?;
        for name in new {
            let by_id = OrganizationId::of_source(&self.source, name.as_str()).ok();
            let found = match by_id.filter(|id| there.contains(id) || self.planned.contains(id)) {
                Some(id) => Some(id),
                None if self.are_own && !name.is_of_mapping() => None,
                None => self.find_by_slug(context, name.as_str()).await?,
            };
            self.known.insert(name.clone(), found.filter(|id| *id != OrganizationId::SYSTEM));
        }
        Ok(())
    }

    /// What a name stands for, `None` where Keystead has no such organization.
    pub(super) fn get(&self, name: &OrganizationRef) -> Option<OrganizationId> {
        self.known.get(name).copied().flatten()
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
