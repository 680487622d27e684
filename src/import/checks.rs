//! Whether a key of a source is what Keystead has of it: its outcome, its organization, its id and its hash.
//! `settings` compares what the key may.
//! Looks everything up in the database, never in what is remembered, and changes nothing.
//! Must not show material. Invariant: what Keystead would refuse to bring in is told as that, in its own words; and a
//! row that it takes for a key of another row is compared with that key.

mod settings;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use self::settings::{may_differ, settings_differ};
use super::{
    ImportError, actor,
    batches::{KeyBatch, KeyRow},
    treat::NO_HASH_STAYS,
};
use crate::{
    domain::{
        digest::Digest,
        ids::{KeyId, OrganizationId, RecordId},
        import::{Material, Refusal, Refused, Scheme},
        key::{KeyStatus, StoredStatus},
        outcome::Outcome,
        time::Timestamp,
    },
    service::{self, Context, ImportBatch, ItemResult},
    store::{
        imported_keys::{self, Held},
        imported_organizations,
        slow_keys::mark_of,
    },
};

/// Look-ups at once: they are gathered into few queries.
const AT_ONCE: usize = 256;

/// How a key is counted that may less here than its row says, since it was changed here.
const ENDED: &str = "ENDED_SINCE";
/// How a key is counted that came as a digest, and of which the source has only a slow hash by now.
pub(super) const HASHED: &str = "HASHED_SINCE";
const HASHED_WORDS: &str = "the row came with the key or its SHA-256, and has a slow hash by now, which cannot be \
    compared without the key; --accept-refused lets it pass";

/// How a row is counted that Keystead has no key of.
const NOT_FOUND: &str = "NOT_FOUND";

/// What was found of a row.
pub(super) enum Found {
    /// It is as it should be; what Keystead says of it.
    AsExpected(&'static str),
    /// The import refuses the row.
    Refused(Refused),
    Differs {
        /// For counting.
        word: &'static str,
        /// For people.
        words: String,
    },
}

impl Found {
    fn differs(word: &'static str, words: &str) -> Self {
        Self::Differs { word, words: format!("{word}: {words}") }
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Differs { word, .. } if *word == NOT_FOUND)
    }

    fn is_hashed(&self) -> bool {
        matches!(self, Self::AsExpected(word) if *word == HASHED)
    }

    fn other_outcome(found: Outcome, expected: Outcome) -> Self {
        let word = found.as_str();
        Self::Differs { word, words: format!("{word}, not {}", expected.as_str()) }
    }
}

/// What `verify` looks at besides, and `contract` need not do again: it holds as long as the rows are the same.
#[derive(Clone, Copy)]
pub(super) struct Verifying<'j> {
    /// Organizations that are not active in the source either.
    pub(super) inactive: &'j HashSet<OrganizationId>,
    /// Whether rows pass that came as a digest and cannot be compared any more.
    pub(super) accept_refused: bool,
}

/// Compares the rows of one table of keys.
pub(super) struct Checker<'j> {
    pub(super) context: &'j Arc<Context>,
    /// The label of the source.
    pub(super) source: &'j str,
    pub(super) import_id: RecordId,
    /// `None` where `verify` has looked at that, and passed.
    pub(super) verifying: Option<Verifying<'j>>,
}

/// What was found of a row at first.
struct Seen {
    found: Found,
    /// Whether what the key may is still to be compared.
    may_differ: bool,
}

impl From<Found> for Seen {
    fn from(found: Found) -> Self {
        Self { found, may_differ: false }
    }
}

