//! What happened on a disk, in order, and the states that a power cut can leave of it.
//!
//! R1  A change becomes durable by a sync of what it changed: contents and attributes by that of the file, names by
//!     that of their directory (a rename by either of its two), everything by a barrier. With a change of names,
//!     earlier ones that it builds on become durable: what made the name that it moves, what freed the one it takes,
//!     what made the directory that it goes to and those above.
//! R2  Any subset of the changes that are not durable can survive a cut, in the order in which they were made. One
//!     whose foundation did not survive is lost too.
//! R3  Writes that a failed sync or write-back covered are never made durable by a later one; they may survive a cut
//!     by chance until the cache that shows them is dropped.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use crate::change::{Change, CrashState, Fate, Part, TORN_WAYS};
use crate::disk::SimulatedDisk;
use crate::random::Random;
use crate::tree::Tree;

/// What a sync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Contents and attributes of a file; the names in a directory and its attributes.
    Node(u64),
    /// Contents of a file.
    Contents(u64),
    Everything,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    /// It said that it was done.
    Skipped,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// `foundations` are the events that it builds on (R1).
    Change {
        change: Change,
        foundations: Vec<usize>,
    },
    Sync {
        scope: Scope,
        barrier: u64,
        outcome: Outcome,
    },
    WriteBackFailed {
        inode: u64,
        offset: u64,
        end: u64,
    },
    CacheDropped {
        inode: u64,
        offset: u64,
        end: u64,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) step: u64,
    pub(crate) what: What,
    pub(crate) path: Arc<str>,
    pub(crate) path_to: Option<Arc<str>>,
}

impl Event {
    /// What is no step itself happened before the step whose number it has.
    fn is_before(&self, cut: u64) -> bool {
        let is_step =
            !matches!(self.what, What::CacheDropped { .. } | What::Change { change: Change::Damage { .. }, .. });
        if is_step { self.step < cut } else { self.step <= cut }
    }

    fn describe(&self) -> String {
        let path = &self.path;
        match &self.what {
            What::Change { change, .. } => match change {
                Change::Create { node, .. } => format!("create {:?} {path}", node.kind).to_lowercase(),
                Change::Link { .. } => format!("link {path}"),
                Change::Rename { .. } => format!("rename {path} to {}", self.path_to.as_deref().unwrap_or("?")),
                Change::Remove { .. } => format!("remove {path}"),
                Change::Write { offset, bytes, .. } => format!("write {path} at {offset}, {} bytes", bytes.len()),
                Change::SetLen { size_bytes, .. } => format!("set length of {path} to {size_bytes}"),
                Change::SetMode { mode, .. } => format!("set mode of {path} to {mode:o}"),
                Change::SetOwner { owner, .. } => format!("set owner of {path} to {}:{}", owner.0, owner.1),
                Change::SetTimes { .. } => format!("set times of {path}"),
                Change::SetXattr { name, .. } => format!("set {} of {path}", name.escape_ascii()),
                Change::Damage { offset, .. } => format!("damage {path} at {offset}"),
            },
            What::Sync { scope: Scope::Node(_), .. } => format!("sync {path}"),
            What::Sync { scope: Scope::Contents(_), .. } => format!("sync data of {path}"),
            What::Sync { scope: Scope::Everything, .. } => format!("barrier through {path}"),
            What::WriteBackFailed { .. } => format!("failed write-back of {path}"),
            What::CacheDropped { .. } => format!("drop cache of {path}"),
        }
    }
}

/// A barrier of a recorded run: a sync of a file, of a directory or of everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barrier {
    /// Its number, from 0: [`SimulatedDisk::skip_barrier`] takes it.
    pub number: u64,
    /// The step at which it ran.
    pub step: u64,
    /// What it synced, by the path at which that was opened: `sync /wal/1`, `barrier through /`.
    pub what: String,
}

/// Which states of a cut are made. None and all of the pending changes always are.
#[derive(Debug, Clone)]
pub struct Subsets {
    /// Seed of all that is random.
    pub seed: u64,
    /// Random subsets a cut, with writes kept, lost, torn and zeroed.
    pub random: usize,
    /// Each single loss, each single keep, each single torn or zeroed write; and names apart from contents.
    pub singles: bool,
}

impl Default for Subsets {
    fn default() -> Self {
        Self { seed: 1, random: 32, singles: true }
    }
}

impl Subsets {
    /// Fewer: for the inner of two nested cuts.
    pub fn few(seed: u64) -> Self {
        Self { seed, random: 4, singles: false }
    }
}

/// All changes and barriers of a run, from a durable beginning.
#[derive(Debug, Clone)]
pub struct Recording {
    pub(crate) base: Tree,
    pub(crate) events: Arc<Vec<Event>>,
    pub(crate) steps: u64,
}

