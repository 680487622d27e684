//! What a run would have written so far, where nothing is: its keys, found by all that rows may meet them by, and how
//! much room would be left under the caps of organizations. What becomes of a row that meets one of these keys is
//! decided by the service, which is handed them and takes them for keys that are there.
//!
//! Some 300 bytes are held of each distinct key, however long its row is: 136 for the key, and 24 to 48 for each of
//! the two or three names that it is found by, in lists of which up to half is free. What keys may is held once for
//! all that may the same; a slow hash adds 80 bytes, and its look-up part 24 to 48. The names of organizations
//! that would be new are held by `plan.rs`, as long as it reads their table. Must not write. Invariant: every key that
//! would be created is here, whatever the batches are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{ImportError, values::trim};
use crate::{
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId, RecordId},
        import::{GivenScheme, Material, Scheme, decoded_digest, digest_of_hex},
        key::StoredStatus,
        permission::Reach,
        time::Timestamp,
    },
    service::{Context, ImportItem, ItemResult, SLOW_CANDIDATES_MAX, SLOW_LOOKED_UP_MAX},
    store::{
        imported_keys::{ETAG_PLANNED, Held, HeldSettings},
        key_counts, organizations,
        slow_keys::mark_of,
    },
};

/// What would be there by now.
#[derive(Default)]
pub(super) struct Planned {
    /// Organizations that would be new, with the most keys that each may have; 0 for no cap.
    organizations: HashMap<OrganizationId, i64>,
    /// Tables of keys, by name, as what they would be imported.
    tables: HashMap<String, RecordId>,
    keys: Vec<PlannedKey>,
    /// Places in `keys`.
    names: HashMap<Name, u32>,
    settings: HashSet<Arc<HeldSettings>>,
    /// How many more keys an organization takes; `None` where it has no cap.
    rooms: HashMap<OrganizationId, Option<i64>>,
    /// How many keys of an organization would be found by a scan alone.
    scanned: BTreeMap<OrganizationId, usize>,
    /// How many slow keys of an organization each look-up part leads to.
    looked_up: BTreeMap<OrganizationId, HashMap<Name, u32>>,
}

/// The look-up parts of an organization that lead to so many keys that each of them is a scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CrowdedParts {
    pub(super) organization_id: OrganizationId,
    /// How many such parts there are.
    pub(super) parts: usize,
    /// Keys of the one that leads to most.
    pub(super) keys_max: usize,
}

/// What counts of a key that would be there.
struct PlannedKey {
    organization_id: OrganizationId,
    id: KeyId,
    digest: Option<Digest>,
    /// Of those keys whose secret reads as a digest.
    decoded_digest: Option<Box<Digest>>,
    scheme: Scheme,
    stored_hash: Option<Box<str>>,
    status: StoredStatus,
    expire_time: Option<Timestamp>,
    credits_remaining: Option<i64>,
    /// Its credits left aside.
    settings: Arc<HeldSettings>,
}

/// Stands for what a key is found by: a part of its SHA-256, so that all are short and no two are alike.
type Name = [u8; 16];

