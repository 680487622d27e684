//! The metrics of imported keys: who still comes by an old path, and what checking slow hashes costs.
//! Invariant: `source` is the label of an import, of which `service/import_uses.rs` bounds the number.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::domain::import::Scheme;

/// The label of all sources beyond those that have one of their own.
pub const OTHER_SOURCE: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfImport {
    source: String,
    scheme: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCheck {
    scheme: &'static str,
    result: &'static str,
}

/// A counter of the verifications of one import.
pub type ImportCounter = Counter;

/// What came of checking a secret against a hash that takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    Matched,
    Different,
    /// It was not checked, since too many checks waited.
    Refused,
}

/// Verifications of imported keys, and checks of hashes that take long.
#[derive(Default)]
pub struct Imported {
    verifications: Family<OfImport, ImportCounter>,
    checks: Family<OfCheck, Counter>,
    without_hash: Counter,
}

impl Imported {
    /// Every name is on the page from the beginning, with a zero: a rate over it then sees the first of them.
    pub(super) fn register(&self, registry: &mut Registry) {
        for scheme in Scheme::ALL {
            self.verifications(OTHER_SOURCE, *scheme);
        }
        for scheme in [Scheme::Bcrypt, Scheme::Argon2] {
            for result in [CheckResult::Matched, CheckResult::Different, CheckResult::Refused] {
                self.check(scheme, result);
            }
        }
        registry.register(
            "imported_verifications",
            "Verifications that found an imported key, by source and by the scheme that found it",
            self.verifications.clone(),
        );
        registry.register(
            "slow_checks",
            "Checks of a secret against a hash that takes long, by scheme and result",
            self.checks.clone(),
        );
        registry.register(
            "keys_without_hash",
            "Verifications that named an imported key without a hash",
            self.without_hash.clone(),
        );
    }

    /// The counter of verifications of an import's keys under a scheme.
    pub fn verifications(&self, source: &str, scheme: Scheme) -> ImportCounter {
        let label = OfImport { source: source.to_owned(), scheme: scheme.as_str() };
        self.verifications.get_or_create(&label).clone()
    }

    /// Counts a check against a hash that takes long.
    pub fn slow_check(&self, scheme: Scheme, result: CheckResult) {
        self.check(scheme, result).inc();
    }

    fn check(&self, scheme: Scheme, result: CheckResult) -> Counter {
        let result = match result {
            CheckResult::Matched => "matched",
            CheckResult::Different => "different",
            CheckResult::Refused => "refused",
        };
        self.checks.get_or_create(&OfCheck { scheme: scheme.as_str(), result }).clone()
    }

    /// Counts a verification that named a key without a hash.
    pub fn key_without_hash(&self) {
        self.without_hash.inc();
    }
}
