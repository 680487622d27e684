//! What the clients of several replicas were told about keys, with the moments of each call on one clock, and the
//! checker of it, which is pure, so that it can be fed histories made by hand. Knows neither servers nor faults.
//! Once a revocation is acknowledged, no verification that begins later is VALID on the replica that acknowledged it,
//! none that begins later than the staleness bound after it is VALID anywhere, unless the key was reactivated; and a
//! key that was created is never `NOT_FOUND`. `by_hand` shows that the checker sees each of these, and nothing else.
//! Invariant that the clients keep: the changes of one key are made one after another.

mod by_hand;

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use keystead::proto::v1::Outcome;
use tonic::Code;

/// How many replicas there are.
pub const REPLICAS: usize = 3;

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Replica(usize),
    /// The database itself, as an operator's shell does.
    Sql,
}

/// What the answer was. The first three are acknowledged changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Created,
    Revoked,
    Reactivated,
    /// A change that may have happened or not.
    ChangeFailed(Code),
    Verified(Outcome),
    VerifyFailed(Code),
}

/// A call under way.
pub struct Call {
    key: usize,
    via: Via,
    begun: Instant,
}

/// A call and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub key: usize,
    pub via: Via,
    pub what: What,
    /// Taken before the request was sent.
    pub begun: Instant,
    /// Taken after the answer had come.
    pub ended: Instant,
}

impl Call {
    /// Call this before anything is sent.
    pub fn begin(key: usize, via: Via) -> Self {
        Self { key, via, begun: Instant::now() }
    }

    /// Call this as soon as the answer is there.
    pub fn end(self, what: What) -> Event {
        Event { key: self.key, via: self.via, what, begun: self.begun, ended: Instant::now() }
    }
}

/// How many answers of each kind a replica gave to verifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub valid: usize,
    pub revoked: usize,
    /// Denials for any other reason; there is none for one in these tests.
    pub otherwise_denied: usize,
    pub errors: usize,
}

/// How much happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub created: usize,
    pub revoked: usize,
    pub reactivated: usize,
    pub changes_failed: usize,
    pub replicas: [Told; REPLICAS],
}

impl Counts {
    fn add(&mut self, event: &Event) {
        match event.what {
            What::Created => self.created += 1,
            What::Revoked => self.revoked += 1,
            What::Reactivated => self.reactivated += 1,
            What::ChangeFailed(_) => self.changes_failed += 1,
            What::Verified(Outcome::Valid) => self.told(event.via).valid += 1,
            What::Verified(Outcome::Revoked) => self.told(event.via).revoked += 1,
            What::Verified(_) => self.told(event.via).otherwise_denied += 1,
            What::VerifyFailed(_) => self.told(event.via).errors += 1,
        }
    }

    fn told(&mut self, via: Via) -> &mut Told {
        match via {
            Via::Replica(replica) => &mut self.replicas[replica],
            Via::Sql => panic!("SQL verifies nothing"),
        }
    }

    /// What has been added since these were `before`.
    pub fn since(&self, before: &Self) -> Self {
        let replicas = std::array::from_fn(|replica| {
            let (now, then) = (&self.replicas[replica], &before.replicas[replica]);
            Told {
                valid: now.valid - then.valid,
                revoked: now.revoked - then.revoked,
                otherwise_denied: now.otherwise_denied - then.otherwise_denied,
                errors: now.errors - then.errors,
            }
        });
        Self {
            created: self.created - before.created,
            revoked: self.revoked - before.revoked,
            reactivated: self.reactivated - before.reactivated,
            changes_failed: self.changes_failed - before.changes_failed,
            replicas,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { created, revoked, reactivated, changes_failed, replicas } = self;
        write!(f, "{created} created, {revoked} revoked, {reactivated} reactivated, {changes_failed} changes failed")?;
        for (replica, Told { valid, revoked, otherwise_denied, errors }) in replicas.iter().enumerate() {
            write!(f, "; replica {replica}: {valid} VALID, {revoked} REVOKED, ")?;
            write!(f, "{otherwise_denied} denied otherwise, {errors} errors")?;
        }
        Ok(())
    }
}

/// Which part of the promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// VALID after the acknowledgement, on the replica that gave it.
    SameReplica,
    /// VALID later than the bound after the acknowledgement.
    Bound,
    /// `NOT_FOUND` after the creation was acknowledged.
    Existence,
}

