//! `ImportKeys`, from wire to domain. What is wrong with the call refuses the call; what is wrong with a key refuses
//! that key, with a reason of its own. Nothing is looked up. Must not put material into a message.

use zeroize::Zeroizing;

use super::{decode_key::environment, fields::Fields};
use crate::{
    domain::{
        Invalid,
        digest::Digest,
        ids::{KeyId, OrganizationId},
        import::{
            GivenScheme, ImportedKey, LOOK_UP_LENGTH_MAX, LOOK_UP_LENGTH_MIN, Material, REQUEST_COUNT_MAX, Refusal,
            Refused, SOURCE_ID_LENGTH_MAX, SlowHash, SlowScheme, WEAK_ENTRY, gives_away, is_most_of, is_stored_hash,
            is_weak, parse_sha256_base64, parse_sha256_hex, read_as_digest, shown_end_of, without_blanks,
        },
        key::{Revocation, RevocationReason, StoredStatus},
        secret::digest_of_presented,
        text,
        time::Timestamp,
    },
    proto::v1::{self, import_key::Material as Given},
    service::{ImportKeys, ServiceError, Violation},
};

/// The most keys in one call.
const KEYS_MAX: usize = 1000;
const SOURCE_LENGTH_MAX: usize = 64;
const PREFIX_LENGTH_MAX: usize = 64;
const HINT_LENGTH_MAX: usize = 4;

/// Which refusal a bad field of a key is.
const REASONS: [(&str, Refusal); 15] = [
    ("name", Refusal::BadName),
    ("environment", Refusal::BadEnvironment),
    ("prefix", Refusal::BadPrefix),
    ("hint", Refusal::BadHint),
    ("scopes", Refusal::BadScopes),
    ("metadata", Refusal::BadMetadata),
    ("owner_id", Refusal::BadOwnerId),
    ("allowed_cidrs", Refusal::BadAllowedCidrs),
    ("rate_limits", Refusal::BadRateLimits),
    ("credits", Refusal::BadCredits),
    ("create_time", Refusal::BadCreateTime),
    ("expire_time", Refusal::BadExpireTime),
    ("last_used_time", Refusal::BadLastUsedTime),
    ("revoke_time", Refusal::BadRevokeTime),
    ("request_count", Refusal::BadRequestCount),
];

pub fn decode_import(request: v1::ImportKeysRequest, now: Timestamp) -> Result<ImportKeys, ServiceError> {
    let mut fields = Fields::default();
    let organization_id = fields.take("organization_id", OrganizationId::parse(&request.organization_id));
    let source = fields.take("source", parse_source(&request.source));
    if !(1..=KEYS_MAX).contains(&request.keys.len()) {
        fields.refuse("keys", Invalid::new(format!("must have 1 to {KEYS_MAX} items")));
    }
    let (dry_run, allow_weak) = (request.dry_run, request.allow_weak);
    let keys = request.keys;
    let call = (|| Some((organization_id?, source?)))();
    let (organization_id, source) = fields.finish(call)?;
    let items = keys.into_iter().map(|key| decode_key(key, allow_weak, now)).collect();
    Ok(ImportKeys { organization_id, source, items, dry_run })
}

/// Reads a source's label: 1 to 64 of `[A-Za-z0-9_.:/-]`.
fn parse_source(text: &str) -> Result<String, Invalid> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    if !(1..=SOURCE_LENGTH_MAX).contains(&text.len()) || !text.bytes().all(legal) {
        return Err(Invalid::new("must be 1 to 64 of A-Z a-z 0-9 _ . : / -"));
    }
    Ok(text.to_owned())
}

