//! Failing calls, and what Linux leaves behind after them.

use std::io;

use baleen_fault_injection::{Errno, Fault, Operation, SimulatedDisk, Subsets, When};
use baleen_store::{Access, Disk, Handle, WriteBack, read_file};

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.expect_err("the call fails").raw_os_error()
}

fn read(disk: &SimulatedDisk, name: &[u8]) -> Vec<u8> {
    let file = disk.open_file(&disk.root().unwrap(), name, Access::Read).unwrap();
    read_file(disk, &file, 1 << 20).unwrap()
}

/// A durable file of `old`.
fn disk_with_file() -> (SimulatedDisk, Handle, Handle) {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let file = disk.create_file(&root, b"f", 0o600).unwrap();
    disk.write_at(&file, b"old", 0).unwrap();
    disk.settle();
    (disk, root, file)
}

/// True if some cut now leaves those bytes in the file.
fn some_cut_leaves(disk: &SimulatedDisk, bytes: &[u8]) -> bool {
    let recording = disk.recording();
    let states = recording.states(recording.steps(), &Subsets::default());
    states.iter().any(|state| read(&recording.reboot(state), b"f") == bytes)
}

#[test]
fn after_a_failed_sync_the_cache_shows_bytes_that_no_later_sync_makes_durable() {
    let (disk, _, file) = disk_with_file();
    disk.write_at(&file, b"new", 0).unwrap();
    disk.fail_nth(Operation::Sync, 0, Errno::IO);
    assert_eq!(errno(disk.sync(&file)), Some(libc::EIO));
    disk.sync(&file).expect("the error was told; the pages are clean");
    assert_eq!(read(&disk, b"f"), b"new", "a cached read shows what was written");
    assert!(some_cut_leaves(&disk, b"old"), "the later sync wrote nothing");

    disk.drop_cache(&file, 0, 0).unwrap();
    assert_eq!(read(&disk, b"f"), b"old", "a read past the cache shows what is on the disk");
    assert!(!some_cut_leaves(&disk, b"new"));

    disk.write_at(&file, b"new", 0).unwrap();
    disk.sync(&file).unwrap();
    assert!(!some_cut_leaves(&disk, b"old"), "written again, it is durable");
}

#[test]
fn dropping_the_cache_loses_nothing_that_is_merely_not_synced_yet() {
    let (disk, _, file) = disk_with_file();
    disk.fail_nth(Operation::Sync, 0, Errno::IO);
    disk.write_at(&file, b"failed", 0).unwrap();
    assert!(disk.sync(&file).is_err());
    disk.write_at(&file, b"dirty", 8192).unwrap();
    disk.drop_cache(&file, 0, 0).unwrap();
    let bytes = read(&disk, b"f");
    assert_eq!((&bytes[..3], &bytes[8192..]), (&b"old"[..], &b"dirty"[..]));
}

#[test]
fn a_failed_barrier_strikes_every_write_and_is_told_once_to_each_that_was_open() {
    let (disk, root, file) = disk_with_file();
    let (early, other) = (disk.root().unwrap(), disk.open_dir_in_root(&root, "/".as_ref()).unwrap());
    disk.write_at(&file, b"new", 0).unwrap();
    disk.fail_nth(Operation::Barrier, 0, Errno::IO);
    assert_eq!(errno(disk.barrier(&early)), Some(libc::EIO));
    disk.barrier(&early).expect("told once");
    assert_eq!(errno(disk.barrier(&other)), Some(libc::EIO), "told to each");
    disk.barrier(&disk.root().unwrap()).expect("opened after it was told to somebody");
    assert_eq!(errno(disk.sync(&file)), Some(libc::EIO), "and to the file's own handle");
    disk.sync(&file).unwrap();
    assert!(some_cut_leaves(&disk, b"old"));
}

