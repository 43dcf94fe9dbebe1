//! Copy-up: what an image has at the place of a fresh volume becomes the volume's first content.
//!
//! CU1  The copy is made beside `_data` and synced, and then takes its place in one rename: a cut leaves all of it or none.
//! CU2  Source and target are walked by descriptor, without following a link; the source is looked up as in a chroot (F3).
//! CU3  Memory is bounded: one open directory a level, at most [`DEPTH_MAX`] levels, [`LINKS_MAX`] names of hard links.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, openat2, readlinkat,
    renameat, statat, symlinkat, utimensat,
};
use rustix::process::{Gid, Uid};

/// Directories inside one another.
const DEPTH_MAX: usize = 256;
/// Files with several names that are remembered; further ones are copied again.
const LINKS_MAX: usize = 1 << 16;
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
const PIECE_BYTES: usize = 128 << 10;
/// Name of the copy beside `_data`.
const COPY: &str = "_copy";

/// What is at a path of an image.
pub(super) enum AtPath {
    Nothing,
    Directory(OwnedFd),
    /// A volume cannot be mounted on it.
    Other,
}

fn dir_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Looks up `path` below the root of an image, as in a chroot.
pub(super) fn look_up(root: &OwnedFd, path: &str) -> io::Result<AtPath> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let found = match opened {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(AtPath::Nothing),
        Err(error) => return Err(error.into()),
    };
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::Directory => Ok(AtPath::Directory(openat(&found, ".", dir_flags(), Mode::empty())?)),
        _ => Ok(AtPath::Other),
    }
}

