//! Monthly quotas of organizations, never overspent by any number of processes. The database is the authority: a
//! process takes a block of what is left, by one guarded statement, and uses it up in memory. A block is what the
//! organization used in a tenth of a second lately, and never more than a small part of what is left: the less is
//! left, the more exactly each unit is asked for. Source of the technique: P. O'Neil, "The Escrow Transactional
//! Method", ACM TODS 11(4), 1986.
//! Invariant: nothing is granted that the database has not confirmed; where it cannot be asked the answer is an error.
//! A `kill -9` loses the rest of a block, on the safe side; a block that is not used any more is given back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::credits::fitting;
use crate::{
    clock::Uptime,
    domain::{ids::OrganizationId, organization::Organization, time::Timestamp},
    store::{
        Store, StoreError, quotas,
        turns::{TurnError, Turns},
    },
};

/// For how long a block should last.
const BLOCK_TIME: Duration = Duration::from_millis(100);
/// A block is at most this part of what is left of the quota.
const PART: i64 = 64;
/// For how long it holds that the database had no more to give: others may give some back.
const REFUSED_FOR: Duration = Duration::from_millis(200);
/// After so long without a use a block is given back.
const IDLE: Duration = Duration::from_secs(1);

/// Turns at once, on the connections (8 unless configured) that look-ups have too, of which those take 4.
const TURNS_MAX: usize = 2;

/// The quotas of one process.
pub struct Quotas {
    store: Store,
    blocks: Arc<Blocks>,
    turns: Turns<OrganizationId, Need, bool>,
}

/// What is asked of a quota: `cost` units, or with 0 whether one is left.
#[derive(Clone, Copy)]
struct Need {
    quota: i64,
    cost: i64,
    now: Timestamp,
}

#[derive(Default)]
struct Blocks(Mutex<HashMap<OrganizationId, Block>>);

/// What one process has taken of a month's quota and not used yet.
#[derive(Clone, Copy)]
struct Block {
    /// The month's start.
    month: Timestamp,
    /// What the quota was; of another one nothing is held.
    quota: i64,
    rest: i64,
    /// What the database had no more to give of, and when that was.
    refused: Option<(i64, Uptime)>,
    /// Since when `used` is counted.
    since: Uptime,
    used: i64,
    /// When it was used last.
    used_at: Uptime,
}

impl Block {
    const fn new(month: Timestamp, quota: i64, now: Uptime) -> Self {
        Self { month, quota, rest: 0, refused: None, since: now, used: 0, used_at: now }
    }

    fn is_of(&self, month: Timestamp, quota: i64) -> bool {
        (self.month, self.quota) == (month, quota)
    }

    /// How much was used lately in the time for which a block should last.
    fn lately(&self, now: Uptime) -> i64 {
        let elapsed_us = i128::try_from(now.since(self.since).as_micros()).unwrap_or(i128::MAX).max(1);
        let block_us = i128::try_from(BLOCK_TIME.as_micros()).unwrap_or(i128::MAX);
        i64::try_from(i128::from(self.used) * block_us / elapsed_us).unwrap_or(i64::MAX).max(0)
    }
}

impl Quotas {
    /// Quotas that are asked for on `runtime`, by statements that whoever waits for `statements` waits for.
    #[must_use]
    pub fn new(store: Store, runtime: Handle, statements: TaskTracker) -> Self {
        let blocks = Arc::<Blocks>::default();
        let (own, shared) = (store.clone(), blocks.clone());
        let settle = move |id: OrganizationId, needs: Vec<Need>| {
            let (store, blocks) = (own.clone(), shared.clone());
            Box::pin(async move { blocks.settle(&store, id, &needs).await }) as _
        };
        Self {
            store: store.clone(),
            blocks,
            turns: Turns::new(store, runtime, statements, TURNS_MAX, Box::new(settle)),
        }
    }

