//! A disk that fails: which request, and how.
//!
//! I1  A fault counts the requests of its kind from the moment it is set, from 0.

use std::fmt;

/// Which requests of a device count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
}

/// A failure of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// One request fails with `EIO`, the later ones do not.
    Once {
        /// Of which kind.
        request: Request,
        /// Which one, from 0.
        number: u64,
    },
    /// From that write on every write and flush fails, as on a disk that has turned read-only.
    ReadOnlyFrom {
        /// The first write that fails, from 0.
        write: u64,
    },
    /// From that write on, writes to blocks never written before fail with `ENOSPC`: a thinly provisioned disk that is full.
    FullFrom {
        /// The first write that fails, from 0.
        write: u64,
    },
    /// Flushes are answered without being done: a cache that lies. What it answered is not durable.
    LyingFlush,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Once { request, number } => {
                let request = match request {
                    Request::Read => "read",
                    Request::Write => "write",
                    Request::Flush => "flush",
                };
                write!(formatter, "eio-{request}@{number}")
            }
            Fault::ReadOnlyFrom { write } => write!(formatter, "read-only@{write}"),
            Fault::FullFrom { write } => write!(formatter, "full@{write}"),
            Fault::LyingFlush => formatter.write_str("lying-flush"),
        }
    }
}

/// A text that names no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no fault; those are eio-read@N, eio-write@N, eio-flush@N, read-only@N, full@N and lying-flush, N from 0"
)]
pub struct NotAFault(String);

impl std::str::FromStr for Fault {
    type Err = NotAFault;

    fn from_str(text: &str) -> Result<Fault, NotAFault> {
        let unknown = || NotAFault(text.to_owned());
        if text == "lying-flush" {
            return Ok(Fault::LyingFlush);
        }
        let (word, number) = text.split_once('@').ok_or_else(unknown)?;
        let number = number.parse().map_err(|_| unknown())?;
        Ok(match word {
            "eio-read" => Fault::Once { request: Request::Read, number },
            "eio-write" => Fault::Once { request: Request::Write, number },
            "eio-flush" => Fault::Once { request: Request::Flush, number },
            "read-only" => Fault::ReadOnlyFrom { write: number },
            "full" => Fault::FullFrom { write: number },
            _ => return Err(unknown()),
        })
    }
}

/// The faults set on a device, and what has been counted since.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    set: Vec<Fault>,
    reads: u64,
    writes: u64,
    flushes: u64,
}

impl Faults {
    pub(crate) fn set(&mut self, faults: Vec<Fault>) {
        *self = Faults { set: faults, ..Faults::default() };
    }

    /// Requests seen since the faults were set: reads, writes, flushes.
    pub(crate) fn counted(&self) -> (u64, u64, u64) {
        (self.reads, self.writes, self.flushes)
    }

    /// Counts a request; the error number with which it fails. `fresh`: it writes to a block never written before.
    pub(crate) fn meet(&mut self, request: Request, fresh: bool) -> Option<i32> {
        let counter = match request {
            Request::Read => &mut self.reads,
            Request::Write => &mut self.writes,
            Request::Flush => &mut self.flushes,
        };
        let number = *counter;
        *counter += 1;
        let writes = self.writes;
        self.set.iter().find_map(|fault| match *fault {
            Fault::Once { request: which, number: at } => (which == request && at == number).then_some(libc::EIO),
            Fault::ReadOnlyFrom { write } => match request {
                Request::Read => None,
                Request::Write => (number >= write).then_some(libc::EIO),
                Request::Flush => (writes > write).then_some(libc::EIO),
            },
            Fault::FullFrom { write } => {
                (request == Request::Write && fresh && number >= write).then_some(libc::ENOSPC)
            }
            Fault::LyingFlush => None,
        })
    }

    /// Whether flushes are only answered.
    pub(crate) fn flushes_lie(&self) -> bool {
        self.set.contains(&Fault::LyingFlush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_the_request_that_it_names_and_no_other() {
        let mut faults = Faults::default();
        faults.set(vec![Fault::Once { request: Request::Write, number: 1 }]);
        assert_eq!(faults.meet(Request::Write, false), None);
        assert_eq!(faults.meet(Request::Flush, false), None);
        assert_eq!(faults.meet(Request::Write, false), Some(libc::EIO));
        assert_eq!(faults.meet(Request::Write, false), None);
        assert_eq!(faults.counted(), (0, 3, 1));
    }

    #[test]
    fn every_fault_is_read_back_from_its_text() {
        for text in ["eio-read@0", "eio-write@17", "eio-flush@2", "read-only@3", "full@4", "lying-flush"] {
            assert_eq!(text.parse::<Fault>().map(|fault| fault.to_string()), Ok(text.to_owned()));
        }
        for wrong in ["eio-write", "eio-write@", "eio@1", "full@-1", ""] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_full_disk_takes_what_it_has_room_for() {
        let mut faults = Faults::default();
        faults.set(vec![Fault::FullFrom { write: 1 }]);
        assert_eq!(faults.meet(Request::Write, true), None);
        assert_eq!(faults.meet(Request::Write, false), None);
        assert_eq!(faults.meet(Request::Write, true), Some(libc::ENOSPC));
        assert_eq!(faults.meet(Request::Read, false), None);
    }

    #[test]
    fn a_disk_that_turned_read_only_fails_flushes_only_after_a_failed_write() {
        let mut faults = Faults::default();
        faults.set(vec![Fault::ReadOnlyFrom { write: 1 }]);
        assert_eq!(faults.meet(Request::Write, false), None);
        assert_eq!(faults.meet(Request::Flush, false), None);
        assert_eq!(faults.meet(Request::Write, false), Some(libc::EIO));
        assert_eq!(faults.meet(Request::Flush, false), Some(libc::EIO));
    }
}
