//! Without faults the simulated disk does what the real one does (S1): random calls on both, error by error and value
//! by value, and the same tree at the end. Runs as root, on the file system of the temporary directory.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use baleen_fault_injection::{Random, SimulatedDisk};
use baleen_store::{Access, Disk, Handle, Metadata, NodeKind, SystemDisk, Timestamp, WriteBack};

const RUNS: u64 = 150;
/// In `make soak`.
const RUNS_LONG: u64 = 5_000;
const CALLS_A_RUN: usize = 400;

#[test]
fn random_calls_end_alike_on_the_simulated_and_on_the_real_disk() {
    let is_ext4 = rustix::fs::statfs(std::env::temp_dir()).is_ok_and(|found| found.f_type == 0xef53);
    let obstacle = if !rustix::process::geteuid().is_root() {
        Some("owners, devices and trusted attributes need root")
    } else if !is_ext4 {
        Some("the temporary directory is not on ext4, whose limits and errors are compared")
    } else {
        None
    };
    if let Some(reason) = obstacle {
        assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: {reason}");
        eprintln!("SKIPPED: random_calls_end_alike_on_the_simulated_and_on_the_real_disk: {reason}");
        return;
    }
    let runs = if std::env::var_os("BALEEN_SOAK").is_some() { RUNS_LONG } else { RUNS };
    for seed in 1..=runs {
        run(seed);
    }
}

/// A directory of the host that goes with its last user.
struct Scratch(PathBuf);

