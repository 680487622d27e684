//! Whether a key may in Keystead what its row says: its scopes, networks, limits and credits.
//! Must not judge what people have set in Keystead: from then on the row does not count. Invariant: what differs here
//! is what `run` refuses of a second row with the same secret, and credits that were spent here are no difference.

use super::{Found, KeyRow};
use crate::{
    domain::{import::ImportedKey, key::StoredStatus, record::KeyRecord},
    store::imported_keys::{Held, HeldSettings},
};

/// How a key is counted that may something else here than its row says.
const SETTINGS_DIFFER: &str = "SETTINGS_DIFFER";

/// Whether the rest of a key must be looked up to tell: what a verification knows of it is another thing than its row
/// says, or not all that counts.
pub(super) fn may_differ(key: &ImportedKey, record: &KeyRecord) -> bool {
    // How many credits are left is in no record.
    key.credits.is_some()
        || record.credits_id.is_some()
        || *record.scopes != *key.scopes
        || *record.allowed_cidrs != *key.allowed_cidrs
        || *record.rate_limits != *key.rate_limits
}

/// What differs of a key that nobody has changed since it came. A revoked one may nothing, and nobody could set it.
pub(super) fn settings_differ(row: &KeyRow, held: &Held) -> Option<Found> {
    if held.etag != 1 || held.import_id.is_none() || held.status == StoredStatus::Revoked {
        return None;
    }
    let differing = held.settings.differing(&HeldSettings::of(&row.item.key));
    let words = || format!("other {} than the row says: correct the row, or set them here", differing.join(", "));
    (!differing.is_empty()).then(|| Found::differs(SETTINGS_DIFFER, &words()))
}
