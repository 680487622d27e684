//! What else a row of keys says of its secret: whether the id of the row holds it, whether a hash stands beside it, and
//! whether the hash that stays in the source, once the plaintext is dropped, is good enough to tell owners apart.
//! Must not put any of it into a message. Invariant: an id that holds a key is shown and stored nowhere.

use super::{TableReader, columns::Columns};
use crate::{
    domain::{
        audit::encode_hash,
        digest::Digest,
        import::{GivenScheme, ImportedKey, parse_sha256_base64, parse_sha256_hex},
    },
    import::{
        mapping::{Field, KeyTable},
        source::Row,
        values::{reveals, trim},
    },
};

/// What is wrong with the hash that stays: there is none.
pub const NO_HASH_STAYS: &str = "NO_HASH_STAYS";
/// What is wrong with the hash that stays: it is not that of the secret, or not written as services will write it.
const HASH_MISMATCH: &str = "HASH_MISMATCH";

/// The columns with a SHA-256 that are all that is left where `contract` drops the plaintext.
pub(super) fn staying(table: &KeyTable) -> Vec<Field> {
    let column = |field: Field| table.table.columns.get(&field);
    if !column(Field::Secret).is_some_and(|secret| table.drop.contains(secret)) {
        return Vec::new();
    }
    let stays = |field: &Field| column(*field).is_some_and(|column| !table.drop.contains(column));
    [Field::Sha256Hex, Field::Sha256Base64].into_iter().filter(stays).collect()
}

impl TableReader {
    /// Whether the id of a row holds the row's secret, or its hash.
    #[must_use]
    pub fn id_tells(&self, row: &Row) -> bool {
        let id = row.id.as_str();
        let is_told = |field: &Field| {
            let Some(text) = filled(&self.columns, row, *field) else { return false };
            let digest = if *field == Field::Sha256Hex {
                parse_sha256_hex(text).ok()
            } else if *field == Field::Sha256Base64 {
                parse_sha256_base64(text).ok()
            } else {
                None
            };
            let is_secret = |digest: Digest| Digest::of(id) == digest || Digest::of(trim(id)) == digest;
            reveals(id, text) || digest.is_some_and(is_secret)
        };
        Field::MATERIAL.iter().any(is_told)
    }

    /// Whether a row has both a plaintext and a hash: that the two do not fit must not be passed over.
    #[must_use]
    pub fn is_pair(&self, row: &Row) -> bool {
        let has = |field: &Field| filled(&self.columns, row, *field).is_some();
        has(&Field::Secret) && Field::MATERIAL.iter().skip(1).any(has)
    }

    /// What is wrong with the hash that stays when the plaintext goes: services compare owners by it, as text.
    #[must_use]
    pub fn stay_problem(&self, row: &Row, key: &ImportedKey) -> Option<&'static str> {
        let digest = key.material.digest().filter(|_| key.given == GivenScheme::Plaintext)?;
        let problem = |field: &Field| {
            let Some((text, _)) = self.columns.raw(row, *field) else { return Some(NO_HASH_STAYS) };
            if trim(text).is_empty() {
                return Some(NO_HASH_STAYS);
            }
            let is_right = if *field == Field::Sha256Hex {
                text == encode_hash(digest.as_bytes())
            } else {
                trim(text).len() == text.len() && parse_sha256_base64(text).is_ok_and(|stays| stays == *digest)
            };
            (!is_right).then_some(HASH_MISMATCH)
        };
        self.staying.iter().find_map(problem)
    }
}

/// The text of a column of material, if it is not blank.
fn filled<'r>(columns: &Columns, row: &'r Row, field: Field) -> Option<&'r str> {
    columns.raw(row, field).map(|(text, _)| trim(text)).filter(|text| !text.is_empty())
}
