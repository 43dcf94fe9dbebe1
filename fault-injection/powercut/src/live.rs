//! A mounted disk that can be made to fail while a program uses it, and a state mounted for a look.
//!
//! The same device as for recordings, without a recording: requests that fail, a disk that fills up or turns read-only,
//! bits that rot in files of one's choice; and power that goes again and again under one program, as [`serve`] does it.

use std::fs::File;
use std::io;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use baleen_fault_injection::Random;

use crate::contents::{BLOCK_BYTES, Contents};
use crate::disk::CutWrites;
use crate::fault::Fault;
use crate::filesystem::{FileSystem, unmount};
use crate::record::{Description, Recording};
use crate::rig::{Bench, Judge, RecordOptions, RigError, fresh_disk, on_stage};
use crate::stage::Stage;
use crate::state::{Kind, State};
use crate::sys;

/// A disk with a file system, mounted in a namespace of this thread. Unmounted and gone when it is dropped.
#[derive(Debug)]
pub struct LiveDisk<'a> {
    bench: Bench<'a>,
    stage: &'a Stage,
    filesystem: FileSystem,
    mounted: bool,
}

/// Makes a disk with an empty file system, mounts it, and has `work` use it, on a thread with mounts of its own.
/// What `work` starts must have ended when it returns.
///
/// # Errors
/// Those of the rig and of `work`.
pub fn with_disk<T: Send>(
    options: &RecordOptions,
    work: impl FnOnce(&mut LiveDisk<'_>) -> Result<T, RigError> + Send,
) -> Result<T, RigError> {
    let size_bytes = options.size_bytes.unwrap_or_else(|| options.filesystem.size_bytes_min());
    if !size_bytes.is_multiple_of(BLOCK_BYTES as u64) || size_bytes == 0 {
        return Err(RigError::BadSize { size_bytes });
    }
    on_stage(|stage| {
        let description = Description {
            size_bytes,
            sector_bytes: options.sector_bytes,
            filesystem: options.filesystem.name().to_owned(),
            mount_options: options.filesystem.mount_options().to_owned(),
            workload: String::new(),
            place: stage.disk(),
            commit: String::new(),
            kernel: String::new(),
        };
        let disk = fresh_disk(stage, options.filesystem, &description)?;
        let bench = Bench::new(stage, disk, &description)?;
        let mut live = LiveDisk { bench, stage, filesystem: options.filesystem, mounted: false };
        stage.fresh_run()?;
        live.mount()?;
        live.fail(options.faults.clone());
        let result = work(&mut live)?;
        live.unmount()?;
        Ok(result)
    })
}

impl LiveDisk<'_> {
    /// Where the disk is mounted.
    pub fn path(&self) -> PathBuf {
        self.stage.disk()
    }

    /// A folder in memory beside it.
    pub fn run(&self) -> PathBuf {
        self.stage.run()
    }

    /// Sets how the disk fails from here on, in place of what was set before; none heals it.
    pub fn fail(&self, faults: Vec<Fault>) {
        self.bench.device().store().fail(faults);
    }

    /// Reads, writes and flushes of the disk since the last [`fail`](Self::fail).
    pub fn counted(&self) -> (u64, u64, u64) {
        self.bench.device().store().counted()
    }

    /// Gives the disk a cache: what it takes from here on is durable with the next flush.
    pub fn cache_writes(&self) {
        self.bench.device().store().cache_writes();
    }

    /// Cuts the power of a disk with a cache: of the writes since the last flush, what a kind chosen by `seed` keeps is
    /// left, and whatever comes is forgotten until [`boot`](Self::boot). What uses the disk has to be killed between.
    ///
    /// # Errors
    /// `Io`, which no disk in memory gives.
    pub fn cut_power(&self, seed: u64) -> Result<(Kind, CutWrites), RigError> {
        let mut disk = self.bench.device().store();
        let mut random = Random::new(seed);
        let kind = match random.below(5) {
            0 => Kind::None,
            1 => Kind::All,
            2 => Kind::Prefix(random.below(disk.cached_writes() as u64 + 1) as u32),
            3 => Kind::Subset(seed),
            _ => Kind::Torn(seed),
        };
        let cut = disk.cut_power(kind);
        let writes = cut.map_err(|source| RigError::Io { action: "cut the power of", path: self.path(), source })?;
        Ok((kind, writes))
    }

    /// The power comes back: the disk as it was left is mounted, with what the journal replays, and `/run` is empty.
    ///
    /// # Errors
    /// As [`unmount`](Self::unmount) and [`mount`](Self::mount).
    pub fn boot(&mut self) -> Result<(), RigError> {
        self.unmount()?;
        self.stage.fresh_run()?;
        self.cache_writes();
        self.mount()
    }

    /// Mounts the disk again after [`unmount`](Self::unmount).
    ///
    /// # Errors
    /// `Io` if the file system cannot be mounted.
    pub fn mount(&mut self) -> Result<(), RigError> {
        let mounted = self.bench.mount();
        mounted.map_err(|source| RigError::Io { action: "mount a disk at", path: self.path(), source })?;
        self.mounted = true;
        Ok(())
    }

    /// Unmounts the disk, so that nothing of it is left in the page cache.
    ///
    /// # Errors
    /// `StillInUse` if something has files of it open; `Io`.
    pub fn unmount(&mut self) -> Result<(), RigError> {
        self.mounted = false;
        let path = self.path();
        match unmount(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(RigError::StillInUse { path, name: self.filesystem.name().to_owned() });
            }
            Err(source) => return Err(RigError::Io { action: "unmount", path, source }),
        }
        let forgotten = self.bench.device().forget_cache();
        forgotten.map_err(|source| RigError::Io { action: "forget the cache of", path, source })
    }

    /// Changes bits of one byte of a file below the disk's path, where the byte lies on the disk: the file system knows
    /// nothing of it. The disk is unmounted and mounted again for that.
    ///
    /// # Errors
    /// `NotOnDisk` if the byte does not lie on the disk as it is (a hole, inline, compressed); `Io`; `StillInUse`.
    pub fn rot(&mut self, file: &Path, offset: u64, bits: u8) -> Result<(), RigError> {
        let io = |action| move |source| RigError::Io { action, path: file.to_owned(), source };
        let opened = File::open(file).map_err(io("open"))?;
        let place = sys::place_on_disk(opened.as_fd(), offset).map_err(io("find on the disk"))?;
        drop(opened);
        let place = place.ok_or_else(|| RigError::NotOnDisk { path: file.to_owned(), offset })?;
        self.unmount()?;
        self.bench.device().store().rot(place, bits).map_err(io("change on the disk"))?;
        self.mount()
    }
}

