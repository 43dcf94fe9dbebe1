//! Places that clean up after themselves: folders, small file systems on loop devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::command::{succeed, wait_for};

/// A folder of one test. Dropping it unmounts whatever is mounted below it, then removes it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a new folder whose name contains `label`. Its path is short: socket paths below it must fit in 107 bytes.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(label: &str) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bt-{}-{number}-{label}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unmount_below(&self.path);
        if std::env::var_os("BALEEN_KEEP").is_some() {
            eprintln!("kept {}", self.path.display());
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Every mount point at or below `path` that the calling thread sees, the last mounted first.
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(field.replace("\\040", " ")))
        .filter(|mount| mount.starts_with(path))
        .collect();
    mounts.reverse();
    mounts
}

/// Unmounts everything at or below `path`, lazily where it is busy.
pub fn unmount_below(path: &Path) {
    for mount in mounts_below(path) {
        if rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).is_err() {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).ok();
        }
    }
}

/// An ext4 file system of a chosen size on a loop device, mounted. Dropping it unmounts it and frees the device.
#[derive(Debug)]
pub struct SmallDisk {
    mount_point: PathBuf,
    device: PathBuf,
}

impl SmallDisk {
    /// Makes and mounts one of `size_bytes` in `scratch`.
    ///
    /// # Errors
    /// If a step fails: making the file, the file system, the loop device or the mount.
    pub fn new(scratch: &Scratch, name: &str, size_bytes: u64) -> Result<Self> {
        let file = scratch.join(format!("{name}.ext4"));
        fs::File::create(&file)?.set_len(size_bytes)?;
        let file_text = file.to_string_lossy().into_owned();
        // No lazy initialisation: the kernel would go on writing the inode tables while a test counts bytes.
        succeed("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", &file_text])?;
        let device = PathBuf::from(succeed("losetup", &["-f", "--show", &file_text])?.stdout().trim());
        let disk = Self { mount_point: scratch.join(name), device };
        fs::create_dir(&disk.mount_point)?;
        succeed("mount", &[&*disk.device.to_string_lossy(), &disk.mount_point.to_string_lossy()])?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Bytes written to the device and flushes that it received since it was made.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn written(&self) -> Result<(u64, u64)> {
        let name = self.device.file_name().context("device without a name")?;
        let path = Path::new("/sys/block").join(name).join("stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Kernel documentation, block/stat: field 7 is sectors written (512 bytes each), field 16 flush requests.
        let fields: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        Ok((fields[6] * 512, fields.get(15).copied().unwrap_or(0)))
    }

    /// Bytes that an ordinary user could still write.
    ///
    /// # Errors
    /// If the file system does not answer.
    pub fn free_bytes(&self) -> Result<u64> {
        let status = rustix::fs::statvfs(&self.mount_point)?;
        Ok(status.f_bavail * status.f_frsize)
    }

    /// Mounts it again read-only or writable.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        // Refused as long as a file is being written: wait for that moment to pass.
        wait_for(&format!("mount -o {option}"), Duration::from_secs(10), || {
            succeed("mount", &["-o", option, &self.mount_point.to_string_lossy()]).ok()
        })?;
        Ok(())
    }

    /// Turns the file system read-only at once, as the kernel does after a disk error, whoever is writing.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn abort(&self) -> Result<()> {
        succeed("mount", &["-o", "remount,abort", &self.mount_point.to_string_lossy()])?;
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount_below(&self.mount_point);
        if let Err(error) = succeed("losetup", &["-d", &*self.device.to_string_lossy()]) {
            eprintln!("cannot free {}: {error}", self.device.display());
        }
    }
}

/// The sum of the disk space that a folder's files and folders take, each inode counted once, in bytes: what `du -x` tells.
///
/// # Errors
/// If part of it cannot be read.
pub fn disk_usage(path: &Path) -> Result<u64> {
    let text = succeed("du", &["-sx", "--block-size=1", &path.to_string_lossy()])?.stdout();
    text.split_whitespace().next().and_then(|field| field.parse().ok()).context("du printed no number")
}
