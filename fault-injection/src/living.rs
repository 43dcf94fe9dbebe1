//! A living disk: its tree, open handles, locks, errors to be told, and the faults that wait for their call.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use baleen_store::Handle;
use rustix::io::Errno;

use crate::change::{Change, Fate};
use crate::fault::{Fault, Operation, PowerGone, When};
use crate::random::Random;
use crate::record::{Record, Recording, Scope};
use crate::tree::{Inode, NAME_BYTES_MAX, Tree};

/// What a handle may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    Directory,
    Read,
    ReadWrite,
    /// `O_PATH`.
    Path,
}

#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) inode: u64,
    pub(crate) usage: Usage,
    pub(crate) path: Arc<str>,
    pub(crate) node_errors: u64,
    pub(crate) disk_errors: u64,
}

/// Counts write-back errors, as `errseq_t` does.
#[derive(Debug, Default)]
pub(crate) struct ErrorSequence {
    pub(crate) count: u64,
    pub(crate) was_told: bool,
}

impl ErrorSequence {
    /// Where a new handle begins: an error that nobody has seen yet is news to it.
    pub(crate) fn sample(&self) -> u64 {
        if self.was_told { self.count } else { self.count.saturating_sub(1) }
    }

    pub(crate) fn add(&mut self) {
        self.count += 1;
        self.was_told = false;
    }

    pub(crate) fn tell(&mut self, seen: &mut u64) -> bool {
        let is_news = *seen != self.count;
        *seen = self.count;
        self.was_told |= is_news;
        is_news
    }
}

/// Tells the disk that a handle is gone.
pub(crate) struct Closer {
    pub(crate) inner: Weak<Mutex<Living>>,
    pub(crate) number: u64,
}

impl Drop for Closer {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.lock().unwrap_or_else(PoisonError::into_inner).close(self.number);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Living {
    /// What calls see: the page cache over the disk.
    pub(crate) tree: Tree,
    /// The tree at the beginning of the record, all of it durable.
    pub(crate) base: Tree,
    pub(crate) record: Record,
    pub(crate) opens: HashMap<u64, Open>,
    /// Handles open on an inode: one without a name lives until the last is closed.
    pub(crate) openings: HashMap<u64, u64>,
    /// Locked inodes and the handle that holds each.
    pub(crate) locks: HashMap<u64, u64>,
    pub(crate) steps: u64,
    pub(crate) barriers: u64,
    pub(crate) calls: u64,
    /// The numbers of the calls that were no steps.
    pub(crate) other_calls: Vec<u64>,
    pub(crate) calls_of: HashMap<Operation, u64>,
    /// Bytes that were read below each directory of the root.
    pub(crate) read_bytes: HashMap<String, u64>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) skipped_barriers: HashSet<u64>,
    pub(crate) power_goes_at: Option<u64>,
    pub(crate) power_is_gone: bool,
    pub(crate) full_from: Option<u64>,
    pub(crate) read_only_from: Option<u64>,
    pub(crate) capacity_bytes: Option<u64>,
    pub(crate) short_reads: Option<Random>,
    /// Inodes with writes that no sync has covered.
    pub(crate) dirty: HashSet<u64>,
    pub(crate) errors: HashMap<u64, ErrorSequence>,
    pub(crate) disk_errors: ErrorSequence,
    /// Some sync or write-back has failed: what the cache shows and what is on the disk may differ.
    pub(crate) writes_failed: bool,
    pub(crate) barrier_loses_errors: bool,
    pub(crate) cache_stays: bool,
    /// Errors told of what had failed earlier.
    pub(crate) old_errors_told: u64,
}

/// One call: the locked disk, the step it is, and the error that was injected into it.
pub(crate) struct Turn<'a> {
    pub(crate) inner: MutexGuard<'a, Living>,
    pub(crate) step: u64,
    pub(crate) error: Option<Errno>,
}