impl Checker<'_> {
    /// What is found of each key of a batch, in order.
    ///
    /// # Errors
    /// The service's own.
    pub(super) async fn check(&self, batch: &KeyBatch) -> Result<Vec<Found>, ImportError> {
        let held = self.held(batch).await?;
        let looked_up = batch.keys.iter().map(|row| self.check_row(row, &held, batch.now));
        let seen: Vec<Seen> = stream::iter(looked_up).buffered(AT_ONCE).try_collect().await?;
        let mut found = self.look_at_settings(batch, seen).await?;
        self.explain(batch, &mut found).await?;
        // Last: it is the organization of keys of other rows too.
        self.look_at_organizations(batch, &mut found).await?;
        for (row, found) in batch.keys.iter().zip(&mut found) {
            if found.is_hashed() && self.verifying.is_some_and(|verifying| !verifying.accept_refused) {
                *found = Found::differs(HASHED, HASHED_WORDS);
            }
            match row.stay_problem {
                Some(NO_HASH_STAYS) => {
                    *found = Found::differs(NO_HASH_STAYS, "no hash would be left of the key when it is dropped");
                }
                Some(word) => {
                    *found = Found::differs(word, "the hash that stays must be the lower-case SHA-256 of the key");
                }
                None => {}
            }
        }
        Ok(found)
    }

    /// Compares what the keys may that a digest leads to, where that is not known to be the same. Few are looked up:
    /// those that differ, and those with credits.
    async fn look_at_settings(&self, batch: &KeyBatch, seen: Vec<Seen>) -> Result<Vec<Found>, ImportError> {
        let digest_of = |row: &KeyRow, seen: &Seen| row.item.key.material.digest().copied().filter(|_| seen.may_differ);
        let digests: Vec<Digest> =
            batch.keys.iter().zip(&seen).filter_map(|(row, seen)| digest_of(row, seen)).collect();
        let held = imported_keys::list_by_digests(self.context.store.control(), &digests).await?;
        let held: HashMap<Digest, Held> = held.into_iter().filter_map(|held| Some((held.digest?, held))).collect();
        let compared = batch.keys.iter().zip(seen).map(|(row, seen)| {
            let held = digest_of(row, &seen).and_then(|digest| held.get(&digest));
            held.and_then(|held| settings_differ(row, held)).unwrap_or(seen.found)
        });
        Ok(compared.collect())
    }

    /// A key that should be `VALID` is not where its organization is inactive. That is as it should be where it is so
    /// in the source too, or was done here since.
    async fn look_at_organizations(&self, batch: &KeyBatch, found: &mut [Found]) -> Result<(), ImportError> {
        let ids: BTreeSet<OrganizationId> = batch.keys.iter().map(|row| row.item.organization_id).collect();
        let ids: Vec<OrganizationId> = ids.into_iter().collect();
        let there = imported_organizations::list_by_ids(self.context.store.control(), &ids).await?;
        let inactive: HashMap<OrganizationId, i64> =
            there.into_iter().filter(|one| !one.active).map(|one| (one.id, one.etag)).collect();
        for (row, found) in batch.keys.iter().zip(found) {
            let id = row.item.organization_id;
            let Some(etag) = inactive.get(&id) else { continue };
            let stands = matches!(found, Found::AsExpected(word) if *word != ENDED);
            if !stands || expected(row, batch.now) != Outcome::Valid {
                continue;
            }
            let is_so_there = self.verifying.is_none_or(|verifying| verifying.inactive.contains(&id));
            *found = if found.is_hashed() && (is_so_there || *etag > 1) {
                Found::AsExpected(HASHED)
            } else if is_so_there {
                Found::AsExpected(Outcome::OrganizationInactive.as_str())
            } else if *etag > 1 {
                Found::AsExpected(ENDED)
            } else {
                Found::other_outcome(Outcome::OrganizationInactive, Outcome::Valid)
            };
        }
        Ok(())
    }

    /// Keys that no digest leads to, by the id of the row that they came from.
    async fn held(&self, batch: &KeyBatch) -> Result<HashMap<String, Held>, ImportError> {
        let without = |row: &&KeyRow| row.item.key.material.digest().is_none();
        let ids: Vec<String> = batch.keys.iter().filter(without).map(|row| row.id.clone()).collect();
        let db = self.context.store.control();
        let held = imported_keys::list_by_source_ids(db, self.import_id, &ids).await?;
        Ok(held.into_iter().filter_map(|held| Some((held.source_id.clone()?, held))).collect())
    }

    async fn check_row(&self, row: &KeyRow, held: &HashMap<String, Held>, now: Timestamp) -> Result<Seen, ImportError> {
        match &row.item.key.material {
            Material::Digest(digest) => self.check_digest(row, *digest, now).await,
            Material::Slow(_) | Material::Missing => Ok(Seen::from(match held.get(&row.id) {
                Some(held) => check_held(row, held, now),
                None => Found::differs(NOT_FOUND, "Keystead has no key from this row"),
            })),
        }
    }

    async fn check_digest(&self, row: &KeyRow, digest: Digest, now: Timestamp) -> Result<Seen, ImportError> {
        let (found, key) = service::peek_outcome(self.context, digest, now).await?;
        let expected = expected(row, now);
        // Organizations are looked at afterwards.
        let is_expected = found == expected || (expected, found) == (Outcome::Valid, Outcome::OrganizationInactive);
        if !is_expected {
            let held = imported_keys::list_by_digests(self.context.store.control(), &[digest]).await?;
            let is_ended = held.first().is_some_and(|held| was_ended_here(held, row, now));
            let ended = if is_ended { Found::AsExpected(ENDED) } else { Found::other_outcome(found, expected) };
            return Ok(Seen::from(ended));
        }
        let elsewhere = key.as_ref().and_then(|key| {
            let differs = place_differs(row, key.id, key.organization_id);
            differs.or_else(|| end_differs(row, key.expire_time))
        });
        Ok(match elsewhere {
            Some(differs) => Seen::from(differs),
            None => Seen {
                found: Found::AsExpected(found.as_str()),
                may_differ: key.is_some_and(|key| may_differ(&row.item.key, &key)),
            },
        })
    }

    /// Finds out which rows differ because the import refuses them, and compares those that have no key of their own
    /// because it takes them for the key of another row.
    async fn explain(&self, batch: &KeyBatch, found: &mut [Found]) -> Result<(), ImportError> {
        let differs = |found: &Found| matches!(found, Found::Differs { .. });
        let items: Vec<_> = batch
            .keys
            .iter()
            .zip(&*found)
            .filter(|(_, found)| differs(found))
            .map(|(row, _)| row.item.clone())
            .collect();
        if items.is_empty() {
            return Ok(());
        }
        let (import_id, source) = (self.import_id, self.source.to_owned());
        let (after, position, planned, rooms) = (None, None, Vec::new(), BTreeMap::new());
        let asked = ImportBatch { import_id, source, items, after, position, refused: 0, planned, rooms };
        let results = service::import_batch(self.context, actor(), asked, true).await?;
        let mut duplicates = Vec::new();
        let unexplained = batch.keys.iter().zip(found.iter_mut()).filter(|(_, found)| differs(found));
        for ((row, found), result) in unexplained.zip(results) {
            match result {
                // Of one that came before, what differs is known better: somebody's present key would not be here.
                ItemResult::Refused(refused) if refused.reason == Refusal::RowChanged => {}
                ItemResult::Refused(refused) => *found = Found::Refused(refused),
                ItemResult::Duplicate(Some(id)) if found.is_not_found() => duplicates.push((row, found, id)),
                ItemResult::Created(_)
                | ItemResult::WouldCreate
                | ItemResult::Existing(_)
                | ItemResult::Duplicate(_) => {}
            }
        }
        let ids: Vec<KeyId> = duplicates.iter().map(|(_, _, id)| *id).collect();
        let held = imported_keys::list_by_ids(self.context.store.control(), &ids).await?;
        let held: HashMap<KeyId, Held> = held.into_iter().map(|held| (held.id, held)).collect();
        for (row, found, id) in duplicates {
            if let Some(held) = held.get(&id) {
                *found = check_held(row, held, batch.now);
            }
        }
        Ok(())
    }
}

