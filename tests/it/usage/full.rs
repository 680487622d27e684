//! A spool that is full, a database that hangs, and a disk that is full: counts stay exact, rows of detail are thinned
//! out and their weights add up, and what was recorded before is not lost. All comes back when there is room again.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use keystead::usage::{Recorder, SpoolOptions};

use super::{BYTES_MAX, World, copy, entries, slots};
use crate::harness::{TestDatabase, store_test, wait_until};

/// Events of some 8 KiB that make five segments: more than the bound, and less than twice as much.
const TOO_MANY: usize = 2_400;

impl World {
    fn record_large(&self, recorder: &Recorder, count: usize) {
        (0..count).for_each(|number| recorder.record(&self.large_event(number)));
    }

    /// The bytes of all files of the first slot.
    fn bytes_on_disk(&self) -> u64 {
        let files = entries(&slots(&self.database.spool())[0]);
        files.iter().map(|path| fs::metadata(path).expect("there").len()).sum()
    }
}

store_test!(a_full_spool_is_merged_and_counts_stay_exact);
async fn a_full_spool_is_merged_and_counts_stay_exact(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    for round in 1..=2 {
        world.record_large(&recorder, TOO_MANY);
        assert!(recorder.status().bytes >= BYTES_MAX && !recorder.status().failing, "{:?}", recorder.status());
        let blocked = world.database.block_writes().await;
        recorder.flush(&world.store).await.expect_err("the database takes nothing");
        blocked.release().await;
        let status = recorder.status();
        assert!(status.bytes <= BYTES_MAX && status.segments == 2, "round {round}: {status:?}");
        assert_eq!(status.merges, round);
        let files = world.bytes_on_disk();
        assert!(files <= BYTES_MAX + (16 << 20), "round {round}: {files} bytes on the disk");
    }
    world.flush(&recorder).await;
    world.expect(4_800).await;
    let (rows, left_out) = (world.rows().await, recorder.status().details_left_out);
    assert!(rows < 4_800, "{rows}");
    assert_eq!(left_out, u64::try_from(4_800 - rows).expect("a count"));
}

store_test!(a_database_that_hangs_does_not_take_the_spool_over_its_bound);
async fn a_database_that_hangs_does_not_take_the_spool_over_its_bound(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = Arc::new(world.recorder().await);
    world.record_large(&recorder, 1_300);
    let blocked = world.database.block_writes().await;
    let (hanging, store) = (recorder.clone(), world.store.clone());
    let flush = tokio::spawn(async move { hanging.flush(&store).await });
    wait_until("the flush to begin", async || recorder.status().segments == 3).await;
    world.record_large(&recorder, 10_000);
    recorder.record_caller(world.key.id, world.event(0).time);
    assert!(recorder.status().failing, "{:?}", recorder.status());
    // Twice the bound, what a merge under way writes, and the files that are ready for later.
    let files = world.bytes_on_disk();
    assert!(files <= 2 * BYTES_MAX + BYTES_MAX / 2 + (16 << 20), "{files} bytes on the disk");
    blocked.release().await;
    // On a machine that is busy it may have been given up before.
    let flushed = flush.await.expect("no panic");
    assert!(flushed.is_err() || world.counted().await >= 1_300, "what was recorded before it is written");

    world.flush(&recorder).await;
    let rows = world.rows().await;
    assert_eq!((world.counted().await, world.requests().await), (11_300, 11_301));
    assert!((500..11_300).contains(&rows), "what had room has rows: {rows}");
    assert!(!recorder.status().failing, "{:?}", recorder.status());
    world.record(&recorder, 100);
    world.flush(&recorder).await;
    assert_eq!((world.counted().await, world.rows().await), (11_400, rows + 100));
}

store_test!(what_may_have_been_written_is_not_merged_with_what_was_not);
async fn what_may_have_been_written_is_not_merged_with_what_was_not(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = Recorder::default();
    // A quarter of the bound is written at once: two segments of 4 MiB.
    let options = SpoolOptions { folder: world.database.spool(), bytes_max: 2 * BYTES_MAX };
    recorder.open(&world.store, &options).await.expect("the spool opens");
    world.record_large(&recorder, 1_300);
    let blocked = world.database.block_writes().await;
    recorder.flush(&world.store).await.expect_err("the database takes nothing");
    assert_eq!(recorder.status().segments, 3, "two that were tried and one that was not");
    world.record_large(&recorder, 5_000);
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

store_test!(after_a_restart_what_may_have_been_tried_is_not_merged);
async fn after_a_restart_what_may_have_been_tried_is_not_merged(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    world.record_large(&recorder, 1_000);
    drop(recorder);
    let elsewhere = world.database.folder().join("elsewhere");
    copy(&world.database.spool(), &elsewhere);

    let recorder = world.recorder().await;
    world.record_large(&recorder, TOO_MANY);
    let blocked = world.database.block_writes().await;
    recorder.flush(&world.store).await.expect_err("the database takes nothing");
    blocked.release().await;
    let status = recorder.status();
    assert_eq!((status.segments, status.merges), (3, 1), "the two that were there, and one of those after them");
    // The first process's try comes through late.
    let late = world.recorder_in(&elsewhere).await;
    world.flush(&late).await;
    world.expect(1_000).await;
    world.flush(&recorder).await;
    world.expect(3_400).await;
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
    world.record_large(&recorder, TOO_MANY);
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
    assert_eq!((world.counted().await, world.weighed().await), (2_400, 2_400));
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
    world.record_large(&recorder, TOO_MANY);
    assert!(recorder.status().failing);
    recorder.record_caller(world.key.id, world.event(TOO_MANY + 1).time);
    world.flush(&recorder).await;
    let rows = world.rows().await;
    assert_eq!((world.counted().await, world.requests().await), (2_401, 2_402));
    assert!((500..2_400).contains(&rows), "what had room has rows: {rows}");

    fs::remove_file(&slot).expect("the file is removed");
    fs::rename(&aside, &slot).expect("the folder is back");
    wait_until("the spool to grow again", async || !recorder.status().failing).await;
    world.record(&recorder, 100);
    world.flush(&recorder).await;
    assert_eq!((world.counted().await, world.rows().await), (2_501, rows + 100));
}
