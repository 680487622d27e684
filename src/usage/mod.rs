//! The recorder of verifications: takes an event without waiting, and writes batches to the database.
//! Must not make a verification wait, whatever the database does. Invariant: counts are exact; when more events
//! come than are written, rows of detail are left out and the counts are not.

mod recorder;

pub use self::recorder::Recorder;
