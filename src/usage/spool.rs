//! The spool: the segment that is written to, one that is ready to follow it, and those that are sealed and wait for
//! the database, oldest first. Where no file can be made, or too much waits, counts go on in memory.
//! Knows no database. Everything here is done under one short lock that verifications share, so nothing here may wait:
//! what takes time is handed to the keeper, or to whoever flushes.
//! Invariant: sealed segments have ascending numbers, and a number is never given twice.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    batch::Batch,
    mapping::Mapping,
    record::Record,
    segment::{SEGMENT_BYTES, Segment, SegmentFile},
    slot::{Content, Slot},
};
use crate::domain::{ids::KeyId, time::Timestamp, usage::UsageEvent};

/// Files that are kept for later, with the one that is ready, so that in steady state no file is made.
const KEPT_MAX: usize = 3;
/// Bytes of the segments that are written in one transaction, if there is more than one. A later version must not
/// have less: a start takes so many for tried.
const RUN_BYTES_MAX: u64 = 64 << 20;
/// So many times the bound may wait in files. What waits is merged between two writes only, and a write can hang.
const BOUNDS_MAX: u64 = 2;

/// How the spool is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Bytes of the sealed segments that wait for the database.
    pub bytes: u64,
    /// Sealed segments that wait for the database.
    pub segments: usize,
    /// The bound on `bytes`, beyond which rows of detail are thinned out.
    pub bytes_max: u64,
    /// Events since the start that have no row of detail of their own, but a part in another's weight.
    pub details_left_out: u64,
    /// Segments since the start that the database has taken.
    pub applied: u64,
    /// Times since the start that the spool was over its bound, and what waits was merged.
    pub merges: u64,
    /// How long the oldest sealed segment has waited; zero where none waits.
    pub oldest_age: Duration,
    /// Whether no file can be made, or too much waits, so that new usage is counted in memory and has no rows of
    /// detail.
    pub failing: bool,
}

/// Where the records of a sealed segment are.
#[derive(Clone)]
pub(super) enum Place {
    File(SegmentFile),
    Memory(Arc<Batch>),
}

/// A segment that no record is added to any more.
#[derive(Clone)]
pub(super) struct Sealed {
    pub(super) number: i64,
    /// The first of the numbers that it stands for.
    pub(super) first: i64,
    pub(super) bytes: u64,
    since: Instant,
    pub(super) place: Place,
}

impl Sealed {
    pub(super) fn of_file((number, first, file): (i64, i64, SegmentFile)) -> Self {
        let bytes = file.bytes().unwrap_or(SEGMENT_BYTES as u64);
        Self { number, first, bytes, since: Instant::now(), place: Place::File(file) }
    }
}

/// The spool of this process, shared by verifications, the keeper and whoever flushes.
#[derive(Default)]
pub(super) struct Spool {
    state: Mutex<State>,
    /// Tells the keeper that there is something to do.
    pub(super) wake: Condvar,
}

/// What the lock guards.
#[derive(Default)]
pub(super) struct State {
    pub(super) slot: Option<Arc<Slot>>,
    pub(super) active: Option<Segment>,
    pub(super) spare: Option<Segment>,
    pub(super) free: Vec<SegmentFile>,
    pub(super) sealed: VecDeque<Sealed>,
    /// Sealed segments that are still mapped, and whether their last bytes may not be on the disk yet.
    pub(super) retired: Vec<(SegmentFile, Mapping)>,
    memory: Option<Batch>,
    next_number: i64,
    /// Segments up to this number may have been tried, with an outcome that nobody knows.
    tried: i64,
    pub(super) closed: bool,
    pub(super) failing: bool,
    /// Whether so much waits that no further file is begun.
    full: bool,
    bytes_max: u64,
    applied: u64,
    merges: u64,
    details_left_out: u64,
}

impl Spool {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record_event(&self, event: &UsageEvent) {
        let mut state = self.lock();
        if !self.append(&mut state, &Record::Event(event)) {
            state.memory().count_event(event);
        }
    }

    pub(super) fn record_used(&self, key: KeyId, time: Timestamp) {
        let mut state = self.lock();
        if !self.append(&mut state, &Record::Used { key, count: 1, last: time }) {
            state.memory().add_used(key, 1, time);
        }
    }

