//! Which rows of a batch are here already, and whether what is here may stand for them.
//! Must not write. Invariant: a row whose key may less than the one that is here is refused, so that bringing a key in
//! twice never makes it live longer, or do more, than its strictest row says; and a row that came before with another
//! secret is refused, so that nobody thinks that the new one is in.

use std::collections::HashMap;

use super::{ImportBatch, ImportItem, ItemResult, source_id_of};
use crate::{
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId},
        import::{ImportedKey, Material, Refusal, Refused, Scheme},
        key::StoredStatus,
        time::Timestamp,
    },
    service::ServiceError,
    store::{
        Database,
        imported_keys::{self, Held, HeldSettings},
        slow_keys::mark_of,
    },
};

/// The keys that rows of a batch may meet.
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
        Ok(Self {
            by_source_id: of_import.into_iter().filter_map(|held| Some((held.source_id.clone()?, held))).collect(),
            by_digest: by_digest.into_iter().filter_map(|held| Some((held.digest?, held))).collect(),
            by_hash: by_hash.into_iter().filter_map(|held| Some((held.stored_hash.clone()?, held))).collect(),
            by_id: by_id.into_iter().map(|held| (held.id, held)).collect(),
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
        let of_row = source_id_of(&item.key).and_then(|id| self.by_source_id.get(&id));
        if let Some(held) = of_row
            && held.organization_id == item.organization_id
        {
            let is_same = is_same(&item.key, held);
            return Some(if is_same { ItemResult::Existing(held.id) } else { row_changed(Some(held.id)) });
        }
        let same_secret = match &item.key.material {
            Material::Digest(digest) => self.by_digest.get(digest),
            Material::Slow(hash) => self.by_hash.get(hash.expose()).or_else(|| self.by_hash.get(&mark_of(hash))),
            Material::Missing => None,
        };
        if let Some(held) = same_secret {
            return Some(Met::here(held).result_for(item));
        }
        if let Some((id, held)) = item.key.kept_id.and_then(|id| Some((id, self.by_id.get(&id)?))) {
            let both_missing = item.key.material.scheme() == Scheme::Missing && held.scheme == Scheme::Missing;
            if both_missing && held.organization_id == item.organization_id {
                return Some(Met::here(held).result_for(item));
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
    kept_id: Option<KeyId>,
    status: StoredStatus,
    expire_time: Option<Timestamp>,
    /// What it may; `None` where people have set that since, or always did.
    settings: Option<HeldSettings>,
}

impl Met {
    fn here(held: &Held) -> Self {
        let untouched = held.etag == 1 && held.import_id.is_some();
        Self {
            organization_id: held.organization_id,
            id: Some(held.id),
            kept_id: Some(held.id),
            status: held.status,
            expire_time: held.expire_time,
            settings: untouched.then(|| held.settings.clone()),
        }
    }

    /// The key that a row of the same batch would become.
    fn planned(item: &ImportItem) -> Self {
        Self {
            organization_id: item.organization_id,
            id: None,
            kept_id: item.key.kept_id,
            status: item.key.status,
            expire_time: item.key.expire_time,
            settings: Some(HeldSettings::of(&item.key)),
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
        if self.settings.as_ref().is_some_and(|settings| differ(settings, &HeldSettings::of(&item.key))) {
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

/// Whether what is here may something else than a row says. Credits that were spent here are no difference.
fn differ(held: &HeldSettings, row: &HeldSettings) -> bool {
    let spent_from = row.credits_refill_amount != 0 || held.credits_remaining <= row.credits_remaining;
    let same_credits = held.credits_remaining.is_some() == row.credits_remaining.is_some() && spent_from;
    let settings = HeldSettings { credits_remaining: row.credits_remaining, ..held.clone() };
    !same_credits || settings != *row
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

/// In a dry run the rows of one batch meet each other as they would meet in the database.
pub(super) fn would_meet(batch: &ImportBatch, results: &mut [Option<ItemResult>]) {
    let mut first: HashMap<Identity<'_>, &ImportItem> = HashMap::new();
    let mut rows: HashMap<&str, &ImportItem> = HashMap::new();
    for (item, result) in batch.items.iter().zip(results) {
        if result.is_some() {
            continue;
        }
        let identity = Identity::of(&item.key.material);
        let row_id = Some(item.key.source_id.as_str()).filter(|id| !id.is_empty());
        if let Some(before) = row_id.and_then(|id| rows.get(id))
            && identity != Identity::of(&before.key.material)
        {
            *result = Some(row_changed(None));
            continue;
        }
        if let Some(before) = identity.as_ref().and_then(|identity| first.get(identity)) {
            *result = Some(Met::planned(before).result_for(item));
            continue;
        }
        first.extend(identity.map(|identity| (identity, item)));
        rows.extend(row_id.map(|id| (id, item)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(remaining: Option<i64>, refill_amount: i64) -> HeldSettings {
        HeldSettings {
            scopes: "[]".to_owned(),
            allowed_cidrs: "[]".to_owned(),
            rate_limits: "[]".to_owned(),
            credits_remaining: remaining,
            credits_refill_amount: refill_amount,
            credits_refill_interval: String::new(),
        }
    }

    #[test]
    fn credits_that_were_spent_or_refilled_here_are_no_difference() {
        assert!(!differ(&settings(Some(3), 0), &settings(Some(5), 0)));
        assert!(!differ(&settings(Some(9), 10), &settings(Some(5), 10)));
        assert!(!differ(&settings(None, 0), &settings(None, 0)));
        for (held, row) in [
            (settings(Some(5), 0), settings(Some(3), 0)),
            (settings(None, 0), settings(Some(3), 0)),
            (settings(Some(3), 0), settings(None, 0)),
            (settings(Some(3), 10), settings(Some(3), 0)),
            (settings(None, 0), HeldSettings { scopes: "[\"a\"]".to_owned(), ..settings(None, 0) }),
        ] {
            assert!(differ(&held, &row), "{held:?} {row:?}");
        }
    }
}
