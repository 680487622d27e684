//! A slot of the spool: the numbered folder that one process has to itself, `<spool>/<database id>/<number>/`.
//! Its lock file is held for as long as the process lives, and carries the slot's id, by which the database knows
//! what of it has been written. Folders are never deleted, so that a lock always means the same folder.
//! Must not change a file of a slot whose lock is not held. Invariant: no two processes hold one slot.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::segment::SegmentFile;
use crate::domain::ids::RecordId;

/// Processes that can share a folder.
const SLOTS_MAX: u32 = 1024;
const LOCK: &str = "lock";
/// A merged segment that is being written.
const UNFINISHED: &str = "unfinished";
/// What cannot be read is put aside under this ending, for a person to look at.
const UNREADABLE: &str = "unreadable";

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the usage spool {} cannot be used", .path.display())]
pub struct SpoolError {
    path: PathBuf,
    source: io::Error,
}

impl SpoolError {
    /// An error about this path.
    pub(super) fn of(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self { path: path.to_owned(), source }
    }
}

/// A slot whose lock this process holds until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: RecordId,
    folder: PathBuf,
    _lock: File,
}

/// What lies in a slot.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Segments that have not been written to the database, oldest first: number, first number, file.
    pub(super) waiting: Vec<(i64, i64, SegmentFile)>,
    /// Files that hold nothing that is needed.
    pub(super) free: Vec<SegmentFile>,
    /// The highest number of any segment.
    pub(super) last: i64,
}

/// Makes a folder, and what is above it; one that is there will do.
pub(super) fn make_folder(folder: &Path) -> Result<(), SpoolError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(SpoolError::of(folder))
}

impl Slot {
    /// The first slot of this folder that nobody holds.
    pub(super) fn take_first(folder: &Path, fresh: RecordId) -> Result<Self, SpoolError> {
        for number in 0..SLOTS_MAX {
            let path = folder.join(number.to_string());
            make_folder(&path)?;
            if let Some(slot) = Self::take(path.clone(), fresh).map_err(SpoolError::of(&path))? {
                return Ok(slot);
            }
        }
        Err(SpoolError::of(folder)(io::Error::other(format!("{SLOTS_MAX} processes use it"))))
    }

    /// The slots of this folder that exist and that nobody holds, but for those that cannot be opened. Their ids stand
    /// already: `fresh` is for one whose process died before it had one.
    pub(super) fn take_abandoned(folder: &Path, fresh: impl Fn() -> RecordId) -> Result<Vec<Self>, SpoolError> {
        let mut taken = Vec::new();
        for entry in fs::read_dir(folder).map_err(SpoolError::of(folder))? {
            let path = entry.map_err(SpoolError::of(folder))?.path();
            if !path.join(LOCK).exists() {
                continue;
            }
            match Self::take(path.clone(), fresh()) {
                Ok(slot) => taken.extend(slot),
                Err(error) => {
                    let path = path.display();
                    tracing::error!(path = %path, error = %error, "a slot of the usage spool cannot be taken");
                }
            }
        }
        Ok(taken)
    }

    /// Takes a slot, if nobody holds it. Its id is the one in the lock file, or `fresh` where there is none yet.
    fn take(folder: PathBuf, fresh: RecordId) -> io::Result<Option<Self>> {
        let mut options = File::options();
        let mut lock =
            options.create(true).truncate(false).read(true).write(true).mode(0o600).open(folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut text = String::new();
        lock.read_to_string(&mut text)?;
        if let Ok(id) = RecordId::parse(text.trim_end()) {
            return Ok(Some(Self { id, folder, _lock: lock }));
        }
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{fresh}")?;
        lock.sync_all()?;
        Ok(Some(Self { id: fresh, folder, _lock: lock }))
    }

    /// Looks at every file. `applied` is the number of the last segment that the database has.
    pub(super) fn content(&self, applied: i64) -> io::Result<Content> {
        let mut content = Content { last: applied, ..Content::default() };
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == LOCK || name.ends_with(UNREADABLE) {
                continue;
            }
            let file = SegmentFile::open(path.clone())?;
            if name == UNFINISHED {
                content.free.push(file);
                continue;
            }
            match file.header() {
                Ok(None) => content.free.push(file),
                Ok(Some(header)) if header.spool == self.id => {
                    content.last = content.last.max(header.number);
                    if header.number > applied && header.length > 0 {
                        content.waiting.push((header.number, header.first, file));
                    } else {
                        content.free.push(file);
                    }
                }
                Ok(Some(_)) => put_aside(&file),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => put_aside(&file),
                Err(error) => return Err(error),
            }
        }
        content.waiting.sort_by_key(|(number, first, _)| (*number, *first));
        content.drop_merged();
        Ok(content)
    }

    /// Makes a new file for a segment.
    pub(super) fn make_file(&self) -> io::Result<SegmentFile> {
        for number in 0.. {
            match SegmentFile::make(self.folder.join(format!("segment-{number}"))) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Writes a merged segment in full, and only then gives it its name.
    pub(super) fn write_merged(&self, number: i64, bytes: &[u8]) -> io::Result<SegmentFile> {
        let unfinished = self.folder.join(UNFINISHED);
        let mut options = File::options();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        let path = self.folder.join(format!("merged-{number}"));
        fs::rename(&unfinished, &path)?;
        File::open(&self.folder)?.sync_all()?;
        SegmentFile::open(path)
    }
}

/// Puts a file aside that cannot be read: it is not of this slot, or of another version, or the disk is damaged.
pub(super) fn put_aside(file: &SegmentFile) {
    let mut path = file.path.clone();
    path.add_extension(UNREADABLE);
    let moved = fs::rename(&file.path, &path);
    let (path, moved) = (path.display(), moved.is_ok());
    tracing::error!(path = %path, moved, "a segment of the usage spool cannot be read and is put aside");
}

impl Content {
    /// Frees the segments that a merged one stands for: the process ended after it had its name and before they were
    /// gone.
    fn drop_merged(&mut self) {
        let merged: Vec<(i64, i64)> = self.waiting.iter().map(|(number, first, _)| (*first, *number)).collect();
        let is_covered = |number: i64, first: i64| {
            merged.iter().any(|span| *span != (first, number) && span.0 <= first && number <= span.1)
        };
        let all = std::mem::take(&mut self.waiting);
        let (covered, waiting): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(number, first, _)| is_covered(*number, *first));
        self.waiting = waiting;
        self.free.extend(covered.into_iter().map(|(_, _, file)| file));
    }
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
