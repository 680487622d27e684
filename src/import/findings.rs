//! What a comparison of a table with Keystead comes to, row by row, and who is told: for `verify`, and for `contract`,
//! which compares once more under its lock.
//! Must not show a key. Invariant: a plaintext and a hash that do not fit are never accepted, whatever was said about
//! refused rows: one of the two is somebody's key, and would be lost.

use std::time::Instant;

use super::{
    Event, ImportError, Tell,
    batches::KeyBatches,
    checks::{Checker, Found},
    report::{VerifiedTable, add},
};
use crate::{
    domain::import::{Refusal, Refused},
    store::imports::ImportKind,
};

/// What was found of one table, and who is told.
pub(super) struct Findings<'j> {
    report: VerifiedTable,
    tell: Tell<'j>,
    accept_refused: bool,
    begun: Instant,
}

impl<'j> Findings<'j> {
    /// Begins a table, and tells so.
    pub(super) fn begin(
        table: &str,
        kind: ImportKind,
        total: Option<u64>,
        tell: Tell<'j>,
        accept_refused: bool,
    ) -> Self {
        tell(Event::Table { table, kind, total, before: 0 });
        Self { report: VerifiedTable::new(table, kind), tell, accept_refused, begun: Instant::now() }
    }

    pub(super) fn matched(&mut self, outcome: &'static str) {
        self.report.matched += 1;
        add(&mut self.report.outcomes, outcome);
    }

    /// `is_pair` says that the row has a hash beside its plaintext.
    pub(super) fn refused(&mut self, id: &str, refused: &Refused, is_pair: bool) {
        let reason = refused.reason.as_str();
        if self.accept_refused && may_be_accepted(refused.reason, is_pair) {
            self.report.accepted += 1;
            add(&mut self.report.reasons, reason);
        } else {
            self.mismatch(id, reason, &format!("REFUSED: {reason}: {}", refused.message));
        }
    }

    pub(super) fn mismatch(&mut self, id: &str, word: &'static str, words: &str) {
        self.report.mismatches += 1;
        add(&mut self.report.reasons, word);
        (self.tell)(Event::Mismatch { table: &self.report.table, id, reason: words });
    }

    pub(super) fn advance(&mut self, rows: u64) {
        self.report.rows += rows;
        (self.tell)(Event::Rows { done: self.report.rows, bad: self.report.mismatches });
    }

    pub(super) fn finish(mut self) -> VerifiedTable {
        self.report.elapsed = self.begun.elapsed();
        (self.tell)(Event::End);
        self.report
    }
}

fn may_be_accepted(reason: Refusal, is_pair: bool) -> bool {
    let contradicts = reason == Refusal::BadHash || reason == Refusal::StoredHash;
    reason != Refusal::HashMismatch && !(is_pair && contradicts)
}

/// Compares all rows of a table of keys. The next batch is read while the last one is looked up.
///
/// # Errors
/// The source's own, or the store's.
pub(super) async fn compare(
    batches: &mut KeyBatches<'_>,
    checker: &Checker<'_>,
    findings: &mut Findings<'_>,
) -> Result<(), ImportError> {
    let mut next = batches.next().await?;
    while let Some(batch) = next {
        let (read, found) = tokio::join!(batches.next(), checker.check(&batch));
        findings.report.skipped += batch.skipped;
        for (id, refused) in &batch.refused {
            findings.refused(id, refused, batch.refused_pairs.contains(id));
        }
        for (row, found) in batch.keys.iter().zip(found?) {
            match found {
                Found::AsExpected(outcome) => findings.matched(outcome),
                Found::Refused(refused) => findings.refused(&row.id, &refused, row.is_pair),
                Found::Differs { word, words } => findings.mismatch(&row.id, word, &words),
            }
        }
        findings.advance(batch.rows);
        next = read?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_itself_is_never_accepted() {
        for is_pair in [false, true] {
            assert!(may_be_accepted(Refusal::WeakSecret, is_pair));
            assert!(!may_be_accepted(Refusal::HashMismatch, is_pair));
            assert_eq!(may_be_accepted(Refusal::BadHash, is_pair), !is_pair);
            assert_eq!(may_be_accepted(Refusal::StoredHash, is_pair), !is_pair);
        }
    }
}
