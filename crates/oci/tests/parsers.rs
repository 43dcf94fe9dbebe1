//! Every parser, with the kept corpus and with what random changes make of it.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use baleen_oci::fuzzing;

fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(kind);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 20, "the corpus is there");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// xorshift64; the seed is printed so that a failure can be had again (`BALEEN_SEED`).
struct Random(u64);

impl Random {
    fn seeded() -> Random {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("BALEEN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(clock) | 1;
        println!("BALEEN_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Pieces that mean something to one of the parsers.
const PIECES: &[&str] = &[
    "\"manifests\":[]",
    "\"layers\":[]",
    "\"config\":{}",
    "\"mediaType\":",
    "null",
    "{}",
    "[]",
    "\\u0061",
    "\\",
    "\"",
    ",",
    ":",
    "@",
    "/",
    "//",
    "..",
    "-1",
    "1e9",
    "18446744073709551616",
    "sha256:",
    "\u{17f}",
    "\0",
    "é",
    "[[[[[[[[",
    "linux",
];

fn change(random: &mut Random, all: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = all[random.below(all.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below((bytes.len() - at).min(20) + 1);
        match random.below(4) {
            0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = PIECES[random.below(PIECES.len())].as_bytes();
                bytes.splice(at..end, piece.iter().copied());
            }
            _ => {
                let other = &all[random.below(all.len())];
                let from = random.below(other.len());
                let to = from + random.below(other.len() - from);
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn no_parser_of_documents_breaks_a_promise_on_the_corpus_or_near_it() {
    let corpus = corpus("documents");
    corpus.iter().for_each(|bytes| fuzzing::documents(bytes));
    let mut random = Random::seeded();
    for _ in 0..20_000 {
        fuzzing::documents(&change(&mut random, &corpus));
    }
}

#[test]
fn no_parser_of_names_breaks_a_promise_on_the_corpus_or_near_it() {
    let corpus = corpus("names");
    corpus.iter().for_each(|bytes| fuzzing::names(bytes));
    let mut random = Random::seeded();
    for _ in 0..200_000 {
        fuzzing::names(&change(&mut random, &corpus));
    }
}
