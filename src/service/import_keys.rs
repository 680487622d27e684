//! `ImportKeys`, and the batches of `keystead import`: keys that exist elsewhere come in, each with a result of its own.
//!
//! A batch is one transaction: its keys, an audit event for each organization, and how far the import has come. A key
//! that is here already is found and not written again, so a batch whose answer was lost can be sent once more.
//! Invariant: one digest is one key of one organization; a row that says otherwise is refused and named.

mod classify;
#[cfg(test)]
mod classify_tests;
mod places;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use self::{
    classify::{Known, NO_ID, meets_hash},
    places::{Place, lock_organizations, refuse_beyond_caps, refuse_stored_hashes, refuse_unplaced},
};
use super::{Call, Context, ServiceError, create_key::find_open, import_rows};
use crate::{
    domain::{
        audit::{Actor, AuditAction, NewAuditEvent, encode_hash},
        digest::Digest,
        ids::{KeyId, OrganizationId, RecordId},
        import::{ImportedKey, Material, Refusal, Refused},
        key::ApiKey,
        time::Timestamp,
    },
    random,
    store::{
        Database, audit_events, commit,
        imported_keys::{self, Held, NewImportedKey},
        imports::{self, Advance, Import, ImportKind, NewImport},
        slow_keys::mark_of,
    },
};