impl Turn<'_> {
    pub(crate) fn change(&mut self, change: Change, path: Arc<str>, path_to: Option<Arc<str>>) {
        let step = self.step;
        self.inner.change_at(step, change, path, path_to);
    }

    /// The directory and the path of a name that is not taken.
    pub(crate) fn free_name(&self, dir: &Handle, name: &[u8]) -> io::Result<(u64, Arc<str>)> {
        let (dir, path) = self.inner.slot(dir, name)?;
        let node = self.inner.tree.get(dir).ok_or(Errno::NOENT)?;
        if self.inner.tree.child(dir, name).is_some() {
            return Err(Errno::EXIST.into());
        }
        if node.links == 0 {
            return Err(Errno::NOENT.into()); // A directory that was removed while it was open.
        }
        Ok((dir, path))
    }

    pub(crate) fn room(&self, wanted_bytes: u64) -> io::Result<()> {
        match self.inner.free_bytes() {
            Some(free_bytes) if free_bytes < wanted_bytes => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }
}

pub(crate) fn component(name: &[u8]) -> io::Result<()> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

impl Living {
    pub(crate) fn new(tree: Tree) -> Self {
        Self {
            base: tree.clone(),
            tree,
            record: Record::default(),
            opens: HashMap::new(),
            openings: HashMap::new(),
            locks: HashMap::new(),
            steps: 0,
            barriers: 0,
            calls: 0,
            other_calls: Vec::new(),
            calls_of: HashMap::new(),
            read_bytes: HashMap::new(),
            faults: Vec::new(),
            skipped_barriers: HashSet::new(),
            power_goes_at: None,
            power_is_gone: false,
            full_from: None,
            read_only_from: None,
            capacity_bytes: None,
            short_reads: None,
            dirty: HashSet::new(),
            errors: HashMap::new(),
            disk_errors: ErrorSequence::default(),
            writes_failed: false,
            barrier_loses_errors: false,
            cache_stays: false,
            old_errors_told: 0,
        }
    }

    pub(crate) fn begin(
        &mut self,
        operation: Operation,
        node: Option<&Handle>,
        name: &[u8],
    ) -> io::Result<(u64, Option<Errno>)> {
        let step = self.steps;
        if operation.is_step() && self.power_goes_at.is_some_and(|cut| step >= cut) {
            self.power_is_gone = true;
        }
        if self.power_is_gone {
            return Err(PowerGone::error());
        }
        let call = self.calls;
        self.calls += 1;
        let of_kind = self.calls_of.entry(operation).or_default();
        let nth = *of_kind;
        *of_kind += 1;
        if !operation.is_step() {
            self.other_calls.push(call);
        }
        if operation.is_step() {
            self.steps += 1;
            if self.full_from.is_some_and(|from| step >= from) {
                self.full_from = None;
                self.capacity_bytes = Some(self.tree.used_bytes());
            }
            if operation.is_change() && self.is_read_only(step) {
                return Err(Errno::ROFS.into());
            }
        }
        let strikes = |fault: &&Fault| match &fault.when {
            When::Step(at) => operation.is_step() && *at == step,
            When::Call(at) => *at == call,
            When::Nth(kind, at) => *kind == operation && *at == nth,
            When::Path(kind, text) => {
                *kind == operation
                    && node.and_then(|node| self.open(node).ok()).is_some_and(|open| {
                        let path = if name.is_empty() { open.path.clone() } else { child_path(&open.path, name) };
                        path.contains(text.as_str())
                    })
            }
        };
        Ok((step, self.faults.iter().find(strikes).map(|fault| fault.errno)))
    }

    pub(crate) fn clear_faults(&mut self) {
        self.faults.clear();
        self.skipped_barriers.clear();
        (self.full_from, self.read_only_from, self.capacity_bytes) = (None, None, None);
        self.short_reads = None;
    }

    pub(crate) fn recording(&self) -> Recording {
        Recording { base: self.base.clone(), events: self.record.events.clone().into(), steps: self.steps }
    }

    pub(crate) fn is_read_only(&self, step: u64) -> bool {
        self.read_only_from.is_some_and(|from| step >= from)
    }

    pub(crate) fn open(&self, handle: &Handle) -> io::Result<&Open> {
        let open = handle.number().and_then(|number| self.opens.get(&number));
        open.ok_or_else(|| Errno::BADF.into())
    }

    pub(crate) fn node(&self, handle: &Handle) -> io::Result<&Inode> {
        self.tree.get(self.open(handle)?.inode).ok_or_else(|| Errno::BADF.into())
    }

