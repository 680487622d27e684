//! The judgement of `keystead audit verify`: is this chain of events whole?
//!
//! Pure: it is fed events newest first and says what is wrong with them; it asks nobody and prints nothing. The
//! hash itself is `domain::audit`'s. Invariant: a chain is intact only if every event from the newest down to 1 is
//! there once, hashes to what it says, and names the hash of the one before it.

use std::fmt;

use crate::domain::audit::{AuditRecord, GENESIS_HASH, decode_hash, encode_hash, event_hash};

/// Faults that are told one by one; more are only counted.
const FAULTS_MAX: usize = 1000;

/// Faulty events that are tried at other places, to tell whether they were moved; each try is a hash.
const SUSPECTS_MAX: usize = 100;

/// An event as it was read, with the two hashes as text.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) record: AuditRecord,
    pub(super) previous_hash: String,
    pub(super) hash: String,
}

/// The newest event of a chain: what to keep elsewhere, since a chain cannot tell that its end was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    sequence: i64,
    hash: String,
}

impl Head {
    /// Reads `SEQUENCE:HASH`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "not SEQUENCE:HASH as `audit verify` prints it".to_owned();
        let (sequence, hash) = text.split_once(':').ok_or_else(wrong)?;
        let sequence = sequence.parse().map_err(|_| wrong())?;
        let hash = decode_hash(hash).ok_or_else(wrong)?;
        if sequence < 1 { Err(wrong()) } else { Ok(Self { sequence, hash: encode_hash(&hash) }) }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.sequence, self.hash)
    }
}

/// What is wrong at one place of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// Its content or its hash is not what was sealed.
    Changed,
    /// It and those up to this sequence are not there.
    Removed { last: i64 },
    /// It was sealed at another place.
    Reordered { sealed_at: Option<i64> },
    /// The chain ends before the head that is known.
    TailCut { newest: i64 },
    /// The event of the known head is there and has another hash.
    HeadDiffers,
}

impl FaultKind {
    /// One word for programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Removed { .. } => "removed",
            Self::Reordered { .. } => "reordered",
            Self::TailCut { .. } => "tail_cut",
            Self::HeadDiffers => "head_differs",
        }
    }
}

/// A fault and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) sequence: i64,
    pub(super) kind: FaultKind,
}

impl Fault {
    /// One sentence for people.
    pub(super) fn explanation(&self) -> String {
        match self.kind {
            FaultKind::Changed => "this event is not the one that was sealed here".to_owned(),
            FaultKind::Removed { last } if last == self.sequence => "this event is missing".to_owned(),
            FaultKind::Removed { last } => format!("events {} to {last} are missing", self.sequence),
            FaultKind::Reordered { sealed_at: Some(place) } => format!("this event was sealed as {place}"),
            FaultKind::Reordered { sealed_at: None } => "this event is not in order".to_owned(),
            FaultKind::TailCut { newest } => {
                format!("the tail was cut: the newest event is {newest}, the known head is {}", self.sequence)
            }
            FaultKind::HeadDiffers => "this event has another hash than the known head".to_owned(),
        }
    }
}

/// The result of a check.
#[derive(Debug)]
pub(super) struct Report {
    /// Sealed events seen.
    pub(super) events: u64,
    /// The newest event, if there is one.
    pub(super) head: Option<Head>,
    /// The faults, oldest place first; at most `FAULTS_MAX`.
    pub(super) faults: Vec<Fault>,
    /// How many faults there are in all.
    pub(super) fault_count: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub(super) fn is_intact(&self) -> bool {
        self.fault_count == 0
    }
}

/// What is remembered of the event above the one that is looked at.
struct Above {
    sequence: i64,
    /// The hash that this one must have; `None` where the event above is not to be trusted about it.
    previous_hash: Option<String>,
}

/// A check under way.
pub(super) struct Chain {
    known: Option<Head>,
    newest: Option<Head>,
    above: Option<Above>,
    events: u64,
    faults: Vec<Fault>,
    fault_count: u64,
    /// Events whose content does not hash to what they say: perhaps moved, which `finish` finds out.
    suspects: Vec<Link>,
}

impl Chain {
    /// Starts a check, against the head of an earlier one if there is one.
    pub(super) fn new(known: Option<Head>) -> Self {
        Self { known, newest: None, above: None, events: 0, faults: Vec::new(), fault_count: 0, suspects: Vec::new() }
    }

