//! Spends credits: those of one key that come while a statement for it is under way are gathered into the next one.
//! Each gets the answer that it would get if all had come one by one, in order of arrival.
//! Invariant: `Charged` is answered only for what the database has confirmed. Whoever goes away while waiting is not
//! charged; once a statement has begun it runs to its end, and what it spends stays spent.
//! Must not count anything in memory: the row is the only truth, since other processes spend from it too.

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{
    domain::{ids::KeyId, time::Timestamp},
    store::{
        Store, StoreError,
        credits::{self, Balance, Spent},
        turns::{TurnError, Turns},
    },
};

/// Statements at once, on the connections (8 unless configured) that changes of keys have too.
const TURNS_MAX: usize = 4;

/// Gathers the spends of one process.
pub struct Spender {
    turns: Turns<KeyId, (i64, Timestamp), Spent>,
}

impl Spender {
    /// A spender whose statements run on `runtime`, wherever it is called from, and are waited for by whoever waits
    /// for `statements`.
    #[must_use]
    pub fn new(store: Store, runtime: Handle, statements: TaskTracker) -> Self {
        let own = store.clone();
        let settle = move |holder: KeyId, asked: Vec<(i64, Timestamp)>| {
            let store = own.clone();
            let turn = async move {
                let now = asked.iter().map(|(_, now)| *now).max().unwrap_or(Timestamp::LAST);
                let costs: Vec<i64> = asked.into_iter().map(|(cost, _)| cost).collect();
                settle(&store, holder, &costs, now).await
            };
            Box::pin(turn) as _
        };
        Self { turns: Turns::new(store, runtime, statements, TURNS_MAX, Box::new(settle)) }
    }

    /// Spends `cost` credits (0 to 1,000,000) of the key whose row holds them; 0 tells what remains, and is never
    /// `Charged`. Dropped before its statement begins, it spends nothing.
    ///
    /// # Errors
    /// See [`TurnError`]: what came of it is not known, or too many wait.
    pub async fn spend(&self, holder: KeyId, cost: i64, now: Timestamp) -> Result<Spent, TurnError> {
        self.turns.ask(holder, (cost, now)).await
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
pub(super) fn fitting(mut left: i64, costs: &[i64]) -> Vec<bool> {
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
