//! One recorder and its spool: what was recorded is there after the process is gone, counts once whatever is tried
//! twice, and goes to no other database. A recorder that is dropped leaves its files as `kill -9` would.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use keystead::domain::{outcome::Outcome, usage::UsageEvent};
use keystead::store::{commit, organizations, usage};
use keystead::usage::{OpenError, Recorder, SpoolOptions};

use super::{World, copy, entries, nobody, slots};
use crate::harness::{TestDatabase, contains, samples, store_test, wait_until};

store_test!(what_was_recorded_is_written_once_also_by_many_flushes);
async fn what_was_recorded_is_written_once_also_by_many_flushes(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    world.flush(&recorder).await;
    world.record(&recorder, 100);
    world.flush(&recorder).await;
    world.expect(100).await;
    world.flush(&recorder).await;
    world.record(&recorder, 50);
    recorder.record_caller(world.key.id, samples::NOW);
    world.flush(&recorder).await;
    assert_eq!((world.counted().await, world.rows().await, world.requests().await), (150, 150, 151));
    let last = format!("SELECT last_used_time_us FROM api_keys WHERE id = '{}'", world.key.id);
    assert_eq!(world.database.query_i64(&last).await, world.event(99).time.micros());
    let status = recorder.status();
    assert_eq!((status.segments, status.bytes, status.applied, status.failing), (0, 0, 2, false));
}

store_test!(threads_that_record_at_once_lose_nothing_while_it_is_flushed);
async fn threads_that_record_at_once_lose_nothing_while_it_is_flushed(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| world.record(&recorder, 20_000))).collect();
        let runtime = tokio::runtime::Handle::current();
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            tokio::task::block_in_place(|| runtime.block_on(world.flush(&recorder)));
        }
    });
    world.flush(&recorder).await;
    world.expect(80_000).await;
}

store_test!(what_a_dead_process_recorded_is_written_at_the_next_start);
async fn what_a_dead_process_recorded_is_written_at_the_next_start(database: TestDatabase) {
    let world = World::new(database).await;
    for round in 1..=3 {
        let recorder = world.recorder().await;
        // More than one segment.
        (0..1_000).for_each(|number| recorder.record(&world.large_event(number)));
        drop(recorder);
        let recorder = world.recorder().await;
        assert!(recorder.status().segments > 1, "{:?}", recorder.status());
        world.flush(&recorder).await;
        world.expect(round * 1_000).await;
    }
    assert_eq!(slots(&world.database.spool()).len(), 1, "the same slot each time");
}

store_test!(a_segment_whose_commit_was_not_heard_of_counts_once);
async fn a_segment_whose_commit_was_not_heard_of_counts_once(database: TestDatabase) {
    let world = World::new(database).await;
    let elsewhere = world.database.folder().join("elsewhere");
    let recorder = world.recorder().await;
    world.record(&recorder, 100);
    copy(&world.database.spool(), &elsewhere);
    // The same slot with the same segment, looked at before the first has written it and tried after.
    let again = world.recorder_in(&elsewhere).await;
    assert_eq!(again.status().segments, 1);
    world.flush(&recorder).await;
    world.flush(&again).await;
    world.expect(100).await;
    // What comes after it is not taken for it.
    world.record(&again, 10);
    world.flush(&again).await;
    world.expect(110).await;
}

store_test!(a_run_of_segments_of_which_the_first_was_written_before_counts_it_once);
async fn a_run_of_segments_of_which_the_first_was_written_before_counts_it_once(database: TestDatabase) {
    let world = World::new(database).await;
    let elsewhere = world.database.folder().join("elsewhere");
    let recorder = world.recorder().await;
    world.record(&recorder, 100);
    drop(recorder);
    copy(&world.database.spool(), &elsewhere);
    let recorder = world.recorder().await;
    world.record(&recorder, 50);
    drop(recorder);
    // Both are looked at while nothing is written; the one that has the first segment alone is faster.
    let both = world.recorder().await;
    let first = world.recorder_in(&elsewhere).await;
    assert_eq!((both.status().segments, first.status().segments), (2, 1));
    world.flush(&first).await;
    world.expect(100).await;
    world.flush(&both).await;
    world.expect(150).await;
    assert_eq!(both.status().segments, 0);
}

