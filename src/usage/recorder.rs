//! Records verifications, and writes what was recorded. An event is in a mapped file of the spool before `record`
//! returns, so that a process that is killed loses none; the database gets it with the next flush, a run of segments
//! in one transaction with their numbers. What the database does not take waits in the spool, over restarts too.
//! Must not make a verification wait for anything but the lock of the spool.
//! Invariant: segments are written strictly in order, one at a time, by whoever holds `flushing`.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::JoinHandle,
};

use super::{
    SpoolError, SpoolStatus, keeper, merge,
    run::{self, Run, Unreadable},
    segment::SegmentFile,
    slot::{Slot, make_folder},
    spool::{Sealed, Spool},
};
use crate::{
    domain::{
        ids::{KeyId, RecordId},
        time::Timestamp,
        usage::UsageEvent,
    },
    random,
    store::{Store, StoreError, state, usage_spools},
};

/// Where a spool is, and how large it may become.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    pub folder: PathBuf,
    /// Bytes of usage that may wait for the database.
    pub bytes_max: u64,
}

impl SpoolOptions {
    /// Makes the folder, so that a start fails at once where it cannot be made.
    ///
    /// # Errors
    /// `Spool`, where there is no such folder and it cannot be made.
    pub fn prepare(&self) -> Result<(), OpenError> {
        Ok(make_folder(&self.folder)?)
    }
}

/// Why a spool could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("the database refused")]
    Store(#[from] StoreError),
}

/// Records verifications.
#[derive(Default)]
pub struct Recorder {
    spool: Arc<Spool>,
    /// The folder of the database's slots, once the spool is open.
    folder: OnceLock<PathBuf>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// Held by a flush to its end: whoever flushes next finds everything before it written. Holds the run that was
    /// tried and may have to be tried again, so that it is read once, however long the database is away.
    flushing: tokio::sync::Mutex<Option<Run>>,
}

impl Drop for Recorder {
    /// Ends the keeper, which puts everything on the disk once more.
    fn drop(&mut self) {
        self.spool.lock().closed = true;
        self.spool.wake.notify_one();
        if let Some(keeper) = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // A keeper that panicked has said so; nothing is left to do.
            let _ = keeper.join();
        }
    }
}

impl Recorder {
    /// Opens the spool: takes a slot of this database's folder, and takes over what waits in it. To be called before
    /// the first event; usage before it would be kept in memory alone. Once it is open, a further call does nothing.
    ///
    /// # Errors
    /// The store's, after which it can be tried again; `Spool` where the folder cannot be used.
    pub async fn open(&self, store: &Store, options: &SpoolOptions) -> Result<(), OpenError> {
        if self.folder.get().is_some() {
            return Ok(());
        }
        let database = state::find_or_insert_database_id(store.write(), fresh_id()).await?;
        let folder = options.folder.join(database.to_string());
        make_folder(&folder)?;
        let slot = Slot::take_first(&folder, fresh_id())?;
        let applied = usage_spools::find_applied(store.write(), slot.id).await?;
        let content = slot.content(applied).map_err(SpoolError::of(&folder))?;
        if !content.waiting.is_empty() {
            tracing::info!(segments = content.waiting.len(), "usage of an earlier run waits in the spool");
        }
        let needless = self.spool.lock().open(slot, content, options.bytes_max);
        needless.iter().for_each(SegmentFile::remove);
        let keeper = keeper::start(self.spool.clone()).map_err(SpoolError::of(&folder))?;
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).replace(keeper);
        let _ = self.folder.set(folder);
        Ok(())
    }

    /// Records one verification. It is in the spool when this returns. May be called from any thread.
    pub fn record(&self, event: &UsageEvent) {
        self.spool.record_event(event);
    }

    /// Notes that a key was used as a caller's own credential, which is no verification and stands in no rollup.
    pub fn record_caller(&self, key: KeyId, time: Timestamp) {
        self.spool.record_used(key, time);
    }

    /// How the spool is doing.
    pub fn status(&self) -> SpoolStatus {
        self.spool.lock().status()
    }

    /// Writes everything that was recorded before this call. If that fails, it stays in the spool and nothing is lost.
    ///
    /// # Errors
    /// The store's own. Whether the write happened does not matter: the next flush finds out.
    pub async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let mut tried = self.flushing.lock().await;
        // What may be written already goes first: while the database is away, the active segment is not sealed half
        // empty each time. So does what waits in memory, of which there is one segment at a time.
        let goes_first = {
            let state = self.spool.lock();
            state.is_in_doubt() || state.waits_in_memory()
        };
        if goes_first {
            self.write_sealed(store, &mut tried).await?;
        }
        self.spool.seal();
        self.write_sealed(store, &mut tried).await
    }

    /// Writes and clears the slots of this database whose processes are gone.
    ///
    /// # Errors
    /// The store's own; what could not be written stays where it is.
    pub async fn adopt(&self, store: &Store) -> Result<(), StoreError> {
        let Some(folder) = self.folder.get() else {
            return Ok(());
        };
        let slots = Slot::take_abandoned(folder, fresh_id).unwrap_or_else(|error| {
            tracing::error!(error = %error, "the slots of the usage spool cannot be looked at");
            Vec::new()
        });
        for slot in slots {
            if let Err(error) = adopt_slot(store, &slot).await? {
                tracing::error!(error = %error, "a slot of the usage spool cannot be read");
            }
        }
        Ok(())
    }

    /// Writes the segments that are sealed now, oldest first.
    async fn write_sealed(&self, store: &Store, tried: &mut Option<Run>) -> Result<(), StoreError> {
        let end = self.spool.lock().next_number();
        loop {
            self.shrink().await;
            let (slot, segments) = {
                let state = self.spool.lock();
                let Some(slot) = state.slot.clone() else {
                    return Ok(());
                };
                (slot, state.next_run(end))
            };
            let read = match tried.take().filter(|run| run.begins_with(&segments)) {
                Some(run) => Some(Ok(run)),
                None => run::read(segments).await,
            };
            let run = match read {
                Some(Ok(run)) => tried.insert(run),
                Some(Err(Unreadable { number })) => {
                    self.spool.lock().give_up(number);
                    continue;
                }
                None => return Ok(()),
            };
            self.spool.lock().note_tried(*run.numbers.end());
            let (applied, left_out) = run.write(store, slot.id).await?;
            *tried = None;
            let needless = self.spool.lock().settle(applied, left_out);
            needless.iter().for_each(SegmentFile::remove);
        }
    }

    async fn shrink(&self) {
        let spool = self.spool.clone();
        if let Err(error) = run::blocking(move || merge::shrink(&spool)).await {
            tracing::error!(error = %error, "the usage spool cannot be made smaller");
        }
    }
}

/// Writes what waits in a slot of a process that is gone, and takes its files away.
async fn adopt_slot(store: &Store, slot: &Slot) -> Result<io::Result<()>, StoreError> {
    let applied = usage_spools::find_applied(store.write(), slot.id).await?;
    let content = match slot.content(applied) {
        Ok(content) => content,
        Err(error) => return Ok(Err(error)),
    };
    for waiting in content.waiting {
        let file = waiting.2.clone();
        if let Some(Ok(run)) = run::read(vec![Sealed::of_file(waiting)]).await {
            run.write(store, slot.id).await?;
            file.remove();
        }
    }
    content.free.iter().for_each(SegmentFile::remove);
    Ok(Ok(()))
}

/// An id that nothing else has.
fn fresh_id() -> RecordId {
    RecordId::from_bytes(random::bytes())
}
