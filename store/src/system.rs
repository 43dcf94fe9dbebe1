//! The real disk: a directory of the host, by system calls.
//!
//! Y1  Everything starts at one held descriptor; no path of the host is looked up after [`SystemDisk::open`].
//! Y2  Every descriptor is close-on-exec.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::disk::{Access, DirEntry, Disk, Handle, Metadata, NodeKind, Space, Timestamp, WriteBack};
use crate::sys;

/// A directory of the host as a [`Disk`].
#[derive(Debug)]
pub struct SystemDisk {
    root: OwnedFd,
    uncached_writes: bool,
    barrier_reports_every_error: bool,
}

impl SystemDisk {
    /// Opens the existing directory `path` as the root of a disk.
    ///
    /// # Errors
    /// That of `open(2)`.
    #[expect(clippy::disallowed_methods, reason = "the one place where a host path is looked up (Y1)")]
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let uncached_writes = sys::has_uncached_writes(&root);
        let release = rustix::system::uname();
        let barrier_reports_every_error = kernel_version(release.release().to_bytes()) >= (5, 17);
        Ok(Self { root, uncached_writes, barrier_reports_every_error })
    }
}

/// Major and minor version of a kernel release such as `6.1.0-13-amd64`.
fn kernel_version(release: &[u8]) -> (u32, u32) {
    let text = String::from_utf8_lossy(release);
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn kernel(handle: &Handle) -> io::Result<BorrowedFd<'_>> {
    handle.fd().ok_or_else(|| Errno::BADF.into())
}

fn component(name: &[u8]) -> io::Result<&[u8]> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::INVAL.into());
    }
    Ok(name)
}

fn kind_of(file_type: FileType) -> NodeKind {
    match file_type {
        FileType::Directory => NodeKind::Directory,
        FileType::Symlink => NodeKind::Symlink,
        FileType::CharacterDevice => NodeKind::CharDevice,
        FileType::BlockDevice => NodeKind::BlockDevice,
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        _ => NodeKind::File,
    }
}

fn type_of(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::CharDevice => FileType::CharacterDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::Socket => FileType::Socket,
    }
}

#[allow(clippy::unnecessary_cast, reason = "some fields are narrower on 32-bit targets")]
fn metadata_of(stat: &rustix::fs::Stat) -> Metadata {
    Metadata {
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size_bytes: stat.st_size as u64,
        allocated_bytes: stat.st_blocks as u64 * 512,
        links: stat.st_nlink as u64,
        inode: stat.st_ino,
        device: stat.st_dev,
        device_node: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        modified: Timestamp { seconds: stat.st_mtime as i64, nanoseconds: stat.st_mtime_nsec as u32 },
    }
}

fn timestamps(accessed: Timestamp, modified: Timestamp) -> Timestamps {
    let timespec = |time: Timestamp| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) }
}