/// A key to be brought in, and whose it is to be.
#[derive(Debug, Clone)]
pub struct ImportItem {
    pub organization_id: OrganizationId,
    pub key: ImportedKey,
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemResult {
    Created(KeyId),
    /// In a dry run: it would be.
    WouldCreate,
    /// The same row of the same source is here already. In a dry run with the nil id where it only would be, and keeps
    /// none.
    Existing(KeyId),
    /// The organization has a key with this secret already, from another row or of its own. In a dry run `None` where
    /// that one would be created too.
    Duplicate(Option<KeyId>),
    Refused(Refused),
}

/// Some rows of an import.
#[derive(Debug, Clone)]
pub struct ImportBatch {
    pub import_id: RecordId,
    pub source: String,
    pub items: Vec<ImportItem>,
    /// The position behind which these rows were read; where the import stands at another by now, nothing is written.
    /// `None` where there is none.
    pub after: Option<String>,
    /// The position in the source once this batch is in; `None` where there is none.
    pub position: Option<String>,
    /// Rows up to there that were refused before they became items.
    pub refused: i64,
    /// In a dry run: what batches before this one would have written, as far as these rows may meet it
    /// ([`ImportItem::planned`]).
    pub planned: Vec<Held>,
    /// In a dry run: how many more keys organizations would take by then, `None` where they have no cap, those among
    /// them that would be new. Of all others the database is asked.
    pub rooms: BTreeMap<OrganizationId, Option<i64>>,
}

/// What a call of `ImportKeys` asks. Items that could not be read are refused already.
#[derive(Debug)]
pub struct ImportKeys {
    pub organization_id: OrganizationId,
    pub source: String,
    pub items: Vec<Result<ImportedKey, Refused>>,
    pub dry_run: bool,
}

/// Brings the keys of a call in; gives a result for each, in order.
///
/// # Errors
/// `NotFound` without such an organization, `FailedPrecondition` where it is inactive.
pub async fn import_keys(
    context: &Arc<Context>,
    call: &Call,
    import: ImportKeys,
) -> Result<Vec<ItemResult>, ServiceError> {
    let ImportKeys { organization_id, source, items, dry_run } = import;
    let now = context.clock.now();
    let mut results = Vec::with_capacity(items.len());
    let mut good = Vec::new();
    for item in items {
        match item.and_then(|key| check_scopes(call, key)) {
            Ok(key) => {
                results.push(None);
                good.push(ImportItem { organization_id, key });
            }
            Err(refused) => results.push(Some(ItemResult::Refused(refused))),
        }
    }
    let refused = results.iter().flatten().count().try_into().unwrap_or(i64::MAX);
    let work = bring_called(context.clone(), call.clone(), organization_id, source, good, refused, dry_run, now);
    let mut written = context.run_to_end(work).await?.into_iter();
    Ok(results.into_iter().map(|result| result.or_else(|| written.next()).unwrap_or(ItemResult::WouldCreate)).collect())
}

/// A scope of our own that the caller does not hold refuses its key alone.
fn check_scopes(call: &Call, key: ImportedKey) -> Result<ImportedKey, Refused> {
    match call.caller.beyond_own(&key.scopes) {
        None => Ok(key),
        Some(scope) => {
            let message = format!("the caller does not hold the scope {}", scope.as_str());
            Err(Refused::new(Refusal::ReservedScope, message))
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one call, taken apart once")]
async fn bring_called(
    context: Arc<Context>,
    call: Call,
    organization_id: OrganizationId,
    source: String,
    items: Vec<ImportItem>,
    refused: i64,
    dry_run: bool,
    now: Timestamp,
) -> Result<Vec<ItemResult>, ServiceError> {
    let transaction = context.store.begin().await?;
    find_open(&transaction, call.caller.reach(), organization_id).await?;
    let id = RecordId::new(now, random::bytes());
    let organization = Some(organization_id);
    let kind = ImportKind::Calls;
    let import = NewImport { id, source: &source, table_name: "", kind, organization_id: organization, now };
    let import = if dry_run {
        imports::find_called(&transaction, &source, organization_id).await?
    } else {
        Some(imports::find_or_insert(&transaction, &import).await?)
    };
    let import_id = import.as_ref().map_or(id, |import: &Import| import.id);
    let (planned, rooms) = (Vec::new(), BTreeMap::new());
    let batch = ImportBatch { import_id, source, items, after: None, position: None, refused, planned, rooms };
    let mut results = bring(&context, transaction, call.actor(), batch, dry_run, now).await?;
    // A caller is told no id that is none.
    for result in results.iter_mut().filter(|result| dry_run && **result == ItemResult::Existing(NO_ID)) {
        *result = ItemResult::Duplicate(None);
    }
    Ok(results)
}

/// Brings a batch of the command in; gives a result for each item, in order. In a dry run nothing is written.
/// Organizations may be inactive, but not `system`.
///
/// # Errors
/// `FailedPrecondition` where another run has gone on with the import; the store's own, after which the batch can be
/// sent again as it is.
pub async fn import_batch(
    context: &Arc<Context>,
    actor: Actor,
    batch: ImportBatch,
    dry_run: bool,
) -> Result<Vec<ItemResult>, ServiceError> {
    let (own, now) = (context.clone(), context.clock.now());
    context
        .run_to_end(async move {
            let transaction = own.store.begin().await?;
            bring(&own, transaction, actor, batch, dry_run, now).await
        })
        .await
}

/// One batch within a transaction, which ends with it.
async fn bring(
    context: &Context,
    transaction: crate::store::Transaction,
    actor: Actor,
    batch: ImportBatch,
    dry_run: bool,
    now: Timestamp,
) -> Result<Vec<ItemResult>, ServiceError> {
    // The command brings no keys of `system` in: whoever writes to a source must not become a caller of ours.
    let open = |id: &OrganizationId| *id != OrganizationId::SYSTEM || !actor.key_id.is_empty();
    let wanted: BTreeSet<OrganizationId> = batch.items.iter().map(|item| item.organization_id).filter(open).collect();
    imported_keys::prefer_indexes(&transaction).await?;
    let mut places = lock_organizations(&transaction, wanted).await?;
    let rooms = batch.rooms.iter().filter(|(id, _)| open(id));
    places.extend(rooms.map(|(id, room)| (*id, Place { room: *room })));
    if !dry_run {
        // Two that bring the rows of one import in at once would wait for each other in a circle.
        match &batch.after {
            Some(after) => import_rows::lock_at(&transaction, batch.import_id, after).await?,
            None => imports::lock(&transaction, batch.import_id).await?,
        }
    }
    let mut results: Vec<Option<ItemResult>> = vec![None; batch.items.len()];
    refuse_unplaced(&batch, &places, &mut results);
    refuse_stored_hashes(&transaction, &batch, &mut results).await?;
    let looks_first = places.values().any(|place| place.room.is_some());
    if looks_first || meets_hash(&transaction, &batch, &results).await? {
        // What is here already takes no room under a cap, and a slow hash that gave way no second key.
        let known = Known::find(&transaction, &batch, &results).await?;
        known.classify(&batch, &mut results);
        refuse_beyond_caps(&batch, &places, &mut results);
    }
    if dry_run {
        // The rest of what a run does, on what is known alone.
        let mut known = Known::find(&transaction, &batch, &results).await?;
        known.plan(&batch, &mut results);
        return Ok(results.into_iter().map(|result| result.unwrap_or_else(lost)).collect());
    }
    let created = insert(&transaction, &actor, &batch, &mut results, now).await?;
    let known = Known::find(&transaction, &batch, &results).await?;
    known.classify(&batch, &mut results);
    let results: Vec<ItemResult> = results.into_iter().map(|result| result.unwrap_or_else(lost)).collect();
    audit(&transaction, &actor, &batch, &created, now).await?;
    imports::advance(&transaction, batch.import_id, &advance_of(&batch, &results), now).await?;
    let committed = commit(transaction).await;
    // A client may have presented one of them before: that it was unknown is forgotten.
    for item in &batch.items {
        if let Some(digest) = item.key.material.digest() {
            context.records.evict_key(digest);
        }
    }
    if batch.items.iter().any(|item| item.key.material.digest().is_none()) {
        context.slow_keys.forget();
    }
    committed?;
    Ok(results)
}

/// A key that was not written, and stands in nobody's way a moment later: whoever did is gone again.
fn lost() -> ItemResult {
    ItemResult::Refused(Refused::new(Refusal::DuplicateSecret, "another key stood in its way and is gone: try again"))
}

/// What has no result yet and is to be written, in the order of writing, each with its place in the batch.
fn to_write<'b>(batch: &'b ImportBatch, results: &[Option<ItemResult>]) -> Vec<(usize, &'b ImportItem)> {
    let mut open: Vec<(usize, &ImportItem)> =
        batch.items.iter().enumerate().filter(|(at, _)| results.get(*at).is_some_and(Option::is_none)).collect();
    // Of the same row of a source twice the first counts, as it would in two batches.
    let (mut seen, mut kept) = (HashSet::new(), HashSet::new());
    open.retain(|(_, item)| source_id_of(&item.key).is_none_or(|id| seen.insert(id)));
    open.retain(|(_, item)| item.key.kept_id.is_none_or(|id| kept.insert(id)));
    // All who write wait for each other's secrets in one order. Of equal ones the first row comes first.
    open.sort_by_key(|(_, item)| (item.key.material.digest().map(Digest::as_bytes), item.key.material.slow_hash()));
    open
}

/// Writes what has no result yet and nothing stands in the way of; gives the new keys by organization.
async fn insert(
    transaction: &impl Database,
    actor: &Actor,
    batch: &ImportBatch,
    results: &mut [Option<ItemResult>],
    now: Timestamp,
) -> Result<BTreeMap<OrganizationId, Vec<KeyId>>, ServiceError> {
    let open = to_write(batch, results);
    let places: Vec<usize> = open.iter().map(|(at, _)| *at).collect();
    let rows: Vec<NewImportedKey> =
        open.into_iter().map(|(_, item)| new_key(item, actor, batch.import_id, now)).collect();
    let written = imported_keys::insert_new(transaction, &rows).await?;
    let mut created: BTreeMap<OrganizationId, Vec<KeyId>> = BTreeMap::new();
    for (at, row) in places.into_iter().zip(&rows) {
        if written.contains(&row.key.id)
            && let Some(result) = results.get_mut(at)
        {
            *result = Some(ItemResult::Created(row.key.id));
            created.entry(row.key.organization_id).or_default().push(row.key.id);
        }
    }
    Ok(created)
}

fn new_key(item: &ImportItem, actor: &Actor, import_id: RecordId, now: Timestamp) -> NewImportedKey {
    let from = &item.key;
    let id = from.kept_id.unwrap_or_else(|| KeyId::new(now, random::bytes()));
    let created_by = if actor.key_id.is_empty() { actor.name.clone() } else { actor.key_id.clone() };
    let refill = from.credits.and_then(|credits| credits.refill);
    let key = ApiKey {
        id,
        organization_id: item.organization_id,
        name: from.name.clone(),
        prefix: from.prefix.clone(),
        hint: from.hint.clone(),
        environment: from.environment,
        stored_status: from.status,
        scopes: from.scopes.clone(),
        metadata: from.metadata.clone(),
        owner_id: from.owner_id.clone(),
        allowed_cidrs: from.allowed_cidrs.clone(),
        rate_limits: from.rate_limits.clone(),
        credits: from.credits,
        refill_time: refill.map(|refill| refill.interval.next_after(now)),
        create_time: from.create_time.unwrap_or(now),
        update_time: now,
        expire_time: from.expire_time,
        last_used_time: from.last_used_time,
        request_count: from.request_count,
        created_by,
        revocation: from.revocation.clone(),
        rotated_from_id: None,
        successor_id: None,
        counter_id: id,
        etag: 1,
    };
    let (material, look_up_id) = (from.material.clone(), from.look_up_id.clone());
    let decoded_digest = from.decoded_digest();
    NewImportedKey { key, material, decoded_digest, look_up_id, import_id, source_id: source_id_of(from) }
}

/// By what a repeat tells that a row is here already, besides its digest: the id of the row, or for a slow hash without
/// one, which nothing could be found by, the hash of that hash.
fn source_id_of(key: &ImportedKey) -> Option<String> {
    if !key.source_id.is_empty() {
        return Some(key.source_id.clone());
    }
    match &key.material {
        Material::Slow(hash) => Some(mark_of(hash)),
        Material::Digest(_) | Material::Missing => None,
    }
}

/// One event for all keys of an organization in this batch: their number, and the hash of their ids in order, so that
/// one that is added or taken away later shows.
async fn audit(
    transaction: &impl Database,
    actor: &Actor,
    batch: &ImportBatch,
    created: &BTreeMap<OrganizationId, Vec<KeyId>>,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let event = |(organization_id, ids): (&OrganizationId, &Vec<KeyId>)| {
        let mut ids: Vec<KeyId> = ids.clone();
        ids.sort_unstable();
        let mut hash = Sha256::new();
        for id in &ids {
            hash.update(id.bytes());
        }
        let hash: [u8; 32] = hash.finalize().into();
        let detail = json!({"source": batch.source, "created": ids.len(), "key_ids_sha256": encode_hash(&hash)});
        let event = NewAuditEvent {
            time: now,
            actor: actor.clone(),
            action: AuditAction::KeyImport,
            target_id: batch.import_id.to_string(),
            organization_id: *organization_id,
            detail: detail.to_string(),
        };
        (RecordId::new(now, random::bytes()), event)
    };
    let events: Vec<(RecordId, NewAuditEvent)> = created.iter().map(event).collect();
    audit_events::insert_many(transaction, &events).await?;
    Ok(())
}

fn advance_of(batch: &ImportBatch, results: &[ItemResult]) -> Advance {
    let mut advance = Advance { position: batch.position.clone(), refused: batch.refused, ..Advance::default() };
    for result in results {
        match result {
            ItemResult::Created(_) | ItemResult::WouldCreate => advance.created += 1,
            ItemResult::Existing(_) | ItemResult::Duplicate(_) => advance.existing += 1,
            ItemResult::Refused(_) => advance.refused += 1,
        }
    }
    advance
}
