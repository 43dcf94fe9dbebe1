//! What a cut can leave (R1 to R3): each sync makes durable what it says, and everything else may be lost or kept.

use std::collections::BTreeSet;

use baleen_fault_injection::{CrashState, PowerGone, SimulatedDisk, Subsets};
use baleen_store::{Access, Disk, Handle, NodeKind, Timestamp, read_file};

/// Every listing that a cut now can leave.
fn after_a_cut(disk: &SimulatedDisk) -> BTreeSet<String> {
    let recording = disk.recording();
    let subsets = Subsets { random: 200, ..Subsets::default() };
    recording.states(recording.steps(), &subsets).iter().map(|state| recording.reboot(state).describe()).collect()
}

fn listings(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|listing| (*listing).to_owned()).collect()
}

fn new_file(disk: &SimulatedDisk, dir: &Handle, name: &[u8], bytes: &[u8]) -> Handle {
    let file = disk.create_file(dir, name, 0o600).unwrap();
    disk.write_at(&file, bytes, 0).unwrap();
    file
}

fn mkdir(disk: &SimulatedDisk, dir: &Handle, name: &[u8]) -> Handle {
    disk.create_dir(dir, name, 0o700).unwrap();
    disk.open_dir(dir, name).unwrap()
}

#[test]
fn an_unsynced_file_is_absent_or_empty_or_zeros_or_whole() {
    let disk = SimulatedDisk::new();
    new_file(&disk, &disk.root().unwrap(), b"f", b"new");
    let expected =
        ["", "/f: file of 0 bytes: \n", "/f: file of 3 bytes: \\x00\\x00\\x00\n", "/f: file of 3 bytes: new\n"];
    assert_eq!(after_a_cut(&disk), listings(&expected));
}

#[test]
fn a_synced_file_is_absent_or_whole_and_a_synced_directory_decides() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let file = new_file(&disk, &root, b"f", b"new");
    disk.sync(&file).unwrap();
    assert_eq!(after_a_cut(&disk), listings(&["", "/f: file of 3 bytes: new\n"]));
    disk.sync(&root).unwrap();
    assert_eq!(after_a_cut(&disk), listings(&["/f: file of 3 bytes: new\n"]));
}

#[test]
fn a_synced_directory_names_a_file_whose_contents_may_be_lost() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    new_file(&disk, &root, b"f", b"new");
    disk.sync(&root).unwrap();
    let expected = ["/f: file of 0 bytes: \n", "/f: file of 3 bytes: \\x00\\x00\\x00\n", "/f: file of 3 bytes: new\n"];
    assert_eq!(after_a_cut(&disk), listings(&expected));
}

#[test]
fn a_rename_is_before_or_after_and_never_both_or_neither() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let (from, to) = (mkdir(&disk, &root, b"from"), mkdir(&disk, &root, b"to"));
    new_file(&disk, &from, b"f", b"x");
    disk.settle();
    disk.rename(&from, b"f", &to, b"g").unwrap();
    let before = "/from/\n/from/f: file of 1 bytes: x\n/to/\n";
    let after = "/from/\n/to/\n/to/g: file of 1 bytes: x\n";
    assert_eq!(after_a_cut(&disk), listings(&[before, after]));
}

#[test]
fn a_rename_across_two_directories_is_durable_as_a_whole_with_either() {
    for synced in [&b"from"[..], b"to"] {
        let disk = SimulatedDisk::new();
        let root = disk.root().unwrap();
        let (from, to) = (mkdir(&disk, &root, b"from"), mkdir(&disk, &root, b"to"));
        disk.settle();
        let file = new_file(&disk, &from, b"f", b"x");
        disk.sync(&file).unwrap();
        // The name that is renamed was never synced itself: the rename builds on it, so it comes with it.
        disk.rename(&from, b"f", &to, b"g").unwrap();
        disk.sync(&disk.open_dir(&root, synced).unwrap()).unwrap();
        assert_eq!(after_a_cut(&disk), listings(&["/from/\n/to/\n/to/g: file of 1 bytes: x\n"]));
    }
}

