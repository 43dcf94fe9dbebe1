//! Export: a tar of a container's root as it is now, without what is mounted in it.
//!
//! X1  The tree belongs to the container, which may change it meanwhile: everything is opened from a held descriptor
//!     without following a link, and looked at again on the descriptor (threats T1, L9).
//! X2  A file gets exactly the length that its header says: cut if it has grown, filled with zeros if it has shrunk.
//! X3  One that does not run is mounted for the export, and holds its turn so long.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;
use tokio::task;

use super::rootfs;
use super::streams::ExportStream;
use super::table::Container;
use crate::engine::Engine;
use crate::error::EngineError;

/// Pieces between the writer and the client, and the size of each.
const QUEUE_MAX: usize = 4;
const PIECE_BYTES: usize = 64 << 10;
/// Directories that may be open inside one another.
const DEPTH_MAX: usize = 256;
/// Names of files with several names that are remembered; further ones are written out again.
const LINKS_MAX: usize = 1 << 20;
/// Longest list of attributes, and longest value, that is kept.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

impl Engine {
    /// A tar of a container's file system as it is now, without mounts.
    ///
    /// # Errors
    /// `NoSuchContainer`.
    pub async fn export_container(self: &Arc<Self>, name: &str) -> Result<ExportStream, EngineError> {
        let container = self.containers.find(name)?;
        self.container_event(&container, "export", &[]);
        let (sender, pieces) = mpsc::channel(QUEUE_MAX);
        let engine = Arc::clone(self);
        drop(tokio::spawn(async move {
            if let Err(error) = engine.export(&container, sender.clone()).await {
                let _ = sender.send(Err(error)).await; // A client that has gone wants nothing.
            }
        }));
        Ok(ExportStream(pieces))
    }

    async fn export(
        self: &Arc<Self>,
        container: &Arc<Container>,
        pieces: mpsc::Sender<Result<Bytes, EngineError>>,
    ) -> Result<(), EngineError> {
        let turn = Arc::clone(&container.turn).acquire_owned().await.map_err(|_| EngineError::ShuttingDown)?;
        let runs = container.live().state.status.is_running();
        // One that runs is not held up: its root stays mounted as long as it runs, and the tree stays open after that.
        let turn = if runs { None } else { Some(turn) };
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        let write = move || {
            let root = match runs {
                true => rootfs::merged_path(&engine.config.data_root, container.id()),
                false => rootfs::mount(&engine.store, &engine.config.data_root, &container.stored())?,
            };
            let io = |source| EngineError::Io { action: "export", path: root.clone(), source };
            let written = open_dir(CWD, &root).and_then(|dir| write_tree(dir, pieces)).map_err(io);
            let unmounted = if runs { Ok(()) } else { rootfs::unmount(&engine.store, container.id()) };
            drop(turn);
            match (written, unmounted) {
                (Err(EngineError::Io { source, .. }), unmounted) if source.kind() == io::ErrorKind::BrokenPipe => {
                    unmounted
                }
                (written, Ok(())) => written,
                (Ok(()), unmounted) => unmounted,
                (written, Err(error)) => {
                    tracing::warn!(
                        container = container.id(),
                        error = error.chain(),
                        "an export left its mount behind"
                    );
                    written
                }
            }
        };
        // Waits for the client, so it has a thread of its own and does not stand in the door.
        task::spawn_blocking(write).await.map_err(|error| crate::door::ended("export a container", &error))?
    }
}

fn write_tree(root: OwnedFd, pieces: mpsc::Sender<Result<Bytes, EngineError>>) -> io::Result<()> {
    let mut builder = Builder::new(PieceWriter { pieces, piece: Vec::with_capacity(PIECE_BYTES) });
    let mut seen = HashMap::new();
    write_dir(&mut builder, root, Path::new(""), DEPTH_MAX, &mut seen)?;
    builder.into_inner()?.flush()
}

/// The first name of each file that has several.
type Seen = HashMap<(u64, u64), PathBuf>;

fn write_dir<W: Write>(
    builder: &mut Builder<W>,
    dir: OwnedFd,
    path: &Path,
    depth: usize,
    seen: &mut Seen,
) -> io::Result<()> {
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    for name in names {
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        match write_entry(builder, &dir, &name, &path, depth, seen) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // It has gone since.
            other => other?,
        }
    }
    Ok(())
}

