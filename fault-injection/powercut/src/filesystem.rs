//! File systems on the recorded disk: how each is made, how small it can be, and how it is mounted.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

/// A type of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// With its defaults: ordered data, a journal without checksums of its commits' order (barriers instead).
    Ext4,
    /// With its defaults.
    Xfs,
    /// With its defaults; data is never overwritten in place.
    Btrfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }

    /// The smallest disk that its `mkfs` of Debian 12 takes without special options, rounded up: in bytes.
    pub fn size_bytes_min(self) -> u64 {
        match self {
            FileSystem::Ext4 => 16 << 20, // 4 MiB of it is the journal, the smallest there is.
            FileSystem::Xfs => 300 << 20,
            FileSystem::Btrfs => 128 << 20,
        }
    }

    /// The Debian package that makes it.
    pub fn package(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "e2fsprogs",
            FileSystem::Xfs => "xfsprogs",
            FileSystem::Btrfs => "btrfs-progs",
        }
    }

    /// Options of every mount: defaults, but for what would make writes of its own later (discards, lazy tables).
    pub fn mount_options(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "noinit_itable",
            FileSystem::Xfs => "nouuid", // Several rigs at once have disks with one identifier.
            FileSystem::Btrfs => "nodiscard",
        }
    }

    /// Makes an empty file system on `image`, a sparse file of the disk's size. The same identifiers each time where
    /// that can be.
    ///
    /// # Errors
    /// `NotFound` if its tool is not installed; the tool's own words.
    pub(crate) fn make(self, image: &Path, sector_bytes: u32) -> io::Result<()> {
        // A fixed identifier: two recordings of the same work then differ only where the work does.
        const IDENTIFIER: &str = "ba1ee000-0000-4000-8000-00000000c0de";
        let sector = sector_bytes.to_string();
        let sector = format!("size={sector}");
        let arguments: Vec<&str> = match self {
            FileSystem::Ext4 => {
                let extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
                vec!["-q", "-F", "-b", "4096", "-U", IDENTIFIER, "-E", extended]
            }
            FileSystem::Xfs => {
                let uuid = "uuid=ba1ee000-0000-4000-8000-00000000c0de";
                vec!["-q", "-f", "-K", "-s", &sector, "-m", uuid]
            }
            // Neither mkfs nor the kernel takes two of one identifier on a machine at once.
            FileSystem::Btrfs => vec!["-q", "-f", "-K"],
        };
        let program = format!("mkfs.{}", self.name());
        let output = Command::new(&program).args(&arguments).arg(image).output().map_err(|error| {
            let what = format!("cannot run {program} ({error}); install the package {}", self.package());
            io::Error::new(error.kind(), what)
        })?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{program} failed: {}", words.trim())))
    }

    /// Mounts `device`; its journal is replayed by that.
    ///
    /// # Errors
    /// Those of mount(2): `EUCLEAN`, `EINVAL` and others for a file system that is damaged.
    pub(crate) fn mount(self, device: &Path, at: &Path, options: &str) -> io::Result<()> {
        let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
        rustix::mount::mount(device, at, self.name(), MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(())
    }
}

/// Unmounts a file system; waits for processes that are about to end.
///
/// # Errors
/// `EBUSY` if something still uses it: the mount is then detached, and ends with its last user.
pub(crate) fn unmount(at: &Path) -> io::Result<()> {
    for pause_milliseconds in [1, 5, 20, 50, 100, 200, 400, 800, 1600] {
        match rustix::mount::unmount(at, UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(std::time::Duration::from_millis(pause_milliseconds));
    }
    rustix::mount::unmount(at, UnmountFlags::DETACH)?;
    Err(rustix::io::Errno::BUSY.into())
}

/// Reads an image block by block.
pub(crate) fn read_blocks(
    image: &mut File,
    mut each: impl FnMut(u32, &[u8; crate::contents::BLOCK_BYTES]) -> io::Result<()>,
) -> io::Result<()> {
    use std::io::Read as _;
    let mut bytes = [0; crate::contents::BLOCK_BYTES];
    let mut block = 0;
    loop {
        match image.read_exact(&mut bytes) {
            Ok(()) => each(block, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        block += 1;
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A name that is no file system of the rig's.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} is no file system of the rig's; there are ext4, xfs and btrfs")]
pub struct UnknownFileSystem {
    /// The name.
    pub name: String,
}

impl FromStr for FileSystem {
    type Err = UnknownFileSystem;

    fn from_str(name: &str) -> Result<FileSystem, UnknownFileSystem> {
        let found = FileSystem::ALL.into_iter().find(|filesystem| filesystem.name() == name);
        found.ok_or_else(|| UnknownFileSystem { name: name.to_owned() })
    }
}
