//! The file port: the only way in which the store and the snapshotter touch files.
//!
//! The real one is [`SystemDisk`](crate::SystemDisk). `fault-injection` has a simulated one that cuts the power between
//! any two calls, so every promise of the store is tested against this trait and nothing else. `clippy.toml` names
//! every other way to a file, and the cut tests run under a filter that refuses file system calls.
//!
//! D1  A path is resolved once, from a held [`Handle`], to a new [`Handle`]; a *name* is one component, never a path.
//! D2  No call follows a symbolic link, except [`Disk::open_dir_in_root`], which follows as in a chroot.
//! D3  A name is durable after [`Disk::sync`] of its directory or a [`Disk::barrier`]; contents and attributes
//!     after [`Disk::sync`] of the file or a barrier. Neither implies the other.
//! D4  [`Disk::barrier`] reports errors of writes made since its handle was opened. A transaction that relies on
//!     it opens the handle before its first write and shares it with nobody.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// An open file, directory or bare node that a [`Disk`] gave out; closed when dropped.
pub struct Handle(Kind);

enum Kind {
    Kernel(OwnedFd),
    Simulated { number: u64, _on_close: Box<dyn Any + Send + Sync> },
}

impl Handle {
    /// Wraps a kernel descriptor.
    pub fn from_fd(descriptor: OwnedFd) -> Self {
        Self(Kind::Kernel(descriptor))
    }

    /// Names an open node of a simulated disk. `on_close` is dropped with the handle: so that disk learns that a lock
    /// is free and that a node without a name may go.
    pub fn simulated(number: u64, on_close: Box<dyn Any + Send + Sync>) -> Self {
        Self(Kind::Simulated { number, _on_close: on_close })
    }

    /// The kernel descriptor, for mounts and sandboxes; `None` on a simulated disk.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::Kernel(descriptor) => Some(descriptor.as_fd()),
            Kind::Simulated { .. } => None,
        }
    }

    /// The number given to [`Handle::simulated`]; `None` for a kernel descriptor.
    pub fn number(&self) -> Option<u64> {
        match &self.0 {
            Kind::Kernel(_) => None,
            Kind::Simulated { number, .. } => Some(*number),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Kernel(descriptor) => write!(formatter, "Handle({descriptor:?})"),
            Kind::Simulated { number, .. } => write!(formatter, "Handle(simulated {number})"),
        }
    }
}

/// What kind of node a name leads to (`stat(2)`, `S_IFMT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device; 0/0 is an overlay whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// Nanoseconds since 1970, before it negative; the range of the kernel's 64-bit times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// The rest, 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What `statx(2)` tells of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Its kind.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes of a file's contents or a link's target; unspecified for others.
    pub size_bytes: u64,
    /// Bytes that its contents occupy on the disk.
    pub allocated_bytes: u64,
    /// Names that lead to this inode.
    pub links: u64,
    /// Inode number.
    pub inode: u64,
    /// The file system it lies on: equal on equal mounts.
    pub device: u64,
    /// Device number, major and minor, of a device node.
    pub device_node: (u32, u32),
    /// Last modification of the contents.
    pub modified: Timestamp,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The name: bytes without `/` and NUL.
    pub name: Vec<u8>,
    /// What it leads to.
    pub kind: NodeKind,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    ReadWrite,
}

/// Whether a call waits until the pages it names are on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteBack {
    /// Starts the write-back and returns.
    Start,
    /// Starts it and waits; reports its error (kernels before 5.17 lose some of these in `syncfs`).
    Wait,
}

/// Space on the file system (`statvfs(3)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that an ordinary writer can still allocate.
    pub free_bytes: u64,
    /// Size of the file system in bytes.
    pub total_bytes: u64,
}

/// Files and directories below one root. See the module for the rules D1 to D4.
///
/// Errors are those of the system call named at each method, by `raw_os_error`. A `name` with `/`, NUL, `.` or `..`
/// is refused with `EINVAL`.
pub trait Disk: Send + Sync {
    /// Opens the root directory of this disk.
    fn root(&self) -> io::Result<Handle>;

