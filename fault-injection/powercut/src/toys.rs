//! Small writers by which the judge is judged: each classic mistake must be convicted, and its correct twin never.
//!
//! What each does wrong, and where that shows:
//!
//! | toy | mistake | shows on |
//! |---|---|---|
//! | `rename-without-fsync` | the new file's data is not synced before its name is | ext4, xfs, btrfs |
//! | `no-directory-fsync` | the file is synced, the rename after it is not | ext4, xfs, btrfs |
//! | `no-parent-fsync` | the new folder is synced, the name of it in its parent is not | ext4, xfs, btrfs |
//! | `replace-without-fsync` | a file is replaced by rename, nothing is synced | ext4, xfs, btrfs |
//! | `overwrite-in-place` | old bytes are overwritten, so a cut mixes old and new | ext4, xfs; btrfs never overwrites |
//! | `log-without-sync` | a record is appended and acknowledged unsynced | ext4, xfs, btrfs |
//! | `rename-too-early` | the name is made durable before the data | ext4, xfs, btrfs |
//! | `reordered-log` | the log's record is durable before what it speaks of | ext4, xfs, btrfs |
//!
//! The twins: `careful-create`, `careful-replace`, `careful-log`, `careful-tree`, `ordered-log`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use baleen_fault_injection::Random;

use crate::filesystem::FileSystem;
use crate::workload::{Broken, History, Marks, Place, Workload, WorkloadError};

/// Steps of a run.
const STEPS: u32 = 6;
/// Bytes of a file: several blocks, the last of them in part.
const FILE_BYTES: usize = 3 * 4096 + 1000;
/// Bytes of a record of a log.
const RECORD_BYTES: usize = 512;

/// A small writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toy {
    /// Writes a new file and renames it, without a sync of the data.
    RenameWithoutFsync,
    /// Syncs the file but not the folder that has its new name.
    NoDirectoryFsync,
    /// Makes files in new folders without syncing the folder above.
    NoParentFsync,
    /// Replaces a file by rename without any sync.
    ReplaceWithoutFsync,
    /// Overwrites a file's bytes, then syncs.
    OverwriteInPlace,
    /// Appends to a log without a sync.
    LogWithoutSync,
    /// Makes the new name durable, and only then the data.
    RenameTooEarly,
    /// Makes the log's record durable, and only then what it speaks of.
    ReorderedLog,
    /// Writes, syncs, renames, syncs the folder.
    CarefulCreate,
    /// Replaces a file: writes a new one, syncs it, renames it over the old, syncs the folder.
    CarefulReplace,
    /// Appends to a log and syncs it.
    CarefulLog,
    /// Makes files in new folders, and syncs each on the way up.
    CarefulTree,
    /// Makes data durable, then the log's record of it.
    OrderedLog,
}

impl Toy {
    /// Those with a mistake.
    pub const WRONG: [Toy; 8] = [
        Toy::RenameWithoutFsync,
        Toy::NoDirectoryFsync,
        Toy::NoParentFsync,
        Toy::ReplaceWithoutFsync,
        Toy::OverwriteInPlace,
        Toy::LogWithoutSync,
        Toy::RenameTooEarly,
        Toy::ReorderedLog,
    ];
    /// Those without.
    pub const RIGHT: [Toy; 5] =
        [Toy::CarefulCreate, Toy::CarefulReplace, Toy::CarefulLog, Toy::CarefulTree, Toy::OrderedLog];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Toy::RenameWithoutFsync => "rename-without-fsync",
            Toy::NoDirectoryFsync => "no-directory-fsync",
            Toy::NoParentFsync => "no-parent-fsync",
            Toy::ReplaceWithoutFsync => "replace-without-fsync",
            Toy::OverwriteInPlace => "overwrite-in-place",
            Toy::LogWithoutSync => "log-without-sync",
            Toy::RenameTooEarly => "rename-too-early",
            Toy::ReorderedLog => "reordered-log",
            Toy::CarefulCreate => "careful-create",
            Toy::CarefulReplace => "careful-replace",
            Toy::CarefulLog => "careful-log",
            Toy::CarefulTree => "careful-tree",
            Toy::OrderedLog => "ordered-log",
        }
    }

    /// Whether its mistake can show on a file system: one that never overwrites data forgives one mistake.
    pub fn shows_on(self, filesystem: FileSystem) -> bool {
        !(self == Toy::OverwriteInPlace && filesystem == FileSystem::Btrfs)
    }

    /// The toy of a name.
    pub fn by_name(name: &str) -> Option<Toy> {
        Toy::WRONG.into_iter().chain(Toy::RIGHT).find(|toy| toy.word() == name)
    }

    fn shape(self) -> Shape {
        match self {
            Toy::RenameWithoutFsync | Toy::NoDirectoryFsync | Toy::RenameTooEarly | Toy::CarefulCreate => Shape::Files,
            Toy::NoParentFsync | Toy::CarefulTree => Shape::Tree,
            Toy::ReplaceWithoutFsync | Toy::OverwriteInPlace | Toy::CarefulReplace => Shape::OneFile,
            Toy::LogWithoutSync | Toy::CarefulLog => Shape::Log,
            Toy::ReorderedLog | Toy::OrderedLog => Shape::LogAndData,
        }
    }
}

