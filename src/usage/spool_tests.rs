//! Which of the sealed segments are written next, and which are merged.

use super::*;

/// A megabyte of a spool that may hold eight.
const MEGABYTE: u64 = 1 << 20;

fn sealed(first: i64, number: i64) -> Sealed {
    Sealed { number, first, bytes: MEGABYTE, since: Instant::now(), place: Place::Memory(Arc::default()) }
}

fn state(spans: &[(i64, i64)]) -> State {
    let sealed = spans.iter().map(|(first, number)| sealed(*first, *number)).collect();
    State { sealed, next_number: 100, bytes_max: 8 * MEGABYTE, ..State::default() }
}

fn numbers(segments: &[Sealed]) -> Vec<i64> {
    segments.iter().map(|sealed| sealed.number).collect()
}

#[test]
fn what_is_merged_while_a_flush_runs_is_written_by_it() {
    let state = state(&[(4, 4), (5, 12), (13, 13)]);
    assert_eq!(numbers(&state.next_run(10)), [4, 12], "12 stands for what came before 10 too");
    assert_eq!(numbers(&state.next_run(5)), [4]);
}

#[test]
fn what_was_tried_is_tried_again_alone_and_never_merged() {
    let mut state = state(&[(4, 4), (5, 5), (6, 6), (7, 7), (8, 8)]);
    state.note_tried(5);
    assert_eq!(numbers(&state.next_run(100)), [4, 5]);
    assert_eq!(state.mergeable().map(|(at, parts)| (at, numbers(&parts))), Some((2, vec![6, 7, 8])));
    state.settle(5, 0);
    assert_eq!(numbers(&state.next_run(100)), [6, 7], "a quarter of the bound at once");
}

#[test]
fn what_was_merged_before_does_not_count_towards_the_next_merge() {
    let mut state = state(&[(4, 4), (5, 20), (21, 21)]);
    assert!(state.mergeable().is_none());
    state.sealed.push_back(sealed(22, 22));
    assert_eq!(state.mergeable().map(|(at, parts)| (at, numbers(&parts))), Some((1, vec![20, 21, 22])));
}

#[test]
fn no_file_is_begun_beyond_twice_the_bound() {
    let mut state = State { bytes_max: 8 * MEGABYTE, ..State::default() };
    // A segment of 4 MiB has to fit in what is left.
    for (number, full) in (1..=13).map(|number| (number, number == 13)) {
        state.sealed.push_back(sealed(number, number));
        state.note_bytes();
        assert_eq!((state.full, state.status().failing), (full, full), "{number}");
    }
    assert!(!state.turn());
    state.settle(1, 0);
    assert!(!state.full);
}