/// Whether a volume has no content yet.
pub(super) fn is_empty(data: &Path) -> io::Result<bool> {
    let dir = openat(CWD, data, dir_flags(), Mode::empty())?;
    for entry in Dir::new(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b".." | b"lost+found") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fills the empty volume in `folder` with the tree `source`.
///
/// # Durability
/// The content is durable on `Ok`; a cut leaves the volume empty or filled.
pub(super) fn fill(folder: &Path, source: OwnedFd) -> io::Result<()> {
    // The path is ours alone: no container sees the folder, only `_data`.
    match std::fs::remove_dir_all(folder.join(COPY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Opened before the first write, so that its sync tells of every error since.
    let folder = openat(CWD, folder, dir_flags(), Mode::empty())?;
    mkdirat(&folder, COPY, Mode::RWXU)?;
    let copied = (|| {
        let target = openat(&folder, COPY, dir_flags(), Mode::empty())?;
        let facts = fstat(&source)?;
        let mut copy = Copy { root: &target, links: HashMap::new(), device: facts.st_dev };
        let attributes = source.try_clone()?;
        copy.tree(source, &target, &mut Vec::new(), DEPTH_MAX)?;
        copy_attributes(&attributes, &target)?;
        copy.finish_dir(&target, &facts)?;
        rustix::fs::syncfs(&folder)?;
        renameat(&folder, COPY, &folder, "_data")?;
        rustix::fs::fsync(&folder)?;
        Ok(())
    })();
    if copied.is_err() {
        let path = format!("/proc/self/fd/{}/{COPY}", std::os::fd::AsRawFd::as_raw_fd(&folder));
        // The first error is what counts; the next attempt removes what is left.
        let _ = std::fs::remove_dir_all(path);
    }
    copied
}

struct Copy<'a> {
    /// Nobody but us sees what is below it.
    root: &'a OwnedFd,
    /// Where each file with several names was copied to first, below the root.
    links: HashMap<u64, Vec<u8>>,
    device: u64,
}

impl Copy<'_> {
    fn tree(&mut self, source: OwnedFd, target: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> io::Result<()> {
        if depth == 0 {
            return Err(io::Error::other(format!("directories are nested deeper than {DEPTH_MAX}")));
        }
        for entry in Dir::read_from(&source)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let facts = statat(&source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            let copied = self.one((&source, target), name, &facts, path, depth);
            path.truncate(length);
            copied.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy())))?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        (source, target): (&OwnedFd, &OwnedFd),
        name: &CStr,
        facts: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> io::Result<()> {
        let kind = FileType::from_raw_mode(facts.st_mode);
        if kind != FileType::Directory && facts.st_nlink > 1 && facts.st_dev == self.device {
            if let Some(first) = self.links.get(&facts.st_ino) {
                return Ok(linkat(self.root, &first[1..], target, name, AtFlags::empty())?);
            }
            if self.links.len() < LINKS_MAX {
                self.links.insert(facts.st_ino, path.clone());
            }
        }
        match kind {
            FileType::Directory => {
                mkdirat(target, name, Mode::RWXU)?;
                let inner = openat(target, name, dir_flags(), Mode::empty())?;
                let from = openat(source, name, dir_flags(), Mode::empty())?;
                let facts = fstat(&from)?;
                let attributes = from.try_clone()?;
                self.tree(from, &inner, path, depth - 1)?;
                copy_attributes(&attributes, &inner)?;
                self.finish_dir(&inner, &facts)
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let from = openat(source, name, flags, Mode::empty())?;
                let facts = fstat(&from)?;
                if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
                    return Err(io::Error::other("it changed while it was copied"));
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let to = openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
                copy_bytes(&from, &to)?;
                fchown(&to, Some(uid(&facts)), Some(gid(&facts)))?;
                copy_attributes(&from, &to)?;
                fchmod(&to, mode(&facts))?;
                Ok(futimens(&to, &times(&facts))?)
            }
            FileType::Symlink => {
                let link = readlinkat(source, name, Vec::new())?;
                symlinkat(link.as_c_str(), target, name)?;
                self.finish_node(target, name, facts)
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(target, name, kind, mode(facts), facts.st_rdev)?;
                self.finish_node(target, name, facts)?;
                // The umask has taken some away.
                Ok(rustix::fs::chmodat(target, name, mode(facts), AtFlags::empty())?)
            }
            // A socket without its listener is of no use to anybody.
            _ => Ok(()),
        }
    }

    fn finish_node(&self, target: &OwnedFd, name: &CStr, facts: &Stat) -> io::Result<()> {
        chownat(target, name, Some(uid(facts)), Some(gid(facts)), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(utimensat(target, name, &times(facts), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn finish_dir(&self, dir: &OwnedFd, facts: &Stat) -> io::Result<()> {
        fchown(dir, Some(uid(facts)), Some(gid(facts)))?;
        fchmod(dir, mode(facts))?;
        Ok(futimens(dir, &times(facts))?)
    }
}

fn uid(facts: &Stat) -> Uid {
    Uid::from_raw(facts.st_uid)
}

fn gid(facts: &Stat) -> Gid {
    Gid::from_raw(facts.st_gid)
}

fn mode(facts: &Stat) -> Mode {
    Mode::from_raw_mode(facts.st_mode & 0o7777)
}

#[allow(clippy::unnecessary_cast, reason = "the fields are of another width on 32-bit architectures")]
fn times(facts: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps {
        last_access: time(facts.st_atime as i64, facts.st_atime_nsec as u64),
        last_modification: time(facts.st_mtime as i64, facts.st_mtime_nsec as u64),
    }
}

fn copy_bytes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = rustix::io::read(from, &mut piece)?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &piece[..count];
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(to, rest)?..];
        }
    }
}

/// Copies what layers may carry (threats L8), and access lists.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let kept = (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
            || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default");
        if !kept {
            continue;
        }
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = fgetxattr(from.as_fd(), name, &mut value[..])?;
        fsetxattr(to.as_fd(), name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_tree_is_copied_with_its_links_and_modes_and_replaces_the_empty_one() {
        let root = std::env::temp_dir().join(format!("baleen-copy-up-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let (source, folder) = (root.join("image/data"), root.join("volume"));
        std::fs::create_dir_all(source.join("dir")).unwrap();
        std::fs::create_dir_all(folder.join("_data")).unwrap();
        std::fs::create_dir_all(folder.join("_copy/left by a cut")).unwrap();
        std::fs::write(source.join("dir/file"), b"content").unwrap();
        std::fs::set_permissions(source.join("dir/file"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        std::fs::hard_link(source.join("dir/file"), source.join("second")).unwrap();
        symlink("/etc/passwd", source.join("link")).unwrap();
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o1777)).unwrap();
        // The image names its directory through an absolute link, which leads back into the image.
        symlink("/data", root.join("image/alias")).unwrap();
        let image = openat(CWD, root.join("image"), dir_flags(), Mode::empty()).unwrap();
        let AtPath::Directory(found) = look_up(&image, "/alias").unwrap() else { panic!("it is a directory") };
        assert!(is_empty(&folder.join("_data")).unwrap());
        fill(&folder, found).unwrap();
        let data = folder.join("_data");
        assert_eq!(std::fs::read(data.join("dir/file")).unwrap(), b"content");
        let (one, other) =
            (std::fs::metadata(data.join("dir/file")).unwrap(), std::fs::metadata(data.join("second")).unwrap());
        assert_eq!((one.ino(), one.mode() & 0o7777), (other.ino(), 0o4755));
        assert_eq!(std::fs::read_link(data.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::metadata(&data).unwrap().mode() & 0o7777, 0o1777);
        assert!(!folder.join("_copy").exists() && !is_empty(&data).unwrap());
        assert!(matches!(look_up(&image, "/../../nowhere").unwrap(), AtPath::Nothing));
        assert!(matches!(look_up(&image, "/data/link").unwrap(), AtPath::Nothing));
        assert!(matches!(look_up(&image, "/data/second").unwrap(), AtPath::Other));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
