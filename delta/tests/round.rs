//! A delta gives back exactly what it was made from, whatever that is, and nothing else.

#![allow(clippy::cloned_ref_to_slice_refs)] // Layers of one image, of which there is one here.

use std::io::Cursor;

use baleen_delta::{
    Decoder, DeltaError, Header, Level, Options, PayloadFacts, ReadAt, SourceError, SourceLayer, Sources, TarLayer,
    Target, encode,
};
use baleen_oci::{DiffId, Digest};

/// A small generator with a seed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 32) as u8).collect()
    }

    /// Words of a small vocabulary: like text.
    fn text(&mut self, count: usize) -> Vec<u8> {
        let mut text = Vec::new();
        while text.len() < count {
            let word = self.below(97);
            text.extend_from_slice(format!("word{word} ").as_bytes());
        }
        text.truncate(count);
        text
    }
}

/// Builds archives header by header, so that odd ones can be built too.
#[derive(Default, Clone)]
struct Archive(Vec<u8>);

impl Archive {
    fn header(&mut self, name: &str, flag: u8, size: usize, time: u64, link: &str) -> &mut Self {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(format!("{time:011o}\0").as_bytes());
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    fn file(&mut self, name: &str, time: u64, contents: &[u8]) -> &mut Self {
        self.header(name, b'0', contents.len(), time, "");
        self.data(contents)
    }

    fn data(&mut self, contents: &[u8]) -> &mut Self {
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn pax(&mut self, records: &[(&str, &str)]) -> &mut Self {
        let mut text = String::new();
        for (key, value) in records {
            // The length counts itself.
            let mut length = key.len() + value.len() + 3;
            while length != key.len() + value.len() + 3 + length.to_string().len() {
                length = key.len() + value.len() + 3 + length.to_string().len();
            }
            text.push_str(&format!("{length} {key}={value}\n"));
        }
        self.header("PaxHeaders/x", b'x', text.len(), 0, "");
        self.data(text.as_bytes())
    }

    fn end(&mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0.clone()
    }
}

fn diff_id(tar: &[u8]) -> DiffId {
    DiffId(Digest::sha256_of(tar))
}

fn make(old: &[Vec<u8>], new: &[Vec<u8>], level: Level) -> (Vec<u8>, Vec<TarLayer<Vec<u8>>>) {
    let sources: Vec<_> = old.iter().map(|tar| TarLayer::open(diff_id(tar), tar.clone()).unwrap()).collect();
    let layers: Vec<&dyn SourceLayer> = sources.iter().map(|layer| layer as &dyn SourceLayer).collect();
    let targets: Vec<_> = new.iter().map(|tar| Target { diff_id: diff_id(tar), tar }).collect();
    let mut delta = Vec::new();
    let options = Options { level, threads: 2, ..Options::default() };
    let config = Digest::sha256_of(b"config");
    let report = encode(&config, &layers, &targets, &options, &mut Cursor::new(Vec::new()), &mut delta).unwrap();
    assert_eq!(report.delta_bytes, delta.len() as u64);
    assert_eq!(Header::parse(&delta).unwrap(), report.header);
    assert_eq!(report.header.delta_bytes(), delta.len() as u64);
    (delta, sources)
}

fn apply(delta: &[u8], sources: &dyn Sources) -> Result<Vec<Vec<u8>>, DeltaError> {
    let mut decoder = Decoder::new(delta, sources, 32 << 20)?;
    let mut tars = vec![Vec::new(); decoder.header().layers.len()];
    let mut tar = Vec::new();
    while let Some(done) = decoder.next_frame(&mut tar)? {
        if done.layer_complete {
            tars[done.layer] = std::mem::take(&mut tar);
        }
    }
    Ok(tars)
}

#[track_caller]
fn round(old: &[Vec<u8>], new: &[Vec<u8>]) -> usize {
    let mut smallest = usize::MAX;
    for level in [Level::Fast, Level::Default] {
        let (delta, sources) = make(old, new, level);
        let tars = apply(&delta, &sources).unwrap();
        assert!(tars == new, "the tars differ");
        smallest = smallest.min(delta.len());
    }
    smallest
}

/// An image's layer, and one that is somewhat like it.
fn two_versions(seed: u64) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random(seed);
    let (mut old, mut new) = (Archive::default(), Archive::default());
    for number in 0..20 + random.below(20) {
        let name = format!("usr/share/thing-{number}.txt");
        let contents = match random.below(3) {
            0 => random.bytes(100 + number as usize * 40),
            _ => random.text(3000 + number as usize * 17),
        };
        let time = 1_700_000_000 + random.below(4);
        match random.below(8) {
            0 => {
                old.file(&name, time, &contents);
            }
            1 => {
                new.file(&name, time, &contents);
            }
            2 => {
                old.file(&name, time, &contents);
                new.file(&format!("moved/{number}"), time + 9, &contents);
            }
            3 => {
                old.file(&name, time, &contents);
                let mut changed = contents.clone();
                let at = random.below(changed.len() as u64) as usize;
                changed.splice(at..at, b"something new".iter().copied());
                new.file(&name, time + 9, &changed);
            }
            4 => {
                for archive in [&mut old, &mut new] {
                    archive
                        .pax(&[("mtime", "1700000000.25"), ("SCHILY.xattr.user.a", "b")])
                        .file(&name, time, &contents);
                }
            }
            5 => {
                for archive in [&mut old, &mut new] {
                    archive.header(&name, b'5', 0, time, "").header(
                        &format!("{name}.l"),
                        b'2',
                        0,
                        time,
                        "to/somewhere",
                    );
                }
            }
            _ => {
                old.file(&name, time, &contents);
                new.file(&name, time + 9, &contents).header(&format!("{name}.hard"), b'1', 0, time, &name);
            }
        }
    }
    (old.end(), new.end())
}

#[test]
fn any_two_archives_come_back_bit_for_bit() {
    for seed in 1..40 {
        println!("seed {seed}");
        let (old, new) = two_versions(seed * 7919);
        round(&[old.clone()], &[new.clone()]);
        round(&[new], &[old]);
    }
}

#[test]
fn a_target_that_is_no_archive_comes_back_bit_for_bit() {
    let mut random = Random(77);
    let (old, new) = two_versions(5);
    let cut_in_a_header = new[..new.len() / 2 / 512 * 512 + 300].to_vec();
    let mut broken_header = new.clone();
    let middle = new.len() / 1024 * 512;
    broken_header[middle..middle + 512].fill(0x41);
    let mut garbage_tail = new.clone();
    garbage_tail.extend_from_slice(&random.bytes(1777));
    let mut zeros = new.clone();
    zeros.resize(new.len() + 100_003, 0);
    let mut zeros_and_garbage = zeros.clone();
    zeros_and_garbage.extend_from_slice(b"and then something");
    let lone_zero_block = [&[0; 512][..], &new].concat();
    for tar in [
        Vec::new(),
        b"x".to_vec(),
        vec![0; 512],
        vec![0; 5000],
        random.bytes(70_000),
        random.text(70_000),
        cut_in_a_header,
        broken_header,
        garbage_tail,
        zeros,
        zeros_and_garbage,
        lone_zero_block,
    ] {
        round(&[old.clone()], &[tar]);
    }
}

#[test]
fn odd_padding_odd_headers_and_odd_sizes_come_back_bit_for_bit() {
    let mut archive = Archive::default();
    archive.file("a", 1, b"contents").file("empty", 1, b"");
    // Padding that is not zero.
    let at = archive.0.len() - 512 - 3;
    archive.0[at..at + 3].copy_from_slice(b"xyz");
    archive.header("has-a-size-but-no-data", b'5', 700, 3, "").header("d", b'3', 0, 3, "");
    archive.file("b", 2, &vec![7; 512]).pax(&[("size", "3")]).header("by-pax", b'0', 0, 5, "").data(b"abc");
    let plain = archive.clone().end();
    // No blocks at the end; the last payload without padding.
    let cut = archive.0[..archive.0.len() - 509].to_vec();
    let mut other = archive.clone();
    other.file("c", 9, b"more");
    for (old, new) in [(&plain, &cut), (&cut, &plain), (&plain, &other.end())] {
        round(&[old.clone()], &[new.clone()]);
    }
    round(&[], &[plain]);
}

#[test]
fn several_layers_are_made_from_several() {
    let (a, b) = two_versions(11);
    let (c, d) = two_versions(12);
    round(&[a.clone(), c.clone()], &[b.clone(), d.clone(), a[..2048].to_vec()]);
    // A layer is found in another that comes later.
    assert!(round(&[c, a], &[d, b]) > 0);
}

#[test]
fn long_payloads_become_several_frames_and_a_decoder_starts_at_any() {
    let mut random = Random(3);
    let old = Archive::default().file("large", 1, &random.bytes(300 << 10)).end();
    let mut contents = random.bytes(8 << 20);
    contents.extend_from_slice(&random.text(1 << 20));
    let new = Archive::default().file("before", 1, b"b").file("large", 1, &contents).file("after", 1, b"a").end();
    let (delta, sources) = make(&[old], &[new.clone()], Level::Fast);
    assert_eq!(apply(&delta, &sources).unwrap(), [new.clone()]);
    let header = Header::parse(&delta).unwrap();
    assert!(header.frames.len() >= 3, "{} frames", header.frames.len());
    for (number, frame) in header.frames.iter().enumerate() {
        let rest = &delta[frame.offset as usize..];
        let mut decoder = Decoder::resume(header.clone(), rest, number, &sources, 32 << 20).unwrap();
        let mut tar = Vec::new();
        while decoder.next_frame(&mut tar).unwrap().is_some() {}
        assert!(tar == new[frame.tar_offset as usize..], "from frame {number}");
        assert_eq!(header.frame_at(0, frame.tar_offset), Some(number));
        assert_eq!(header.frame_at(0, frame.tar_offset + frame.output_bytes - 1), Some(number));
    }
    assert_eq!(header.frame_at(0, new.len() as u64), None);
    for cut in [0, 10, 100, header.header_bytes as usize + 5, delta.len() - 1] {
        assert!(matches!(apply(&delta[..cut], &sources), Err(DeltaError::Truncated)), "cut at {cut}");
    }
}

#[test]
fn times_alone_cost_next_to_nothing() {
    let (mut old, mut new) = (Archive::default(), Archive::default());
    let mut random = Random(9);
    for number in 0..2000u32 {
        let text = random.text(200);
        let code =
            [b"\xcb\x0d\r\n\0\0\0\0", &1_700_000_000u32.to_le_bytes()[..], &number.to_le_bytes(), &text].concat();
        let code_new =
            [b"\xcb\x0d\r\n\0\0\0\0", &1_702_000_000u32.to_le_bytes()[..], &number.to_le_bytes(), &text].concat();
        let time = 1_700_000_000;
        old.file(&format!("lib/{number}.py"), time, &text).file(&format!("lib/{number}.pyc"), time, &code);
        let time = 1_702_000_000;
        new.file(&format!("lib/{number}.py"), time, &text).file(&format!("lib/{number}.pyc"), time, &code_new);
    }
    let bytes = round(&[old.end()], &[new.end()]);
    assert!(bytes < 1024, "the delta has {bytes} bytes");
}

#[test]
fn every_flipped_byte_of_a_delta_is_an_error_and_never_another_image() {
    let (old, new) = two_versions(21);
    let (delta, sources) = make(&[old], &[new.clone()], Level::Fast);
    let mut refused = 0;
    for at in 0..delta.len() {
        for change in [1, 0x80, 0xff] {
            let mut flipped = delta.clone();
            flipped[at] ^= change;
            match apply(&flipped, &sources) {
                Err(_) => refused += 1,
                Ok(tars) => panic!("byte {at} changed by {change}: {} tars", tars.len()),
            }
        }
    }
    assert_eq!(refused, 3 * delta.len());
}

/// Puts a frame's own checksum and the header's right again after a change: what a forger would do.
fn forge(delta: &[u8], at: usize, change: u8) -> Vec<u8> {
    let header = Header::parse(delta).unwrap();
    let mut forged = delta.to_vec();
    forged[at] ^= change;
    for frame in &header.frames {
        let range = frame.offset as usize..(frame.offset + u64::from(frame.packed_bytes)) as usize;
        let check = blake3::hash(&forged[range]);
        let place = delta.windows(8).position(|window| window == frame.packed_check).unwrap();
        forged[place..place + 8].copy_from_slice(&check.as_bytes()[..8]);
    }
    let check = blake3::hash(&forged[24..header.header_bytes as usize]);
    forged[16..24].copy_from_slice(&check.as_bytes()[..8]);
    forged
}

#[test]
fn a_forged_delta_never_gives_an_image_of_the_wanted_digest_and_never_panics() {
    let (old, new) = two_versions(33);
    let (delta, sources) = make(&[old], &[new.clone()], Level::Fast);
    let wanted = diff_id(&new);
    let mut others = 0;
    for at in 24..delta.len() {
        for change in [1, 0x40, 0xff] {
            let forged = forge(&delta, at, change);
            // The bytes that say what the output is may be forged too: then the diff ID, which the caller verifies, tells.
            if let Ok(tars) = apply(&forged, &sources) {
                let same = Header::parse(&forged).unwrap().layers[0].diff_id == wanted;
                assert!(!same || tars[0] == new, "byte {at} changed by {change}");
                others += 1;
            }
        }
    }
    assert!(others < delta.len(), "{others} forged deltas were applied");
}

#[test]
fn reordered_frames_and_other_versions_and_missing_sources_are_told_apart() {
    let mut random = Random(4);
    let new = Archive::default().file("large", 1, &random.bytes(9 << 20)).end();
    let (old, _) = two_versions(2);
    let (delta, sources) = make(&[old.clone()], &[new, two_versions(2).1], Level::Fast);
    let header = Header::parse(&delta).unwrap();
    let mut frames: Vec<&[u8]> = header
        .frames
        .iter()
        .map(|frame| &delta[frame.offset as usize..(frame.offset + u64::from(frame.packed_bytes)) as usize])
        .collect();
    frames.swap(0, 1);
    let reordered = [&delta[..header.header_bytes as usize], &frames.concat()].concat();
    assert!(matches!(apply(&reordered, &sources), Err(DeltaError::Damaged { .. })));
    let mut newer = delta.clone();
    newer[8] = 2;
    assert!(matches!(apply(&newer, &sources), Err(DeltaError::Newer { version: 2 })));
    let none: Vec<TarLayer<Vec<u8>>> = Vec::new();
    assert!(
        matches!(apply(&delta, &none), Err(DeltaError::SourceMissing { layer }) if *layer == diff_id(&old)),
        "the missing layer is named"
    );
    let refused = Decoder::new(delta.as_slice(), &sources, 1000);
    assert!(matches!(refused, Err(DeltaError::TooMuchMemory { allowed_bytes: 1000, .. })));
}

/// A layer with one byte of one payload changed since its facts were recorded.
struct Damaged {
    layer: TarLayer<Vec<u8>>,
    index: u64,
    is_short: bool,
}

struct DamagedPayload<'a> {
    payload: Box<dyn ReadAt + 'a>,
    is_short: bool,
}