    /// An open node that is more than a place (`O_PATH`).
    pub(crate) fn usable(&self, handle: &Handle) -> io::Result<&Open> {
        let open = self.open(handle)?;
        if open.usage == Usage::Path { Err(Errno::BADF.into()) } else { Ok(open) }
    }

    /// The directory of a handle, and the path of a name in it.
    pub(crate) fn slot(&self, dir: &Handle, name: &[u8]) -> io::Result<(u64, Arc<str>)> {
        let open = self.open(dir)?;
        component(name)?;
        if self.tree.names(open.inode).is_none() {
            return Err(Errno::NOTDIR.into());
        }
        if name.len() > NAME_BYTES_MAX {
            // A directory that was removed while it was open looks at no name.
            let is_removed = self.tree.get(open.inode).is_some_and(|node| node.links == 0);
            return Err(if is_removed { Errno::NOENT } else { Errno::NAMETOOLONG }.into());
        }
        Ok((open.inode, child_path(&open.path, name)))
    }

    /// What a name leads to, and its path.
    pub(crate) fn look_up(&self, dir: &Handle, name: &[u8]) -> io::Result<(u64, Arc<str>)> {
        let (dir, path) = self.slot(dir, name)?;
        Ok((self.tree.child(dir, name).ok_or(Errno::NOENT)?, path))
    }

    pub(crate) fn change_at(&mut self, step: u64, change: Change, path: Arc<str>, path_to: Option<Arc<str>>) {
        self.record.add_change(step, change.clone(), &self.tree, path, path_to);
        self.tree.apply(&change, Fate::Kept);
    }

    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.capacity_bytes.map(|capacity_bytes| capacity_bytes.saturating_sub(self.tree.used_bytes()))
    }

    /// How many of these bytes there is room for.
    pub(crate) fn fitting_bytes(&self, inode: u64, offset: u64, length: usize) -> usize {
        let (Some(free_bytes), Some(contents)) = (self.free_bytes(), self.tree.contents(inode)) else { return length };
        let mut fitting = length as u64;
        while fitting > 0 && contents.missing_bytes(offset, fitting) > free_bytes {
            // Gives up the last block, then the one before it.
            fitting = ((offset + fitting - 1) / 4096 * 4096).saturating_sub(offset).min(fitting - 1);
        }
        fitting as usize
    }

    pub(crate) fn writes_failed(&mut self, scope: Scope) {
        self.writes_failed = true;
        let struck: Vec<u64> = match scope {
            Scope::Everything => self.dirty.drain().collect(),
            Scope::Node(inode) | Scope::Contents(inode) => {
                self.dirty.remove(&inode);
                vec![inode]
            }
        };
        for inode in struck {
            self.errors.entry(inode).or_default().add();
        }
        self.disk_errors.add();
    }

    /// True if the handle had an error to hear of: of its file, or of the disk.
    pub(crate) fn tell_error(&mut self, number: u64, of_disk: bool) -> bool {
        let Some(open) = self.opens.get_mut(&number) else { return false };
        if of_disk {
            self.disk_errors.tell(&mut open.disk_errors)
        } else {
            self.errors.entry(open.inode).or_default().tell(&mut open.node_errors)
        }
    }

    pub(crate) fn close(&mut self, number: u64) {
        let Some(open) = self.opens.remove(&number) else { return };
        if self.locks.get(&open.inode) == Some(&number) {
            self.locks.remove(&open.inode);
        }
        let left = self.openings.get_mut(&open.inode).expect("counted when it was opened");
        *left -= 1;
        if *left == 0 {
            self.openings.remove(&open.inode);
            self.forget_if_unnamed(open.inode);
        }
    }

    pub(crate) fn forget_if_unnamed(&mut self, inode: u64) {
        let is_unnamed = self.tree.get(inode).is_some_and(|node| node.links == 0);
        if is_unnamed && !self.openings.contains_key(&inode) {
            self.tree.forget(inode);
            self.dirty.remove(&inode);
            self.errors.remove(&inode);
        }
    }
}

pub(crate) fn child_path(dir: &str, name: &[u8]) -> Arc<str> {
    format!("{}/{}", dir.trim_end_matches('/'), name.escape_ascii()).into()
}
