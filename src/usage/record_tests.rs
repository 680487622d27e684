//! Records: what was appended is read, whatever stands in it; what is torn, changed or of another segment is not.

use proptest::{collection, prelude::*};

use super::*;

const SEED: u32 = 7;

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::NotFound),
        Just(Outcome::OrganizationInactive),
        Just(Outcome::CreditsExhausted),
        Just(Outcome::Valid)
    ]
}

fn owner() -> impl Strategy<Value = Owner> {
    proptest::option::of(any::<([u8; 16], [u8; 16])>()).prop_map(|ids| {
        ids.map(|(key, organization)| (KeyId::from_bytes(key), OrganizationId::from_bytes(organization)))
    })
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0..=Timestamp::LAST.micros()).prop_map(Timestamp::from_micros)
}

fn event() -> impl Strategy<Value = UsageEvent> {
    let texts = (".{0,20}", "[A-Z]{0,5}", ".{0,9}", ".{0,40}", ".{0,9}");
    let tags = collection::btree_map(".{0,5}", ".{0,9}", 0..4);
    (owner(), time(), outcome(), texts, tags).prop_map(|(key, time, outcome, texts, tags)| {
        let (endpoint, method, client_address, user_agent, request_id) = texts;
        UsageEvent { key, time, outcome, endpoint, method, client_address, user_agent, request_id, tags }
    })
}

/// A record of any kind, with what it borrows.
#[derive(Debug, Clone)]
enum Owned {
    Event(UsageEvent),
    Used([u8; 16], i64, Timestamp),
    Count(Owner, Timestamp, Outcome, String, i64),
    Detail(UsageEvent, i64),
}

fn record() -> impl Strategy<Value = Owned> {
    prop_oneof![
        event().prop_map(Owned::Event),
        (any::<[u8; 16]>(), any::<i64>(), time()).prop_map(|(key, count, last)| Owned::Used(key, count, last)),
        (owner(), time(), outcome(), ".{0,20}", any::<i64>())
            .prop_map(|(key, hour, outcome, endpoint, count)| Owned::Count(key, hour, outcome, endpoint, count)),
        (event(), any::<i64>()).prop_map(|(event, weight)| Owned::Detail(event, weight)),
    ]
}

impl Owned {
    fn to_write(&self) -> Record<'_, &UsageEvent> {
        match self {
            Self::Event(event) => Record::Event(event),
            Self::Used(key, count, last) => Record::Used { key: KeyId::from_bytes(*key), count: *count, last: *last },
            Self::Count(key, hour, outcome, endpoint, count) => {
                Record::Count { key: *key, hour: *hour, outcome: *outcome, endpoint, count: *count }
            }
            Self::Detail(event, weight) => Record::Detail(event, *weight),
        }
    }
}

/// What a record shows, in words that compare.
fn written(record: &Record<'_, &UsageEvent>) -> String {
    format!("{record:?}")
}

fn found(record: &Record<'_, EventBytes<'_>>) -> String {
    let record: Record<'_, UsageEvent> = match *record {
        Record::Event(event) => Record::Event(event.to_event()),
        Record::Used { key, count, last } => Record::Used { key, count, last },
        Record::Count { key, hour, outcome, endpoint, count } => Record::Count { key, hour, outcome, endpoint, count },
        Record::Detail(event, weight) => Record::Detail(event.to_event(), weight),
    };
    format!("{record:?}")
}

/// All of them in one buffer, and where each ends.
fn written_down(records: &[Owned]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = vec![0; 64 << 10];
    let mut ends = Vec::new();
    let mut end = 0;
    for record in records {
        end += append(&mut bytes[end..], SEED, &record.to_write()).expect("room");
        ends.push(end);
    }
    bytes.truncate(end);
    (bytes, ends)
}

fn read_all(bytes: &[u8], seed: u32) -> (Vec<String>, Faults) {
    let mut all = Vec::new();
    let faults = read(bytes, seed, |record| all.push(found(&record)));
    (all, faults)
}

fn expected(records: &[Owned]) -> Vec<String> {
    records.iter().map(|record| written(&record.to_write())).collect()
}

proptest! {
    #[test]
    fn what_was_appended_is_read(records in collection::vec(record(), 0..8)) {
        let (bytes, _) = written_down(&records);
        prop_assert_eq!(read_all(&bytes, SEED), (expected(&records), Faults::default()));
    }

    #[test]
    fn what_is_torn_is_cut_at_the_last_whole_record(
        records in collection::vec(record(), 1..6), at: prop::sample::Index,
    ) {
        let (bytes, ends) = written_down(&records);
        let cut = at.index(bytes.len());
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (found, faults) = read_all(&bytes[..cut], SEED);
        prop_assert_eq!(found, expected(&records[..whole]));
        prop_assert_eq!(faults.cut_bytes, cut - ends[..whole].last().unwrap_or(&0));
    }

    #[test]
    fn a_changed_bit_ends_the_reading_before_its_record(
        records in collection::vec(record(), 1..6), at: prop::sample::Index, bit in 0_u8..8,
    ) {
        let (mut bytes, ends) = written_down(&records);
        let changed = at.index(bytes.len());
        bytes[changed] ^= 1 << bit;
        let whole = ends.iter().filter(|end| **end <= changed).count();
        prop_assert_eq!(read_all(&bytes, SEED).0, expected(&records[..whole]));
    }

    #[test]
    fn a_record_of_another_segment_is_none(records in collection::vec(record(), 1..4), other in 8_u32..) {
        let (bytes, _) = written_down(&records);
        prop_assert_eq!(read_all(&bytes, other), (vec![], Faults { cut_bytes: bytes.len(), unknown: 0 }));
    }

    #[test]
    fn any_bytes_can_be_read(bytes in collection::vec(any::<u8>(), 0..300)) {
        read(&bytes, SEED, |_| {});
    }

    /// Any payload under a right checksum: a record of some other version.
    #[test]
    fn a_whole_record_of_another_version_is_left_out_and_the_next_one_read(payload in collection::vec(5_u8.., 1..50)) {
        let mut bytes = u32::try_from(payload.len()).expect("short").to_le_bytes().to_vec();
        bytes.extend(checksum_of(SEED, &payload).to_le_bytes());
        bytes.extend(payload);
        let next = [Owned::Used([1; 16], 2, Timestamp::LAST)];
        bytes.extend(written_down(&next).0);
        prop_assert_eq!(read_all(&bytes, SEED), (expected(&next), Faults { cut_bytes: 0, unknown: 1 }));
    }

    #[test]
    fn what_does_not_fit_is_not_appended(record in record()) {
        let (whole, _) = written_down(std::slice::from_ref(&record));
        let mut room = vec![0; whole.len() - 1];
        prop_assert_eq!(append(&mut room, SEED, &record.to_write()), None);
    }
}

#[test]
fn a_part_that_nobody_wrote_to_holds_no_record() {
    assert_eq!(read_all(&[0; 100], SEED), (vec![], Faults { cut_bytes: 100, unknown: 0 }));
}
