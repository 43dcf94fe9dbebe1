//! Recovery without a reboot: after a kill, or a failed sync, the page cache shows what the disk may never get. What a
//! recovery then shows must be there after the next power cut.

use std::io;

use baleen_fault_injection::{Exploration, Journal, Mishap, Scenario, SimulatedDisk, explore, replay};
use baleen_store::{Access, Disk, read_file};

const FRAME_BYTES: u64 = 512;
const FRAMES: u8 = 3;

/// How a log is opened again.
#[derive(Clone, Copy, PartialEq)]
enum Recovery {
    /// What is read is so.
    Believes,
    /// What is read is so, after a sync.
    Syncs,
    /// What is read is written anew, synced, and then it is so.
    Copies,
}

/// Appends frames to a preallocated log, each with its sync.
struct Log(Recovery);

/// The newest `log.N`, by its number.
fn newest(disk: &SimulatedDisk) -> io::Result<u64> {
    let names = disk.read_dir(&disk.root()?)?;
    let number = |name: &[u8]| std::str::from_utf8(name).ok()?.strip_prefix("log.")?.parse().ok();
    Ok(names.iter().filter_map(|entry| number(&entry.name)).max().unwrap_or(0))
}

fn write_log(disk: &SimulatedDisk, number: u64, frames: &[u8]) -> io::Result<()> {
    let root = disk.root()?;
    match disk.remove_file(&root, b"new") {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    let file = disk.create_file(&root, b"new", 0o600)?;
    disk.write_at(&file, &[0; 4096], 0)?;
    for frame in frames {
        disk.write_at(&file, &[*frame; FRAME_BYTES as usize], (u64::from(*frame) - 1) * FRAME_BYTES)?;
    }
    disk.sync(&file)?;
    disk.rename(&root, b"new", &root, format!("log.{number}").as_bytes())?;
    disk.sync(&root)
}

fn append(disk: &SimulatedDisk, journal: &mut Journal<u8>) -> io::Result<()> {
    let name = format!("log.{}", newest(disk)?);
    let file = disk.open_file(&disk.root()?, name.as_bytes(), Access::ReadWrite)?;
    for frame in 1..=FRAMES {
        disk.write_at(&file, &[frame; FRAME_BYTES as usize], (u64::from(frame) - 1) * FRAME_BYTES)?;
        disk.sync_data(&file)?;
        journal.acknowledge(frame);
    }
    Ok(())
}

fn recover(disk: &SimulatedDisk, recovery: Recovery) -> io::Result<Vec<u8>> {
    let number = newest(disk)?;
    let file = disk.open_file(&disk.root()?, format!("log.{number}").as_bytes(), Access::ReadWrite)?;
    if recovery == Recovery::Syncs {
        disk.sync(&file)?;
    }
    disk.drop_cache(&file, 0, 0)?;
    let bytes = read_file(disk, &file, 1 << 20)?;
    let frames: Vec<u8> = bytes.chunks_exact(FRAME_BYTES as usize).map(|frame| frame[0]).collect();
    let frames: Vec<u8> = (1..).zip(frames).map_while(|(place, frame)| (frame == place).then_some(frame)).collect();
    if recovery == Recovery::Copies {
        write_log(disk, number + 1, &frames)?;
    }
    Ok(frames)
}

impl Scenario for Log {
    type Ack = u8;
    type Opened = Vec<u8>;

    fn name(&self) -> String {
        "a log opened again".to_owned()
    }

    fn prepare(&self, disk: &SimulatedDisk) -> Result<(), String> {
        write_log(disk, 1, &[]).map_err(|error| error.to_string())
    }

    fn workload(&self, disk: &SimulatedDisk, journal: &mut Journal<u8>) -> Result<(), String> {
        append(disk, journal).map_err(|error| error.to_string())
    }

    fn recover(&self, disk: &SimulatedDisk) -> Result<Vec<u8>, String> {
        recover(disk, self.0).map_err(|error| error.to_string())
    }

    fn judge(&self, _: &SimulatedDisk, frames: &Vec<u8>, acks: &[u8]) -> Result<(), String> {
        if frames.starts_with(acks) { Ok(()) } else { Err(format!("acknowledged {acks:?}, found {frames:?}")) }
    }

    fn facts(&self, _: &SimulatedDisk, frames: &Vec<u8>) -> Vec<String> {
        frames.iter().map(u8::to_string).collect()
    }
}

fn convicted_by(recovery: Recovery, exploration: &Exploration) -> Mishap {
    let report = explore(&Log(recovery), &Exploration { threads: 1, skip_barriers: false, ..exploration.clone() });
    let conviction = report.convictions.first().unwrap_or_else(|| panic!("not convicted: {report}"));
    let again = replay(&Log(recovery), &conviction.replay).expect_err("a replay convicts again");
    assert_eq!(again.complaint, conviction.complaint);
    conviction.replay.mishap.unwrap_or_else(|| panic!("not by a cut alone: {conviction}"))
}

#[test]
fn a_log_that_is_believed_as_it_is_read_is_convicted_by_a_kill_alone() {
    let kills = Exploration { kills: true, ..Exploration::cuts_only() };
    assert!(matches!(convicted_by(Recovery::Believes, &kills), Mishap::Killed(_)));
}

#[test]
fn a_sync_before_believing_helps_after_a_kill_and_not_after_a_failed_sync() {
    let kills = Exploration { kills: true, ..Exploration::cuts_only() };
    explore(&Log(Recovery::Syncs), &kills).assert_clean();
    let errors = Exploration { errors: Exploration::default().errors, ..kills };
    assert!(matches!(convicted_by(Recovery::Syncs, &errors), Mishap::Error(..)));
}

#[test]
fn a_log_that_is_written_anew_before_it_is_believed_is_never_convicted() {
    let report = explore(&Log(Recovery::Copies), &Exploration::default());
    println!("{report}");
    report.assert_clean();
}
