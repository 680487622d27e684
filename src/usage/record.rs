//! The bytes of one record of the spool, there and back. Written by hand, so that writing needs no allocation: a
//! record is a length, a checksum and a payload of fixed numbers and texts that carry their lengths.
//! Numbers are little-endian. Outcomes are written as words, so that a newer version reads what an older one left.
//! Must not be changed in place: another layout is another version of the segment's header.
//! Invariant: `read` gives what `append` was given, or stops; it never gives anything else.

use std::collections::BTreeMap;

use crc32fast::Hasher;

use crate::domain::{
    ids::{KeyId, OrganizationId},
    outcome::Outcome,
    time::Timestamp,
    usage::UsageEvent,
};

/// Length and checksum before each payload.
const FRAME_BYTES: usize = 8;

/// Whose key was used.
pub(super) type Owner = Option<(KeyId, OrganizationId)>;

/// What one record says. `E` is an event: borrowed to be written, or as it lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record<'a, E> {
    /// One verification, which counts and is a candidate for a row of detail.
    Event(E),
    /// Requests of a key, the last of them at `last`.
    Used { key: KeyId, count: i64, last: Timestamp },
    /// Verifications of one hour, endpoint and outcome.
    Count { key: Owner, hour: Timestamp, outcome: Outcome, endpoint: &'a str, count: i64 },
    /// A candidate for a row of detail that stands for so many events, which are counted elsewhere.
    Detail(E, i64),
}

/// An event as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventBytes<'a> {
    pub(super) key: Owner,
    pub(super) time: Timestamp,
    pub(super) outcome: Outcome,
    pub(super) endpoint: &'a str,
    method: &'a str,
    client_address: &'a str,
    user_agent: &'a str,
    request_id: &'a str,
    /// Names and values in turn, checked to be whole.
    tags: &'a [u8],
}

impl EventBytes<'_> {
    /// The event with texts of its own.
    pub(super) fn to_event(self) -> UsageEvent {
        let mut tags = BTreeMap::new();
        let mut rest = Source(self.tags);
        while let (Some(name), Some(value)) = (rest.text(), rest.text()) {
            tags.insert(name.to_owned(), value.to_owned());
        }
        UsageEvent {
            key: self.key,
            time: self.time,
            outcome: self.outcome,
            endpoint: self.endpoint.to_owned(),
            method: self.method.to_owned(),
            client_address: self.client_address.to_owned(),
            user_agent: self.user_agent.to_owned(),
            request_id: self.request_id.to_owned(),
            tags,
        }
    }
}

/// Writes a record at the beginning of `room`; gives its length, or `None` where it does not fit. `seed` ties the
/// record to its segment, so that what a recycled file still holds of an older one is never taken for a record.
pub(super) fn append(room: &mut [u8], seed: u32, record: &Record<'_, &UsageEvent>) -> Option<usize> {
    let (frame, payload) = room.split_at_mut_checked(FRAME_BYTES)?;
    let mut sink = Sink { room: payload, used: 0 };
    sink.record(record)?;
    let used = sink.used;
    let (length, checksum) = frame.split_at_mut_checked(4)?;
    length.copy_from_slice(&u32::try_from(used).ok()?.to_le_bytes());
    checksum.copy_from_slice(&checksum_of(seed, payload.get(..used)?).to_le_bytes());
    Some(FRAME_BYTES + used)
}

fn checksum_of(seed: u32, payload: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(seed);
    hasher.update(payload);
    hasher.finalize()
}

/// What reading a segment came upon besides records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Bytes after the last whole record.
    pub(super) cut_bytes: usize,
    /// Whole records that this version does not understand.
    pub(super) unknown: usize,
}

/// Gives each record in turn, up to the first that is not whole.
pub(super) fn read<'a>(bytes: &'a [u8], seed: u32, mut each: impl FnMut(Record<'a, EventBytes<'a>>)) -> Faults {
    let mut faults = Faults::default();
    let mut rest = Source(bytes);
    loop {
        let before = rest.0.len();
        match rest.frame(seed).map(|payload| Source(payload).record()) {
            Some(Some(record)) => each(record),
            Some(None) => faults.unknown += 1,
            None => return Faults { cut_bytes: before, ..faults },
        }
    }
}

