//! Calls of the kernel that rustix lacks: loop devices and the place of a file on its disk. The only unsafe code here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

// linux/loop.h and linux/fs.h; stable numbers of the kernel's interface.
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a; // Linux 5.8.
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const BLKFLSBUF: libc::Ioctl = 0x1261;
#[cfg(not(any(target_arch = "mips", target_arch = "mips64", target_arch = "powerpc64")))]
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
#[cfg(any(target_arch = "mips", target_arch = "mips64", target_arch = "powerpc64"))]
compile_error!("the numbers of ioctls differ on this architecture");

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// How often a free loop device is asked for: another program may take it between the two calls.
const ATTEMPTS_MAX: usize = 64;

/// A loop device over `backing`, with direct I/O and logical blocks of `block_size` bytes; it is freed at its last close.
/// The name is what the kernel reports as the backing file's.
///
/// # Errors
/// Those of `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` (loop(4)); `EBUSY` if other programs took every device first.
pub(crate) fn loop_device(backing: BorrowedFd<'_>, block_size: u32, name: &str) -> io::Result<(File, PathBuf)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let mut file_name = [0; 64];
    let kept = name.len().min(63);
    file_name[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    for _ in 0..ATTEMPTS_MAX {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is borrowed from `control`, which is open.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path)?;
        let config = LoopConfig {
            descriptor: backing.as_raw_fd() as u32,
            block_size,
            info: LoopInfo64 {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
                file_name,
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` has the layout of `struct loop_config` (its size is asserted above), every byte of it is
        // initialised, and it outlives the call, which copies it; the descriptor in it is borrowed, so it is open.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if result == 0 {
            return Ok((device, path));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Detaches a loop device from its file, at the latest when its last user has gone.
///
/// # Errors
/// Those of `LOOP_CLR_FD`: `ENXIO` if it is detached already.
pub(crate) fn loop_detach(device: &File) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument; the descriptor is borrowed from `device`, which is open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes out and forgets what the kernel has cached of a block device.
///
/// # Errors
/// Those of `BLKFLSBUF`.
pub(crate) fn forget_cache(device: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument; the descriptor is borrowed from `device`, which is open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct fiemap` with room for one `struct fiemap_extent`.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    logical: u64,
    physical: u64,
    extent_length: u64,
    extent_reserved64: [u64; 2],
    extent_flags: u32,
    extent_reserved: [u32; 3],
}

const _: () = assert!(size_of::<Fiemap>() == 32 + 56);

/// The offset on the disk of the byte at `offset` of a file, once that is written; `None` in a hole, or where the bytes
/// do not lie on the disk as they are (inline, compressed).
///
/// # Errors
/// Those of `FS_IOC_FIEMAP` (Documentation/filesystems/fiemap.rst).
pub(crate) fn place_on_disk(file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<u64>> {
    const FIEMAP_FLAG_SYNC: u32 = 1;
    // UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL, UNWRITTEN.
    const NOT_AS_IT_IS: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800;
    let mut map = Fiemap {
        start: offset,
        length: 1,
        flags: FIEMAP_FLAG_SYNC,
        mapped_extents: 0,
        extent_count: 1,
        reserved: 0,
        logical: 0,
        physical: 0,
        extent_length: 0,
        extent_reserved64: [0; 2],
        extent_flags: 0,
        extent_reserved: [0; 3],
    };
    // SAFETY: `map` has the layout of `struct fiemap` followed by one `struct fiemap_extent` (its size is asserted
    // above), says that it has room for one, is initialised and outlives the call; the descriptor is borrowed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let inside = map.mapped_extents == 1 && map.logical <= offset && offset < map.logical + map.extent_length;
    Ok((inside && map.extent_flags & NOT_AS_IT_IS == 0).then(|| map.physical + (offset - map.logical)))
}

/// Gives this thread a mount namespace of its own, with those that it will start.
///
/// # Errors
/// Those of unshare(2): `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn own_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS touches no memory; for this thread alone it also ends the sharing of the working directory
    // and umask, on which nothing here relies. No descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.map_err(io::Error::from)
}

/// A second descriptor of the same open file.
///
/// # Errors
/// Those of dup(2).
pub(crate) fn duplicate(descriptor: &impl AsFd) -> io::Result<OwnedFd> {
    descriptor.as_fd().try_clone_to_owned()
}
