//! What segments say, summed: counts by key, hour, endpoint and outcome, requests and last use of keys, and a bounded
//! number of events that become rows of detail, each with the number of events that it stands for.
//! Must not lose a count. Invariant: the weights of the details add up to the events with a key that came in as such;
//! thinning details out moves weight and never drops it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    record::{EventBytes, Faults, Owner, Record, read},
    segment::SegmentBytes,
};
use crate::{
    domain::{
        ids::{KeyId, OrganizationId},
        outcome::Outcome,
        time::Timestamp,
        usage::UsageEvent,
    },
    store::usage::RollupKey,
};

/// Rows of detail for each second that a segment covers: what a database takes beside its other work.
const DETAILS_PER_SECOND: u128 = 1_000;
/// Rows of detail of a segment that covers less than half a second.
const DETAILS_MIN: usize = 500;
/// Rows of detail of one batch, and so of one transaction, however long it covers.
const DETAILS_MAX: usize = 20_000;
/// Different endpoints of a batch that has to stay small; the others are counted together.
const ENDPOINTS_MAX: usize = 1_000;
/// Stands for endpoints beyond the bound.
const OTHER_ENDPOINT: &str = "(other)";

/// What is counted by endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Subject {
    key: Owner,
    hour: Timestamp,
    outcome: Outcome,
}

/// Usage that is written in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    counts: HashMap<Subject, HashMap<String, i64>>,
    used: HashMap<KeyId, (i64, Timestamp)>,
    details: Vec<(UsageEvent, i64)>,
    /// The endpoints so far, where their number is bounded.
    endpoints: Option<HashSet<String>>,
    newest: Option<Timestamp>,
}

impl Batch {
    /// A batch that stays small whatever comes in: endpoints beyond a bound are counted together.
    #[must_use]
    pub(super) fn small() -> Self {
        Self { endpoints: Some(HashSet::new()), ..Self::default() }
    }

    /// The moment of the newest event, the epoch where there is none.
    #[must_use]
    pub fn newest(&self) -> Timestamp {
        self.newest.unwrap_or(Timestamp::from_micros(0))
    }

    /// The organizations whose keys were used, ascending.
    #[must_use]
    pub fn organizations(&self) -> Vec<OrganizationId> {
        let all: BTreeSet<OrganizationId> =
            self.counts.keys().filter_map(|subject| subject.key.map(|(_, organization)| organization)).collect();
        all.into_iter().collect()
    }

    /// The counts, in the order of the rollups' primary key, so that two writers never wait for each other in a
    /// circle.
    #[must_use]
    pub fn rollups(&self) -> Vec<(RollupKey, i64)> {
        let mut rollups = Vec::new();
        for (subject, endpoints) in &self.counts {
            rollups.extend(endpoints.iter().map(|(endpoint, count)| {
                let (key, hour, outcome) = (subject.key, subject.hour, subject.outcome);
                (RollupKey { key, hour, endpoint: endpoint.clone(), outcome }, *count)
            }));
        }
        rollups.sort_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
        rollups
    }

    /// Requests and time of last use of each key, by ascending id, the order in which all writers lock keys.
    #[must_use]
    pub fn used(&self) -> Vec<(KeyId, i64, Timestamp)> {
        let mut used: Vec<_> = self.used.iter().map(|(key, (count, last))| (*key, *count, *last)).collect();
        used.sort_unstable_by_key(|(key, ..)| *key);
        used
    }

    /// The events that become rows of detail, each with its weight.
    #[must_use]
    pub fn details(&self) -> &[(UsageEvent, i64)] {
        &self.details
    }

