//! Which rows of a batch are here already, and whether what is here may stand for them. In a dry run, keys that would
//! be here by then stand beside those that are, and there are no other rules for them.
//! Must not write. Invariant: a row whose key may less than the one that is here is refused, so that bringing a key in
//! twice never makes it live longer, or do more, than its strictest row says; and a row that came before with another
//! secret is refused, so that nobody thinks that the new one is in.

use std::collections::{HashMap, HashSet};

use super::{ImportBatch, ImportItem, ItemResult, source_id_of, to_write};
use crate::{
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId, RecordId},
        import::{ImportedKey, Material, Refusal, Refused, Scheme},
        key::StoredStatus,
        time::Timestamp,
    },
    service::ServiceError,
    store::{
        Database,
        imported_keys::{self, ETAG_PLANNED, Held, HeldSettings},
        slow_keys::mark_of,
    },
};

/// The id of a key that would be here and would get a new one.
pub(super) const NO_ID: KeyId = KeyId::from_u128(0);

impl ImportItem {
    /// The key that this would become, as it would be found; what no row is compared with is left empty.
    #[must_use]
    pub fn planned(&self, import_id: RecordId) -> Held {
        let key = &self.key;
        let stored_hash = match &key.material {
            // By that it is known as well, and it is as long for each of them.
            Material::Slow(hash) => Some(mark_of(hash)),
            Material::Digest(_) | Material::Missing => None,
        };
        Held {
            id: key.kept_id.unwrap_or(NO_ID),
            organization_id: self.organization_id,
            digest: key.material.digest().copied(),
            decoded_digest: key.decoded_digest(),
            scheme: key.material.scheme(),
            stored_hash,
            status: key.status,
            expire_time: key.expire_time,
            name: String::new(),
            owner_id: String::new(),
            import_id: Some(import_id),
            source_id: source_id_of(key),
            last_used_time: None,
            request_count: 0,
            settings: HeldSettings::of(key),
            etag: ETAG_PLANNED,
        }
    }
}

/// Whether a key is not here, and only would be.
fn is_planned(held: &Held) -> bool {
    held.etag == ETAG_PLANNED
}

/// The keys that rows of a batch may meet.
#[derive(Default)]
#[expect(clippy::struct_field_names, reason = "each says by what it is found")]
pub(super) struct Known {
    by_source_id: HashMap<String, Held>,
    by_digest: HashMap<Digest, Held>,
    /// By a slow hash, or by the mark of one that gave way to a digest.
    by_hash: HashMap<String, Held>,
    by_id: HashMap<KeyId, Held>,
}

/// The rows that have no result yet.
fn open<'b>(batch: &'b ImportBatch, results: &[Option<ItemResult>]) -> Vec<&'b ImportItem> {
    batch.items.iter().zip(results).filter(|(_, result)| result.is_none()).map(|(item, _)| item).collect()
}

/// What the slow hashes of these rows are known by, before and after their first success.
fn hashes_of(items: &[&ImportItem]) -> Vec<String> {
    let mut hashes = Vec::new();
    for item in items {
        if let Material::Slow(hash) = &item.key.material {
            hashes.extend([hash.expose().to_owned(), mark_of(hash)]);
        }
    }
    hashes
}

/// Whether a slow hash of these rows is a key's already. No index tells that of one that gave way to a digest.
pub(super) async fn meets_hash(
    db: &impl Database,
    batch: &ImportBatch,
    results: &[Option<ItemResult>],
) -> Result<bool, ServiceError> {
    let hashes = hashes_of(&open(batch, results));
    let planned: HashSet<&str> = batch.planned.iter().filter_map(|held| held.stored_hash.as_deref()).collect();
    if hashes.iter().any(|hash| planned.contains(hash.as_str())) {
        return Ok(true);
    }
    Ok(!imported_keys::list_by_stored_hashes(db, &hashes).await?.is_empty())
}

