//! What `audit verify` finds: every change, removal and reordering, and nothing in a log that is whole.
//!
//! Logs are sealed with the same hash function that the service seals with, then tampered with. Invariant: each
//! test of a fault begins with a log that is intact.

use super::*;

/// A sealed log of `length` events, newest first, as the service lists it.
fn log(length: i64) -> Vec<Link> {
    let mut previous = GENESIS_HASH;
    let mut links: Vec<Link> = (1..=length)
        .map(|sequence| {
            let record = record(sequence);
            let hash = event_hash(&previous, &record);
            let link = Link { record, previous_hash: encode_hash(&previous), hash: encode_hash(&hash) };
            previous = hash;
            link
        })
        .collect();
    links.reverse();
    links
}

fn record(sequence: i64) -> AuditRecord {
    AuditRecord {
        sequence,
        id: format!("event {sequence}"),
        time_us: sequence * 1000,
        actor_key_id: String::new(),
        actor: "init".to_owned(),
        action: "key.create".to_owned(),
        target_type: "key".to_owned(),
        target_id: "t".to_owned(),
        organization_id: "o".to_owned(),
        request_id: String::new(),
        detail: "{}".to_owned(),
    }
}

fn check(links: Vec<Link>, head: Option<Head>) -> Report {
    let mut chain = Chain::new(head);
    for link in links {
        chain.push(link);
    }
    chain.finish()
}

fn faults(links: Vec<Link>, head: Option<Head>) -> Vec<(i64, FaultKind)> {
    let report = check(links, head);
    assert_eq!(report.fault_count, report.faults.len() as u64);
    report.faults.iter().map(|fault| (fault.sequence, fault.kind)).collect()
}

/// The event with this sequence, in a log of 5.
fn at(links: &mut [Link], sequence: usize) -> &mut Link {
    &mut links[5 - sequence]
}

#[test]
fn a_whole_log_is_intact_and_its_head_is_told() {
    let links = log(5);
    let newest = links[0].hash.clone();
    let report = check(links, None);
    assert!(report.is_intact());
    assert_eq!((report.events, report.head.map(|head| head.to_string())), (5, Some(format!("5:{newest}"))));
}

#[test]
fn an_empty_log_is_intact_unless_a_head_is_known() {
    assert!(check(Vec::new(), None).is_intact());
    let head = Head::parse(&format!("2:{}", "a".repeat(64))).ok();
    assert_eq!(faults(Vec::new(), head), [(2, FaultKind::TailCut { newest: 0 })]);
}

#[test]
fn events_that_are_not_sealed_yet_are_passed_over() {
    let mut links = log(2);
    links.insert(0, Link { record: record(0), previous_hash: String::new(), hash: String::new() });
    let report = check(links, None);
    assert!(report.is_intact());
    assert_eq!(report.events, 2);
}

#[test]
fn a_changed_event_is_found() {
    let edits: [fn(&mut Link); 6] = [
        |link| link.record.detail.push(' '),
        |link| link.record.actor = "somebody".to_owned(),
        |link| link.record.time_us += 1,
        |link| link.hash = "0".repeat(64),
        |link| link.previous_hash = "0".repeat(64),
        |link| link.hash = link.hash.to_uppercase(),
    ];
    for edit in edits {
        let mut links = log(5);
        edit(at(&mut links, 3));
        let found = faults(links, None);
        assert!(found.contains(&(3, FaultKind::Changed)), "{found:?}");
    }
}

#[test]
fn an_event_that_was_changed_and_sealed_again_is_found_by_the_one_after_it() {
    let mut links = log(5);
    let link = at(&mut links, 3);
    link.record.actor = "somebody".to_owned();
    let previous = decode_hash(&link.previous_hash).expect("a hash");
    link.hash = encode_hash(&event_hash(&previous, &link.record));
    assert_eq!(faults(links, None), [(3, FaultKind::Changed)]);
}

#[test]
fn removed_events_are_found_wherever_they_were() {
    let mut links = log(5);
    links.remove(2);
    assert_eq!(faults(links, None), [(3, FaultKind::Removed { last: 3 })]);
    let mut links = log(5);
    links.drain(1..3);
    assert_eq!(faults(links, None), [(3, FaultKind::Removed { last: 4 })]);
    let mut links = log(5);
    links.truncate(3);
    assert_eq!(faults(links, None), [(1, FaultKind::Removed { last: 2 })]);
}

#[test]
fn a_gap_that_was_closed_by_new_numbers_is_found() {
    let mut links = log(5);
    links.remove(2);
    links[0].record.sequence = 4;
    links[1].record.sequence = 3;
    let found = faults(links, None);
    assert!(found.iter().any(|(sequence, _)| *sequence == 3), "{found:?}");
    assert!(found.iter().any(|(sequence, _)| *sequence == 4), "{found:?}");
}

#[test]
fn reordered_events_are_found_and_their_place_is_told() {
    let mut links = log(5);
    at(&mut links, 4).record.sequence = 2;
    at(&mut links, 2).record.sequence = 4;
    links.sort_by_key(|link| -link.record.sequence);
    assert_eq!(
        faults(links, None),
        [(2, FaultKind::Reordered { sealed_at: Some(4) }), (4, FaultKind::Reordered { sealed_at: Some(2) })]
    );
    let mut links = log(5);
    links.swap(1, 2);
    assert!(faults(links, None).contains(&(4, FaultKind::Reordered { sealed_at: None })));
}

#[test]
fn a_repeated_event_is_found() {
    let mut links = log(5);
    let twice = links[2].clone();
    links.insert(2, twice);
    assert_eq!(faults(links, None), [(3, FaultKind::Reordered { sealed_at: None })]);
}

#[test]
fn a_cut_tail_is_found_with_the_head_that_was_kept_and_only_with_it() {
    let whole = check(log(5), None).head;
    let mut cut = log(5);
    cut.drain(..2);
    assert!(check(cut.clone(), None).is_intact());
    assert_eq!(faults(cut, whole.clone()), [(5, FaultKind::TailCut { newest: 3 })]);
    assert!(check(log(5), whole.clone()).is_intact());
    assert!(check(log(9), whole).is_intact());
}

#[test]
fn a_log_that_was_written_anew_is_found_with_the_head_that_was_kept() {
    let head = Head::parse(&format!("3:{}", "a".repeat(64))).ok();
    assert_eq!(faults(log(5), head), [(3, FaultKind::HeadDiffers)]);
}

#[test]
fn a_chain_that_does_not_begin_at_the_beginning_is_found() {
    let mut link = Link { record: record(1), previous_hash: "1".repeat(64), hash: String::new() };
    link.hash = encode_hash(&event_hash(&decode_hash(&link.previous_hash).expect("a hash"), &link.record));
    assert_eq!(faults(vec![link], None), [(1, FaultKind::Changed)]);
}

#[test]
fn more_faults_than_are_told_are_still_counted() {
    let mut links = log(3000);
    for link in &mut links {
        link.record.detail.push('x');
    }
    let report = check(links, None);
    assert_eq!((report.fault_count, report.faults.len()), (3000, FAULTS_MAX));
}

#[test]
fn a_head_reads_back_as_it_was_printed() {
    let head = check(log(2), None).head.expect("a head");
    assert_eq!(Head::parse(&head.to_string()), Ok(head));
    for text in ["", "5", "5:", "x:00", "0:aa", &format!("0:{}", "a".repeat(64)), &format!("-1:{}", "a".repeat(64))] {
        assert!(Head::parse(text).is_err(), "{text}");
    }
}