/// An answer that must not be.
#[derive(Clone, Copy, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub verified: Event,
    /// The change that the answer contradicts.
    pub change: Event,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, verified, change } = self;
        let (began, took) = (verified.begun - change.ended, verified.ended - verified.begun);
        write!(f, "{rule:?}: key {}, {:?} by {:?}, ", verified.key, verified.what, verified.via)?;
        write!(f, "asked {began:?} after {:?} was acknowledged by {:?}, ", change.what, change.via)?;
        write!(f, "answered {took:?} later")
    }
}

/// The changes of one key that were acknowledged.
#[derive(Default)]
struct Changes {
    created: Option<Event>,
    revoked: Vec<Event>,
    reactivated: Vec<Event>,
}

impl Changes {
    fn violation(&self, verified: &Event, bound: Duration) -> Option<Violation> {
        match verified.what {
            What::Verified(Outcome::NotFound) => {
                let change = self.created.filter(|created| verified.begun > created.ended)?;
                Some(Violation { rule: Rule::Existence, verified: *verified, change })
            }
            What::Verified(Outcome::Valid) => self.revoked.iter().find_map(|revoked| {
                let rule = self.broken(revoked, verified, bound)?;
                Some(Violation { rule, verified: *verified, change: *revoked })
            }),
            What::Verified(_)
            | What::VerifyFailed(_)
            | What::ChangeFailed(_)
            | What::Created
            | What::Revoked
            | What::Reactivated => None,
        }
    }

    /// The rule that a VALID breaks in view of one revocation.
    fn broken(&self, revoked: &Event, verified: &Event, bound: Duration) -> Option<Rule> {
        let late = verified.begun.checked_duration_since(revoked.ended).filter(|late| !late.is_zero())?;
        // One that may have taken effect after the revocation, and before the answer.
        let excuses = |reactivated: &Event| reactivated.ended > revoked.begun && reactivated.begun < verified.ended;
        if self.reactivated.iter().any(excuses) {
            return None;
        }
        if revoked.via == verified.via {
            return Some(Rule::SameReplica);
        }
        (late > bound).then_some(Rule::Bound)
    }
}

/// All answers.
#[derive(Default)]
pub struct History {
    events: Vec<Event>,
    counts: Counts,
}

impl History {
    /// Writes an answer down.
    pub fn add(&mut self, event: Event) {
        self.counts.add(&event);
        self.events.push(event);
    }

    /// How much has happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How often each error was answered.
    pub fn errors(&self) -> HashMap<Code, usize> {
        let mut errors = HashMap::new();
        for event in &self.events {
            if let What::ChangeFailed(code) | What::VerifyFailed(code) = event.what {
                *errors.entry(code).or_default() += 1;
            }
        }
        errors
    }

    /// Every answer that contradicts an acknowledged change, where `bound` is how long a revocation may take to reach
    /// the replicas that it was not made on.
    pub fn violations(&self, bound: Duration) -> Vec<Violation> {
        let mut changes: HashMap<usize, Changes> = HashMap::new();
        for event in &self.events {
            let of_key = changes.entry(event.key).or_default();
            match event.what {
                What::Created => of_key.created = Some(*event),
                What::Revoked => of_key.revoked.push(*event),
                What::Reactivated => of_key.reactivated.push(*event),
                What::ChangeFailed(_) | What::Verified(_) | What::VerifyFailed(_) => {}
            }
        }
        self.events.iter().filter_map(|event| changes.get(&event.key)?.violation(event, bound)).collect()
    }
}