impl Known {
    /// Looks up what could stand in the way of the rows that have no result yet.
    pub(super) async fn find(
        db: &impl Database,
        batch: &ImportBatch,
        results: &[Option<ItemResult>],
    ) -> Result<Self, ServiceError> {
        let open = open(batch, results);
        let source_ids: Vec<String> = open.iter().filter_map(|item| source_id_of(&item.key)).collect();
        let digests: Vec<Digest> = open.iter().filter_map(|item| item.key.material.digest().copied()).collect();
        let ids: Vec<KeyId> = open.iter().filter_map(|item| item.key.kept_id).collect();
        let of_import = imported_keys::list_by_source_ids(db, batch.import_id, &source_ids).await?;
        let by_digest = imported_keys::list_by_digests(db, &digests).await?;
        let by_hash = imported_keys::list_by_stored_hashes(db, &hashes_of(&open)).await?;
        let by_id = imported_keys::list_by_ids(db, &ids).await?;
        let mut known = Self {
            by_source_id: of_import.into_iter().filter_map(|held| Some((held.source_id.clone()?, held))).collect(),
            by_digest: by_digest.into_iter().filter_map(|held| Some((held.digest?, held))).collect(),
            by_hash: by_hash.into_iter().filter_map(|held| Some((held.stored_hash.clone()?, held))).collect(),
            by_id: by_id.into_iter().map(|held| (held.id, held)).collect(),
        };
        known.add(&batch.planned);
        Ok(known)
    }

    /// Adds keys that would be here; those that are here come before them.
    pub(super) fn add(&mut self, planned: &[Held]) {
        for held in planned {
            let own = || held.clone();
            if let Some(source_id) = &held.source_id {
                self.by_source_id.entry(source_id.clone()).or_insert_with(own);
            }
            if let Some(digest) = held.digest {
                self.by_digest.entry(digest).or_insert_with(own);
            }
            if let Some(hash) = &held.stored_hash {
                self.by_hash.entry(hash.clone()).or_insert_with(own);
            }
            if held.id != NO_ID {
                self.by_id.entry(held.id).or_insert_with(own);
            }
        }
    }

    /// Gives the rows the results that writing them would: what nothing stands in the way of would be created, and the
    /// others meet that too. As in a run, a row that gave way to one that was not created either has none.
    pub(super) fn plan(&mut self, batch: &ImportBatch, results: &mut [Option<ItemResult>]) {
        for (at, item) in to_write(batch, results) {
            if self.met_by(item).is_none()
                && let Some(result) = results.get_mut(at)
            {
                *result = Some(ItemResult::WouldCreate);
                self.add(&[item.planned(batch.import_id)]);
            }
        }
        self.classify(batch, results);
    }

    /// Gives a result to each row that meets a key.
    pub(super) fn classify(&self, batch: &ImportBatch, results: &mut [Option<ItemResult>]) {
        for (item, result) in batch.items.iter().zip(results) {
            if result.is_none() {
                *result = self.met_by(item);
            }
        }
    }

    fn met_by(&self, item: &ImportItem) -> Option<ItemResult> {
        let of_row = source_id_of(&item.key).and_then(|id| self.by_source_id.get(&id));
        if let Some(held) = of_row
            && held.organization_id == item.organization_id
        {
            if is_same(&item.key, held) {
                return Some(ItemResult::Existing(held.id));
            }
            return Some(row_changed((!is_planned(held)).then_some(held.id)));
        }
        let same_secret = match &item.key.material {
            Material::Digest(digest) => self.by_digest.get(digest),
            Material::Slow(hash) => self.by_hash.get(hash.expose()).or_else(|| self.by_hash.get(&mark_of(hash))),
            Material::Missing => None,
        };
        if let Some(held) = same_secret {
            return Some(Met::of(held).result_for(item));
        }
        if let Some((id, held)) = item.key.kept_id.and_then(|id| Some((id, self.by_id.get(&id)?))) {
            let both_missing = item.key.material.scheme() == Scheme::Missing && held.scheme == Scheme::Missing;
            if both_missing && held.organization_id == item.organization_id {
                return Some(Met::of(held).result_for(item));
            }
            let message = format!("the id {id} is another key's");
            return Some(ItemResult::Refused(Refused::new(Refusal::IdTaken, message)));
        }
        of_row.map(|_| row_changed(None))
    }
}

