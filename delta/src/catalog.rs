//! What the source layers have: which payload is the same as, or like, a new one, and which block a header.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use baleen_snapshotter::tar::BLOCK_BYTES;

use crate::blocks::{Block, BlockAt};
use crate::error::{DeltaError, SourceError};
use crate::payload::PayloadAt;
use crate::source::{PayloadFacts, ReadAt, SourceLayer};
use crate::walk::{checksum_matches, octal};

/// Payloads of one base name, or of one path with its digits folded, that are kept in mind.
const ALIKE_MAX: usize = 16;

/// Payloads and headers of the source layers; layers are numbered as the caller gave them.
pub(crate) struct Catalog<'a> {
    pub(crate) layers: &'a [&'a dyn SourceLayer],
    skeletons: Vec<Box<dyn ReadAt + 'a>>,
    by_hash: HashMap<[u8; 32], PayloadAt>,
    by_path: HashMap<Vec<u8>, (PayloadAt, [u8; 32])>,
    by_folded_path: HashMap<Vec<u8>, Vec<(PayloadAt, u64)>>,
    by_name: HashMap<Vec<u8>, Vec<(PayloadAt, u64)>>,
    groups: HashMap<u64, Group>,
}

/// A header with its extension records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) first: BlockAt,
    pub(crate) count: u64,
}

impl<'a> Catalog<'a> {
    pub(crate) fn new(layers: &'a [&'a dyn SourceLayer]) -> Result<Self, DeltaError> {
        let mut catalog = Self {
            layers,
            skeletons: Vec::new(),
            by_hash: HashMap::new(),
            by_path: HashMap::new(),
            by_folded_path: HashMap::new(),
            by_name: HashMap::new(),
            groups: HashMap::new(),
        };
        for (number, layer) in layers.iter().enumerate() {
            let failed = |source| DeltaError::Source { layer: Box::new(layer.diff_id()), source };
            layer.for_each(&mut |facts| catalog.add(number, facts)).map_err(failed)?;
            let skeleton = layer.skeleton().map_err(failed)?;
            catalog.add_groups(number, &*skeleton).map_err(|source| {
                failed(SourceError::Io { action: "read", what: "the skeleton".to_owned(), source })
            })?;
            catalog.skeletons.push(skeleton);
        }
        Ok(catalog)
    }

    fn add(&mut self, layer: usize, facts: PayloadFacts) {
        let at = PayloadAt { layer, index: facts.index };
        self.by_hash.insert(facts.blake3, at);
        let fold = |map: &mut HashMap<Vec<u8>, Vec<(PayloadAt, u64)>>, key| {
            let alike = map.entry(key).or_default();
            if alike.len() < ALIKE_MAX {
                alike.push((at, facts.size_bytes));
            }
        };
        if !facts.path.is_empty() {
            fold(&mut self.by_folded_path, folded(&facts.path));
            fold(&mut self.by_name, folded(base_name(&facts.path)));
            self.by_path.insert(facts.path, (at, facts.blake3));
        }
    }

    fn add_groups(&mut self, layer: usize, skeleton: &dyn ReadAt) -> std::io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        let mut offset = 0;
        let mut grouping = Grouping::default();
        while offset < skeleton.size_bytes() {
            let count = (skeleton.size_bytes() - offset).min(buffer.len() as u64) as usize;
            skeleton.read_exact_at(&mut buffer[..count], offset)?;
            for (number, block) in buffer[..count].as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
                let index = offset / BLOCK_BYTES as u64 + number as u64;
                if let Some((key, count)) = grouping.next(block) {
                    let first = BlockAt { layer, index: index + 1 - count };
                    self.groups.insert(key, Group { first, count });
                }
            }
            offset += count as u64;
        }
        Ok(())
    }

    /// The group of the header with this key.
    pub(crate) fn group(&self, key: u64) -> Option<Group> {
        self.groups.get(&key).copied()
    }

    /// A block of a skeleton.
    pub(crate) fn block(&self, at: BlockAt) -> Option<Block> {
        let mut block = [0; BLOCK_BYTES];
        let skeleton = self.skeletons.get(at.layer)?;
        skeleton.read_exact_at(&mut block, at.index.checked_mul(BLOCK_BYTES as u64)?).ok()?;
        Some(block)
    }

    /// A source payload with the same bytes, best that of the same path.
    pub(crate) fn same(&self, path: &[u8], blake3: &[u8; 32]) -> Option<PayloadAt> {
        match self.by_path.get(path) {
            Some((at, found)) if found == blake3 => Some(*at),
            _ => self.by_hash.get(blake3).copied(),
        }
    }

    /// Source payloads that may be like a new one, the likeliest first.
    pub(crate) fn alike(&self, path: &[u8], size_bytes: u64) -> Vec<PayloadAt> {
        let mut found = Vec::new();
        if path.is_empty() {
            return found;
        }
        found.extend(self.by_path.get(path).map(|(at, _)| *at));
        for near in [self.by_folded_path.get(&folded(path)), self.by_name.get(&folded(base_name(path)))] {
            let closest = near.into_iter().flatten().min_by_key(|(_, size)| size.abs_diff(size_bytes));
            found.extend(closest.map(|(at, _)| *at));
        }
        found.dedup();
        found
    }

    /// Reads a whole source payload.
    pub(crate) fn read(&self, at: PayloadAt) -> Result<Vec<u8>, DeltaError> {
        let layer = self.layers[at.layer];
        let failed = |source| DeltaError::Source { layer: Box::new(layer.diff_id()), source };
        let payload = layer.open(at.index).map_err(failed)?;
        let mut bytes = vec![0; payload.size_bytes() as usize];
        let read = payload.read_exact_at(&mut bytes, 0);
        read.map_err(|source| {
            failed(SourceError::Io { action: "read", what: format!("payload {}", at.index), source })
        })?;
        Ok(bytes)
    }

    /// Length of a source payload.
    pub(crate) fn size_bytes(&self, at: PayloadAt) -> Result<u64, DeltaError> {
        let layer = self.layers[at.layer];
        let failed = |source| DeltaError::Source { layer: Box::new(layer.diff_id()), source };
        Ok(layer.open(at.index).map_err(failed)?.size_bytes())
    }
}