/// What a key is found by.
enum By<'k> {
    /// The row of an import that it came from.
    Row(RecordId, &'k str),
    Digest(&'k Digest),
    /// What is left of its slow hash.
    Mark(&'k str),
    /// The id that it keeps.
    Id(KeyId),
    /// See `ImportedKey::decoded_digest`.
    Decoded(&'k Digest),
    /// What its secret begins with. Not the key's own: many keys may have it.
    LookUp(&'k str),
}

impl By<'_> {
    fn name(&self) -> Name {
        let mut hash = Sha256::new();
        match self {
            Self::Row(import_id, id) => {
                hash.update([0_u8]);
                hash.update(import_id.bytes());
                hash.update(id.as_bytes());
            }
            Self::Digest(digest) => {
                hash.update([1_u8]);
                hash.update(digest.as_bytes());
            }
            Self::Mark(mark) => {
                hash.update([2_u8]);
                hash.update(mark.as_bytes());
            }
            Self::Id(id) => {
                hash.update([3_u8]);
                hash.update(id.bytes());
            }
            Self::Decoded(digest) => {
                hash.update([4_u8]);
                hash.update(digest.as_bytes());
            }
            Self::LookUp(part) => {
                hash.update([5_u8]);
                hash.update(part.as_bytes());
            }
        }
        let hash: [u8; 32] = hash.finalize().into();
        hash.first_chunk().copied().unwrap_or_default()
    }
}

impl Planned {
    /// Takes an organization for one that would be new, unless it is there: then what it is there counts.
    pub(super) fn add_organization(&mut self, id: OrganizationId, max_keys: i64) {
        self.organizations.entry(id).or_insert(max_keys);
    }

    /// Tells as what a table of keys would be imported.
    pub(super) fn add_table(&mut self, name: &str, import_id: RecordId) {
        self.tables.insert(name.to_owned(), import_id);
    }

    /// Whether a row of another table refers to a key that would be new: by its row in this table, or by an id that it
    /// keeps.
    pub(super) fn has_referred(&self, table: Option<&str>, reference: &str) -> bool {
        let import_id = table.and_then(|table| self.tables.get(table));
        let is_row = |import_id: &RecordId| self.key_by(&By::Row(*import_id, reference)).is_some();
        let is_kept = || KeyId::of_text(trim(reference)).is_ok_and(|id| self.key_by(&By::Id(id)).is_some());
        import_id.is_some_and(is_row) || is_kept()
    }

    /// The keys that rows of a batch may meet, each at least once.
    pub(super) fn met_by(&self, import_id: RecordId, items: &[ImportItem]) -> Vec<Held> {
        let mut met = Vec::new();
        if self.keys.is_empty() {
            return met;
        }
        let mut others = BTreeSet::new();
        for item in items {
            let source_id = &item.key.source_id;
            if let Some(key) = self.key_by(&By::Row(import_id, source_id)) {
                met.push(key.held(import_id, Some(source_id.clone())));
            }
            others.extend(names_met_by(item).iter().filter_map(|name| self.names.get(name)).copied());
        }
        met.extend(others.into_iter().filter_map(|at| self.key_at(at)).map(|key| key.held(import_id, None)));
        met
    }

    /// How many more keys the organizations of a batch take.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn rooms(
        &mut self,
        context: &Context,
        items: &[ImportItem],
    ) -> Result<BTreeMap<OrganizationId, Option<i64>>, ImportError> {
        let wanted: BTreeSet<OrganizationId> = items.iter().map(|item| item.organization_id).collect();
        let (db, mut rooms) = (context.store.control(), BTreeMap::new());
        for id in wanted {
            if let Some(room) = self.rooms.get(&id) {
                rooms.insert(id, *room);
                continue;
            }
            let found = organizations::find_by_id(db, Reach::All, id).await?;
            let cap = found.as_ref().map(|organization| organization.max_keys);
            let Some(cap) = cap.or_else(|| self.organizations.get(&id).copied()) else { continue };
            let taken = if found.is_some() && cap > 0 { key_counts::count(db, id).await? } else { 0 };
            let room = (cap > 0).then_some(cap - taken);
            self.rooms.insert(id, room);
            rooms.insert(id, room);
        }
        Ok(rooms)
    }

    /// Remembers what a run would have written of a batch.
    pub(super) fn remember(&mut self, import_id: RecordId, items: &[ImportItem], results: &[ItemResult]) {
        for (item, result) in items.iter().zip(results) {
            let is_new = *result == ItemResult::WouldCreate;
            let is_slow = matches!(item.key.material, Material::Slow(_));
            // The same row once more is no other key.
            let is_there = || {
                let row = By::Row(import_id, &item.key.source_id);
                matches!(result, ItemResult::Existing(_)) && self.key_by(&row).is_none()
            };
            if is_slow && (is_new || is_there()) {
                self.count_slow(item);
            }
            if is_new {
                self.add(import_id, item);
            }
        }
    }

    fn count_slow(&mut self, item: &ImportItem) {
        if let Some(part) = &item.key.look_up_id {
            let parts = self.looked_up.entry(item.organization_id).or_default();
            *parts.entry(By::LookUp(part).name()).or_default() += 1;
        } else {
            *self.scanned.entry(item.organization_id).or_default() += 1;
        }
    }

    /// The organizations of which not all slow keys would be compared with a secret, and how many they would have.
    pub(super) fn crowded(&self) -> impl Iterator<Item = (OrganizationId, usize)> {
        self.scanned.iter().filter(|(_, count)| **count > SLOW_CANDIDATES_MAX).map(|(id, count)| (*id, *count))
    }

    /// The organizations in which look-up parts do not tell slow keys apart.
    pub(super) fn crowded_parts(&self) -> impl Iterator<Item = CrowdedParts> {
        self.looked_up.iter().filter_map(|(id, parts)| {
            let counts = parts.values().filter_map(|count| usize::try_from(*count).ok());
            let crowded = counts.filter(|count| *count > SLOW_LOOKED_UP_MAX);
            let keys_max = crowded.clone().max()?;
            Some(CrowdedParts { organization_id: *id, parts: crowded.count(), keys_max })
        })
    }

    fn key_by(&self, by: &By<'_>) -> Option<&PlannedKey> {
        self.names.get(&by.name()).and_then(|at| self.key_at(*at))
    }

    fn key_at(&self, at: u32) -> Option<&PlannedKey> {
        self.keys.get(usize::try_from(at).ok()?)
    }

    fn add(&mut self, import_id: RecordId, item: &ImportItem) {
        let held = item.planned(import_id);
        // A revoked key takes no room.
        if held.status != StoredStatus::Revoked
            && let Some(Some(room)) = self.rooms.get_mut(&item.organization_id)
        {
            *room -= 1;
        }
        let found_by = [
            held.source_id.as_deref().map(|id| By::Row(import_id, id)),
            held.digest.as_ref().map(By::Digest),
            held.stored_hash.as_deref().map(By::Mark),
            item.key.kept_id.map(By::Id),
            held.decoded_digest.as_ref().map(By::Decoded),
        ];
        let at = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        self.names.extend(found_by.iter().flatten().map(|by| (by.name(), at)));
        let credits_remaining = held.settings.credits_remaining;
        let settings = self.shared(HeldSettings { credits_remaining: None, ..held.settings });
        self.keys.push(PlannedKey {
            organization_id: held.organization_id,
            id: held.id,
            digest: held.digest,
            decoded_digest: held.decoded_digest.map(Box::new),
            scheme: held.scheme,
            stored_hash: held.stored_hash.map(String::into_boxed_str),
            status: held.status,
            expire_time: held.expire_time,
            credits_remaining,
            settings,
        });
    }

    /// The same settings as of other keys, where there are such.
    fn shared(&mut self, settings: HeldSettings) -> Arc<HeldSettings> {
        if let Some(shared) = self.settings.get(&settings) {
            return shared.clone();
        }
        let shared = Arc::new(settings);
        self.settings.insert(shared.clone());
        shared
    }
}

impl PlannedKey {
    /// The key as the database would give it. `source_id` is its row's, where that is a row of this import.
    fn held(&self, import_id: RecordId, source_id: Option<String>) -> Held {
        let settings =
            HeldSettings { credits_remaining: self.credits_remaining, ..HeldSettings::clone(&self.settings) };
        Held {
            id: self.id,
            organization_id: self.organization_id,
            digest: self.digest,
            decoded_digest: self.decoded_digest.as_deref().copied(),
            scheme: self.scheme,
            stored_hash: self.stored_hash.as_deref().map(str::to_owned),
            status: self.status,
            expire_time: self.expire_time,
            name: String::new(),
            owner_id: String::new(),
            import_id: Some(import_id),
            source_id,
            last_used_time: None,
            request_count: 0,
            settings,
            etag: ETAG_PLANNED,
        }
    }
}

/// By what a row may meet a key, its own row aside: its secret, its id, what it looks like the stored hash of, and what
/// looks like a stored hash of it.
fn names_met_by(item: &ImportItem) -> Vec<Name> {
    let key = &item.key;
    let mut names: Vec<Name> = key.kept_id.map(|id| By::Id(id).name()).into_iter().collect();
    names.extend(key.plaintext_as_digest.iter().map(|digest| By::Digest(digest).name()));
    match &key.material {
        Material::Digest(digest) => {
            names.extend([By::Digest(digest).name(), By::Decoded(&decoded_digest(digest)).name()]);
            if key.given != GivenScheme::Plaintext {
                names.push(By::Digest(&digest_of_hex(digest)).name());
            }
        }
        Material::Slow(hash) => names.push(By::Mark(&mark_of(hash)).name()),
        Material::Missing => {}
    }
    names
}

#[cfg(test)]
mod tests;
