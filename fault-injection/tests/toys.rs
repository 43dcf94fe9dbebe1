//! The judge is judged: writers with the classic mistakes are convicted, their correct twins never are.

use std::io;

use baleen_fault_injection::{Exploration, Journal, Replay, Report, Scenario, SimulatedDisk, Then, explore, replay};
use baleen_store::{Access, Disk, Handle, read_file};

/// A writer of numbered objects. What it acknowledges by number must be found whole; nothing may be found in part.
struct Toy {
    name: &'static str,
    prepare: fn(&SimulatedDisk) -> io::Result<()>,
    write: fn(&SimulatedDisk, &mut Journal<u8>) -> io::Result<()>,
    /// The numbers found, or what is wrong with what was found.
    find: fn(&SimulatedDisk) -> Result<Vec<u8>, String>,
}

impl Scenario for Toy {
    type Ack = u8;
    type Opened = Vec<u8>;

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn prepare(&self, disk: &SimulatedDisk) -> Result<(), String> {
        (self.prepare)(disk).map_err(text)
    }

    fn workload(&self, disk: &SimulatedDisk, journal: &mut Journal<u8>) -> Result<(), String> {
        (self.write)(disk, journal).map_err(text)
    }

    fn recover(&self, disk: &SimulatedDisk) -> Result<Vec<u8>, String> {
        (self.find)(disk)
    }

