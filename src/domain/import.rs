//! Keys that exist elsewhere: how a source may hold them, what is good enough to be brought in, and in which words the
//! rest is refused. Pure: where rows come from is `src/import/`, what is written is `src/service/import_keys.rs`.
//! Must not show material: a secret or a hash stands in no `Debug`, no message and no reason.

mod hashes;
mod hidden;
mod weakness;

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use zeroize::Zeroizing;

pub use self::{
    hashes::{
        HASH_LENGTH_MAX, decoded_digest, digest_of_hex, is_stored_hash, parse_sha256_base64, parse_sha256_hex,
        read_as_digest,
    },
    hidden::{gives_away, is_most_of, shown_end_of, without_blanks},
    weakness::is_weak,
};
use super::{
    Invalid,
    digest::Digest,
    ids::KeyId,
    key::{Environment, Revocation, StoredStatus, stored_enum},
    limits::{Credits, RateLimit},
    scope::Scope,
    time::Timestamp,
};

/// Who acts where the command brings keys in and no key does.
pub const ACTOR: &str = "import";
/// The entry of a key's metadata that says that its secret is weak and was let in all the same.
pub const WEAK_ENTRY: &str = "imported-weak";
/// The most uses that a source may have counted: so many that those of nine million keys add up in 64 bits.
pub const REQUEST_COUNT_MAX: i64 = 1_000_000_000_000;
/// The most characters of a look-up part, and of the id of a row in its source.
pub const LOOK_UP_LENGTH_MAX: usize = 128;
/// The fewest characters of a look-up part.
pub const LOOK_UP_LENGTH_MIN: usize = 4;
/// The most characters of the id of a row in its source.
pub const SOURCE_ID_LENGTH_MAX: usize = 200;

stored_enum! {
    /// How a source holds a key.
    GivenScheme {
        Plaintext = "plaintext",
        Sha256Hex = "sha256-hex",
        Sha256Base64 = "sha256-base64",
        Bcrypt = "bcrypt",
        Argon2 = "argon2",
        /// An id whose secret left no trace in the source.
        Missing = "missing",
    }
}

stored_enum! {
    /// How Keystead holds a key: the words of the column `scheme`.
    Scheme {
        Sha256 = "sha256",
        Bcrypt = "bcrypt",
        Argon2 = "argon2",
        /// There is nothing that a secret could be compared with.
        Missing = "missing",
    }
}

stored_enum! {
    /// Why a row was not brought in.
    Refusal {
        BadSecret = "BAD_SECRET",
        WeakSecret = "WEAK_SECRET",
        /// The text is not a key but what a system stores in place of one.
        StoredHash = "STORED_HASH",
        BadHash = "BAD_HASH",
        HashMismatch = "HASH_MISMATCH",
        MissingMaterial = "MISSING_MATERIAL",
        DuplicateDiffers = "DUPLICATE_DIFFERS",
        DuplicateSecret = "DUPLICATE_SECRET",
        DuplicateInOtherOrganization = "DUPLICATE_IN_OTHER_ORGANIZATION",
        IdTaken = "ID_TAKEN",
        /// The row came before, and has another secret, hash or id by now.
        RowChanged = "ROW_CHANGED",
        UnknownOrganization = "UNKNOWN_ORGANIZATION",
        KeyCapReached = "KEY_CAP_REACHED",
        BadKeyId = "BAD_KEY_ID",
        BadName = "BAD_NAME",
        BadEnvironment = "BAD_ENVIRONMENT",
        BadStatus = "BAD_STATUS",
        BadScopes = "BAD_SCOPES",
        ReservedScope = "RESERVED_SCOPE",
        BadOwnerId = "BAD_OWNER_ID",
        BadAllowedCidrs = "BAD_ALLOWED_CIDRS",
        BadRateLimits = "BAD_RATE_LIMITS",
        BadCredits = "BAD_CREDITS",
        BadMetadata = "BAD_METADATA",
        BadPrefix = "BAD_PREFIX",
        BadHint = "BAD_HINT",
        BadCreateTime = "BAD_CREATE_TIME",
        BadExpireTime = "BAD_EXPIRE_TIME",
        BadLastUsedTime = "BAD_LAST_USED_TIME",
        BadRevokeTime = "BAD_REVOKE_TIME",
        BadRequestCount = "BAD_REQUEST_COUNT",
        BadRevocation = "BAD_REVOCATION",
        BadLookUpId = "BAD_LOOK_UP_ID",
        BadSourceId = "BAD_SOURCE_ID",
        /// Of a row of organizations.
        BadOrganization = "BAD_ORGANIZATION",
        SlugTaken = "SLUG_TAKEN",
        /// Of a row of usage.
        BadUsage = "BAD_USAGE",
        UnknownKey = "UNKNOWN_KEY",
        /// Of a row of what limits have counted.
        BadLimit = "BAD_LIMIT",
    }
}

stored_enum! {
    /// What was changed on the way of a row that was brought in.
    Note {
        Trimmed = "TRIMMED",
        Weak = "WEAK",
        NameChanged = "NAME_CHANGED",
        MetadataCut = "METADATA_CUT",
        /// Nothing but a scan finds the key.
        Scanned = "SCANNED",
    }
}

/// Why a row was not brought in, for programs and for people. Never holds material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub reason: Refusal,
    pub message: String,
}