    /// Takes the next event, which must be the one just before the last one taken.
    pub(super) fn push(&mut self, link: Link) {
        // An event that is not sealed yet has no place. One that was unsealed by hand leaves a gap.
        if link.record.sequence == 0 && link.hash.is_empty() {
            return;
        }
        self.events += 1;
        let sequence = link.record.sequence;
        self.newest.get_or_insert_with(|| Head { sequence, hash: link.hash.clone() });
        if self.known.as_ref().is_some_and(|head| head.sequence == sequence && head.hash != link.hash) {
            self.fault(sequence, FaultKind::HeadDiffers);
        }
        let adjacent = self.check_place(sequence);
        let demanded = self.above.as_mut().filter(|_| adjacent).and_then(|above| above.previous_hash.take());
        let broken_above = demanded.is_some_and(|hash| hash != link.hash);
        let genesis_wrong = sequence == 1 && link.previous_hash != encode_hash(&GENESIS_HASH);
        let own_hash_wrong = !seals(&link, sequence);
        let previous_hash = (!own_hash_wrong).then(|| link.previous_hash.clone());
        if own_hash_wrong && self.suspects.len() < SUSPECTS_MAX {
            self.suspects.push(link);
        } else if own_hash_wrong || broken_above || genesis_wrong {
            self.fault(sequence, FaultKind::Changed);
        }
        self.above = Some(Above { sequence, previous_hash });
    }

    /// Whether the event stands right below the last one; notes what is missing between the two.
    fn check_place(&mut self, sequence: i64) -> bool {
        let Some(above) = self.above.as_ref().map(|above| above.sequence) else {
            return false;
        };
        let expected = above.saturating_sub(1);
        if sequence > expected || sequence < 1 {
            self.fault(sequence, FaultKind::Reordered { sealed_at: None });
        } else if sequence < expected {
            self.fault(sequence.saturating_add(1), FaultKind::Removed { last: expected });
        }
        sequence == expected
    }

    fn fault(&mut self, sequence: i64, kind: FaultKind) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault { sequence, kind });
        }
    }

    /// Ends the check after the oldest event.
    pub(super) fn finish(mut self) -> Report {
        if let Some(above) = self.above.as_ref().map(|above| above.sequence)
            && above > 1
        {
            self.fault(1, FaultKind::Removed { last: above - 1 });
        }
        let newest = self.newest.as_ref().map_or(0, |head| head.sequence);
        if let Some(known) = self.known.as_ref().map(|head| head.sequence)
            && newest < known
        {
            self.fault(known, FaultKind::TailCut { newest });
        }
        self.judge_suspects();
        self.faults.sort_by_key(|fault| fault.sequence);
        Report { events: self.events, head: self.newest, faults: self.faults, fault_count: self.fault_count }
    }

    /// An event that does not fit its place, but does fit that of another suspect or a gap, was moved from there.
    fn judge_suspects(&mut self) {
        let gaps = self.faults.iter().filter_map(|fault| match fault.kind {
            FaultKind::Removed { last } => Some(fault.sequence..=last),
            FaultKind::Changed | FaultKind::Reordered { .. } | FaultKind::TailCut { .. } | FaultKind::HeadDiffers => {
                None
            }
        });
        let gaps = gaps.flatten().take(SUSPECTS_MAX);
        let places: Vec<i64> = self.suspects.iter().map(|suspect| suspect.record.sequence).chain(gaps).collect();
        for suspect in std::mem::take(&mut self.suspects) {
            let sealed_at = places.iter().copied().find(|place| seals(&suspect, *place));
            let kind = match sealed_at {
                Some(_) => FaultKind::Reordered { sealed_at },
                None => FaultKind::Changed,
            };
            self.fault(suspect.record.sequence, kind);
        }
    }
}

/// Whether the event, sealed at `sequence`, has the hash that it says.
fn seals(link: &Link, sequence: i64) -> bool {
    let Some(previous) = decode_hash(&link.previous_hash) else {
        return false;
    };
    let record = AuditRecord { sequence, ..link.record.clone() };
    encode_hash(&previous) == link.previous_hash && encode_hash(&event_hash(&previous, &record)) == link.hash
}

#[cfg(test)]
mod tests;
