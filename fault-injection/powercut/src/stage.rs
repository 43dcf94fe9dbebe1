//! Where a rig works: a thread with mounts of its own, and the same few paths each time.
//!
//! G1  Nothing that is mounted here is seen outside: the namespace is gone with the last process in it, and the mounts,
//!     loop devices and disks with it, however the rig ends.
//! G2  Paths are the same in each run, since engines store absolute paths.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::rig::RigError;
use crate::sys;

/// The paths of a rig, on a thread that has entered it.
#[derive(Debug)]
pub(crate) struct Stage {
    top: PathBuf,
}

impl Stage {
    /// Gives this thread, and what it will start, mounts of its own, and lays out the paths.
    ///
    /// # Errors
    /// `Io`: root is needed.
    pub(crate) fn enter() -> Result<Stage, RigError> {
        let top = std::env::temp_dir().join("baleen-powercut");
        let failed = |action| {
            let path = top.clone();
            move |source| RigError::Io { action, path, source }
        };
        fs::create_dir_all(&top).map_err(failed("create"))?;
        sys::own_mounts().map_err(failed("take mounts of its own below"))?;
        let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", downstream).map_err(|error| failed("keep private")(error.into()))?;
        tmpfs(&top).map_err(failed("mount a file system in memory at"))?;
        let stage = Stage { top: top.clone() };
        for folder in [stage.disk(), stage.run(), stage.fuse()] {
            fs::create_dir(folder).map_err(failed("create a folder in"))?;
        }
        Ok(stage)
    }

    /// Where the disk is mounted.
    pub(crate) fn disk(&self) -> PathBuf {
        self.top.join("disk")
    }

    /// What stands for `/run`.
    pub(crate) fn run(&self) -> PathBuf {
        self.top.join("run")
    }

    /// Where a device's file is mounted for a moment.
    pub(crate) fn fuse(&self) -> PathBuf {
        self.top.join("fuse")
    }

    /// A reboot: what stands for `/run` is empty.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn fresh_run(&self) -> Result<(), RigError> {
        let run = self.run();
        let io = |source| RigError::Io { action: "empty", path: run.clone(), source };
        // What is mounted below goes too. The first time nothing is mounted there.
        while rustix::mount::unmount(&run, UnmountFlags::DETACH).is_ok() {}
        tmpfs(&run).map_err(io)
    }
}

/// A path for a file of this rig alone, however many the process has.
pub(crate) fn own_file(purpose: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("baleen-powercut.{}.{number}.{purpose}", std::process::id()))
}

fn tmpfs(at: &Path) -> io::Result<()> {
    rustix::mount::mount("baleen-powercut", at, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?;
    Ok(())
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The namespace would do it, but children may linger in it.
        while rustix::mount::unmount(self.run(), UnmountFlags::DETACH).is_ok() {}
        let _ = rustix::mount::unmount(self.disk(), UnmountFlags::DETACH);
        let _ = rustix::mount::unmount(&self.top, UnmountFlags::DETACH);
    }
}
