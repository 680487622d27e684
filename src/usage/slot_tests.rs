//! What a slot makes of the files in it, whatever state a process that was killed left them in.

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::{
    domain::{ids::KeyId, time::Timestamp},
    usage::{
        record::Record,
        segment::{Segment, SegmentBytes},
    },
};

const USED: Record<'static, &crate::domain::usage::UsageEvent> =
    Record::Used { key: KeyId::from_bytes([1; 16]), count: 1, last: Timestamp::from_micros(1) };

fn slot(folder: &Path) -> Slot {
    Slot::take_first(folder, RecordId::from_bytes([7; 16])).expect("a slot")
}

/// A segment that waits.
fn record(slot: &Slot, number: i64) {
    let mut segment = Segment::of(slot.make_file().expect("a file")).expect("a mapping");
    segment.begin(slot.id, number);
    assert!(segment.append(&USED));
}

/// The bytes of a segment that stands for these numbers, with so many records.
fn bytes(slot: &Slot, first: i64, number: i64, records: usize) -> Vec<u8> {
    let mut bytes = SegmentBytes::new(slot.id, first, number);
    (0..records).for_each(|_| bytes.append(&USED));
    bytes.finish()
}

fn spans(content: &Content) -> Vec<(i64, i64)> {
    content.waiting.iter().map(|(number, first, _)| (*first, *number)).collect()
}

#[test]
fn a_merged_segment_takes_the_place_of_those_that_it_stands_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let slot = slot(folder.path());
    (1..=4).for_each(|number| record(&slot, number));
    slot.write_merged(3, &bytes(&slot, 2, 3, 5)).expect("a file");
    let content = slot.content(0).expect("a slot that can be read");
    assert_eq!((spans(&content), content.free.len(), content.last), (vec![(1, 1), (2, 3), (4, 4)], 2, 4));
}

#[test]
fn a_torn_header_takes_the_place_of_no_segment_that_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let slot = slot(folder.path());
    (1..=3).for_each(|number| record(&slot, number));
    // The number is new; the first number and the length are those of the file's former use.
    let torn = slot.make_file().expect("a file");
    torn.file.write_all_at(&bytes(&slot, 1, 9, 5), 0).expect("it is written");
    let content = slot.content(0).expect("a slot that can be read");
    assert_eq!((spans(&content), content.free.len()), (vec![(1, 1), (2, 2), (3, 3)], 0));
    assert!(!torn.path.exists(), "it is put aside");
}

#[test]
fn a_segment_that_was_about_to_begin_is_free() {
    let folder = tempfile::tempdir().expect("a folder");
    let slot = slot(folder.path());
    record(&slot, 2);
    // The length is 0 already, and the first number still that of the file's former use.
    let begun = slot.make_file().expect("a file");
    begun.file.write_all_at(&bytes(&slot, 1, 9, 0), 0).expect("it is written");
    let content = slot.content(0).expect("a slot that can be read");
    assert_eq!((spans(&content), content.free.len(), content.last), (vec![(2, 2)], 1, 9));
}

#[test]
fn a_file_that_is_used_again_is_the_new_segment_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let slot = slot(folder.path());
    let file = slot.make_file().expect("a file");
    for number in [5, 6] {
        let mut segment = Segment::of(file.clone()).expect("a mapping");
        segment.begin(slot.id, number);
        let content = slot.content(0).expect("a slot that can be read");
        assert_eq!((spans(&content), content.free.len(), content.last), (vec![], 1, number));
        assert!(segment.append(&USED));
        assert_eq!(spans(&slot.content(0).expect("a slot that can be read")), [(number, number)]);
    }
}