    fn judge(&self, _: &SimulatedDisk, found: &Vec<u8>, acks: &[u8]) -> Result<(), String> {
        match acks.iter().find(|ack| !found.contains(ack)) {
            Some(lost) => Err(format!("object {lost} was acknowledged and is gone; found {found:?}")),
            None => Ok(()),
        }
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// What the object of a number holds: three blocks and a bit, so that it can tear.
fn body(number: u8) -> Vec<u8> {
    (0..3 * 4096 + 100).map(|at: usize| (at / 512) as u8 ^ number.wrapping_mul(37) | 1).collect()
}

fn nothing(_: &SimulatedDisk) -> io::Result<()> {
    Ok(())
}

fn write_new(disk: &SimulatedDisk, dir: &Handle, name: &[u8], number: u8) -> io::Result<Handle> {
    let file = disk.create_file(dir, name, 0o600)?;
    disk.write_at(&file, &body(number), 0)?;
    Ok(file)
}

/// The number that a file's name ends with, if the file is whole.
fn check(disk: &SimulatedDisk, dir: &Handle, name: &[u8]) -> Result<u8, String> {
    let number = name[name.len() - 1] - b'0';
    let file = disk.open_file(dir, name, Access::Read).map_err(text)?;
    let bytes = read_file(disk, &file, 1 << 20).map_err(text)?;
    let shown = String::from_utf8_lossy(name);
    if bytes == body(number) { Ok(number) } else { Err(format!("{shown} has {} bytes, not its own", bytes.len())) }
}

/// Finds `object.N` in the root.
fn find_objects(disk: &SimulatedDisk) -> Result<Vec<u8>, String> {
    let root = disk.root().map_err(text)?;
    let names = disk.read_dir(&root).map_err(text)?;
    names
        .iter()
        .filter(|entry| entry.name.starts_with(b"object."))
        .map(|entry| check(disk, &root, &entry.name))
        .collect()
}

/// Finds at least one object: a version replaces the one before it.
fn find_some_version(disk: &SimulatedDisk) -> Result<Vec<u8>, String> {
    let found = find_objects(disk)?;
    if found.is_empty() { Err("neither the old nor the new version is there".to_owned()) } else { Ok(found) }
}

fn first_version(disk: &SimulatedDisk) -> io::Result<()> {
    write_new(disk, &disk.root()?, b"object.1", 1).map(drop)
}

/// Puts version 2 in the place of version 1, with a sync of its file or without.
fn replace(disk: &SimulatedDisk, synced: bool) -> io::Result<()> {
    let root = disk.root()?;
    let file = write_new(disk, &root, b"new", 2)?;
    if synced {
        disk.sync(&file)?;
    }
    disk.rename(&root, b"new", &root, b"object.2")?;
    disk.sync(&root)?;
    disk.remove_file(&root, b"object.1")
}

/// A log of frames: length, checksum, payload. Its reader stops at the first that is not whole.
mod log {
    use super::*;

    const FRAME_BYTES: usize = 1024;

    fn checksum(payload: &[u8]) -> u64 {
        payload.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    }

    pub(crate) fn frame(number: u8) -> Vec<u8> {
        let payload = &body(number)[..FRAME_BYTES - 9];
        let mut frame = vec![number];
        frame.extend(checksum(payload).to_le_bytes());
        frame.extend(payload);
        frame
    }

    fn frames(disk: &SimulatedDisk) -> Result<Vec<Vec<u8>>, String> {
        let root = disk.root().map_err(text)?;
        let Ok(file) = disk.open_file(&root, b"log", Access::Read) else { return Ok(Vec::new()) };
        let bytes = read_file(disk, &file, 1 << 20).map_err(text)?;
        Ok(bytes.chunks_exact(FRAME_BYTES).map(<[u8]>::to_vec).collect())
    }

    pub(crate) fn find(disk: &SimulatedDisk) -> Result<Vec<u8>, String> {
        let is_whole = |frame: &Vec<u8>| frame[0] != 0 && frame[1..9] == checksum(&frame[9..]).to_le_bytes();
        Ok(frames(disk)?.iter().take_while(|frame| is_whole(frame)).map(|frame| frame[0]).collect())
    }

    /// Believes the length of the file.
    pub(crate) fn find_without_checksum(disk: &SimulatedDisk) -> Result<Vec<u8>, String> {
        frames(disk)?
            .iter()
            .map(|found| if *found == frame(found[0]) { Ok(found[0]) } else { Err("a frame is damaged".to_owned()) })
            .collect()
    }

    pub(crate) fn append(disk: &SimulatedDisk, file: &Handle, number: u8) -> io::Result<()> {
        disk.write_at(file, &frame(number), (u64::from(number) - 1) * FRAME_BYTES as u64)
    }

    pub(crate) fn create(disk: &SimulatedDisk) -> io::Result<Handle> {
        let root = disk.root()?;
        let file = disk.create_file(&root, b"log", 0o600)?;
        disk.sync(&root)?;
        Ok(file)
    }

    pub(crate) fn preallocate(disk: &SimulatedDisk) -> io::Result<()> {
        let root = disk.root()?;
        let file = disk.create_file(&root, b"log", 0o600)?;
        disk.write_at(&file, &[0; 16 * FRAME_BYTES], 0)
    }

    pub(crate) fn open(disk: &SimulatedDisk) -> io::Result<Handle> {
        disk.open_file(&disk.root()?, b"log", Access::ReadWrite)
    }
}

/// Objects staged, a log that makes them real, and names that follow: the store's own order, in small.
mod staged {
    use super::*;

    pub(crate) fn prepare(disk: &SimulatedDisk) -> io::Result<()> {
        disk.create_dir(&disk.root()?, b"staging", 0o700)?;
        log::preallocate(disk)
    }

    /// Opens: what the log names and staging still holds goes into place.
    pub(crate) fn find(disk: &SimulatedDisk) -> Result<Vec<u8>, String> {
        let root = disk.root().map_err(text)?;
        let staging = disk.open_dir(&root, b"staging").map_err(text)?;
        let committed = log::find(disk)?;
        for number in &committed {
            let name = format!("object.{number}");
            if disk.metadata_at(&root, name.as_bytes()).is_err() {
                disk.rename(&staging, name.as_bytes(), &root, name.as_bytes()).map_err(|error| {
                    format!("object {number} is in the log, and neither staged nor in place: {error}")
                })?;
            }
            check(disk, &root, name.as_bytes())?;
        }
        Ok(committed)
    }

    #[derive(PartialEq)]
    pub(crate) enum Mistake {
        None,
        RecordBeforeBarrier,
        NoBarrier,
    }

    pub(crate) fn write(disk: &SimulatedDisk, journal: &mut Journal<u8>, mistake: &Mistake) -> io::Result<()> {
        let root = disk.root()?;
        let staging = disk.open_dir(&root, b"staging")?;
        let log = log::open(disk)?;
        for number in [1, 2] {
            let name = format!("object.{number}");
            write_new(disk, &staging, name.as_bytes(), number)?;
            let record = || -> io::Result<()> {
                log::append(disk, &log, number)?;
                disk.sync_data(&log)
            };
            match mistake {
                Mistake::None => {
                    disk.barrier(&root)?;
                    record()?;
                }
                Mistake::RecordBeforeBarrier => {
                    record()?;
                    disk.barrier(&root)?;
                }
                Mistake::NoBarrier => record()?,
            }
            journal.acknowledge(number);
            disk.rename(&staging, name.as_bytes(), &root, name.as_bytes())?;
        }
        Ok(())
    }
}

const WRONG: &[Toy] = &[
    Toy {
        name: "rename without a sync of the file",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            write_new(disk, &root, b"new", 1)?;
            disk.rename(&root, b"new", &root, b"object.1")?;
            disk.sync(&root)?;
            journal.acknowledge(1);
            Ok(())
        },
        find: find_objects,
    },
    Toy {
        name: "no sync of the directory",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            let file = write_new(disk, &root, b"new", 1)?;
            disk.sync(&file)?;
            disk.rename(&root, b"new", &root, b"object.1")?;
            journal.acknowledge(1);
            Ok(())
        },
        find: find_objects,
    },
    Toy {
        name: "sync of the directory before the rename",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            let file = write_new(disk, &root, b"new", 1)?;
            disk.sync(&file)?;
            disk.sync(&root)?;
            disk.rename(&root, b"new", &root, b"object.1")?;
            journal.acknowledge(1);
            Ok(())
        },
        find: find_objects,
    },
    Toy {
        name: "replacement by rename without a sync of the file",
        prepare: first_version,
        write: |disk, _| replace(disk, false),
        find: find_some_version,
    },
    Toy {
        name: "removal of the old version before the new one's name is durable",
        prepare: first_version,
        write: |disk, _| {
            let root = disk.root()?;
            let file = write_new(disk, &root, b"new", 2)?;
            disk.sync(&file)?;
            disk.rename(&root, b"new", &root, b"object.2")?;
            disk.remove_file(&root, b"object.1")
        },
        find: find_some_version,
    },
    Toy {
        name: "overwriting in place",
        prepare: first_version,
        write: |disk, _| {
            let file = disk.open_file(&disk.root()?, b"object.1", Access::ReadWrite)?;
            disk.write_at(&file, &body(2), 0)?;
            disk.sync(&file)
        },
        find: |disk| {
            let root = disk.root().map_err(text)?;
            let file = disk.open_file(&root, b"object.1", Access::Read).map_err(text)?;
            let bytes = read_file(disk, &file, 1 << 20).map_err(text)?;
            let found = [1, 2].into_iter().find(|number| bytes == body(*number));
            found.map(|number| vec![number]).ok_or_else(|| "neither the old bytes nor the new".to_owned())
        },
    },
    Toy {
        name: "appending to a log without a sync",
        prepare: nothing,
        write: |disk, journal| {
            let file = log::create(disk)?;
            for number in 1..=3 {
                log::append(disk, &file, number)?;
                journal.acknowledge(number);
            }
            Ok(())
        },
        find: log::find,
    },
    Toy {
        name: "a log without checksums",
        prepare: nothing,
        write: |disk, journal| {
            let file = log::create(disk)?;
            for number in 1..=3 {
                log::append(disk, &file, number)?;
                disk.sync(&file)?;
                journal.acknowledge(number);
            }
            Ok(())
        },
        find: log::find_without_checksum,
    },
    Toy {
        name: "a log whose name is never synced",
        prepare: nothing,
        write: |disk, journal| {
            let file = disk.create_file(&disk.root()?, b"log", 0o600)?;
            log::append(disk, &file, 1)?;
            disk.sync(&file)?;
            journal.acknowledge(1);
            Ok(())
        },
        find: log::find,
    },
    Toy {
        name: "rename before the barrier",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            write_new(disk, &root, b"new", 1)?;
            disk.rename(&root, b"new", &root, b"object.1")?;
            disk.barrier(&root)?;
            journal.acknowledge(1);
            Ok(())
        },
        find: find_objects,
    },
    Toy {
        name: "one of three files without a sync",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            for number in 1..=3 {
                let file = write_new(disk, &root, b"new", number)?;
                if number != 2 {
                    disk.sync(&file)?;
                }
                disk.rename(&root, b"new", &root, format!("object.{number}").as_bytes())?;
            }
            disk.sync(&root)?;
            (1..=3).for_each(|number| journal.acknowledge(number));
            Ok(())
        },
        find: find_objects,
    },
    Toy {
        name: "a directory synced, and not its own name",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            disk.create_dir(&root, b"dir", 0o700)?;
            let dir = disk.open_dir(&root, b"dir")?;
            let file = write_new(disk, &dir, b"object.1", 1)?;
            disk.sync(&file)?;
            disk.sync(&dir)?;
            journal.acknowledge(1);
            Ok(())
        },
        find: |disk| match disk.open_dir(&disk.root().map_err(text)?, b"dir") {
            Ok(dir) if disk.metadata_at(&dir, b"object.1").is_ok() => Ok(vec![1]),
            _ => Ok(Vec::new()),
        },
    },
    Toy {
        name: "the record in the log before the barrier over its object",
        prepare: staged::prepare,
        write: |disk, journal| staged::write(disk, journal, &staged::Mistake::RecordBeforeBarrier),
        find: staged::find,
    },
    Toy {
        name: "the record in the log without any barrier",
        prepare: staged::prepare,
        write: |disk, journal| staged::write(disk, journal, &staged::Mistake::NoBarrier),
        find: staged::find,
    },
];

