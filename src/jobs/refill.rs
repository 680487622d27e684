//! The job `refill`: writes the refills of credits that have fallen due, so that reads and SQL show them and no row is
//! left behind. A spend counts a due refill in by itself and needs no job; the two agree, since both are the same
//! guarded expression. Harmless if two processes run it at once, and while spends run.

use crate::{
    domain::time::Timestamp,
    store::{Store, StoreError, commit, refills},
};

/// Keys per transaction: a spend waits for one at most.
const CHUNK: u64 = 200;

/// Makes every refill that is due at `now`; gives how many keys were refilled.
///
/// # Errors
/// The store's own; what was committed before stays.
pub async fn run(store: &Store, now: Timestamp) -> Result<u64, StoreError> {
    let mut refilled = 0;
    loop {
        let ids = refills::list_due(store.control(), now, CHUNK).await?;
        if ids.is_empty() {
            return Ok(refilled);
        }
        let transaction = store.begin().await?;
        refilled += refills::update_due(&transaction, &ids, now).await?;
        commit(transaction).await?;
    }
}