#[test]
fn a_name_that_survives_alone_keeps_what_it_builds_on() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    new_file(&disk, &root, b"a", b"1");
    disk.settle();
    disk.remove_file(&root, b"a").unwrap();
    disk.create_dir(&root, b"a", 0o700).unwrap();
    // Never the directory beside the file, and never a directory over a removal that was lost.
    assert_eq!(after_a_cut(&disk), listings(&["/a: file of 1 bytes: 1\n", "", "/a/\n"]));
}

#[test]
fn a_directory_made_and_synced_is_lost_with_its_own_name() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let dir = mkdir(&disk, &root, b"d");
    let file = new_file(&disk, &dir, b"f", b"x");
    disk.sync(&file).unwrap();
    disk.sync(&dir).unwrap();
    assert_eq!(after_a_cut(&disk), listings(&["", "/d/\n/d/f: file of 1 bytes: x\n"]));
}

#[test]
fn a_file_moved_out_of_a_directory_that_was_lost_is_where_it_was_moved_to() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let kept = mkdir(&disk, &root, b"kept");
    disk.settle();
    let lost = mkdir(&disk, &root, b"lost");
    let file = new_file(&disk, &lost, b"f", b"x");
    disk.sync(&file).unwrap();
    disk.rename(&lost, b"f", &kept, b"f").unwrap();
    disk.sync(&kept).unwrap();
    for listing in after_a_cut(&disk) {
        assert!(listing.starts_with("/kept/\n/kept/f: file of 1 bytes: x\n"), "{listing}");
    }
}

#[test]
fn a_removed_directory_is_never_gone_while_what_was_in_it_came_back() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let dir = mkdir(&disk, &root, b"d");
    new_file(&disk, &dir, b"f", b"x");
    disk.settle();
    disk.remove_file(&dir, b"f").unwrap();
    disk.remove_dir(&root, b"d").unwrap();
    assert_eq!(after_a_cut(&disk), listings(&["/d/\n/d/f: file of 1 bytes: x\n", "/d/\n", ""]));
    disk.sync(&root).unwrap();
    assert_eq!(after_a_cut(&disk), listings(&[""]));
}

#[test]
fn two_names_of_one_inode_are_lost_and_kept_apart() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let file = new_file(&disk, &root, b"a", b"1");
    disk.settle();
    disk.link(&file, &root, b"b").unwrap();
    disk.remove_file(&root, b"a").unwrap();
    let (a, b) = ("/a: file of 1 bytes: 1\n", "/b: file of 1 bytes: 1\n");
    assert_eq!(after_a_cut(&disk), listings(&[a, b, "", &format!("{a}{b}")]));
}

#[test]
fn a_barrier_covers_everything_and_nothing_after_it() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let dir = mkdir(&disk, &root, b"d");
    let file = new_file(&disk, &dir, b"f", b"x");
    disk.barrier(&root).unwrap();
    disk.write_at(&file, b"y", 0).unwrap();
    let expected = ["/d/\n/d/f: file of 1 bytes: x\n", "/d/\n/d/f: file of 1 bytes: y\n"];
    assert_eq!(after_a_cut(&disk), listings(&expected));
}

#[test]
fn a_sync_of_the_data_leaves_attributes_open_and_a_sync_does_not() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let file = new_file(&disk, &root, b"f", b"");
    disk.settle();
    let modes = |disk: &SimulatedDisk| -> BTreeSet<(u32, u64)> {
        let recording = disk.recording();
        let states = recording.states(recording.steps(), &Subsets::default());
        let metadata = states.iter().map(|state| {
            let disk = recording.reboot(state);
            disk.metadata_at(&disk.root().unwrap(), b"f").unwrap()
        });
        metadata.map(|metadata| (metadata.mode, metadata.size_bytes)).collect()
    };
    disk.write_at(&file, b"x", 0).unwrap();
    disk.set_mode(&file, 0o644).unwrap();
    disk.sync_data(&file).unwrap();
    assert_eq!(modes(&disk), BTreeSet::from([(0o600, 1), (0o644, 1)]));
    disk.sync(&file).unwrap();
    assert_eq!(modes(&disk), BTreeSet::from([(0o644, 1)]));
}

