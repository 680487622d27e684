//! Where the keys of a batch may go: organizations that exist, with room under their caps, and no text that is another
//! key's stored hash. Must not write.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{ImportBatch, ImportItem, ItemResult, classify::Identity};
use crate::{
    domain::{
        digest::Digest,
        ids::OrganizationId,
        import::{GivenScheme, Refusal, Refused, decoded_digest, digest_of_hex},
        key::StoredStatus,
        organization::Organization,
    },
    service::{Resource, ServiceError},
    store::{Database, imported_keys, imported_organizations, key_counts, organizations},
};

/// An organization that takes keys, and how many more.
pub(super) struct Place {
    pub(super) room: Option<i64>,
}

/// The organizations that exist, each locked as for creating a key: first those without a cap, shared, then those with
/// one, alone, both in the order of their ids.
pub(super) async fn lock_organizations(
    transaction: &impl Database,
    wanted: BTreeSet<OrganizationId>,
) -> Result<BTreeMap<OrganizationId, Place>, ServiceError> {
    let wanted: Vec<OrganizationId> = wanted.into_iter().collect();
    let unlocked = imported_organizations::list_by_ids(transaction, &wanted).await?;
    let capped: BTreeSet<OrganizationId> = unlocked.iter().filter(|one| one.max_keys > 0).map(|one| one.id).collect();
    let open: BTreeSet<OrganizationId> = unlocked.iter().map(|one| one.id).filter(|id| !capped.contains(id)).collect();
    let open: Vec<OrganizationId> = open.into_iter().collect();
    let open = organizations::list_locked(transaction, &open, false).await?;
    let capped: Vec<OrganizationId> = capped.into_iter().collect();
    let capped = organizations::list_locked(transaction, &capped, true).await?;
    // A cap may have come or gone before the lock.
    let capped_ids: Vec<OrganizationId> =
        open.iter().chain(&capped).filter(|one| one.max_keys > 0).map(|one| one.id).collect();
    let counts: HashMap<OrganizationId, i64> =
        key_counts::count_each(transaction, &capped_ids).await?.into_iter().collect();
    let mut places = BTreeMap::new();
    for Organization { id, max_keys, .. } in open.into_iter().chain(capped) {
        let room = (max_keys > 0).then(|| max_keys - counts.get(&id).copied().unwrap_or(0));
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

/// A secret that is what the digest of another key looks like would make that key's stored hash a secret. Whichever of
/// the two comes second is refused; of one batch the one that reads so.
pub(super) async fn refuse_stored_hashes(
    db: &impl Database,
    batch: &ImportBatch,
    results: &mut [Option<ItemResult>],
) -> Result<(), ServiceError> {
    let texts: Vec<Digest> = batch.items.iter().filter_map(|item| item.key.plaintext_as_digest).collect();
    let digests: HashSet<Digest> = batch.items.iter().filter_map(|item| item.key.material.digest()).copied().collect();
    let decoded: HashMap<Digest, Digest> = digests.iter().map(|digest| (decoded_digest(digest), *digest)).collect();
    // That of a key of which the source held but a hash too. It is asked for where the hash is all that is known: a
    // look-up more for each plaintext would take a fifth of an import's time.
    let given: HashSet<Digest> = batch.items.iter().filter_map(given_hash).collect();
    let written: HashMap<Digest, Digest> = given.iter().map(|digest| (digest_of_hex(digest), *digest)).collect();
    let wanted: Vec<Digest> = decoded.keys().copied().collect();
    let showing = imported_keys::list_by_decoded_digests(db, &wanted).await?;
    let wanted: Vec<Digest> = texts.iter().chain(written.keys()).copied().collect();
    let held = imported_keys::list_by_digests(db, &wanted).await?;
    let mut hashes: HashSet<Digest> = held.iter().chain(&batch.planned).filter_map(|key| key.digest).collect();
    let shown_decoded = showing.iter().chain(&batch.planned).filter_map(|key| decoded.get(&key.decoded_digest?));
    let shown: HashSet<Digest> =
        shown_decoded.chain(hashes.iter().filter_map(|digest| written.get(digest))).copied().collect();
    hashes.extend(digests.difference(&shown));
    let reads_as_given = |digest: &Digest| written.get(digest).is_some_and(|of| of != digest);
    let refused = |message: &str| Some(ItemResult::Refused(Refused::new(Refusal::StoredHash, message)));
    for (item, result) in batch.items.iter().zip(results) {
        let digest = item.key.material.digest();
        if item.key.plaintext_as_digest.is_some_and(|digest| hashes.contains(&digest)) {
            *result = refused("the text is the stored hash of another key");
        } else if digest.is_some_and(|digest| shown.contains(digest)) {
            *result = refused("the hash of the key, as text, is the secret of another key");
        } else if digest.is_some_and(reads_as_given) {
            *result = refused("the hash is that of the stored hash of another key");
        }
    }
    Ok(())
}

/// The digest of a key of which the source holds that alone.
fn given_hash(item: &ImportItem) -> Option<Digest> {
    match item.key.given {
        GivenScheme::Sha256Hex | GivenScheme::Sha256Base64 => item.key.material.digest().copied(),
        GivenScheme::Plaintext | GivenScheme::Bcrypt | GivenScheme::Argon2 | GivenScheme::Missing => None,
    }
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
    let mut accepted: HashSet<Identity<'_>> = HashSet::new();
    for (item, result) in batch.items.iter().zip(results) {
        let Some(room) = rooms.get_mut(&item.organization_id) else { continue };
        let identity = Identity::of(&item.key.material);
        let is_again = identity.as_ref().is_some_and(|identity| accepted.contains(identity));
        if result.is_some() || item.key.status == StoredStatus::Revoked || is_again {
            continue;
        }
        if *room > 0 {
            *room -= 1;
            accepted.extend(identity);
        } else {
            let message = "the organization has as many keys as its cap allows";
            *result = Some(ItemResult::Refused(Refused::new(Refusal::KeyCapReached, message)));
        }
    }
}
