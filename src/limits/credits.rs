//! Spends credits: those of one key that come while a statement for it is under way are gathered into the next one.
//! Each gets the answer that it would get if all had come one by one, in order of arrival.
//! Invariant: `Charged` is answered only for what the database has confirmed. Whoever goes away while waiting is not
//! charged; once a statement has begun it runs to its end, and what it spends stays spent.
//! Must not count anything in memory: the row is the only truth, since other processes spend from it too.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

use crate::{
    domain::{ids::KeyId, time::Timestamp},
    store::{
        Store, StoreError,
        credits::{self, Balance, Spent},
    },
};

/// How many spends of one process may wait for a statement.
const WAITING_MAX: usize = 10_000;
/// How many statements may be under way at once, each for another key. They share their connections (8 unless
/// configured) with changes of keys, a revocation among them, and must not take them all.
const STATEMENTS_MAX: usize = 4;

/// Why a spend was not answered. Only `Overloaded` says that nothing was charged.
#[derive(Debug, Clone)]
pub enum SpendError {
    /// Too many wait already.
    Overloaded,
    /// The statement failed; its error says whether it may have charged.
    Store(StoreError),
    /// The statement was given up, by a shutdown that took too long; it may have charged.
    Abandoned,
}

/// Gathers the spends of one process.
pub struct Spender {
    shared: Arc<Shared>,
    runtime: Handle,
    statements: TaskTracker,
}

struct Shared {
    store: Store,
    gathered: Mutex<Gathered>,
    permits: Semaphore,
}

#[derive(Default)]
struct Gathered {
    queues: HashMap<KeyId, Queue>,
    /// Over all queues.
    waiting: usize,
    /// Numbers the spends in order of arrival.
    arrivals: u64,
}

/// The spends of one key that wait, and the task that settles them, turn by turn.
#[derive(Default)]
struct Queue {
    waiting: BTreeMap<u64, Waiting>,
    turns: Option<JoinHandle<()>>,
}

struct Waiting {
    cost: i64,
    now: Timestamp,
    answer: oneshot::Sender<Result<Spent, SpendError>>,
}

impl Spender {
    /// A spender whose statements run on `runtime`, wherever it is called from, and are waited for by whoever waits
    /// for `statements`.
    #[must_use]
    pub fn new(store: Store, runtime: Handle, statements: TaskTracker) -> Self {
        let (gathered, permits) = (Mutex::default(), Semaphore::new(STATEMENTS_MAX));
        Self { shared: Arc::new(Shared { store, gathered, permits }), runtime, statements }
    }

    /// Spends `cost` credits (0 to 1,000,000) of the key whose row holds them; 0 tells what remains, and is never
    /// `Charged`. Dropped before its statement begins, it spends nothing.
    ///
    /// # Errors
    /// See [`SpendError`]: what came of it is not known, or too many wait.
    pub async fn spend(&self, holder: KeyId, cost: i64, now: Timestamp) -> Result<Spent, SpendError> {
        let (answer, answered) = oneshot::channel();
        let _place = self.join(holder, Waiting { cost, now, answer })?;
        answered.await.unwrap_or(Err(SpendError::Abandoned))
    }

    fn join(&self, holder: KeyId, waiting: Waiting) -> Result<Place<'_>, SpendError> {
        let mut gathered = self.shared.gathered();
        if gathered.waiting >= WAITING_MAX {
            return Err(SpendError::Overloaded);
        }
        gathered.waiting += 1;
        gathered.arrivals += 1;
        let arrival = gathered.arrivals;
        let queue = gathered.queues.entry(holder).or_default();
        queue.waiting.insert(arrival, waiting);
        // A task takes its queue away when it ends; one that ended and left it there has panicked.
        if queue.turns.as_ref().is_none_or(JoinHandle::is_finished) {
            let turns = self.shared.clone().take_turns(holder);
            queue.turns = Some(self.statements.spawn_on(turns, &self.runtime));
        }
        Ok(Place { shared: &self.shared, holder, arrival })
    }
}

/// A place in a queue, left when it is dropped.
struct Place<'a> {
    shared: &'a Shared,
    holder: KeyId,
    arrival: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut gathered = self.shared.gathered();
        let queue = gathered.queues.get_mut(&self.holder);
        if queue.is_some_and(|queue| queue.waiting.remove(&self.arrival).is_some()) {
            gathered.waiting -= 1;
        }
    }
}

