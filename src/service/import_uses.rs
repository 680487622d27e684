//! How often keys of each import are verified, and by which kind of hash, so that an operator sees when an old path is no
//! longer taken. Keys that were issued here cost nothing. Counts are metrics of this process.
//! Invariant: the labels are those of a bounded number of imports, what comes beyond counts as `other`; and whose label
//! is not known yet is asked for once in a while, never by each verification.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Context;
use crate::{
    clock::Uptime,
    domain::{ids::RecordId, import::Scheme, record::KeyRecord},
    store::imports,
    telemetry::{ImportCounter, OTHER_SOURCE},
};

/// Imports with a label of their own.
const LABELS_MAX: usize = 64;
/// Imports that are told apart at all; whoever comes beyond is not counted.
const IMPORTS_MAX: usize = 100_000;
/// How long after a label could not be found it is asked for again.
const RETRY: Duration = Duration::from_secs(10);

/// The verifications of one import's keys.
#[derive(Default)]
struct Uses {
    counters: OnceLock<Vec<ImportCounter>>,
    /// Counted before the label was known, by scheme.
    waiting: [AtomicU64; Scheme::ALL.len()],
    /// When the label was asked for last.
    asked: Mutex<Option<Uptime>>,
}

/// Who counts the verifications of imported keys.
#[derive(Default)]
pub struct ImportUses {
    uses: RwLock<HashMap<RecordId, Arc<Uses>>>,
    labels: Labels,
}

/// How many imports have got a label, one after the other.
#[derive(Default)]
struct Labels(Mutex<usize>);

impl ImportUses {
    /// Counts a verification of a key that was found by a hash of this scheme; of keys that were not imported, none.
    pub(super) fn count(&self, context: &Arc<Context>, key: &KeyRecord, scheme: Scheme) {
        let Some(import_id) = key.import_id.as_deref() else { return };
        let Some(uses) = self.of(*import_id) else { return };
        if let Some(counter) = uses.counters.get().and_then(|counters| counters.get(scheme as usize)) {
            counter.inc();
            return;
        }
        if let Some(waiting) = uses.waiting.get(scheme as usize) {
            waiting.fetch_add(1, Ordering::Relaxed);
        }
        if uses.is_to_be_asked_for() {
            let (context, import_id) = (context.clone(), *import_id);
            tokio::spawn(async move { context.import_uses.name(&context, import_id, &uses).await });
        } else if uses.counters.get().is_some() {
            uses.pay_out();
        }
    }

    fn of(&self, import_id: RecordId) -> Option<Arc<Uses>> {
        let found = self.uses.read().unwrap_or_else(PoisonError::into_inner).get(&import_id).cloned();
        if found.is_some() {
            return found;
        }
        let mut all = self.uses.write().unwrap_or_else(PoisonError::into_inner);
        let is_room = all.len() < IMPORTS_MAX || all.contains_key(&import_id);
        is_room.then(|| all.entry(import_id).or_default().clone())
    }

    /// Finds the label of an import, and counts under it what has waited for it.
    async fn name(&self, context: &Context, import_id: RecordId, uses: &Uses) {
        let found = imports::find_by_id(context.store.verify(), import_id).await;
        let Ok(Some(import)) = found else { return };
        self.labels.give(uses, |has_own| {
            let label = if has_own { import.source.as_str() } else { OTHER_SOURCE };
            Scheme::ALL.iter().map(|scheme| context.metrics.imported.verifications(label, *scheme)).collect()
        });
        uses.pay_out();
    }
}

impl Labels {
    /// Gives an import its counters, unless it has got them: by a label of its own where there is one left.
    fn give(&self, uses: &Uses, counters: impl FnOnce(bool) -> Vec<ImportCounter>) {
        // Held until they are given: another import must not be told of the same label.
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.counters.get().is_none() {
            uses.counters.get_or_init(|| counters(*given < LABELS_MAX));
            *given += 1;
        }
    }
}

impl Uses {
    /// Whether nobody asks for the label now, nor did a moment ago.
    fn is_to_be_asked_for(&self) -> bool {
        let now = Uptime::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = asked.is_none_or(|asked| now.since(asked) >= RETRY) && self.counters.get().is_none();
        if is_due {
            *asked = Some(now);
        }
        is_due
    }

    /// Counts what has waited.
    fn pay_out(&self) {
        let Some(counters) = self.counters.get() else { return };
        for (waiting, counter) in self.waiting.iter().zip(counters) {
            counter.inc_by(waiting.swap(0, Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn imports_that_are_used_at_once_for_the_first_time_get_no_more_labels_than_there_are() {
        let (labels, own) = (Labels::default(), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..4 * LABELS_MAX {
                scope.spawn(|| {
                    let uses = Uses::default();
                    for _ in 0..2 {
                        labels.give(&uses, |has_own| {
                            // Whoever else asks now would be told the same.
                            thread::yield_now();
                            own.fetch_add(u64::from(has_own), Ordering::Relaxed);
                            Vec::new()
                        });
                    }
                });
            }
        });
        assert_eq!(own.into_inner(), LABELS_MAX as u64);
    }
}