impl Scratch {
    fn new(seed: u64) -> Self {
        let path = std::env::temp_dir().join(format!("baleen-like-linux-{}-{seed}", std::process::id()));
        std::fs::create_dir(&path).expect("a scratch directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One node, open on both disks.
struct Pair {
    simulated: Handle,
    real: Handle,
}

struct Twins {
    simulated: SimulatedDisk,
    real: SystemDisk,
    open: Vec<Pair>,
    random: Random,
    /// The calls so far, for a failure.
    calls: Vec<String>,
}

fn run(seed: u64) {
    let scratch = Scratch::new(seed);
    let simulated = SimulatedDisk::new();
    let real = SystemDisk::open(&scratch.0).expect("the scratch directory opens");
    let root = Pair { simulated: simulated.root().unwrap(), real: real.root().unwrap() };
    real.set_mode(&root.real, 0o755).unwrap();
    let mut twins = Twins { simulated, real, open: vec![root], random: Random::new(seed), calls: Vec::new() };
    for _ in 0..CALLS_A_RUN {
        if let Err(difference) = twins.one_call() {
            let calls = twins.calls.join("\n");
            panic!("seed {seed}: {difference}\nafter these calls, the last of which differs:\n{calls}");
        }
    }
    let (simulated, real) = (twins.simulated.root().unwrap(), twins.real.root().unwrap());
    if let Err(difference) = same_tree(&twins, &simulated, &real, "", &mut HashMap::new()) {
        panic!("seed {seed}: {difference}\nafter these calls:\n{}", twins.calls.join("\n"));
    }
}

fn errno(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| io::Error::from_raw_os_error(number).to_string())
}

/// Both values, or that both failed alike.
fn alike<A, B>(simulated: io::Result<A>, real: io::Result<B>) -> Result<Option<(A, B)>, String> {
    match (simulated, real) {
        (Ok(simulated), Ok(real)) => Ok(Some((simulated, real))),
        (Err(simulated), Err(real)) if simulated.raw_os_error() == real.raw_os_error() => Ok(None),
        (Ok(_), Err(real)) => Err(format!("simulated: done, real: {}", errno(&real))),
        (Err(simulated), Ok(_)) => Err(format!("simulated: {}, real: done", errno(&simulated))),
        (Err(simulated), Err(real)) => Err(format!("simulated: {}, real: {}", errno(&simulated), errno(&real))),
    }
}

fn same<T: PartialEq + Debug>(simulated: io::Result<T>, real: io::Result<T>) -> Result<(), String> {
    match alike(simulated, real)? {
        Some((simulated, real)) if simulated != real => Err(format!("simulated: {simulated:?}, real: {real:?}")),
        _ => Ok(()),
    }
}

/// The clock of the simulated disk stands still; times that were set are before it, those of the host after.
fn same_time(simulated: Timestamp, real: Timestamp) -> bool {
    if simulated.seconds == 1_700_000_000 { real.seconds > 1_700_000_000 } else { simulated == real }
}

fn same_metadata(simulated: &Metadata, real: &Metadata) -> Result<(), String> {
    let comparable = |metadata: &Metadata| Metadata {
        // What a directory's size and link count are is each file system's own.
        size_bytes: if metadata.kind == NodeKind::Directory { 0 } else { metadata.size_bytes },
        links: if metadata.kind == NodeKind::Directory { u64::from(metadata.links > 0) } else { metadata.links },
        allocated_bytes: 0, // Delayed, and extents take blocks of their own.
        inode: 0,
        device: 0,
        modified: Timestamp::default(),
        ..metadata.clone()
    };
    if comparable(simulated) != comparable(real) || !same_time(simulated.modified, real.modified) {
        return Err(format!("simulated: {simulated:?}, real: {real:?}"));
    }
    Ok(())
}

fn same_tree(
    twins: &Twins,
    simulated: &Handle,
    real: &Handle,
    path: &str,
    inodes: &mut HashMap<u64, u64>,
) -> Result<(), String> {
    let at = |difference: String| format!("{path}/: {difference}");
    let mut names = twins.simulated.read_dir(simulated).map_err(|error| at(errno(&error)))?;
    let mut real_names = twins.real.read_dir(real).map_err(|error| at(errno(&error)))?;
    names.sort();
    real_names.sort();
    if names != real_names {
        return Err(format!("{path}/: simulated: {names:?}, real: {real_names:?}"));
    }
    for entry in names {
        let path = format!("{path}/{}", entry.name.escape_ascii());
        let at = |difference: String| format!("{path}: {difference}");
        let simulated_metadata = twins.simulated.metadata_at(simulated, &entry.name).unwrap();
        let real_metadata = twins.real.metadata_at(real, &entry.name).unwrap();
        same_metadata(&simulated_metadata, &real_metadata).map_err(at)?;
        let twin = *inodes.entry(simulated_metadata.inode).or_insert(real_metadata.inode);
        if twin != real_metadata.inode {
            return Err(format!("{path}: two names of one inode on one disk, and not on the other"));
        }
        match entry.kind {
            NodeKind::Directory => {
                let simulated = twins.simulated.open_dir(simulated, &entry.name).unwrap();
                let real = twins.real.open_dir(real, &entry.name).unwrap();
                same(twins.simulated.xattrs(&simulated), twins.real.xattrs(&real)).map_err(at)?;
                same_tree(twins, &simulated, &real, &path, inodes)?;
            }
            NodeKind::Symlink => {
                let target = twins.simulated.read_link(simulated, &entry.name);
                same(target, twins.real.read_link(real, &entry.name)).map_err(at)?;
            }
            NodeKind::File => {
                let simulated = twins.simulated.open_file(simulated, &entry.name, Access::Read).unwrap();
                let real = twins.real.open_file(real, &entry.name, Access::Read).unwrap();
                same(twins.simulated.xattrs(&simulated), twins.real.xattrs(&real)).map_err(at)?;
                let length = simulated_metadata.size_bytes.min(1 << 20);
                let read = |disk: &dyn Disk, file: &Handle| -> io::Result<Vec<u8>> {
                    let mut bytes = vec![0; length as usize];
                    let count = baleen_store::read_full_at(disk, file, &mut bytes, 0)?;
                    bytes.truncate(count);
                    Ok(bytes)
                };
                let bytes = read(&twins.simulated, &simulated).unwrap();
                if bytes != read(&twins.real, &real).unwrap() {
                    return Err(format!("{path}: other contents"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

impl Twins {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len() as u64) as usize].clone()
    }

    fn name(&mut self) -> Vec<u8> {
        match self.random.below(40) {
            0 => vec![b'n'; 255],
            1 => vec![b'n'; 256],
            2 => self.pick(&[b".".to_vec(), b"..".to_vec(), b"".to_vec(), b"a/b".to_vec(), b"a\0b".to_vec()]),
            _ => self.pick(&[b"a", b"b", b"c", b"d", b"e"]).to_vec(),
        }
    }

    fn path(&mut self) -> String {
        let count = self.random.below(5);
        let mut path = if self.random.chance(1, 3) { "/".to_owned() } else { String::new() };
        for _ in 0..count {
            path.push_str(self.pick(&["a", "b", "c", "d", "e", "..", ".", ""]));
            path.push('/');
        }
        if self.random.chance(2, 3) {
            path.pop();
        }
        path
    }

    fn mode(&mut self) -> u32 {
        self.pick(&[0o600, 0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0o6711, 0, 0o7777, 0o700])
    }

    fn offset(&mut self) -> u64 {
        match self.random.below(12) {
            0 => 1 << 33,
            1 => self.pick(&[u64::MAX, i64::MAX as u64, i64::MAX as u64 + 1]),
            _ => self.random.below(20_000),
        }
    }

    /// Keeps a node open on both disks, and lets another go so that there are never many.
    fn keep(&mut self, opened: Option<(Handle, Handle)>) {
        let Some((simulated, real)) = opened else { return };
        self.open.push(Pair { simulated, real });
        if self.open.len() > 12 {
            let gone = 1 + self.random.below(self.open.len() as u64 - 2) as usize;
            self.open.remove(gone);
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table: one arm a call of the port")]
    fn one_call(&mut self) -> Result<(), String> {
        // The root often, so that names meet.
        let count = self.open.len() as u64;
        let (at, other) = (self.random.below(count), self.random.below(count));
        let at = if self.random.chance(1, 3) { 0 } else { at as usize };
        let other = if self.random.chance(1, 3) { 0 } else { other as usize };
        let (name, other_name) = (self.name(), self.name());
        let (mode, offset, path) = (self.mode(), self.offset(), self.path());
        let number = self.random.next();
        let shown = format!("{} {}", name.escape_ascii(), other_name.escape_ascii());
        let call = self.random.below(100);
        self.calls.push(format!("call {call}: handles {at} {other}, {shown}, {mode:o}, {offset}, {path}, {number}"));
        let (fake, real) = (&self.simulated, &self.real);
        let (node, second) = (&self.open[at], &self.open[other]);
        match call {
            0..=11 => {
                let opened =
                    alike(fake.create_file(&node.simulated, &name, mode), real.create_file(&node.real, &name, mode))?;
                self.keep(opened);
            }
            12..=20 => {
                same(fake.create_dir(&node.simulated, &name, mode), real.create_dir(&node.real, &name, mode))?;
            }
            21..=25 => {
                let target = match number % 30 {
                    0 => Vec::new(),
                    1 => vec![b't'; 4095],
                    2 => vec![b't'; 4096],
                    _ => path.into_bytes(),
                };
                let made = fake.create_symlink(&node.simulated, &name, &target);
                same(made, real.create_symlink(&node.real, &name, &target))?;
            }
            26..=28 => {
                use NodeKind::{BlockDevice, CharDevice, Directory, Fifo, File, Socket};
                let kind = [CharDevice, BlockDevice, Fifo, Socket, File, Directory][(number % 6) as usize];
                let device = (0, (number >> 8) as u32 % 3);
                let made = fake.create_node(&node.simulated, &name, kind, mode, device);
                same(made, real.create_node(&node.real, &name, kind, mode, device))?;
            }
            29..=34 => {
                let made = fake.link(&node.simulated, &second.simulated, &name);
                same(made, real.link(&node.real, &second.real, &name))?;
            }
            35..=43 => {
                let moved = fake.rename(&node.simulated, &name, &second.simulated, &other_name);
                same(moved, real.rename(&node.real, &name, &second.real, &other_name))?;
            }
            44..=48 => same(fake.remove_file(&node.simulated, &name), real.remove_file(&node.real, &name))?,
            49..=51 => same(fake.remove_dir(&node.simulated, &name), real.remove_dir(&node.real, &name))?,
            52..=56 => {
                let opened = alike(fake.open_dir(&node.simulated, &name), real.open_dir(&node.real, &name))?;
                self.keep(opened);
            }
            57..=61 => {
                let path = Path::new(&path);
                let opened =
                    alike(fake.open_dir_in_root(&node.simulated, path), real.open_dir_in_root(&node.real, path))?;
                self.keep(opened);
            }
            62..=66 => {
                let access = if number & 1 == 0 { Access::Read } else { Access::ReadWrite };
                let opened =
                    alike(fake.open_file(&node.simulated, &name, access), real.open_file(&node.real, &name, access))?;
                self.keep(opened);
            }
            67..=69 => {
                let opened = alike(fake.open_node(&node.simulated, &name), real.open_node(&node.real, &name))?;
                self.keep(opened);
            }
            70..=77 => {
                let bytes = vec![number as u8; (number >> 8) as usize % 9_000];
                let written = fake.write_at(&node.simulated, &bytes, offset);
                same(written, real.write_at(&node.real, &bytes, offset))?;
            }
            78..=80 => same(fake.set_len(&node.simulated, offset), real.set_len(&node.real, offset))?,
            81..=83 => {
                let read = |disk: &dyn Disk, file: &Handle| {
                    let mut buffer = vec![0; 10_000];
                    let count = disk.read_at(file, &mut buffer, offset)?;
                    buffer.truncate(count);
                    Ok(buffer)
                };
                same(read(fake, &node.simulated), read(real, &node.real))?;
            }
            84 => {
                let (uid, gid) = ((number % 3) as u32, (number >> 8) as u32 % 3);
                same(fake.set_owner(&node.simulated, uid, gid), real.set_owner(&node.real, uid, gid))?;
            }
            85 => {
                let owned = fake.set_owner_at(&node.simulated, &name, 5, 6);
                same(owned, real.set_owner_at(&node.real, &name, 5, 6))?;
            }
            86 => same(fake.set_mode(&node.simulated, mode), real.set_mode(&node.real, mode))?,
            87..=88 => {
                let accessed = Timestamp { seconds: 1, nanoseconds: 2 };
                let modified = Timestamp { seconds: (number % 1_000_000) as i64 - 1000, nanoseconds: 999_999_999 };
                if call == 87 {
                    let set = fake.set_times(&node.simulated, accessed, modified);
                    same(set, real.set_times(&node.real, accessed, modified))?;
                } else {
                    let set = fake.set_times_at(&node.simulated, &name, accessed, modified);
                    same(set, real.set_times_at(&node.real, &name, accessed, modified))?;
                }
            }
            89..=91 => {
                let names: [&[u8]; 7] = [
                    b"user.note",
                    b"trusted.overlay.opaque",
                    b"security.capability",
                    b"security.capability",
                    b"system.unknown",
                    b"user.",
                    b"note",
                ];
                let mut value = vec![number as u8; 1 + (number >> 16) as usize % 30];
                if names[(number % 7) as usize] == b"security.capability" && number & 0x100 == 0 {
                    value = [&0x0200_0001_u32.to_le_bytes()[..], &[0, 4, 0, 0], &[0; 12]].concat();
                }
                let name = names[(number % 7) as usize];
                let set = fake.set_xattr(&node.simulated, name, &value);
                same(set, real.set_xattr(&node.real, name, &value))?;
            }
            92 => same(fake.xattrs(&node.simulated), real.xattrs(&node.real))?,
            93..=94 => {
                let listed = |disk: &dyn Disk, dir: &Handle| {
                    disk.read_dir(dir).map(|mut entries| {
                        entries.sort();
                        entries
                    })
                };
                same(listed(fake, &node.simulated), listed(real, &node.real))?;
            }
            95 => same(fake.read_link(&node.simulated, &name), real.read_link(&node.real, &name))?,
            96 => {
                if let Some((simulated, real)) = alike(fake.metadata(&node.simulated), real.metadata(&node.real))? {
                    same_metadata(&simulated, &real)?;
                }
            }
            97 => {
                let simulated = fake.metadata_at(&node.simulated, &name);
                if let Some((simulated, real)) = alike(simulated, real.metadata_at(&node.real, &name))? {
                    same_metadata(&simulated, &real)?;
                }
            }
            98 => same(fake.lock(&node.simulated), real.lock(&node.real))?,
            _ => match number % 5 {
                0 => same(fake.sync_data(&node.simulated), real.sync_data(&node.real))?,
                1 => same(fake.sync(&node.simulated), real.sync(&node.real))?,
                2 => {
                    let mode = if number & 8 == 0 { WriteBack::Start } else { WriteBack::Wait };
                    let started = fake.write_back(&node.simulated, 0, 0, mode);
                    same(started, real.write_back(&node.real, 0, 0, mode))?;
                }
                3 => same(fake.drop_cache(&node.simulated, 0, 0), real.drop_cache(&node.real, 0, 0))?,
                _ => {
                    let space = alike(fake.space(&node.simulated), real.space(&node.real))?;
                    if space.is_some_and(|(simulated, real)| {
                        simulated.free_bytes > simulated.total_bytes || real.free_bytes > real.total_bytes
                    }) {
                        return Err("more room than there is".to_owned());
                    }
                }
            },
        }
        Ok(())
    }
}
