//! Runs over a segment that makes summing panic: it alone is given up. Built where sums that overflow panic.

use std::{os::unix::fs::FileExt as _, path::Path};

use super::*;
use crate::{
    domain::{outcome::Outcome, time::Timestamp},
    usage::{record::Record, segment::SegmentBytes},
};

/// A segment of two counts.
fn segment(folder: &Path, number: i64, counts: [i64; 2]) -> Sealed {
    let mut bytes = SegmentBytes::new(RecordId::from_bytes([7; 16]), number, number);
    for count in counts {
        let hour = Timestamp::from_micros(0);
        bytes.append(&Record::Count { key: None, hour, outcome: Outcome::NotFound, endpoint: "/", count });
    }
    let file = SegmentFile::make(folder.join(number.to_string())).unwrap();
    file.file.write_all_at(&bytes.finish(), 0).unwrap();
    Sealed::of_file((number, number, file))
}

#[tokio::test]
async fn a_segment_that_cannot_be_summed_is_given_up_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let segment = |number, counts| segment(folder.path(), number, counts);
    let segments = [segment(1, [1, 2]), segment(2, [i64::MAX, 1]), segment(3, [3, 4])];
    let sums = |run: Run| (run.numbers, run.batch.rollups().into_iter().map(|(_, count)| count).sum::<i64>());

    let Some(Ok(run)) = read(segments.to_vec()).await else { panic!("the first can be summed") };
    assert_eq!(sums(run), (1..=1, 3));
    let Some(Err(Unreadable { number: 2 })) = read(segments[1..].to_vec()).await else { panic!("the second cannot") };
    assert!(!folder.path().join("2").exists() && folder.path().join("2.unreadable").exists(), "it is put aside");
    let Some(Ok(run)) = read(segments[2..].to_vec()).await else { panic!("the third can be summed") };
    assert_eq!(sums(run), (3..=3, 7));
    assert!(folder.path().join("1").exists() && folder.path().join("3").exists());
    assert!(read(Vec::new()).await.is_none());
}
