//! One way for a run to go wrong, as text that can be copied from a failure message and run again.

use std::fmt;
use std::str::FromStr;

use rustix::io::Errno;

use crate::change::CrashState;

/// What goes wrong while the workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// A step fails with this error.
    Error(u64, Errno),
    /// The disk is full from a step on.
    Full(u64),
    /// The disk is read-only from a step on.
    ReadOnly(u64),
    /// A call fails with `EIO`, counted with those that change nothing.
    Call(u64),
    /// The process is killed before a step; the disk lives on.
    Killed(u64),
    /// A barrier says that it was done and does nothing.
    SkippedBarrier(u64),
}

/// What follows the workload, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// The power went: the first of these during the workload, later ones during the recovery from the one before.
    Cut(CrashState),
    /// Recovery without a reboot: the process ended and starts again in the same boot.
    Reopen,
    /// The same, and `drop_cache` drops nothing in it.
    ReopenCached,
    /// A call of the next recovery, counted with those that change nothing, fails with `EIO`; then recovery is tried again.
    ErrorInRecovery(u64),
}

/// A run of a scenario: `eio@12 31:kkl 4:k` reads as "step 12 fails with EIO, the power goes before step 31, and again
/// before step 4 of the recovery". Other words: `enospc@N`, `edquot@N`, `erofs@N`, `eio-call@N`, `full@N`, `read-only@N`, `kill@N`, `skip@N` (a barrier),
/// `reopen`, `reopen-cached`, `call@N`, `old-kernel`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replay {
    /// The disk is that of a kernel before 5.17: [`SimulatedDisk::lose_barrier_errors`](crate::SimulatedDisk::lose_barrier_errors).
    pub old_kernel: bool,
    /// What goes wrong during the workload, if anything.
    pub mishap: Option<Mishap>,
    /// What follows.
    pub then: Vec<Then>,
}

impl Replay {
    pub(crate) fn and(&self, then: Then) -> Self {
        let mut longer = self.clone();
        longer.then.push(then);
        longer
    }
}

const ERRORS: [(&str, Errno); 4] =
    [("eio", Errno::IO), ("enospc", Errno::NOSPC), ("edquot", Errno::DQUOT), ("erofs", Errno::ROFS)];

impl fmt::Display for Replay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.old_kernel {
            words.push("old-kernel".to_owned());
        }
        match self.mishap {
            None => {}
            Some(Mishap::Error(step, errno)) => {
                let known = ERRORS.iter().find(|(_, known)| *known == errno).map(|(name, _)| (*name).to_owned());
                words.push(format!("{}@{step}", known.unwrap_or_else(|| errno.raw_os_error().to_string())));
            }
            Some(Mishap::Full(step)) => words.push(format!("full@{step}")),
            Some(Mishap::ReadOnly(step)) => words.push(format!("read-only@{step}")),
            Some(Mishap::Call(call)) => words.push(format!("eio-call@{call}")),
            Some(Mishap::Killed(step)) => words.push(format!("kill@{step}")),
            Some(Mishap::SkippedBarrier(number)) => words.push(format!("skip@{number}")),
        }
        for then in &self.then {
            words.push(match then {
                Then::Cut(state) => state.to_string(),
                Then::Reopen => "reopen".to_owned(),
                Then::ReopenCached => "reopen-cached".to_owned(),
                Then::ErrorInRecovery(call) => format!("call@{call}"),
            });
        }
        write!(formatter, "{}", words.join(" "))
    }
}

/// The text is not that of a [`Replay`].
#[derive(Debug, thiserror::Error)]
#[error("{word:?} is no part of a replay; copy the text as a failure message prints it")]
pub struct NotAReplay {
    word: String,
}

impl FromStr for Replay {
    type Err = NotAReplay;

    fn from_str(text: &str) -> Result<Self, NotAReplay> {
        let mut replay = Self::default();
        for word in text.split_whitespace() {
            let unknown = || NotAReplay { word: word.to_owned() };
            if word == "old-kernel" {
                replay.old_kernel = true;
                continue;
            }
            let Some((name, number)) = word.split_once('@') else {
                replay.then.push(match word {
                    "reopen" => Then::Reopen,
                    "reopen-cached" => Then::ReopenCached,
                    state => Then::Cut(state.parse().map_err(|_| unknown())?),
                });
                continue;
            };
            let number = number.parse().map_err(|_| unknown())?;
            let errno = ERRORS.iter().find(|(known, _)| *known == name).map(|(_, errno)| *errno);
            let errno = errno.or_else(|| name.parse().ok().map(Errno::from_raw_os_error));
            match (name, errno) {
                ("full", _) => replay.mishap = Some(Mishap::Full(number)),
                ("read-only", _) => replay.mishap = Some(Mishap::ReadOnly(number)),
                ("eio-call", _) => replay.mishap = Some(Mishap::Call(number)),
                ("kill", _) => replay.mishap = Some(Mishap::Killed(number)),
                ("skip", _) => replay.mishap = Some(Mishap::SkippedBarrier(number)),
                ("call", _) => replay.then.push(Then::ErrorInRecovery(number)),
                (_, Some(errno)) => replay.mishap = Some(Mishap::Error(number, errno)),
                (_, None) => return Err(unknown()),
            }
        }
        Ok(replay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_reads_back_from_its_text() {
        for text in [
            "",
            "17:kkl",
            "eio@12 31:kt512.9;l 4:k",
            "full@3 reopen 9:",
            "eio@1 reopen-cached",
            "skip@2 5:l",
            "kill@7 reopen",
            "eio-call@4 3:l",
            "call@8",
            "old-kernel read-only@0",
        ] {
            assert_eq!(text.parse::<Replay>().unwrap().to_string(), text);
        }
        for wrong in ["17", "eio@x", "nothing@3", "17:q"] {
            assert!(wrong.parse::<Replay>().is_err(), "{wrong}");
        }
    }
}
