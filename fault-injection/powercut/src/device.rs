//! A block device whose every request we answer: a file in user space (FUSE) behind a loop device with direct I/O.
//!
//! V1  Requests that wait at the same time were not answered when the first of them was issued, so a flush among them
//!     covers none of the writes beside it: a batch's flushes are answered before its writes.
//! V2  Nothing of a device outlives its process: the file's mount is detached as soon as the file is open, the loop
//!     device is freed at its last close.
//!
//! Touches /dev/fuse and /dev/loop*.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    Session, SessionACL, WriteFlags,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::time::Timespec;

use crate::contents::BLOCK_BYTES;
use crate::sys;

/// What answers the requests of a device. An error's number goes to the kernel.
pub(crate) trait BlockStore: Send + 'static {
    /// Fills `bytes` from `offset`, which lies within the device.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Takes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes durable what was taken before.
    fn flush(&mut self) -> io::Result<()>;
}

/// First part of the name of every backing file, by which a device is known to be ours.
pub(crate) const FILE_NAME: &str = "baleen-powercut.";

/// Writes that may wait for a flush beside them, in number and in bytes.
const BATCH_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 8 << 20;

const DIRECTORY: INodeNo = INodeNo(1);
const FILE: INodeNo = INodeNo(2);
/// Attributes do not change while a device lives.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// A block device. Dropping it detaches it; it must not be mounted then.
#[derive(Debug)]
pub(crate) struct Device<B: BlockStore> {
    store: Arc<Mutex<B>>,
    /// Kept open: the loop device lives as long as that.
    node: Option<File>,
    path: PathBuf,
    name: String,
    thread: Option<JoinHandle<()>>,
}

impl<B: BlockStore> Device<B> {
    /// A device of `size` bytes with logical blocks of `sector_bytes`. `mount_point` is an empty folder, free again when
    /// this returns.
    ///
    /// # Errors
    /// Those of mounting (root is needed, and the kernel's FUSE) and of loop devices.
    pub(crate) fn new(store: B, size: u64, sector_bytes: u32, mount_point: &Path) -> io::Result<Device<B>> {
        let store = Arc::new(Mutex::new(store));
        let channel: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/fuse")?.into();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", channel.as_raw_fd());
        let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
        rustix::mount::mount(
            "baleen-powercut",
            mount_point,
            "fuse",
            MountFlags::NODEV | MountFlags::NOSUID,
            Some(options.as_c_str()),
        )?;
        let mounted = Mounted(mount_point);
        let name = fresh_name();
        let served = Served {
            store: Arc::clone(&store),
            size,
            name: name.clone(),
            waiting: sys::duplicate(&channel)?,
            batch: Mutex::default(),
        };
        let session = Session::from_fd(served, channel, SessionACL::All, Config::default())?;
        let run = move || {
            // It ends when the last user of the file has gone; there is nobody to tell an error to but those users.
            let _ = session.run();
        };
        let thread = std::thread::Builder::new().name("powercut-disk".to_owned()).spawn(run)?;
        let backing = OpenOptions::new().read(true).write(true).open(mount_point.join(&name))?;
        let (node, path) = sys::loop_device(backing.as_fd(), sector_bytes, &name)?;
        drop(mounted);
        Ok(Device { store, node: Some(node), path, name, thread: Some(thread) })
    }

    /// The device node.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The store, while no request is being answered.
    pub(crate) fn store(&self) -> MutexGuard<'_, B> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store, for threads of others.
    pub(crate) fn shared(&self) -> Arc<Mutex<B>> {
        Arc::clone(&self.store)
    }

    /// Puts another store behind the device, which nobody may have mounted or open.
    ///
    /// # Errors
    /// Those of `BLKFLSBUF`.
    pub(crate) fn replace(&self, store: B) -> io::Result<B> {
        self.forget_cache()?;
        Ok(std::mem::replace(&mut *self.store(), store))
    }

    /// Makes the kernel forget what it has cached of the device.
    ///
    /// # Errors
    /// Those of `BLKFLSBUF`.
    pub(crate) fn forget_cache(&self) -> io::Result<()> {
        self.node.as_ref().map_or(Ok(()), sys::forget_cache)
    }
}