#[test]
fn an_unsynced_overwrite_tears_at_sectors() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let file = new_file(&disk, &root, b"f", &[b'o'; 16 * 512]);
    disk.settle();
    disk.write_at(&file, &[b'n'; 16 * 512], 0).unwrap();
    let recording = disk.recording();
    let mut torn = 0;
    for state in recording.states(recording.steps(), &Subsets { random: 200, ..Subsets::default() }) {
        let disk = recording.reboot(&state);
        let file = disk.open_file(&disk.root().unwrap(), b"f", Access::Read).unwrap();
        let bytes = read_file(&disk, &file, 1 << 20).unwrap();
        assert_eq!(bytes.len(), 16 * 512);
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]) && b"on".contains(&sector[0]), "{state}");
        }
        torn += u32::from(bytes.contains(&b'o') && bytes.contains(&b'n'));
    }
    assert!(torn > 5, "only {torn} states tear");
}

#[test]
fn lengths_and_bytes_are_lost_apart() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let file = new_file(&disk, &root, b"f", b"abc");
    disk.settle();
    disk.set_len(&file, 1).unwrap();
    disk.write_at(&file, b"d", 1).unwrap();
    let states = after_a_cut(&disk);
    for expected in ["abc", "a", "adc", "ad"] {
        let listing = format!("/f: file of {} bytes: {expected}\n", expected.len());
        assert!(states.contains(&listing), "{expected} is missing in {states:?}");
    }
}

#[test]
fn after_the_cut_every_call_says_so_and_a_reboot_goes_on_from_the_record() {
    let disk = SimulatedDisk::new();
    let root = disk.root().unwrap();
    let file = new_file(&disk, &root, b"f", b"x"); // Steps 0 and 1.
    disk.cut_power_at(3);
    disk.sync(&file).unwrap();
    assert!(PowerGone::is(&disk.sync(&root).unwrap_err()));
    assert!(PowerGone::is(&disk.read_at(&file, &mut [0], 0).unwrap_err()));
    assert!(PowerGone::is(&disk.root().unwrap_err()));

    let recording = disk.recording();
    assert_eq!(recording.steps(), 3);
    let kept: CrashState = "3:k".parse().unwrap();
    let rebooted = recording.reboot(&kept);
    assert_eq!(rebooted.describe(), "/f: file of 1 bytes: x\n");
    assert!(recording.describe(&kept).contains("create file /f: kept"), "{}", recording.describe(&kept));
    // A handle from before the cut is nothing to the disk after it; and that disk can be cut again.
    assert_eq!(rebooted.metadata(&file).unwrap_err().raw_os_error(), Some(libc::EBADF));
    rebooted.remove_file(&rebooted.root().unwrap(), b"f").unwrap();
    assert_eq!(after_a_cut(&rebooted), listings(&["", "/f: file of 1 bytes: x\n"]));
}

#[test]
fn one_run_gives_one_set_of_states() {
    let run = || {
        let disk = SimulatedDisk::new();
        let root = disk.root().unwrap();
        for name in [b"a", b"b", b"c"] {
            let file = new_file(&disk, &root, name, &[7; 9000]);
            disk.set_times(&file, Timestamp::default(), Timestamp { seconds: 5, nanoseconds: 6 }).unwrap();
        }
        disk.create_node(&root, b"w", NodeKind::CharDevice, 0, (0, 0)).unwrap();
        let recording = disk.recording();
        let states = recording.states(recording.steps(), &Subsets::default());
        let hashes: Vec<u64> = states.iter().map(|state| recording.reboot(state).hash()).collect();
        (states, hashes)
    };
    assert_eq!(run(), run());
}
