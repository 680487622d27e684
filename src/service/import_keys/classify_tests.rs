//! What becomes of rows that meet each other where nothing is written: the same, whatever their batches are.
//! Invariant: no test needs a database; that a run comes to the same is shown by `tests/it/imports/`.

use std::collections::BTreeMap;

use super::{ImportBatch, ImportItem, ItemResult, classify::Known, lost};
use crate::domain::{
    digest::Digest,
    ids::{KeyId, OrganizationId, RecordId},
    import::{GivenScheme, ImportedKey, Material},
    key::StoredStatus,
    limits::Credits,
    samples,
    scope::Scope,
    time::Timestamp,
};

const ONE: OrganizationId = OrganizationId::from_u128(11);
const OTHER: OrganizationId = OrganizationId::from_u128(12);
const IMPORT: RecordId = RecordId::from_u128(21);

fn item(source_id: &str, given: GivenScheme, material: Material) -> ImportItem {
    let key = samples::imported_key(source_id, given, material);
    ImportItem { organization_id: ONE, key }
}

fn plain(source_id: &str, secret: &str) -> ImportItem {
    item(source_id, GivenScheme::Plaintext, Material::Digest(Digest::of(secret)))
}

fn slow(source_id: &str, letter: char) -> ImportItem {
    item(source_id, GivenScheme::Bcrypt, Material::Slow(samples::slow_hash(letter)))
}

fn missing(source_id: &str) -> ImportItem {
    item(source_id, GivenScheme::Missing, Material::Missing)
}

fn with(mut item: ImportItem, change: impl FnOnce(&mut ImportedKey)) -> ImportItem {
    change(&mut item.key);
    item
}

fn named(item: ImportItem, id: u128) -> ImportItem {
    with(item, |key| key.kept_id = Some(KeyId::from_u128(id)))
}

fn credited(item: ImportItem, remaining: i64) -> ImportItem {
    with(item, |key| key.credits = Some(Credits { remaining, refill: None }))
}

fn elsewhere(item: ImportItem) -> ImportItem {
    ImportItem { organization_id: OTHER, ..item }
}

/// What becomes of rows in batches of this size, of a source that nothing has come from.
fn decided(items: &[ImportItem], size: usize) -> Vec<&'static str> {
    let (mut before, mut words) = (Vec::new(), Vec::new());
    for items in items.chunks(size) {
        let batch = ImportBatch {
            import_id: IMPORT,
            source: "portal".to_owned(),
            items: items.to_vec(),
            after: None,
            position: None,
            refused: 0,
            planned: before.clone(),
            rooms: BTreeMap::new(),
        };
        let (mut known, mut results) = (Known::default(), vec![None; items.len()]);
        known.add(&batch.planned);
        known.plan(&batch, &mut results);
        for (item, result) in items.iter().zip(results) {
            let result = result.unwrap_or_else(lost);
            if result == ItemResult::WouldCreate {
                before.push(item.planned(IMPORT));
            }
            words.push(word(&result));
        }
    }
    words
}

fn word(result: &ItemResult) -> &'static str {
    match result {
        ItemResult::WouldCreate => "NEW",
        ItemResult::Existing(_) => "EXISTING",
        ItemResult::Duplicate(None) => "DUPLICATE",
        ItemResult::Created(_) | ItemResult::Duplicate(Some(_)) => "an id of none",
        ItemResult::Refused(refused) => refused.reason.as_str(),
    }
}

#[test]
fn rows_of_one_batch_and_of_many_meet_alike() {
    let ended = |key: &mut ImportedKey| key.expire_time = Some(Timestamp::from_micros(1));
    let scoped = |key: &mut ImportedKey| key.scopes = vec![Scope::parse("invoices:read").expect("a scope")];
    let rows = [
        (slow("1", 'a'), "NEW"),
        (slow("2", 'a'), "DUPLICATE"),
        (elsewhere(slow("3", 'a')), "DUPLICATE_IN_OTHER_ORGANIZATION"),
        (with(slow("4", 'a'), scoped), "DUPLICATE_DIFFERS"),
        (with(slow("5", 'a'), |key| key.status = StoredStatus::Disabled), "DUPLICATE_DIFFERS"),
        (credited(plain("6", "b"), 5), "NEW"),
        (credited(plain("7", "b"), 6), "DUPLICATE"),
        (credited(plain("8", "b"), 4), "DUPLICATE_DIFFERS"),
        (plain("9", "b"), "DUPLICATE_DIFFERS"),
        (credited(with(plain("10", "b"), ended), 5), "DUPLICATE_DIFFERS"),
        // The same row of the source once more.
        (plain("6", "b"), "EXISTING"),
        (slow("6", 'b'), "EXISTING"),
        (plain("6", "c"), "ROW_CHANGED"),
        (named(plain("6", "b"), 1), "ROW_CHANGED"),
        (elsewhere(plain("6", "c")), "ROW_CHANGED"),
        (elsewhere(plain("6", "b")), "DUPLICATE_IN_OTHER_ORGANIZATION"),
        (slow("1", 'b'), "ROW_CHANGED"),
        (plain("1", "c"), "ROW_CHANGED"),
        // Ids that are kept.
        (named(plain("11", "d"), 7), "NEW"),
        (named(plain("12", "e"), 7), "ID_TAKEN"),
        (named(plain("13", "d"), 8), "DUPLICATE_SECRET"),
        (plain("14", "d"), "DUPLICATE"),
        (named(missing("15"), 9), "NEW"),
        (named(missing("16"), 9), "DUPLICATE"),
        (named(plain("17", "e"), 9), "ID_TAKEN"),
        (plain("18", "f"), "NEW"),
        (named(plain("19", "f"), 10), "DUPLICATE_SECRET"),
    ];
    let (items, expected): (Vec<ImportItem>, Vec<&str>) = rows.into_iter().unzip();
    for size in 1..=items.len() {
        assert_eq!(decided(&items, size), expected, "in batches of {size}");
    }
}

#[test]
fn a_row_that_gave_way_to_one_that_was_not_created_is_told_as_a_run_would_tell_it() {
    let rows = [plain("1", "a"), plain("2", "a"), plain("2", "b")];
    assert_eq!(decided(&rows, 1), ["NEW", "DUPLICATE", "NEW"]);
    assert_eq!(decided(&rows, 3), ["NEW", "DUPLICATE", "DUPLICATE_SECRET"]);
}
