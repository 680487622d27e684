//! Turns: what is asked of one row, or of one group of rows, while a statement for it is under way is gathered, and
//! settled together by the next one, in order of arrival. Concurrent spends of one key then cost one statement.
//! Invariant: whoever goes away while waiting is not settled; once a turn has begun it runs to its end, or for 10 s, in a
//! task that a shutdown waits for. Whoever asks is answered by a turn that began later. Must not know what is asked.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{Store, StoreError};

/// How many questions of one kind may wait for a turn.
const WAITING_MAX: usize = 10_000;

/// The longest that a turn may take.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a question was not answered. Only `Overloaded` says that nothing was written.
#[derive(Debug, Clone)]
pub enum TurnError {
    /// Too many wait already.
    Overloaded,
    /// The statement failed; its error says whether it may have written.
    Store(StoreError),
    /// The turn was given up, by a shutdown that took too long; it may have written.
    Abandoned,
}

/// Settles all questions of one turn, and answers each, in their order.
pub type Settle<K, Q, A> = dyn Fn(K, Vec<Q>) -> BoxFuture<'static, Result<Vec<A>, StoreError>> + Send + Sync;

/// Gathers questions `Q` about rows `K`, whose answers are `A`.
pub struct Turns<K, Q, A> {
    shared: Arc<Shared<K, Q, A>>,
    runtime: Handle,
    tasks: TaskTracker,
}

struct Shared<K, Q, A> {
    store: Store,
    settle: Box<Settle<K, Q, A>>,
    gathered: Mutex<Gathered<K, Q, A>>,
    permits: Semaphore,
}

struct Gathered<K, Q, A> {
    queues: HashMap<K, Queue<Q, A>>,
    /// Over all queues.
    waiting: usize,
    /// Numbers the questions in order of arrival.
    arrivals: u64,
}

/// The questions about one row that wait, and the task that settles them, turn by turn.
struct Queue<Q, A> {
    waiting: BTreeMap<u64, Waiting<Q, A>>,
    turns: Option<JoinHandle<()>>,
}

struct Waiting<Q, A> {
    question: Q,
    answer: oneshot::Sender<Result<A, TurnError>>,
}

impl<K, Q, A> Turns<K, Q, A>
where
    K: Hash + Eq + Copy + Send + 'static,
    Q: Send + 'static,
    A: Send + 'static,
{
    /// Turns that run on `runtime`, wherever a question comes from, and are waited for by whoever waits for `tasks`; at
    /// most `at_once` of them, each about another row: they share their connections with look-ups or with changes of
    /// keys, a revocation among them, and must not take them all.
    pub fn new(
        store: Store,
        runtime: Handle,
        tasks: TaskTracker,
        at_once: usize,
        settle: Box<Settle<K, Q, A>>,
    ) -> Self {
        let gathered = Mutex::new(Gathered { queues: HashMap::new(), waiting: 0, arrivals: 0 });
        let shared = Arc::new(Shared { store, settle, gathered, permits: Semaphore::new(at_once) });
        Self { shared, runtime, tasks }
    }

    /// Asks, and waits for the answer. Dropped before its turn begins, it was never asked.
    ///
    /// # Errors
    /// See [`TurnError`]; at once where the database is away.
    pub async fn ask(&self, about: K, question: Q) -> Result<A, TurnError> {
        self.shared.store.check_there().map_err(TurnError::Store)?;
        let (answer, answered) = oneshot::channel();
        let _place = self.join(about, Waiting { question, answer })?;
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or(Err(TurnError::Abandoned)),
            () = self.shared.store.gone() => Err(TurnError::Store(StoreError::away().of_commit())),
        }
    }

    fn join(&self, about: K, waiting: Waiting<Q, A>) -> Result<Place<'_, K, Q, A>, TurnError> {
        let mut gathered = self.shared.gathered();
        if gathered.waiting >= WAITING_MAX {
            return Err(TurnError::Overloaded);
        }
        gathered.waiting += 1;
        gathered.arrivals += 1;
        let arrival = gathered.arrivals;
        let queue = gathered.queues.entry(about).or_insert_with(|| Queue { waiting: BTreeMap::new(), turns: None });
        queue.waiting.insert(arrival, waiting);
        // A task takes its queue away when it ends; one that ended and left it there has panicked.
        if queue.turns.as_ref().is_none_or(JoinHandle::is_finished) {
            let turns = self.shared.clone().take_turns(about);
            queue.turns = Some(self.tasks.spawn_on(turns, &self.runtime));
        }
        Ok(Place { shared: &self.shared, about, arrival })
    }
}

/// A place in a queue, left when it is dropped.
struct Place<'a, K: Hash + Eq, Q, A> {
    shared: &'a Shared<K, Q, A>,
    about: K,
    arrival: u64,
}

impl<K: Hash + Eq, Q, A> Drop for Place<'_, K, Q, A> {
    fn drop(&mut self) {
        let mut gathered = self.shared.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = gathered.queues.get_mut(&self.about);
        if queue.is_some_and(|queue| queue.waiting.remove(&self.arrival).is_some()) {
            gathered.waiting -= 1;
        }
    }
}

impl<K: Hash + Eq + Copy, Q, A> Shared<K, Q, A> {
    fn gathered(&self) -> MutexGuard<'_, Gathered<K, Q, A>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles all that waits about one row, and what has come meanwhile, until nothing waits.
    async fn take_turns(self: Arc<Self>, about: K) {
        // The semaphore is never closed.
        while let Ok(_permit) = self.permits.acquire().await {
            let turn = self.gathered().take(&about);
            if turn.is_empty() {
                return;
            }
            let (questions, askers): (Vec<Q>, Vec<_>) =
                turn.into_iter().map(|waiting| (waiting.question, waiting.answer)).unzip();
            // A turn that hangs, on a connection whose other end is gone, would keep its row from everybody.
            let settled = timeout(TURN_TIMEOUT, (self.settle)(about, questions)).await;
            let answers = match settled.unwrap_or_else(|_| Err(StoreError::timed_out().of_commit())) {
                Ok(answers) => answers.into_iter().map(Ok).collect(),
                Err(error) => {
                    vec![error; askers.len()].into_iter().map(|error| Err(TurnError::Store(error))).collect::<Vec<_>>()
                }
            };
            for (asker, answer) in askers.into_iter().zip(answers) {
                // Whoever hung up meanwhile has been settled, and is not told.
                let _ = asker.send(answer);
            }
        }
    }
}

impl<K: Hash + Eq, Q, A> Gathered<K, Q, A> {
    /// Takes all that waits about a row, in order of arrival. Where nothing does, the queue is gone.
    fn take(&mut self, about: &K) -> Vec<Waiting<Q, A>> {
        let waiting = self.queues.get_mut(about).map(|queue| std::mem::take(&mut queue.waiting)).unwrap_or_default();
        if waiting.is_empty() {
            self.queues.remove(about);
        }
        self.waiting -= waiting.len();
        waiting.into_values().collect()
    }
}
