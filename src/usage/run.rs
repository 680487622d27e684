//! A run: the oldest segments of a spool, summed, so that one transaction writes them all. A key that is used all the
//! time then costs its rows once a run, and not once a segment.
//! Must not change the spool. Invariant: a run's numbers are in one piece, and start after those of the run before.

use std::{io, ops::RangeInclusive, time::Duration};

use tokio::task::JoinError;

use super::{
    batch::Batch,
    merge::report,
    segment::SegmentFile,
    slot::put_aside,
    spool::{Place, Sealed},
    writer,
};
use crate::{
    domain::ids::RecordId,
    store::{Store, StoreError, usage_spools::Advance},
};

/// Rows of a run, beyond which no further segment is added: what a writer may hold up others with.
const ROWS_MAX: usize = 50_000;
/// How long a small run may take; without a bound a broken connection would hold up all later ones.
const APPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// And for each row of it.
const APPLY_TIMEOUT_ROW: Duration = Duration::from_millis(1);

/// Segments that are written in one transaction, summed.
pub(super) struct Run {
    pub(super) numbers: RangeInclusive<i64>,
    batch: Batch,
}

/// A segment that could not be read, and was put aside.
pub(super) struct Unreadable {
    pub(super) number: i64,
}

/// The last number of a run, and its sums.
type Summed = Result<(i64, Batch), Unreadable>;

/// Sums segments, the oldest first, as many as make a run; `None` where there are none, or where the process ends.
pub(super) async fn read(segments: Vec<Sealed>) -> Option<Result<Run, Unreadable>> {
    let first = segments.first()?.clone();
    let summed = match sum_apart(segments).await {
        // Nobody knows which segment it was: the oldest is looked at alone.
        Err(failure) if failure.is_panic() => sum_apart(vec![first.clone()]).await,
        summed => summed,
    };
    let summed = match summed {
        Ok(summed) => summed,
        Err(failure) if failure.is_panic() => Err(give_up(&first)),
        Err(_) => return None,
    };
    Some(summed.map(|(end, batch)| Run { numbers: first.first..=end, batch }))
}

async fn sum_apart(segments: Vec<Sealed>) -> Result<Summed, JoinError> {
    tokio::task::spawn_blocking(move || sum(&segments)).await
}

/// Puts a segment aside that cannot be summed.
fn give_up(segment: &Sealed) -> Unreadable {
    tracing::error!(number = segment.number, "a segment of the usage spool cannot be summed");
    if let Place::File(file) = &segment.place {
        put_aside(file);
    }
    Unreadable { number: segment.number }
}

fn sum(segments: &[Sealed]) -> Summed {
    let (mut batch, mut end) = (Batch::default(), 0);
    for segment in segments {
        if batch.rows() >= ROWS_MAX {
            break;
        }
        match &segment.place {
            Place::Memory(counts) => batch.add_counts(counts),
            Place::File(file) => add_file(&mut batch, file, segment.number)?,
        }
        end = segment.number;
    }
    Ok((end, batch))
}

/// Adds a segment. One that cannot be read is put aside, so that it does not hold up those after it.
fn add_file(batch: &mut Batch, file: &SegmentFile, number: i64) -> Result<(), Unreadable> {
    let read = file.records().inspect_err(|error| {
        tracing::error!(number, error = %error, "the disk does not give a segment of the usage spool back");
        put_aside(file);
    });
    let (records, seed) = read.map_err(|_| Unreadable { number })?;
    report(&batch.add_segment(&records, seed), number);
    Ok(())
}

impl Run {
    /// Whether these segments begin with those of the run. What was tried stays as it is, so the first tells.
    pub(super) fn begins_with(&self, segments: &[Sealed]) -> bool {
        segments.first().is_some_and(|oldest| oldest.first == *self.numbers.start())
    }

    /// Writes the run, unless its first segment has been written already; gives the number up to which the database
    /// has the spool now, and how many events have no row of detail of their own.
    ///
    /// # Errors
    /// The store's own. Whether the write happened does not matter: the next try finds out.
    pub(super) async fn write(&self, store: &Store, spool: RecordId) -> Result<(i64, u64), StoreError> {
        let rows = u32::try_from(self.batch.rows()).unwrap_or(u32::MAX);
        let writing = writer::apply(store, spool, self.numbers.clone(), &self.batch);
        // Given up in the middle, the transaction may stand or not; the numbers tell the next try.
        match tokio::time::timeout(APPLY_TIMEOUT + APPLY_TIMEOUT_ROW * rows, writing).await {
            Ok(Ok(Advance::Now)) => Ok((*self.numbers.end(), self.left_out())),
            Ok(Ok(Advance::Before { applied })) => Ok((applied, 0)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StoreError::timed_out().of_commit()),
        }
    }

    fn left_out(&self) -> u64 {
        let left_out: i64 = self.batch.details().iter().map(|(_, weight)| weight - 1).sum();
        u64::try_from(left_out).unwrap_or(0)
    }
}

/// Runs what waits for the disk where it holds up nobody else.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

#[cfg(test)]
#[cfg(debug_assertions)]
#[path = "run_tests.rs"]
mod tests;