store_test!(a_run_ends_at_its_bound_of_rows_and_the_next_goes_on);
async fn a_run_ends_at_its_bound_of_rows_and_the_next_goes_on(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = Recorder::default();
    // By its bytes, a run may have four segments.
    let options = SpoolOptions { folder: world.database.spool(), bytes_max: 64 << 20 };
    recorder.open(&world.store, &options).await.expect("the spool opens");
    for number in 0..45_000 {
        recorder.record(&UsageEvent { endpoint: format!("/{number}"), ..world.event(number) });
    }
    assert_eq!(recorder.status().segments, 1, "and a second one is begun");
    world.flush(&recorder).await;
    world.expect(45_000).await;
    assert_eq!(world.database.query_i64("SELECT count(*) FROM usage_rollups").await, 45_000);
    // A row for every second event: more than one run has.
    let rows = world.rows().await;
    assert!((22_000..23_000).contains(&rows), "{rows}");
}

store_test!(what_was_tried_is_read_once_however_often_it_is_tried);
async fn what_was_tried_is_read_once_however_often_it_is_tried(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    world.record(&recorder, 100);
    let blocked = world.database.block_writes().await;
    recorder.flush(&world.store).await.expect_err("the database takes nothing");
    blocked.release().await;
    // Whoever read it now would find no record.
    let slot = slots(&world.database.spool()).remove(0);
    for path in entries(&slot).into_iter().filter(|path| !path.ends_with("lock")) {
        let file = File::options().write(true).open(path).expect("a segment");
        file.write_all_at(&[0; 100], 64).expect("the file is changed");
    }
    world.flush(&recorder).await;
    world.expect(100).await;
    world.record(&recorder, 10);
    world.flush(&recorder).await;
    world.expect(110).await;
}

store_test!(a_segment_that_was_written_before_the_process_died_counts_once);
async fn a_segment_that_was_written_before_the_process_died_counts_once(database: TestDatabase) {
    let world = World::new(database).await;
    let elsewhere = world.database.folder().join("elsewhere");
    let recorder = world.recorder().await;
    world.record(&recorder, 100);
    copy(&world.database.spool(), &elsewhere);
    world.flush(&recorder).await;
    drop(recorder);
    let recorder = world.recorder_in(&elsewhere).await;
    assert_eq!(recorder.status().segments, 0, "the database has it");
    world.record(&recorder, 10);
    world.flush(&recorder).await;
    world.expect(110).await;
}

store_test!(two_that_write_the_same_segment_at_once_count_it_once);
async fn two_that_write_the_same_segment_at_once_count_it_once(database: TestDatabase) {
    let world = World::new(database).await;
    let first = world.recorder().await;
    world.record(&first, 100);
    let mut recorders = vec![first];
    for number in 0..3 {
        let elsewhere = world.database.folder().join(format!("elsewhere-{number}"));
        copy(&world.database.spool(), &elsewhere);
        recorders.push(world.recorder_in(&elsewhere).await);
    }
    let flushes = recorders.into_iter().map(|recorder| {
        let store = world.store.clone();
        tokio::spawn(async move { recorder.flush(&store).await.expect("usage is written") })
    });
    for flush in flushes.collect::<Vec<_>>() {
        flush.await.expect("no panic");
    }
    world.expect(100).await;
}

store_test!(a_spool_is_not_written_to_another_database);
async fn a_spool_is_not_written_to_another_database(database: TestDatabase) {
    let engine = database.engine;
    let world = World::new(database).await;
    let other = World::new(TestDatabase::new(engine).await).await;
    let spool = world.database.spool();
    let recorder = world.recorder().await;
    world.record(&recorder, 100);
    drop(recorder);

    let foreign = other.recorder_in(&spool).await;
    foreign.adopt(&other.store).await.expect("nothing to adopt");
    other.flush(&foreign).await;
    other.expect(0).await;
    assert_eq!(entries(&spool).len(), 2, "a folder for each database");

    let recorder = world.recorder().await;
    world.flush(&recorder).await;
    world.expect(100).await;
}

store_test!(a_damaged_segment_costs_its_end_and_nothing_else);
async fn a_damaged_segment_costs_its_end_and_nothing_else(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    world.record(&recorder, 100);
    drop(recorder);
    let slot = slots(&world.database.spool()).remove(0);
    // The keeper may have made the first file, or the first record: either is segment 0.
    let record = |path: &PathBuf| {
        let bytes = fs::read(path).expect("a file");
        (0..bytes.len()).find(|at| bytes[*at..].starts_with(b"tests\x02\0\0\x0070"))
    };
    let found = entries(&slot).into_iter().find_map(|path| record(&path).map(|at| (path, at)));
    let (path, at) = found.expect("the 70th record");
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.write_all_at(b"Tests", at as u64))
        .expect("the file is changed");
    fs::write(slot.join("segment-77"), b"short").expect("a file");
    fs::write(slot.join("segment-78"), vec![0xff; 100]).expect("a file");

    let recorder = world.recorder().await;
    world.flush(&recorder).await;
    world.expect(70).await;
    world.record(&recorder, 5);
    world.flush(&recorder).await;
    world.expect(75).await;
    let aside: Vec<_> =
        entries(&slot).into_iter().filter(|path| path.to_string_lossy().ends_with("unreadable")).collect();
    assert_eq!(aside, [slot.join("segment-78.unreadable")], "what is not ours is left to a person");
}