#[test]
fn a_write_back_that_fails_later_is_told_by_the_next_barrier() {
    let (disk, root, file) = disk_with_file();
    disk.write_at(&file, b"new", 0).unwrap();
    disk.fail_nth(Operation::WriteBack, 0, Errno::IO);
    disk.write_back(&file, 0, 0, WriteBack::Start).expect("it fails after the call");
    assert_eq!(errno(disk.barrier(&root)), Some(libc::EIO));
    assert!(some_cut_leaves(&disk, b"old"));

    let (disk, _, file) = disk_with_file();
    disk.write_at(&file, b"new", 0).unwrap();
    disk.fail_nth(Operation::WriteBack, 0, Errno::IO);
    assert_eq!(errno(disk.write_back(&file, 0, 0, WriteBack::Wait)), Some(libc::EIO), "waiting tells");
}

#[test]
fn on_an_old_kernel_a_barrier_tells_nothing_and_a_wait_for_each_file_does() {
    let (disk, root, file) = disk_with_file();
    disk.lose_barrier_errors(true);
    assert!(!disk.barrier_reports_every_error());
    disk.write_at(&file, b"new", 0).unwrap();
    disk.fail_nth(Operation::WriteBack, 0, Errno::IO);
    disk.write_back(&file, 0, 0, WriteBack::Start).unwrap();
    disk.barrier(&root).expect("the error is lost");
    assert!(some_cut_leaves(&disk, b"old"));
    let again = disk.open_file(&root, b"f", Access::Read).unwrap();
    assert_eq!(errno(disk.write_back(&again, 0, 0, WriteBack::Wait)), Some(libc::EIO), "nobody had seen it yet");
    assert_eq!(disk.old_errors_told(), 1);
}

#[test]
fn write_back_is_no_barrier() {
    let (disk, _, file) = disk_with_file();
    disk.write_at(&file, b"new", 0).unwrap();
    disk.write_back(&file, 0, 0, WriteBack::Wait).unwrap();
    assert!(some_cut_leaves(&disk, b"old"));
}

#[test]
fn faults_strike_by_step_by_call_by_kind_and_by_path() {
    let (disk, root, _) = disk_with_file();
    disk.fail_step(1, Errno::IO);
    disk.create_dir(&root, b"a", 0o700).unwrap();
    assert_eq!(errno(disk.create_dir(&root, b"b", 0o700)), Some(libc::EIO));
    assert_eq!(errno(disk.metadata_at(&root, b"b")), Some(libc::ENOENT), "a failed call changes nothing");
    disk.create_dir(&root, b"b", 0o700).unwrap();

    disk.inject(Fault { when: When::Call(disk.calls() + 1), errno: Errno::IO });
    disk.metadata(&root).unwrap();
    assert_eq!(errno(disk.metadata(&root)), Some(libc::EIO));

    disk.inject(Fault { when: When::Path(Operation::Remove, "/a".to_owned()), errno: Errno::DQUOT });
    disk.remove_dir(&root, b"b").unwrap();
    assert_eq!(errno(disk.remove_dir(&root, b"a")), Some(libc::EDQUOT));
    disk.clear_faults();
    disk.remove_dir(&root, b"a").unwrap();

    let (disk, _, file) = disk_with_file();
    disk.fail_nth(Operation::Read, 1, Errno::IO);
    assert_eq!(disk.read_at(&file, &mut [0; 3], 0).unwrap(), 3);
    assert_eq!(errno(disk.read_at(&file, &mut [0; 3], 0)), Some(libc::EIO));
}

#[test]
fn a_failed_write_leaves_a_part_of_its_bytes() {
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let (disk, root, file) = disk_with_file();
        disk.set_len(&file, 0).unwrap();
        for _ in 0..lengths.len() {
            disk.set_mode(&root, 0o755).unwrap(); // Another step, another part.
        }
        disk.fail_nth(Operation::Write, 0, Errno::IO);
        assert_eq!(errno(disk.write_at(&file, &[1; 5000], 0)), Some(libc::EIO));
        let length = disk.metadata(&file).unwrap().size_bytes;
        assert!(length <= 5000);
        lengths.insert(length);
    }
    assert!(lengths.len() > 3, "{lengths:?}");
}