fn resolve(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    // EAGAIN: a rename raced the look-up. Only a path through `..` can meet it, and it is rare; retried, bounded.
    for _ in 0..64 {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => continue,
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Sets the exact mode of what was just made, since the umask of the process reached its creation.
fn exact_mode(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

impl Disk for SystemDisk {
    fn root(&self) -> io::Result<Handle> {
        // A fresh open file description: `syncfs` reports errors for each description once (D4).
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Handle::from_fd(rustix::fs::openat(&self.root, ".", flags, Mode::empty())?))
    }

    fn open_dir(&self, dir: &Handle, name: &[u8]) -> io::Result<Handle> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Handle::from_fd(rustix::fs::openat(kernel(dir)?, component(name)?, flags, Mode::empty())?))
    }

    fn open_dir_in_root(&self, root: &Handle, path: &Path) -> io::Result<Handle> {
        let rules = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Handle::from_fd(resolve(kernel(root)?, path, OFlags::RDONLY | OFlags::DIRECTORY, rules)?))
    }

    fn open_file(&self, dir: &Handle, name: &[u8], access: Access) -> io::Result<Handle> {
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let flags = mode | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(kernel(dir)?, component(name)?, flags, Mode::empty())?;
        if kind_of(FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode)) != NodeKind::File {
            return Err(Errno::INVAL.into());
        }
        Ok(Handle::from_fd(file))
    }

    fn open_node(&self, dir: &Handle, name: &[u8]) -> io::Result<Handle> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Handle::from_fd(rustix::fs::openat(kernel(dir)?, component(name)?, flags, Mode::empty())?))
    }

    fn metadata(&self, node: &Handle) -> io::Result<Metadata> {
        Ok(metadata_of(&rustix::fs::fstat(kernel(node)?)?))
    }

    fn metadata_at(&self, dir: &Handle, name: &[u8]) -> io::Result<Metadata> {
        Ok(metadata_of(&rustix::fs::statat(kernel(dir)?, component(name)?, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn read_dir(&self, dir: &Handle) -> io::Result<Vec<DirEntry>> {
        // Opened anew: the position belongs to the description, and the caller's may be shared.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listing = rustix::fs::openat(kernel(dir)?, ".", flags, Mode::empty())?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut names = RawDir::new(&listing, buffer.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = names.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => self.metadata_at(dir, name)?.kind,
                known => kind_of(known),
            };
            entries.push(DirEntry { name: name.to_vec(), kind });
        }
        Ok(entries)
    }

    fn read_link(&self, dir: &Handle, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(kernel(dir)?, component(name)?, Vec::new())?.into_bytes())
    }

    fn read_at(&self, file: &Handle, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = kernel(file)?;
        Ok(rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *buffer, offset))?)
    }

    fn xattrs(&self, node: &Handle) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let node = kernel(node)?;
        let mut names = vec![0; 64 * 1024]; // XATTR_LIST_MAX
        let length = rustix::fs::flistxattr(node, &mut names)?;
        let mut attributes = Vec::new();
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 64 * 1024]; // XATTR_SIZE_MAX
            let size = rustix::fs::fgetxattr(node, name, &mut value)?;
            value.truncate(size);
            attributes.push((name.to_vec(), value));
        }
        attributes.sort();
        Ok(attributes)
    }

    fn space(&self, dir: &Handle) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(kernel(dir)?)?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn create_file(&self, dir: &Handle, name: &[u8], mode: u32) -> io::Result<Handle> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(kernel(dir)?, component(name)?, flags, Mode::from_raw_mode(mode & 0o700))?;
        if mode & !0o700 != 0 {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        }
        Ok(Handle::from_fd(file))
    }

    fn create_dir(&self, dir: &Handle, name: &[u8], mode: u32) -> io::Result<()> {
        rustix::fs::mkdirat(kernel(dir)?, component(name)?, Mode::from_raw_mode(mode & 0o700))?;
        // Always: below a setgid directory it has that bit by now.
        exact_mode(kernel(dir)?, name, mode)
    }

    fn create_symlink(&self, dir: &Handle, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, kernel(dir)?, component(name)?)?)
    }

    fn create_node(&self, dir: &Handle, name: &[u8], kind: NodeKind, mode: u32, device: (u32, u32)) -> io::Result<()> {
        if !matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo | NodeKind::Socket) {
            return Err(Errno::INVAL.into());
        }
        let number = rustix::fs::makedev(device.0, device.1);
        let private = Mode::from_raw_mode(mode & 0o700);
        rustix::fs::mknodat(kernel(dir)?, component(name)?, type_of(kind), private, number)?;
        if mode & !0o700 != 0 {
            exact_mode(kernel(dir)?, name, mode)?;
        }
        Ok(())
    }

    fn link(&self, node: &Handle, dir: &Handle, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::linkat(kernel(node)?, "", kernel(dir)?, component(name)?, AtFlags::EMPTY_PATH)?)
    }

    fn rename(&self, from: &Handle, from_name: &[u8], to: &Handle, to_name: &[u8]) -> io::Result<()> {
        let (from, to) = (kernel(from)?, kernel(to)?);
        Ok(rustix::fs::renameat_with(from, component(from_name)?, to, component(to_name)?, RenameFlags::NOREPLACE)?)
    }

    fn remove_file(&self, dir: &Handle, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(kernel(dir)?, component(name)?, AtFlags::empty())?)
    }

    fn remove_dir(&self, dir: &Handle, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(kernel(dir)?, component(name)?, AtFlags::REMOVEDIR)?)
    }

    fn write_at(&self, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()> {
        let file = kernel(file)?;
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(file, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn write_uncached_at(&self, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.uncached_writes {
            return self.write_at(file, bytes, offset);
        }
        let descriptor = kernel(file)?;
        let mut done = 0;
        while done < bytes.len() {
            match sys::pwrite_uncached(descriptor, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn has_uncached_writes(&self) -> bool {
        self.uncached_writes
    }

    fn set_len(&self, file: &Handle, size_bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(kernel(file)?, size_bytes)?)
    }

    fn set_owner(&self, node: &Handle, uid: u32, gid: u32) -> io::Result<()> {
        Ok(rustix::fs::fchown(kernel(node)?, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
    }

    fn set_owner_at(&self, dir: &Handle, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(rustix::fs::chownat(kernel(dir)?, component(name)?, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn set_mode(&self, node: &Handle, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(kernel(node)?, Mode::from_raw_mode(mode))?)
    }

    fn set_times(&self, node: &Handle, accessed: Timestamp, modified: Timestamp) -> io::Result<()> {
        Ok(rustix::fs::futimens(kernel(node)?, &timestamps(accessed, modified))?)
    }

    fn set_times_at(&self, dir: &Handle, name: &[u8], accessed: Timestamp, modified: Timestamp) -> io::Result<()> {
        let times = timestamps(accessed, modified);
        Ok(rustix::fs::utimensat(kernel(dir)?, component(name)?, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn set_xattr(&self, node: &Handle, name: &[u8], value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(kernel(node)?, name, value, rustix::fs::XattrFlags::empty())?)
    }

    fn remove_xattr(&self, node: &Handle, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::fremovexattr(kernel(node)?, name)?)
    }

    fn sync(&self, node: &Handle) -> io::Result<()> {
        Ok(rustix::fs::fsync(kernel(node)?)?)
    }

    fn sync_data(&self, file: &Handle) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(kernel(file)?)?)
    }

    fn barrier(&self, opened_before_writing: &Handle) -> io::Result<()> {
        Ok(rustix::fs::syncfs(kernel(opened_before_writing)?)?)
    }

    fn barrier_reports_every_error(&self) -> bool {
        self.barrier_reports_every_error
    }

    fn write_back(&self, file: &Handle, offset: u64, length: u64, mode: WriteBack) -> io::Result<()> {
        sys::sync_file_range(kernel(file)?, offset, length, mode)
    }

    fn drop_cache(&self, file: &Handle, offset: u64, length: u64) -> io::Result<()> {
        let length = std::num::NonZeroU64::new(length);
        Ok(rustix::fs::fadvise(kernel(file)?, offset, length, rustix::fs::Advice::DontNeed)?)
    }

    fn lock(&self, file: &Handle) -> io::Result<()> {
        Ok(rustix::fs::flock(kernel(file)?, rustix::fs::FlockOperation::NonBlockingLockExclusive)?)
    }
}

#[cfg(test)]
mod tests {
    use super::kernel_version;

    #[test]
    fn a_kernel_release_is_read_up_to_its_minor_version() {
        assert_eq!(kernel_version(b"6.1.0-13-amd64"), (6, 1));
        assert_eq!(kernel_version(b"5.10.103-v7l+"), (5, 10));
        assert_eq!(kernel_version(b"5.17"), (5, 17));
        assert_eq!(kernel_version(b"odd"), (0, 0));
    }
}