    /// Takes `cost` units of the organization's quota for the month of `now`, or says that so much is not left; with a
    /// cost of 0 only says whether one is. Without a quota there is always enough.
    ///
    /// # Errors
    /// Where the database cannot be asked: whether it would be enough is not known then.
    pub async fn take(&self, organization: &Organization, cost: i64, now: Timestamp) -> Result<bool, TurnError> {
        let quota = organization.monthly_quota;
        if quota <= 0 {
            return Ok(true);
        }
        self.store.check_there().map_err(TurnError::Store)?;
        let need = Need { quota, cost, now };
        match self.blocks.take(organization.id, need) {
            Some(enough) => Ok(enough),
            None => self.turns.ask(organization.id, need).await,
        }
    }

    /// Puts back what was taken for a verification that was denied after all.
    pub fn put_back(&self, organization: &Organization, cost: i64, now: Timestamp) {
        if organization.monthly_quota > 0 && cost > 0 {
            let mut blocks = self.blocks.lock();
            let (month, quota) = (now.start_of_month(), organization.monthly_quota);
            let block = blocks.entry(organization.id).or_insert_with(|| Block::new(month, quota, Uptime::now()));
            if block.is_of(month, quota) {
                block.rest += cost;
                block.used -= cost;
            }
        }
    }

    /// Gives back what has not been used lately, or with `all` whatever is held.
    ///
    /// # Errors
    /// The store's own; what may have been given back is not used any more.
    pub async fn give_back(&self, store: &Store, all: bool) -> Result<u64, StoreError> {
        let mut given = 0;
        // One at a time: where the database fails, all others are still held.
        while let Some((id, block)) = self.blocks.take_idle(all) {
            let mut held = Held { blocks: &self.blocks, id, block };
            store.check_there()?;
            let rest = held.block.rest;
            // Whether a statement that fails has given it back, nobody knows; it is not used any more.
            held.block = Block::new(block.month, block.quota, Uptime::now());
            quotas::give_back(store.charge(), id, block.month, rest).await?;
            given += 1;
        }
        Ok(given)
    }

    /// Drops all that is held: the database does not know of it any more.
    pub fn forget(&self) {
        self.blocks.lock().clear();
    }
}

impl Blocks {
    fn lock(&self) -> MutexGuard<'_, HashMap<OrganizationId, Block>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the block up, as far as it reaches for this; says no where the database has just said so. `None` where it
    /// has to be asked.
    fn take(&self, id: OrganizationId, need: Need) -> Option<bool> {
        let (mut blocks, now) = (self.lock(), Uptime::now());
        let block = blocks.get_mut(&id).filter(|block| block.is_of(need.now.start_of_month(), need.quota))?;
        if block.rest >= need.cost.max(1) {
            block.rest -= need.cost;
            block.used += need.cost;
            block.used_at = now;
            return Some(true);
        }
        let (short, at) = block.refused?;
        (need.cost.max(1) - block.rest >= short && now.since(at) < REFUSED_FOR).then_some(false)
    }

    /// Takes out one that is to be given back.
    fn take_idle(&self, all: bool) -> Option<(OrganizationId, Block)> {
        let (mut blocks, now) = (self.lock(), Uptime::now());
        let is_idle = |block: &Block| all || now.since(block.used_at) >= IDLE;
        blocks.retain(|_, block| block.rest > 0 || !is_idle(block));
        let idle = blocks.iter().find(|(_, block)| is_idle(block)).map(|(id, _)| *id)?;
        blocks.remove_entry(&idle)
    }

