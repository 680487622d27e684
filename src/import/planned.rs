//! What a run would have written so far, where nothing is: which secrets and ids would be taken, and how much room
//! would be left under the caps of organizations. Some 200 bytes for each distinct key.
//! Must not write. Invariant: rows meet each other here as they would meet in the database, whatever the batches are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::ImportError;
use crate::{
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId},
        import::{Material, Refusal, Refused},
        key::StoredStatus,
        permission::Reach,
        time::Timestamp,
    },
    service::{Context, ImportItem, ItemResult},
    store::{imported_keys, key_counts, organizations},
};

/// What would be there by now.
#[derive(Default)]
pub(super) struct Planned {
    /// Organizations that would be new.
    pub(super) organizations: HashSet<OrganizationId>,
    keys: HashMap<Digest, PlannedKey>,
    ids: HashSet<KeyId>,
    /// How many more keys an organization takes; `None` where it has no cap.
    rooms: HashMap<OrganizationId, Option<i64>>,
    /// How many keys of an organization would be found by a scan alone.
    scanned: BTreeMap<OrganizationId, u64>,
}

/// The most keys that are compared with one secret; as in `service::verify_slow_key`.
const SCANNED_MAX: u64 = 200;

/// What counts of a key that would be there.
struct PlannedKey {
    organization_id: OrganizationId,
    kept_id: Option<KeyId>,
    status: StoredStatus,
    expire_time: Option<Timestamp>,
}

impl Planned {
    /// Corrects the results of a batch by what would have been written before it, and within it.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn meet(
        &mut self,
        context: &Context,
        items: &[ImportItem],
        results: &mut [ItemResult],
    ) -> Result<(), ImportError> {
        self.place_in_new(context, items, results).await?;
        self.find_rooms(context, items).await?;
        for (item, result) in items.iter().zip(results) {
            // Whatever else it is, the database says so.
            if matches!(result, ItemResult::WouldCreate | ItemResult::Duplicate(None)) {
                *result = self.met_by(item);
            }
            let is_scanned = matches!(item.key.material, Material::Slow(_)) && item.key.look_up_id.is_none();
            if is_scanned && matches!(result, ItemResult::WouldCreate | ItemResult::Existing(_)) {
                *self.scanned.entry(item.organization_id).or_default() += 1;
            }
        }
        Ok(())
    }

    /// The organizations of which not all slow keys would be compared with a secret, and how many they would have.
    pub(super) fn crowded(&self) -> impl Iterator<Item = (OrganizationId, u64)> {
        self.scanned.iter().filter(|(_, count)| **count > SCANNED_MAX).map(|(id, count)| (*id, *count))
    }

    /// Keys of organizations that would be new: they were refused, since there are none yet.
    async fn place_in_new(
        &self,
        context: &Context,
        items: &[ImportItem],
        results: &mut [ItemResult],
    ) -> Result<(), ImportError> {
        let is_new = |item: &ImportItem, result: &ItemResult| {
            let unknown = |refused: &Refused| refused.reason == Refusal::UnknownOrganization;
            matches!(result, ItemResult::Refused(refused) if unknown(refused))
                && self.organizations.contains(&item.organization_id)
        };
        let new: Vec<&ImportItem> =
            items.iter().zip(&*results).filter(|(item, result)| is_new(item, result)).map(|(item, _)| item).collect();
        if new.is_empty() {
            return Ok(());
        }
        let digests: Vec<Digest> = new.iter().filter_map(|item| item.key.material.digest().copied()).collect();
        let ids: Vec<KeyId> = new.iter().filter_map(|item| item.key.kept_id).collect();
        let db = context.store.control();
        let digests: HashSet<Digest> =
            imported_keys::list_by_digests(db, &digests).await?.into_iter().filter_map(|held| held.digest).collect();
        let ids: HashSet<KeyId> = imported_keys::list_by_ids(db, &ids).await?.into_iter().map(|held| held.id).collect();
        for (item, result) in items.iter().zip(results) {
            if !is_new(item, &*result) {
                continue;
            }
            *result = if item.key.material.digest().is_some_and(|digest| digests.contains(digest)) {
                in_other_organization()
            } else if item.key.kept_id.is_some_and(|id| ids.contains(&id)) {
                id_taken()
            } else {
                ItemResult::WouldCreate
            };
        }
        Ok(())
    }

    async fn find_rooms(&mut self, context: &Context, items: &[ImportItem]) -> Result<(), ImportError> {
        let db = context.store.control();
        let wanted: BTreeSet<OrganizationId> = items.iter().map(|item| item.organization_id).collect();
        for id in wanted {
            if self.rooms.contains_key(&id) {
                continue;
            }
            let found = organizations::find_by_id(db, Reach::All, id).await?;
            let room = match found.filter(|organization| organization.max_keys > 0) {
                Some(organization) => Some(organization.max_keys - key_counts::count(db, id).await?),
                None => None,
            };
            self.rooms.insert(id, room);
        }
        Ok(())
    }

    fn met_by(&mut self, item: &ImportItem) -> ItemResult {
        let key = &item.key;
        if let Some(before) = key.material.digest().and_then(|digest| self.keys.get(digest)) {
            return before.result_for(item);
        }
        if key.kept_id.is_some_and(|id| self.ids.contains(&id)) {
            return id_taken();
        }
        if !self.take_room(item) {
            let message = "the organization has as many keys as its cap allows";
            return refused(Refusal::KeyCapReached, message);
        }
        self.ids.extend(key.kept_id);
        if let Some(digest) = key.material.digest() {
            let planned = PlannedKey {
                organization_id: item.organization_id,
                kept_id: key.kept_id,
                status: key.status,
                expire_time: key.expire_time,
            };
            self.keys.insert(*digest, planned);
        }
        ItemResult::WouldCreate
    }

    /// Revoked keys take none.
    fn take_room(&mut self, item: &ImportItem) -> bool {
        if item.key.status == StoredStatus::Revoked {
            return true;
        }
        match self.rooms.get_mut(&item.organization_id) {
            Some(Some(room)) if *room > 0 => {
                *room -= 1;
                true
            }
            Some(Some(_)) => false,
            Some(None) | None => true,
        }
    }
}

