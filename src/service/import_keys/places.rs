//! Where the keys of a batch may go: organizations that exist, with room under their caps, and no text that is another
//! key's stored hash. Must not write.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{ImportBatch, ItemResult};
use crate::{
    domain::{
        digest::Digest,
        ids::OrganizationId,
        import::{Refusal, Refused},
        key::StoredStatus,
        organization::Organization,
        permission::Reach,
    },
    service::{Resource, ServiceError},
    store::{Database, imported_keys, key_counts, organizations},
};

/// An organization that takes keys, and how many more.
pub(super) struct Place {
    pub(super) room: Option<i64>,
}

/// The organizations that exist, each locked as for creating a key, in the order of their ids.
pub(super) async fn lock_organizations(
    transaction: &impl Database,
    wanted: BTreeSet<OrganizationId>,
) -> Result<BTreeMap<OrganizationId, Place>, ServiceError> {
    let mut places = BTreeMap::new();
    for id in wanted {
        let Some(unlocked) = organizations::find_by_id(transaction, Reach::All, id).await? else { continue };
        let locked: Option<Organization> = if unlocked.max_keys > 0 {
            organizations::find_locked(transaction, Reach::All, id).await?
        } else {
            organizations::find_shared(transaction, Reach::All, id).await?
        };
        let Some(organization) = locked else { continue };
        let room = if organization.max_keys > 0 {
            Some(organization.max_keys - key_counts::count(transaction, id).await?)
        } else {
            None
        };
        places.insert(id, Place { room });
    }
    Ok(places)
}

pub(super) fn refuse_unplaced(
    batch: &ImportBatch,
    places: &BTreeMap<OrganizationId, Place>,
    results: &mut [Option<ItemResult>],
) {
    for (item, result) in batch.items.iter().zip(results) {
        if !places.contains_key(&item.organization_id) {
            let message = format!("there is no organization {}", Resource::organization(item.organization_id).name);
            *result = Some(ItemResult::Refused(Refused::new(Refusal::UnknownOrganization, message)));
        }
    }
}

/// A plaintext that is what the digest of another key looks like would make that key's stored hash a secret.
pub(super) async fn refuse_stored_hashes(
    db: &impl Database,
    batch: &ImportBatch,
    results: &mut [Option<ItemResult>],
) -> Result<(), ServiceError> {
    let suspects: Vec<Digest> = batch.items.iter().filter_map(|item| item.key.plaintext_as_digest).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    let held = imported_keys::list_by_digests(db, &suspects).await?;
    let mut hashes: HashSet<Digest> = held.into_iter().filter_map(|key| key.digest).collect();
    hashes.extend(batch.items.iter().filter_map(|item| item.key.material.digest()));
    for (item, result) in batch.items.iter().zip(results) {
        if item.key.plaintext_as_digest.is_some_and(|digest| hashes.contains(&digest)) {
            let message = "the text is the stored hash of another key";
            *result = Some(ItemResult::Refused(Refused::new(Refusal::StoredHash, message)));
        }
    }
    Ok(())
}

/// New keys that find no room under their organization's cap. Revoked ones take none, and the same secret once more
/// takes none again.
pub(super) fn refuse_beyond_caps(
    batch: &ImportBatch,
    places: &BTreeMap<OrganizationId, Place>,
    results: &mut [Option<ItemResult>],
) {
    let mut rooms: BTreeMap<OrganizationId, i64> =
        places.iter().filter_map(|(id, place)| Some((*id, place.room?))).collect();
    let mut accepted: HashSet<Digest> = HashSet::new();
    for (item, result) in batch.items.iter().zip(results) {
        let Some(room) = rooms.get_mut(&item.organization_id) else { continue };
        let is_again = item.key.material.digest().is_some_and(|digest| accepted.contains(digest));
        if result.is_some() || item.key.status == StoredStatus::Revoked || is_again {
            continue;
        }
        if *room > 0 {
            *room -= 1;
            accepted.extend(item.key.material.digest());
        } else {
            let message = "the organization has as many keys as its cap allows";
            *result = Some(ItemResult::Refused(Refused::new(Refusal::KeyCapReached, message)));
        }
    }
}