fn decode_key(mut key: v1::ImportKey, allow_weak: bool, now: Timestamp) -> Result<ImportedKey, Refused> {
    let kept_id = decode_kept_id(&key.key_id)?;
    let Read { scheme, material, secret, plaintext_as_digest } = match (key.material.take(), kept_id) {
        (None, Some(_)) => Read::missing(),
        (given, _) => decode_material(given)?,
    };
    let secret = secret.as_ref().map(|secret| secret.as_str());
    let weak = secret.is_some_and(is_weak);
    if weak && !allow_weak {
        return Err(Refused::new(Refusal::WeakSecret, "the secret is short or easy to guess"));
    }
    let revocation = decode_revocation(&key, now)?;
    let mut fields = Fields::default();
    let name = fields.take("name", text::parse_name(&key.name));
    let environment = fields.required_word("environment", key.environment, environment);
    let prefix = fields.take("prefix", text::parse_plain(&key.prefix, PREFIX_LENGTH_MAX));
    let hint = fields.take("hint", text::parse_plain(&key.hint, HINT_LENGTH_MAX));
    let scopes = fields.scopes("scopes", &key.scopes);
    let weak_entry = weak.then(|| (WEAK_ENTRY.to_owned(), "true".to_owned()));
    let metadata = fields.take("metadata", text::parse_metadata(key.metadata.into_iter().chain(weak_entry)));
    let owner_id = fields.take("owner_id", text::parse_owner(&key.owner_id));
    let allowed_cidrs = fields.cidrs("allowed_cidrs", &key.allowed_cidrs);
    let rate_limits = fields.rate_limits("rate_limits", &key.rate_limits);
    let credits = fields.credits("credits", key.credits.as_ref());
    let create_time = past(&mut fields, "create_time", key.create_time.as_ref(), now);
    let expire_time = fields.time("expire_time", key.expire_time.as_ref());
    let last_used_time = past(&mut fields, "last_used_time", key.last_used_time.as_ref(), now);
    if !(0..=REQUEST_COUNT_MAX).contains(&key.request_count) {
        fields.refuse("request_count", Invalid::new(format!("must be 0 to {REQUEST_COUNT_MAX}")));
    }
    let request_count = key.request_count;
    let status = match (&revocation, key.enabled) {
        (Some(_), _) => StoredStatus::Revoked,
        (None, Some(false)) => StoredStatus::Disabled,
        (None, Some(true) | None) => StoredStatus::Active,
    };
    let hint = hint.map(|hint| match secret {
        Some(secret) if hint.is_empty() => shown_end_of(secret),
        _ => hint,
    });
    let source_id = key.source_id;
    if text::check_plain(&source_id, SOURCE_ID_LENGTH_MAX).is_err() {
        return Err(Refused::new(Refusal::BadSourceId, "source_id must have at most 200 characters, none of control"));
    }
    let look_up_id = decode_look_up(&key.look_up_id)?;
    let read = (|| {
        let (prefix, hint) = (prefix?, hint?);
        Some(ImportedKey {
            kept_id,
            source_id,
            given: scheme,
            material,
            plaintext_as_digest,
            look_up_id,
            prefix,
            hint,
            name: name?,
            environment: environment?,
            status,
            scopes: scopes?,
            metadata: metadata?,
            owner_id: owner_id?,
            allowed_cidrs: allowed_cidrs?,
            rate_limits: rate_limits?,
            credits,
            create_time,
            expire_time,
            last_used_time,
            request_count,
            revocation,
        })
    })();
    let read = fields.finish(read).map_err(refused)?;
    check_hidden(&read, &key.key_id, secret)?;
    check_findable(read)
}

fn decode_kept_id(text: &str) -> Result<Option<KeyId>, Refused> {
    let read = (!text.is_empty()).then(|| KeyId::of_text(text)).transpose();
    read.map_err(|reason| Refused::new(Refusal::BadKeyId, format!("key_id {}", reason.0)))
}

/// No text that is stored may hold the secret, nor say most of it.
fn check_hidden(key: &ImportedKey, key_id: &str, secret: Option<&str>) -> Result<(), Refused> {
    let note = key.revocation.as_ref().map_or("", |revocation| revocation.note.as_str());
    let look_up_id = key.look_up_id.as_deref().unwrap_or_default();
    let one = |field, reason, text| std::iter::once((field, reason, text));
    let texts = one("key_id", Refusal::BadKeyId, key_id)
        .chain(one("source_id", Refusal::BadSourceId, key.source_id.as_str()))
        .chain(one("name", Refusal::BadName, key.name.as_str()))
        .chain(one("owner_id", Refusal::BadOwnerId, key.owner_id.as_str()))
        .chain(one("prefix", Refusal::BadPrefix, key.prefix.as_str()))
        .chain(one("hint", Refusal::BadHint, key.hint.as_str()))
        .chain(one("look_up_id", Refusal::BadLookUpId, look_up_id))
        .chain(one("revocation_note", Refusal::BadRevocation, note))
        .chain(key.scopes.iter().map(|scope| ("scopes", Refusal::BadScopes, scope.as_str())))
        .chain(key.rate_limits.iter().map(|limit| ("rate_limits", Refusal::BadRateLimits, limit.name.as_str())))
        .chain(
            key.metadata
                .iter()
                .flat_map(|(name, value)| [name, value].map(|text| ("metadata", Refusal::BadMetadata, text.as_str()))),
        );
    for (field, reason, text) in texts {
        if gives_away(text, secret, &key.material) {
            return Err(Refused::new(reason, format!("{field} must not hold the secret")));
        }
    }
    for (field, reason, text) in
        [("prefix", Refusal::BadPrefix, key.prefix.as_str()), ("look_up_id", Refusal::BadLookUpId, look_up_id)]
    {
        if secret.is_some_and(|secret| is_most_of(text, secret)) {
            return Err(Refused::new(reason, format!("{field} must not be more than half of the secret")));
        }
    }
    Ok(())
}

/// A hash that no look-up leads to needs something that the candidates are found by, or an id that callers can name.
fn check_findable(key: ImportedKey) -> Result<ImportedKey, Refused> {
    let is_slow = matches!(key.material, Material::Slow(_));
    let is_known_by =
        key.kept_id.is_some() || key.look_up_id.is_some() || !key.prefix.is_empty() || !key.hint.is_empty();
    if is_slow && !is_known_by {
        let message = "a bcrypt or Argon2 hash needs key_id, look_up_id, prefix or hint";
        return Err(Refused::new(Refusal::BadLookUpId, message));
    }
    Ok(key)
}