impl Recording {
    /// Number of steps: calls that change or sync something, whether they failed or not. A cut is before a step;
    /// a cut at `steps()` is after the last.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The barriers in order.
    pub fn barriers(&self) -> Vec<Barrier> {
        let barrier = |event: &Event| match event.what {
            What::Sync { barrier, .. } => Some(Barrier { number: barrier, step: event.step, what: event.describe() }),
            _ => None,
        };
        self.events.iter().filter_map(barrier).collect()
    }

    /// What was changed and synced, in words, each with its step: to aim a fault at one of them. A step that failed
    /// before it changed anything is not among them.
    pub fn described(&self) -> Vec<(u64, String)> {
        self.events.iter().map(|event| (event.step, event.describe())).collect()
    }

    /// The states that a cut before step `cut` can leave: a choice of them, each once.
    pub fn states(&self, cut: u64, subsets: &Subsets) -> Vec<CrashState> {
        let mut walk = Walk::new(self, None);
        walk.advance(cut);
        walk.states(subsets)
    }

    /// A fresh disk in that state: what the next boot finds.
    ///
    /// # Panics
    /// If `state` is of another run: it has not one fate for each pending change.
    pub fn reboot(&self, state: &CrashState) -> SimulatedDisk {
        let mut walk = Walk::new(self, None);
        walk.advance(state.cut);
        SimulatedDisk::with_tree(walk.build(state))
    }

    /// The tree with nothing lost.
    pub(crate) fn tree_at_end(&self) -> Tree {
        let mut walk = Walk::new(self, None);
        walk.advance(u64::MAX);
        let mut tree = walk.replay(|_, ()| Fate::Kept, &mut ());
        tree.mount();
        tree
    }

    /// The state in words: what was not durable, and what became of it.
    pub fn describe(&self, state: &CrashState) -> String {
        let mut walk = Walk::new(self, None);
        walk.advance(state.cut);
        walk.describe(state)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Pending,
    /// Never to be made durable (R3).
    Abandoned,
    Durable,
}

/// A recording read up to some step: what is durable there and what is pending.
#[derive(Debug, Clone)]
pub(crate) struct Walk<'a> {
    recording: &'a Recording,
    without_barrier: Option<u64>,
    next_event: usize,
    cut: u64,
    /// Every durable change before the first that is not.
    base: Tree,
    /// The rest, by event number.
    open: VecDeque<(usize, Standing)>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(recording: &'a Recording, without_barrier: Option<u64>) -> Self {
        let (base, open) = (recording.base.clone(), VecDeque::new());
        Self { recording, without_barrier, next_event: 0, cut: 0, base, open }
    }

    /// Reads on up to the cut before step `cut`.
    pub(crate) fn advance(&mut self, cut: u64) {
        assert!(cut >= self.cut, "a walk goes forward: from {} to {cut}", self.cut);
        self.cut = cut;
        let recording = self.recording;
        while let Some(event) = recording.events.get(self.next_event).filter(|event| event.is_before(cut)) {
            let number = self.next_event;
            self.next_event += 1;
            match &event.what {
                What::Change { change: Change::Damage { .. }, .. } => {
                    self.open.push_back((number, Standing::Durable));
                }
                What::Change { .. } => self.open.push_back((number, Standing::Pending)),
                What::Sync { barrier, .. } if self.without_barrier == Some(*barrier) => {}
                What::Sync { outcome: Outcome::Skipped, .. } => {}
                What::Sync { scope, outcome: Outcome::Done, .. } => self.settle(*scope),
                What::Sync { scope, outcome: Outcome::Failed, .. } => match *scope {
                    Scope::Everything => self.abandon(|_, _, _| true),
                    Scope::Node(inode) | Scope::Contents(inode) => self.abandon(|of, _, _| of == inode),
                },
                What::WriteBackFailed { inode, offset, end } => {
                    self.abandon(|of, from, to| of == *inode && from < *end && to > *offset);
                }
                What::CacheDropped { inode, offset, end } => {
                    let events = &recording.events;
                    self.open.retain(|(number, standing)| {
                        let What::Change { change: Change::Write { inode: of, offset: from, bytes }, .. } =
                            &events[*number].what
                        else {
                            return true;
                        };
                        let within = from >= offset && from + bytes.len() as u64 <= *end;
                        !(*standing == Standing::Abandoned && of == inode && within)
                    });
                }
            }
            self.fold();
        }
    }

    fn change(&self, number: usize) -> (&'a Change, &'a [usize]) {
        match &self.recording.events[number].what {
            What::Change { change, foundations } => (change, foundations),
            other => unreachable!("only changes are open, not {other:?}"),
        }
    }