/// Writes its object as an intent first; recovery carries it out, and drops it once that is durable, or too early.
fn carry_out(disk: &SimulatedDisk, synced: bool) -> Result<Vec<u8>, String> {
    let root = disk.root().map_err(text)?;
    if disk.metadata_at(&root, b"intent.1").is_ok() {
        let number = check(disk, &root, b"intent.1")?;
        // Of a recovery that was cut.
        let _ = disk.remove_file(&root, b"object.1");
        let file = write_new(disk, &root, b"object.1", number).map_err(text)?;
        if synced {
            disk.sync(&file).map_err(text)?;
            disk.sync(&root).map_err(text)?;
        }
        disk.remove_file(&root, b"intent.1").map_err(text)?;
        disk.sync(&root).map_err(text)?;
    }
    find_objects(disk)
}

fn write_intent(disk: &SimulatedDisk, journal: &mut Journal<u8>) -> io::Result<()> {
    let root = disk.root()?;
    let file = write_new(disk, &root, b"new", 1)?;
    disk.sync(&file)?;
    disk.rename(&root, b"new", &root, b"intent.1")?;
    disk.sync(&root)?;
    journal.acknowledge(1);
    Ok(())
}

/// Its recovery must be cut to be convicted.
const FORGETFUL: Toy = Toy {
    name: "an intent dropped before it is durably carried out",
    prepare: nothing,
    write: write_intent,
    find: |disk| carry_out(disk, false),
};

