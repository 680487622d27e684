//! Audit events and the hash chain that they are sealed into, so that a changed, removed or reordered event is found.
//! Pure: the server seals with these functions and the command line checks with the same ones, from what the
//! API shows. A chain alone cannot show that its newest events were cut; a head kept elsewhere can.

use sha2::{Digest as _, Sha256};

use super::{ids::OrganizationId, key::stored_enum, permission::Caller, time::Timestamp};

/// What stands before the first event.
pub const GENESIS_HASH: [u8; 32] = [0; 32];

stored_enum! {
    /// What was done.
    AuditAction {
        KeyCreate = "key.create",
        KeyUpdate = "key.update",
        KeyRotate = "key.rotate",
        KeyRevoke = "key.revoke",
        KeyExpire = "key.expire",
        /// Keys were brought in; the target is the import.
        KeyImport = "key.import",
        /// A slow hash gave way to a digest, at a first success.
        KeyRehash = "key.rehash",
        /// A key that nothing is known of to compare a secret with was presented.
        KeyDisable = "key.disable",
        OrganizationCreate = "organization.create",
        OrganizationUpdate = "organization.update",
        OrganizationActivate = "organization.activate",
        OrganizationDeactivate = "organization.deactivate",
        OrganizationDelete = "organization.delete",
    }
}

/// Who acts, and in which call.
#[derive(Debug, Clone)]
pub struct Actor {
    /// Empty where no key acts, as in `keystead init`.
    pub key_id: String,
    pub name: String,
    /// The id of the call, as in the log.
    pub request_id: String,
}

impl Actor {
    /// A background job, in no call.
    #[must_use]
    pub fn job(name: &str) -> Self {
        Self { key_id: String::new(), name: format!("{name} job"), request_id: String::new() }
    }

    /// The caller of an rpc.
    #[must_use]
    pub fn of(caller: &Caller, request_id: &str) -> Self {
        Self { key_id: caller.key_id().to_string(), name: caller.name().to_owned(), request_id: request_id.to_owned() }
    }
}

/// An event that is about to be written, in the transaction of the change that it tells of.
#[derive(Debug, Clone)]
pub struct NewAuditEvent {
    pub time: Timestamp,
    pub actor: Actor,
    pub action: AuditAction,
    pub target_id: String,
    pub organization_id: OrganizationId,
    /// JSON: names of settings, closed words, ids and slugs. Never a secret, a digest, metadata or a note.
    pub detail: String,
}

impl AuditAction {
    /// `key`, `organization` or `import`.
    #[must_use]
    pub fn target_type(self) -> &'static str {
        if self == Self::KeyImport { "import" } else { self.as_str().split('.').next().unwrap_or_default() }
    }
}

/// An event as the chain sees it: every field that the API shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    pub sequence: i64,
    pub id: String,
    pub time_us: i64,
    pub actor_key_id: String,
    pub actor: String,
    pub action: String,
    pub target_type: String,
    pub target_id: String,
    pub organization_id: String,
    pub request_id: String,
    pub detail: String,
}

/// A sealed event.
#[derive(Debug, Clone)]
pub struct SealedEvent {
    pub record: AuditRecord,
    /// Lower-case hex.
    pub previous_hash: String,
    /// Lower-case hex.
    pub hash: String,
}

/// The chain's newest link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    pub sequence: i64,
    pub hash: [u8; 32],
}

impl AuditHead {
    /// The head of an empty chain.
    pub const GENESIS: Self = Self { sequence: 0, hash: GENESIS_HASH };
}

/// Which events a list shows.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// `None` for every organization, which only a caller of `system` may ask for.
    pub organization_id: Option<OrganizationId>,
    pub target_id: Option<String>,
    pub actor_key_id: Option<String>,
    pub action: Option<AuditAction>,
    pub start_time: Option<Timestamp>,
    /// The first moment that no longer counts.
    pub end_time: Option<Timestamp>,
}

/// The hash of an event: SHA-256 over the hash before it and every field, each with its length in front, so that
/// no text can move from one field into the next unseen.
#[must_use]
pub fn event_hash(previous: &[u8; 32], event: &AuditRecord) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(previous);
    hash.update(event.sequence.to_be_bytes());
    hash.update(event.time_us.to_be_bytes());
    let texts = [
        &event.id,
        &event.actor_key_id,
        &event.actor,
        &event.action,
        &event.target_type,
        &event.target_id,
        &event.organization_id,
        &event.request_id,
        &event.detail,
    ];
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().into()
}

/// A hash as lower-case hex.
#[must_use]
pub fn encode_hash(hash: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads a hash from 64 hex digits.
#[must_use]
pub fn decode_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            sequence: 1,
            id: "e".to_owned(),
            time_us: 5,
            actor_key_id: "k".to_owned(),
            actor: "root".to_owned(),
            action: "key.create".to_owned(),
            target_type: "key".to_owned(),
            target_id: "t".to_owned(),
            organization_id: "o".to_owned(),
            request_id: "r".to_owned(),
            detail: "{}".to_owned(),
        }
    }

    #[test]
    fn every_field_counts_and_no_text_moves_between_fields_unseen() {
        let base = event_hash(&GENESIS_HASH, &record());
        let moved = AuditRecord { actor: "roo".to_owned(), action: "tkey.create".to_owned(), ..record() };
        let changed = [
            AuditRecord { sequence: 2, ..record() },
            AuditRecord { time_us: 6, ..record() },
            AuditRecord { detail: "{ }".to_owned(), ..record() },
            AuditRecord { organization_id: String::new(), ..record() },
            moved,
        ];
        for event in changed {
            assert_ne!(event_hash(&GENESIS_HASH, &event), base, "{event:?}");
        }
        assert_ne!(event_hash(&[1; 32], &record()), base);
    }

    #[test]
    fn hashes_round_trip_as_hex() {
        let hash = event_hash(&GENESIS_HASH, &record());
        assert_eq!(decode_hash(&encode_hash(&hash)), Some(hash));
        assert_eq!(decode_hash("00"), None);
        assert_eq!(decode_hash(&"g".repeat(64)), None);
    }
}
