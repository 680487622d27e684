//! The file of refused rows: table, id, reason and message, as CSV.
//! Must not hold a key or a hash, nor any other value of a row; nobody but its owner may read it all the same.
//! Invariant: what a batch refused is in the file before the next batch is written. A run that was killed may have
//! written refusals of a batch that did not commit: they are written again when it is resumed, so that a row may stand
//! there twice. One run at a time writes to a file: what the lines say of a table is then one run's.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::ImportError;
use crate::domain::import::Refused;

/// The first line.
const HEADER: &str = "table,id,reason,message";
/// The owner reads and writes, nobody else does anything.
const MODE: u32 = 0o600;

/// The longest line that is looked for at the end.
const LINE_BYTES_MAX: u64 = 1 << 16;

/// The open file.
pub(super) struct RefusedFile {
    path: PathBuf,
    out: csv::Writer<File>,
}

/// Where refused rows of a source go unless the operator says where.
pub(super) fn default_path(source: &str) -> PathBuf {
    // A label may hold `/` and `:`, which a name of a file cannot or should not.
    PathBuf::from(format!("{}-refused.csv", source.replace(['/', ':'], "_")))
}

impl RefusedFile {
    /// Opens the file: empty for a new pass, behind what it holds where a pass is resumed. Gives how many rows of each
    /// table are in it.
    ///
    /// # Errors
    /// `File`, also where the file holds something else than refused rows.
    pub(super) fn open(path: &Path, append: bool) -> Result<(Self, BTreeMap<String, u64>), ImportError> {
        open(path, append)
            .map(|(out, rows)| (Self { path: path.to_owned(), out }, rows))
            .map_err(|source| ImportError::File { path: path.to_owned(), source })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds refused rows; they are in the file when this ends.
    ///
    /// # Errors
    /// `File`.
    pub(super) fn write<'a>(
        &mut self,
        table: &str,
        rows: impl Iterator<Item = (&'a str, &'a Refused)>,
    ) -> Result<(), ImportError> {
        let of_file = |source| ImportError::File { path: self.path.clone(), source };
        for (id, refused) in rows {
            let fields = [table, id, refused.reason.as_str(), &refused.message];
            self.out.write_record(fields).map_err(|error| of_file(io::Error::from(error)))?;
        }
        self.out.flush().map_err(of_file)
    }
}

fn open(path: &Path, append: bool) -> io::Result<(csv::Writer<File>, BTreeMap<String, u64>)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path)?;
    if !file.metadata()?.is_file() {
        // A device such as /dev/null: there is nothing to empty, and its mode is not ours to change.
        return Ok((csv::Writer::from_writer(file), BTreeMap::new()));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let words = "another run writes to it: wait for that one, or name another file with --refused-file";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, words));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    check_ours(&mut file)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    if append {
        cut_torn_line(&mut file)?;
    } else {
        file.set_len(0)?;
    }
    let rows = count(&mut file)?;
    let end = file.seek(SeekFrom::End(0))?;
    let mut out = csv::Writer::from_writer(file);
    if end == 0 {
        out.write_record(HEADER.split(',')).map_err(io::Error::from)?;
        out.flush()?;
    }
    Ok((out, rows))
}

/// Takes away what a process that was killed has left of its last line.
fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let begin = length.saturating_sub(LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    file.by_ref().take(LINE_BYTES_MAX).read_to_end(&mut tail)?;
    let torn = tail.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
    let is_whole = torn < tail.len() as u64 || begin == 0;
    if torn > 0 && is_whole { file.set_len(length - torn) } else { Ok(()) }
}

/// How many rows of each table are named.
fn count(file: &mut File) -> io::Result<BTreeMap<String, u64>> {
    file.seek(SeekFrom::Start(0))?;
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let mut records = csv::ReaderBuilder::new().flexible(true).from_reader(&mut *file);
    let mut record = csv::StringRecord::new();
    while records.read_record(&mut record).map_err(io::Error::from)? {
        if let Some(table) = record.get(0) {
            *rows.entry(table.to_owned()).or_default() += 1;
        }
    }
    Ok(rows)
}

/// A file that begins otherwise is somebody else's, and must not be emptied.
fn check_ours(file: &mut File) -> io::Result<()> {
    let mut head = Vec::new();
    file.by_ref().take(HEADER.len() as u64).read_to_end(&mut head)?;
    // Also the beginning of it, which is all there is where a process was killed that early.
    if HEADER.as_bytes().starts_with(&head) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "it holds something else than refused rows"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::domain::import::Refusal;

    fn refused(message: &str) -> Refused {
        Refused { reason: Refusal::WeakSecret, message: message.to_owned() }
    }

    #[test]
    fn a_new_pass_begins_anew_a_resumed_one_goes_on_and_nobody_else_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("refused.csv");
        for (append, message) in [(false, "first"), (true, "a, \"b\"\nc"), (false, "second"), (true, "third")] {
            let (mut file, _) = RefusedFile::open(&path, append).expect("opens");
            let row = refused(message);
            file.write("clients", [("7", &row)].into_iter()).expect("is written");
        }
        let text = fs::read_to_string(&path).expect("is read");
        assert_eq!(text, "table,id,reason,message\nclients,7,WEAK_SECRET,second\nclients,7,WEAK_SECRET,third\n");
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn a_line_that_was_torn_is_taken_away_and_the_others_are_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("refused.csv");
        let text = "table,id,reason,message\nclients,7,WEAK_SECRET,weak\n,8,BAD_NAME,\"a, b\"\nclients,9,WEA";
        fs::write(&path, text).expect("is written");
        let (mut file, rows) = RefusedFile::open(&path, true).expect("opens");
        assert_eq!(rows, BTreeMap::from([("clients".to_owned(), 1), (String::new(), 1)]));
        let row = refused("weak");
        file.write("clients", [("9", &row)].into_iter()).expect("is written");
        let text = fs::read_to_string(&path).expect("is read");
        assert!(text.ends_with("\"a, b\"\nclients,9,WEAK_SECRET,weak\n"), "{text}");
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mapping.toml");
        fs::write(&path, "source = \"portal\"\n").expect("is written");
        assert!(RefusedFile::open(&path, false).is_err());
        assert_eq!(fs::read_to_string(&path).expect("is read"), "source = \"portal\"\n");
    }

    #[test]
    fn two_runs_do_not_share_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("refused.csv");
        let (mut file, _) = RefusedFile::open(&path, false).expect("opens");
        let row = refused("weak");
        file.write("clients", [("7", &row)].into_iter()).expect("is written");
        assert!(RefusedFile::open(&path, false).is_err());
        assert!(fs::read_to_string(&path).expect("is read").contains("clients,7"), "nothing was taken away");
        drop(file);
        assert!(RefusedFile::open(&path, true).is_ok(), "the lock goes with the run");
    }

    #[test]
    fn a_label_makes_one_name() {
        assert_eq!(default_path("eu/portal:1").to_string_lossy(), "eu_portal_1-refused.csv");
    }
}
