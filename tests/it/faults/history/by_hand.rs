//! Histories made by hand, good ones and bad ones: what the checker finds in them. Each bad one differs from a good one
//! in one moment, one replica or one change, so that a rule that is a little too wide or too narrow is seen.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use keystead::proto::v1::Outcome;
use tonic::Code;

use super::Via::{Replica, Sql};
use super::What::{ChangeFailed, Created, Reactivated, Revoked, Verified, VerifyFailed};
use super::{Call, Counts, Event, History, Rule, Told, Via, What};

const BOUND: Duration = Duration::from_secs(2);
const VALID: What = Verified(Outcome::Valid);

/// Events of keys: who was asked, what the answer was, and when the call began and ended, in ms.
fn history(events: &[(usize, Via, What, u64, u64)]) -> History {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut history = History::default();
    for (key, via, what, begun, ended) in events {
        history.add(Event { key: *key, via: *via, what: *what, begun: at(*begun), ended: at(*ended) });
    }
    history
}

/// The same for one key, and what the checker finds.
fn broken(events: &[(Via, What, u64, u64)]) -> Vec<Rule> {
    let events: Vec<_> = events.iter().map(|(via, what, begun, ended)| (1, *via, *what, *begun, *ended)).collect();
    history(&events).violations(BOUND).iter().map(|violation| violation.rule).collect()
}

/// Asserts that the checker finds nothing in it.
#[track_caller]
fn good(events: &[(Via, What, u64, u64)]) {
    let broken = broken(events);
    assert!(broken.is_empty(), "{broken:?} in {events:?}");
}

#[test]
fn valid_after_an_acknowledgement_by_the_same_replica_is_found() {
    let revoked = (Replica(0), Revoked, 100, 110);
    assert_eq!(broken(&[revoked, (Replica(0), VALID, 111, 112)]), [Rule::SameReplica]);
    assert_eq!(broken(&[revoked, (Replica(0), VALID, 9_000, 9_001)]), [Rule::SameReplica]);
    // The order in which answers were written down does not matter.
    assert_eq!(broken(&[(Replica(0), VALID, 111, 112), revoked]), [Rule::SameReplica]);
    good(&[revoked, (Replica(1), VALID, 111, 112)]);
}

#[test]
fn valid_later_than_the_bound_is_found_on_every_replica() {
    for via in [Replica(0), Sql] {
        let revoked = (via, Revoked, 100, 110);
        good(&[revoked, (Replica(1), VALID, 2_110, 2_111)]);
        assert_eq!(broken(&[revoked, (Replica(1), VALID, 2_111, 2_112)]), [Rule::Bound], "{via:?}");
        assert_eq!(broken(&[revoked, (Replica(2), VALID, 60_000, 60_001)]), [Rule::Bound], "{via:?}");
    }
    // SQL is no replica's: until the bound every one may not know.
    good(&[(Sql, Revoked, 100, 110), (Replica(0), VALID, 111, 112)]);
}

#[test]
fn a_call_that_began_before_the_acknowledgement_may_be_answered_ever_so_late() {
    let revoked = (Replica(0), Revoked, 100, 110);
    good(&[revoked, (Replica(0), VALID, 105, 106), (Replica(0), VALID, 110, 30_000)]);
    good(&[revoked, (Replica(1), VALID, 50, 30_000), (Replica(1), VALID, 2_000, 30_000)]);
}

#[test]
fn what_is_no_valid_contradicts_no_revocation() {
    let revoked = (Replica(0), Revoked, 100, 110);
    for what in [Verified(Outcome::Revoked), VerifyFailed(Code::Unavailable)] {
        good(&[revoked, (Replica(0), what, 120, 121), (Replica(1), what, 9_000, 9_001)]);
    }
}

#[test]
fn a_revocation_that_was_not_acknowledged_promises_nothing() {
    let failed = (Replica(0), ChangeFailed(Code::Unavailable), 100, 110);
    good(&[failed, (Replica(0), VALID, 120, 121), (Replica(1), VALID, 9_000, 9_001)]);
}

