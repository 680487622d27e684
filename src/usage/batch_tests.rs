//! Batches: whatever is summed, thinned out, written down and summed again, no count and no weight is lost.

use proptest::{collection, prelude::*};

use super::*;
use crate::{domain::ids::RecordId, usage::segment::Header};

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn event(number: u8, endpoint: &str, outcome: Outcome, at_us: i64) -> UsageEvent {
    // Number 0 is a secret that is nobody's.
    let ids = (KeyId::from_bytes([number; 16]), OrganizationId::from_bytes([number / 2; 16]));
    UsageEvent {
        key: (number > 0).then_some(ids),
        time: Timestamp::from_micros(NOW.micros() + at_us),
        outcome: if number == 0 { Outcome::NotFound } else { outcome },
        endpoint: endpoint.to_owned(),
        method: String::new(),
        client_address: String::new(),
        user_agent: String::new(),
        request_id: String::new(),
        tags: std::collections::BTreeMap::new(),
    }
}

fn events() -> impl Strategy<Value = Vec<UsageEvent>> {
    let outcome = prop_oneof![Just(Outcome::Valid), Just(Outcome::Expired)];
    let one = (0_u8..5, "/[a-c]", outcome, 0_i64..10_000_000_000)
        .prop_map(|(number, endpoint, outcome, at)| event(number, &endpoint, outcome, at));
    collection::vec(one, 0..60)
}

/// A segment of these events, as it lies in a file.
fn segment(write: impl FnOnce(&mut SegmentBytes)) -> (Vec<u8>, u32) {
    let header = Header { spool: RecordId::from_bytes([1; 16]), number: 9, first: 9, length: 0 };
    let mut segment = SegmentBytes::new(header.spool, header.first, header.number);
    write(&mut segment);
    (segment.finish()[64..].to_vec(), header.seed())
}

fn batch_of(events: &[UsageEvent]) -> Batch {
    let mut batch = Batch::default();
    let (bytes, seed) = segment(|segment| events.iter().for_each(|event| segment.append(&Record::Event(event))));
    assert_eq!(batch.add_segment(&bytes, seed), Faults::default());
    batch
}

fn weights(batch: &Batch) -> i64 {
    batch.details().iter().map(|(_, weight)| weight).sum()
}

fn with_a_key(events: &[UsageEvent]) -> i64 {
    i64::try_from(events.iter().filter(|event| event.key.is_some()).count()).expect("a small number")
}

fn counted(batch: &Batch) -> i64 {
    batch.rollups().iter().map(|(_, count)| count).sum()
}

proptest! {
    #[test]
    fn a_batch_counts_what_came_in(events in events()) {
        let batch = batch_of(&events);
        for (rollup, count) in batch.rollups() {
            let same = |event: &&UsageEvent| {
                (event.key, event.time.start_of_hour(), &event.endpoint, event.outcome)
                    == (rollup.key, rollup.hour, &rollup.endpoint, rollup.outcome)
            };
            prop_assert_eq!(count, i64::try_from(events.iter().filter(same).count()).expect("a small number"));
        }
        prop_assert_eq!(counted(&batch), i64::try_from(events.len()).expect("a small number"));
        for (key, count, last) in batch.used() {
            let valid = || events.iter().filter(move |event| {
                event.outcome == Outcome::Valid && event.key.is_some_and(|(id, _)| id == key)
            });
            prop_assert_eq!(count, i64::try_from(valid().count()).expect("a small number"));
            prop_assert_eq!(Some(last), valid().map(|event| event.time).max());
        }
        prop_assert_eq!(weights(&batch), with_a_key(&events));
    }

    #[test]
    fn a_batch_that_was_written_down_is_the_same(events in events()) {
        let before = batch_of(&events);
        let (bytes, seed) = segment(|segment| before.write_to(segment));
        let mut after = Batch::default();
        prop_assert_eq!(after.add_segment(&bytes, seed), Faults::default());
        prop_assert_eq!(format!("{:?}", after.rollups()), format!("{:?}", before.rollups()));
        prop_assert_eq!(after.used(), before.used());
        prop_assert_eq!(format!("{:?}", after.details()), format!("{:?}", before.details()));
    }

    #[test]
    fn shrinking_to_the_end_keeps_counts_and_weights(events in events()) {
        let whole = batch_of(&events);
        let mut small = whole.clone();
        while small.shrink() {}
        prop_assert!(small.details().len() <= 1);
        prop_assert_eq!(weights(&small), with_a_key(&events));
        prop_assert_eq!(counted(&small), counted(&whole));
        prop_assert_eq!(small.used(), whole.used());
    }

    #[test]
    fn thinning_out_moves_weight_and_drops_none(weights in collection::vec(1_i64..1000, 0..500), most in 1_usize..100) {
        let details: Vec<((), i64)> = weights.iter().map(|weight| ((), *weight)).collect();
        let kept = thin(details, most);
        prop_assert!(kept.len() <= most);
        prop_assert_eq!(kept.iter().map(|((), weight)| weight).sum::<i64>(), weights.iter().sum::<i64>());
    }
}

#[test]
fn rows_of_detail_are_bounded_by_the_time_that_they_cover() {
    let burst: Vec<UsageEvent> = (0..30_000).map(|at| event(1, "/a", Outcome::Valid, at)).collect();
    let batch = batch_of(&burst);
    assert_eq!((batch.details().len(), weights(&batch), counted(&batch)), (500, 30_000, 30_000));
    let calm: Vec<UsageEvent> = (0..30_000).map(|at| event(1, "/a", Outcome::Valid, at * 251)).collect();
    let batch = batch_of(&calm);
    assert_eq!((batch.details().len(), weights(&batch)), (7_500, 30_000), "7.5 s at every fourth one");
    let slow: Vec<UsageEvent> = (0..50_000).map(|at| event(1, "/a", Outcome::Valid, at * 100_000)).collect();
    assert!(batch_of(&slow).details().len() <= DETAILS_MAX);
}

#[test]
fn endpoints_beyond_the_bound_are_counted_together() {
    let mut batch = Batch::small();
    for at in 0..ENDPOINTS_MAX + 500 {
        batch.count_event(&event(1, &format!("/{at}"), Outcome::Valid, 0));
        batch.count_event(&event(1, "/0", Outcome::Valid, 0));
    }
    let rollups = batch.rollups();
    assert_eq!(rollups.len(), ENDPOINTS_MAX + 1);
    let of = |endpoint: &str| rollups.iter().find(|(rollup, _)| rollup.endpoint == endpoint).map(|(_, count)| *count);
    assert_eq!((of(OTHER_ENDPOINT), of("/0"), of("/999")), (Some(500), Some(1501), Some(1)));
    assert_eq!(counted(&batch), 3_000);
}