    /// About how many rows it touches.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.counts.values().map(HashMap::len).sum::<usize>() + self.used.len() + self.details.len()
    }

    /// Counts one event, without a row of detail.
    pub(super) fn count_event(&mut self, event: &UsageEvent) {
        self.add_event(event.key, event.time, event.outcome, &event.endpoint);
    }

    /// Adds to what a key was used for.
    pub(super) fn add_used(&mut self, key: KeyId, count: i64, last: Timestamp) {
        let used = self.used.entry(key).or_insert((0, last));
        *used = (used.0 + count, used.1.max(last));
        self.newest = self.newest.max(Some(last));
    }

    /// Adds the records of a segment. Of its details as many are kept as the time that they cover allows.
    pub(super) fn add_segment(&mut self, records: &[u8], seed: u32) -> Faults {
        let mut candidates: Vec<(EventBytes<'_>, i64)> = Vec::new();
        let faults = read(records, seed, |record| match record {
            Record::Event(event) => {
                self.add_event(event.key, event.time, event.outcome, event.endpoint);
                // Attempts with unknown secrets are counted and leave no row: strangers must not fill the disk.
                if event.key.is_some() {
                    candidates.push((event, 1));
                }
            }
            Record::Used { key, count, last } => self.add_used(key, count, last),
            Record::Count { key, hour, outcome, endpoint, count } => {
                self.add_count(Subject { key, hour, outcome }, endpoint, count);
            }
            Record::Detail(event, weight) => candidates.push((event, weight)),
        });
        let most = details_max(&candidates);
        let kept = thin(candidates, most);
        self.details.extend(kept.into_iter().map(|(event, weight)| (event.to_event(), weight)));
        self.details = thin(std::mem::take(&mut self.details), DETAILS_MAX);
        faults
    }

    /// Adds the counts of another batch, which has no details.
    pub(super) fn add_counts(&mut self, other: &Self) {
        for (subject, endpoints) in &other.counts {
            for (endpoint, count) in endpoints {
                self.add_count(*subject, endpoint, *count);
            }
        }
        for (key, (count, last)) in &other.used {
            self.add_used(*key, *count, *last);
        }
    }

    /// Gives up half of the details, or, where few are left, the endpoints; says whether there was something to give
    /// up. Counts by key, hour and outcome stay.
    pub(super) fn shrink(&mut self) -> bool {
        if self.details.len() > 1 {
            let half = self.details.len() / 2;
            self.details = thin(std::mem::take(&mut self.details), half);
            return true;
        }
        let mut gave_up = false;
        for endpoints in self.counts.values_mut() {
            if endpoints.len() > 1 {
                let sum = endpoints.values().sum();
                *endpoints = HashMap::from([(OTHER_ENDPOINT.to_owned(), sum)]);
                gave_up = true;
            }
        }
        gave_up
    }

    /// Writes the batch as records.
    pub(super) fn write_to(&self, segment: &mut SegmentBytes) {
        for (subject, endpoints) in &self.counts {
            for (endpoint, count) in endpoints {
                let Subject { key, hour, outcome } = *subject;
                segment.append(&Record::Count { key, hour, outcome, endpoint, count: *count });
            }
        }
        for (key, (count, last)) in &self.used {
            segment.append(&Record::Used { key: *key, count: *count, last: *last });
        }
        for (event, weight) in &self.details {
            segment.append(&Record::Detail(event, *weight));
        }
    }

    fn add_event(&mut self, key: Owner, time: Timestamp, outcome: Outcome, endpoint: &str) {
        self.add_count(Subject { key, hour: time.start_of_hour(), outcome }, endpoint, 1);
        self.newest = self.newest.max(Some(time));
        if let (Some((key, _)), Outcome::Valid) = (key, outcome) {
            self.add_used(key, 1, time);
        }
    }

    fn add_count(&mut self, subject: Subject, endpoint: &str, count: i64) {
        let endpoint = self.bounded(endpoint);
        let endpoints = self.counts.entry(subject).or_default();
        // The endpoint is nearly always there already, and then needs no text of its own.
        match endpoints.get_mut(endpoint) {
            Some(sum) => *sum += count,
            None => _ = endpoints.insert(endpoint.to_owned(), count),
        }
    }

    /// The endpoint under which to count.
    fn bounded<'a>(&mut self, endpoint: &'a str) -> &'a str {
        match &mut self.endpoints {
            Some(known) if !known.contains(endpoint) => {
                if known.len() >= ENDPOINTS_MAX {
                    return OTHER_ENDPOINT;
                }
                known.insert(endpoint.to_owned());
                endpoint
            }
            Some(_) | None => endpoint,
        }
    }
}

/// How many rows of detail come from these events.
fn details_max(candidates: &[(EventBytes<'_>, i64)]) -> usize {
    let times = || candidates.iter().map(|(event, _)| event.time);
    let (Some(oldest), Some(newest)) = (times().min(), times().max()) else {
        return 0;
    };
    let most = newest.since(oldest).as_micros() * DETAILS_PER_SECOND / 1_000_000;
    usize::try_from(most).unwrap_or(DETAILS_MAX).clamp(DETAILS_MIN, DETAILS_MAX)
}

/// Every n-th of these, so that at most `most` are left. Each takes over the weight of those that go after it.
fn thin<T>(details: Vec<(T, i64)>, most: usize) -> Vec<(T, i64)> {
    let group = details.len().div_ceil(most.max(1)).max(1);
    let mut kept: Vec<(T, i64)> = Vec::with_capacity(details.len().div_ceil(group));
    for (at, (event, weight)) in details.into_iter().enumerate() {
        match kept.last_mut() {
            Some((_, sum)) if at % group > 0 => *sum += weight,
            Some(_) | None => kept.push((event, weight)),
        }
    }
    kept
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
