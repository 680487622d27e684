//! Usage: what verifications leave behind, from the moment before their answer to rows and sums in the database.
//! Must not make a verification wait, whatever the database does. Invariant: counts are exact, through `kill -9` and
//! a database that is away; when more events come than are written, rows of detail are left out and counts are not.
//!
//! In reading order: [`Recorder`] is what others use; `spool` holds the segments of this process, `segment` is one of
//! them, `record` its bytes, `mapping` the memory that it lies in, `slot` the folder; `keeper` does what must not hold
//! up a verification; `merge` keeps the spool within its bound; `batch` sums segments, as many as make a `run`, and
//! `writer` writes the sums; `retention` deletes old rows.

mod batch;
mod keeper;
mod mapping;
mod merge;
mod record;
mod recorder;
pub mod retention;
mod run;
mod segment;
mod slot;
mod spool;
mod writer;

pub use self::{
    batch::Batch,
    recorder::{OpenError, Recorder, SpoolOptions},
    slot::SpoolError,
    spool::SpoolStatus,
    writer::apply,
};
