//! Overlay mounts of a stack of layers.
//!
//! O1  Lowers, upper and work are passed by descriptor: their names would not fit a page for 125 layers, and cannot be
//!     swapped between look-up and mount.
//! O2  `index`, `redirect_dir`, `metacopy` and `xino` are named off, whatever the kernel's defaults: an upper written
//!     with one set of options must not be mounted with another.
//! O3  Mounting speaks to the kernel directly; it changes no file.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount as kernel_unmount,
};

use baleen_oci::limits::LAYERS_MAX;

/// The directories of an overlay. All descriptors are of directories on one file system.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// The layers' trees (`fs`), the topmost first: 1 to 125.
    pub lowers: &'a [BorrowedFd<'a>],
    /// `upper` and `work`; without them the mount is read-only.
    pub writable: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
}

/// Why an overlay could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// A stack of no layers, or of more than 125.
    #[error("cannot mount a stack of {layers} layers; an image has at most {LAYERS_MAX}, and overlayfs needs one")]
    Layers {
        /// Their number.
        layers: usize,
    },
    /// The kernel refused.
    #[error("cannot {action} the overlay of {layers} layers; is overlayfs available (modprobe overlay)?")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The number of layers.
        layers: usize,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The mount could not be taken away.
    #[error("cannot unmount {name:?}; a process still uses it")]
    Unmount {
        /// The name of the mount point.
        name: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Options of every overlay (O2).
const OPTIONS: [(&str, &str); 4] = [("index", "off"), ("redirect_dir", "off"), ("metacopy", "off"), ("xino", "off")];
/// What mount(2) takes of options, with the final NUL: a page.
const OPTION_BYTES_MAX: usize = 4095;

impl Overlay<'_> {
    /// Mounts it on the directory `target`.
    ///
    /// # Errors
    /// [`OverlayError::Layers`], [`OverlayError::Kernel`].
    pub fn mount(&self, target: BorrowedFd<'_>) -> Result<(), OverlayError> {
        let layers = self.lowers.len();
        if layers == 0 || layers > LAYERS_MAX {
            return Err(OverlayError::Layers { layers });
        }
        let failed = |action| move |source: Errno| OverlayError::Kernel { action, layers, source: source.into() };
        match self.configure() {
            Ok(mount) => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                move_mount(&mount, "", target, "", flags).map_err(failed("attach"))
            }
            // Before 6.13 descriptors are not taken, before 5.2 there is no such call.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BADF) => {
                self.mount_by_page(target).map_err(failed("mount"))
            }
            Err(error) => Err(failed("mount")(error)),
        }
    }

    /// The mount, attached nowhere (Linux 6.13, `lowerdir+` by descriptor).
    fn configure(&self) -> Result<OwnedFd, Errno> {
        let config = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&config, "source", "overlay")?;
        for lower in self.lowers {
            fsconfig_set_fd(&config, "lowerdir+", lower)?;
        }
        if let Some((upper, work)) = self.writable {
            fsconfig_set_fd(&config, "upperdir", upper)?;
            fsconfig_set_fd(&config, "workdir", work)?;
        }
        for (name, value) in OPTIONS {
            fsconfig_set_string(&config, name, value)?;
        }
        fsconfig_create(&config)?;
        fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, self.attributes())
    }

    fn attributes(&self) -> MountAttrFlags {
        match self.writable {
            Some(_) => MountAttrFlags::empty(),
            None => MountAttrFlags::MOUNT_ATTR_RDONLY,
        }
    }

    /// The same by mount(2), whose options are a page: descriptors are named by their links in /proc.
    fn mount_by_page(&self, target: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut options = String::new();
        for (name, value) in OPTIONS {
            let _ = write!(options, "{name}={value},");
        }
        if let Some((upper, work)) = self.writable {
            let _ = write!(options, "upperdir={},workdir={},", link_of(upper), link_of(work));
        }
        options.push_str("lowerdir=");
        for (at, lower) in self.lowers.iter().enumerate() {
            let _ = write!(options, "{}{}", if at == 0 { "" } else { ":" }, link_of(*lower));
        }
        if options.len() > OPTION_BYTES_MAX {
            return Err(Errno::TOOBIG); // The kernel would cut them without a word.
        }
        let flags = if self.writable.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        mount("overlay", link_of(target), "overlay", flags, options.as_c_str())
    }
}

/// The link by which the kernel reaches a descriptor of this process.
fn link_of(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Takes away what is mounted on the directory `name` of `parent`: at once, or as soon as its last user is gone. True if
/// something was mounted.
///
/// # Errors
/// [`OverlayError::Unmount`].
pub fn unmount(parent: BorrowedFd<'_>, name: &str) -> Result<bool, OverlayError> {
    let path = format!("{}/{name}", link_of(parent));
    let failed = |source: Errno| OverlayError::Unmount { name: name.to_owned(), source: source.into() };
    match kernel_unmount(path.as_str(), UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        // Nothing is mounted there, or there is no such directory.
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(Errno::BUSY) => {
            kernel_unmount(path.as_str(), UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map_err(failed)?;
            Ok(true)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Whether something is mounted on the directory `name` of `parent`: it is then on another file system.
///
/// # Errors
/// That of `stat(2)`.
pub fn is_mounted(parent: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    #[expect(clippy::disallowed_methods, reason = "a look at a mount point, which the port does not know (O3)")]
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    Ok(rustix::fs::fstat(directory.as_fd())?.st_dev != rustix::fs::fstat(parent)?.st_dev)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "makes directories to mount")]
mod tests {
    use super::*;

    #[test]
    fn kernels_without_lowers_by_descriptor_mount_125_layers_too() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "may not be skipped here");
            eprintln!("SKIPPED: kernels_without_lowers_by_descriptor_mount_125_layers_too: needs root");
            return;
        }
        let root = std::env::temp_dir().join(format!("baleen-overlay-{}", std::process::id()));
        let directory = |name: &str| {
            std::fs::create_dir_all(root.join(name)).unwrap();
            std::fs::File::open(root.join(name)).unwrap()
        };
        let layers: Vec<_> = (0..LAYERS_MAX).map(|number| directory(&format!("{number:064x}/fs"))).collect();
        let lowers: Vec<_> = layers.iter().map(|layer| layer.as_fd()).collect();
        std::fs::write(root.join(format!("{:064x}/fs/last", LAYERS_MAX - 1)), b"last").unwrap();
        let (upper, work, merged) = (directory("upper"), directory("work"), directory("merged"));
        let overlay = Overlay { lowers: &lowers, writable: Some((upper.as_fd(), work.as_fd())) };
        let mounted = overlay.mount_by_page(merged.as_fd());
        let seen = std::fs::read(root.join("merged/last"));
        let parent = std::fs::File::open(&root).unwrap();
        let unmounted = unmount(parent.as_fd(), "merged");
        std::fs::remove_dir_all(&root).unwrap();
        mounted.unwrap();
        assert_eq!(seen.unwrap(), b"last");
        assert!(unmounted.unwrap());
    }
}