impl Shared {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles all that waits for one key, and what has come meanwhile, until nothing waits.
    async fn take_turns(self: Arc<Self>, holder: KeyId) {
        // The semaphore is never closed.
        while let Ok(_permit) = self.permits.acquire().await {
            let turn = self.gathered().take(holder);
            let Some(now) = turn.iter().map(|waiting| waiting.now).max() else { return };
            let costs: Vec<i64> = turn.iter().map(|waiting| waiting.cost).collect();
            let answers = match settle(&self.store, holder, &costs, now).await {
                Ok(spent) => spent.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(SpendError::Store(error)); costs.len()],
            };
            for (waiting, answer) in turn.into_iter().zip(answers) {
                // Whoever hung up meanwhile has been charged, and is not told.
                let _ = waiting.answer.send(answer);
            }
        }
    }
}

impl Gathered {
    /// Takes all that waits for a key, in order of arrival. Where nothing does, the queue is gone.
    fn take(&mut self, holder: KeyId) -> Vec<Waiting> {
        let waiting = self.queues.get_mut(&holder).map(|queue| std::mem::take(&mut queue.waiting)).unwrap_or_default();
        if waiting.is_empty() {
            self.queues.remove(&holder);
        }
        self.waiting -= waiting.len();
        waiting.into_values().collect()
    }
}

/// Spends what fits of these costs in one statement that succeeds, and gives the answer to each. A statement is
/// refused where the balance is less than was hoped for, which charges nothing; it is tried again with what fits, and
/// refused again only where somebody else has spent in between.
async fn settle(store: &Store, holder: KeyId, costs: &[i64], now: Timestamp) -> Result<Vec<Spent>, StoreError> {
    let mut granted: Vec<bool> = costs.iter().map(|cost| *cost > 0).collect();
    loop {
        let sum = costs.iter().zip(&granted).filter(|(_, granted)| **granted).map(|(cost, _)| cost).sum();
        let spent = match sum {
            0 => Spent::Refused(credits::balance(store.verify(), holder, now).await?),
            sum => credits::spend(store.write(), holder, sum, now).await?,
        };
        match spent {
            Spent::Charged { remaining } => return Ok(answers(remaining + sum, costs, &granted)),
            Spent::Refused(Balance::Remaining(left)) => {
                granted = fitting(left, costs);
                if !granted.contains(&true) {
                    return Ok(answers(left, costs, &granted));
                }
            }
            Spent::Refused(balance @ (Balance::Moved { .. } | Balance::Unlimited | Balance::Gone)) => {
                return Ok(vec![Spent::Refused(balance); costs.len()]);
            }
        }
    }
}

/// Which of these costs, one by one in their order, are to be charged where so much is left.
fn fitting(mut left: i64, costs: &[i64]) -> Vec<bool> {
    let mut fits = |cost: &i64| {
        let fits = (1..=left).contains(cost);
        left -= if fits { *cost } else { 0 };
        fits
    };
    costs.iter().map(&mut fits).collect()
}

/// What each is told where so much was left before the first and these were charged.
fn answers(mut left: i64, costs: &[i64], granted: &[bool]) -> Vec<Spent> {
    let mut answer = |(cost, granted): (&i64, &bool)| {
        if *granted {
            left -= cost;
            return Spent::Charged { remaining: left };
        }
        Spent::Refused(Balance::Remaining(left))
    };
    costs.iter().zip(granted).map(&mut answer).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One by one, as a slow and obviously right spender would.
    fn one_by_one(mut left: i64, costs: &[i64]) -> Vec<Spent> {
        let mut answers = Vec::new();
        for cost in costs {
            if *cost > 0 && *cost <= left {
                left -= cost;
                answers.push(Spent::Charged { remaining: left });
            } else {
                answers.push(Spent::Refused(Balance::Remaining(left)));
            }
        }
        answers
    }

    proptest! {
        #[test]
        fn a_turn_answers_as_if_each_had_come_by_itself(
            left in 0_i64..50,
            costs in prop::collection::vec(0_i64..20, 1..30),
        ) {
            let granted = fitting(left, &costs);
            let sum: i64 = costs.iter().zip(&granted).filter(|(_, granted)| **granted).map(|(cost, _)| cost).sum();
            prop_assert!(sum <= left);
            prop_assert_eq!(answers(left, &costs, &granted), one_by_one(left, &costs));
        }
    }

    #[test]
    fn a_cost_that_does_not_fit_does_not_keep_a_smaller_one_from_fitting() {
        let granted = fitting(5, &[3, 4, 0, 2, 1]);
        assert_eq!(granted, [true, false, false, true, false]);
        let left = |remaining| Spent::Refused(Balance::Remaining(remaining));
        let charged = |remaining| Spent::Charged { remaining };
        assert_eq!(answers(5, &[3, 4, 0, 2, 1], &granted), [charged(2), left(2), left(2), charged(0), left(0)]);
    }
}
