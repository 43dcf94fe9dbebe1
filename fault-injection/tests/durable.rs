//! R1 for any history: what a sync covered is as it was in every state of every cut after it, until it changes again.

use std::collections::BTreeMap;

use baleen_fault_injection::{Random, SimulatedDisk, Subsets};
use baleen_store::{Access, Disk, Handle, Metadata, NodeKind, read_file};

const RUNS: u64 = 300;
const CALLS_A_RUN: usize = 60;
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];

/// What is found at an inode: a directory's names with the inodes they lead to, or a file's mode and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory(Vec<(Vec<u8>, u64)>),
    File(u32, Vec<u8>),
    Other(NodeKind),
}

/// Everything that names reach, by inode number; a reboot keeps these.
fn nodes(disk: &SimulatedDisk) -> BTreeMap<u64, Node> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![disk.root().unwrap()];
    while let Some(dir) = ahead.pop() {
        let mut names = Vec::new();
        for entry in disk.read_dir(&dir).unwrap() {
            let Metadata { inode, mode, .. } = disk.metadata_at(&dir, &entry.name).unwrap();
            let node = match entry.kind {
                NodeKind::Directory => {
                    ahead.push(disk.open_dir(&dir, &entry.name).unwrap());
                    None
                }
                NodeKind::File => {
                    let file = disk.open_file(&dir, &entry.name, Access::Read).unwrap();
                    Some(Node::File(mode, read_file(disk, &file, 1 << 20).unwrap()))
                }
                kind => Some(Node::Other(kind)),
            };
            names.push((entry.name, inode));
            found.extend(node.map(|node| (inode, node)));
        }
        found.insert(disk.metadata(&dir).unwrap().inode, Node::Directory(names));
    }
    found
}

struct History {
    disk: SimulatedDisk,
    random: Random,
    dirs: Vec<Handle>,
    files: Vec<Handle>,
    calls: Vec<String>,
}

impl History {
    fn pick(&mut self, count: usize) -> usize {
        self.random.below(count as u64) as usize
    }

    /// One change at random; many fail, and change nothing.
    fn change(&mut self) {
        let (dir, other) = (self.pick(self.dirs.len()), self.pick(self.dirs.len()));
        let file = self.pick(self.files.len());
        let (name, other_name) = (NAMES[self.pick(NAMES.len())], NAMES[self.pick(NAMES.len())]);
        let (call, number) = (self.random.below(20), self.random.next());
        let names = format!("{} {}", name.escape_ascii(), other_name.escape_ascii());
        let disk = self.disk.clone();
        let (dir_handle, other_handle, file_handle) = (&self.dirs[dir], &self.dirs[other], &self.files[file]);
        let done = match call {
            0..=2 => disk.create_file(dir_handle, name, 0o600).map(|file| self.files.push(file)),
            3..=4 => disk.create_dir(dir_handle, name, 0o700).map(|()| {
                self.dirs.push(disk.open_dir(&self.dirs[dir], name).unwrap());
            }),
            5 => disk.create_symlink(dir_handle, name, b"target"),
            6..=7 => disk.link(file_handle, dir_handle, name),
            8..=11 => disk.rename(dir_handle, name, other_handle, other_name),
            12..=13 => disk.remove_file(dir_handle, name),
            14 => disk.remove_dir(dir_handle, name),
            15..=17 => disk.write_at(file_handle, &vec![number as u8 | 1; number as usize % 2000], number >> 50),
            18 => disk.set_len(file_handle, number >> 52),
            _ => disk.set_mode(file_handle, number as u32 & 0o777),
        };
        if done.is_ok() {
            self.calls.push(format!("call {call}: directories {dir} {other}, file {file}, {names}, {number}"));
        }
    }

    /// A sync of something, and then a look at what every cut would leave of it.
    fn sync_and_check(&mut self) -> Result<(), String> {
        let dir = self.pick(self.dirs.len());
        let file = self.pick(self.files.len());
        let kind = self.random.below(3);
        let inode = match kind {
            0 => self.disk.barrier(&self.dirs[0]).map(|()| None),
            1 => self.disk.sync(&self.dirs[dir]).map(|()| Some(self.disk.metadata(&self.dirs[dir]).unwrap().inode)),
            _ => self.disk.sync(&self.files[file]).map(|()| Some(self.disk.metadata(&self.files[file]).unwrap().inode)),
        }
        .map_err(|error| error.to_string())?;
        self.calls.push(format!("sync {kind}: directory {dir}, file {file}, inode {inode:?}"));
        let now = nodes(&self.disk);
        let recording = self.disk.recording();
        let seed = self.random.next();
        for state in recording.states(recording.steps(), &Subsets { seed, random: 12, singles: false }) {
            let then = nodes(&recording.reboot(&state));
            let differs = match inode {
                None => then != now,
                // A node without a name, now or after the cut, is nobody's.
                Some(inode) => matches!((now.get(&inode), then.get(&inode)), (Some(now), Some(then)) if now != then),
            };
            if differs {
                let words = recording.describe(&state);
                return Err(format!("inode {inode:?}: synced {now:?}\nafter a cut {then:?}\n{words}"));
            }
        }
        Ok(())
    }
}

#[test]
fn what_a_sync_covered_is_the_same_after_every_cut() {
    let long = std::env::var_os("BALEEN_SOAK").is_some();
    for seed in 1..=RUNS * if long { 100 } else { 1 } {
        let disk = SimulatedDisk::new();
        let root = disk.root().unwrap();
        let file = disk.create_file(&root, b"a", 0o600).unwrap();
        let mut history =
            History { disk, random: Random::new(seed), dirs: vec![root], files: vec![file], calls: Vec::new() };
        for _ in 0..CALLS_A_RUN {
            history.change();
            if history.random.chance(1, 6)
                && let Err(difference) = history.sync_and_check()
            {
                panic!("seed {seed}: {difference}\nafter\n{}", history.calls.join("\n"));
            }
        }
    }
}
