//! The keeper: a thread that does what must not hold up a verification. Each 100 ms it puts what has been recorded
//! on the disk, so that power loss costs no more than that; it keeps a segment ready to follow the active one; and it
//! gives mappings back.
//! Must not hold the spool's lock while it waits for the disk. It ends when the spool is closed.

use std::{io, mem, sync::Arc, thread, time::Duration};

use super::{
    segment::Segment,
    spool::{Spool, State},
};

/// How often what has been recorded is put on the disk: what power loss may cost.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// Starts the keeper of a spool.
pub(super) fn start(spool: Arc<Spool>) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("usage-spool".to_owned()).spawn(move || keep(&spool))
}

fn keep(spool: &Spool) {
    // The segment that was last synced, and how much of it.
    let mut synced = (0, 0);
    let mut failing = false;
    loop {
        let mut state = spool.lock();
        let closed = state.closed;
        let retired = mem::take(&mut state.retired);
        let active = state.active.as_ref().map(|active| ((active.number, active.length), active.file.file.clone()));
        drop(state);

        let mut result = Ok(());
        for (file, mapping) in retired {
            drop(mapping);
            result = result.and(file.file.sync_data());
        }
        if let Some((position, file)) = active.filter(|(position, _)| *position != synced) {
            synced = position;
            result = result.and(file.sync_data());
        }
        if let (Err(error), false) = (&result, failing) {
            tracing::error!(error = %error, "the usage spool cannot be put on the disk");
        }
        failing = result.is_err();
        if closed {
            return;
        }
        make_ready(spool);
        let state = spool.lock();
        let idle = |state: &mut State| !state.closed && (state.spare.is_some() || state.failing);
        // Whatever ends the waiting, the next round looks at everything.
        drop(spool.wake.wait_timeout_while(state, SYNC_INTERVAL, idle));
    }
}

/// Sees to it that a segment is ready.
fn make_ready(spool: &Spool) {
    let (slot, free) = {
        let mut state = spool.lock();
        let Some(slot) = state.slot.clone().filter(|_| state.spare.is_none()) else {
            return;
        };
        (slot, state.free.pop())
    };
    let made = free.map_or_else(|| slot.make_file(), Ok).and_then(Segment::of);
    let mut state = spool.lock();
    state.note_file(made.as_ref().err());
    match made {
        // A verification that could not wait may have made one meanwhile and used it up; this is the next.
        Ok(segment) if state.spare.is_none() => state.spare = Some(segment),
        Ok(segment) => state.free.push(segment.into_parts().0),
        Err(_) => {}
    }
}