    /// Answers the needs of one turn: from the block first, and for the rest from the database.
    async fn settle(&self, store: &Store, id: OrganizationId, needs: &[Need]) -> Result<Vec<bool>, StoreError> {
        let Some(last) = needs.iter().max_by_key(|need| need.now) else { return Ok(Vec::new()) };
        let (quota, month, now) = (last.quota, last.now.start_of_month(), Uptime::now());
        let costs: Vec<i64> = needs.iter().map(|need| need.cost).collect();
        // Out of the map while the database is asked: what is used of it meanwhile is nobody else's.
        let stood = self.lock().remove(&id);
        if let Some(other) = stood.filter(|block| block.month == month && block.quota != quota && block.rest > 0) {
            quotas::give_back(store.charge(), id, month, other.rest).await?;
        }
        let stood = stood.filter(|block| block.is_of(month, quota));
        let mut held = Held { blocks: self, id, block: stood.unwrap_or_else(|| Block::new(month, quota, now)) };
        let block = &mut held.block;
        let wanted: i64 = costs.iter().sum();
        let mut granted: Vec<bool> = costs.iter().map(|cost| *cost > 0).collect();
        if wanted > block.rest {
            let (short, lately) = (wanted - block.rest, block.lately(now));
            let ahead = if lately == 0 {
                0
            } else {
                let left = quota - quotas::find_taken(store.verify(), id, month).await? - short;
                lately.min(left / PART).max(0)
            };
            let refilled =
                block.refill(store, id, short + ahead).await? || (ahead > 0 && block.refill(store, id, short).await?);
            block.refused = None;
            if !refilled {
                granted = block.refill_what_fits(store, id, &costs).await?;
                let refused = costs.iter().zip(&granted).filter(|(cost, granted)| **cost > 0 && !**granted);
                block.refused = refused.map(|(cost, _)| *cost).min().map(|cost| (cost, Uptime::now()));
            }
        }
        let used: i64 = costs.iter().zip(&granted).filter(|(_, granted)| **granted).map(|(cost, _)| cost).sum();
        if used > 0 {
            block.rest -= used;
            (block.since, block.used, block.used_at) = (now, used, now);
        }
        if !costs.contains(&0) {
            return Ok(granted);
        }
        let left = block.rest > 0 || quotas::find_taken(store.verify(), id, month).await? < quota;
        Ok(costs.iter().zip(granted).map(|(cost, granted)| if *cost == 0 { left } else { granted }).collect())
    }
}

impl Block {
    /// Takes `amount` more, if so much is left.
    async fn refill(&mut self, store: &Store, id: OrganizationId, amount: i64) -> Result<bool, StoreError> {
        let taken = quotas::take(store.charge(), id, self.month, amount, self.quota).await?;
        self.rest += if taken.is_some() { amount } else { 0 };
        Ok(taken.is_some())
    }

    /// Takes what is left for as many of these costs as it is enough for, in their order; says for which.
    async fn refill_what_fits(
        &mut self,
        store: &Store,
        id: OrganizationId,
        costs: &[i64],
    ) -> Result<Vec<bool>, StoreError> {
        loop {
            let taken = quotas::find_taken(store.verify(), id, self.month).await?;
            let fit = fitting((self.quota - taken).max(0) + self.rest, costs);
            let wanted: i64 = costs.iter().zip(&fit).filter(|(_, fits)| **fits).map(|(cost, _)| cost).sum();
            let short = wanted - self.rest;
            // Refused only where another process has taken some in between; then less is left, so that this ends.
            if short <= 0 || self.refill(store, id, short).await? {
                return Ok(fit);
            }
        }
    }
}

/// A block that is out of the map; it goes back however its turn ends, together with what was put back meanwhile.
struct Held<'a> {
    blocks: &'a Blocks,
    id: OrganizationId,
    block: Block,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut blocks = self.blocks.lock();
        let back = blocks.remove(&self.id).filter(|other| other.is_of(self.block.month, self.block.quota));
        self.block.rest += back.map_or(0, |other| other.rest);
        if self.block.rest > 0 || self.block.refused.is_some() || self.block.used > 0 {
            blocks.insert(self.id, self.block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_what_was_used_lately_in_a_tenth_of_a_second() {
        let now = Uptime::from_micros(5_000_000);
        let block = |used| Block { used, ..Block::new(Timestamp::from_micros(0), 10, now) };
        assert_eq!(block(1000).lately(now.plus(Duration::from_secs(1))), 100);
        assert_eq!(block(1).lately(now.plus(Duration::from_secs(1))), 0, "whoever comes seldom asks each time");
        assert_eq!(block(-3).lately(now), 0, "more was put back than taken");
    }
}
