//! Who a container runs as: the image's own `/etc/passwd` and `/etc/group`, read by our own parser.
//!
//! U1  Digits are a number, from 0 to 2^31 - 1, and never looked up as a name.
//! U2  The files are opened inside the root (`RESOLVE_IN_ROOT`), must be regular and at most 10 MiB, and are never written.
//! U3  The groups of a process are its primary one, those that the image gives its user, and `GroupAdd`: none from the daemon.
//! U4  A field with a control character is dropped: a home directory reaches the environment.

use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// The largest user or group file that is read.
const FILE_BYTES_MAX: u64 = 10 << 20;
const ID_MAX: u64 = i32::MAX as u64;

/// Why a user or group could not be resolved. The texts are those that Docker's clients know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// No such user.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    UnknownUser {
        /// As given.
        name: String,
    },
    /// No such group.
    #[error("unable to find group {name}: no matching entries in group file")]
    UnknownGroup {
        /// As given.
        name: String,
    },
    /// A number beyond the range.
    #[error("uids and gids must be in range 0-2147483647: {text:?}")]
    OutOfRange {
        /// As given.
        text: String,
    },
    /// A file that cannot be trusted to be what it should be.
    #[error("cannot read {path} of the image: {reason}")]
    File {
        /// Path in the image.
        path: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// All groups, the primary one first, without repeats.
    pub groups: Vec<u32>,
    /// Home directory; `/` if the image names none.
    pub home: String,
}

/// Resolves Docker's `User` text (`""`, `u`, `u:g`, numbers) and `GroupAdd` inside a root file system.
/// # Errors
/// As the variants of [`UserError`] say. A missing file is an empty one.
pub fn resolve(rootfs: &Path, user: &str, group_add: &[String]) -> Result<ResolvedUser, UserError> {
    let passwd = read_inside(rootfs, "etc/passwd", "/etc/passwd")?;
    let group = read_inside(rootfs, "etc/group", "/etc/group")?;
    resolve_in(&passwd, &group, user, group_add)
}

/// The same from the contents of the two files.
pub(crate) fn resolve_in(
    passwd: &[u8],
    group: &[u8],
    text: &str,
    group_add: &[String],
) -> Result<ResolvedUser, UserError> {
    let (user_text, group_text) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let by_number = number(user_text)?;
    let entry = passwd_entries(passwd).find(|entry| match by_number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user_text.as_bytes(),
    });
    let (uid, own_gid, name, home) = match (&entry, by_number) {
        (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name), entry.home.clone()),
        (None, Some(uid)) => (uid, 0, None, None),
        (None, None) => return Err(UserError::UnknownUser { name: user_text.to_owned() }),
    };
    let gid = match group_text {
        Some(text) => group_id(group, text)?,
        None => own_gid,
    };
    let mut groups = vec![gid];
    let mut push = |gid| {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    };
    // As Docker does: a group given in the text replaces those that the group file gives the user.
    if group_text.is_none() {
        group_entries(group)
            .filter(|entry| name.is_some_and(|name| entry.has_member(name)))
            .for_each(|entry| push(entry.gid));
    }
    for text in group_add {
        push(group_id(group, text)?);
    }
    Ok(ResolvedUser { uid, gid, groups, home: home.unwrap_or_else(|| "/".to_owned()) })
}

fn group_id(group: &[u8], text: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(text)? {
        return Ok(gid);
    }
    group_entries(group)
        .find(|entry| entry.name == text.as_bytes())
        .map(|entry| entry.gid)
        .ok_or_else(|| UserError::UnknownGroup { name: text.to_owned() })
}

/// A number, or `None` for a name. What looks like a number but is none of ours is refused, not looked up (U1).
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let out_of_range = || UserError::OutOfRange { text: text.to_owned() };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    if digits.len() != text.len() {
        return Err(out_of_range());
    }
    let value = text.parse::<u64>().ok().filter(|&value| value <= ID_MAX).ok_or_else(out_of_range)?;
    Ok(Some(u32::try_from(value).map_err(|_| out_of_range())?))
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: Option<String>,
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn has_member(&self, name: &[u8]) -> bool {
        self.members.split(|&byte| byte == b',').any(|member| member.trim_ascii() == name)
    }
}

