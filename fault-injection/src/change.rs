//! What an operation changes on the disk, and what a power cut makes of it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use baleen_store::Timestamp;

use crate::tree::NewNode;

/// One atomic change to names, contents or attributes.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Create {
        inode: u64,
        node: NewNode,
        dir: u64,
        name: Vec<u8>,
    },
    Link {
        inode: u64,
        dir: u64,
        name: Vec<u8>,
    },
    Rename {
        inode: u64,
        from: u64,
        from_name: Vec<u8>,
        to: u64,
        to_name: Vec<u8>,
    },
    Remove {
        inode: u64,
        dir: u64,
        name: Vec<u8>,
    },
    Write {
        inode: u64,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLen {
        inode: u64,
        size_bytes: u64,
    },
    SetMode {
        inode: u64,
        mode: u32,
    },
    SetOwner {
        inode: u64,
        owner: (u32, u32),
    },
    SetTimes {
        inode: u64,
        accessed: Timestamp,
        modified: Timestamp,
    },
    SetXattr {
        inode: u64,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    /// Bits turned over by the medium: on the disk at once.
    Damage {
        inode: u64,
        offset: u64,
        mask: u8,
    },
}

/// The three things that reach the disk apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Names,
    Contents,
    Attributes,
}

impl Change {
    pub(crate) fn part(&self) -> Part {
        match self {
            Self::Create { .. } | Self::Link { .. } | Self::Rename { .. } | Self::Remove { .. } => Part::Names,
            Self::Write { .. } | Self::SetLen { .. } | Self::Damage { .. } => Part::Contents,
            Self::SetMode { .. } | Self::SetOwner { .. } | Self::SetTimes { .. } | Self::SetXattr { .. } => {
                Part::Attributes
            }
        }
    }

    /// The inode whose contents or attributes change; `None` for a change of names.
    pub(crate) fn inode(&self) -> Option<u64> {
        match self {
            Self::Create { .. } | Self::Link { .. } | Self::Rename { .. } | Self::Remove { .. } => None,
            Self::Write { inode, .. }
            | Self::SetLen { inode, .. }
            | Self::SetMode { inode, .. }
            | Self::SetOwner { inode, .. }
            | Self::SetTimes { inode, .. }
            | Self::SetXattr { inode, .. }
            | Self::Damage { inode, .. } => Some(*inode),
        }
    }

    /// The names it touches, each in its directory.
    pub(crate) fn slots(&self) -> Vec<(u64, &[u8])> {
        match self {
            Self::Create { dir, name, .. } | Self::Link { dir, name, .. } | Self::Remove { dir, name, .. } => {
                vec![(*dir, name)]
            }
            Self::Rename { from, from_name, to, to_name, .. } => vec![(*from, from_name), (*to, to_name)],
            _ => Vec::new(),
        }
    }

    /// True if a cut can leave some sectors of it.
    pub(crate) fn can_tear(&self, sector_bytes: u64) -> bool {
        match self {
            Self::Write { offset, bytes, .. } => {
                let end = offset + bytes.len() as u64;
                !bytes.is_empty() && offset / sector_bytes != (end - 1) / sector_bytes
            }
            _ => false,
        }
    }
}

/// What a power cut makes of one change that was not durable yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It reached the disk.
    Kept,
    /// It did not.
    Lost,
    /// Of a write: the new length did, the bytes did not, so that what it appended reads as zeros.
    Zeros,
    /// Of a write: the new length did, and of the bytes some sectors.
    Torn {
        /// 512 or 4096.
        sector_bytes: u16,
        /// Chooses the sectors: by its remainder by 4 a beginning, an end, all but one, or any; by the rest which.
        seed: u16,
    },
}

/// Ways in which [`Fate::Torn`] chooses sectors.
pub(crate) const TORN_WAYS: u16 = 4;

impl fmt::Display for Fate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => write!(formatter, "k"),
            Self::Lost => write!(formatter, "l"),
            Self::Zeros => write!(formatter, "z"),
            Self::Torn { sector_bytes, seed } => write!(formatter, "t{sector_bytes}.{seed};"),
        }
    }
}

/// A state that a power cut can leave: the step before which the power went, and the fate of each change that was
/// not durable then, in the order in which they were made.
///
/// Its text (`17:kklz`) gives the same state again on the same run: see [`Recording::reboot`](crate::Recording::reboot).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CrashState {
    /// Steps made before the cut.
    pub cut: u64,
    /// One a pending change.
    pub fates: Vec<Fate>,
}

impl fmt::Display for CrashState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.cut)?;
        self.fates.iter().try_for_each(|fate| write!(formatter, "{fate}"))
    }
}

/// The text is not that of a [`CrashState`].
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a crash state; copy one as it was printed, such as 17:kklz")]
pub struct NotACrashState {
    text: String,
}

impl FromStr for CrashState {
    type Err = NotACrashState;

    fn from_str(text: &str) -> Result<Self, NotACrashState> {
        let parse = || {
            let (cut, mut codes) = text.trim().split_once(':')?;
            let mut fates = Vec::new();
            while let Some(code) = codes.chars().next() {
                codes = &codes[code.len_utf8()..];
                fates.push(match code {
                    'k' => Fate::Kept,
                    'l' => Fate::Lost,
                    'z' => Fate::Zeros,
                    't' => {
                        let (torn, rest) = codes.split_once(';')?;
                        let (sector_bytes, seed) = torn.split_once('.')?;
                        let sector_bytes = sector_bytes.parse().ok().filter(|size| matches!(size, 512 | 4096))?;
                        codes = rest;
                        Fate::Torn { sector_bytes, seed: seed.parse().ok()? }
                    }
                    _ => return None,
                });
            }
            Some(CrashState { cut: cut.parse().ok()?, fates })
        };
        parse().ok_or_else(|| NotACrashState { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_state_reads_back_from_its_text() {
        let fates = vec![Fate::Kept, Fate::Torn { sector_bytes: 512, seed: 7 }, Fate::Zeros, Fate::Lost, Fate::Kept];
        let state = CrashState { cut: 17, fates };
        assert_eq!(state.to_string(), "17:kt512.7;zlk");
        assert_eq!(state.to_string().parse::<CrashState>().unwrap(), state);
        for wrong in ["", "17", "x:k", "17:q", "17:t513.1;", "17:t512.1"] {
            assert!(wrong.parse::<CrashState>().is_err(), "{wrong}");
        }
    }
}
