//! The texts that are stored beside a key, each of them: none may hold the key's secret, as far as that can be told.
//! Metadata is not among them: an entry that holds it is left out. Must not put any of it into a message.
//! Invariant: a key that passes gives itself away in no column of Keystead's.

use super::columns::Columns;
use crate::{
    domain::{
        Invalid,
        import::{ImportedKey, Refusal, Refused, gives_away},
        scope::Scope,
    },
    import::{mapping::Field, source::Row},
};

/// As the row writes them: what is stored may be made of them, or be a part.
const WRITTEN: [(Field, Refusal); 3] =
    [(Field::KeyId, Refusal::BadKeyId), (Field::LookUpId, Refusal::BadLookUpId), (Field::Name, Refusal::BadName)];
/// The same of a key that was revoked. The note is made of both.
const WRITTEN_OF_REVOCATION: [(Field, Refusal); 2] =
    [(Field::RevocationReason, Refusal::BadRevocation), (Field::RevocationNote, Refusal::BadRevocation)];

/// Refuses a key that one of its texts gives away. `secret` is the plaintext, where the row has one.
pub(super) fn check(columns: &Columns, row: &Row, secret: Option<&str>, key: &ImportedKey) -> Result<(), Refused> {
    let of_revocation = WRITTEN_OF_REVOCATION.iter().filter(|_| key.revocation.is_some());
    let written = WRITTEN.iter().chain(of_revocation);
    let written = written.filter_map(|(field, reason)| Some((*field, *reason, columns.raw(row, *field)?.0)));
    let (by, note) = key.revocation.as_ref().map_or(("", ""), |ended| (ended.by.as_str(), ended.note.as_str()));
    let stored = [
        (Field::Name, Refusal::BadName, key.name.as_str()),
        (Field::OwnerId, Refusal::BadOwnerId, key.owner_id.as_str()),
        (Field::Prefix, Refusal::BadPrefix, key.prefix.as_str()),
        (Field::Hint, Refusal::BadHint, key.hint.as_str()),
        (Field::RevokedBy, Refusal::BadRevocation, by),
        (Field::RevocationNote, Refusal::BadRevocation, note),
    ];
    let scopes = key.scopes.iter().map(Scope::as_str).map(|scope| (Field::Scopes, Refusal::BadScopes, scope));
    for (field, reason, text) in written.chain(stored).chain(scopes) {
        if gives_away(text, secret, &key.material) {
            let why = Invalid::new("holds the secret, which must not be stored");
            return Err(columns.refused(field, reason, &why));
        }
    }
    Ok(())
}
