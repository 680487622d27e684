//! Keeps the spool within its bound while the database is away: the sealed segments become one, in which counts are
//! exact and details few. Only the oldest stay as they are, which may have been tried already, with an outcome that
//! nobody knows.
//! Must be called by whoever flushes, so that no segment is written while it is merged. Invariant: the merged segment
//! is whole on the disk before one that it stands for goes, and says which it stands for.

use std::io;

use super::{
    batch::Batch,
    record::Faults,
    segment::{SegmentBytes, SegmentFile},
    spool::{Place, Sealed, Spool},
};

/// Merges, if the spool is over its bound and enough has come since the last time for it to be worth the work.
pub(super) fn shrink(spool: &Spool) -> io::Result<()> {
    let (slot, (at, parts), bytes_max) = {
        let mut state = spool.lock();
        let Some(slot) = state.slot.clone().filter(|_| state.bytes() > state.bytes_max()) else {
            return Ok(());
        };
        let Some(mergeable) = state.mergeable() else {
            return Ok(());
        };
        (slot, mergeable, state.bytes_max())
    };
    let [first, .., last] = parts.as_slice() else {
        return Ok(());
    };
    let mut batch = Batch::small();
    for part in &parts {
        match &part.place {
            Place::Memory(counts) => batch.add_counts(counts),
            Place::File(file) => {
                let (records, seed) = file.records()?;
                report(&batch.add_segment(&records, seed), part.number);
            }
        }
    }
    let whole = |batch: &Batch| {
        let mut segment = SegmentBytes::new(slot.id, first.first, last.number);
        batch.write_to(&mut segment);
        segment.finish()
    };
    let mut bytes = whole(&batch);
    while bytes.len() as u64 > bytes_max / 2 && batch.shrink() {
        bytes = whole(&batch);
    }
    let file = slot.write_merged(last.number, &bytes)?;
    let merged = Sealed::of_file((last.number, first.first, file));
    let needless = spool.lock().replace(at, parts.len(), merged);
    needless.iter().for_each(SegmentFile::remove);
    tracing::warn!(segments = parts.len(), "the usage spool is full: rows of usage are thinned out, counts are exact");
    Ok(())
}

/// Tells what was found in a segment besides records.
pub(super) fn report(faults: &Faults, number: i64) {
    let Faults { cut_bytes, unknown } = *faults;
    if cut_bytes > 0 {
        tracing::error!(number, cut_bytes, "the end of a segment of the usage spool was torn off");
    }
    if unknown > 0 {
        tracing::error!(number, unknown, "records of the usage spool are of another version and were left out");
    }
}