impl Refused {
    /// A refusal in these words.
    #[must_use]
    pub fn new(reason: Refusal, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The hashes that take long on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlowScheme {
    Bcrypt,
    Argon2,
}

impl SlowScheme {
    /// As it stands at rest.
    #[must_use]
    pub const fn scheme(self) -> Scheme {
        match self {
            Self::Bcrypt => Scheme::Bcrypt,
            Self::Argon2 => Scheme::Argon2,
        }
    }
}

/// A hash that takes long on purpose, checked to be one that we can check against in bounded time and memory.
#[derive(Clone)]
pub struct SlowHash {
    scheme: SlowScheme,
    text: Zeroizing<String>,
}

impl SlowHash {
    /// Reads a bcrypt hash (`$2a$`, `$2b$`, `$2x$` or `$2y$`, cost 4 to 14) or an Argon2 hash (PHC string, at most
    /// 64 MiB, 10 passes, 16 lanes, at least 8 KiB a lane).
    ///
    /// # Errors
    /// Refuses anything else.
    pub fn parse(scheme: SlowScheme, text: &str) -> Result<Self, Invalid> {
        match scheme {
            SlowScheme::Bcrypt => hashes::check_bcrypt(text)?,
            SlowScheme::Argon2 => hashes::check_argon2(text)?,
        }
        Ok(Self { scheme, text: Zeroizing::new(text.to_owned()) })
    }

    /// Which kind it is.
    #[must_use]
    pub const fn scheme(&self) -> SlowScheme {
        self.scheme
    }

    /// The hash, for the column that holds it and for checking.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Whether this is the hash of a secret. Takes long: tens of milliseconds of one core, and its memory.
    #[must_use]
    pub fn is_of(&self, secret: &str) -> bool {
        match self.scheme {
            SlowScheme::Bcrypt => hashes::verify_bcrypt(secret, &self.text),
            SlowScheme::Argon2 => hashes::verify_argon2(secret, &self.text),
        }
    }
}

impl fmt::Debug for SlowHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlowHash")
    }
}

/// What Keystead is to know a secret by.
#[derive(Debug, Clone)]
pub enum Material {
    Digest(Digest),
    Slow(SlowHash),
    Missing,
}

impl Material {
    /// How it will stand at rest.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        match self {
            Self::Digest(_) => Scheme::Sha256,
            Self::Slow(hash) => hash.scheme.scheme(),
            Self::Missing => Scheme::Missing,
        }
    }

    /// The digest, where there is one.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Digest(digest) => Some(digest),
            Self::Slow(_) | Self::Missing => None,
        }
    }

    /// The slow hash, where there is one.
    #[must_use]
    pub fn slow_hash(&self) -> Option<&str> {
        match self {
            Self::Slow(hash) => Some(hash.expose()),
            Self::Digest(_) | Self::Missing => None,
        }
    }
}

/// A key from elsewhere that is good enough to be brought in; the fields are those of [`super::key::ApiKey`].
#[derive(Debug, Clone)]
pub struct ImportedKey {
    /// The id that the key is to keep.
    pub kept_id: Option<KeyId>,
    /// The id of its row in the source; empty for none.
    pub source_id: String,
    pub given: GivenScheme,
    pub material: Material,
    /// What a plaintext says if it is read as a digest in hex or base64: no key must have that, or the text would be a
    /// stored hash, and whoever saw the table of hashes could present it. It is the secret in another spelling, so it is
    /// never stored.
    pub plaintext_as_digest: Option<Digest>,
    pub look_up_id: Option<String>,
    pub prefix: String,
    pub hint: String,
    pub name: String,
    pub environment: Environment,
    pub status: StoredStatus,
    pub scopes: Vec<Scope>,
    pub metadata: BTreeMap<String, String>,
    pub owner_id: String,
    pub allowed_cidrs: Vec<IpNet>,
    pub rate_limits: Vec<RateLimit>,
    pub credits: Option<Credits>,
    /// When it was created in the source; `None` for now.
    pub create_time: Option<Timestamp>,
    pub expire_time: Option<Timestamp>,
    pub last_used_time: Option<Timestamp>,
    pub request_count: i64,
    /// Present exactly where the status is revoked.
    pub revocation: Option<Revocation>,
}

impl ImportedKey {
    /// What is stored of [`ImportedKey::plaintext_as_digest`]: its SHA-256.
    #[must_use]
    pub fn decoded_digest(&self) -> Option<Digest> {
        self.plaintext_as_digest.as_ref().map(decoded_digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_material_shows_in_debug_output() {
        let hash = bcrypt::hash("a secret that nobody may see", 4).unwrap();
        let slow = SlowHash::parse(SlowScheme::Bcrypt, &hash).unwrap();
        let digest = Digest::of("a secret that nobody may see");
        let shown = format!("{:?} {:?}", Material::Slow(slow), Material::Digest(digest));
        assert!(!shown.contains("$2") && !shown.contains("see"), "{shown}");
    }

    #[test]
    fn a_slow_hash_tells_its_secret_from_others() {
        let bcrypt = SlowHash::parse(SlowScheme::Bcrypt, &bcrypt::hash("right", 4).unwrap()).unwrap();
        assert!(bcrypt.is_of("right"));
        assert!(!bcrypt.is_of("wrong"));
        assert!(!bcrypt.is_of(bcrypt.expose()), "what is stored is no secret");
    }
}