/// What Keystead should say of the key of a row, its organization left aside.
fn expected(row: &KeyRow, now: Timestamp) -> Outcome {
    outcome_of(row.item.key.status, row.item.key.expire_time, now)
}

fn outcome_of(status: StoredStatus, expire_time: Option<Timestamp>, now: Timestamp) -> Outcome {
    match status.at(expire_time, now) {
        KeyStatus::Revoked => Outcome::Revoked,
        KeyStatus::Disabled => Outcome::Disabled,
        KeyStatus::Expired => Outcome::Expired,
        KeyStatus::Active => Outcome::Valid,
    }
}

fn place_differs(row: &KeyRow, id: KeyId, organization_id: OrganizationId) -> Option<Found> {
    if organization_id != row.item.organization_id {
        return Some(Found::differs("OTHER_ORGANIZATION", "the key is another organization's"));
    }
    let is_other = row.item.key.kept_id.is_some_and(|kept| kept != id);
    is_other.then(|| Found::differs("OTHER_ID", "the key has another id"))
}

/// No key may live longer than its row says.
fn end_differs(row: &KeyRow, expire_time: Option<Timestamp>) -> Option<Found> {
    let end = row.item.key.expire_time?;
    let is_later = expire_time.is_none_or(|expire_time| expire_time > end);
    is_later.then(|| Found::differs("EXPIRES_LATER", "the key lives longer than the row says"))
}

