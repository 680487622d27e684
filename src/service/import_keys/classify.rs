//! Which rows of a batch are here already, and whether what is here may stand for them.
//! Must not write. Invariant: a row whose key is revoked, disabled or expires earlier than the one that is here is
//! refused, so that bringing a key in twice never makes it live longer than its strictest row says.

use std::collections::{HashMap, HashSet};

use super::{ImportBatch, ImportItem, ItemResult, source_id_of};
use crate::{
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId},
        import::{Material, Refusal, Refused},
        key::StoredStatus,
        time::Timestamp,
    },
    service::ServiceError,
    store::{
        Database,
        imported_keys::{self, Held},
    },
};

/// The keys that rows of a batch may meet.
pub(super) struct Known {
    by_source_id: HashMap<String, Held>,
    by_digest: HashMap<Digest, Held>,
    ids: HashSet<KeyId>,
}

impl Known {
    /// Looks up what could stand in the way of the rows that have no result yet.
    pub(super) async fn find(
        db: &impl Database,
        batch: &ImportBatch,
        results: &[Option<ItemResult>],
    ) -> Result<Self, ServiceError> {
        let open: Vec<&ImportItem> =
            batch.items.iter().zip(results).filter(|(_, result)| result.is_none()).map(|(item, _)| item).collect();
        let source_ids: Vec<String> = open.iter().filter_map(|item| source_id_of(&item.key)).collect();
        let digests: Vec<Digest> = open.iter().filter_map(|item| item.key.material.digest().copied()).collect();
        let ids: Vec<KeyId> = open.iter().filter_map(|item| item.key.kept_id).collect();
        let of_import = imported_keys::list_by_source_ids(db, batch.import_id, &source_ids).await?;
        let by_digest = imported_keys::list_by_digests(db, &digests).await?;
        let by_id = imported_keys::list_by_ids(db, &ids).await?;
        Ok(Self {
            by_source_id: of_import.into_iter().filter_map(|held| Some((held.source_id.clone()?, held))).collect(),
            by_digest: by_digest.into_iter().filter_map(|held| Some((held.digest?, held))).collect(),
            ids: by_id.into_iter().map(|held| held.id).collect(),
        })
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
        if let Some(held) = source_id_of(&item.key).and_then(|id| self.by_source_id.get(&id))
            && held.organization_id == item.organization_id
        {
            return Some(ItemResult::Existing(held.id));
        }
        if let Some(held) = item.key.material.digest().and_then(|digest| self.by_digest.get(digest)) {
            let met = Met {
                organization_id: held.organization_id,
                id: Some(held.id),
                kept_id: Some(held.id),
                status: held.status,
                expire_time: held.expire_time,
            };
            return Some(met.result_for(item));
        }
        let id = item.key.kept_id.filter(|id| self.ids.contains(id))?;
        let message = format!("the id {id} is another key's");
        Some(ItemResult::Refused(Refused::new(Refusal::IdTaken, message)))
    }
}

/// What counts of a key with the same secret.
struct Met {
    organization_id: OrganizationId,
    /// `None` in a dry run, where it would be created too.
    id: Option<KeyId>,
    kept_id: Option<KeyId>,
    status: StoredStatus,
    expire_time: Option<Timestamp>,
}

impl Met {
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

/// In a dry run the rows of one batch meet each other as they would meet in the database.
pub(super) fn would_meet(batch: &ImportBatch, results: &mut [Option<ItemResult>]) {
    let mut first: HashMap<Digest, &ImportItem> = HashMap::new();
    for (item, result) in batch.items.iter().zip(results) {
        let Material::Digest(digest) = &item.key.material else { continue };
        if result.is_some() {
            continue;
        }
        let Some(before) = first.get(digest) else {
            first.insert(*digest, item);
            continue;
        };
        let (status, expire_time, kept_id) = (before.key.status, before.key.expire_time, before.key.kept_id);
        let met = Met { organization_id: before.organization_id, id: None, kept_id, status, expire_time };
        *result = Some(met.result_for(item));
    }
}