impl PlannedKey {
    /// What becomes of a row with the same secret; as `service::import_batch` decides where the key is there.
    fn result_for(&self, item: &ImportItem) -> ItemResult {
        let (row, kept_id) = (&item.key, self.kept_id);
        if self.organization_id != item.organization_id {
            return in_other_organization();
        }
        if row.kept_id.is_some_and(|id| kept_id != Some(id)) {
            return refused(Refusal::DuplicateSecret, "the same secret would be a key with another id");
        }
        let ends_earlier = row.expire_time.is_some_and(|end| self.expire_time.is_none_or(|own| end < own));
        if rank(row.status) > rank(self.status) || ends_earlier {
            return refused(
                Refusal::DuplicateDiffers,
                "the same key comes from another row, which lets it live longer",
            );
        }
        ItemResult::Duplicate(None)
    }
}

/// The higher, the less a key may.
const fn rank(status: StoredStatus) -> u8 {
    match status {
        StoredStatus::Active => 0,
        StoredStatus::Disabled => 1,
        StoredStatus::Revoked => 2,
    }
}

fn in_other_organization() -> ItemResult {
    refused(Refusal::DuplicateInOtherOrganization, "the same secret is a key of another organization")
}

fn id_taken() -> ItemResult {
    refused(Refusal::IdTaken, "the id is another key's")
}

fn refused(reason: Refusal, message: &str) -> ItemResult {
    ItemResult::Refused(Refused::new(reason, message))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::{
        import::{GivenScheme, ImportedKey},
        key::Environment,
    };

    const ONE: OrganizationId = OrganizationId::from_u128(11);
    const OTHER: OrganizationId = OrganizationId::from_u128(12);

    fn item(organization_id: OrganizationId, secret: &str, kept_id: Option<u128>) -> ImportItem {
        let key = ImportedKey {
            kept_id: kept_id.map(KeyId::from_u128),
            source_id: String::new(),
            given: GivenScheme::Plaintext,
            material: Material::Digest(Digest::of(secret)),
            plaintext_as_digest: None,
            look_up_id: None,
            prefix: String::new(),
            hint: String::new(),
            name: "a key".to_owned(),
            environment: Environment::Live,
            status: StoredStatus::Active,
            scopes: Vec::new(),
            metadata: BTreeMap::new(),
            owner_id: String::new(),
            allowed_cidrs: Vec::new(),
            rate_limits: Vec::new(),
            credits: None,
            create_time: None,
            expire_time: None,
            last_used_time: None,
            request_count: 0,
            revocation: None,
        };
        ImportItem { organization_id, key }
    }

    fn reason(result: &ItemResult) -> Option<Refusal> {
        match result {
            ItemResult::Refused(refused) => Some(refused.reason),
            ItemResult::Created(_) | ItemResult::WouldCreate | ItemResult::Existing(_) | ItemResult::Duplicate(_) => {
                None
            }
        }
    }

    #[test]
    fn rows_of_later_batches_meet_what_earlier_ones_would_have_written() {
        let mut planned = Planned::default();
        assert_eq!(planned.met_by(&item(ONE, "first", Some(1))), ItemResult::WouldCreate);
        assert_eq!(planned.met_by(&item(ONE, "first", Some(1))), ItemResult::Duplicate(None));
        assert_eq!(planned.met_by(&item(ONE, "first", None)), ItemResult::Duplicate(None));
        let refused = [
            (item(OTHER, "first", Some(1)), Refusal::DuplicateInOtherOrganization),
            (item(ONE, "first", Some(2)), Refusal::DuplicateSecret),
            (item(ONE, "second", Some(1)), Refusal::IdTaken),
        ];
        for (item, expected) in refused {
            assert_eq!(reason(&planned.met_by(&item)), Some(expected));
        }
        let mut stricter = item(ONE, "first", None);
        stricter.key.expire_time = Some(Timestamp::from_micros(1));
        assert_eq!(reason(&planned.met_by(&stricter)), Some(Refusal::DuplicateDiffers));
        stricter.key.expire_time = None;
        stricter.key.status = StoredStatus::Disabled;
        assert_eq!(reason(&planned.met_by(&stricter)), Some(Refusal::DuplicateDiffers));
    }

    #[test]
    fn a_cap_holds_over_batches_and_counts_no_key_twice() {
        let mut planned = Planned::default();
        planned.rooms.insert(ONE, Some(2));
        let results: Vec<ItemResult> =
            ["a", "a", "b", "c", "b"].iter().map(|secret| planned.met_by(&item(ONE, secret, None))).collect();
        let reasons: Vec<Option<Refusal>> = results.iter().map(reason).collect();
        assert_eq!(reasons, [None, None, None, Some(Refusal::KeyCapReached), None]);
    }
}