/// Recovers by taking away what it cannot read, as half written.
const HASTY: Toy = Toy {
    name: "an object that cannot be read is taken for half written",
    prepare: nothing,
    write: |disk, journal| {
        let root = disk.root()?;
        let file = write_new(disk, &root, b"new", 1)?;
        disk.sync(&file)?;
        disk.rename(&root, b"new", &root, b"object.1")?;
        disk.sync(&root)?;
        journal.acknowledge(1);
        Ok(())
    },
    find: |disk| {
        let root = disk.root().map_err(text)?;
        match check(disk, &root, b"object.1") {
            Ok(number) => Ok(vec![number]),
            Err(_) => {
                let _ = disk.remove_file(&root, b"object.1");
                Ok(Vec::new())
            }
        }
    },
};

const RIGHT: &[Toy] = &[
    Toy {
        name: "write, sync, rename, sync of the directory",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            for number in 1..=3 {
                let file = write_new(disk, &root, b"new", number)?;
                disk.sync(&file)?;
                disk.rename(&root, b"new", &root, format!("object.{number}").as_bytes())?;
                disk.sync(&root)?;
                journal.acknowledge(number);
            }
            Ok(())
        },
        find: find_objects,
    },
    Toy {
        name: "write, barrier, rename, sync of the directory",
        prepare: nothing,
        write: |disk, journal| {
            let root = disk.root()?;
            let file = write_new(disk, &root, b"new", 1)?;
            disk.write_at(&file, &body(1)[..500], 0)?;
            disk.barrier(&root)?;
            disk.rename(&root, b"new", &root, b"object.1")?;
            disk.sync(&root)?;
            journal.acknowledge(1);
            Ok(())
        },
        find: find_objects,
    },
    Toy {
        name: "replacement by a new name",
        prepare: first_version,
        write: |disk, _| replace(disk, true),
        find: find_some_version,
    },
    Toy {
        name: "appending to a log with checksums and syncs",
        prepare: nothing,
        write: |disk, journal| {
            let file = log::create(disk)?;
            for number in 1..=4 {
                log::append(disk, &file, number)?;
                disk.sync(&file)?;
                journal.acknowledge(number);
            }
            Ok(())
        },
        find: log::find,
    },
    Toy {
        name: "a preallocated log with checksums and syncs of its data",
        prepare: log::preallocate,
        write: |disk, journal| {
            let file = log::open(disk)?;
            for number in 1..=4 {
                log::append(disk, &file, number)?;
                disk.sync_data(&file)?;
                journal.acknowledge(number);
            }
            Ok(())
        },
        find: log::find,
    },
    Toy {
        name: "an intent, carried out by recovery",
        prepare: nothing,
        write: write_intent,
        find: |disk| carry_out(disk, true),
    },
    Toy {
        name: "objects, barrier, record, names that roll forward",
        prepare: staged::prepare,
        write: |disk, journal| staged::write(disk, journal, &staged::Mistake::None),
        find: staged::find,
    },
];