    fn settle(&mut self, scope: Scope) {
        let covered = |change: &Change| match scope {
            Scope::Everything => true,
            Scope::Contents(inode) => change.inode() == Some(inode) && change.part() == Part::Contents,
            Scope::Node(node) => match change.inode() {
                Some(inode) => inode == node,
                None => change.slots().iter().any(|(dir, _)| *dir == node),
            },
        };
        let mut ahead: Vec<usize> =
            (0..self.open.len()).filter(|at| covered(self.change(self.open[*at].0).0)).collect();
        while let Some(at) = ahead.pop() {
            let (number, standing) = self.open[at];
            if standing != Standing::Pending {
                continue;
            }
            self.open[at].1 = Standing::Durable;
            for foundation in self.change(number).1 {
                ahead.extend(self.open.binary_search_by_key(foundation, |(number, _)| *number).ok());
            }
        }
    }

    fn abandon(&mut self, covers: impl Fn(u64, u64, u64) -> bool) {
        for at in 0..self.open.len() {
            if let (number, Standing::Pending) = self.open[at]
                && let Change::Write { inode, offset, bytes } = self.change(number).0
                && covers(*inode, *offset, offset + bytes.len() as u64)
            {
                self.open[at].1 = Standing::Abandoned;
            }
        }
    }

    fn fold(&mut self) {
        while let Some((number, Standing::Durable)) = self.open.front().copied() {
            self.base.apply(self.change(number).0, Fate::Kept);
            self.open.pop_front();
        }
    }

    /// Event numbers of what a cut here may lose.
    fn pending(&self) -> Vec<usize> {
        self.open.iter().filter(|(_, standing)| *standing != Standing::Durable).map(|(number, _)| *number).collect()
    }

    /// The tree after a cut here with these fates.
    pub(crate) fn build(&self, state: &CrashState) -> Tree {
        assert_eq!(state.cut, self.cut, "a state of another cut");
        let mut tree = self.replay(
            |number, fates: &mut std::slice::Iter<'_, Fate>| {
                *fates.next().unwrap_or_else(|| panic!("{state}: no fate for event {number}: a state of another run"))
            },
            &mut state.fates.iter(),
        );
        tree.mount();
        tree
    }

    /// The disk as a read past the cache sees it: without what was abandoned.
    pub(crate) fn without_abandoned(&self) -> Tree {
        let mut tree = self.base.clone();
        for (number, standing) in &self.open {
            let fate = if *standing == Standing::Abandoned { Fate::Lost } else { Fate::Kept };
            tree.apply(self.change(*number).0, fate);
        }
        tree
    }

    fn replay<T>(&self, fate_of: impl Fn(usize, &mut T) -> Fate, fates: &mut T) -> Tree {
        let mut tree = self.base.clone();
        let mut lost = HashSet::new();
        for (number, standing) in &self.open {
            let (change, foundations) = self.change(*number);
            let mut fate = if *standing == Standing::Durable { Fate::Kept } else { fate_of(*number, fates) };
            if foundations.iter().any(|foundation| lost.contains(foundation)) {
                fate = Fate::Lost; // R2
            }
            if fate == Fate::Lost {
                lost.insert(*number);
            }
            tree.apply(change, fate);
        }
        tree
    }

    /// A choice of the states that a cut here can leave, each set of fates once.
    pub(crate) fn states(&self, subsets: &Subsets) -> Vec<CrashState> {
        let pending = self.pending();
        let count = pending.len();
        let mut all: Vec<Vec<Fate>> = vec![vec![Fate::Lost; count]];
        if count > 0 {
            all.push(vec![Fate::Kept; count]);
        }
        let by_part = |kept: &dyn Fn(Part) -> Fate| -> Vec<Fate> {
            pending.iter().map(|number| kept(self.change(*number).0.part())).collect()
        };
        // Names without contents (empty, then of the right length and zeros), and contents without names.
        all.push(by_part(&|part| if part == Part::Contents { Fate::Lost } else { Fate::Kept }));
        all.push(by_part(&|part| if part == Part::Contents { Fate::Zeros } else { Fate::Kept }));
        all.push(by_part(&|part| if part == Part::Names { Fate::Lost } else { Fate::Kept }));
        if subsets.singles {
            for at in 0..count {
                self.singles(&pending, at, subsets.seed, &mut all);
            }
        }
        let mut random = Random::of(&[subsets.seed, self.cut]);
        for _ in 0..if count > 0 { subsets.random } else { 0 } {
            let loss = [1, 4, 8, 12, 15][random.below(5) as usize];
            let draw = |number: &usize, random: &mut Random| {
                if random.chance(loss, 16) {
                    return Fate::Lost;
                }
                match self.change(*number).0 {
                    Change::Write { .. } => match random.below(8) {
                        0 => Fate::Zeros,
                        1 => Fate::Torn { sector_bytes: 512, seed: random.next() as u16 },
                        2 => Fate::Torn { sector_bytes: 4096, seed: random.next() as u16 },
                        _ => Fate::Kept,
                    },
                    _ => Fate::Kept,
                }
            };
            all.push(pending.iter().map(|number| draw(number, &mut random)).collect());
        }
        let mut seen = HashSet::new();
        all.retain(|fates| seen.insert(fates.clone()));
        all.into_iter().map(|fates| CrashState { cut: self.cut, fates }).collect()
    }

    fn singles(&self, pending: &[usize], at: usize, seed: u64, all: &mut Vec<Vec<Fate>>) {
        let with = |rest: Fate, fate: Fate| -> Vec<Fate> {
            let mut fates = vec![rest; pending.len()];
            fates[at] = fate;
            fates
        };
        all.push(with(Fate::Kept, Fate::Lost));
        // Alone it could not survive: what it builds on is kept with it.
        let mut alone = with(Fate::Lost, Fate::Kept);
        let mut ahead = self.change(pending[at]).1.to_vec();
        while let Some(number) = ahead.pop() {
            if let Ok(foundation) = pending.binary_search(&number) {
                alone[foundation] = Fate::Kept;
                ahead.extend(self.change(number).1);
            }
        }
        all.push(alone);
        let change = self.change(pending[at]).0;
        if let Change::Write { .. } = change {
            all.push(with(Fate::Kept, Fate::Zeros));
            // Every way to tear where few changes are pending, one of them where many are.
            let ways = if pending.len() <= 16 { 0..TORN_WAYS } else { 0..1 };
            for (sector_bytes, way) in [512, 4096].into_iter().flat_map(|size| ways.clone().map(move |way| (size, way)))
            {
                if change.can_tear(sector_bytes.into()) {
                    let random =
                        Random::of(&[seed, self.cut, at as u64, sector_bytes.into(), way.into()]).next() as u16;
                    let way = if pending.len() <= 16 { way } else { random / 7 % TORN_WAYS };
                    let seed = random / TORN_WAYS * TORN_WAYS + way;
                    all.push(with(Fate::Kept, Fate::Torn { sector_bytes, seed }));
                }
            }
        }
    }

    pub(crate) fn describe(&self, state: &CrashState) -> String {
        let events = &self.recording.events;
        let mut text = format!("power cut before step {}", state.cut);
        if let Some(last) = self.next_event.checked_sub(1) {
            let _ = write!(text, ", after `{}`", events[last].describe());
        }
        let pending = self.pending();
        text.push_str(if pending.is_empty() { "; everything was durable" } else { "; of what was not durable:" });
        for (number, fate) in pending.iter().zip(&state.fates) {
            let fate = match fate {
                Fate::Kept => "kept",
                Fate::Lost => "lost",
                Fate::Zeros => "length kept, bytes lost",
                Fate::Torn { sector_bytes: 512, .. } => "torn at sectors of 512 bytes",
                Fate::Torn { .. } => "torn at blocks of 4096 bytes",
            };
            let event = &events[*number];
            let _ = write!(text, "\n  step {}: {}: {fate}", event.step, event.describe());
        }
        text
    }
}