#[test]
fn a_full_disk_refuses_what_needs_room_and_removing_gives_it_back() {
    let (disk, root, file) = disk_with_file();
    disk.full_from(0);
    disk.write_at(&file, b"new", 0).expect("in place it needs no room");
    assert_eq!(errno(disk.write_at(&file, &[1; 9000], 0)), Some(libc::ENOSPC));
    assert_eq!(disk.metadata(&file).unwrap().size_bytes, 4096, "what fitted was written");
    assert_eq!(errno(disk.create_file(&root, b"g", 0o600)), Some(libc::ENOSPC));
    assert_eq!(disk.space(&root).unwrap().free_bytes, 0);
    disk.remove_file(&root, b"f").unwrap();
    assert_eq!(errno(disk.create_dir(&root, b"d", 0o700)), Some(libc::ENOSPC), "an open file still takes its room");
    drop(file);
    disk.create_dir(&root, b"d", 0o700).unwrap();
}

#[test]
fn a_read_only_disk_refuses_every_change_and_says_so_to_a_sync() {
    let (disk, root, file) = disk_with_file();
    disk.write_at(&file, b"new", 0).unwrap();
    disk.read_only_from(1);
    assert_eq!(errno(disk.write_at(&file, b"new", 0)), Some(libc::EROFS));
    assert_eq!(errno(disk.remove_file(&root, b"f")), Some(libc::EROFS));
    assert_eq!(errno(disk.open_file(&root, b"f", Access::ReadWrite)), Some(libc::EROFS));
    assert_eq!(errno(disk.sync(&file)), Some(libc::EROFS));
    assert_eq!(read(&disk, b"f"), b"new");
    assert!(some_cut_leaves(&disk, b"old"));
}

#[test]
fn a_skipped_barrier_says_that_it_was_done() {
    let (disk, root, file) = disk_with_file();
    disk.write_at(&file, b"new", 0).unwrap();
    disk.skip_barrier(0);
    disk.sync(&file).unwrap();
    assert!(some_cut_leaves(&disk, b"old"));
    disk.barrier(&root).unwrap();
    assert!(!some_cut_leaves(&disk, b"old"));
}

#[test]
fn short_reads_give_at_least_a_byte_and_never_a_wrong_one() {
    let (disk, _, file) = disk_with_file();
    disk.short_reads(Some(3));
    let mut shorter = 0;
    for _ in 0..50 {
        let mut buffer = [0; 3];
        let count = disk.read_at(&file, &mut buffer, 0).unwrap();
        assert!(count > 0 && buffer[..count] == b"old"[..count]);
        shorter += u32::from(count < 3);
    }
    assert!(shorter > 5);
    assert_eq!(read(&disk, b"f"), b"old", "a caller that goes on reads it all");
}

#[test]
fn flipped_bits_are_seen_at_once_and_after_every_cut() {
    let (disk, _, file) = disk_with_file();
    disk.flip_bits("/f", 1, 0x01).unwrap();
    assert_eq!(read(&disk, b"f"), b"omd");
    disk.write_at(&file, b"?", 2).unwrap();
    assert!(some_cut_leaves(&disk, b"omd") && !some_cut_leaves(&disk, b"old"));
    assert_eq!(errno(disk.flip_bits("/f", 3, 1)), Some(libc::EINVAL));
    assert_eq!(errno(disk.flip_bits("/g", 0, 1)), Some(libc::ENOENT));
}

#[test]
fn a_lock_lasts_until_its_handle_is_dropped() {
    let (disk, root, file) = disk_with_file();
    disk.lock(&file).unwrap();
    disk.lock(&file).unwrap();
    let second = disk.open_file(&root, b"f", Access::ReadWrite).unwrap();
    assert_eq!(errno(disk.lock(&second)), Some(libc::EWOULDBLOCK));
    drop(file);
    disk.lock(&second).unwrap();
}
