//! `keystead import status`: what came from where, what became of it, and which keys nobody has presented since.
//! Reads Keystead's own database alone. Lists are cut where they would grow without bound, and say so.
//! Invariant: a key is "seen" by Keystead's own account; what the source says of its last use is from before. What is
//! counted as never seen is what the list of such keys holds: keys that can still be seen.

use std::collections::BTreeMap;

use super::{
    ImportError,
    report::{Counts, ImportStatus, KeyLine, Status},
};
use crate::{
    domain::{
        ids::{KeyId, RecordId},
        key::{KeyStatus, StoredStatus},
        time::Timestamp,
    },
    service::Context,
    store::{
        imported_keys::{self, Held, SchemeCount},
        imports::{self, Import},
    },
};

/// Keys of one list at the most.
const LISTED_MAX: usize = 100_000;
/// Keys of one look-up.
const PAGE_SIZE: u64 = 1000;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct StatusQuery {
    /// Only imports with this label.
    pub source: Option<String>,
    /// Whether to list the keys that nobody has presented.
    pub unseen: bool,
    /// Whether to list the keys that came without a hash.
    pub missing: bool,
}

/// Which list of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Unseen,
    Missing,
}

/// Tells how far imports have come.
///
/// # Errors
/// The store's own.
pub async fn status(context: &Context, query: &StatusQuery) -> Result<Status, ImportError> {
    let (db, now) = (context.store.control(), context.clock.now());
    let mut found = imports::list(db).await?;
    found.retain(|import| query.source.as_ref().is_none_or(|source| import.source == *source));
    let mut counts: BTreeMap<RecordId, Vec<SchemeCount>> = BTreeMap::new();
    for count in imported_keys::count_by_scheme(db, now).await? {
        counts.entry(count.import_id).or_default().push(count);
    }
    let mut status = Status { imports: Vec::new(), unseen: None, missing: None, cut: false };
    if query.unseen {
        status.unseen = Some(list(context, &found, (List::Unseen, now), &mut status.cut).await?);
    }
    if query.missing {
        status.missing = Some(list(context, &found, (List::Missing, now), &mut status.cut).await?);
    }
    status.imports = found
        .into_iter()
        .map(|import| line(&import, counts.get(&import.id).map(Vec::as_slice).unwrap_or_default()))
        .collect();
    Ok(status)
}

fn line(import: &Import, counts: &[SchemeCount]) -> ImportStatus {
    let schemes: Counts =
        counts.iter().map(|count| (count.scheme.as_str(), u64::try_from(count.keys).unwrap_or(0))).collect();
    let (seen, never_seen) =
        counts.iter().fold((0, 0), |(seen, unseen), count| (seen + count.seen, unseen + count.unseen));
    ImportStatus {
        source: import.source.clone(),
        table: import.table_name.clone(),
        kind: import.kind,
        organization_id: import.organization_id,
        state: import.state,
        created: import.created_count,
        existing: import.existing_count,
        refused: import.refused_count,
        schemes,
        seen,
        never_seen,
        create_time: import.create_time,
        update_time: import.update_time,
        verified_time: import.verified_time,
        // Empty text is no JSON.
        contracted: serde_json::from_str(&import.contracted).ok(),
        last_used_time: counts.iter().filter_map(|count| count.last_used_time).max(),
    }
}

/// All keys of a list as of a moment, by owner.
async fn list(
    context: &Context,
    imports: &[Import],
    (which, now): (List, Timestamp),
    cut: &mut bool,
) -> Result<Vec<KeyLine>, ImportError> {
    let mut lines = Vec::new();
    for import in imports {
        let mut after = None;
        loop {
            let page = page(context, import, (which, now), after.take()).await?;
            let full = page.len() as u64 == PAGE_SIZE;
            after = page.last().map(|held| (held.owner_id.clone(), held.id));
            lines.extend(page.into_iter().map(|held| key_line(import, held, now)));
            if lines.len() >= LISTED_MAX {
                *cut |= full || lines.len() > LISTED_MAX;
                lines.truncate(LISTED_MAX);
                break;
            }
            if !full {
                break;
            }
        }
    }
    // Each import came sorted; several are merged here. The sort is stable.
    lines.sort_by(|one, other| one.owner_id.cmp(&other.owner_id));
    Ok(lines)
}

async fn page(
    context: &Context,
    import: &Import,
    (which, now): (List, Timestamp),
    after: Option<(String, KeyId)>,
) -> Result<Vec<Held>, ImportError> {
    let db = context.store.control();
    Ok(match which {
        List::Unseen => imported_keys::list_unseen(db, import.id, now, after, PAGE_SIZE).await?,
        List::Missing => imported_keys::list_missing(db, import.id, after, PAGE_SIZE).await?,
    })
}

fn key_line(import: &Import, held: Held, now: Timestamp) -> KeyLine {
    KeyLine {
        id: held.id,
        organization_id: held.organization_id,
        owner_id: held.owner_id,
        name: held.name,
        source: import.source.clone(),
        table: import.table_name.clone(),
        source_id: held.source_id.unwrap_or_default(),
        scheme: held.scheme,
        status: status_word(held.status, held.expire_time, now),
        last_used_time: held.last_used_time,
        request_count: held.request_count,
    }
}

fn status_word(stored: StoredStatus, expire_time: Option<Timestamp>, now: Timestamp) -> &'static str {
    match stored.at(expire_time, now) {
        KeyStatus::Active => "active",
        KeyStatus::Disabled => "disabled",
        KeyStatus::Revoked => "revoked",
        KeyStatus::Expired => "expired",
    }
}
