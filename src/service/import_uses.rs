//! How often keys of each import are verified, and by which kind of hash, so that an operator sees when an old path is no
//! longer taken. Keys that were issued here cost nothing. Counts are metrics of this process.
//! Invariant: the labels are those of a bounded number of imports; what comes beyond counts as `other`.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::Context;
use crate::{
    domain::{ids::RecordId, import::Scheme, record::KeyRecord},
    store::imports,
    telemetry::ImportCounter,
};

/// Imports with a label of their own.
const LABELS_MAX: usize = 64;
/// The label of all further ones.
const OTHER: &str = "other";

/// The counters of each import, by scheme.
type Counters = Arc<[ImportCounter]>;

/// Who counts the verifications of imported keys.
#[derive(Default)]
pub struct ImportUses {
    counters: RwLock<HashMap<RecordId, Counters>>,
}

impl ImportUses {
    /// Counts a verification of a key that was found by a hash of this scheme; of keys that were not imported, none.
    pub(super) fn count(&self, context: &Arc<Context>, key: &KeyRecord, scheme: Scheme) {
        let Some(import_id) = key.import_id.as_deref() else { return };
        let counters = self.counters.read().unwrap_or_else(PoisonError::into_inner).get(import_id).cloned();
        if let Some(counters) = counters {
            add(&counters, scheme);
            return;
        }
        // Its label is in the database. A few verifications may look for it at once, which does no harm.
        let (context, import_id) = (context.clone(), *import_id);
        tokio::spawn(async move {
            let found = imports::find_by_id(context.store.verify(), import_id).await;
            let source = found.ok().flatten().map(|import| import.source);
            add(&context.import_uses.counters_of(&context, import_id, source.as_deref()), scheme);
        });
    }

    fn counters_of(&self, context: &Context, import_id: RecordId, source: Option<&str>) -> Counters {
        let mut all = self.counters.write().unwrap_or_else(PoisonError::into_inner);
        let room = all.len() < LABELS_MAX;
        let label = source.filter(|_| room).unwrap_or(OTHER);
        let make = || Scheme::ALL.iter().map(|scheme| context.metrics.imported.verifications(label, *scheme)).collect();
        // Where the database could not tell the label, it is asked again the next time.
        if source.is_none() || !room {
            return make();
        }
        all.entry(import_id).or_insert_with(make).clone()
    }
}

fn add(counters: &Counters, scheme: Scheme) {
    if let Some(counter) = counters.get(scheme as usize) {
        counter.inc();
    }
}