impl ReadAt for DamagedPayload<'_> {
    fn size_bytes(&self) -> u64 {
        self.payload.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        if self.is_short && offset + buffer.len() as u64 > 5 {
            return Ok(0);
        }
        let count = self.payload.read_at(buffer, offset)?;
        if offset == 0 && count > 3 {
            buffer[3] ^= 1;
        }
        Ok(count)
    }
}

impl SourceLayer for Damaged {
    fn diff_id(&self) -> DiffId {
        self.layer.diff_id()
    }

    fn open(&self, index: u64) -> Result<Box<dyn ReadAt + '_>, SourceError> {
        let payload = self.layer.open(index)?;
        if index != self.index {
            return Ok(payload);
        }
        Ok(Box::new(DamagedPayload { payload, is_short: self.is_short }))
    }

    fn facts(&self, index: u64) -> Result<PayloadFacts, SourceError> {
        self.layer.facts(index)
    }

    fn skeleton(&self) -> Result<Box<dyn ReadAt + '_>, SourceError> {
        self.layer.skeleton()
    }

    fn for_each(&self, visit: &mut dyn FnMut(PayloadFacts)) -> Result<(), SourceError> {
        self.layer.for_each(visit)
    }
}

#[test]
fn a_base_file_that_changed_on_disk_is_named() {
    let mut random = Random(8);
    let (mut old, mut new) = (Archive::default(), Archive::default());
    for number in 0..5 {
        let contents = random.text(5000);
        old.file(&format!("f{number}"), 1, &contents);
        new.file(&format!("f{number}"), 2, &[&contents[..], b"end"].concat());
    }
    let (delta, mut sources) = make(&[old.end()], &[new.end()], Level::Default);
    for is_short in [false, true] {
        let layer = sources.remove(0);
        let damaged = vec![Damaged { layer, index: 3, is_short }];
        let applied = apply(&delta, &damaged);
        assert!(matches!(applied, Err(DeltaError::SourceDamaged { index: 3, .. })), "{applied:?}");
        sources.extend(damaged.into_iter().map(|damaged| damaged.layer));
    }
    assert!(apply(&delta, &sources).is_ok());
}

#[test]
fn no_frame_writes_more_than_its_header_says() {
    // A small source, copied again and again: what a bomb would be made of.
    let old = Archive::default().file("a", 1, &[1; 4096]).end();
    let mut new = Archive::default();
    for number in 0..3000 {
        new.file(&format!("copy-{number}"), 1, &[1; 4096]);
    }
    let new = new.end();
    let (delta, sources) = make(&[old], &[new.clone()], Level::Fast);
    assert!(delta.len() < 20_000, "the delta has {} bytes", delta.len());
    assert_eq!(apply(&delta, &sources).unwrap(), [new.clone()]);
    // The header says how much that is, so it can be refused; a header that says less makes the frame an error.
    let header = Header::parse(&delta).unwrap();
    assert_eq!(header.output_bytes(), new.len() as u64);
    let mut smaller = header.clone();
    smaller.frames[0].output_bytes = 100_000;
    let rest = &delta[header.header_bytes as usize..];
    let mut decoder = Decoder::resume(smaller, rest, 0, &sources, 32 << 20).unwrap();
    let mut tar = Vec::new();
    assert!(matches!(decoder.next_frame(&mut tar), Err(DeltaError::Damaged { .. })));
    assert!(tar.len() <= 100_000);
}
