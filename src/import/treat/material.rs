//! What a row says of a secret: the text itself, or one of the hashes that a source may hold; which one counts, whether
//! they agree, and whether the text is good enough. Must not put any of it into a message.
//! Invariant: what a source stores in place of a secret never becomes a secret.

use super::columns::Columns;
use crate::{
    domain::{
        Invalid,
        digest::Digest,
        import::{
            GivenScheme, Material, Refusal, Refused, SlowHash, SlowScheme, is_stored_hash, is_weak,
            parse_sha256_base64, parse_sha256_hex, read_as_digest,
        },
        secret::{SECRET_BYTES_MAX, digest_of_presented},
    },
    import::{mapping::Field, source::Row, values::trim},
};

/// What Keystead is to know a secret by, as the source holds it.
pub(super) struct Given<'a> {
    pub(super) scheme: GivenScheme,
    pub(super) material: Material,
    /// The secret, where the source has it.
    pub(super) secret: Option<&'a str>,
    pub(super) plaintext_as_digest: Option<Digest>,
    pub(super) is_trimmed: bool,
    pub(super) is_weak: bool,
}

impl Given<'_> {
    /// An id that has no secret.
    pub(super) const fn missing() -> Self {
        Self {
            scheme: GivenScheme::Missing,
            material: Material::Missing,
            secret: None,
            plaintext_as_digest: None,
            is_trimmed: false,
            is_weak: false,
        }
    }

    /// Whether only a slow check tells the secret.
    pub(super) const fn is_slow(&self) -> bool {
        matches!(self.material, Material::Slow(_))
    }
}

/// A hash of a row.
struct Hash<'a> {
    field: Field,
    text: &'a str,
    is_trimmed: bool,
}

/// What the row says, `None` where nothing but NULL and blanks.
pub(super) fn read<'a>(columns: &Columns, row: &'a Row, allow_weak: bool) -> Result<Option<Given<'a>>, Refused> {
    let secret = material_text(columns, row, Field::Secret)?;
    let mut hashes: [Option<Hash<'a>>; 4] = [None, None, None, None];
    for (hash, field) in hashes.iter_mut().zip(Field::MATERIAL.iter().skip(1)) {
        let text = material_text(columns, row, *field)?;
        *hash = text.map(|(text, is_trimmed)| Hash { field: *field, text: trim(text), is_trimmed });
    }
    match secret {
        Some((text, is_trimmed)) => {
            let mut given = read_secret(columns, text, &hashes, allow_weak)?;
            given.is_trimmed |= is_trimmed;
            Ok(Some(given))
        }
        None => hashes.iter().flatten().next().map(|hash| given_hash(columns, hash)).transpose(),
    }
}

/// The value of a column as it came, if it is not blank, and whether there is white space around it.
fn material_text<'a>(columns: &Columns, row: &'a Row, field: Field) -> Result<Option<(&'a str, bool)>, Refused> {
    let Some((text, is_cut)) = columns.raw(row, field) else { return Ok(None) };
    if is_cut {
        return Err(if field == Field::Secret {
            let why = Invalid::new(format!("must have at most {SECRET_BYTES_MAX} bytes"));
            columns.refused(field, Refusal::BadSecret, &why)
        } else {
            columns.refused(field, Refusal::BadHash, &Invalid::new("is longer than any hash"))
        });
    }
    let trimmed = trim(text);
    Ok((!trimmed.is_empty()).then_some((text, trimmed.len() < text.len())))
}

fn given_hash<'a>(columns: &Columns, hash: &Hash<'_>) -> Result<Given<'a>, Refused> {
    let (scheme, material) = parse_hash(columns, hash)?;
    let is_trimmed = hash.is_trimmed;
    Ok(Given { scheme, material, secret: None, plaintext_as_digest: None, is_trimmed, is_weak: false })
}

fn parse_hash(columns: &Columns, hash: &Hash<'_>) -> Result<(GivenScheme, Material), Refused> {
    let Hash { field, text, .. } = hash;
    let read = if *field == Field::Sha256Hex {
        parse_sha256_hex(text).map(|digest| (GivenScheme::Sha256Hex, Material::Digest(digest)))
    } else if *field == Field::Sha256Base64 {
        parse_sha256_base64(text).map(|digest| (GivenScheme::Sha256Base64, Material::Digest(digest)))
    } else if *field == Field::Bcrypt {
        SlowHash::parse(SlowScheme::Bcrypt, text).map(|hash| (GivenScheme::Bcrypt, Material::Slow(hash)))
    } else {
        SlowHash::parse(SlowScheme::Argon2, text).map(|hash| (GivenScheme::Argon2, Material::Slow(hash)))
    };
    read.map_err(|why| columns.refused(*field, Refusal::BadHash, &why))
}

/// The secret itself, held against the hashes beside it before anything else: whoever accepts that weak keys are left
/// out has not accepted that a key is another one than its hash says. `raw` has the white space that stands around it.
fn read_secret<'a>(
    columns: &Columns,
    raw: &'a str,
    hashes: &[Option<Hash<'a>>],
    allow_weak: bool,
) -> Result<Given<'a>, Refused> {
    let refused = |reason, why: &str| columns.refused(Field::Secret, reason, &Invalid::new(why));
    let secret = trim(raw);
    let plaintext_as_digest = read_as_digest(secret);
    if is_stored_hash(secret) {
        return Err(refused(Refusal::StoredHash, "is a hash, which belongs under a scheme of its own"));
    }
    let mut is_trimmed = false;
    let mut stored = Vec::new();
    for hash in hashes.iter().flatten() {
        let (_, material) = parse_hash(columns, hash)?;
        let same_digest = plaintext_as_digest.is_some() && material.digest() == plaintext_as_digest.as_ref();
        if same_digest || hash.text.eq_ignore_ascii_case(secret) {
            return Err(refused(Refusal::StoredHash, "is the stored hash of its own row"));
        }
        is_trimmed |= hash.is_trimmed;
        stored.push((hash.field, material));
    }
    for (field, material) in &stored {
        if !agrees(material, raw) {
            let why = Invalid::new("is not the hash of the secret in its row");
            return Err(columns.refused(*field, Refusal::HashMismatch, &why));
        }
    }
    let Some(digest) = digest_of_presented(secret) else {
        return Err(refused(Refusal::BadSecret, bad_secret(secret)));
    };
    let is_weak = is_weak(secret);
    if is_weak && !allow_weak {
        return Err(refused(Refusal::WeakSecret, "is short or easy to guess"));
    }
    let (scheme, material) = (GivenScheme::Plaintext, Material::Digest(digest));
    Ok(Given { scheme, material, secret: Some(secret), plaintext_as_digest, is_trimmed, is_weak })
}

/// Whether a hash is that of a text, which the source may have hashed with the white space around it.
fn agrees(material: &Material, raw: &str) -> bool {
    let secret = trim(raw);
    match material {
        Material::Digest(stored) => *stored == Digest::of(secret) || *stored == Digest::of(raw),
        Material::Slow(hash) => hash.is_of(secret) || (raw != secret && hash.is_of(raw)),
        Material::Missing => false,
    }
}

/// Why a text can be no secret.
fn bad_secret(text: &str) -> &'static str {
    if text.len() > SECRET_BYTES_MAX {
        "must have at most 512 bytes"
    } else if text.chars().any(char::is_control) {
        "must not contain control characters"
    } else {
        "begins like a key of Keystead's and has not its shape, so that it could never be verified"
    }
}