    // Look.

    /// Opens the directory `name`, without following a link (`openat2`, `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`).
    fn open_dir(&self, dir: &Handle, name: &[u8]) -> io::Result<Handle>;

    /// Opens the directory at `path`, resolved with `root` as in a chroot: links are followed, and neither `..` nor
    /// an absolute link leads out (`openat2`, `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`).
    fn open_dir_in_root(&self, root: &Handle, path: &Path) -> io::Result<Handle>;

    /// Opens the regular file `name` (`O_NOFOLLOW`; `EINVAL` for any other kind, which is never waited for).
    fn open_file(&self, dir: &Handle, name: &[u8], access: Access) -> io::Result<Handle>;

    /// Opens the node `name` itself, whatever it is, to link or look at it (`O_PATH | O_NOFOLLOW`).
    fn open_node(&self, dir: &Handle, name: &[u8]) -> io::Result<Handle>;

    /// Tells what an open node is.
    fn metadata(&self, node: &Handle) -> io::Result<Metadata>;

    /// Tells what `name` is, without following a link.
    fn metadata_at(&self, dir: &Handle, name: &[u8]) -> io::Result<Metadata>;

    /// Lists a directory without `.` and `..`, in no particular order.
    fn read_dir(&self, dir: &Handle) -> io::Result<Vec<DirEntry>>;

    /// Reads the target of the symbolic link `name`.
    fn read_link(&self, dir: &Handle, name: &[u8]) -> io::Result<Vec<u8>>;

    /// Reads at most `buffer.len()` bytes at `offset`; 0 at the end of the file. May read less (`pread`).
    fn read_at(&self, file: &Handle, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Lists extended attributes with their values, sorted by name.
    fn xattrs(&self, node: &Handle) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>;

    /// Tells the space left on the file system of `dir`.
    fn space(&self, dir: &Handle) -> io::Result<Space>;

    // Change names.

    /// Makes and opens a new regular file for reading and writing (`O_CREAT | O_EXCL | O_NOFOLLOW`); the mode is
    /// exact, whatever the umask.
    fn create_file(&self, dir: &Handle, name: &[u8], mode: u32) -> io::Result<Handle>;

    /// Makes a directory; the mode is exact.
    fn create_dir(&self, dir: &Handle, name: &[u8], mode: u32) -> io::Result<()>;

    /// Makes a symbolic link.
    fn create_symlink(&self, dir: &Handle, name: &[u8], target: &[u8]) -> io::Result<()>;

    /// Makes a device, fifo or socket node (`mknodat`); the mode is exact. `device` is major and minor.
    fn create_node(&self, dir: &Handle, name: &[u8], kind: NodeKind, mode: u32, device: (u32, u32)) -> io::Result<()>;

    /// Gives the open node one more name (`linkat`, `AT_EMPTY_PATH`); a link to a symbolic link links the link.
    fn link(&self, node: &Handle, dir: &Handle, name: &[u8]) -> io::Result<()>;

    /// Renames; `EEXIST` if the new name is taken (`RENAME_NOREPLACE`).
    fn rename(&self, from: &Handle, from_name: &[u8], to: &Handle, to_name: &[u8]) -> io::Result<()>;

    /// Removes a name of anything but a directory.
    fn remove_file(&self, dir: &Handle, name: &[u8]) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Handle, name: &[u8]) -> io::Result<()>;

    // Change contents and attributes.

