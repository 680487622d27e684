//! Shared rate limits without Redis: the counters stand in `rate_limit_tracking`, and each charge is a transaction
//! under a lock for its organization. Charges that come while one is under way are gathered into the next, in order of
//! arrival, so that an organization costs a few statements at a time, however many of its keys are used.
//! Invariant: several limits are charged all or none, by the database's own clock.

use std::collections::BTreeMap;

use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;

use super::redis::{Answered, Asked};
use super::shared::Unanswered;
use crate::{
    domain::{
        ids::{OrganizationId, RecordId},
        limits::{RateLimit, SlidingWindow, charge_all},
        time::Timestamp,
    },
    store::{
        Store, StoreError, commit,
        rate_limits::{self, TrackedWindow},
        turns::{TurnError, Turns},
    },
};

/// Turns at once, on the connections (8 unless configured) that look-ups have too, of which those take 4.
const TURNS_MAX: usize = 2;

/// Counters in the database.
pub struct TableCounters {
    store: Store,
    turns: Turns<OrganizationId, Vec<Wanted>, Answered>,
}

/// One limit that a charge asks for.
#[derive(Clone)]
struct Wanted {
    subject: u128,
    limit: RateLimit,
    carry: i64,
    carry_start_us: i64,
    cost: i64,
}

/// A limit's subject, name and window: what its rows have in common.
type Name = (u128, String, i64);

impl TableCounters {
    /// Counters that are charged by statements on `runtime`, which whoever waits for `statements` waits for.
    pub fn new(store: Store, runtime: Handle, statements: TaskTracker) -> Self {
        let own = store.clone();
        let settle = move |id: OrganizationId, charges: Vec<Vec<Wanted>>| {
            let store = own.clone();
            Box::pin(async move { settle(&store, id, &charges).await }) as _
        };
        Self { store: store.clone(), turns: Turns::new(store, runtime, statements, TURNS_MAX, Box::new(settle)) }
    }

    /// Charges `cost` to all these limits, or to none; 0 tells where they stand.
    ///
    /// # Errors
    /// Where the database did not answer in time; it may have been charged.
    pub async fn charge(&self, id: OrganizationId, asked: &[Asked<'_>], cost: i64) -> Result<Answered, Unanswered> {
        let wanted = |asked: &Asked<'_>| Wanted {
            subject: asked.subject,
            limit: asked.limit.clone(),
            carry: asked.carry,
            carry_start_us: asked.known.map_or(0, |known| known.start_us),
            cost,
        };
        let turn = self.turns.ask(id, asked.iter().map(wanted).collect());
        match timeout(self.store.charge_timeout(), turn).await {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(TurnError::Store(error))) => Err(self.unanswered(error.chain())),
            Ok(Err(TurnError::Overloaded | TurnError::Abandoned)) => Err(self.unanswered("too much waits")),
            Err(_) => Err(self.unanswered("no answer in time")),
        }
    }

    /// One organization may wait for a lock, or for its turn, without a word about the others: only where the feed has
    /// found the database away is it so for all.
    fn unanswered(&self, cause: impl Into<String>) -> Unanswered {
        Unanswered { cause: cause.into(), alone: !self.store.is_away() }
    }

    /// Whether the database is away, as far as the change feed knows.
    pub fn is_away(&self) -> bool {
        self.store.is_away()
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn probe(&self) -> Result<(), Unanswered> {
        self.store.check_there().map_err(|error| Unanswered::new(error.chain()))?;
        let asked = timeout(self.store.charge_timeout(), rate_limits::find_server_time(self.store.verify())).await;
        match asked {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Unanswered::new(error.chain())),
            Err(_) => Err(Unanswered::new("no answer in time")),
        }
    }
}

/// Charges one after the other what one turn asks for, in one transaction.
async fn settle(store: &Store, id: OrganizationId, charges: &[Vec<Wanted>]) -> Result<Vec<Answered>, StoreError> {
    let transaction = store.begin_charge().await?;
    let now = rate_limits::lock_of_organization(&transaction, id).await?;
    let subjects: Vec<String> =
        subjects(charges).iter().map(|subject| RecordId::from_u128(*subject).to_string()).collect();
    let rows = rate_limits::list_of_subjects(&transaction, &subjects, now).await?;
    let mut counters = Counters { now, rows, windows: BTreeMap::new() };
    let answers: Vec<Answered> = charges.iter().map(|charge| counters.charge(charge)).collect();
    let changed = counters.changed();
    if changed.is_empty() {
        drop(transaction);
    } else {
        rate_limits::upsert(&transaction, &changed).await?;
        commit(transaction).await?;
    }
    Ok(answers)
}