/// The key of a row that has no digest in the source.
fn check_held(row: &KeyRow, held: &Held, now: Timestamp) -> Found {
    match compare_held(row, held, now) {
        Found::AsExpected(word) => settings_differ(row, held).unwrap_or(Found::AsExpected(word)),
        found @ (Found::Refused(_) | Found::Differs { .. }) => found,
    }
}

/// The same, what the key may left aside.
fn compare_held(row: &KeyRow, held: &Held, now: Timestamp) -> Found {
    let differs = place_differs(row, held.id, held.organization_id);
    if let Some(differs) = differs.or_else(|| end_differs(row, held.expire_time)) {
        return differs;
    }
    let (found, expected) = (outcome_of(held.status, held.expire_time, now), expected(row, now));
    let word = match (&row.item.key.material, held.scheme) {
        // Once it was presented it is disabled, which is as it should be.
        (Material::Missing, Scheme::Missing) => return Found::AsExpected("MISSING"),
        (Material::Slow(hash), Scheme::Sha256) => match held.stored_hash.as_deref() {
            Some(stored) if stored == mark_of(hash) => "UPGRADED",
            // Its secret was changed here, before the old one was ever presented.
            Some(stored) if stored == hash.expose() && held.etag > 1 => ENDED,
            // It came as a digest. Whether this is a hash of the same key, nobody can tell who has not the key.
            None => HASHED,
            Some(_) => return Found::differs("OTHER_HASH", "the key came from another hash"),
        },
        (Material::Slow(hash), Scheme::Bcrypt | Scheme::Argon2) => {
            if held.stored_hash.as_deref() != Some(hash.expose()) {
                return Found::differs("OTHER_HASH", "the stored hash is another one");
            }
            "SLOW"
        }
        (Material::Missing, Scheme::Sha256 | Scheme::Bcrypt | Scheme::Argon2)
        | (Material::Slow(_), Scheme::Missing)
        | (Material::Digest(_), Scheme::Sha256 | Scheme::Bcrypt | Scheme::Argon2 | Scheme::Missing) => {
            return Found::differs("OTHER_SCHEME", "the key came over under another scheme");
        }
    };
    if found == expected {
        return Found::AsExpected(word);
    }
    if !was_ended_here(held, row, now) {
        return Found::other_outcome(found, expected);
    }
    // A key that has ended is compared no better.
    Found::AsExpected(if word == HASHED { HASHED } else { ENDED })
}

/// Whether somebody has revoked, disabled or rotated the key in Keystead since it came over, so that it may less than
/// its row in the source says: that is no fault of the import.
fn was_ended_here(held: &Held, row: &KeyRow, now: Timestamp) -> bool {
    let rank = |status: StoredStatus, expire_time| match status.at(expire_time, now) {
        KeyStatus::Active => 0,
        KeyStatus::Expired => 1,
        KeyStatus::Disabled => 2,
        KeyStatus::Revoked => 3,
    };
    let key = &row.item.key;
    held.etag > 1 && rank(held.status, held.expire_time) > rank(key.status, key.expire_time)
}

#[cfg(test)]
mod tests;