#[test]
fn after_a_reactivation_began_the_key_may_be_valid() {
    let (revoked, reactivated) = ((Replica(0), Revoked, 100, 110), (Sql, Reactivated, 5_000, 5_010));
    for replica in [Replica(0), Replica(1)] {
        good(&[revoked, reactivated, (replica, VALID, 5_020, 5_021)]);
        // It may have taken effect before it was acknowledged.
        good(&[revoked, reactivated, (replica, VALID, 4_990, 5_001)]);
        assert_eq!(broken(&[revoked, reactivated, (replica, VALID, 4_990, 4_999)]).len(), 1);
    }
}

#[test]
fn a_reactivation_excuses_no_later_revocation() {
    let twice = [(Replica(0), Revoked, 100, 110), (Sql, Reactivated, 200, 210), (Replica(1), Revoked, 300, 310)];
    let after = |verified: (Via, What, u64, u64)| broken(&[&twice[..], &[verified]].concat());
    assert_eq!(after((Replica(1), VALID, 311, 312)), [Rule::SameReplica]);
    assert_eq!(after((Replica(0), VALID, 2_311, 2_312)), [Rule::Bound]);
    // The first revocation was its own, and that was taken back; of the second it need not know yet.
    assert!(after((Replica(0), VALID, 311, 312)).is_empty());
    let unordered = [(Replica(0), Revoked, 100, 210), (Sql, Reactivated, 150, 200), (Replica(0), VALID, 220, 221)];
    good(&unordered);
}

#[test]
fn a_repeated_revocation_counts_for_whoever_acknowledged_it() {
    let revoked = [(Sql, Revoked, 100, 110), (Replica(2), Revoked, 120, 130)];
    let after = |verified: (Via, What, u64, u64)| broken(&[&revoked[..], &[verified]].concat());
    assert_eq!(after((Replica(2), VALID, 131, 132)), [Rule::SameReplica]);
    assert!(after((Replica(2), VALID, 112, 132)).is_empty());
    assert_eq!(after((Replica(1), VALID, 2_111, 2_112)), [Rule::Bound]);
}

#[test]
fn not_found_after_a_creation_was_acknowledged_is_found() {
    let (created, absent) = ((Replica(0), Created, 100, 110), Verified(Outcome::NotFound));
    assert_eq!(broken(&[created, (Replica(1), absent, 111, 112)]), [Rule::Existence]);
    assert_eq!(broken(&[created, (Replica(0), Revoked, 200, 210), (Replica(1), absent, 300, 301)]).len(), 1);
    good(&[created, (Replica(1), absent, 105, 300)]);
    good(&[(Replica(1), absent, 105, 300)]);
}

#[test]
fn each_key_has_a_history_of_its_own() {
    let events = [(1, Replica(0), Revoked, 100, 110), (2, Replica(0), VALID, 120, 121)];
    assert!(history(&events).violations(BOUND).is_empty());
    let others = [(1, Sql, Revoked, 0, 1), (2, Sql, Reactivated, 10, 11), (1, Replica(0), VALID, 3_000, 3_001)];
    let found = history(&others).violations(BOUND);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].verified.key, found[0].change.via), (1, Sql));
    let shown = "Bound: key 1, Verified(Valid) by Replica(0), \
                 asked 2.999s after Revoked was acknowledged by Sql, answered 1ms later";
    assert_eq!(found[0].to_string(), shown);
}

#[test]
fn answers_are_counted_by_replica_and_kind() {
    let mut history = history(&[
        (1, Replica(0), Created, 0, 1),
        (1, Replica(1), VALID, 2, 3),
        (1, Sql, Revoked, 4, 5),
        (1, Replica(1), Verified(Outcome::Revoked), 6, 7),
        (1, Replica(1), Verified(Outcome::Expired), 6, 7),
        (1, Replica(2), VerifyFailed(Code::Unavailable), 6, 7),
    ]);
    let before = history.counts().clone();
    let told = Told { valid: 1, revoked: 1, otherwise_denied: 1, errors: 0 };
    let refused = Told { errors: 1, ..Told::default() };
    let replicas = [Told::default(), told, refused];
    assert_eq!(before, Counts { created: 1, revoked: 1, reactivated: 0, changes_failed: 0, replicas });
    history.add(Call::begin(1, Sql).end(Reactivated));
    history.add(Call::begin(2, Replica(0)).end(ChangeFailed(Code::Unavailable)));
    let since = history.counts().since(&before);
    assert_eq!(since, Counts { reactivated: 1, changes_failed: 1, ..Counts::default() });
    assert_eq!(history.errors(), HashMap::from([(Code::Unavailable, 2)]));
}