    /// Writes all of `bytes` at `offset`. On an error any part of them may have been written.
    fn write_at(&self, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Like [`Disk::write_at`], and asks that the pages leave the cache once they are clean (`RWF_DONTCACHE`;
    /// where the kernel lacks it, the caller uses [`Disk::write_back`] and [`Disk::drop_cache`]).
    fn write_uncached_at(&self, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(file, bytes, offset)
    }

    /// Tells whether [`Disk::write_uncached_at`] keeps pages out of the cache by itself.
    fn has_uncached_writes(&self) -> bool {
        false
    }

    /// Cuts or extends a file with a hole.
    fn set_len(&self, file: &Handle, size_bytes: u64) -> io::Result<()>;

    /// Sets owner and group of an open file or directory.
    fn set_owner(&self, node: &Handle, uid: u32, gid: u32) -> io::Result<()>;

    /// Sets owner and group of `name` itself (`AT_SYMLINK_NOFOLLOW`).
    fn set_owner_at(&self, dir: &Handle, name: &[u8], uid: u32, gid: u32) -> io::Result<()>;

    /// Sets the permission bits of an open file or directory. After [`Disk::set_owner`], which clears setuid.
    fn set_mode(&self, node: &Handle, mode: u32) -> io::Result<()>;

    /// Sets access and modification time of an open file or directory.
    fn set_times(&self, node: &Handle, accessed: Timestamp, modified: Timestamp) -> io::Result<()>;

    /// Sets access and modification time of `name` itself (`AT_SYMLINK_NOFOLLOW`).
    fn set_times_at(&self, dir: &Handle, name: &[u8], accessed: Timestamp, modified: Timestamp) -> io::Result<()>;

    /// Sets an extended attribute of an open file or directory.
    fn set_xattr(&self, node: &Handle, name: &[u8], value: &[u8]) -> io::Result<()>;

    /// Removes an extended attribute of an open file or directory. For repairs; a disk that none are made on need not have it.
    fn remove_xattr(&self, _node: &Handle, _name: &[u8]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    // Make durable.

    /// Makes a file's contents and attributes, or the names in a directory, durable (`fsync`).
    fn sync(&self, node: &Handle) -> io::Result<()>;

    /// Makes a file's contents and size durable (`fdatasync`).
    fn sync_data(&self, file: &Handle) -> io::Result<()>;

    /// Makes everything written to the file system so far durable, contents and names (`syncfs`). See D4.
    fn barrier(&self, opened_before_writing: &Handle) -> io::Result<()>;

    /// Tells whether [`Disk::barrier`] reports every error (kernels from 5.17); before, the errors of each file's
    /// write-back must be asked for by [`Disk::write_back`] with [`WriteBack::Wait`], and those of the journal by
    /// [`Disk::sync`].
    fn barrier_reports_every_error(&self) -> bool {
        true
    }

    /// Starts, or waits for, the write-back of a range (`sync_file_range`): no barrier and no flush of the device.
    /// A length of 0 means up to the end of the file.
    fn write_back(&self, file: &Handle, offset: u64, length: u64, mode: WriteBack) -> io::Result<()>;

    /// Drops the clean pages of a range from the cache (`POSIX_FADV_DONTNEED`), so that the next read comes from the
    /// disk. A length of 0 means up to the end of the file.
    fn drop_cache(&self, file: &Handle, offset: u64, length: u64) -> io::Result<()>;

    /// Takes the exclusive lock of a file, or says `EWOULDBLOCK`; held until the handle is dropped (`flock`).
    fn lock(&self, file: &Handle) -> io::Result<()>;
}

/// Reads at `offset` until `buffer` is full or the file ends; gives the number of bytes read.
///
/// # Errors
/// That of [`Disk::read_at`].
pub fn read_full_at(disk: &dyn Disk, file: &Handle, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match disk.read_at(file, &mut buffer[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// Reads a whole file of at most `limit_bytes` (`EFBIG` beyond).
///
/// # Errors
/// Those of [`Disk::metadata`] and [`Disk::read_at`].
pub fn read_file(disk: &dyn Disk, file: &Handle, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let size_bytes = disk.metadata(file)?.size_bytes;
    if size_bytes > limit_bytes {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    let mut bytes = vec![0; size_bytes as usize];
    let count = read_full_at(disk, file, &mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes)
}