store_test!(unknown_secrets_count_without_rows_and_without_their_text);
async fn unknown_secrets_count_without_rows_and_without_their_text(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    for _ in 0..10 {
        recorder.record(&UsageEvent { key: None, outcome: Outcome::NotFound, ..world.event(0) });
    }
    world.flush(&recorder).await;
    assert_eq!((world.counted().await, world.rows().await, world.requests().await), (10, 0, 0));
}

store_test!(usage_of_a_deleted_organization_does_not_come_back);
async fn usage_of_a_deleted_organization_does_not_come_back(database: TestDatabase) {
    let world = World::new(database).await;
    let doomed = samples::organization("doomed");
    organizations::insert(world.store.write(), &doomed, None).await.expect("an organization");
    let recorder = world.recorder().await;
    world.record(&recorder, 10);
    for number in 0..20 {
        let key = Some((nobody().0, doomed.id));
        recorder.record(&UsageEvent { key, ..world.event(number) });
    }
    let transaction = world.store.begin().await.expect("a transaction begins");
    usage::delete_of_organization(&transaction, doomed.id).await.expect("deleted");
    assert!(organizations::delete(&transaction, doomed.id).await.expect("deleted"));
    commit(transaction).await.expect("a commit");
    world.flush(&recorder).await;
    world.expect(10).await;
}

store_test!(a_folder_that_cannot_be_used_is_a_clear_error);
async fn a_folder_that_cannot_be_used_is_a_clear_error(database: TestDatabase) {
    let world = World::new(database).await;
    let file = world.database.folder().join("file");
    fs::write(&file, "in the way").expect("a file");
    for folder in [file.clone(), file.join("below")] {
        let options = SpoolOptions { folder: folder.clone(), bytes_max: super::BYTES_MAX };
        let refused = options.prepare();
        let Err(OpenError::Spool(error)) = refused else {
            panic!("{refused:?}");
        };
        assert!(error.to_string().contains(&folder.display().to_string()), "{error}");
    }
}

store_test!(in_steady_state_no_file_is_made);
async fn in_steady_state_no_file_is_made(database: TestDatabase) {
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    let slot = slots(&world.database.spool()).remove(0);
    // A file that is made anew under the same name, and at the same place of the disk, has another time.
    let files = || -> BTreeSet<(PathBuf, u64, Option<SystemTime>)> {
        let identity = |path: PathBuf| {
            let metadata = fs::metadata(&path).expect("there");
            (path, metadata.ino(), metadata.created().ok())
        };
        entries(&slot).into_iter().map(identity).collect()
    };
    let mut known = BTreeSet::new();
    for round in 0..8 {
        // Two segments, and a third one is ready, beside the lock.
        (0..1_000).for_each(|number| recorder.record(&world.large_event(number)));
        wait_until("a file to be ready", async || entries(&slot).len() >= 4).await;
        world.flush(&recorder).await;
        let now = files();
        assert!(now.len() <= 6, "round {round}: the lock, one that is ready and a few that are free: {now:?}");
        if round < 2 {
            known.extend(now);
        } else {
            assert!(now.is_subset(&known), "round {round}: {:?} is new", now.difference(&known).collect::<Vec<_>>());
        }
    }
    world.expect(8_000).await;
}

store_test!(what_is_in_the_spool_is_readable_for_its_owner_alone);
async fn what_is_in_the_spool_is_readable_for_its_owner_alone(database: TestDatabase) {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new(database).await;
    let recorder = world.recorder().await;
    world.record(&recorder, 1);
    let slot = slots(&world.database.spool()).remove(0);
    let others = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o077;
    assert_eq!(others(&slot), 0);
    for path in entries(&slot) {
        assert_eq!(others(&path), 0, "{}", path.display());
    }
    let bytes: Vec<u8> = entries(&slot).iter().flat_map(|path| fs::read(path).expect("a file")).collect();
    assert!(contains(&bytes, b"2001:db8::1"), "the event is in the file already");
}