/// Finds headers in a run of blocks, with the extension records before them.
#[derive(Debug, Default)]
pub(crate) struct Grouping {
    /// Blocks of the open group.
    blocks: u64,
    /// Blocks of an extension record that are still to come.
    record_blocks: u64,
}

impl Grouping {
    /// Takes a block. If a group ends with it: its key, and the number of its blocks.
    pub(crate) fn next(&mut self, block: &Block) -> Option<(u64, u64)> {
        if self.record_blocks > 0 {
            self.record_blocks -= 1;
            self.blocks += 1;
            return None;
        }
        if !checksum_matches(block) {
            self.blocks = 0;
            return None;
        }
        self.blocks += 1;
        if matches!(block[156], b'x' | b'g' | b'L' | b'K') {
            self.record_blocks = octal(&block[124..136]).unwrap_or_default().div_ceil(BLOCK_BYTES as u64);
            return None;
        }
        let mut hasher = DefaultHasher::new();
        let name = block[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        hasher.write(name.strip_prefix(b"./").unwrap_or(name));
        hasher.write(&block[345..500]);
        let count = std::mem::take(&mut self.blocks);
        Some((hasher.finish(), count))
    }
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// A path with each run of digits as one `0`, and each version of several numbers too.
fn folded(path: &[u8]) -> Vec<u8> {
    let mut result: Vec<u8> = Vec::with_capacity(path.len());
    for (at, byte) in path.iter().enumerate() {
        let is_digit = byte.is_ascii_digit();
        let after_digit = result.last() == Some(&b'0');
        // A dot between digits belongs to the number.
        let inner_dot = *byte == b'.' && after_digit && path.get(at + 1).is_some_and(u8::is_ascii_digit);
        if (is_digit && after_digit) || inner_dot {
            continue;
        }
        result.push(if is_digit { b'0' } else { *byte });
    }
    result
}