fn passwd_entries(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let (uid, gid) = (id_field(fields.next()?)?, id_field(fields.next()?)?);
        let home = fields.nth(1).and_then(|home| std::str::from_utf8(home).ok()).filter(|home| is_clean_home(home));
        Some(PasswdEntry { name, uid, gid, home: home.map(str::to_owned) })
    })
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        Some(GroupEntry { name, gid: id_field(fields.next()?)?, members: fields.next().unwrap_or_default() })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

fn id_field(field: &[u8]) -> Option<u32> {
    number(std::str::from_utf8(field).ok()?).ok().flatten()
}

fn is_clean_home(home: &str) -> bool {
    home.starts_with('/') && !home.chars().any(char::is_control)
}

/// The content of a file of the image; a missing one is empty (U2).
fn read_inside(rootfs: &Path, inside: &str, shown: &'static str) -> Result<Vec<u8>, UserError> {
    let bad = |reason: String| UserError::File { path: shown, reason };
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| bad(format!("cannot open the root file system: {error}")))?;
    // Non-blocking: a FIFO in its place must not hold the start up. O_RDONLY on a device node is not reached: its type is
    // looked at on a path descriptor first.
    let open = |flags: OFlags| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::io::retry_on_intr(|| {
            rustix::fs::openat2(&root, inside, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        })
    };
    let found = match open(OFlags::PATH) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Vec::new()),
        Err(error) => return Err(bad(error.to_string())),
    };
    let stat = rustix::fs::fstat(&found).map_err(|error| bad(error.to_string()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(bad("it is not a regular file".to_owned()));
    }
    if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(bad(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    // Through the descriptor that was looked at: no second walk along the path.
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    let file = rustix::fs::open(again, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| bad(error.to_string()))?;
    let mut content = Vec::new();
    std::fs::File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(|error| bad(error.to_string()))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:trap:/trap:/bin/sh\nann:x:1001:100:Ann:/home/ann:/bin/sh\nbad:x:5:5::/ho\x07me:\n# c\nshort:x\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:\naudio:x:29:ann,bob\nvideo:x:44:bob, ann\nhuge:x:4294967296:ann\n";

    fn run(user: &str, add: &[&str]) -> Result<ResolvedUser, UserError> {
        resolve_in(PASSWD, GROUP, user, &add.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_does() {
        let root = run("", &[]).unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
        let ann = run("ann", &["audio", "7"]).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups), (1001, 100, vec![100, 29, 44, 7]));
        assert_eq!(run("1001", &[]).unwrap().groups, [100, 29, 44]);
        assert_eq!(run("ann:audio", &[]).unwrap().groups, [29]);
        assert_eq!(run("ann:4000", &[]).unwrap().gid, 4000);
    }

    #[test]
    fn digits_are_never_a_name() {
        let user = run("1000", &[]).unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1000, 0, "/"));
    }

    #[test]
    fn numbers_out_of_range_are_refused_and_not_wrapped() {
        for text in ["4294967296", "-1", "2147483648", "1000:4294967296", "+5"] {
            assert!(matches!(run(text, &[]), Err(UserError::OutOfRange { .. })), "{text}");
        }
        assert!(matches!(run("0x0", &[]), Err(UserError::UnknownUser { .. })));
        assert!(matches!(run("nobody", &[]), Err(UserError::UnknownUser { .. })));
        assert!(matches!(run("ann:none", &[]), Err(UserError::UnknownGroup { .. })));
    }

    #[test]
    fn a_home_with_a_control_character_is_dropped() {
        assert_eq!(run("bad", &[]).unwrap().home, "/");
    }
}