    /// Appends to the active segment, or to the one after it; says whether there is a file to append to.
    fn append(&self, state: &mut State, record: &Record<'_, &UsageEvent>) -> bool {
        if state.active.as_mut().is_some_and(|active| active.append(record)) {
            return true;
        }
        if !state.turn() {
            return false;
        }
        self.wake.notify_one();
        state.active.as_mut().is_some_and(|active| active.append(record))
    }

    /// Seals what has been recorded, so that it can be written.
    pub(super) fn seal(&self) {
        let mut state = self.lock();
        state.seal_active();
        state.seal_memory();
    }
}

impl State {
    /// Takes over a slot and what waits in it; gives the files that are not needed.
    pub(super) fn open(&mut self, slot: Slot, content: Content, bytes_max: u64) -> Vec<SegmentFile> {
        self.sealed = content.waiting.into_iter().map(Sealed::of_file).collect();
        // The number after the last may be that of counts in memory which the process before was writing when it died:
        // that write may still come through.
        self.next_number = content.last + 2;
        self.bytes_max = bytes_max;
        self.slot = Some(Arc::new(slot));
        self.note_bytes();
        // The process before may have died in the middle of a try.
        self.tried = self.oldest(self.next_number, RUN_BYTES_MAX).last().map_or(0, |last| last.number);
        content.free.into_iter().filter_map(|file| self.keep(file)).collect()
    }

    /// The number that the next segment gets: everything that has been recorded stands in segments below it, or will
    /// when they are sealed.
    pub(super) const fn next_number(&self) -> i64 {
        self.next_number
    }

    /// The bytes of what waits.
    pub(super) fn bytes(&self) -> u64 {
        self.sealed.iter().map(|sealed| sealed.bytes).sum()
    }

    pub(super) const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub(super) fn status(&self) -> SpoolStatus {
        SpoolStatus {
            bytes: self.bytes(),
            segments: self.sealed.len(),
            bytes_max: self.bytes_max,
            details_left_out: self.details_left_out,
            applied: self.applied,
            merges: self.merges,
            oldest_age: self.sealed.front().map_or(Duration::ZERO, |oldest| oldest.since.elapsed()),
            failing: self.failing || self.full,
        }
    }

    /// Notes that no file could be made, or that one could again.
    pub(super) fn note_file(&mut self, failure: Option<&io::Error>) {
        match failure {
            Some(error) if !self.failing => {
                tracing::error!(error = %error, "the usage spool cannot grow: usage counts in memory, without rows");
            }
            None if self.failing => tracing::info!("the usage spool can grow again"),
            Some(_) | None => {}
        }
        self.failing = failure.is_some();
    }

    /// Notes whether there is room for one more file, after what waits has changed.
    fn note_bytes(&mut self) {
        let full = self.bytes() + SEGMENT_BYTES as u64 > self.bytes_max * BOUNDS_MAX;
        match (full, self.full) {
            (true, false) => tracing::error!("the usage spool is full: usage counts in memory, without rows"),
            (false, true) => tracing::info!("the usage spool has room again"),
            (true, true) | (false, false) => {}
        }
        self.full = full;
    }

    /// Puts a file where the next records go, unless too much waits. Where the keeper has none ready, it is made here
    /// and now, unless that has just failed.
    fn turn(&mut self) -> bool {
        self.seal_active();
        if self.full {
            return false;
        }
        let Some(slot) = self.slot.clone() else {
            return false;
        };
        if self.spare.is_none() && !self.failing {
            let made = self.free.pop().map_or_else(|| slot.make_file(), Ok).and_then(Segment::of);
            self.note_file(made.as_ref().err());
            self.spare = made.ok();
        }
        let Some(mut segment) = self.spare.take() else {
            return false;
        };
        segment.begin(slot.id, self.take_number());
        self.active = Some(segment);
        true
    }

    const fn take_number(&mut self) -> i64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn seal_active(&mut self) {
        if let Some(active) = self.active.take_if(|active| active.length > 0) {
            let number = active.number;
            let (file, mapping) = active.into_parts();
            self.retired.push((file.clone(), mapping));
            let bytes = SEGMENT_BYTES as u64;
            let since = Instant::now();
            self.sealed.push_back(Sealed { number, first: number, bytes, since, place: Place::File(file) });
            self.note_bytes();
        }
    }

    /// Whether a segment that is in memory alone waits for the database.
    pub(super) fn waits_in_memory(&self) -> bool {
        self.sealed.iter().any(|sealed| matches!(sealed.place, Place::Memory(_)))
    }

