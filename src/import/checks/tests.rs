//! What is found of a key that no digest leads to: by its hash, by what is left of it, and by what it may.

use super::*;
use crate::{
    domain::{
        import::GivenScheme,
        samples::{self, slow_hash},
    },
    service::ImportItem,
    store::imported_keys::HeldSettings,
};

const IMPORT: RecordId = RecordId::from_u128(21);

fn row(given: GivenScheme, material: Material) -> KeyRow {
    let key = samples::imported_key("1", given, material);
    let item = ImportItem { organization_id: OrganizationId::from_u128(11), key };
    KeyRow { id: "1".to_owned(), notes: Vec::new(), is_pair: false, stay_problem: None, item }
}

/// What is found of a row with a slow hash where Keystead holds this, and whether that is as it should be.
fn found(held: &Held) -> (&'static str, bool) {
    let row = row(GivenScheme::Bcrypt, Material::Slow(slow_hash('a')));
    match check_held(&row, held, Timestamp::from_micros(1)) {
        Found::AsExpected(word) => (word, true),
        Found::Differs { word, .. } => (word, false),
        Found::Refused(refused) => (refused.reason.as_str(), false),
    }
}

#[test]
fn a_slow_hash_never_passes_for_that_of_a_key_that_came_as_a_digest() {
    let came = row(GivenScheme::Plaintext, Material::Digest(Digest::of("a key"))).item.planned(IMPORT);
    // As it came; with another name since; ended since.
    for (etag, status) in [(1, StoredStatus::Active), (2, StoredStatus::Active), (2, StoredStatus::Revoked)] {
        assert_eq!(found(&Held { status, etag, ..came.clone() }), (HASHED, true), "{etag} {status:?}");
    }
    let disabled = Held { status: StoredStatus::Disabled, etag: 1, ..came.clone() };
    assert_eq!(found(&disabled), ("DISABLED", false), "by nobody who may");
    let gone = Held { organization_id: OrganizationId::from_u128(12), ..came };
    assert_eq!(found(&gone), ("OTHER_ORGANIZATION", false));
}

#[test]
fn a_slow_hash_is_compared_with_what_is_left_of_the_one_that_came() {
    let came = |letter| row(GivenScheme::Bcrypt, Material::Slow(slow_hash(letter))).item.planned(IMPORT);
    for (letter, expected) in [('a', ("UPGRADED", true)), ('b', ("OTHER_HASH", false))] {
        assert_eq!(found(&Held { scheme: Scheme::Sha256, etag: 1, ..came(letter) }), expected);
    }
    let slow = Held { etag: 1, stored_hash: Some(slow_hash('a').expose().to_owned()), ..came('a') };
    assert_eq!(found(&slow), ("SLOW", true));
    let another = Held { stored_hash: Some(slow_hash('b').expose().to_owned()), ..slow };
    assert_eq!(found(&another), ("OTHER_HASH", false));
}

#[test]
fn what_a_key_may_is_compared_until_somebody_sets_it_here() {
    let stored_hash = Some(slow_hash('a').expose().to_owned());
    let came =
        Held { stored_hash, etag: 1, ..row(GivenScheme::Bcrypt, Material::Slow(slow_hash('a'))).item.planned(IMPORT) };
    assert_eq!(found(&came), ("SLOW", true));
    let settings = HeldSettings { scopes: "[\"invoices:read\"]".to_owned(), ..came.settings.clone() };
    let wider = Held { settings, ..came };
    assert_eq!(found(&wider), ("SETTINGS_DIFFER", false));
    assert_eq!(found(&Held { etag: 2, ..wider.clone() }), ("SLOW", true));
    assert_eq!(found(&Held { import_id: None, ..wider.clone() }), ("SLOW", true), "a key of its own");
    let another = Held { stored_hash: Some(slow_hash('b').expose().to_owned()), ..wider };
    assert_eq!(found(&another), ("OTHER_HASH", false), "whose key it is comes first");
}