/// The events of a living disk, and what a new change of names builds on.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) events: Vec<Event>,
    last_of_slot: BTreeMap<(u64, Vec<u8>), usize>,
    creations: HashMap<u64, usize>,
}

impl Record {
    /// `before` is the tree without the change.
    pub(crate) fn add_change(
        &mut self,
        step: u64,
        change: Change,
        before: &Tree,
        path: Arc<str>,
        path_to: Option<Arc<str>>,
    ) {
        let number = self.events.len();
        let mut foundations: Vec<usize> = Vec::new();
        for (dir, name) in change.slots() {
            let slot = (dir, name.to_vec());
            foundations.extend(self.last_of_slot.get(&slot));
            self.last_of_slot.insert(slot, number);
        }
        match &change {
            Change::Create { inode, .. } => {
                self.creations.insert(*inode, number);
            }
            Change::Link { inode, .. } => foundations.extend(self.creations.get(inode)),
            // It is durable as a whole: with the place that it goes to. Else a sync of the directory that it leaves could
            // lose it from both.
            Change::Rename { from, to, .. } if from != to => {
                let places = before.places_above(*to);
                foundations.extend(places.into_iter().filter_map(|slot| self.last_of_slot.get(&slot)));
            }
            // A directory goes only once it is empty: all that emptied it comes first.
            Change::Remove { inode, .. } => {
                let inside = self.last_of_slot.range((*inode, Vec::new())..(*inode + 1, Vec::new()));
                foundations.extend(inside.map(|(_, number)| *number));
            }
            _ => {}
        }
        foundations.sort_unstable();
        foundations.dedup();
        self.events.push(Event { step, what: What::Change { change, foundations }, path, path_to });
    }

    pub(crate) fn add(&mut self, step: u64, what: What, path: Arc<str>) {
        self.events.push(Event { step, what, path, path_to: None });
    }
}