    /// What memory holds becomes a segment too, one at a time: the next one gathers until this one is written.
    fn seal_memory(&mut self) {
        if self.waits_in_memory() {
            return;
        }
        if let Some(batch) = self.memory.take() {
            let number = self.take_number();
            let place = Place::Memory(Arc::new(batch));
            self.sealed.push_back(Sealed { number, first: number, bytes: 0, since: Instant::now(), place });
        }
    }

    fn memory(&mut self) -> &mut Batch {
        self.memory.get_or_insert_with(Batch::small)
    }

    /// Whether nobody knows what became of the oldest segment.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.sealed.front().is_some_and(|oldest| oldest.number <= self.tried)
    }

    /// The segments below `end` that are to be written next, in one transaction. While they are in doubt, they stay
    /// the same, so that those after them can be merged.
    pub(super) fn next_run(&self, end: i64) -> Vec<Sealed> {
        let end = if self.is_in_doubt() { end.min(self.tried + 1) } else { end };
        self.oldest(end, RUN_BYTES_MAX.min(self.bytes_max / 4))
    }

    /// The oldest segments that begin below `end`, up to so many bytes, but one at least. What was merged meanwhile
    /// may go on beyond it.
    fn oldest(&self, end: i64, bytes_max: u64) -> Vec<Sealed> {
        let mut bytes = 0;
        let is_next = |sealed: &&Sealed| {
            let is_first = bytes == 0;
            bytes += sealed.bytes.max(1);
            sealed.first < end && (is_first || bytes <= bytes_max)
        };
        self.sealed.iter().take_while(is_next).cloned().collect()
    }

    /// Notes that the segments up to this number are about to be tried.
    pub(super) fn note_tried(&mut self, number: i64) {
        self.tried = self.tried.max(number);
    }

    /// Those of the sealed segments that are to be merged: where the first stands, and all from there on. `None` where
    /// too little has come since the last time for it to be worth the work.
    pub(super) fn mergeable(&mut self) -> Option<(usize, Vec<Sealed>)> {
        let first = self.sealed.partition_point(|sealed| sealed.number <= self.tried).max(1);
        let unmerged = self.sealed.iter().skip(first).filter(|sealed| sealed.first == sealed.number);
        let enough = unmerged.map(|sealed| sealed.bytes).sum::<u64>() >= self.bytes_max / 4;
        if !enough || self.sealed.len() < first + 2 {
            return None;
        }
        // What was counted in memory is on the disk then. Its number must not go before that of an active segment.
        if self.active.is_none() {
            self.seal_memory();
        }
        Some((first, self.sealed.iter().skip(first).cloned().collect()))
    }

    /// Takes away the segments up to this number, which the database has; gives the files that are not needed.
    pub(super) fn settle(&mut self, number: i64, details_left_out: u64) -> Vec<SegmentFile> {
        self.details_left_out += details_left_out;
        let settled = self.sealed.partition_point(|sealed| sealed.first <= number);
        self.applied += settled as u64;
        let settled = self.sealed.drain(..settled).collect();
        self.note_bytes();
        self.keep_files(settled)
    }

    /// Takes away a sealed segment that cannot be read.
    pub(super) fn give_up(&mut self, number: i64) {
        self.sealed.retain(|sealed| sealed.number != number);
        self.note_bytes();
    }

    /// Replaces `count` segments from the `first`-th on by one that stands for them; gives the files that are not
    /// needed.
    pub(super) fn replace(&mut self, first: usize, count: usize, merged: Sealed) -> Vec<SegmentFile> {
        let replaced = self.sealed.drain(first..first + count).collect();
        self.sealed.insert(first, merged);
        self.merges += 1;
        self.note_bytes();
        self.keep_files(replaced)
    }

    fn keep_files(&mut self, segments: Vec<Sealed>) -> Vec<SegmentFile> {
        let files = segments.into_iter().filter_map(|sealed| match sealed.place {
            Place::File(file) => Some(file),
            Place::Memory(_) => None,
        });
        files.filter_map(|file| self.keep(file)).collect()
    }

    /// Keeps a file for later, or gives it back to be removed, which takes a moment and so is done without the lock.
    fn keep(&mut self, file: SegmentFile) -> Option<SegmentFile> {
        let whole = file.bytes().is_ok_and(|bytes| bytes == SEGMENT_BYTES as u64);
        if whole && self.free.len() + usize::from(self.spare.is_some()) < KEPT_MAX {
            self.free.push(file);
            return None;
        }
        Some(file)
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
