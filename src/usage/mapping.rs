//! A file of ours, mapped into memory for writing: what is written belongs to the kernel at once, and so outlives
//! this process however it ends.
//! The one place of the crate with `unsafe`. Must map nothing but a segment of a slot whose lock this process holds.
//! Invariant: the file is written in full before it is mapped, and never made shorter; of its mappings, nobody looks at
//! any but the newest.

use std::{fs::File, io};

use memmap2::MmapMut;

/// A whole file as bytes.
pub(super) struct Mapping(MmapMut);

impl Mapping {
    /// Maps a whole file.
    ///
    /// # Errors
    /// The operating system's own.
    #[expect(unsafe_code, reason = "mapping a file is unsafe, since others may change it; nobody changes this one")]
    pub(super) fn of(file: &File) -> io::Result<Self> {
        // SAFETY: bytes of a mapping may be borrowed while nobody else writes to the file or makes it shorter. It lies
        // in a slot whose lock this process holds, in a folder of mode 0700. This process never makes it shorter, and
        // writes to it through the newest mapping alone. An older one may still be there, of a segment that was sealed
        // and whose file is used again: it waits in `State::retired` to be dropped, where nobody can borrow its bytes.
        // Every block of the file has been written, so that no write into the mapping needs one that a full disk does
        // not have.
        unsafe { MmapMut::map_mut(file) }.map(Self)
    }

    /// The bytes of the file.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