/// What a key is to be known by, as it was given.
struct Read {
    scheme: GivenScheme,
    material: Material,
    secret: Option<Zeroizing<String>>,
    plaintext_as_digest: Option<Digest>,
}

impl Read {
    /// An id whose secret left no trace.
    const fn missing() -> Self {
        Self { scheme: GivenScheme::Missing, material: Material::Missing, secret: None, plaintext_as_digest: None }
    }
}

fn decode_material(given: Option<Given>) -> Result<Read, Refused> {
    let bad_hash = |reason: Invalid| Refused::new(Refusal::BadHash, reason.0);
    let of_hash = |scheme, material| Read { scheme, material, secret: None, plaintext_as_digest: None };
    let slow = |scheme, text: &str| SlowHash::parse(scheme, without_blanks(text)).map(Material::Slow).map_err(bad_hash);
    match given {
        None => Err(Refused::new(Refusal::MissingMaterial, "one of the kinds of material, or key_id, must be given")),
        Some(Given::Secret(secret)) => {
            let secret = Zeroizing::new(secret);
            decode_secret(Zeroizing::new(without_blanks(&secret).to_owned()))
        }
        Some(Given::Sha256Hex(text)) => {
            let digest = parse_sha256_hex(without_blanks(&text)).map_err(bad_hash)?;
            Ok(of_hash(GivenScheme::Sha256Hex, Material::Digest(digest)))
        }
        Some(Given::Sha256Base64(text)) => {
            let digest = parse_sha256_base64(without_blanks(&text)).map_err(bad_hash)?;
            Ok(of_hash(GivenScheme::Sha256Base64, Material::Digest(digest)))
        }
        Some(Given::Bcrypt(text)) => Ok(of_hash(GivenScheme::Bcrypt, slow(SlowScheme::Bcrypt, &text)?)),
        Some(Given::Argon2(text)) => Ok(of_hash(GivenScheme::Argon2, slow(SlowScheme::Argon2, &text)?)),
    }
}

fn decode_secret(secret: Zeroizing<String>) -> Result<Read, Refused> {
    if is_stored_hash(&secret) {
        return Err(Refused::new(Refusal::StoredHash, "the secret is a hash, which belongs in a field of its own"));
    }
    let Some(digest) = digest_of_presented(&secret) else {
        let message = "a secret has 1 to 512 bytes without control characters, and one that begins like ours its shape";
        return Err(Refused::new(Refusal::BadSecret, message));
    };
    Ok(Read {
        scheme: GivenScheme::Plaintext,
        material: Material::Digest(digest),
        plaintext_as_digest: read_as_digest(&secret),
        secret: Some(secret),
    })
}

fn decode_look_up(text: &str) -> Result<Option<String>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    let length = text.chars().count();
    if text::check_plain(text, LOOK_UP_LENGTH_MAX).is_err() || length < LOOK_UP_LENGTH_MIN {
        return Err(Refused::new(Refusal::BadLookUpId, "look_up_id must have 4 to 128 characters, none of control"));
    }
    Ok(Some(text.to_owned()))
}

fn decode_revocation(key: &v1::ImportKey, now: Timestamp) -> Result<Option<Revocation>, Refused> {
    let refused = |message: &str| Refused::new(Refusal::BadRevocation, message);
    let Ok(reason) = v1::RevocationReason::try_from(key.revocation_reason) else {
        return Err(refused("revocation_reason must be one of the values of its enum"));
    };
    let mut fields = Fields::default();
    let time = past(&mut fields, "revoke_time", key.revoke_time.as_ref(), now);
    fields.finish(Some(())).map_err(self::refused)?;
    let note = text::parse_note(&key.revocation_note).map_err(|reason| refused(&reason.0))?;
    match time {
        Some(time) => {
            let reason = super::decode_key::reason(reason);
            Ok(Some(Revocation { time, by: crate::domain::import::ACTOR.to_owned(), reason, note }))
        }
        None if super::decode_key::reason(reason) == RevocationReason::Unspecified && note.is_empty() => Ok(None),
        None => Err(refused("revocation_reason and revocation_note need a revoke_time")),
    }
}

/// A moment that is not ahead, if one is given.
fn past(fields: &mut Fields, field: &str, time: Option<&prost_types::Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let time = fields.time(field, time)?;
    if time <= now {
        return Some(time);
    }
    fields.refuse(field, Invalid::new("must not be in the future"));
    None
}

/// The first bad field of a key, as its refusal.
fn refused(error: ServiceError) -> Refused {
    let violations = match error {
        ServiceError::InvalidArgument(violations) => violations,
        _ => Vec::new(),
    };
    let Some(Violation { field, description }) = violations.into_iter().next() else {
        return Refused::new(Refusal::BadName, "the key could not be read");
    };
    let reason = REASONS.iter().find(|(name, _)| field.starts_with(name)).map(|(_, reason)| *reason);
    Refused::new(reason.unwrap_or(Refusal::BadName), format!("{field} {description}"))
}
