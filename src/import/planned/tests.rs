//! What a plan remembers: by what a key is found, as what, how much room it takes and how much memory.

use std::slice::from_ref;

use super::*;
use crate::domain::{
    import::{GivenScheme, ImportedKey},
    limits::Credits,
    samples,
    scope::Scope,
};

const ONE: OrganizationId = OrganizationId::from_u128(11);
const TABLE: RecordId = RecordId::from_u128(21);
const OTHER_TABLE: RecordId = RecordId::from_u128(22);

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

fn named(item: ImportItem, id: u128) -> ImportItem {
    let key = ImportedKey { kept_id: Some(KeyId::from_u128(id)), ..item.key };
    ImportItem { key, ..item }
}

/// With these keys, all of which would be created.
fn planned(items: &[ImportItem]) -> Planned {
    let mut planned = Planned::default();
    planned.remember(TABLE, items, &vec![ItemResult::WouldCreate; items.len()]);
    planned
}

fn meets(planned: &Planned, import_id: RecordId, item: &ImportItem) -> bool {
    !planned.met_by(import_id, from_ref(item)).is_empty()
}

#[test]
fn a_key_is_found_by_all_that_a_row_may_meet_it_by() {
    let hash = item("3", GivenScheme::Sha256Hex, Material::Digest(Digest::of("third")));
    let digest = Digest::of("fourth");
    let mut spelled = plain("4", "the digest as a text");
    spelled.key.plaintext_as_digest = Some(digest);
    let planned = planned(&[named(plain("1", "first"), 7), slow("2", 'a'), hash, spelled]);

    assert!(meets(&planned, OTHER_TABLE, &plain("9", "first")), "its secret");
    assert!(meets(&planned, OTHER_TABLE, &slow("9", 'a')), "its slow hash");
    assert!(meets(&planned, OTHER_TABLE, &named(slow("9", 'b'), 7)), "its id");
    assert!(meets(&planned, TABLE, &plain("1", "another")), "its row");
    let mut text = plain("9", "another");
    text.key.plaintext_as_digest = Some(Digest::of("third"));
    assert!(meets(&planned, OTHER_TABLE, &text), "a text that is its stored hash");
    let hash = item("9", GivenScheme::Sha256Base64, Material::Digest(digest));
    assert!(meets(&planned, OTHER_TABLE, &hash), "a hash that is its text");
    assert!(meets(&planned, OTHER_TABLE, &plain("9", "fourth")), "a key whose hash is its text");

    for other in &[plain("1", "another"), plain("9", "fifth"), slow("2", 'b'), named(slow("9", 'b'), 8)] {
        assert!(!meets(&planned, OTHER_TABLE, other), "nothing that is alike");
    }
    assert!(!meets(&planned, TABLE, &plain("9", "another")));
}

#[test]
fn a_key_is_found_as_it_would_be_written() {
    let mut item = named(plain("1", "first"), 7);
    let key = &mut item.key;
    (key.status, key.expire_time) = (StoredStatus::Disabled, Some(Timestamp::from_micros(1)));
    key.scopes = vec![Scope::parse("invoices:read").expect("a scope")];
    key.credits = Some(Credits { remaining: 5, refill: None });
    let planned = planned(from_ref(&item));
    let written = format!("{:?}", item.planned(TABLE));
    let met: Vec<String> = planned.met_by(TABLE, from_ref(&item)).iter().map(|held| format!("{held:?}")).collect();
    assert!(met.contains(&written), "{met:?} without {written}");
    let elsewhere = planned.met_by(OTHER_TABLE, from_ref(&item));
    assert!(elsewhere.iter().all(|held| held.source_id.is_none()), "it is no row of another table");
    assert_eq!((elsewhere.len(), elsewhere[0].settings.credits_remaining), (1, Some(5)));
}

#[test]
fn only_what_would_be_created_is_remembered_and_takes_room() {
    let mut planned = Planned::default();
    planned.rooms.insert(ONE, Some(3));
    let mut revoked = plain("3", "third");
    revoked.key.status = StoredStatus::Revoked;
    let items = [plain("1", "first"), plain("2", "first"), revoked, plain("4", "fourth")];
    let here = ItemResult::Existing(KeyId::from_u128(4));
    let results = [ItemResult::WouldCreate, ItemResult::Duplicate(None), ItemResult::WouldCreate, here];
    planned.remember(TABLE, &items, &results);
    assert_eq!((planned.rooms[&ONE], planned.keys.len()), (Some(2), 2));
    assert!(!meets(&planned, TABLE, &plain("4", "fourth")));
}

#[test]
fn keys_that_only_a_scan_finds_are_counted_once_each() {
    let mut planned = Planned::default();
    let mut led_to = slow("3", 'c');
    led_to.key.look_up_id = Some("sk_1".to_owned());
    let items = [slow("1", 'a'), slow("1", 'a'), slow("2", 'b'), led_to, plain("4", "fourth")];
    let (new, here) = (ItemResult::WouldCreate, ItemResult::Existing(KeyId::from_u128(0)));
    planned.remember(TABLE, &items, &[new.clone(), here.clone(), here, new.clone(), new]);
    assert_eq!(planned.scanned, BTreeMap::from([(ONE, 2)]));
    planned.scanned.insert(ONE, SLOW_CANDIDATES_MAX);
    assert_eq!(planned.crowded().count(), 0);
    planned.scanned.insert(ONE, SLOW_CANDIDATES_MAX + 1);
    assert_eq!(planned.crowded().collect::<Vec<_>>(), [(ONE, SLOW_CANDIDATES_MAX + 1)]);
}

#[test]
fn keys_that_share_their_look_up_part_are_counted_by_organization() {
    const OTHER: OrganizationId = OrganizationId::from_u128(12);
    let sharing = |part: &str, organization_id, count: usize| -> Vec<ImportItem> {
        let one = |at: usize| {
            let mut item = slow(&format!("{part} {at}"), 'a');
            item.key.look_up_id = Some(part.to_owned());
            ImportItem { organization_id, ..item }
        };
        (0..count).map(one).collect()
    };
    let mut planned = Planned::default();
    for items in [sharing("sk_a", ONE, SLOW_LOOKED_UP_MAX), sharing("sk_a", OTHER, 1), sharing("sk_b", OTHER, 1)] {
        planned.remember(TABLE, &items, &vec![ItemResult::WouldCreate; items.len()]);
    }
    assert_eq!(planned.crowded_parts().count(), 0, "as many as are no scan");
    for items in [sharing("sk_b", ONE, SLOW_LOOKED_UP_MAX + 2), sharing("sk_c", ONE, SLOW_LOOKED_UP_MAX + 1)] {
        planned.remember(OTHER_TABLE, &items, &vec![ItemResult::WouldCreate; items.len()]);
    }
    let expected = CrowdedParts { organization_id: ONE, parts: 2, keys_max: SLOW_LOOKED_UP_MAX + 2 };
    assert_eq!(planned.crowded_parts().collect::<Vec<_>>(), [expected]);
    assert_eq!(planned.scanned, BTreeMap::new());
}

#[test]
fn a_key_takes_as_little_memory_as_is_said() {
    assert!(size_of::<PlannedKey>() <= 136, "{}", size_of::<PlannedKey>());
    assert_eq!(size_of::<(Name, u32)>(), 20);
    let items: Vec<ImportItem> = (0..100).map(|at| plain(&at.to_string(), &format!("secret {at}"))).collect();
    let planned = planned(&items);
    assert_eq!((planned.keys.len(), planned.names.len(), planned.settings.len()), (100, 200, 1));
}
