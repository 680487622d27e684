//! A segment: a file of the spool with a header and records, and the one that is written to just now.
//! The header says whose segment it is, its number, which numbers it stands for, and how many bytes of records are
//! whole. Names mean nothing: what a file is, its header says.
//! Invariant: the length in the header grows after the bytes that it counts; so whatever moment the process ends at,
//! what the header counts is whole. After power loss pages may be missing all the same: the checksums tell.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{Ordering, compiler_fence},
    },
};

use super::{
    mapping::Mapping,
    record::{self, Record},
};
use crate::domain::{ids::RecordId, usage::UsageEvent};

/// The size of a segment that is written to.
pub(super) const SEGMENT_BYTES: usize = 4 << 20;
/// The size of the header.
const HEADER_BYTES: usize = 64;
/// Begins each segment. The last byte is the version of the layout.
const MAGIC: [u8; 8] = *b"KSUSAGE\x01";
/// Where the length stands in the header.
const LENGTH_AT: Range<usize> = 40..48;
/// The parts of the header in the order in which a segment is begun: first nothing of the file's former use counts any
/// more, then the file is named anew, and what was never used is known as a segment last.
const BEGIN: [Range<usize>; 3] = [LENGTH_AT, MAGIC.len()..LENGTH_AT.start, 0..MAGIC.len()];

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) spool: RecordId,
    pub(super) number: i64,
    /// The first of the numbers that this segment stands for; its own, unless it was merged.
    pub(super) first: i64,
    /// Bytes of records that are whole.
    pub(super) length: usize,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let length = i64::try_from(self.length).unwrap_or(0).to_le_bytes();
        let parts: [&[u8]; 5] =
            [&MAGIC, self.spool.bytes(), &self.number.to_le_bytes(), &self.first.to_le_bytes(), &length];
        let mut bytes = [0; HEADER_BYTES];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// `None` where the bytes are no header of this version.
    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (spool, rest) = rest.split_first_chunk::<16>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (length, _) = rest.split_first_chunk::<8>()?;
        (*magic == MAGIC).then_some(Self {
            spool: RecordId::from_bytes(*spool),
            number: i64::from_le_bytes(*number),
            first: i64::from_le_bytes(*first),
            length: usize::try_from(i64::from_le_bytes(*length)).ok()?,
        })
    }

    /// Whether this can be the header of a file of so many bytes. One that stands for several numbers was merged, so
    /// it was written in one piece and ends with its last record. Any other is torn, and must not take the place of
    /// what it seems to stand for.
    const fn is_sound(&self, file_bytes: u64) -> bool {
        let is_whole = (self.length + HEADER_BYTES) as u64 == file_bytes;
        self.length == 0 || self.first == self.number || (self.first < self.number && is_whole)
    }

    pub(super) fn seed(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.spool.bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.finalize()
    }
}

/// A file of the spool.
#[derive(Debug, Clone)]
pub(super) struct SegmentFile {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
}

impl SegmentFile {
    /// Makes a file of a segment's size, in which every byte has been written.
    pub(super) fn make(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let made = Self { file: Arc::new(file), path };
        let written = made.file.write_all_at(&vec![0; SEGMENT_BYTES], 0);
        if written.is_err() {
            made.remove();
        }
        written.map(|()| made)
    }

    /// Opens a file that is there.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Self { file: Arc::new(file), path })
    }

    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The header; `None` where none has been written.
    ///
    /// # Errors
    /// `InvalidData` for one that is torn or of another version; or the operating system's own.
    pub(super) fn header(&self) -> io::Result<Option<Header>> {
        let file_bytes = self.bytes()?;
        if file_bytes < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut bytes, 0)?;
        if bytes.starts_with(&[0; MAGIC.len()]) {
            return Ok(None);
        }
        let header = Header::decode(&bytes).filter(|header| header.is_sound(file_bytes));
        header.map(Some).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// The bytes of records, as many as the header counts and the file has, and the seed of their checksums.
    pub(super) fn records(&self) -> io::Result<(Vec<u8>, u32)> {
        let Some(header) = self.header()? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let there = usize::try_from(self.bytes()?).unwrap_or(usize::MAX) - HEADER_BYTES;
        let mut bytes = vec![0; header.length.min(there)];
        self.file.read_exact_at(&mut bytes, HEADER_BYTES as u64)?;
        Ok((bytes, header.seed()))
    }

    /// Takes the file away. One that stays is recognised by its number when the spool is opened the next time.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %error, "a file of the usage spool stays behind");
        }
    }
}