fn subjects(charges: &[Vec<Wanted>]) -> Vec<u128> {
    let mut subjects: Vec<u128> = charges.iter().flatten().map(|wanted| wanted.subject).collect();
    subjects.sort_unstable();
    subjects.dedup();
    subjects
}

/// The counters of one turn.
struct Counters {
    now: Timestamp,
    rows: Vec<TrackedWindow>,
    /// As they stand now, and whether that is to be written.
    windows: BTreeMap<Name, (SlidingWindow, bool)>,
}

impl Counters {
    fn charge(&mut self, charge: &[Wanted]) -> Answered {
        let limits: Vec<&RateLimit> = charge.iter().map(|wanted| &wanted.limit).collect();
        let mut windows: Vec<SlidingWindow> = charge.iter().map(|wanted| self.standing(wanted)).collect();
        let cost = charge.first().map_or(0, |wanted| wanted.cost);
        let denied = charge_all(&limits, &mut windows, self.now, cost);
        let charges = !denied && cost > 0;
        for (wanted, window) in charge.iter().zip(&windows) {
            let (_, was_changed) = self.windows.get(&name(wanted)).copied().unwrap_or((*window, false));
            self.windows.insert(name(wanted), (*window, was_changed || charges || wanted.carry > 0));
        }
        Answered { now: self.now, denied, windows }
    }

    /// Where a limit stands, with what its process charged alone.
    fn standing(&self, wanted: &Wanted) -> SlidingWindow {
        let stood = self.windows.get(&name(wanted)).map_or_else(|| self.stored(wanted), |(window, _)| *window);
        let window = stood.at(&wanted.limit, self.now);
        if window.start_us == wanted.carry_start_us {
            return window.charged(wanted.carry);
        }
        let was_before = window.start_us - wanted.limit.window_us() == wanted.carry_start_us;
        SlidingWindow { previous: window.previous + if was_before { wanted.carry } else { 0 }, ..window }
    }

    fn stored(&self, wanted: &Wanted) -> SlidingWindow {
        let (subject, length_us) = (RecordId::from_u128(wanted.subject).to_string(), wanted.limit.window_us());
        let of_limit = |row: &&TrackedWindow| {
            row.subject_id == subject
                && row.limit_name == wanted.limit.name
                && row.window_end_us - row.window_start_us == length_us
        };
        let of_limit: Vec<&TrackedWindow> = self.rows.iter().filter(of_limit).collect();
        let Some(latest) = of_limit.iter().max_by_key(|row| row.window_start_us) else {
            return SlidingWindow::empty(&wanted.limit, self.now);
        };
        let before = of_limit.iter().find(|row| row.window_start_us + length_us == latest.window_start_us);
        SlidingWindow {
            start_us: latest.window_start_us,
            current: latest.count,
            previous: before.map_or(0, |row| row.count),
        }
    }

    /// The rows to be written: of each changed limit the present window's, and the one before, where something of it
    /// was carried over.
    fn changed(&self) -> Vec<TrackedWindow> {
        let mut rows = Vec::new();
        for ((subject, limit_name, length_us), (window, changed)) in &self.windows {
            let row = |window_start_us, count| TrackedWindow {
                subject_id: RecordId::from_u128(*subject).to_string(),
                limit_name: limit_name.clone(),
                window_start_us,
                window_end_us: window_start_us + length_us,
                count,
            };
            if *changed {
                rows.push(row(window.start_us, window.current));
            }
            if *changed && window.previous > 0 {
                rows.push(row(window.start_us - length_us, window.previous));
            }
        }
        rows
    }
}

fn name(wanted: &Wanted) -> Name {
    (wanted.subject, wanted.limit.name.clone(), wanted.limit.window_us())
}