#[test]
fn every_wrong_writer_is_convicted_and_its_conviction_can_be_replayed() {
    for toy in WRONG {
        let report = explore(toy, &Exploration { threads: 1, ..Exploration::cuts_only() });
        let conviction = report.convictions.first().unwrap_or_else(|| panic!("{}: not convicted: {report}", toy.name));
        println!("{}: {}", toy.name, conviction.complaint);

        let copied: Replay = conviction.replay.to_string().parse().expect("what was printed reads back");
        let again = replay(toy, &copied).expect_err("a replay convicts again");
        assert_eq!(again.complaint, conviction.complaint, "{}", toy.name);
    }
}

#[test]
fn a_recovery_that_is_wrong_only_when_it_is_cut_itself_is_convicted() {
    let once = Exploration { threads: 1, recovery: None, ..Exploration::cuts_only() };
    explore(&FORGETFUL, &once).assert_clean();
    let report = explore(&FORGETFUL, &Exploration { recovery: Exploration::default().recovery, ..once });
    let conviction = report.convictions.first().unwrap_or_else(|| panic!("not convicted: {report}"));
    assert_eq!(conviction.replay.then.len(), 2, "{conviction}");
    let copied: Replay = conviction.replay.to_string().parse().expect("what was printed reads back");
    assert_eq!(replay(&FORGETFUL, &copied).expect_err("a replay convicts again").complaint, conviction.complaint);
}

#[test]
fn a_recovery_that_takes_a_failed_read_for_an_answer_is_convicted() {
    let cuts = Exploration { threads: 1, ..Exploration::cuts_only() };
    explore(&HASTY, &cuts).assert_clean();
    let report = explore(&HASTY, &Exploration { errors_in_recovery: true, ..cuts });
    let conviction = report.convictions.first().unwrap_or_else(|| panic!("not convicted: {report}"));
    assert!(conviction.replay.then.iter().any(|then| matches!(then, Then::ErrorInRecovery(_))), "{conviction}");
    let copied: Replay = conviction.replay.to_string().parse().expect("what was printed reads back");
    assert_eq!(replay(&HASTY, &copied).expect_err("a replay convicts again").complaint, conviction.complaint);
}

#[test]
fn no_right_writer_is_ever_convicted_and_each_of_its_barriers_is_needed() {
    for toy in RIGHT {
        let report: Report = explore(toy, &Exploration::default());
        println!("{report}");
        report.assert_clean();
        assert!(report.states > report.steps && report.error_runs > 0, "{report}");
    }
}
