//! The rig: runs a workload on a recorded disk, and brings any state of the recording back for it to judge.
//!
//! Everything happens on a thread with mounts of its own (`stage`). A disk is made (`device`), recorded (`record`), cut,
//! and its states (`state`) are mounted one after the other at the same path.
//!
//! J1  What a workload leaves running or mounted is stopped before its disk is taken away, on every path.
//! J2  A recording that something disturbed is made again, at most so often, and never used.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::contents::{BLOCK_BYTES, Contents, ZEROS};
use crate::device::Device;
use crate::disk::Disk;
use crate::fault::Fault;
use crate::filesystem::{FileSystem, read_blocks, unmount};
use crate::quiet::Watch;
use crate::record::{DISK_BYTES_MAX, Description, Ending, RecordError, Recorder, Recording};
use crate::stage::Stage;
use crate::state::{NotAState, State};
use crate::workload::{Broken, History, Marks, Place, Workload, WorkloadError};

/// A rig that cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RigError {
    /// A call on the host failed.
    #[error("rig cannot {action} {path}; it needs root, FUSE and loop devices")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The recording cannot be used.
    #[error("rig cannot use the recording")]
    Record(#[source] RecordError),
    /// The workload failed where it must not.
    #[error("workload {name} failed while it {during}")]
    Workload {
        /// Its name.
        name: String,
        /// What it was about.
        during: &'static str,
        /// Why.
        #[source]
        source: WorkloadError,
    },
    /// Every attempt at a quiet recording was disturbed.
    #[error("{attempts} recordings in turn were disturbed; stop what syncs or takes the memory: {why}")]
    NeverQuiet {
        /// How many were made.
        attempts: u32,
        /// What disturbed the last.
        why: String,
    },
    /// A state that the recording does not have.
    #[error("the recording has no state {state}: it has {epochs} epochs")]
    NoSuchState {
        /// The state.
        state: String,
        /// Epochs of the recording.
        epochs: u32,
    },
    /// Not the name of a state.
    #[error(transparent)]
    NotAState(#[from] NotAState),
    /// Something still uses the disk of a state.
    #[error("the disk at {path} is still in use after workload {name} was stopped")]
    StillInUse {
        /// Where it is mounted.
        path: PathBuf,
        /// The workload.
        name: String,
    },
    /// A byte that is not on the disk as it is.
    #[error("byte {offset} of {path} lies nowhere on the disk as it is: a hole, inline or compressed")]
    NotOnDisk {
        /// The file.
        path: PathBuf,
        /// The byte.
        offset: u64,
    },
    /// A disk of a size that cannot be.
    #[error("a disk of {size_bytes} bytes cannot be made; take a multiple of 4096 up to 64 GiB")]
    BadSize {
        /// The size asked for.
        size_bytes: u64,
    },
}

impl From<RecordError> for RigError {
    fn from(error: RecordError) -> RigError {
        RigError::Record(error)
    }
}

/// What disk a workload is recorded on.
#[derive(Debug, Clone)]
pub struct RecordOptions {
    /// Its file system.
    pub filesystem: FileSystem,
    /// Its size; by default the smallest for the file system.
    pub size_bytes: Option<u64>,
    /// Its logical blocks, 512 or 4096 bytes. With 4096 no write is smaller.
    pub sector_bytes: u32,
    /// The commit of what is tested, for the results.
    pub commit: String,
    /// How many recordings are made until one is quiet.
    pub attempts: u32,
    /// How the disk fails while it is recorded.
    pub faults: Vec<Fault>,
}

impl RecordOptions {
    /// A healthy disk with this file system.
    pub fn new(filesystem: FileSystem) -> RecordOptions {
        RecordOptions {
            filesystem,
            size_bytes: None,
            sector_bytes: 4096,
            commit: String::new(),
            attempts: 3,
            faults: Vec::new(),
        }
    }
}

/// Runs a workload on a new disk, cuts the power when it returns, and gives the recording, which lies at `out`.
///
/// # Blocking
/// As long as the workload runs.
/// # Errors
/// `Workload` if it fails, `NeverQuiet` if each attempt was disturbed; the others as their texts say.
pub fn record(options: &RecordOptions, workload: &mut dyn Workload, out: &Path) -> Result<Recording, RigError> {
    on_stage(|stage| quietly(options.attempts, out, || record_once(stage, options, workload, out)))
}

/// Goes on from a state: a chain of cuts is one recording. The file at `out` has all of `before` up to the cut.
///
/// # Errors
/// As [`record`]; `NoSuchState`.
pub fn record_on(
    before: &Recording,
    state: State,
    workload: &mut dyn Workload,
    out: &Path,
    attempts: u32,
) -> Result<Recording, RigError> {
    on_stage(|stage| quietly(attempts, out, || go_on_once(stage, before, state, workload, out, true)))
}

/// Runs `work` on a thread with mounts of its own.
pub(crate) fn on_stage<T: Send>(work: impl FnOnce(&Stage) -> Result<T, RigError> + Send) -> Result<T, RigError> {
    let work = || Stage::enter().and_then(|stage| work(&stage));
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes a recording until one was quiet (J2).
fn quietly(attempts: u32, out: &Path, mut once: impl FnMut() -> Result<(), RigError>) -> Result<Recording, RigError> {
    let mut disturbed = String::new();
    for _ in 0..attempts.max(1) {
        once()?;
        match Recording::open(out) {
            Err(RecordError::NotQuiet { why, .. }) => disturbed = why,
            other => return Ok(other?),
        }
    }
    Err(RigError::NeverQuiet { attempts: attempts.max(1), why: disturbed })
}

fn record_once(
    stage: &Stage,
    options: &RecordOptions,
    workload: &mut dyn Workload,
    out: &Path,
) -> Result<(), RigError> {
    let size_bytes = options.size_bytes.unwrap_or_else(|| options.filesystem.size_bytes_min());
    if !size_bytes.is_multiple_of(BLOCK_BYTES as u64) || size_bytes == 0 || size_bytes > DISK_BYTES_MAX {
        return Err(RigError::BadSize { size_bytes });
    }
    let description = Description {
        size_bytes,
        sector_bytes: options.sector_bytes,
        filesystem: options.filesystem.name().to_owned(),
        mount_options: options.filesystem.mount_options().to_owned(),
        workload: workload.name(),
        place: stage.disk(),
        commit: options.commit.clone(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    };
    let disk = fresh_disk(stage, options.filesystem, &description)?;
    let mut bench = Bench::new(stage, disk, &description)?;
    bench.with_mount(workload, |workload, place| at(workload, "prepared the disk", |it| it.prepare(place)))??;

    // The base of the recording is the disk as the preparation left it.
    let mut recorder = Recorder::create(out, &description)?;
    let mut image = Vec::with_capacity((size_bytes / BLOCK_BYTES as u64) as usize);
    {
        let store = bench.device.store();
        for block in 0..(size_bytes / BLOCK_BYTES as u64) as u32 {
            if store.is_untouched(block) {
                image.push(ZEROS);
                continue;
            }
            let bytes = store.block(block).map_err(|source| on("read block of", bench.device.path(), source))?;
            image.push(recorder.base(block, &bytes)?);
        }
    }
    recorder.base_is_whole()?;
    let contents = Arc::clone(recorder.contents());
    let mut disk = Disk::new(Arc::new(image), contents);
    disk.record(recorder);
    disk.fail(options.faults.clone());
    bench.work(disk, workload, true)
}

fn go_on_once(
    stage: &Stage,
    before: &Recording,
    state: State,
    workload: &mut dyn Workload,
    out: &Path,
    run: bool,
) -> Result<(), RigError> {
    let (image, changed) = picture(before, state)?;
    let mut blocks: Vec<(u32, u32)> = changed.into_iter().collect();
    blocks.sort_unstable();
    let end = before.epochs[state.epoch as usize].end;
    let recorder = Recorder::go_on(out, before, end, &state.to_string(), &blocks)?;
    // The new file has the contents of the old one up to the cut, under the same numbers; made ones come along.
    let contents = Arc::clone(recorder.contents());
    let carry = |content: &u32| before.contents.carry(*content, &contents);
    let carried: io::Result<Vec<u32>> = image.iter().map(carry).collect();
    let over: io::Result<_> = blocks.iter().map(|(block, content)| Ok((*block, carry(content)?))).collect();
    let unread = |source| on("read contents of", before.path(), source);
    let mut disk = Disk::new(Arc::new(carried.map_err(unread)?), contents);
    disk.lay(over.map_err(unread)?);
    disk.record(recorder);
    let empty = Disk::new(Arc::new(Vec::new()), Arc::clone(&before.contents));
    let mut bench = Bench::new(stage, empty, &before.description)?;
    bench.work(disk, workload, run)
}

/// The disk at the begin of a state's epoch, and the blocks in which the state differs.
pub(crate) type Picture = (Arc<Vec<u32>>, std::collections::HashMap<u32, u32>);

pub(crate) fn picture(recording: &Recording, state: State) -> Result<Picture, RigError> {
    if state.epoch >= recording.epoch_count() {
        return Err(RigError::NoSuchState { state: state.to_string(), epochs: recording.epoch_count() });
    }
    let image = recording.image(state.epoch)?;
    let changed = recording.changed_blocks(&image, state)?;
    Ok((image, changed))
}

/// A disk with an empty file system.
pub(crate) fn fresh_disk(stage: &Stage, filesystem: FileSystem, description: &Description) -> Result<Disk, RigError> {
    let path = stage.run().join("image");
    let io = |action| {
        let path = path.clone();
        move |source| RigError::Io { action, path, source }
    };
    stage.fresh_run()?;
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).map_err(io("create"))?;
    file.set_len(description.size_bytes).map_err(io("size"))?;
    filesystem.make(&path, description.sector_bytes).map_err(io("make a file system in"))?;
    let nothing = File::open("/dev/null").map_err(io("open /dev/null for"))?;
    let contents = Contents::new(nothing);
    let mut image = vec![ZEROS; (description.size_bytes / BLOCK_BYTES as u64) as usize];
    let read = read_blocks(&mut file, |block, bytes| {
        image[block as usize] = contents.made(bytes);
        Ok(())
    });
    read.map_err(io("read"))?;
    fs::remove_file(&path).map_err(io("remove"))?;
    Ok(Disk::new(Arc::new(image), Arc::new(contents)))
}

fn on(action: &'static str, path: &Path, source: io::Error) -> RigError {
    RigError::Io { action, path: path.to_owned(), source }
}

/// Names the workload in its error.
fn at<T>(
    workload: &mut dyn Workload,
    during: &'static str,
    step: impl FnOnce(&mut dyn Workload) -> Result<T, WorkloadError>,
) -> Result<T, RigError> {
    step(workload).map_err(|source| RigError::Workload { name: workload.name(), during, source })
}

/// A device, and where its disks are mounted.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    stage: &'a Stage,
    device: Device<Disk>,
    filesystem: FileSystem,
    mount_options: String,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(stage: &'a Stage, disk: Disk, description: &Description) -> Result<Bench<'a>, RigError> {
        let filesystem = description.filesystem.parse().map_err(|_| RigError::Io {
            action: "mount a file system of type",
            path: PathBuf::from(&description.filesystem),
            source: io::ErrorKind::Unsupported.into(),
        })?;
        let device = Device::new(disk, description.size_bytes, description.sector_bytes, &stage.fuse())
            .map_err(|source| on("make a block device by", &stage.fuse(), source))?;
        let mount_options = description.mount_options.clone();
        Ok(Bench { stage, device, filesystem, mount_options })
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device<Disk> {
        &self.device
    }

    /// Puts a disk behind the device.
    pub(crate) fn insert(&self, disk: Disk) -> Result<(), RigError> {
        self.device.replace(disk).map(drop).map_err(|source| on("exchange the disk of", self.device.path(), source))
    }

    /// Mounts the disk that is in.
    pub(crate) fn mount(&self) -> io::Result<()> {
        self.filesystem.mount(self.device.path(), &self.stage.disk(), &self.mount_options)
    }

    /// Mounts the disk, with a fresh `/run`, lets the workload work, stops it and takes the disk away (J1).
    pub(crate) fn with_mount<T>(
        &self,
        workload: &mut dyn Workload,
        work: impl FnOnce(&mut dyn Workload, &Place<'_>) -> T,
    ) -> Result<T, RigError> {
        let (disk, run) = (self.stage.disk(), self.stage.run());
        self.stage.fresh_run()?;
        self.mount().map_err(|source| on("mount a disk at", &disk, source))?;
        let mut mounted = MountedDisk { bench: self, workload, done: false };
        let result = work(mounted.workload, &Place { disk: &disk, run: &run });
        mounted.take_away()?;
        Ok(result)
    }

    /// Records the work of a workload on `disk` until the power goes.
    fn work(&mut self, disk: Disk, workload: &mut dyn Workload, run: bool) -> Result<(), RigError> {
        self.insert(disk)?;
        let watch = Watch::begin(&self.stage.fuse())
            .map_err(|source| on("watch for early write-back by", &self.stage.fuse(), source))?;
        let marks = self.marks();
        self.with_mount(workload, |workload, place| {
            let (worked, disturbed) = watched(watch, || {
                at(workload, "started", |it| it.start(place))?;
                if run { at(workload, "worked", |it| it.run(place, &marks)) } else { Ok(()) }
            });
            // The power goes now, whatever comes after.
            let recorder = self.device.store().cut();
            let disturbed = disturbed.map_err(|source| on("watch for early write-back on", place.disk, source))?;
            worked?;
            if let Some(recorder) = recorder? {
                recorder.end(&Ending { disturbed })?;
            }
            Ok(())
        })?
    }

    fn marks(&self) -> Marks {
        let store = self.device.shared();
        Marks::to(move |mark| store.lock().unwrap_or_else(PoisonError::into_inner).mark(&mark))
    }
}

/// Runs `work` with the watch beside it; what it gives, and what disturbed it.
fn watched<T>(mut watch: Watch, work: impl FnOnce() -> T) -> (T, io::Result<Vec<String>>) {
    const LOOK_EVERY: Duration = Duration::from_secs(2);
    std::thread::scope(|scope| {
        let (ended, end) = channel::<()>();
        let watcher = scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(LOOK_EVERY) {
                watch.look()?;
            }
            watch.end()
        });
        let result = work();
        drop(ended);
        let disturbed = watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, disturbed)
    })
}

/// Stops the workload and unmounts on every path out.
struct MountedDisk<'a, 'w> {
    bench: &'a Bench<'a>,
    workload: &'w mut dyn Workload,
    done: bool,
}

impl MountedDisk<'_, '_> {
    fn take_away(&mut self) -> Result<(), RigError> {
        self.done = true;
        self.workload.stop();
        let path = self.bench.stage.disk();
        match unmount(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(RigError::StillInUse { path, name: self.workload.name() })
            }
            Err(source) => Err(RigError::Io { action: "unmount", path, source }),
        }
    }
}