impl Drop for LiveDisk<'_> {
    fn drop(&mut self) {
        if self.mounted {
            // An error or a panic is under way, and tells more than this could.
            let _ = self.unmount();
        }
    }
}

/// Where [`serve`] tells its program the disk's path, and that of a folder in memory which a boot empties.
pub const DISK_VARIABLE: &str = "BALEEN_POWERCUT_DISK";
/// See [`DISK_VARIABLE`].
pub const RUN_VARIABLE: &str = "BALEEN_POWERCUT_RUN";

/// Runs `program` with a disk whose power it may cut. Its standard input is a socket to the rig, in lines:
///
/// ```text
/// cut SEED   the power goes; answered with `dark KIND KEPT TORN LOST`: the writes since the last flush
/// boot       the disk is mounted again; nothing may use it any more. Answered with `on`
/// ```
/// Whatever cannot be done is answered with `error WHY`.
///
/// # Errors
/// Those of the rig; `Io` if the program cannot be started.
pub fn serve(options: &RecordOptions, program: &mut Command) -> Result<ExitStatus, RigError> {
    with_disk(options, |disk| {
        disk.cache_writes();
        let path = PathBuf::from(program.get_program());
        let io = |action| {
            let path = path.clone();
            move |source| RigError::Io { action, path, source }
        };
        let (ours, theirs) = UnixStream::pair().map_err(io("make a socket for"))?;
        program.env(DISK_VARIABLE, disk.path()).env(RUN_VARIABLE, disk.run()).stdin(OwnedFd::from(theirs));
        let mut child = program.spawn().map_err(io("start"))?;
        // The program holds the other end alone, so that its end is seen.
        program.stdin(std::process::Stdio::null());
        let mut answers = ours.try_clone().map_err(io("answer"))?;
        for line in BufReader::new(ours).lines() {
            let Ok(line) = line else { break };
            let answer = answer(disk, &line).unwrap_or_else(|why| format!("error {why}"));
            if writeln!(answers, "{answer}").is_err() {
                break;
            }
        }
        child.wait().map_err(io("wait for"))
    })
}

/// Does what a line of a program asks for.
fn answer(disk: &mut LiveDisk<'_>, line: &str) -> Result<String, String> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("cut", seed) => {
            let seed = seed.parse().map_err(|_| format!("{seed:?} is no seed"))?;
            let (kind, writes) = disk.cut_power(seed).map_err(|error| chain(&error))?;
            Ok(format!("dark {} {} {} {}", kind.word(), writes.kept, writes.torn, writes.lost))
        }
        ("boot", "") => disk.boot().map(|()| "on".to_owned()).map_err(|error| chain(&error)),
        _ => Err(format!("{line:?} is neither `cut SEED` nor `boot`")),
    }
}

/// An error with its causes, in one line.
fn chain(error: &RigError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")).replace('\n', " ")
}

/// Mounts a state at the path where it was recorded, in a namespace of its own, and runs `look` there.
///
/// # Errors
/// Those of the rig; `NoSuchState`.
pub fn replay<T: Send>(
    recording: &Recording,
    state: State,
    look: impl FnOnce(&Path) -> T + Send,
) -> Result<T, RigError> {
    on_stage(|stage| {
        let judge = Judge::new(stage, recording)?;
        judge.insert(state)?;
        stage.fresh_run()?;
        let path = stage.disk();
        judge.bench().mount().map_err(|source| RigError::Io {
            action: "mount a disk at",
            path: path.clone(),
            source,
        })?;
        let seen = look(&path);
        match unmount(&path) {
            Ok(()) => Ok(seen),
            Err(source) => Err(RigError::Io { action: "unmount", path, source }),
        }
    })
}

/// Writes a state as an image file, for tools that want one.
///
/// # Errors
/// Those of the rig; `NoSuchState`.
pub fn image_of(recording: &Recording, state: State, out: &Path) -> Result<(), RigError> {
    use std::os::unix::fs::FileExt as _;
    let io = |action| move |source| RigError::Io { action, path: out.to_owned(), source };
    let (image, changed) = crate::rig::picture(recording, state)?;
    let file = File::create(out).map_err(io("create"))?;
    file.set_len(recording.description.size_bytes).map_err(io("size"))?;
    let contents: &Arc<Contents> = &recording.contents;
    for (block, content) in image.iter().enumerate() {
        let content = changed.get(&(block as u32)).copied().unwrap_or(*content);
        if content == crate::contents::ZEROS {
            continue; // The file is sparse.
        }
        let mut bytes = [0; BLOCK_BYTES];
        contents.read(content, 0, &mut bytes).map_err(io("read contents for"))?;
        file.write_all_at(&bytes, (block * BLOCK_BYTES) as u64).map_err(io("write"))?;
    }
    Ok(())
}