/// Where a payload is written.
struct Sink<'a> {
    room: &'a mut [u8],
    used: usize,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.used.checked_add(bytes.len())?;
        self.room.get_mut(self.used..end)?.copy_from_slice(bytes);
        self.used = end;
        Some(())
    }

    fn text(&mut self, text: &str) -> Option<()> {
        self.put(&u32::try_from(text.len()).ok()?.to_le_bytes())?;
        self.put(text.as_bytes())
    }

    fn number(&mut self, number: i64) -> Option<()> {
        self.put(&number.to_le_bytes())
    }

    fn owner(&mut self, owner: Owner) -> Option<()> {
        match owner {
            None => self.put(&[0]),
            Some((key, organization)) => {
                self.put(&[1])?;
                self.put(key.bytes())?;
                self.put(organization.bytes())
            }
        }
    }

    fn record(&mut self, record: &Record<'_, &UsageEvent>) -> Option<()> {
        match record {
            Record::Event(event) => {
                self.put(&[1])?;
                self.event(event)
            }
            Record::Used { key, count, last } => {
                self.put(&[2])?;
                self.put(key.bytes())?;
                self.number(*count)?;
                self.number(last.micros())
            }
            Record::Count { key, hour, outcome, endpoint, count } => {
                self.put(&[3])?;
                self.owner(*key)?;
                self.number(hour.micros())?;
                self.text(outcome.as_str())?;
                self.text(endpoint)?;
                self.number(*count)
            }
            Record::Detail(event, weight) => {
                self.put(&[4])?;
                self.number(*weight)?;
                self.event(event)
            }
        }
    }

    fn event(&mut self, event: &UsageEvent) -> Option<()> {
        self.owner(event.key)?;
        self.number(event.time.micros())?;
        self.text(event.outcome.as_str())?;
        for text in [&event.endpoint, &event.method, &event.client_address, &event.user_agent, &event.request_id] {
            self.text(text)?;
        }
        for (name, value) in &event.tags {
            self.text(name)?;
            self.text(value)?;
        }
        Some(())
    }
}

/// What is left to read. Each function takes its part off the front, or gives `None` where it is not there.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn frame(&mut self, seed: u32) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?);
        let checksum = u32::from_le_bytes(self.array()?);
        let payload = self.take(usize::try_from(length).ok()?)?;
        // No record is empty: a length of 0 is a part of the file that nobody wrote to.
        (!payload.is_empty() && checksum_of(seed, payload) == checksum).then_some(payload)
    }

    fn number(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Timestamp> {
        self.number().map(Timestamp::from_micros)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = u32::from_le_bytes(self.array()?);
        std::str::from_utf8(self.take(usize::try_from(length).ok()?)?).ok()
    }

    fn outcome(&mut self) -> Option<Outcome> {
        self.text().and_then(Outcome::from_stored)
    }

    fn key(&mut self) -> Option<KeyId> {
        self.array().map(KeyId::from_bytes)
    }

    fn owner(&mut self) -> Option<Owner> {
        match self.array()? {
            [0] => Some(None),
            [1] => Some(Some((self.key()?, OrganizationId::from_bytes(self.array()?)))),
            _ => None,
        }
    }

    fn record(mut self) -> Option<Record<'a, EventBytes<'a>>> {
        let record = match self.array()? {
            [1] => Record::Event(self.event()?),
            [2] => Record::Used { key: self.key()?, count: self.number()?, last: self.time()? },
            [3] => Record::Count {
                key: self.owner()?,
                hour: self.time()?,
                outcome: self.outcome()?,
                endpoint: self.text()?,
                count: self.number()?,
            },
            [4] => {
                let weight = self.number()?;
                Record::Detail(self.event()?, weight)
            }
            _ => return None,
        };
        self.0.is_empty().then_some(record)
    }

    /// An event, which takes all that is left.
    fn event(&mut self) -> Option<EventBytes<'a>> {
        let event = EventBytes {
            key: self.owner()?,
            time: self.time()?,
            outcome: self.outcome()?,
            endpoint: self.text()?,
            method: self.text()?,
            client_address: self.text()?,
            user_agent: self.text()?,
            request_id: self.text()?,
            tags: self.0,
        };
        while !self.0.is_empty() {
            self.text()?;
            self.text()?;
        }
        Some(event)
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