/// A segment that is, or soon will be, written to.
pub(super) struct Segment {
    pub(super) file: SegmentFile,
    pub(super) number: i64,
    /// Bytes of records so far.
    pub(super) length: usize,
    mapping: Mapping,
    seed: u32,
}

impl Segment {
    /// Maps a file of a segment's size. Nothing can be appended before `begin`.
    pub(super) fn of(file: SegmentFile) -> io::Result<Self> {
        let mapping = Mapping::of(&file.file)?;
        Ok(Self { file, number: 0, length: 0, mapping, seed: 0 })
    }

    /// Makes it the empty segment of this number. Whatever moment the process ends at, the file is what it was, or
    /// counts nothing.
    pub(super) fn begin(&mut self, spool: RecordId, number: i64) {
        let header = Header { spool, number, first: number, length: 0 };
        (self.number, self.length, self.seed) = (number, 0, header.seed());
        let (bytes, begun) = (self.mapping.bytes_mut(), header.encode());
        for part in BEGIN {
            if let (Some(to), Some(from)) = (bytes.get_mut(part.clone()), begun.get(part)) {
                to.copy_from_slice(from);
            }
            // As in `append`.
            compiler_fence(Ordering::Release);
        }
    }

    /// Appends a record; says whether it fitted.
    pub(super) fn append(&mut self, record: &Record<'_, &UsageEvent>) -> bool {
        let Some((header, records)) = self.mapping.bytes_mut().split_at_mut_checked(HEADER_BYTES) else {
            return false;
        };
        let Some(room) = records.get_mut(self.length..) else {
            return false;
        };
        let Some(appended) = record::append(room, self.seed, record) else {
            return false;
        };
        self.length += appended;
        // The compiler must not move the length before the bytes. The processor shows a process that is killed as it
        // stood after some instruction, so it needs no more than that.
        compiler_fence(Ordering::Release);
        if let Some(place) = header.get_mut(LENGTH_AT) {
            place.copy_from_slice(&(self.length as u64).to_le_bytes());
        }
        true
    }

    /// The file, and the mapping, for whoever has the time to give it back.
    pub(super) fn into_parts(self) -> (SegmentFile, Mapping) {
        (self.file, self.mapping)
    }
}

/// The bytes of a whole segment that is not mapped, out of its records.
pub(super) struct SegmentBytes {
    header: Header,
    bytes: Vec<u8>,
    /// Where each record is written before it is known how long it is.
    scratch: Vec<u8>,
}

impl SegmentBytes {
    /// An empty segment that stands for the numbers from `first` to `number`.
    pub(super) fn new(spool: RecordId, first: i64, number: i64) -> Self {
        let header = Header { spool, number, first, length: 0 };
        Self { header, bytes: vec![0; HEADER_BYTES], scratch: vec![0; SEGMENT_BYTES] }
    }

    /// Appends a record. Each fits, since it is no longer than one that was in a segment before.
    pub(super) fn append(&mut self, record: &Record<'_, &UsageEvent>) {
        let length = record::append(&mut self.scratch, self.header.seed(), record).unwrap_or(0);
        self.bytes.extend_from_slice(self.scratch.get(..length).unwrap_or_default());
    }

    /// The file's bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.header.length = self.bytes.len() - HEADER_BYTES;
        for (to, from) in self.bytes.iter_mut().zip(self.header.encode()) {
            *to = from;
        }
        self.bytes
    }
}