impl Drop for MountedDisk<'_, '_> {
    fn drop(&mut self) {
        if !self.done {
            // A panic is under way: what fails now is told by it.
            let _ = self.take_away();
        }
    }
}

/// What was found of one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The recording: [`Recording::identity`].
    pub recording: String,
    /// The state's name in it.
    pub state: String,
    /// Its epoch.
    pub epoch: u32,
    /// `none`, `all`, `prefix`, `subset`, `torn` or `torn512`.
    pub kind: String,
    /// A name for the set of kept writes: with the epoch, equal for equal states.
    pub kept: String,
    /// Unflushed writes that are kept whole, kept in part, lost.
    pub writes: (u32, u32, u32),
    /// Steps that had been acknowledged.
    pub acknowledged: u32,
    /// Steps that had begun and not been acknowledged.
    pub in_flight: u32,
    /// The promises that it breaks.
    pub broken: Vec<Broken>,
    /// How long mounting and judging took.
    pub milliseconds: u64,
    /// Of a second cut: the state whose recovery was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Judges states of one recording, on a thread that has entered a stage.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    recording: &'a Recording,
    bench: Bench<'a>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(stage: &'a Stage, recording: &'a Recording) -> Result<Judge<'a>, RigError> {
        let empty = Disk::new(Arc::new(Vec::new()), Arc::clone(&recording.contents));
        Ok(Judge { recording, bench: Bench::new(stage, empty, &recording.description)? })
    }

    /// Puts a state into the device.
    pub(crate) fn insert(&self, state: State) -> Result<(), RigError> {
        let (image, changed) = picture(self.recording, state)?;
        let mut disk = Disk::new(image, Arc::clone(&self.recording.contents));
        disk.lay(changed);
        self.bench.insert(disk)
    }

    pub(crate) fn bench(&self) -> &Bench<'a> {
        &self.bench
    }

    /// Mounts a state and has the workload judge it.
    pub(crate) fn judge(&self, state: State, workload: &mut dyn Workload) -> Result<Verdict, RigError> {
        let begun = Instant::now();
        self.insert(state)?;
        let history = History { marks: self.recording.marks_until(state.epoch) };
        let judged = self
            .bench
            .with_mount(workload, |workload, place| at(workload, "judged a state", |it| it.check(place, &history)));
        let broken = match judged {
            Ok(broken) => broken?,
            Err(RigError::Io { action: "mount a disk at", source, .. }) => {
                vec![Broken::new("mount", format!("the file system cannot be mounted: {source}"))]
            }
            Err(other) => return Err(other),
        };
        let kept = self.recording.kept(state);
        let hex = kept.key().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Verdict {
            recording: self.recording.identity().to_owned(),
            state: state.to_string(),
            epoch: state.epoch,
            kind: kept.word(state.kind).to_owned(),
            kept: hex,
            writes: kept.counts,
            acknowledged: history.acknowledged().count() as u32,
            in_flight: history.in_flight().len() as u32,
            broken,
            milliseconds: begun.elapsed().as_millis() as u64,
            after: None,
        })
    }
}

/// Records what recovery from a state writes: `start`, and then the power goes again.
pub(crate) fn record_recovery(
    stage: &Stage,
    before: &Recording,
    state: State,
    workload: &mut dyn Workload,
    out: &Path,
) -> Result<Recording, RigError> {
    const ATTEMPTS: u32 = 3;
    quietly(ATTEMPTS, out, || go_on_once(stage, before, state, workload, out, false))
}
