//! What is in a folder, to the nanosecond and the link group, and what differs between two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::command::succeed;
use crate::scratch::Scratch;

/// One name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `f` file, `d` folder, `l` symbolic link, `c` and `b` devices, `p` pipe, `s` socket, `w` overlay whiteout.
    pub kind: char,
    /// Permission bits with setuid, setgid and sticky; 0 for a symbolic link.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time, seconds and nanoseconds; `None` where nothing set it.
    pub mtime: Option<(i64, i64)>,
    /// SHA-256 of a file's content, or the target of a link, or the numbers of a device.
    pub content: String,
    /// Extended attributes that layers may set: `user.` and `security.capability`.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Whether a folder hides what lies below it in an overlay.
    pub opaque: bool,
    /// For a file of several names, the first of them in this tree.
    pub first_link: Option<String>,
}

/// The names below a folder, relative to it; the folder itself is `.`.
pub type Tree = BTreeMap<String, Node>;

/// Reads a tree as it lies on the disk, an overlay's whiteouts and opaque marks understood.
///
/// # Errors
/// If part of it cannot be read.
pub fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut inodes: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut folders = vec![String::from(".")];
    tree.insert(String::from("."), node(root, ".", &mut inodes)?);
    while let Some(folder) = folders.pop() {
        let mut names: Vec<_> =
            fs::read_dir(root.join(&folder))?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort();
        for name in names {
            let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
            let path = if folder == "." { name } else { format!("{folder}/{name}") };
            let found = node(root, &path, &mut inodes)?;
            if found.kind == 'd' {
                folders.push(path.clone());
            }
            tree.insert(path, found);
        }
    }
    name_link_groups(&mut tree, inodes);
    Ok(tree)
}

/// First links are the smallest names, whatever the order in which the tree was walked.
fn name_link_groups(tree: &mut Tree, inodes: BTreeMap<(u64, u64), String>) {
    drop(inodes);
    let mut smallest: BTreeMap<String, String> = BTreeMap::new();
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for (path, node) in tree.iter() {
        if let Some(group) = &node.first_link {
            smallest.entry(group.clone()).or_insert_with(|| path.clone());
            *sizes.entry(group.clone()).or_default() += 1;
        }
    }
    for node in tree.values_mut() {
        if let Some(group) = node.first_link.take() {
            // Links that lead out of this tree (a file shared with another layer) are no group of it.
            if sizes[&group] > 1 {
                node.first_link = Some(smallest[&group].clone());
            }
        }
    }
}

fn node(root: &Path, name: &str, inodes: &mut BTreeMap<(u64, u64), String>) -> Result<Node> {
    let path = root.join(name);
    let metadata = fs::symlink_metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
    let kind = metadata.file_type();
    let (kind, content) = if kind.is_file() {
        ('f', hash(&path)?)
    } else if kind.is_dir() {
        ('d', String::new())
    } else if kind.is_symlink() {
        ('l', fs::read_link(&path)?.to_string_lossy().into_owned())
    } else if kind.is_char_device() && metadata.rdev() == 0 {
        ('w', String::new())
    } else if kind.is_char_device() || kind.is_block_device() {
        let numbers = format!("{}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        (if kind.is_char_device() { 'c' } else { 'b' }, numbers)
    } else if kind.is_fifo() {
        ('p', String::new())
    } else {
        ('s', String::new())
    };
    if kind == 'w' {
        return Ok(whiteout());
    }
    let mut xattrs = BTreeMap::new();
    let mut opaque = false;
    for (key, value) in all_xattrs(&path)? {
        if key == "trusted.overlay.opaque" {
            opaque = value == b"y";
        } else if key.starts_with("user.") || key == "security.capability" {
            xattrs.insert(key, value);
        }
    }
    let first_link = (kind != 'd' && metadata.nlink() > 1)
        .then(|| inodes.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.to_owned()).clone());
    Ok(Node {
        kind,
        mode: if kind == 'l' { 0 } else { metadata.mode() & 0o7777 },
        owner: (metadata.uid(), metadata.gid()),
        mtime: Some((metadata.mtime(), metadata.mtime_nsec())),
        content,
        xattrs,
        opaque,
        first_link,
    })
}

fn whiteout() -> Node {
    Node {
        kind: 'w',
        mode: 0,
        owner: (0, 0),
        mtime: None,
        content: String::new(),
        xattrs: BTreeMap::new(),
        opaque: false,
        first_link: None,
    }
}

fn hash(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Every extended attribute of `path` itself (links are not followed).
///
/// # Errors
/// If they cannot be read.
pub fn all_xattrs(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0_u8; 65_536];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list attributes of {}", path.display())),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(found)
}

/// The tree that GNU tar makes of a layer, as an overlay keeps it: whiteouts as whiteouts, opaque markers as marks. What the archive
/// only implies (a folder that it does not name) has no time to compare.
///
/// # Errors
/// If `tar` fails or the tree cannot be read.
pub fn of_layer(scratch: &Scratch, tar: &[u8]) -> Result<Tree> {
    let name = &crate::image::digest(tar)[7..23];
    let file = scratch.join(format!("reference-{name}.tar"));
    let folder = scratch.join(format!("reference-{name}"));
    fs::write(&file, tar)?;
    fs::create_dir(&folder)?;
    rustix::fs::chmod(&folder, rustix::fs::Mode::from_raw_mode(0o755))?;
    let file_text = file.to_string_lossy();
    let options = ["--numeric-owner", "--same-owner", "-p", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp"];
    let mut arguments: Vec<&str> = options.to_vec();
    let folder_text = folder.to_string_lossy();
    arguments.extend(["-x", "-f", &file_text, "-C", &folder_text]);
    succeed("tar", &arguments)?;
    let listed = succeed("tar", &["--quoting-style=literal", "-t", "-f", &file_text])?.stdout();
    let explicit: BTreeSet<&str> =
        listed.lines().map(|line| line.trim_start_matches("./").trim_end_matches('/')).collect();

    let mut tree = Tree::new();
    let mut opaque = Vec::new();
    for (path, mut node) in read(&folder)? {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", &path));
        if name == ".wh..wh..opq" {
            opaque.push(parent.to_owned());
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            let hidden = if parent == "." { hidden.to_owned() } else { format!("{parent}/{hidden}") };
            tree.insert(hidden, whiteout());
        } else {
            let named = explicit.contains(path.as_str()) || path == "." && explicit.contains("");
            if node.kind == 'd' && !named {
                node.mtime = None;
            }
            tree.insert(path, node);
        }
    }
    for folder in opaque {
        tree.get_mut(&folder).with_context(|| format!("no folder {folder} to be opaque"))?.opaque = true;
    }
    fs::remove_file(&file)?;
    fs::remove_dir_all(&folder)?;
    Ok(tree)
}

/// What `left` has otherwise than `right`, one line a difference; empty if nothing. A time that one side does not know is not compared.
pub fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for path in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
        match (left.get(path), right.get(path)) {
            (Some(_), None) => found.push(format!("{path}: only in the first")),
            (None, Some(_)) => found.push(format!("{path}: only in the second")),
            (Some(a), Some(b)) => {
                let mut a = a.clone();
                if b.mtime.is_none() || a.mtime.is_none() {
                    a.mtime = b.mtime;
                }
                if a != *b {
                    found.push(format!("{path}:\n  {a:?}\n  {b:?}"));
                }
            }
            (None, None) => {}
        }
    }
    found
}
