//! A spool that is full, and a disk that is: counts stay exact, rows of detail are thinned out and their weights add
//! up, and what was recorded before is not lost. Everything comes back when there is room again.

use std::fs;
use std::path::Path;

use keystead::usage::{Recorder, SpoolOptions};

use super::{BYTES_MAX, World, copy, entries, slots};
use crate::harness::{TestDatabase, store_test, wait_until};

/// Events of some 8 KiB that make more than the bound.
const TOO_MANY: usize = 5_000;

impl World {
    fn record_too_much(&self, recorder: &Recorder) {
        (0..TOO_MANY).for_each(|number| recorder.record(&self.large_event(number)));
    }
}

store_test!(a_full_spool_is_merged_and_counts_stay_exact);
async fn a_full_spool_is_merged_and_counts_stay_exact(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    for round in 1..=2 {
        world.record_too_much(&recorder);
        assert!(recorder.status().bytes > BYTES_MAX, "{:?}", recorder.status());
        let blocked = world.database.block_writes().await;
        recorder.flush(&world.store).await.expect_err("the database takes nothing");
        blocked.release().await;
        let status = recorder.status();
        assert!(status.bytes <= BYTES_MAX && status.segments == 2, "round {round}: {status:?}");
        let files: u64 = entries(&slots(&world.database.spool())[0])
            .iter()
            .map(|path| fs::metadata(path).expect("there").len())
            .sum();
        assert!(files <= BYTES_MAX + (16 << 20), "round {round}: {files} bytes on the disk");
    }
    world.flush(&recorder).await;
    world.expect(10_000).await;
    let (rows, left_out) = (world.rows().await, recorder.status().details_left_out);
    assert!(rows < 10_000, "{rows}");
    assert_eq!(left_out, u64::try_from(10_000 - rows).expect("a count"));
}

store_test!(what_may_have_been_written_is_not_merged_with_what_was_not);
async fn what_may_have_been_written_is_not_merged_with_what_was_not(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = Recorder::default();
    // A quarter of the bound is written at once: two segments of 4 MiB.
    let options = SpoolOptions { folder: world.database.spool(), bytes_max: 2 * BYTES_MAX };
    recorder.open(&world.store, &options).await.expect("the spool opens");
    (0..1_300).for_each(|number| recorder.record(&world.large_event(number)));
    let blocked = world.database.block_writes().await;
    recorder.flush(&world.store).await.expect_err("the database takes nothing");
    assert_eq!(recorder.status().segments, 3, "two that were tried and one that was not");
    world.record_too_much(&recorder);
    recorder.flush(&world.store).await.expect_err("the database takes nothing");
    blocked.release().await;
    let status = recorder.status();
    assert!(
        status.segments == 3 && status.bytes <= status.bytes_max,
        "the two, and one merged of all else: {status:?}"
    );
    world.flush(&recorder).await;
    world.expect(6_300).await;
}

/// The number in the header of a segment, 0 for any other file.
fn number_of(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("a file");
    let number = bytes.get(24..32).filter(|_| bytes.starts_with(b"KSUSAGE"));
    number.map_or(0, |number| u64::from_le_bytes(number.try_into().expect("8 bytes")))
}

store_test!(a_crash_after_a_merge_and_before_the_merged_are_gone_counts_nothing_twice);
async fn a_crash_after_a_merge_and_before_the_merged_are_gone_counts_nothing_twice(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    world.record_too_much(&recorder);
    let before = world.database.folder().join("before");
    copy(&world.database.spool(), &before);
    let blocked = world.database.block_writes().await;
    recorder.flush(&world.store).await.expect_err("the database takes nothing");
    blocked.release().await;
    drop(recorder);
    // All that the merged segment stands for is there again, under other names: all but the oldest and the active one.
    let slot = slots(&world.database.spool()).remove(0);
    let mut segments: Vec<_> = entries(&slots(&before)[0]).into_iter().map(|path| (number_of(&path), path)).collect();
    segments.retain(|(number, _)| *number > 0);
    segments.sort();
    for (number, path) in &segments[1..segments.len() - 1] {
        fs::copy(path, slot.join(format!("again-{number}"))).expect("a copy");
    }
    fs::write(slot.join("unfinished"), b"half a merged segment").expect("a file");

    let recorder = world.recorder().await;
    world.flush(&recorder).await;
    assert_eq!((world.counted().await, world.weighed().await), (5_000, 5_000));
    assert!(!slot.join("unfinished").exists());
}

store_test!(where_no_file_can_be_made_counts_go_on_in_memory);
async fn where_no_file_can_be_made_counts_go_on_in_memory(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    recorder.record(&world.large_event(TOO_MANY));
    let slot = slots(&world.database.spool()).remove(0);
    let aside = slot.with_extension("aside");
    fs::rename(&slot, &aside).expect("the folder is moved away");
    fs::write(&slot, "in its place").expect("a file");
    world.record_too_much(&recorder);
    assert!(recorder.status().failing);
    recorder.record_caller(world.key.id, world.event(TOO_MANY + 1).time);
    world.flush(&recorder).await;
    let rows = world.rows().await;
    assert_eq!((world.counted().await, world.requests().await), (5_001, 5_002));
    assert!((500..5_000).contains(&rows), "what had room has rows: {rows}");

    fs::remove_file(&slot).expect("the file is removed");
    fs::rename(&aside, &slot).expect("the folder is back");
    wait_until("the spool to grow again", async || !recorder.status().failing).await;
    world.record(&recorder, 100);
    world.flush(&recorder).await;
    assert_eq!((world.counted().await, world.rows().await), (5_101, rows + 100));
}