fn write_entry<W: Write>(
    builder: &mut Builder<W>,
    dir: &OwnedFd,
    name: &CString,
    path: &Path,
    depth: usize,
    seen: &mut Seen,
) -> io::Result<()> {
    let facts = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(facts.st_mode) {
        FileType::Directory => {
            if depth == 0 {
                return Err(io::Error::other(format!("{} is nested too deep to be exported", path.display())));
            }
            let inner = open_dir(dir.as_fd(), name)?;
            let facts = rustix::fs::fstat(&inner)?;
            write_attributes(builder, &inner)?;
            let mut header = header(&facts, EntryType::Directory);
            builder.append_data(&mut header, path, io::empty())?;
            write_dir(builder, inner, path, depth - 1, seen)
        }
        FileType::RegularFile => write_file(builder, dir, name, path, seen),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
            let mut header = header(&facts, EntryType::Symlink);
            builder.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
        }
        FileType::CharacterDevice => write_node(builder, &facts, EntryType::Char, path),
        FileType::BlockDevice => write_node(builder, &facts, EntryType::Block, path),
        FileType::Fifo => write_node(builder, &facts, EntryType::Fifo, path),
        // A socket means nothing without its process; tar has no form for it.
        _ => Ok(()),
    }
}

fn write_file<W: Write>(
    builder: &mut Builder<W>,
    dir: &OwnedFd,
    name: &CString,
    path: &Path,
    seen: &mut Seen,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let facts = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
        return Ok(()); // Swapped since (X1): it was not there at one moment, so it may be left out.
    }
    let key = (facts.st_dev, facts.st_ino);
    if facts.st_nlink > 1 {
        if let Some(first) = seen.get(&key) {
            let mut header = header(&facts, EntryType::Link);
            return builder.append_link(&mut header, path, first);
        }
        if seen.len() < LINKS_MAX {
            seen.insert(key, path.to_owned());
        }
    }
    write_attributes(builder, &file)?;
    let length = u64::try_from(facts.st_size).unwrap_or(0);
    let mut header = header(&facts, EntryType::Regular);
    header.set_size(length);
    header.set_cksum();
    builder.append_data(&mut header, path, std::fs::File::from(file).chain(io::repeat(0)).take(length))
}

fn write_node<W: Write>(builder: &mut Builder<W>, facts: &Stat, kind: EntryType, path: &Path) -> io::Result<()> {
    let mut header = header(facts, kind);
    header.set_device_major(rustix::fs::major(facts.st_rdev))?;
    header.set_device_minor(rustix::fs::minor(facts.st_rdev))?;
    builder.append_data(&mut header, path, io::empty())
}

fn header(facts: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(facts.st_mode & 0o7777);
    header.set_uid(facts.st_uid.into());
    header.set_gid(facts.st_gid.into());
    header.set_mtime(u64::try_from(facts.st_mtime).unwrap_or(0));
    header
}

/// File capabilities and users' own attributes, as PAX records; the rest is the host's business.
fn write_attributes<W: Write>(builder: &mut Builder<W>, file: &OwnedFd) -> io::Result<()> {
    let mut list = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = match rustix::fs::flistxattr(file, list.as_mut_slice()) {
        Ok(0) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::RANGE) => {
            return Ok(());
        }
        Ok(length) => length,
        Err(error) => return Err(error.into()),
    };
    let mut records = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name != b"security.capability" && !name.starts_with(b"user.") {
            continue;
        }
        let Ok(text) = std::str::from_utf8(name) else { continue };
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        if let Ok(length) = rustix::fs::fgetxattr(file, text, value.as_mut_slice()) {
            value.truncate(length);
            records.push((format!("SCHILY.xattr.{text}"), value));
        }
    }
    if records.is_empty() {
        return Ok(());
    }
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
}

/// Opens a directory by a name that is no link.
pub(super) fn open_dir(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Collects what is written into pieces for the client, and waits for it.
struct PieceWriter {
    pieces: mpsc::Sender<Result<Bytes, EngineError>>,
    piece: Vec<u8>,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