impl<B: BlockStore> Drop for Device<B> {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            // It clears itself at the last close; this only says so earlier, and there is nothing to do if it fails.
            let _ = sys::loop_detach(&node);
            drop(node);
        }
        if let Some(thread) = self.thread.take()
            && is_free(&self.path, &self.name)
        {
            // The last user has gone, so the session ends.
            let _ = thread.join();
        }
    }
}

/// Whether a loop device has no file any more.
fn is_free(device: &Path, file_name: &str) -> bool {
    let Some(name) = device.file_name() else { return true };
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    // Freed by the last close, which may be a moment away; another program may take it at once.
    (0..200).any(|_| {
        let free = !fs::read_to_string(&backing).is_ok_and(|text| text.trim_end().ends_with(file_name));
        if !free {
            std::thread::sleep(Duration::from_millis(5));
        }
        free
    })
}

/// A name that no other device has, of this process or another.
fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{FILE_NAME}{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Detaches a mount on every path out.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // The open file keeps the file system alive below the loop device; nobody else needs the name.
        let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
    }
}

/// A request that has not been answered.
#[derive(Debug)]
enum Waiting {
    Write { offset: u64, data: Vec<u8>, reply: ReplyWrite },
    Flush { reply: ReplyEmpty },
}

/// A file system with one file, the disk.
#[derive(Debug)]
struct Served<B> {
    store: Arc<Mutex<B>>,
    size: u64,
    name: String,
    /// Readable while requests wait.
    waiting: OwnedFd,
    batch: Mutex<Vec<Waiting>>,
}

impl<B: BlockStore> Served<B> {
    fn store(&self) -> MutexGuard<'_, B> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, request: Waiting) {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.settle();
    }

    /// Answers the batch once no further request waits (V1). Every request ends here, so none waits for ever.
    fn settle(&self) {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        if batch.is_empty() {
            return;
        }
        let bytes = |request: &Waiting| match request {
            Waiting::Write { data, .. } => data.len(),
            Waiting::Flush { .. } => 0,
        };
        let full = batch.len() >= BATCH_MAX || batch.iter().map(bytes).sum::<usize>() >= BATCH_BYTES_MAX;
        if !full && self.more_wait() {
            return;
        }
        let (flushes, writes): (Vec<_>, Vec<_>) =
            batch.drain(..).partition(|request| matches!(request, Waiting::Flush { .. }));
        let mut store = self.store();
        for request in flushes.into_iter().chain(writes) {
            match request {
                Waiting::Flush { reply } => match store.flush() {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(number(&error)),
                },
                Waiting::Write { offset, data, reply } => match store.write(offset, &data) {
                    Ok(()) => reply.written(data.len() as u32),
                    Err(error) => reply.error(number(&error)),
                },
            }
        }
    }

    fn more_wait(&self) -> bool {
        let mut poll_fds = [PollFd::new(&self.waiting, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut poll_fds, Some(&now)), Ok(1)) && poll_fds[0].revents() == PollFlags::IN
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let (size, kind, perm) =
            if inode == FILE { (self.size, FileType::RegularFile, 0o600) } else { (0, FileType::Directory, 0o700) };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES as u32,
            flags: 0,
        }
    }
}

fn number(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

impl<B: BlockStore> Filesystem for Served<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Several requests of the loop device at once, as a disk sees them. Without it they come one by one: fine too.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == OsStr::new(&self.name) {
            reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
        self.settle();
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {
        self.settle();
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let inode = if inode == FILE { FILE } else { DIRECTORY };
        reply.attr(&FOREVER, &self.attributes(inode));
        self.settle();
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        self.settle();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inside = u64::from(size).min(self.size.saturating_sub(offset));
        let mut bytes = vec![0; inside as usize];
        let read = self.store().read(offset, &mut bytes);
        match read {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(number(&error)),
        }
        self.settle();
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.put(Waiting::Write { offset, data: data.to_vec(), reply });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // A close, which makes nothing durable.
        self.settle();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        self.settle();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.put(Waiting::Flush { reply });
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        // No discard and no quick zeroing: the kernel writes zeros instead, which is recorded like any write.
        reply.error(Errno::EOPNOTSUPP);
        self.settle();
    }
}
