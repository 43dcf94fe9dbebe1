//! What can be made to go wrong on a simulated disk, and when.

use std::io;

use rustix::io::Errno;

/// The kinds of calls that a fault can be aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `root`, `open_dir`, `open_dir_in_root`, `open_file`, `open_node`.
    Open,
    /// `metadata`, `metadata_at`, `read_dir`, `read_link`, `xattrs`, `space`.
    Look,
    /// `read_at`.
    Read,
    /// `create_file`, `create_dir`, `create_symlink`, `create_node`.
    Create,
    /// `link`.
    Link,
    /// `rename`.
    Rename,
    /// `remove_file`, `remove_dir`.
    Remove,
    /// `write_at`, `write_uncached_at`.
    Write,
    /// `set_len`.
    SetLen,
    /// `set_owner`, `set_mode`, `set_times`, `set_xattr` and their like.
    SetAttributes,
    /// `sync` of a file or a directory.
    Sync,
    /// `sync_data`.
    SyncData,
    /// `barrier`.
    Barrier,
    /// `write_back`.
    WriteBack,
    /// `drop_cache`.
    DropCache,
    /// `lock`.
    Lock,
}

impl Operation {
    /// True if the call changes or syncs something: these are numbered as steps, and the power can go before each.
    pub fn is_step(self) -> bool {
        !matches!(self, Self::Open | Self::Look | Self::Read | Self::DropCache | Self::Lock)
    }

    pub(crate) fn is_barrier(self) -> bool {
        matches!(self, Self::Sync | Self::SyncData | Self::Barrier)
    }

    pub(crate) fn is_change(self) -> bool {
        self.is_step() && !self.is_barrier() && self != Self::WriteBack
    }
}

/// Which call a fault strikes. Every number counts from 0 since the disk was made or last settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// The call that is this step.
    Step(u64),
    /// The call of this number, those that change nothing counted too.
    Call(u64),
    /// The n-th call of this kind.
    Nth(Operation, u64),
    /// Every call of this kind on a node opened below, or on a name in, a path that contains this text.
    Path(Operation, String),
}

/// A call that fails.
///
/// A failed write leaves any part of its bytes. A failed [`Operation::Sync`], [`Operation::SyncData`] or
/// [`Operation::Barrier`] leaves the writes that it covered clean and not durable, for ever. A failed
/// [`Operation::WriteBack`] does so for its range; if it only started it, the error comes with a later sync or barrier,
/// once to each handle that was open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which call.
    pub when: When,
    /// How.
    pub errno: Errno,
}

/// The power is gone: the error of every call from the cut on. No caller can do anything on it, as in a real cut.
#[derive(Debug, thiserror::Error)]
#[error("the power is gone; reboot the simulated disk in one of its crash states")]
pub struct PowerGone;

impl PowerGone {
    pub(crate) fn error() -> io::Error {
        io::Error::other(Self)
    }

    /// True if this is the error of a call after a cut.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}
