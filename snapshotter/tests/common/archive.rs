//! Archives made by hand, header by header.

/// An archive being made.
#[derive(Default, Clone)]
pub struct Archive(pub Vec<u8>);

/// A header block, to be changed before its checksum is set.
#[derive(Clone)]
pub struct Block(pub [u8; 512]);

impl Block {
    pub fn new(name: &[u8], flag: u8, size: u64) -> Self {
        let mut block = Self([0; 512]);
        block.0[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        block.octal(100, 8, 0o644);
        block.octal(108, 8, 0);
        block.octal(116, 8, 0);
        block.octal(124, 12, size);
        block.octal(136, 12, 1_600_000_000);
        block.0[156] = flag;
        block.set(257, b"ustar\x0000")
    }

    pub fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn link(self, target: &[u8]) -> Self {
        self.set(157, target)
    }

    pub fn mode(mut self, mode: u64) -> Self {
        self.octal(100, 8, mode);
        self
    }

    pub fn device(mut self, major: u64, minor: u64) -> Self {
        self.octal(329, 8, major);
        self.octal(337, 8, minor);
        self
    }

    pub fn octal(&mut self, at: usize, width: usize, value: u64) {
        let text = format!("{value:0width$o}\0", width = width - 1);
        self.0[at..at + width].copy_from_slice(text.as_bytes());
    }

    /// The block with its checksum.
    pub fn done(mut self) -> [u8; 512] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

impl Archive {
    pub fn block(mut self, block: Block) -> Self {
        self.0.extend_from_slice(&block.done());
        self
    }

    /// Data with zero padding.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        let padding = (512 - data.len() % 512) % 512;
        self.0.resize(self.0.len() + padding, 0);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.block(Block::new(name.as_bytes(), b'0', data.len() as u64)).data(data)
    }

    pub fn dir(self, name: &str) -> Self {
        self.block(Block::new(name.as_bytes(), b'5', 0).mode(0o755))
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.block(Block::new(name.as_bytes(), b'2', 0).link(target.as_bytes()))
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.block(Block::new(name.as_bytes(), b'1', 0).link(target.as_bytes()))
    }

    /// An extended header of `records` for the next entry (`x`) or all (`g`).
    pub fn pax(self, flag: u8, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.block(Block::new(b"pax", flag, body.len() as u64)).data(&body)
    }

    /// The two blocks of zeros, and the archive.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A generator of numbers from a seed (SplitMix64): the same archive each time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// One archive of a grammar: names that meet and replace one another, links, whiteouts, every type, odd ends.
pub fn generated(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut archive = Archive::default();
    let names = [
        "a",
        "b",
        "a/c",
        "a/c/d",
        "b/e",
        "link",
        "link/f",
        "./a//c/",
        "/abs",
        "a/../b/g",
        ".wh.a",
        "a/.wh..wh..opq",
        "a/.wh.c",
        "l2/x",
    ];
    for _ in 0..random.below(12) {
        let name = *random.pick(&names);
        let size = *random.pick(&[0, 1, 511, 512, 513, 4095, 4096, 4097, 9000]);
        let data = random.bytes(size);
        if random.below(4) == 0 {
            let value = random.bytes(20);
            archive = archive.pax(b'x', &[("SCHILY.xattr.user.r", &value), ("mtime", b"12.5"), ("comment", b"")]);
        }
        archive = match random.below(10) {
            0..=3 => archive.file(name, &data),
            4 | 5 => archive.dir(name),
            6 => archive.symlink(name, random.pick::<&str>(&["a", "/a/c", "../b", "nowhere", "link", "."])),
            7 => archive.hard_link(name, random.pick::<&str>(&["a", "b/e", "/a/c", "link", "gone"])),
            8 => archive
                .block(Block::new(name.as_bytes(), *random.pick(b"346"), 0).device(random.below(2), random.below(3))),
            _ => archive
                .block(
                    Block::new(name.as_bytes(), b'S', 8)
                        .set(257, b"ustar  \0")
                        .set(386, b"00000000001\x0000000000003\x0000000000004\x0000000000005\0")
                        .set(483, b"00000000040\0"),
                )
                .data(
                    &data[..data.len().min(8)].iter().copied().chain(std::iter::repeat(1)).take(8).collect::<Vec<_>>(),
                ),
        };
        if random.below(8) == 0 {
            let last = archive.0.len() - 1;
            // Dirt in what is padding, if it is; else in data. A header is never last with a size of its own.
            if !size.is_multiple_of(512) && archive.0[last] == 0 {
                archive.0[last] = 0x55;
            }
        }
    }
    match random.below(5) {
        0 => archive.0,
        1 => archive.raw(&[0; 512]).0,
        2 => archive.raw(&[0; 5000]).0,
        3 => archive.raw(&[0; 1024]).raw(&random.bytes(1000)).0,
        _ => archive.end(),
    }
}