/// Whether a row is what it was when it came: the same secret as far as that shows, under the same id.
fn is_same(key: &ImportedKey, held: &Held) -> bool {
    let same_material = match &key.material {
        Material::Digest(digest) => held.digest.as_ref() == Some(digest),
        // A key that came as a plaintext and is hashed in the source since cannot be told from another one.
        Material::Slow(hash) => {
            held.stored_hash.as_deref().is_none_or(|stored| stored == hash.expose() || stored == mark_of(hash))
        }
        // The source has nothing to compare any more; what came of it before stays.
        Material::Missing => true,
    };
    same_material && key.kept_id.is_none_or(|id| id == held.id)
}

fn row_changed(id: Option<KeyId>) -> ItemResult {
    let key = id.map_or_else(|| "a key elsewhere".to_owned(), |id| format!("the key {id}, which stays as it was"));
    let message = format!(
        "the row came before as {key}, and has another secret, hash, id or organization by now: rotate or revoke that \
         key, and bring the new one in as a row with an id of its own"
    );
    ItemResult::Refused(Refused::new(Refusal::RowChanged, message))
}

/// What counts of a key with the same secret.
struct Met {
    organization_id: OrganizationId,
    /// `None` in a dry run, where it would be created too.
    id: Option<KeyId>,
    /// The same, but that one which it keeps is known.
    kept_id: Option<KeyId>,
    status: StoredStatus,
    expire_time: Option<Timestamp>,
    /// What it may; `None` where people have set that since, or always did.
    settings: Option<HeldSettings>,
}

impl Met {
    fn of(held: &Held) -> Self {
        let is_planned = is_planned(held);
        let untouched = (held.etag == 1 || is_planned) && held.import_id.is_some();
        Self {
            organization_id: held.organization_id,
            id: (!is_planned).then_some(held.id),
            kept_id: (!is_planned || held.id != NO_ID).then_some(held.id),
            status: held.status,
            expire_time: held.expire_time,
            settings: untouched.then(|| held.settings.clone()),
        }
    }

    fn result_for(&self, item: &ImportItem) -> ItemResult {
        let refused = |reason, message: &str| ItemResult::Refused(Refused::new(reason, message));
        if self.organization_id != item.organization_id {
            let message = "the same secret is a key elsewhere; one secret cannot be two organizations'";
            return refused(Refusal::DuplicateInOtherOrganization, message);
        }
        if item.key.kept_id.is_some_and(|id| self.kept_id != Some(id)) {
            return refused(Refusal::DuplicateSecret, "the same secret is a key with another id");
        }
        if is_stricter(item, self) {
            let message = "the same key is here from another row, which lets it live longer than this one says";
            return refused(Refusal::DuplicateDiffers, message);
        }
        if self.settings.as_ref().is_some_and(|settings| !settings.differing(&HeldSettings::of(&item.key)).is_empty()) {
            let message = "the same key is here from another row, with other scopes, networks, limits or credits";
            return refused(Refusal::DuplicateDiffers, message);
        }
        ItemResult::Duplicate(self.id)
    }
}

/// Whether a row says that its key may less than the key that is here.
fn is_stricter(item: &ImportItem, held: &Met) -> bool {
    let rank = |status: StoredStatus| match status {
        StoredStatus::Active => 0,
        StoredStatus::Disabled => 1,
        StoredStatus::Revoked => 2,
    };
    let ends_earlier = item.key.expire_time.is_some_and(|end| held.expire_time.is_none_or(|own| end < own));
    rank(item.key.status) > rank(held.status) || ends_earlier
}

/// What a secret is known by.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum Identity<'b> {
    Digest(&'b Digest),
    Hash(&'b str),
}

impl<'b> Identity<'b> {
    /// `None` where there is no secret.
    pub(super) fn of(material: &'b Material) -> Option<Self> {
        match material {
            Material::Digest(digest) => Some(Self::Digest(digest)),
            Material::Slow(hash) => Some(Self::Hash(hash.expose())),
            Material::Missing => None,
        }
    }
}