/// What a toy keeps on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A new file a step.
    Files,
    /// A new file in a new folder a step.
    Tree,
    /// One file, whose version is the step.
    OneFile,
    /// A log, with a record a step.
    Log,
    /// A log whose records speak of blocks in a second file.
    LogAndData,
}

/// The bytes that step `step` writes.
fn bytes_of(step: u32, length: usize) -> Vec<u8> {
    let mut random = Random::new(u64::from(step) + 1);
    let mut bytes = step.to_le_bytes().to_vec();
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn step_name(step: u32) -> String {
    format!("step-{step}")
}

fn step_of(name: &str) -> Option<u32> {
    name.strip_prefix("step-")?.parse().ok()
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Toy {
    fn prepare_disk(self, disk: &Path) -> io::Result<()> {
        match self.shape() {
            Shape::Files | Shape::Tree => fs::create_dir(disk.join("kept")),
            Shape::OneFile => fs::write(disk.join("file"), bytes_of(0, FILE_BYTES)),
            Shape::Log => fs::write(disk.join("log"), []),
            Shape::LogAndData => {
                // Preallocated, so that a record changes bytes alone.
                fs::write(disk.join("log"), vec![0; 4096 * 64])?;
                fs::write(disk.join("data"), vec![0; 4096 * 64])
            }
        }
    }

    /// The step after the last that left something on the disk.
    fn next_step(self, disk: &Path) -> io::Result<u32> {
        Ok(match self.shape() {
            Shape::Files | Shape::Tree => {
                let names = fs::read_dir(disk.join("kept"))?;
                let steps = names.filter_map(|entry| step_of(entry.ok()?.file_name().to_str()?));
                steps.max().map_or(1, |last| last + 1)
            }
            Shape::OneFile => {
                let bytes = fs::read(disk.join("file"))?;
                bytes.first_chunk().map_or(1, |version| u32::from_le_bytes(*version) + 1)
            }
            Shape::Log => (whole_records(&fs::read(disk.join("log"))?).len() / RECORD_BYTES) as u32 + 1,
            Shape::LogAndData => logged(&fs::read(disk.join("log"))?).last().copied().unwrap_or(0) + 1,
        })
    }

    fn step(self, disk: &Path, step: u32) -> io::Result<()> {
        let kept = disk.join("kept");
        let name = step_name(step);
        match self {
            Toy::RenameWithoutFsync => {
                fs::write(kept.join("new"), bytes_of(step, FILE_BYTES))?;
                fs::rename(kept.join("new"), kept.join(name))?;
                sync(&kept)
            }
            Toy::NoDirectoryFsync => {
                fs::write(kept.join("new"), bytes_of(step, FILE_BYTES))?;
                sync(&kept.join("new"))?;
                fs::rename(kept.join("new"), kept.join(name))
            }
            Toy::RenameTooEarly => {
                fs::write(kept.join("new"), bytes_of(step, FILE_BYTES))?;
                fs::rename(kept.join("new"), kept.join(&name))?;
                sync(&kept)?;
                sync(&kept.join(name))
            }
            Toy::CarefulCreate => {
                fs::write(kept.join("new"), bytes_of(step, FILE_BYTES))?;
                sync(&kept.join("new"))?;
                fs::rename(kept.join("new"), kept.join(name))?;
                sync(&kept)
            }
            Toy::NoParentFsync | Toy::CarefulTree => {
                // Renamed into place, since a sync of a file may take its folders' names along (ext4).
                fs::create_dir(disk.join("new"))?;
                fs::write(disk.join("new/file"), bytes_of(step, FILE_BYTES))?;
                sync(&disk.join("new/file"))?;
                sync(&disk.join("new"))?;
                fs::rename(disk.join("new"), kept.join(name))?;
                if self == Toy::CarefulTree {
                    sync(&kept)?;
                    sync(disk)?;
                }
                Ok(())
            }
            Toy::ReplaceWithoutFsync => {
                fs::write(disk.join("new"), bytes_of(step, FILE_BYTES))?;
                fs::rename(disk.join("new"), disk.join("file"))
            }
            Toy::CarefulReplace => {
                fs::write(disk.join("new"), bytes_of(step, FILE_BYTES))?;
                sync(&disk.join("new"))?;
                fs::rename(disk.join("new"), disk.join("file"))?;
                sync(disk)
            }
            Toy::OverwriteInPlace => {
                let file = OpenOptions::new().write(true).open(disk.join("file"))?;
                file.write_all_at(&bytes_of(step, FILE_BYTES), 0)?;
                file.sync_all()
            }
            Toy::LogWithoutSync | Toy::CarefulLog => {
                let mut log = OpenOptions::new().append(true).open(disk.join("log"))?;
                log.write_all(&bytes_of(step, RECORD_BYTES))?;
                if self == Toy::CarefulLog { log.sync_data() } else { Ok(()) }
            }
            Toy::ReorderedLog | Toy::OrderedLog => {
                let log = OpenOptions::new().write(true).open(disk.join("log"))?;
                let data = OpenOptions::new().write(true).open(disk.join("data"))?;
                let at = u64::from(step - 1) * 4096;
                let write_log = || {
                    log.write_all_at(&step.to_le_bytes(), at)?;
                    log.sync_data()
                };
                let write_data = || {
                    data.write_all_at(&bytes_of(step, 4096), at)?;
                    data.sync_data()
                };
                if self == Toy::ReorderedLog {
                    write_log()?;
                    write_data()
                } else {
                    write_data()?;
                    write_log()
                }
            }
        }
    }

    /// What of `history` the disk does not keep.
    fn judge(self, disk: &Path, history: &History) -> io::Result<Vec<Broken>> {
        let acknowledged: Vec<u32> = history.acknowledged().filter_map(step_of).collect();
        let begun: Vec<u32> = history.begun().filter_map(step_of).collect();
        let mut broken = Vec::new();
        match self.shape() {
            Shape::Files | Shape::Tree => {
                for step in &begun {
                    let mut path = disk.join("kept").join(step_name(*step));
                    let there = path.exists();
                    if self.shape() == Shape::Tree {
                        path.push("file");
                    }
                    let whole = there && fs::read(&path).is_ok_and(|bytes| bytes == bytes_of(*step, FILE_BYTES));
                    if !there && acknowledged.contains(step) {
                        broken.push(Broken::new("durable", format!("step {step} was acknowledged and is not there")));
                    } else if there && !whole {
                        broken.push(Broken::new("whole", format!("step {step} is there without its bytes")));
                    }
                }
            }
            Shape::OneFile => {
                let bytes = fs::read(disk.join("file")).unwrap_or_default();
                let least = acknowledged.last().copied().unwrap_or(0);
                let most = begun.last().copied().unwrap_or(0);
                match (0..=most).find(|version| bytes == bytes_of(*version, FILE_BYTES)) {
                    Some(version) if version < least => broken.push(Broken::new(
                        "durable",
                        format!("version {least} was acknowledged and version {version} is there"),
                    )),
                    Some(_) => {}
                    None => {
                        broken.push(Broken::new("whole", format!("the file of {} bytes is no version", bytes.len())))
                    }
                }
            }
            Shape::Log => {
                let log = fs::read(disk.join("log")).unwrap_or_default();
                let records = (whole_records(&log).len() / RECORD_BYTES) as u32;
                let least = acknowledged.last().copied().unwrap_or(0);
                if records < least {
                    let what = format!("record {least} was acknowledged and the log has {records}");
                    broken.push(Broken::new("durable", what));
                }
            }
            Shape::LogAndData => {
                let log = logged(&fs::read(disk.join("log"))?);
                let data = fs::read(disk.join("data"))?;
                for step in &log {
                    let at = (*step as usize - 1) * 4096;
                    if data.get(at..at + 4096) != Some(&bytes_of(*step, 4096)) {
                        broken.push(Broken::new(
                            "whole",
                            format!("the log speaks of step {step}, whose data is not there"),
                        ));
                    }
                }
                for step in acknowledged.iter().filter(|step| !log.contains(step)) {
                    broken.push(Broken::new("durable", format!("step {step} was acknowledged and is not in the log")));
                }
            }
        }
        Ok(broken)
    }
}

/// The part of a log that has whole records, each the one that belongs there: the rest is a torn tail.
fn whole_records(log: &[u8]) -> &[u8] {
    let whole = log.chunks_exact(RECORD_BYTES).zip(1..);
    let count = whole.take_while(|(record, step)| **record == bytes_of(*step, RECORD_BYTES)).count();
    &log[..count * RECORD_BYTES]
}

/// The steps of which a preallocated log speaks.
fn logged(log: &[u8]) -> Vec<u32> {
    let steps = log.chunks_exact(4096).zip(1..).map(|(block, expected)| (number(block), expected));
    steps.take_while(|(step, expected)| step == expected).map(|(step, _)| step).collect()
}

fn number(block: &[u8]) -> u32 {
    block.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

impl Workload for Toy {
    fn name(&self) -> String {
        format!("toy/{}", self.word())
    }

    fn prepare(&mut self, place: &Place<'_>) -> Result<(), WorkloadError> {
        self.prepare_disk(place.disk).map_err(|error| WorkloadError::failed("lay out the disk", error))
    }

    fn run(&mut self, place: &Place<'_>, marks: &Marks) -> Result<(), WorkloadError> {
        let first = self.next_step(place.disk).map_err(|error| WorkloadError::failed("read the disk", error))?;
        for step in first..first + STEPS {
            marks.begin(step_name(step));
            self.step(place.disk, step).map_err(|error| WorkloadError::failed(format!("do step {step}"), error))?;
            marks.acknowledge(step_name(step));
        }
        Ok(())
    }

    fn check(&mut self, place: &Place<'_>, history: &History) -> Result<Vec<Broken>, WorkloadError> {
        self.judge(place.disk, history).map_err(|error| WorkloadError::failed("read the disk", error))
    }
}
